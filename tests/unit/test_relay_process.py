"""What runs in the container: the kernel process and its end (child), the pipes (line, bridge), and how it gets there.

Real processes of this machine stand in for the kernel; no container, no network. Frames and replay: test_relay.py.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.relay import bridge, child, ipykernel_launcher, shipping, wire
from kernelbridge.relay.child import Child, Ring
from kernelbridge.relay.line import Line, PlainPoller
from tests.rig.daemon import SLOW, wait_until

# -- child.py


def order(code: str, **facts: Any) -> dict[str, Any]:
    return {"argv": ["{python}", "-c", code, "{connection_file}", "--s={session}"], "session": "s1", **facts}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path)


def ended(process: Child) -> dict[str, Any]:
    """How it ended; the relay's loop reads its output meanwhile."""
    while process.process.poll() is None:
        select.select([process.output], [], [], 1)
        process.read_output()
    outcome = process.outcome()
    process.close()
    assert outcome is not None
    return outcome


def test_a_kernel_process_gets_its_words_its_folder_and_nothing_of_jupyters_own(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    monkeypatch.setenv("HOME", "/nowhere")
    told = "import os, sys, json; print(json.dumps([sys.argv[1:], dict(os.environ), os.getsid(0) == os.getpid()]))"
    process = Child(1, folder, order(told, env={"TOKEN": "secret"}), Ring())
    assert repr(process) == f"<Child launch 1 pid {process.process.pid} None>"
    assert process.address(3) == f"ipc://{folder}/1/k-3"
    connection = json.loads(Path(process.connection).read_text())
    assert ended(process)["code"] == 0
    words, environment, has_session = json.loads(process.ring.text())
    assert words == [process.connection, "--s=s1"]
    assert has_session
    assert environment["TOKEN"] == "secret"
    assert environment["PYDEVD_IPYTHON_COMPATIBLE_DEBUGGING"] == "1"
    assert environment["TMPDIR"] == environment["HOME"] == process.temporary  # A home that cannot be written is none.
    assert "JPY_PARENT_PID" not in environment
    assert not Path(process.temporary).exists()
    assert (connection["transport"], connection["key"], connection["shell_port"]) == ("ipc", "", 1)
    assert Path(process.connection).parent.stat().st_mode & 0o077 == 0


def test_each_launch_has_a_temporary_folder_of_its_own(folder: str) -> None:
    launches = [Child(number, folder, order("pass"), Ring()) for number in (1, 2)]
    assert launches[0].temporary != launches[1].temporary
    for launch in launches:
        ended(launch)


def test_an_end_by_itself_is_told_with_its_last_words(folder: str) -> None:
    outcome = ended(Child(7, folder, order("import sys; print('one'); print('two\\n\\n'); sys.exit(3)"), Ring()))
    assert outcome == {
        "event": "exited",
        "launch": 7,
        "code": 3,
        "out_of_memory": False,
        "wanted": False,
        "last_words": "two",
    }


def test_an_end_that_was_asked_for_takes_along_what_the_kernel_started(folder: str) -> None:
    code = (
        "import subprocess, time\n"
        "print(subprocess.Popen(['sleep', '60'], process_group=0).pid, flush=True)\n"
        "time.sleep(60)"
    )
    process = Child(1, folder, order(code), Ring())
    assert process.outcome() is None
    wait_until(lambda: process.read_output() and process.ring.text().endswith("\n"), "the worker's number", 10)
    worker = int(process.ring.text())
    process.end()
    outcome = ended(process)
    assert (outcome["code"], outcome["wanted"]) == (-signal.SIGKILL, True)
    wait_until(lambda: is_over(worker), "the worker to end", 5)
    process.signal_group(signal.SIGINT)  # All of it has ended: no error.


def is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_signal_reaches_the_kernels_group(folder: str) -> None:
    code = "import time\ntry:\n print('up', flush=True)\n time.sleep(60)\nexcept KeyboardInterrupt:\n print('heard')"
    process = Child(1, folder, order(code), Ring())
    wait_until(lambda: process.read_output() and "up" in process.ring.text(), "the process", 10)
    process.signal_group(signal.SIGINT)
    assert (ended(process)["code"], process.ring.text()) == (0, "up\nheard\n")


def test_a_kernel_begins_where_the_environment_says(folder: str, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    process = Child(1, folder, order("import os; print(os.getcwd())", cwd=str(tmp_path / "work")), Ring())
    ended(process)
    assert process.ring.text().strip() == str(tmp_path / "work")


def test_the_ring_keeps_the_last_bytes_and_never_cuts_a_piece() -> None:
    ring = Ring()
    for number in range(10):
        ring.add(str(number).encode() * (child.RING_BYTES // 4))
    assert set(ring.text()) == set("6789")
    ring.add(b"x" * (2 * child.RING_BYTES))
    assert ring.text() == "x" * (2 * child.RING_BYTES)
    ring.add("é".encode()[:1])
    assert ring.text() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("texts", "kills"),
    [
        (["low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\n"], 2),  # cgroup v2
        ([None, "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"], 5),  # cgroup v1
        (["low 0\n", "oom_kill 1\n"], 1),
        ([None, None], 0),
    ],
)
def test_kills_for_lack_of_memory_are_counted_as_either_cgroup_tells_them(
    tmp_path: Path, texts: list[str | None], kills: int
) -> None:
    paths = [tmp_path / str(number) for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        if text is not None:
            path.write_text(text)
    assert child.oom_kills([str(path) for path in paths]) == kills


@pytest.mark.parametrize(
    ("told", "first"),
    [
        ("0::/\n", "/sys/fs/cgroup/memory.events"),  # a container with a namespace of its own
        ("0::/slurm/job_7/step_batch\n", "/sys/fs/cgroup/slurm/job_7/step_batch/memory.events"),
        (
            "9:cpu,cpuacct:/x\n5:memory:/slurm/uid_1/job_7\n1:name=systemd:/y\n",
            "/sys/fs/cgroup/memory/slurm/uid_1/job_7/memory.oom_control",
        ),
        ("", "/sys/fs/cgroup/memory.events"),
    ],
)
def test_kills_are_counted_in_our_own_cgroup_and_else_at_the_top(told: str, first: str) -> None:
    paths = child.oom_files(told)
    assert paths[0] == first
    assert paths[-2:] == ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"]
    assert child.oom_kills() >= 0


# -- line.py and bridge.py


class Joined:
    """A line of the relay's that has the pipes of a bridge; `theirs` is the link's end of them."""

    def __init__(self, tmp_path: Path) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "relay.sock"))
        listener.listen(1)
        self.theirs_out, mine_in = os.pipe()[::-1]
        mine_out, self.theirs_in = os.pipe()[::-1]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", bridge.__file__, str(tmp_path / "relay.sock")], stdin=mine_in, stdout=mine_out
        )
        os.close(mine_in)
        os.close(mine_out)
        with listener:
            self.line = Line(listener.accept()[0])
        assert not self.line.is_adopted
        select.select([self.line.sock], [], [], 10)
        self.line.adopt()

    def close(self) -> None:
        self.line.close()
        for descriptor in (self.theirs_in, self.theirs_out):
            os.close(descriptor)
        self.process.wait(10)


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Joined]:
    made = Joined(tmp_path)
    yield made
    made.close()


