"""atomic_files.py: a file is written whole or not at all, and a private one for this login alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kernelbridge.atomic_files import write_once, write_whole


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_file_is_closed_to_others_and_another_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "private", b"a", is_private=True)
        write_whole(tmp_path / "open", b"b", is_private=False)
    finally:
        os.umask(before)
    assert (mode_of(tmp_path / "private"), mode_of(tmp_path / "open")) == (0o600, 0o644)


def test_the_old_content_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for content in (b"first, and longer", b"second"):
        write_whole(path, content, is_private=True)
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_nothing_half_done(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "taken", b"a", is_private=True)
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "file", b"a", is_private=True)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("has_links", [True, False])
def test_what_is_written_once_is_the_firsts(tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "id"
    for content in (b"first", b"second"):
        write_once(path, content, is_private=True)
    assert path.read_bytes() == b"first"
    assert mode_of(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]
