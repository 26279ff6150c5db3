"""relay/execs/command_runner.py: a command that runs as long as somebody wants it, as a program of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kernelbridge.hosts import bootstrap
from kernelbridge.relay.execs import command_runner

SECONDS = 20


def begun(words: list[str], *, port: int = 6006, folder: str = "") -> subprocess.Popen[bytes]:
    argv = bootstrap.run_argv(sys.executable)
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(bootstrap.command_line(words, port=port, folder=folder))
    process.stdin.flush()
    return process


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def rest_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    with process.stdout:
        rest = process.stdout.read()
    assert process.stdin is not None
    process.stdin.close()
    process.wait(SECONDS)
    return rest


def test_a_command_is_told_its_port_and_its_folder_and_its_end_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        asked = taken.getsockname()[1]
        code = "import os, sys; print(sys.argv[1:], os.getcwd()); sys.exit(3)"
        process = begun(["{python}", "-c", code, "{port}", "a{port}"], port=asked, folder=str(tmp_path))
        given = json.loads(line_of(process))["port"]
        assert given != asked
    assert rest_of(process) == f"['{given}', 'a{{port}}'] {tmp_path}\n".encode() + b"\0ended 3\n"


def test_a_port_that_is_free_is_given() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert command_runner.free_port(port) == port


def test_a_command_ends_with_stdin_and_so_does_all_that_it_started() -> None:
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    process = begun(["{python}", "-c", code])
    line_of(process)
    child = int(line_of(process))
    assert process.stdin is not None
    process.stdin.close()
    process.wait(SECONDS)
    assert process.stdout is not None
    assert process.stdout.read() == b""
    process.stdout.close()
    with pytest.raises(ProcessLookupError):
        for _ in range(200):
            os.kill(child, 0)
            # A child that nobody waits for is init's, which takes a moment.
            subprocess.run(["sleep", "0.05"], check=True)