def test_a_bridge_hands_its_streams_to_the_relay_and_ends_with_them(joined: Joined) -> None:
    assert joined.line.is_adopted
    os.write(joined.theirs_out, b"to the relay")
    select.select([joined.line.source], [], [], 10)
    assert joined.line.read() == b"to the relay"
    joined.line.write([b"from ", b"", b"the relay"])
    assert os.read(joined.theirs_in, 100) == b"from the relay"
    assert joined.process.poll() is None
    joined.line.close()
    assert joined.process.wait(10) == 0


def test_a_line_keeps_what_the_pipe_does_not_take_and_never_blocks(joined: Joined) -> None:
    sent = [bytes([number % 256]) * 40_000 for number in range(200)]
    joined.line.write(list(sent))
    assert joined.line.unsent
    got = bytearray()
    while len(got) < sum(map(len, sent)):
        got += os.read(joined.theirs_in, 1 << 20)
        joined.line.write([])
    assert bytes(got) == b"".join(sent)
    assert not joined.line.unsent


def test_the_end_of_the_link_is_the_end_of_the_line(joined: Joined) -> None:
    with pytest.raises(BlockingIOError):
        joined.line.read()
    os.close(joined.theirs_out)
    joined.theirs_out = os.open(os.devnull, os.O_RDONLY)
    select.select([joined.line.source], [], [], 10)
    with pytest.raises(OSError, match="end of stream"):
        joined.line.read()


def test_who_brings_no_pipes_is_no_line() -> None:
    ours, theirs = socket.socketpair()
    line = Line(ours)
    with pytest.raises(BlockingIOError):
        line.adopt()
    theirs.send(b"GET / HTTP/1.1")
    with pytest.raises(OSError, match="no pipes came"):
        line.adopt()
    line.close()
    theirs.close()


