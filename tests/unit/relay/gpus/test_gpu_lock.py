"""relay/gpus/gpu_lock.py: one kernel on each card, with real locks of this machine's kernel and real relays.

The relays are processes of their own, from relay/__main__.py on: what they end with is seen from outside.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.protocol import frames
from kernelbridge.protocol.exit_codes import EXIT_CODES, EXIT_NO_LOCK, EXIT_TAKEN
from kernelbridge.relay.gpus.gpu_lock import GpuLocks, Refused, lock_path
from tests.made_relay import KERNEL, MadeRelay, Visit, order, standin
from tests.rig.daemon import wait_until

IDS = ["GPU-b", "GPU-a"]
# Prints its number, and lives until it is ended.
SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose sockets have short names."""
    with tempfile.TemporaryDirectory(prefix="kb-") as path:
        yield Path(path)


@pytest.fixture
def locks(folder: Path) -> str:
    for name in IDS:
        (folder / "locks" / name).mkdir(parents=True)
    return str(folder / "locks")


def is_free(locks: str) -> bool:
    fence = GpuLocks(IDS, locks)
    try:
        fence.take()
    except Refused:
        return False
    fence.give_back()
    return True


# -- one fence


def test_all_cards_are_held_or_none(locks: str) -> None:
    first, second, both = GpuLocks(["GPU-b"], locks), GpuLocks(["GPU-a"], locks), GpuLocks(IDS, locks)
    first.take()
    assert (first.ids, repr(first)) == (["GPU-b"], "<GpuLocks GPU-b>")
    with pytest.raises(Refused, match="another kernel has GPU-b") as refused:
        both.take()
    assert refused.value.exit_code == EXIT_TAKEN
    assert (both.ids, both.descriptors, repr(both)) == ([], (), "<GpuLocks GPU-b,GPU-a, given back>")
    second.take()  # It was taken for a moment, and is free again.
    for fence in (first, second):
        fence.give_back()
        fence.give_back()
    both.take()
    both.take()
    assert (both.ids, len(both.descriptors)) == (IDS, 2)
    both.give_back()


def test_a_card_that_is_named_twice_is_locked_once(locks: str) -> None:
    fence = GpuLocks(["GPU-a", "GPU-a"], locks)
    fence.take()
    assert len(fence.descriptors) == 1
    fence.give_back()


@pytest.mark.parametrize("what", ["nothing", "a file"])
def test_a_card_without_a_folder_is_no_card(locks: str, what: str) -> None:
    if what == "a file":
        (Path(locks) / "GPU-c").touch()
    with pytest.raises(Refused, match="no lock for GPU-c") as refused:
        GpuLocks(["GPU-c"], locks).take()
    assert refused.value.exit_code == EXIT_NO_LOCK


@pytest.mark.parametrize("uuid", ["", ".", "..", "a/b", "../GPU-a", "/etc", "GPU..a"])
def test_no_name_leads_elsewhere(locks: str, uuid: str) -> None:
    with pytest.raises(ValueError, match="no GPU's name"):
        lock_path(locks, uuid)
    with pytest.raises(ValueError, match="no GPU's name"):
        GpuLocks([uuid], locks)


def test_what_is_only_advised_is_locked_by_nobody() -> None:
    fences = [GpuLocks(["MIG-GPU-a/1/0"]), GpuLocks(["MIG-GPU-a/1/0"])]
    for fence in fences:
        fence.take()
        assert (fence.ids, fence.descriptors) == (["MIG-GPU-a/1/0"], ())


# -- relays


def started(folder: Path, name: str, locks: str, code: str = SLEEPER, **more: Any) -> MadeRelay:
    """A relay that should have the cards, and a kernel that sees them."""
    line = order(folder / name, code=code, gpus={"ids": IDS, "locks": locks}, **more)
    return MadeRelay(folder / name, line, path=standin(folder, IDS))


def kernel_pid(relay: MadeRelay) -> int:
    """The number that the kernel process printed."""
    found: list[str] = []

    def has_printed() -> bool:
        found[:] = relay.ask("logs")["text"].split()
        return bool(found)

    wait_until(has_printed, "the kernel process", 10)
    return int(found[-1])


def killed(relay: MadeRelay) -> None:
    """End a relay as nothing can prevent; its kernel lives on, as it would not in a container."""
    relay.process.kill()
    relay.process.wait()


