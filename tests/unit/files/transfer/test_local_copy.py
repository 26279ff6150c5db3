"""Changes on this machine: only of what is as it was seen, only inside the folder, only names that can be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kernelbridge.files.ignore import PARTS_FOLDER
from kernelbridge.files.listing import FOLDER, Entry, Kind, look_here
from kernelbridge.files.transfer import local_copy
from kernelbridge.files.transfer.local_copy import NotDone

FILE = Entry(Kind.FILE, 3, 5_000_000_000, True)
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="links and bits that Windows does not have")


def part(root: Path, path: str) -> Path:
    made = local_copy.staged(root, path, FILE)
    made.parent.mkdir(exist_ok=True)
    made.write_text("new")
    return made


@posix_only
def test_a_file_comes_into_its_place_with_its_time_and_its_bit(tmp_path: Path) -> None:
    found = local_copy.place(tmp_path, "runs/1/a", FILE, part=part(tmp_path, "runs/1/a"), seen=None)
    assert found == FILE
    assert (tmp_path / "runs/1/a").read_text() == "new"
    local_copy.sweep_parts(tmp_path)
    assert not (tmp_path / PARTS_FOLDER).exists()


def test_what_was_changed_meanwhile_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(NotDone, match="it was changed here meanwhile"):
        local_copy.place(tmp_path, "a", FILE, part=part(tmp_path, "a"), seen=None)
    seen = look_here(tmp_path, "a")
    assert seen is not None
    (tmp_path / "a").write_text("mine again")
    with pytest.raises(NotDone):
        local_copy.delete(tmp_path, "a", seen)
    assert (tmp_path / "a").read_text() == "mine again"


def test_a_folder_goes_only_if_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "full/__pycache__").mkdir(parents=True)
    (tmp_path / "full/a").touch()
    local_copy.delete(tmp_path, "full", FOLDER)
    assert (tmp_path / "full/a").exists()
    (tmp_path / "full/a").unlink()
    local_copy.delete(tmp_path, "full", FOLDER)
    assert not (tmp_path / "full").exists()


@posix_only
def test_only_the_file_that_was_listed_is_taken_from_what_came(tmp_path: Path) -> None:
    arrived, outside = tmp_path / PARTS_FOLDER / "arrived", tmp_path / "outside"
    (arrived / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "b").write_text("mine")
    (arrived / "link").symlink_to(outside / "b")
    (arrived / "elsewhere").symlink_to(outside)
    (arrived / "sub/a").write_text("new")
    for path in ("link", "elsewhere/b", "sub"):
        with pytest.raises(NotDone, match="not the file"):
            local_copy.stage(tmp_path, path, FILE, arrived=arrived)
    with pytest.raises(FileNotFoundError):
        local_copy.stage(tmp_path, "none", FILE, arrived=arrived)
    assert (outside / "b").read_text() == "mine"
    local_copy.stage(tmp_path, "sub/a", FILE, arrived=arrived)
    assert local_copy.staged(tmp_path, "sub/a", FILE).read_text() == "new"


@posix_only
def test_nothing_leads_out_of_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "proj"
    root.mkdir()
    for target in ("/etc/passwd", "../x", "a/../../x"):
        with pytest.raises(NotDone, match="leads out"):
            local_copy.place(root, "link", Entry(Kind.LINK, target=target), part=None, seen=None)
    assert local_copy.place(root, "link", Entry(Kind.LINK, target="a/b"), part=None, seen=None).target == "a/b"
    (root / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(NotDone, match="elsewhere is a link here"):
        local_copy.place(root, "elsewhere/a", FILE, part=part(root, "elsewhere/a"), seen=None)
    for path in ("../a", "a//b", "./a"):
        with pytest.raises(NotDone):
            local_copy.check_name(path)


@pytest.mark.parametrize("path", ["a:b", "sub/CON", "com1.txt", "end.", "end ", 'a"b', "a\\b", "new\nline"])
def test_names_that_windows_cannot_have_are_refused_there(path: str) -> None:
    with pytest.raises(NotDone, match="Windows allows no such name"):
        local_copy.check_name(path, platform="win32")
    local_copy.check_name(path, platform="linux")


def test_bytes_that_are_no_text_are_no_name_on_macos() -> None:
    with pytest.raises(NotDone, match="this machine allows no such name"):
        local_copy.check_name("\udcff", platform="darwin")
    local_copy.check_name("\udcff", platform="linux")


@pytest.mark.parametrize(
    ("path", "target", "is_out"),
    [
        *(("a", "b", False), ("d/a", "../b", False), ("d/a", "..", False)),
        *(("a", "../b", True), ("a", "/b", True), ("a", "C:/x", True)),
    ],
)  # fmt: skip
def test_where_a_link_leads(path: str, target: str, is_out: bool) -> None:
    assert local_copy.leads_out(path, target) is is_out
