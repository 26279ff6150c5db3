"""A relay as a process of this machine, in a folder of its own, with a kernel that says little; and who visits it."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelbridge.hosts import bootstrap
from kernelbridge.protocol import frames
from kernelbridge.protocol.handshake import Hello
from tests.rig.daemon import SLOW, wait_until

# Answers each request; is busy with a cell for ever; says something without being asked.
KERNEL = """
import json, sys, zmq
at = json.load(open(sys.argv[1]))["ip"]
context = zmq.Context()
shell, iopub = context.socket(zmq.ROUTER), context.socket(zmq.PUB)
shell.bind(f"ipc://{at}-1")
iopub.bind(f"ipc://{at}-2")
def message(kind, parent, **content):
    parts = {"msg_type": kind}, parent, {}, content
    return [b"<IDS|MSG>", b"", *(json.dumps(part).encode() for part in parts)]
while True:
    if shell.poll(100):
        parts = shell.recv_multipart()
        at = parts.index(b"<IDS|MSG>")
        header = json.loads(parts[at + 2])
        iopub.send_multipart([b"k.status", *message("status", header, execution_state="busy")])
        if header["msg_type"] != "execute_request":
            shell.send_multipart([*parts[:at], *message("kernel_info_reply", header, made="up")])
            iopub.send_multipart([b"k.status", *message("status", header, execution_state="idle")])
    iopub.send_multipart([b"k.stream", *message("stream", {}, name="stdout", text=".")])
"""


def moved(words: list[str], folder: Path) -> list[str]:
    """Return a command of bootstrap.py's for a relay in another folder."""
    return [word.replace(bootstrap.RELAY_FOLDER, str(folder)) for word in words]


def order(folder: Path, *, code: str = KERNEL, terms: Mapping[str, Any] | None = None, **more: Any) -> bytes:
    """Return the line for a relay in a folder; `more` goes to order_line."""
    spawn = {
        "do": "spawn",
        "launch": 1,
        "session": "s",
        "argv": ["{python}", "-c", code, "{connection_file}"],
        "env": {},
        "cwd": "",
        "needs": [],
    }
    line = bootstrap.order_line("k1", spawn, dict(terms or {}), {}, **more)
    return line.replace(bootstrap.RELAY_FOLDER.encode(), str(folder).encode())


def standin(folder: Path, ids: Sequence[str] = (), *, script: str = "") -> str:
    """Return the folder of a STAND-IN nvidia-smi that lists such cards, or is the script; no such hardware is here."""
    lines = [f"echo 'GPU {number}: Stand-in GPU (UUID: {uuid})'" for number, uuid in enumerate(ids)]
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    written = program.with_suffix(".new")
    written.write_text("\n".join(["#!/bin/sh", script, *lines, ""]))
    written.chmod(0o755)
    written.rename(program)  # At once: it may be asked at any moment.
    return str(program.parent)


class MadeRelay:
    """The process; its stdin stays open."""

    def __init__(self, folder: Path, line: bytes = b"", *, path: str = "", argv: list[str] | None = None) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            moved(argv or bootstrap.boot_argv(sys.executable), folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None,
        )
        assert self.process.stdin is not None
        if line:
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def __enter__(self) -> MadeRelay:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.exit_code()

    def exit_code(self) -> int:
        """Wait for its end."""
        code = self.process.wait(20 * SLOW)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        return code

    def ask(self, what: str = "status") -> dict[str, Any]:
        """Return its status or its logs."""
        visit = Visit(self.folder / "relay.sock", ask=what)
        visit.wait(lambda: bool(visit.answers), "an answer")
        visit.close()
        return visit.answers[0]


class Visit:
    """One line to a relay, and what came over it."""

    def __init__(self, path: Path, **wish: Any) -> None:
        wait_until(path.exists, f"{path}", 20)
        source, self._out = os.pipe()
        self._in, sink = os.pipe()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.connect(str(path))
        for descriptor in (source, sink):
            os.set_blocking(descriptor, False)
        self._sock.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [source, sink]))])
        os.close(source)
        os.close(sink)
        self._decoder = frames.Decoder()
        # What WELCOME and ANSWER said, and the relay's events.
        self.answers: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self._said = 0
        os.write(self._out, Hello(kernel="k1", owner="o:1@2", stream="x", received=[0, 0], **wish).frame())

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave, and say nothing."""
        for descriptor in (self._in, self._out):
            os.close(descriptor)
        self._sock.close()

    def send(self, message: frames.Message) -> None:
        """Send the kernel or the relay a message: a small one."""
        self._said += 1
        packed = frames.pack(message)
        os.write(self._out, frames.head(frames.DATA, len(packed), frames.LANE_OF[message.channel], self._said) + packed)

    def wait(self, claim: Callable[[], bool], what: str) -> None:
        """Read until the claim is true."""
        until = time.monotonic() + 20 * SLOW
        while not claim():
            assert time.monotonic() < until, f"waited for {what}; events: {self.events}"
            if select.select([self._in], [], [], 0.1)[0]:
                self._read()

    def told(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait for the relay's events of a name; return the last one."""
        found: list[dict[str, Any]] = []

        def has_come() -> bool:
            found[:] = [event for event in self.events if event["event"] == name]
            return len(found) >= count

        self.wait(has_come, name)
        return found[-1]

    def _read(self) -> None:
        for frame in self._decoder.feed(os.read(self._in, 1 << 20)):
            if frame.kind in (frames.WELCOME, frames.ANSWER):
                self.answers.append(json.loads(bytes(frame.payload)))
            elif frame.kind == frames.DATA and frame.payload[0] == frames.EVENT:
                self.events.append(json.loads(bytes(frames.unpack(frame.payload).parts[0])))
