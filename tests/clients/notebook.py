"""A kernel as a script or nbclient holds it: jupyter_client's own manager and blocking client, in this process."""

from __future__ import annotations

import ast
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from kernelbridge.config import load as configs
from kernelbridge.jupyter import kernelspecs, shared_fleets
from tests.rig.daemon import SLOW
from tests.rig.laptop import Laptop

NAME = "kernelbridge-test"


class CellFailed(AssertionError):
    """A cell ended with an error; `name` and `text` are what the user sees."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class Notebook:
    """One started kernel. `run` is a cell."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client

    def run(self, code: str, *, seconds: float = 60, kinds: Sequence[str] = ("stream", "execute_result")) -> str:
        """The text that stands under the cell at the end. Raises CellFailed."""
        shown: list[str] = []

        def show(message: Mapping[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "clear_output":
                shown.clear()
            elif message["msg_type"] in kinds:
                shown.append(content["text"] if "text" in content else content["data"]["text/plain"])

        reply = self.client.execute_interactive(code, output_hook=show, timeout=seconds * SLOW, allow_stdin=False)
        content = reply["content"]
        if content["status"] != "ok":
            raise CellFailed(content.get("ename", content["status"]), content.get("evalue", ""))
        return "".join(shown).removesuffix("\n")

    def value(self, expression: str) -> Any:
        """What a Python expression of plain values is in the kernel, whatever is printed meanwhile."""
        return ast.literal_eval(self.run(expression, kinds=("execute_result",)))

    def debug(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one debug request: its content."""
        content = {"type": "request", "seq": 1, "command": command, "arguments": arguments}
        request = self.client.session.msg("debug_request", content)
        self.client.control_channel.send(request)
        while True:
            reply = self.client.get_control_msg(timeout=20 * SLOW)
            if reply["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                return dict(reply["content"])


def write_specs(laptop: Laptop) -> None:
    """The kernel specs are there, as `kernelbridge install` writes them."""
    kernelspecs.write(configs.load(laptop.config), kernelspecs.default_root(), kernelspecs.launcher_path())


@contextmanager
def fleet_closed_after(laptop: Laptop) -> Iterator[None]:
    """At the end no link and no thread of this user's fleet is left in this process."""
    try:
        yield
    finally:
        fleet = shared_fleets._FLEETS.pop(laptop.config, None)
        if fleet is not None:
            fleet.close()


@contextmanager
def notebook(laptop: Laptop, *, name: str = NAME, env: Mapping[str, str] | None = None) -> Iterator[Notebook]:
    """A kernel that is ready; shut down at the end. `env` is added to this process's environment for it."""
    write_specs(laptop)
    with fleet_closed_after(laptop), another(laptop, name=name, env=env) as first:
        yield first


@contextmanager
def another(laptop: Laptop, *, name: str = NAME, env: Mapping[str, str] | None = None) -> Iterator[Notebook]:
    """One more kernel of the same process, beside a notebook() whose fleet it shares."""
    # Where a Jupyter server would put it; by itself it would be in /tmp.
    file = laptop.runtime_dir / f"kernel-{uuid.uuid4()}.json"
    manager = KernelManager(kernel_name=name, connection_file=str(file))
    manager.start_kernel(**({"env": {**laptop.env, **env}} if env is not None else {}))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60 * SLOW)
        yield Notebook(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
