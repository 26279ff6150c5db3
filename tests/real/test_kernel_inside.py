"""What a kernel finds in its container, and what the relay does in its place: interrupts, names, folders, ends.

Two containers: an image with an old ipykernel in an environment that is not on PATH; and the usual one.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from tests.clients.blocking import Cell, Client, started
from tests.clients.notebook import fleet_closed_after, write_specs
from tests.rig.daemon import SLOW
from tests.rig.images import OLD_PYTHON
from tests.rig.lab import USERS
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

OWN_UID = next(user.uid for user in USERS if user.name == "kbtest")
WAITS = "import time\nprint('runs', flush=True)\nfor _ in range(600): time.sleep(0.1)"
# Two files where people keep theirs, and where these are.
LEAVE = """\
import getpass, os, pathlib, tempfile
places = [tempfile.gettempdir(), str(pathlib.Path.home() / ".cache" / "huggingface")]
for place in places:
    os.makedirs(place, exist_ok=True)
    pathlib.Path(place, "left").write_text("1")
"""
FIND = "import os, pathlib, tempfile; places = [tempfile.gettempdir(), str(pathlib.Path.home() / '.cache/huggingface')]"
# A daemon, a session of its own, a group of its own; and one that `nohup` keeps, as people start a board or a training.
RUN_AWAY = """\
import os, subprocess
sleep = ["sleep", "987"]
subprocess.Popen(sleep, start_new_session=True)
subprocess.Popen(sleep, process_group=0)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", sleep)
    os._exit(0)
subprocess.check_output("nohup sleep 987 > /dev/null 2>&1 & echo", shell=True)
"""
FILL_SHARED_MEMORY = """\
import mmap
file = open("/dev/shm/full", "w+b")
file.truncate(64 << 20)
mmap.mmap(file.fileno(), 64 << 20)[:] = bytes(64 << 20)
"""
# A package that needs no index.
MAKE_WHEEL = """\
import pathlib, zipfile
wheel = pathlib.Path.home() / "added-1-py3-none-any.whl"
with zipfile.ZipFile(wheel, "w") as file:
    file.writestr("added.py", "word = 'there'\\ndef main(): print('commands too')\\n")
    info = "added-1.dist-info/"
    file.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: added\\nVersion: 1\\n")
    file.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    file.writestr(info + "entry_points.txt", "[console_scripts]\\nadd-words=added:main\\n")
    file.writestr(info + "RECORD", "")
