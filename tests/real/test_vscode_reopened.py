"""VS Code closed and opened again: what becomes of the kernel of a notebook, and what the user reads of it.

The client is tests/clients/vscode_raw.mjs: the hidden cells, the notebook's name and the ends are VS Code's own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.fleet.left_kernels import RESTART_SECONDS
from tests.clients import gate
from tests.clients.driver import NodeClient
from tests.clients.goodbyes import expect_left, kernel_processes, swept
from tests.clients.specs import Spec, installed_spec
from tests.rig.daemon import run, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def spec(rig: Rig, bridge_env: Laptop) -> Iterator[Spec]:
    bridge_env.write_environment(rig.image, persist=True)
    yield installed_spec(bridge_env)
    rig.engine.sweep()


class Desk:
    """A user's folder with notebooks, and VS Code to open them with; each time another process, as after a reload."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        self.spec = spec
        self.folder = folder

    def notebook(self, name: str) -> str:
        return str(self.folder / name)

    @contextmanager
    def open(self, name: str = "train.ipynb") -> Iterator[NodeClient]:
        """The notebook open in VS Code, its kernel started by VS Code itself; closed at the end of the block."""
        with NodeClient("vscode_raw.mjs", self.settings(name)) as code:
            code.ask("start")
            yield code

    def settings(self, name: str) -> dict[str, Any]:
        return self.spec.settings(cwd=str(self.folder), notebook=self.notebook(name))


@pytest.fixture
def desk(spec: Spec, tmp_path: Path) -> Desk:
    folder = tmp_path / "work"
    folder.mkdir()
    return Desk(spec, folder)


def terminal(laptop: Laptop, *words: str) -> str:
    return run([sys.executable, "-m", "kernelbridge", *words], env=laptop.env, seconds=60)


def ids(rig: Rig) -> list[str]:
    return [str(one.id) for one in rig.engine.kernels()]


def test_a_notebook_that_is_opened_again_is_joined_to_its_kernel_and_its_name_is_shown(
    rig: Rig, desk: Desk, bridge_env: Laptop
) -> None:
    with desk.open() as code:
        code.execute("kept = 41")
        before = ids(rig)
        (row,) = swept(bridge_env)
        assert row.title == "train.ipynb"
    wait_until(lambda: swept(bridge_env)[0].link == "detached", "the kernel to be left", 10)
    (offered,) = json.loads(terminal(bridge_env, "ps", "--json"))["kernels"]
    assert (offered["title"], offered["state"]) == ("train.ipynb", "idle")
    picker = [path.read_text() for path in bridge_env.data_dir.glob("kernels/kernelbridge.running/*/kernel.json")]
    assert [", train.ipynb, " in text for text in picker] == [True]
    with desk.open() as code:
        cell = code.execute("kept + 1")
        assert "this is the kernel that train.ipynb left running on lab" in cell["screen"]
        assert cell["screen"].endswith("42")
        assert code.execute("kept + 2")["screen"] == "43"  # Once.
        assert ids(rig) == before
        # Another notebook of the same folder and environment gets a kernel of its own.
        with desk.open("other.ipynb") as other:
            assert other.execute("'kept' in globals()")["screen"] == "False"
            assert len(ids(rig)) == 2
            # What runs for the notebook is held: a second window does not get it.
            with desk.open() as second:
                assert second.execute("'kept' in globals()")["screen"] == "False"
                assert sorted(row.title for row in swept(bridge_env)) == ["other.ipynb", "train.ipynb", "train.ipynb"]


def test_a_kernel_in_which_nobody_ran_a_cell_is_not_kept(rig: Rig, desk: Desk, bridge_env: Laptop) -> None:
    with desk.open() as code:
        wait_until(lambda: len(kernel_processes(rig)) == 1, "the kernel process", 30)
        assert swept(bridge_env)[0].title == "train.ipynb"
        code.ask("stop")
        expect_left(rig, bridge_env)


SEEN = """\
import os, pathlib
print(os.environ["NVIDIA_VISIBLE_DEVICES"], os.path.exists("/data"), os.environ.get("A"), os.path.exists("/tmp/kept"))
"""


def test_a_restart_gets_what_the_config_says_by_then(rig: Rig, desk: Desk, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image)
    rig.lab.run(["mkdir", "-p", str(rig.lab.home("kbtest") / "data")])
    with desk.open() as code:
        code.execute("open('/tmp/kept', 'w').write('here')")
        first = ids(rig)
        # What each kernel process reads anew needs no other container, and no word.
        bridge_env.write_environment(rig.image, env={"A": "new"})
        code.ask("restart", timeout=90)
        assert code.execute(SEEN)["screen"] == "void False new True\n"
        assert ids(rig) == first
        bridge_env.write_environment(rig.user_image, gpus=1, mounts=["~/data:/data"], env={"A": "newer"})
        code.ask("restart", timeout=90)
        shown = code.execute(SEEN)["screen"]
        assert "a new container, because `gpus`, `image` and `mounts` changed in kernelbridge.toml" in shown
        assert shown.splitlines()[-1].split()[1:] == ["True", "newer", "False"]
        assert shown.splitlines()[-1].startswith("GPU-")
        wait_until(lambda: len(ids(rig)) == 1, "the old container to be gone", 20)
        second = ids(rig)
        assert second != first
        # Another image under the same name, as after a `docker pull` there.
        with rig.engine.client() as client:
            before = str(client.images.get(rig.user_image).id)
            client.images.get(rig.image).tag(*rig.user_image.split(":"))
            try:
                code.ask("restart", timeout=90)
                assert f"because lab has a newer {rig.user_image} now" in code.execute("1")["screen"]
                wait_until(lambda: len(ids(rig)) == 1 and ids(rig) != second, "another container", 20)
                third = ids(rig)
                code.ask("restart", timeout=90)
                assert code.execute("1")["screen"] == "1"
                assert ids(rig) == third
            finally:
                client.images.get(before).tag(*rig.user_image.split(":"))
    expect_left(rig, bridge_env)