def test_the_second_relay_on_a_card_ends_before_it_starts_anything_and_the_card_is_free_when_the_first_has_ended(
    folder: Path, locks: str
) -> None:
    with started(folder, "1", locks) as first:
        kernel = kernel_pid(first)
        assert first.ask()["gpus"] == {"ids": IDS, "seen": IDS, "lost": False}
        second = started(folder, "2", locks)
        assert second.exit_code() == EXIT_TAKEN
        assert [path.name for path in (folder / "2").iterdir()] == ["kernelbridge_relay"]
        first.process.send_signal(signal.SIGTERM)
        assert first.exit_code() == 143
        wait_until(lambda: is_free(locks), f"the end of {kernel}", 5)
        with started(folder, "3", locks) as third:
            kernel_pid(third)


def test_a_card_without_a_lock_ends_the_relay(folder: Path, locks: str) -> None:
    for name, uuid, code in (("1", "GPU-c", EXIT_NO_LOCK), ("2", "../locks/GPU-a", 1)):
        relay = MadeRelay(folder / name, order(folder / name, gpus={"ids": [uuid], "locks": locks}))
        assert relay.exit_code() == code


def test_a_kernel_that_outlives_its_relay_keeps_the_card(folder: Path, locks: str) -> None:
    with started(folder, "1", locks) as relay:
        kernel = kernel_pid(relay)
        killed(relay)
        assert not is_free(locks)
        os.kill(kernel, signal.SIGKILL)
        wait_until(lambda: is_free(locks), "the card", 5)


def test_a_restart_in_place_keeps_the_card(folder: Path, locks: str) -> None:
    with started(folder, "1", locks) as relay, Visit(folder / "1" / "relay.sock") as visit:
        kernel_pid(relay)
        argv = ["{python}", "-c", SLEEPER]
        again = {"do": "spawn", "launch": 2, "session": "s", "argv": argv, "needs": []}
        visit.send(frames.Message(frames.COMMAND, 2, [json.dumps(again).encode()]))
        visit.told("exited")
        wait_until(lambda: len(relay.ask("logs")["text"].split()) == 2, "the second process", 10)
        kernel = kernel_pid(relay)
        killed(relay)
        assert not is_free(locks)
        os.kill(kernel, signal.SIGKILL)
        wait_until(lambda: is_free(locks), "the card", 5)


def test_a_relay_that_stays_only_for_its_output_gives_the_card_back_and_starts_nothing_without_it(
    folder: Path, locks: str
) -> None:
    with started(folder, "1", locks, KERNEL, terms={"max_lifetime": 2}) as relay:
        wait_until(lambda: relay.ask()["state"] == "exited", "the end of the kernel", 20)
        assert relay.ask()["gpus"]["ids"] == []
        other = GpuLocks(IDS, locks)
        other.take()
        with Visit(folder / "1" / "relay.sock") as visit:
            visit.told("exited")
            again = {"do": "spawn", "launch": 2, "session": "s", "argv": ["true"], "needs": []}
            visit.send(frames.Message(frames.COMMAND, 2, [json.dumps(again).encode()]))
            assert visit.told("failed") == {"event": "failed", "launch": 2, "reason": "another kernel has GPU-a"}
        other.give_back()


def test_a_kernel_that_was_joined_is_not_said_to_end_because_nobody_did(folder: Path, locks: str) -> None:
    with started(folder, "1", locks, terms={"persist": True}) as relay:
        wait_until(lambda: relay.ask()["deadline"] is not None, "its deadline", 5)
        with Visit(folder / "1" / "relay.sock") as visit:
            visit.wait(lambda: bool(visit.answers), "a welcome")
            assert visit.answers[0]["deadline"] is None
            assert relay.ask()["deadline"] is None


def test_a_kernel_whose_starter_died_before_it_joined_ends_with_all_it_said(folder: Path, locks: str) -> None:
    line = order(folder / "1", gpus={"ids": IDS, "locks": locks}, terms={"persist": True})
    sooner = line.replace(b"UNJOINED_SECONDS = 60.0", b"UNJOINED_SECONDS = 2.0")
    with MadeRelay(folder / "1", sooner, path=standin(folder, IDS)) as relay:
        # Not asked again: it ends within 2 s.
        told = next(deadline for deadline in iter(lambda: relay.ask()["deadline"], ()) if deadline)
        assert told["why"] == "unjoined"
        assert relay.exit_code() == EXIT_CODES["unjoined"]
    assert is_free(locks)
