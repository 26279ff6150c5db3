"""relay/ipykernel_launcher.py: ipykernel gets room for all its output, says what it answers, and prints no banner."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernelbridge.relay import ipykernel_launcher
from tests.rig.daemon import SLOW

# Stands in for ipykernel's module of this name: says what the launcher has done.
KERNELAPP = """
import json, os, signal, sys
from types import SimpleNamespace

class IPKernelApp:
    parent_handle = 0
    abs_connection_file = sys.argv[2]

    def init_iopub(self, context):
        print(json.dumps({"hwm": context.sndhwm, "path": sys.path, "argv": sys.argv[1:]}), flush=True)

    def log_connection_info(self):
        if not self.parent_handle:
            print("--existing x")
        self.ports = {}

    def init_kernel(self):
        self.kernel = SimpleNamespace(control_handlers={"shutdown_request": None, "debug_request": None})

    @classmethod
    def launch_instance(cls):
        app = cls()
        app.init_iopub(SimpleNamespace(sndhwm=1000))
        app.log_connection_info()
        app.init_kernel()
        assert (app.parent_handle, app.ports) == (0, {})
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.mark.parametrize("safe_path", ["", "1"])
def test_the_kernel_is_started_without_a_bound_on_its_output_and_without_our_folder_on_its_path(
    tmp_path: Path, safe_path: str
) -> None:
    (tmp_path / "ipykernel").mkdir()
    (tmp_path / "ipykernel" / "__init__.py").touch()
    (tmp_path / "ipykernel" / "kernelapp.py").write_text(KERNELAPP)
    done = subprocess.run(
        [sys.executable, ipykernel_launcher.__file__, "-f", str(tmp_path / "x")],
        env={"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": safe_path},
        capture_output=True,
        timeout=10 * SLOW,
    )
    assert done.returncode == -signal.SIGSEGV, done.stderr
    # Whatever became of stderr since.
    assert done.stderr.startswith(b"Fatal Python error: Segmentation fault")
    said = json.loads(done.stdout)
    assert (said["hwm"], said["argv"]) == (0, ["-f", str(tmp_path / "x")])
    # What the image put there stays there.
    assert said["path"][0] == str(tmp_path)
    assert str(Path(ipykernel_launcher.__file__).parent) not in said["path"]
    assert json.loads((tmp_path / ipykernel_launcher.FACTS_NAME).read_text()) == {
        "control": ["debug_request", "shutdown_request"],
    }


def test_a_kernel_of_another_kind_and_a_folder_without_room_are_started_all_the_same(tmp_path: Path) -> None:
    app = SimpleNamespace(abs_connection_file=str(tmp_path / "x"), kernel=SimpleNamespace())
    ipykernel_launcher.write_facts(app)
    app.abs_connection_file = str(tmp_path / "nowhere" / "x")
    ipykernel_launcher.write_facts(app)
    assert not (tmp_path / ipykernel_launcher.FACTS_NAME).exists()


PIPE = """
import os, sys, psutil, zmq
from ipykernel.iostream import IOPubThread
from kernelbridge.relay.ipykernel_launcher import keep_pipe_private

keep_pipe_private(sys.argv[1])
context = zmq.Context()
out, heard = context.socket(zmq.PUB), context.socket(zmq.SUB)
heard.subscribe(b"")
out.bind("inproc://out")
heard.connect("inproc://out")
thread = IOPubThread(out, pipe=True)
thread.start()
ports = [one for one in psutil.Process().net_connections("inet") if one.status == psutil.CONN_LISTEN]
child = os.fork()
if child == 0:
    thread.send_multipart([b"from the child"])
    os._exit(0)
os.waitpid(child, 0)
assert heard.poll(20_000)
print(ports, heard.recv_multipart(), os.listdir(sys.argv[1]))
os._exit(0)
"""


def test_what_forked_processes_print_comes_through_no_port(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("p")
    done = subprocess.run(
        [sys.executable, "-c", PIPE, str(folder)], capture_output=True, text=True, check=True, timeout=30 * SLOW
    )
    assert done.stdout == f"[] [b'from the child'] ['{ipykernel_launcher.PIPE_NAME}']\n"


SAYS = """
import importlib, json, sys
from kernelbridge.relay import ipykernel_launcher
ipykernel_launcher.add_packages(sys.argv[1])
ipykernel_launcher.add_packages(sys.argv[1])
print(json.dumps([importlib.import_module(name).WHOSE for name in sys.argv[2:]] + [sys.path.count(sys.path[-1])]))
"""


@pytest.mark.parametrize(
    ("first", "whose"),
    [
        ('["kept", "package"]', ["added", "added", "added", "added", 1]),
        ("[]", ["image", "image", "image", "added", 1]),
        ("no json", ["image", "image", "image", "added", 1]),
        (None, ["image", "image", "image", "added", 1]),
    ],
)
def test_what_was_added_comes_behind_the_images_own_but_for_what_is_too_old_there(
    tmp_path: Path, first: str | None, whose: list[object]
) -> None:
    own = tmp_path / "packages" / str(sys.implementation.cache_tag)
    for folder, name in ((tmp_path / "image", "image"), (own, "added")):
        (folder / "package").mkdir(parents=True)
        for file in ("kept.py", "package/__init__.py", "package/inner.py"):
            (folder / file).write_text(f"WHOSE = '{name}'\n")
    (own / "new.py").write_text("WHOSE = 'added'\n")
    if first is not None:
        (own / "first.json").write_text(first)
    done = subprocess.run(
        [sys.executable, "-c", SAYS, str(tmp_path / "packages"), "kept", "package", "package.inner", "new"],
        env={"PYTHONPATH": f"{tmp_path / 'image'}:{Path(ipykernel_launcher.__file__).parents[2]}"},
        capture_output=True,
        text=True,
        timeout=10 * SLOW,
    )
    assert json.loads(done.stdout or done.stderr) == whose