def test_a_kernel_that_persists_stays_in_its_container_and_says_that_the_config_has_changed(
    rig: Rig, desk: Desk, bridge_env: Laptop
) -> None:
    with desk.open() as code:
        code.execute("kept = 41; open('/tmp/kept', 'w').write('here')")
        before = ids(rig)
        bridge_env.write_environment(rig.image, persist=True, shm_size="2g", env={"A": "new"})
        code.ask("restart", timeout=90)
        shown = code.execute("import os; os.environ['A'], os.path.exists('/tmp/kept'), 'kept' in globals()")["screen"]
        assert "this is still the old container, although `shm_size` changed in kernelbridge.toml" in shown
        assert shown.endswith("('new', True, False)")
        code.execute("kept = 42")
        # Not a restart, although the editor is the same: the notebook was closed, and is opened again.
        code.ask("stop")
        time.sleep(RESTART_SECONDS + 1)
        code.ask("start")
        assert code.execute("kept")["screen"].endswith("42")
        bridge_env.write_environment(rig.image, persist=True, shm_size="2g", env={"A": "newest"})
    wait_until(lambda: swept(bridge_env)[0].link == "detached", "the kernel to be left", 10)
    with desk.open() as code:
        shown = code.execute("kept, os.environ['A']")["screen"]
        assert "although `env` and `shm_size` changed" in shown
        assert shown.endswith("(42, 'new')")
        assert ids(rig) == before


DRAWING = """\
from IPython.display import HTML, clear_output, display
print("to be", "wiped")
clear_output()
print("line of the cell")
display({"text/plain": "<Figure>", "image/png": "iVBORw0KGgo="}, raw=True)
1 / 0"""


def test_output_that_came_while_vs_code_was_closed_is_shown_by_the_users_next_cell_once(
    rig: Rig, desk: Desk, bridge_env: Laptop
) -> None:
    with desk.open() as code:
        code.execute("kept = 41")
        # Neither ends before VS Code has gone.
        code.begin("execute", code=gate.held("", DRAWING))
        wait_until(lambda: swept(bridge_env)[0].state == "busy", "the cell to run", 20)
    wait_until(lambda: swept(bridge_env)[0].link == "detached", "the kernel to be left", 10)
    kernel_id = swept(bridge_env)[0].kernel_id
    gate.open_gates(rig)
    wait_until(lambda: swept(bridge_env)[0].state == "idle", "the cell to end", 20)
    assert swept(bridge_env)[0].undelivered_bytes > 0
    # The terminal shows it, and takes nothing.
    told = terminal(bridge_env, "logs", kernel_id[:8], "--output")
    assert "output of cell [2]: import os, time, which no client was there to show" in told
    assert "line of the cell\n<Figure> (image/png)\n" in told
    assert "ZeroDivisionError" in told
    assert "to be wiped" not in told
    assert terminal(bridge_env, "logs", kernel_id[:8], "--output") == told
    # VS Code opens it and closes it again, and no cell could have shown anything.
    with desk.open() as code:
        wait_until(lambda: swept(bridge_env)[0].link == "held", "the kernel to be joined", 20)
    wait_until(lambda: swept(bridge_env)[0].link == "detached", "the kernel to be left", 10)
    assert terminal(bridge_env, "logs", kernel_id[:8], "--output") == told
    with desk.open() as code:
        cell = code.execute("kept + 1")
        assert cell["status"] == "ok"
        title, line = "output of cell [2]: import os, time", "line of the cell\n"
        assert [cell["screen"].count(words) for words in (title, line, "to be wiped")] == [1, 1, 0]
        assert cell["screen"].index(title) < cell["screen"].index(line) < cell["screen"].index("ZeroDivisionError")
        assert cell["screen"].endswith("42")
        (figure,) = [one for one in cell["outputs"] if one["type"] == "display_data"]
        assert figure["data"]["image/png"] == "iVBORw0KGgo="
        assert cell["statuses"].count("busy") == 1
        assert code.execute("kept + 2")["screen"] == "43"
        wait_until(lambda: swept(bridge_env)[0].undelivered_bytes == 0, "all to be delivered", 10)
        assert terminal(bridge_env, "logs", kernel_id[:8], "--output") == "No output waits.\n"
        # A cell that runs still is seen to by the cell that waits behind it.
        code.begin("execute", code=gate.held("print('before')", "print('after')"))
        wait_until(lambda: swept(bridge_env)[0].state == "busy", "the cell to run", 20)
        # What it printed is shown and acknowledged; of the last two seconds before an end some may come twice.
        time.sleep(3)
    wait_until(lambda: swept(bridge_env)[0].link == "detached", "the kernel to be left", 10)
    with desk.open() as code:
        waiting = code.begin("execute", code="kept + 3", timeout_ms=60_000)
        wait_until(lambda: swept(bridge_env)[0].link == "held", "the kernel to be joined", 20)
        gate.open_gates(rig)
        shown = code.finish(waiting)["screen"]
        assert "output of cell [5]: import os, time" in shown
        assert shown.endswith("after\n44")
        assert "before\n" not in shown, "it was shown where it belongs"
