"""hosts/transport/openssh/process.py: a command of this machine ends in time, with all that it has started."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from kernelbridge.hosts.transport.openssh.process import ask


async def test_a_command_is_run_to_its_end() -> None:
    answer = await ask(["/bin/sh", "-c", "cat; echo out; printf '\\377' >&2; exit 3"], seconds=20)
    assert (answer.exit_code, answer.stdout, answer.stderr) == (3, "out\n", "\udcff")


async def test_a_command_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        await ask([str(tmp_path / "none")], seconds=20)


async def test_one_that_hangs_is_killed_with_its_children() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await ask(["/bin/sh", "-c", "sleep 60 & sleep 60"], seconds=0.2)
    assert time.monotonic() - began < 20


async def test_a_cancelled_one_is_killed_too() -> None:
    asking = asyncio.create_task(ask(["/bin/sleep", "60"], seconds=60))
    await asyncio.sleep(0.2)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
