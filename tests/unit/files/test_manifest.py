"""What is remembered: lines that are added, a file that is damaged, cut, of another version or gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.files.listing import FOLDER, Entry, Kind
from kernelbridge.files.manifest import Manifest
from kernelbridge.files.plan import Known

ODD = "new\nline \udcff \u00fc -x"
FILE = Known(Entry(Kind.FILE, 3, 1_700_000_000_123_456_789, True), Entry(Kind.FILE, 3, 1_700_000_000_000_000_000, True))
KNOWN = {
    ODD: FILE,
    "d": Known(FOLDER, FOLDER),
    "l": Known(Entry(Kind.LINK, target="../\udcfe"), Entry(Kind.LINK, target="../\udcfe")),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder/known.jsonl"


def filled(path: Path) -> Manifest:
    manifest = Manifest(path)
    manifest.forget_all(copy_id="c1")
    manifest.note(KNOWN, ())
    return manifest


def test_what_was_noted_is_there_again(path: Path) -> None:
    filled(path)
    again = Manifest(path)
    assert (again.known, again.copy_id) == (KNOWN, "c1")
    assert repr(again) == "<Manifest 3 known, copy c1>"


def test_a_change_is_a_line_more(path: Path) -> None:
    manifest = filled(path)
    before = path.read_bytes()
    manifest.note({"new": FILE}, ["d", "never known"])
    assert path.read_bytes().startswith(before)
    assert len(path.read_bytes().splitlines()) == len(before.splitlines()) + 2
    assert Manifest(path).known == {ODD: FILE, "l": KNOWN["l"], "new": FILE}


def test_old_lines_do_not_grow_for_ever(path: Path) -> None:
    manifest = filled(path)
    for _ in range(1100):
        manifest.note({"new": FILE}, ())
    assert len(path.read_bytes().splitlines()) < 1050
    assert Manifest(path).known == manifest.known


def test_a_line_that_a_crash_has_cut_is_forgotten_alone(path: Path) -> None:
    manifest = filled(path)
    path.write_bytes(path.read_bytes()[:-3])
    again = Manifest(path)
    assert again.known == {name: one for name, one in KNOWN.items() if name != "l"}
    again.note({"l": KNOWN["l"]}, ())
    assert Manifest(path).known == manifest.known


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x01",
        b"[]\n",
        b'{"version": 99, "copy": "c"}\n',
        b'{"version": 1, "copy": "c"}\n["a", 1]\n',
        b'{"version": 1, "copy": "c"}\n["a", ["f", "x", 1, 0, ""], ["f", 1, 1, 0, ""]]\n',
        b'{"version": 1, "copy": "c"}\nrubbish\n["a"]\n',
    ],
)
def test_a_file_that_cannot_be_understood_is_as_good_as_none(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    manifest = Manifest(path)
    assert (manifest.known, manifest.copy_id) == ({}, "")


def test_another_copy_begins_with_nothing(path: Path) -> None:
    filled(path).forget_all(copy_id="c2")
    again = Manifest(path)
    assert (again.known, again.copy_id) == ({}, "c2")
