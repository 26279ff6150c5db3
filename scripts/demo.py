"""The demo that scripts/demo runs: one notebook and one breakpoint in a container on a made machine, and the proof.

The machine, its sshd and its engine are tests/rig's; nothing of them is left at the end. Its two GPUs are stand-ins.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
from jupyter_client.asynchronous.client import AsyncKernelClient
from nbclient import NotebookClient
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.debugging import BREAKPOINT_LINE, DEBUGGED, STEP_SECONDS, stop_at_breakpoint
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig, missing, open_rig

DISPLAY_NAME = "Docker-GPU (remote)"
KERNEL = "kernelbridge-demo"
WHERE = "import socket; print(socket.gethostname())"
CGROUP = "print(open('/proc/1/cgroup').read())"
CARDS = "!nvidia-smi -L 2>/dev/null || echo none"
LINES, CUT_SECONDS = 60, 3.0
PRINTED = f"import time\nfor n in range({LINES}):\n    print(n, flush=True)\n    time.sleep(0.1)"

console = Console(highlight=False)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the cells printed, in their order."""

    hostname: str
    cgroup: str
    cards: str


async def run_notebook(notebook: NotebookClient) -> Seen:
    """Run the notebook's cells as any nbclient user does and return what they printed."""
    texts = []
    for index, cell in enumerate(notebook.nb.cells):
        done = await notebook.async_execute_cell(cell, index)
        texts.append("".join(output.get("text", "") for output in done["outputs"]).strip())
    return Seen(hostname=texts[0], cgroup=texts[1], cards=texts[2])


def _cell(source: str) -> dict[str, object]:
    kind = {"cell_type": "code", "id": secrets.token_hex(4), "metadata": {}}
    return kind | {"source": source, "outputs": [], "execution_count": None}


@asynccontextmanager
async def started_kernel(kernel: str, folder: Path) -> AsyncIterator[NotebookClient]:
    """A notebook with three cells and its running kernel; the kernel is shut down at the end."""
    cells = [_cell(text) for text in (WHERE, CGROUP, CARDS)]
    metadata = {"kernelspec": {"name": kernel, "display_name": DISPLAY_NAME, "language": "python"}}
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    page = nbformat.from_dict(content)
    notebook = NotebookClient(page, kernel_name=kernel, timeout=300, resources={"metadata": {"path": str(folder)}})
    async with notebook.async_setup_kernel():
        yield notebook


async def print_over_a_cut(client: AsyncKernelClient, rig: Rig) -> str:
    """Run a cell that prints numbered lines, cut the line meanwhile, and count what came."""
    request = client.execute(PRINTED)
    printed, state = "", ""
    cut = asyncio.create_task(_cut(rig))
    async with asyncio.timeout(STEP_SECONDS):
        while state != "idle":
            message = await client.iopub_channel.get_msg(timeout=STEP_SECONDS)
            if message["parent_header"].get("msg_id") != request:
                continue
            printed += message["content"].get("text", "") if message["msg_type"] == "stream" else ""
            state = message["content"].get("execution_state", state)
    await cut
    numbers = [int(word) for word in printed.split()]
    lost = len(set(range(LINES)) - set(numbers))
    twice = len(numbers) - len(set(numbers))
    order = "in order" if numbers == sorted(numbers) else "NOT in order"
    return f"{LINES} lines printed, the line cut for {CUT_SECONDS:g} s meanwhile: {lost} lost, {twice} twice, {order}."


async def _cut(rig: Rig) -> None:
    await asyncio.sleep(1)
    with rig.proxy.cut():
        await asyncio.sleep(CUT_SECONDS)


def container_cgroup(text: str) -> str:
    """The memory (or only) cgroup of /proc/PID/cgroup: where this process is accounted."""
    lines = [line for line in text.splitlines() if line]
    chosen = [line for line in lines if ":memory:" in line] or lines
    return chosen[0].split(":", 2)[2] if chosen else "?"


