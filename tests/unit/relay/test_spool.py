"""relay/spool.py: the journal's files."""

from __future__ import annotations

import os
import random
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernelbridge.relay.journal import Journal
from kernelbridge.relay.spool import SEGMENT_BYTES, Spool
from tests.outputs import event, read, said

MIB = 1024 * 1024


@pytest.fixture
def disk_bytes(tmp_path: Path) -> Callable[[], int]:
    return lambda: sum(path.stat().st_size for path in tmp_path.iterdir())


def test_blocks_come_back_as_they_were_written(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    made = random.Random(1)
    blocks = [[made.randbytes(made.randrange(1, 500)) for _ in range(made.randrange(1, 3000))] for _ in range(30)]
    slots = [spool.write(block, number % 3) for number, block in enumerate(blocks)]
    for slot, block in zip(slots, blocks, strict=True):
        assert spool.read(slot) == block
    spool.close()


def test_there_is_no_file_before_it_is_needed_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    before = os.umask(0)
    try:
        slot = spool.write([b"output"], 0)
    finally:
        os.umask(before)
    [path] = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert repr(spool) == "<Spool 1 segments, 14 bytes>"
    spool.free(slot)
    assert list(tmp_path.iterdir()) == []
    assert repr(spool) == "<Spool 0 segments, 0 bytes>"
    assert spool.read(spool.write([b"again"], 0)) == [b"again"]
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_room_is_given_back_a_segment_at_a_time(tmp_path: Path, disk_bytes: Callable[[], int]) -> None:
    spool = Spool(str(tmp_path))
    slots = [spool.write([b"x" * MIB], 0) for _ in range(20)]
    assert len(list(tmp_path.iterdir())) == 3
    for slot in slots[:14]:
        spool.free(slot)
    assert disk_bytes() < SEGMENT_BYTES
    assert spool.read(slots[14]) == [b"x" * MIB]
    spool.close()


def test_a_block_larger_than_a_segment_has_one_of_its_own(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    spool.write([b"small"], 0)
    large = [b"L" * SEGMENT_BYTES, b"and more"]
    slot = spool.write(large, 0)
    assert len(list(tmp_path.iterdir())) == 2
    assert spool.read(slot) == large
    spool.close()


@pytest.mark.parametrize("folder", [None, "/proc/no/such/folder"])
def test_without_a_folder_every_write_fails(folder: str | None) -> None:
    with pytest.raises(OSError):
        Spool(folder).write([b"x"], 0)


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """A write beyond it does a part of the work, and then fails: as on a disk that becomes full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_took_of_a_block_is_given_back(tmp_path: Path, disk_bytes: Callable[[], int]) -> None:
    spool = Spool(str(tmp_path))
    with files_up_to(MIB), pytest.raises(OSError, match="large"):
        spool.write([b"x" * 2 * MIB], 0)
    assert list(tmp_path.iterdir()) == []
    slot = spool.write([b"kept"], 0)
    with files_up_to(MIB), pytest.raises(OSError, match="large"):
        spool.write([b"x" * 1000] * 3000, 0)
    assert disk_bytes() == 12
    after = spool.write([b"later"], 0)
    assert (spool.read(slot), spool.read(after)) == ([b"kept"], [b"later"])
    spool.close()


def test_a_file_that_is_too_short_is_an_error_and_one_that_is_gone_none(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    slot = spool.write([b"output", b"more"], 0)
    [path] = tmp_path.iterdir()
    path.unlink()
    assert spool.read(slot) == [b"output", b"more"]
    os.ftruncate(slot.segment.file, 20)
    with pytest.raises(OSError, match="Input/output"):
        spool.read(slot)
    spool.free(slot)


def test_a_day_of_output_takes_no_more_of_the_disk_than_the_bound(
    tmp_path: Path, disk_bytes: Callable[[], int]
) -> None:
    """20 times the bound goes through: text that goes, with messages between it that stay."""
    limit_bytes = 16 * MIB
    journal = Journal(Spool(str(tmp_path)), limit_bytes=limit_bytes, memory_bytes=MIB)
    text = said("stream", {"text": "x" * 32_000})
    most_bytes = stayed = 0
    for number in range(20 * limit_bytes // len(text)):
        journal.add(text)
        if number % 5 == 0:
            journal.add(said("error", {"traceback": ["x" * 3000]}, number=number))
            stayed += 1
        if number % 500 == 0:
            most_bytes = max(most_bytes, disk_bytes())
    assert journal.held_bytes < limit_bytes + 2 * MIB
    assert journal.memory_bytes < 4 * MIB
    assert most_bytes < limit_bytes + 3 * SEGMENT_BYTES
    numbers, dropped, texts = [], 0, 0
    while (packed := journal.pop()) is not None:
        notice = event(packed)
        if notice is not None:
            dropped += notice["messages"]
        elif read(packed)[0]["msg_type"] == "error":
            numbers.append(read(packed)[0]["number"])
        else:
            texts += 1
    assert numbers == list(range(0, 5 * stayed, 5))
    assert dropped + texts == 20 * limit_bytes // len(text)
    assert list(tmp_path.iterdir()) == []
