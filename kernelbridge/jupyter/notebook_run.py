"""Run a whole notebook in an environment, and save it as it goes: nbclient, with all cells handed over at once.

So the kernel goes through them by itself while this machine sleeps; what they print waits for it.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from kernelbridge.atomic_files import write_whole
from kernelbridge.errors import KernelBridgeError
from kernelbridge.hosts.progress import Say, Unit, WorkProgress
from kernelbridge.jupyter import shared_fleets
from kernelbridge.kernel.state import KernelState

SAVE_SECONDS = 5.0
# After a cell's reply: its output comes before it, however long the line was away.
OUTPUT_SECONDS = 120.0
# It has no types.
_FORMAT: Any = nbformat
PARAMETERS_TAG, INJECTED_TAG = "parameters", "injected-parameters"


def read(path: Path) -> Any:
    """Return the notebook in a file. Raises KernelBridgeError."""
    try:
        return _FORMAT.read(path, as_version=4)
    except OSError as exc:
        raise KernelBridgeError(f"{path}: {exc.strerror or exc}.", "Check the notebook's path.") from exc
    except Exception as exc:
        # nbformat raises whatever its JSON and its schemas do.
        raise KernelBridgeError(f"{path} is not a notebook: {exc}.", "Open and save it in Jupyter.") from exc


def value_of(text: str) -> object:
    """Return a parameter as it is meant: a number, a truth value, None, a list, or else the text."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value: object = ast.literal_eval(text)
        # It is written into a cell: infinity has no way to be.
        ast.literal_eval(repr(value))
        return value
    return text


def with_parameters(notebook: Any, parameters: Sequence[tuple[str, object]]) -> Any:
    """Return a notebook with its parameters set, as papermill does: in a cell behind the one tagged `parameters`."""
    if not parameters:
        return notebook
    lines = ["# Parameters", *(f"{name} = {value!r}" for name, value in parameters)]
    made = _FORMAT.v4.new_code_cell("\n".join(lines), metadata={"tags": [INJECTED_TAG]})
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        del made["id"]  # Cells have one since 4.5.
    cells = [cell for cell in notebook.cells if INJECTED_TAG not in _tags(cell)]
    at = next((index + 1 for index, cell in enumerate(cells) if PARAMETERS_TAG in _tags(cell)), 0)
    notebook.cells = [*cells[:at], made, *cells[at:]]
    return notebook


def _tags(cell: Any) -> Sequence[str]:
    tags: Sequence[str] = cell.metadata.get("tags", [])
    return tags


class _Ahead(NotebookClient):
    """nbclient's, whose cells were all sent before the first of them is waited for."""

    def runs(self, cell: Any) -> bool:
        """Whether a cell is run, as async_execute_cell decides it."""
        return cell.cell_type == "code" and cell.source.strip() != "" and self.skip_cells_with_tag not in _tags(cell)

    def progress(self, done: int) -> WorkProgress:
        """Return how far it is after so many cells; those that are not run do not count."""
        total = sum(map(self.runs, self.nb.cells))
        return WorkProgress(what="running", done=min(done + 1, total), total=total, unit=Unit.CELLS)

    async def send_all(self) -> None:
        """Send the cells, and let each later request for one be that which was sent."""
        kernel: Any = self.kc
        info: Any = await self.async_wait_for_reply(kernel.kernel_info())
        if info is not None:
            self.nb.metadata["language_info"] = info["content"].get("language_info", {})
        sent: list[str] = []
        for cell in filter(self.runs, self.nb.cells):
            stops = "raises-exception" not in _tags(cell)
            sent.append(kernel.execute(cell.source, store_history=True, stop_on_error=stops))
        waiting: Iterator[str] = iter(sent)
        kernel.execute = lambda *words, **more: next(waiting)


def _manager(environment: str, config_path: Path) -> AsyncKernelManager:
    """Return a manager of a kernel of ours, for which no kernel spec need be installed."""
    provisioner = {
        "provisioner_name": "kernelbridge",
        "config": {"environment": environment, "config_path": str(config_path)},
    }
    spec = KernelSpec(
        argv=["kernelbridge"],
        display_name=environment,
        language="python",
        interrupt_mode="message",
        metadata={"kernel_provisioner": provisioner},
    )
    manager = AsyncKernelManager(kernel_name=f"kernelbridge-{environment}")
    manager._kernel_spec = spec
    return manager


async def run(notebook: Any, output: Path, *, environment: str, config_path: Path, folder: Path, say: Say) -> None:
    """Run a notebook to its end, and save it to `output` meanwhile; the kernel starts in `folder`.

    Raises KernelBridgeError: a cell failed, the kernel died, or it could not be started or saved.
    """
    done = 0

    def executed(**facts: Any) -> None:
        nonlocal done
        done += 1
        say(client.progress(done))
        save(notebook, output)

    client = _Ahead(
        notebook,
        km=_manager(environment, config_path),
        timeout=None,
        iopub_timeout=OUTPUT_SECONDS,
        on_cell_executed=executed,
        resources={"metadata": {"path": str(folder)}},
    )
    save(notebook, output)
    saving = asyncio.create_task(_keep_saving(notebook, output))
    try:
        async with client.async_setup_kernel(cleanup_kc=True):
            await client.send_all()
            say(client.progress(0))
            for index, cell in enumerate(notebook.cells):
                await client.async_execute_cell(cell, index)
            client.set_widgets_metadata()
    except CellExecutionError as exc:
        raise KernelBridgeError(
            f"A cell failed: {exc.ename}: {exc.evalue}.", f"{output} has its traceback, and all before it."
        ) from exc
    except DeadKernelError as exc:
        raise KernelBridgeError("The kernel ended before the notebook did.", f"{output} has what it has done.") from exc
    finally:
        saving.cancel()
        save(notebook, output)


async def _keep_saving(notebook: Any, output: Path) -> None:
    """Save what a long cell has printed so far."""
    while True:
        await asyncio.sleep(SAVE_SECONDS)
        save(notebook, output)


@contextlib.contextmanager
def observed(say: Say) -> Iterator[None]:
    """Say how far the start of a kernel of this process is, while the block runs."""

    def tell(kernel_id: str, state: KernelState, news: str | WorkProgress) -> None:
        if state is KernelState.STARTING and str(news):
            say(news)

    stop = shared_fleets.observe(tell)
    try:
        yield
    finally:
        stop()


def save(notebook: Any, output: Path) -> None:
    """Write a notebook whole or not at all. Raises KernelBridgeError."""
    try:
        write_whole(output, _FORMAT.writes(notebook).encode("utf-8", "replace"), is_private=False)
    except OSError as exc:
        raise KernelBridgeError(
            f"{output} cannot be written: {exc.strerror or exc}.", "Choose another place with `-o`."
        ) from exc
