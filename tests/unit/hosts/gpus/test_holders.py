"""hosts/gpus/holders.py: strangers on a card, as people would say it."""

from __future__ import annotations

import pytest

from kernelbridge.hosts.gpus.holders import plain_name, stranger
from kernelbridge.hosts.gpus.nvidia_smi import GpuProcess


def process(pid: int, memory_mib: int, *, name: str = "", user: str = "", seconds: int | None = None) -> GpuProcess:
    return GpuProcess(pid=pid, name=name, kind="C", memory_mib=memory_mib, user=user, seconds=seconds)


@pytest.mark.parametrize(
    ("processes", "text"),
    [
        ([process(7, 10)], "process 7"),
        ([process(7, 10, name="python", user="bob", seconds=7200)], "process 7 (python) of bob since 2 h"),
        ([process(7, 10), process(8, 20), process(9, 5)], "process 8 and 2 more"),
    ],
)
def test_the_largest_stranger_is_named_and_the_others_counted(processes: list[GpuProcess], text: str) -> None:
    assert stranger(processes) == text


def test_a_name_is_short_and_harmless() -> None:
    assert plain_name("\x1b[31m" + "x" * 500) == "?[31m" + "x" * 75
