"""processes.py: a name for a process that no later one has."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from kernelbridge.processes import is_alive, process_mark


def test_this_process_is_alive() -> None:
    assert is_alive(process_mark())
    assert process_mark() == process_mark(psutil.Process())


def test_a_process_that_has_ended_is_not_alive_and_its_number_alone_says_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        mark = process_mark(psutil.Process(other.pid))
        assert is_alive(mark)
        number, _, _ = mark.partition("@")
        assert not is_alive(f"{number}@0.00")
        other.communicate(b"\n", timeout=30)
    assert not is_alive(mark)


@pytest.mark.parametrize("mark", ["", "@", "x@1.00", "-1@1.00", "12"])
def test_what_is_no_mark_is_nobody(mark: str) -> None:
    assert not is_alive(mark)