def test_a_bridge_ends_when_the_relay_is_gone(tmp_path: Path) -> None:
    made = Joined(tmp_path)
    made.line.sock.shutdown(socket.SHUT_RDWR)
    assert made.process.wait(10) == 0
    made.close()


def test_without_pyzmq_a_plain_poll_has_the_same_habits() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poller = PlainPoller()
        poller.register(ours.fileno(), 1)
        assert poller.poll(0) == []
        threading.Timer(0.01, theirs.send, [b"x"]).start()
        assert dict(poller.poll(5000)) == {ours.fileno(): 1}


# -- ipykernel_launcher.py


# Stands in for ipykernel's module of this name: says what the launcher has done.
KERNELAPP = """
import json, sys
from types import SimpleNamespace

class IPKernelApp:
    def init_iopub(self, context):
        print(json.dumps({"hwm": context.sndhwm, "path": sys.path, "argv": sys.argv[1:]}))

    @classmethod
    def launch_instance(cls):
        cls().init_iopub(SimpleNamespace(sndhwm=1000))
"""


@pytest.mark.parametrize("safe_path", ["", "1"])
def test_the_kernel_is_started_without_a_bound_on_its_output_and_without_our_folder_on_its_path(
    tmp_path: Path, safe_path: str
) -> None:
    (tmp_path / "ipykernel").mkdir()
    (tmp_path / "ipykernel" / "__init__.py").touch()
    (tmp_path / "ipykernel" / "kernelapp.py").write_text(KERNELAPP)
    done = subprocess.run(
        [sys.executable, ipykernel_launcher.__file__, "-f", "x"],
        env={"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": safe_path},
        capture_output=True,
        check=True,
        timeout=10 * SLOW,
    )
    said = json.loads(done.stdout)
    assert (said["hwm"], said["argv"]) == (0, ["-f", "x"])
    # What the image put there stays there.
    assert said["path"][0] == str(tmp_path)
    assert str(Path(ipykernel_launcher.__file__).parent) not in said["path"]


# -- shipping.py


def test_no_word_of_a_user_stands_in_the_commands_that_the_host_can_see() -> None:
    assert shipping.boot_argv("python3")[:2] == ["python3", "-c"]
    assert shipping.bridge_argv("/opt/py")[:4] == ["/opt/py", "-I", "-S", "-c"]
    for argv in (shipping.boot_argv("python3"), shipping.bridge_argv("python3")):
        compile(argv[argv.index("-c") + 1], "<argv>", "exec")


def test_the_line_for_the_container_has_the_whole_relay_and_the_order() -> None:
    spawn = shipping.spawn_order(launch=1, session="s", env={"TOKEN": "x"}, cwd="/w")
    line = shipping.order_line("k1", spawn, {"persist": True}, {"folder": "/j", "bytes": 9})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    said = json.loads(line)
    assert (said["kernel"], said["spawn"]["env"]) == ("k1", {"TOKEN": "x"})
    assert (said["terms"], said["journal"]) == ({"persist": True}, {"folder": "/j", "bytes": 9})
    package = Path(shipping.__file__).parent
    assert set(said["files"]) == {path.name for path in package.glob("*.py")} - {"shipping.py"}
    for name, text in said["files"].items():
        compile(text, name, "exec")


def test_an_order_names_gpus_and_what_ends_it_only_where_it_is_said() -> None:
    spawn = shipping.spawn_order(launch=1, session="s", env={}, cwd="")
    plain = json.loads(shipping.order_line("k1", spawn, {}, {}))
    assert not plain.keys() & {"gpus", "ends_with_stdin"}
    cards = {"ids": ["GPU-a"], "locks": "/locks"}
    said = json.loads(shipping.order_line("k1", spawn, {}, {}, gpus=cards, ends_with_stdin=True))
    assert (said["gpus"], said["ends_with_stdin"]) == (cards, True)


def test_a_hello_says_who_asks_for_what() -> None:
    said = shipping.hello(kernel="k", owner="o", stream="s", received=[1, 2], ask="logs", take=True)
    [frame] = wire.Decoder().feed(said)
    assert frame.kind == wire.HELLO
    assert json.loads(bytes(frame.payload)) == {
        "kernel": "k",
        "owner": "o",
        "who": "",
        "stream": "s",
        "received": [1, 2],
        "ask": "logs",
        "take": True,
        "version": wire.VERSION,
    }


def test_a_goodbye_says_whether_the_kernel_is_to_end_and_who_may_come_again() -> None:
    [frame] = wire.Decoder().feed(shipping.goodbye(end=True, claim="c"))
    assert (frame.kind, json.loads(bytes(frame.payload))) == (wire.GOODBYE, {"end": True, "claim": "c"})