def show_proof(seen: Seen, variables: list[tuple[str, str, str]], rig: Rig) -> None:
    """Print what the cells saw beside what this machine and the host are."""
    table = Table("", title="Where did the cells run?")
    for place in ("seen from the cell", "the host `lab`", "this machine"):
        table.add_column(place, overflow="fold")
    containers = ", ".join(f"{one.name} ({one.short_id})" for one in rig.engine.kernels())
    own = container_cgroup(Path("/proc/self/cgroup").read_text())
    cards = re.sub(r" \(UUID: .*?\)", "", seen.cards)
    table.add_row("host name", seen.hostname, rig.lab.run(["hostname"]).strip(), socket.gethostname())
    table.add_row("cgroup", container_cgroup(seen.cgroup), f"its container: {containers or 'none'}", own)
    table.add_row("GPUs", cards, "2 stand-ins (no such hardware)", "-")
    console.print(table)
    console.print(Syntax(DEBUGGED, "python", line_numbers=True, highlight_lines={BREAKPOINT_LINE}))
    stopped = Table(
        "variable", "type", "value", title=f"The breakpoint in line {BREAKPOINT_LINE}, inside the container"
    )
    for row in variables:
        stopped.add_row(*row)
    console.print(stopped)


@contextmanager
def user(rig: Rig) -> Iterator[Laptop]:
    """A user's folders with the demo's config, in force for this process."""
    folder = Path(tempfile.mkdtemp(prefix="kbd-"))
    try:
        laptop = rig.laptop(folder)
        laptop.write_config(
            f'[hosts.lab]\nssh = "lab-proxied"\n\n[environments.demo]\ndisplay_name = "{DISPLAY_NAME}"\n'
            f'hosts = ["lab"]\nimage = "{rig.image}"\ngpus = 1\n',
        )
        os.environ.update(laptop.variables)
        yield laptop
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def install_spec(laptop: Laptop) -> None:
    """Run `kernelbridge install`, as a user would."""
    subprocess.run([sys.executable, "-m", "kernelbridge", "install"], env=laptop.env, check=True)


async def run_cells(kernel: str, laptop: Laptop, rig: Rig) -> None:
    """The notebook, the breakpoint, the proof."""
    began = time.monotonic()
    async with started_kernel(kernel, laptop.home) as notebook:
        seen = await run_notebook(notebook)
        console.print(f"{DISPLAY_NAME} started and ran the notebook in {time.monotonic() - began:.1f} s.")
        client = notebook.kc
        assert isinstance(client, AsyncKernelClient)
        variables = await stop_at_breakpoint(client)
        show_proof(seen, variables, rig)
        console.print(await print_over_a_cut(client, rig))


def stay_in_lab(laptop: Laptop) -> None:
    """JupyterLab in the foreground until Ctrl-C; its address goes to the terminal."""
    token = secrets.token_urlsafe(24)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["lab", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--allow-root"]
    words += [f"--ServerApp.root_dir={laptop.home}", "--ServerApp.port_retries=0", "--ServerApp.log_level=WARN"]
    # The token goes by the environment: command lines are everybody's to read.
    environment = laptop.env | {"JUPYTER_TOKEN": token}
    server = subprocess.Popen([sys.executable, "-m", "jupyter", *words], env=environment, start_new_session=True)
    try:
        console.print(f"\nJupyterLab: [bold]http://127.0.0.1:{port}/lab?token={token}[/bold]")
        console.print(f"Choose the kernel {DISPLAY_NAME!r} there. Ctrl-C here ends it and removes everything.")
        server.wait()
    except KeyboardInterrupt:
        console.print("Ending JupyterLab ...")
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(timeout=10)


def main() -> int:
    """Called by scripts/demo."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--lab", action="store_true", help="leave JupyterLab running until Ctrl-C")
    parser.add_argument("--kernel", default=KERNEL, help="the kernel spec to run; python3 is this machine's own")
    chosen = parser.parse_args()
    reason = missing()
    if reason:
        console.print(f"The demo cannot run: {reason}.")
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        return demonstrate(chosen.kernel, lab=chosen.lab)
    except KeyboardInterrupt:
        console.print("Stopped. Everything is removed.")
        return 130


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def demonstrate(kernel: str, *, lab: bool) -> int:
    """The whole demo; the exit code."""
    console.print("Starting a machine `lab` with sshd and a Docker engine; the image is made once, about a minute ...")
    began = time.monotonic()
    with open_rig() as rig:
        console.print(f"It is up at {rig.sshd.address}:{rig.sshd.port} after {time.monotonic() - began:.0f} s.")
        with user(rig) as laptop:
            if kernel == KERNEL:
                install_spec(laptop)
            asyncio.run(run_cells(kernel, laptop, rig))
            if lab:
                stay_in_lab(laptop)
        left = rig.engine.sweep()
    if left:
        console.print(f"[red]Containers were left behind and are removed now: {', '.join(left)}[/red]")
        return 1
    console.print("Everything is removed: kernel, container, engine, sshd, network, files.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
