"""relay/gpus/gpu_monitor.py: what counts as a card, whether the right ones are seen, and when they are lost.

No card is here: STAND-INS for nvidia-smi and for device nodes.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.protocol import frames
from kernelbridge.protocol.handshake import MismatchedGpus
from kernelbridge.relay.gpus import gpu_monitor
from kernelbridge.relay.gpus.gpu_monitor import GpuMonitor, Seen, fits, listed
from tests.made_relay import MadeRelay, Visit, order, standin
from tests.rig.daemon import wait_until

A, B = "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "GPU-0aa1b2c3-d33d-2b2c-524d-9e3d8d2b8a78"
PART, OTHER_PART = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-GPU-5d5ba0d6/1/0"
FAILS = "echo 'Failed to initialize NVML: Unknown Error'; exit 255"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose sockets have short names."""
    with tempfile.TemporaryDirectory(prefix="kb-") as path:
        yield Path(path)


# -- pure


@pytest.mark.parametrize(
    ("answer", "cards"),
    [
        ("", []),
        ("No devices were found\n", []),
        (f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {A})\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: {B})\n", [A, B]),
        (
            f"WARNING: infoROM is corrupted at gpu 0000:1B:00.0\nGPU 0: NVIDIA A100-SXM4-40GB (UUID: {A})\n"
            f"  MIG 3g.20gb     Device  0: (UUID: {PART})\n"
            f"  MIG 1g.5gb      Device  1: (UUID: {OTHER_PART})\nGPU 1: NVIDIA A100-SXM4-40GB (UUID: {B})\n",
            [PART, OTHER_PART, B],
        ),
        (f"GPU 0: A (UUID: {B})\nGPU 1: A (UUID: {A})\n  MIG 1g.5gb Device 0: (UUID: {PART})\n", [B, PART]),
    ],
)
def test_a_card_of_which_parts_are_listed_is_none_itself(answer: str, cards: list[str]) -> None:
    assert listed(answer) == cards


@pytest.mark.parametrize(
    ("wanted", "seen", "fit"),
    [
        ([A], [A], True),
        ([A, B], [B, A], True),
        ([A], [A, B], False),
        ([A, B], [A], False),
        ([A], [B], False),
        ([A], [], False),
        ([], [], True),
        ([], [A], False),
        ([A], None, True),  # Not known.
        ([], None, True),
        ([A], 1, True),
        ([A], 2, False),
        ([A, B], 1, False),
        ([], 1, False),
        ([PART, OTHER_PART], 1, True),
        ([PART], [PART], True),
        ([PART], [A], False),
    ],
)
def test_exactly_the_wanted_cards_are_to_be_seen(wanted: list[str], seen: Seen, fit: bool) -> None:
    assert fits(wanted, seen) is fit


# -- looking


class Looker:
    """A sight with a clock that stands still while nvidia-smi runs."""

    def __init__(self, folder: Path, wanted: list[str], **more: Any) -> None:
        self.said = b""
        self.now = 100.0
        self.sight = GpuMonitor(wanted, self._say, devices=str(folder), **more)

    def _say(self, piece: bytes) -> None:
        self.said += piece

    def first(self) -> GpuMonitor:
        """Look for the first time."""
        self.sight.begin(self.now)
        self.sight.begin(self.now)
        wait_until(lambda: self._stepped().is_settled, "the first look", 10)
        return self.sight

    def _stepped(self) -> GpuMonitor:
        self.sight.step(self.now)
        return self.sight

    def gone(self) -> None:
        """Wait for the last nvidia-smi, which was ended."""
        last = self.sight._last
        assert last is not None
        wait_until(lambda: last.is_gone, "nvidia-smi to end", 10)

    def later(self, seconds: float) -> bool:
        """Let so many seconds pass and look, if it is time; return whether the cards are lost."""
        self.now += seconds
        self._stepped()
        wait_until(lambda: self.sight._listing is None or self._stepped()._listing is None, "nvidia-smi", 10)
        return self.sight.is_lost


