"""One holder at a time, which tells the others whether the copy is in step."""

from __future__ import annotations

from pathlib import Path

from kernelbridge.files.holder import Holder


def test_one_has_the_place_until_it_gives_it_back(tmp_path: Path) -> None:
    first, second = Holder(tmp_path / "folder/w.lock"), Holder(tmp_path / "folder/w.lock")
    assert first.take()
    assert first.take()
    assert not second.take()
    assert (repr(first), repr(second)) == ("<Holder w.lock here>", "<Holder w.lock not here>")
    first.release()
    first.release()
    assert second.take()
    assert not first.is_held
    second.release()


def test_who_waits_sees_why_the_copy_will_not_be_in_step(tmp_path: Path) -> None:
    first, second = Holder(tmp_path / "w.lock"), Holder(tmp_path / "w.lock")
    first.take()
    assert second.failure() == ""
    first.tell_state(is_in_step=False, failure="No space left on device")
    assert (second.failure(), second.is_in_step()) == ("No space left on device", False)
    first.tell_state(is_in_step=True)
    assert (second.failure(), second.is_in_step()) == ("", True)
    first.release()


def test_who_waits_sees_when_the_copy_is_in_step(tmp_path: Path) -> None:
    first, second = Holder(tmp_path / "w.lock"), Holder(tmp_path / "w.lock")
    assert not second.is_in_step()
    first.take()
    first.tell_state(is_in_step=True)
    assert second.is_in_step()
    first.release()
    # The next one has not looked yet.
    assert second.take()
    assert not first.is_in_step()
    second.release()
