"""Listings: of a folder here, of a host's answer, with names that nobody would choose."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kernelbridge.files.ignore import Ignore
from kernelbridge.files.listing import (
    FOLDER,
    Entry,
    Kind,
    drop_ignored,
    find_words,
    folded,
    hash_here,
    look_here,
    parse_find,
    scan,
    to_bytes,
)

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="names and bits that Windows does not have")
ODD_NAMES = ["new\nline", " -rf", "-dash", "it's", 'a"b', "tab\t", "*", "ü", "$HOME", "back\\slash"]


@posix_only
def test_what_is_there_is_seen_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "sub/empty").mkdir(parents=True)
    (tmp_path / "run.sh").write_text("x")
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "sub/link").symlink_to("../run.sh")
    (tmp_path / "out").symlink_to("/etc")
    os.utime(tmp_path / "run.sh", ns=(1, 5_000_000_001))
    found = scan(tmp_path, Ignore())
    assert found.entries == {
        "run.sh": Entry(Kind.FILE, 1, 5_000_000_001, True),
        "sub": FOLDER,
        "sub/empty": FOLDER,
        "sub/link": Entry(Kind.LINK, target="../run.sh"),
        "out": Entry(Kind.LINK, target="/etc"),
    }
    assert repr(found) == "<Listing 5 entries>"


def test_an_ignored_folder_is_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big/deep").mkdir(parents=True)
    (tmp_path / "sub/node_modules/x").mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("big/\n")
    looked, real = [], os.scandir

    def noting(path: Path) -> object:
        looked.append(Path(path).relative_to(tmp_path).as_posix())
        return real(path)

    monkeypatch.setattr(os, "scandir", noting)
    assert set(scan(tmp_path, Ignore()).entries) == {".gitignore", "sub"}
    assert looked == [".", "sub"]


def test_a_nested_gitignore_is_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "sub/a.txt", "sub/b.txt"):
        (tmp_path / name).touch()
    (tmp_path / "sub/.gitignore").write_text("a.txt\n")
    assert set(scan(tmp_path, Ignore()).entries) == {"a.txt", "sub", "sub/.gitignore", "sub/b.txt"}


@posix_only
def test_what_is_no_file_is_left_out_with_a_reason(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        found = scan(tmp_path, Ignore())
    assert found.entries == {}
    assert found.left_out == {"s": "it is neither a file nor a folder nor a link"}


def test_a_folder_that_is_gone_is_unknown_and_not_empty(tmp_path: Path) -> None:
    found = scan(tmp_path / "gone", Ignore())
    assert list(found.unknown) == [""]


@posix_only
def test_both_forms_of_a_letter_are_one_name_on_macos(tmp_path: Path) -> None:
    (tmp_path / "u\u0308.txt").touch()
    assert list(scan(tmp_path, Ignore(), platform="darwin").entries) == ["\u00fc.txt"]
    assert list(scan(tmp_path, Ignore(), platform="linux").entries) == ["u\u0308.txt"]


@posix_only
def test_a_host_says_the_same_as_a_scan(tmp_path: Path) -> None:
    for name in ODD_NAMES:
        (tmp_path / name).write_text(name)
    (tmp_path / os.fsdecode(b"\xff\xfe")).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/run").touch(mode=0o755)
    (tmp_path / "sub/link\n").symlink_to("somewhere\nelse")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules/x").touch()
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / "a.log").touch()
    ignore = Ignore()
    here = scan(tmp_path, ignore)
    answer = subprocess.run(["find", ".", *find_words(ignore)], cwd=tmp_path, capture_output=True, check=True)
    there = parse_find(answer.stdout, ignore)
    assert there.entries == here.entries
    assert len(here.entries) == len(ODD_NAMES) + 5
    assert there.is_whole


def test_a_hosts_listing_that_is_cut_is_not_whole() -> None:
    assert not parse_find(b"f 1 1.5 644 a\0\0f 1 1.").is_whole


@pytest.mark.parametrize(
    "damaged",
    [b"f 1 1.5 644 /etc/passwd", b"f 1 1.5 644 a/../../b", b"d 1 1.5 755 ./a", b"f 1 1.5 644 ", b"f x 1.5 644 b"],
)
def test_what_no_find_would_say_is_left_out_and_nothing_deleted_for_it(damaged: bytes) -> None:
    found = parse_find(damaged + b"\0\0d 0 1.0 755 x\0\0")
    assert found.entries == {"x": FOLDER}
    assert not found.is_whole


def test_a_folder_that_the_host_may_not_read_is_unknown() -> None:
    found = parse_find(b"u 0 0 0 secret\0\0d 0 1.0 755 x\0\0")
    assert found.unknown == {"secret": "Permission denied"}
    assert found.entries == {"x": FOLDER}


def test_a_hosts_listing_loses_what_is_ignored_here() -> None:
    ignore = Ignore(pull=["runs/**"])
    ignore.learn("", "runs/\ncache/\n*.log\n")
    paths = ["runs", "runs/1", "runs/1/loss", "cache", "cache/a", "a.log", "a.py"]
    found = parse_find(b"".join(b"%c 1 1.0 644 %s\0\0" % (b"df"["." in p or p[-1] in "as"], p.encode()) for p in paths))
    drop_ignored(found, ignore)
    assert set(found.entries) == {"runs", "runs/1", "runs/1/loss", "a.py"}


def test_one_path_can_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc")
    seen = look_here(tmp_path, "a")
    assert seen is not None
    assert (seen.kind, seen.size_bytes) == (Kind.FILE, 3)
    assert look_here(tmp_path, "a/b") is None
    assert look_here(tmp_path, "none") is None


def test_a_hash_may_be_of_the_beginning_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    (tmp_path / "b").write_bytes(b"abc")
    assert hash_here(tmp_path / "a", 3) == hash_here(tmp_path / "b")
    assert hash_here(tmp_path / "a") != hash_here(tmp_path / "b")
    assert hash_here(tmp_path / "a", 0) == hash_here(tmp_path / "a", 0) != hash_here(tmp_path / "b")


def test_names_that_differ_in_case_or_form_alone_are_folded_to_one() -> None:
    assert folded(["README", "u\u0308"]) == {"readme": "README", "\u00fc": "u\u0308"}
    assert to_bytes("\udcff") == b"\xff"