def test_without_nvidia_smi_the_device_nodes_are_counted_and_nothing_is_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    assert Looker(folder, []).first().seen == []
    assert Looker(folder / "none", []).first().seen == []
    for name in ("nvidia0", "nvidia11", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (folder / name).touch()
    none, two = Looker(folder, []), Looker(folder, [A, B])
    none.sight.begin(0.0)
    assert none.sight.is_settled  # At once.
    assert none.sight.mismatch == MismatchedGpus(wanted=[], seen=2)
    assert two.first().mismatch is None
    assert repr(two.sight) == f"<GpuMonitor settled, wanted {[A, B]}, seen 2>"


@pytest.mark.parametrize(
    ("ids", "script", "wanted", "seen"),
    [
        ([A], "", [A], [A]),
        ([A, B], "", [A], [A, B]),
        ([], FAILS, [A], []),
        ([A], FAILS, [], []),
        ([A], "exit 6", [], []),
    ],
)
def test_nvidia_smi_says_which_cards_there_are_and_if_it_fails_there_are_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ids: list[str], script: str, wanted: list[str], seen: list[str]
) -> None:
    monkeypatch.setenv("PATH", f"{standin(folder, ids, script=script)}:{os.environ['PATH']}")
    found = Looker(folder, wanted).first()
    assert found.seen == seen
    assert found.mismatch == (None if wanted == seen else MismatchedGpus(wanted=wanted, seen=seen))


def test_an_nvidia_smi_that_cannot_run_here_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(standin(folder)) / "nvidia-smi"
    program.write_text("#!/nowhere/sh\n")
    (folder / "nvidia0").touch()
    monkeypatch.setenv("PATH", str(program.parent))
    assert Looker(folder, [A]).first().seen == 1


def test_what_cannot_be_found_out_refuses_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{standin(folder, script='exec sleep 60')}:{os.environ['PATH']}")
    looker = Looker(folder, [A])
    looker.sight.begin(looker.now)
    looker.sight.step(looker.now + gpu_monitor.SMI_SECONDS - 1)
    assert not looker.sight.is_settled
    assert repr(looker.sight) == f"<GpuMonitor looking, wanted {[A]}, seen None>"
    looker.sight.step(looker.now + gpu_monitor.SMI_SECONDS)
    assert (looker.sight.is_settled, looker.sight.seen, looker.sight.mismatch) == (True, None, None)
    assert b"not known" in looker.said
    assert looker.later(1e6) is False
    looker.gone()


def test_what_runs_is_ended_with_the_relay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{standin(folder, script='exec sleep 60')}:{os.environ['PATH']}")
    looker = Looker(folder, [A])
    looker.sight.begin(looker.now)
    assert looker.sight._listing is not None
    process = looker.sight._listing._process
    looker.sight.close()
    looker.sight.close()
    assert process.wait(5) < 0


def test_no_second_one_is_started_beside_one_that_hangs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{standin(folder, [A])}:{os.environ['PATH']}")
    looker = Looker(folder, [A])
    looker.first()
    last = looker.sight._last
    assert last is not None
    with monkeypatch.context() as patched:
        patched.setattr(type(last), "is_gone", False)
        assert looker.later(gpu_monitor.LIST_LOOK_SECONDS) is False
        assert looker.sight._last is last
    assert looker.later(gpu_monitor.LIST_LOOK_SECONDS) is False
    assert looker.sight._last is not last


# -- losing


def test_a_control_node_that_is_forbidden_all_of_a_sudden_means_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may open everything here: the container's device rules are made up.
    refusal: list[OSError] = []
    really_open = os.open

    def opened(path: str | Path, *flags: int) -> int:
        if refusal and str(path).endswith("nvidiactl"):
            raise refusal[0]
        return really_open(path, *flags)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setenv("PATH", str(folder))
    for name in ("nvidia0", "nvidiactl"):
        (folder / name).touch()
    looker = Looker(folder, [A])
    looker.first()
    assert looker.later(gpu_monitor.NODE_LOOK_SECONDS) is False
    refusal.append(OSError(errno.ENXIO, "another reason"))
    assert looker.later(gpu_monitor.NODE_LOOK_SECONDS) is False
    refusal[:] = [PermissionError(errno.EPERM, "not allowed")]
    assert looker.later(gpu_monitor.NODE_LOOK_SECONDS - 1) is False
    assert looker.later(1) is True
    assert repr(looker.sight).startswith("<GpuMonitor lost")
    refusal.clear()
    assert looker.later(gpu_monitor.NODE_LOOK_SECONDS) is False  # Somebody mended it.