"""
CRASH = "import ctypes\ndef crash(): ctypes.string_at(0)\ncrash()"


class Inside:
    """One kernel, its client and its manager."""

    def __init__(self, manager: KernelManager, client: Client) -> None:
        self.manager = manager
        self.client = client

    def value(self, code: str) -> Any:
        """What the last expression of a cell is."""
        cell = self.client.run(code)
        assert cell.reply["status"] == "ok", cell
        return ast.literal_eval(cell.result or "None")

    def restart(self) -> None:
        """Start the kernel process again in the same container."""
        self.manager.restart_kernel(now=True)
        self.client.kernel.wait_for_ready(timeout=60 * SLOW)

    def interrupted(self, channel: str) -> float:
        """How long it takes until a running cell has ended by an interrupt_request on a channel, which is answered."""
        request = self.client.send(WAITS)
        self.client.wait_for_words("runs")
        began = time.monotonic()
        asked = self.client.ask(channel, "interrupt_request")
        cell = self.client.finish(request)
        took = time.monotonic() - began
        assert self.client.answer(asked)["content"]["status"] == "ok"
        assert (cell.reply["status"], cell.reply["ename"]) == ("error", "KeyboardInterrupt")
        return took

    def dies_of(self, code: str) -> Cell:
        """Run a cell in which the kernel dies, and start it again."""
        cell = self.client.run(code)
        self.restart()
        return cell


@pytest.fixture
def inside(rig: Rig, bridge_env: Laptop, request: pytest.FixtureRequest) -> Iterator[Inside]:
    """The kernel of an environment with these keys."""
    bridge_env.write_environment(**{"image": rig.image, **request.param})
    write_specs(bridge_env)
    with fleet_closed_after(bridge_env), started() as (manager, client):
        yield Inside(manager, client)


def sleeping(rig: Rig) -> list[str]:
    """The processes of RUN_AWAY that run in the one container."""
    (container,) = rig.engine.kernels()
    return [" ".join(words) for words in container.top()["Processes"] if "sleep 987" in " ".join(words)]


OLD = {"image": "kernelbridge-test/old:1", "python": OLD_PYTHON, "add_ipykernel": False}
SETUP = ["id -un >> set-up; pwd >> set-up; echo $WORD >> set-up", "command -v python > ~/which; cat"]


def test_a_setup_shows_how_far_it_is_and_one_that_fails_ends_the_start(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, setup=["echo fetching; sleep 3", "echo one; echo two >&2; exit 7"])
    write_specs(bridge_env)
    with fleet_closed_after(bridge_env), started(ready=False) as (_, client):
        cell = client.send("1")
        client.wait_for_words("setup: echo fetching; sleep 3: fetching")
        error = " ".join(client.finish(cell).error.split())
        assert "`echo one; echo two >&2; exit 7` ended with exit code 7: fetching | one | two" in error
    assert rig.engine.kernels() == []


@pytest.mark.parametrize("inside", [{**OLD, "workdir": "/tmp", "setup": SETUP, "env": {"WORD": "mine"}}], indirect=True)
def test_an_old_kernel_off_the_path_in_a_folder_of_roots_is_as_good_as_any(rig: Rig, inside: Inside) -> None:
    client = inside.client
    # Its setup ran as it runs: its user, its folder, its variables, its Python.
    assert inside.value("open('/tmp/set-up').read().split()") == ["kbtest", "/tmp", "mine"]
    assert inside.value("import shutil; open('/home/kbtest/which').read().strip() == shutil.which('python')")
    assert inside.value("import ipykernel; ipykernel.version_info[0]") == 5
    # It knows no interrupt_request, and handles control only between cells.
    took = [inside.interrupted(channel) for channel in ("control", "shell", "control")]
    assert max(took) < 1 * SLOW
    # What it has no handler for is answered all the same, also while a cell runs.
    busy = client.send("import time; time.sleep(2)")
    debugging = client.ask("control", "debug_request", {"type": "request", "seq": 7, "command": "debugInfo"})
    assert client.answer(debugging)["content"]["request_seq"] == 7
    assert not client.answer(debugging)["content"]["success"]
    for kind in ("create_subshell_request", "list_subshell_request", "delete_subshell_request", "usage_request"):
        assert client.answer(client.ask("control", kind))["content"]["status"] == "error"
    client.finish(busy)
    # Its user has a name and a home; its commands are its own.
    assert inside.value("import getpass, os; getpass.getuser(), os.path.expanduser('~'), os.getuid()") == (
        "kbtest",
        "/home/kbtest",
        OWN_UID,
    )
    assert client.run("!whoami").text.strip() == "kbtest"
    found = client.run("!which python3 python\n!pip --version\n!python -c 'import sys; print(sys.prefix)'").text
    prefix = inside.value("import sys; sys.prefix")
    assert found.splitlines()[:2] == [f"{prefix}/bin/{name}" for name in ("python3", "python")]
    assert "from /opt/old/lib" in found.splitlines()[2]
    assert found.splitlines()[3] == prefix
    assert inside.value("os.environ['VIRTUAL_ENV']") == prefix
    # That folder is root's: what pip adds is beside it, for the kernel at once and for commands.
    client.run(MAKE_WHEEL)
    added = client.run("%pip install --no-index -q $wheel\n!add-words\nimport added; print(added.word)").text
    assert added.splitlines()[-2:] == ["commands too", "there"], added
    assert "ipykernel" in client.run("!pip list").text, "all else is the image's"
    # What it keeps in its folders is there after a restart, and nothing that it started.
    client.run(LEAVE + RUN_AWAY)
    places = inside.value("places")
    assert len(sleeping(rig)) == 4
    inside.restart()
    assert inside.value(f"{FIND}\nplaces, [os.path.exists(one + '/left') for one in places]") == (places, [True, True])
    assert inside.value("import added; added.word") == "there"
    assert inside.value("len(open('/tmp/set-up').readlines())") == 3, "the setup is of the container"
    assert sleeping(rig) == []
    assert inside.value("[one for one in os.popen('ps -eo stat') if one.startswith('Z')]") == []


# As root, as many images have it.
@pytest.mark.parametrize("inside", [{"shm_size": "16m", "user": "image"}], indirect=True)
def test_interrupts_ends_and_restarts_of_todays_kernel_are_explained_and_leave_nothing(
    rig: Rig, inside: Inside
) -> None:
    client = inside.client
    took = [inside.interrupted(channel) for channel in ("shell", "control")]
    assert max(took) < 1 * SLOW
    debugging = client.ask("control", "debug_request", {"type": "request", "seq": 7, "command": "debugInfo"})
    assert client.answer(debugging)["content"]["success"]
    assert client.answer(client.ask("control", "create_subshell_request"))["content"]["status"] == "ok"
    client.run(LEAVE + RUN_AWAY)
    places = inside.value("places")
    assert inside.value("getpass.getuser()") == "root"
    assert len(sleeping(rig)) == 4

    (container,) = rig.engine.kernels()
    cell = client.send("import time\nfor _ in range(30): time.sleep(0.1)\n'went on'")
    container.pause()
    told = client.wait_for_words(
        f"the container is paused on lab; the cell goes on after `docker unpause {container.name}`"
    )
    assert told["parent_header"]["msg_id"] == cell
    container.unpause()
    assert client.finish(cell).result == "'went on'"

    full = inside.dies_of(FILL_SHARED_MEMORY)
    assert "signal SIGBUS (/dev/shm, whose size is `shm_size`, 16 MiB, is full)." in full.error
    assert "Raise `shm_size`" in full.error
    assert sleeping(rig) == []
    crashed = inside.dies_of("import os; os.remove('/dev/shm/full')\n" + CRASH)
    assert "signal SIGSEGV (native code used memory that is not its own)" in crashed.error
    assert "Fatal Python error: Segmentation fault" in crashed.error
    assert "called in line 3 of the cell" in crashed.error
    silent = inside.dies_of("import os; os._exit(3)")
    assert "ended: exit code 3." in silent.error
    assert "output" not in silent.error, "the banner of ipykernel is nobody's last words"
    assert inside.value(f"{FIND}\nplaces, [os.path.exists(one + '/left') for one in places]") == (places, [True, True])