def test_without_a_control_node_nvidia_smi_has_to_fail_twice_or_to_miss_a_card(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{standin(folder, [A])}:{os.environ['PATH']}")
    looker = Looker(folder, [A])
    looker.first()
    assert looker.later(gpu_monitor.LIST_LOOK_SECONDS) is False
    standin(folder, script=FAILS)
    assert looker.later(gpu_monitor.LIST_LOOK_SECONDS) is False
    standin(folder, [A, B])
    assert looker.later(gpu_monitor.AGAIN_SECONDS) is False  # Only once.
    standin(folder, script=FAILS)
    assert looker.later(gpu_monitor.LIST_LOOK_SECONDS) is False
    assert looker.later(gpu_monitor.AGAIN_SECONDS - 1) is False
    assert looker.later(1) is True
    standin(folder, [A])
    assert looker.later(gpu_monitor.LIST_LOOK_SECONDS) is False
    standin(folder, [B])
    assert looker.later(gpu_monitor.LIST_LOOK_SECONDS) is True


def test_an_nvidia_smi_that_hangs_or_vanishes_says_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{standin(folder, [A])}:{os.environ['PATH']}")
    looker = Looker(folder, [A], look_seconds=5.0)
    looker.first()
    standin(folder, script="exec sleep 60")
    looker.now += 5
    looker.sight.step(looker.now)
    looker.now += gpu_monitor.SMI_SECONDS
    looker.sight.step(looker.now)
    assert (looker.sight._listing, looker.sight.is_lost) == (None, False)
    looker.gone()
    (folder / "bin" / "nvidia-smi").unlink()
    assert looker.later(5) is False
    assert looker.later(1e6) is False


def test_nobody_looks_again_who_wanted_no_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{standin(folder, script=FAILS)}:{os.environ['PATH']}")
    looker = Looker(folder, [])
    looker.first()
    assert looker.later(1e6) is False
    assert looker.sight._listing is None


# -- a relay


def test_a_kernel_that_sees_other_cards_than_it_should_is_ended_and_no_other_is_started(folder: Path) -> None:
    wanted = {"ids": [A], "locks": ""}
    with (
        MadeRelay(folder / "1", order(folder / "1", gpus=wanted), path=standin(folder, [A, B])) as relay,
        Visit(folder / "1" / "relay.sock") as visit,
    ):
        cards = {"wanted": [A], "seen": [A, B]}
        assert visit.told("failed") == {"event": "failed", "launch": 1, "gpus": cards}
        status = relay.ask()
        assert (status["state"], status["ready"], status["outcome"]["launch"]) == ("exited", False, 1)
        assert status["gpus"] == {"ids": [A], "seen": [A, B], "lost": False}
        again = b'{"do": "spawn", "launch": 2, "session": "s", "argv": ["true"], "needs": []}'
        visit.send(frames.Message(frames.COMMAND, 2, [again]))
        visit.wait(lambda: len(visit.events) == 2, "a second refusal")
        assert [event["event"] for event in visit.events] == ["failed", "failed"]


def test_a_kernel_without_cards_is_ended_where_the_image_or_the_engine_shows_one(folder: Path) -> None:
    with (
        MadeRelay(folder / "1", order(folder / "1"), path=standin(folder, [A])),
        Visit(folder / "1" / "relay.sock") as visit,
    ):
        assert visit.told("failed")["gpus"] == {"wanted": [], "seen": [A]}


def test_a_kernel_is_ready_when_it_has_answered_and_its_cards_were_found(folder: Path) -> None:
    path = standin(folder, [A], script=f"while [ ! -e {folder}/go ]; do sleep 0.05; done")
    line = order(folder / "1", gpus={"ids": [A], "locks": ""})
    with MadeRelay(folder / "1", line, path=path) as relay, Visit(folder / "1" / "relay.sock") as visit:
        time.sleep(0.7)  # It would be ready by now.
        status = relay.ask()
        assert (status["ready"], status["state"], status["gpus"]["seen"]) == (False, "starting", None)
        (folder / "go").touch()
        assert visit.told("ready")["info"] == {"made": "up"}
        assert [event["event"] for event in visit.events] == ["ready"]


def test_lost_cards_are_told_once_with_the_cell_that_runs(folder: Path) -> None:
    line = order(folder / "1", gpus={"ids": [A], "locks": "", "look_seconds": 0.2})
    with (
        MadeRelay(folder / "1", line, path=standin(folder, [A])) as relay,
        Visit(folder / "1" / "relay.sock") as visit,
    ):
        visit.told("ready")
        header = b'{"msg_id": "m", "msg_type": "execute_request"}'
        visit.send(frames.Message(frames.SHELL, 1, [b"c", b"<IDS|MSG>", b"", header, b"{}", b"{}", b"{}"]))
        wait_until(lambda: relay.ask()["running"] is not None, "the cell", 10)
        standin(folder, script=FAILS)
        told = {"event": "gpu_lost", "launch": 1, "parent": {"msg_id": "m", "msg_type": "execute_request"}}
        assert visit.told("gpu_lost") == told
        assert relay.ask()["gpus"] == {"ids": [A], "seen": [A], "lost": True}
        looked_at = time.monotonic()
        visit.wait(lambda: time.monotonic() > looked_at + 1.5, "another look")
        assert [event["event"] for event in visit.events] == ["ready", "gpu_lost"]
