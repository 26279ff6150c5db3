"""The host's copy, tried with a folder of this machine: its own folders, hashes, what was replaced."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kernelbridge.errors import WorkspaceFailed
from kernelbridge.files.ignore import Ignore
from kernelbridge.files.listing import look_here, scan
from kernelbridge.files.transfer import host_copy
from kernelbridge.files.transfer.host_copy import HostCopy, open_copy, parse_facts_of_copy, parse_hashes, rsync_version
from kernelbridge.hosts.transport.local import CommandStream, open_local

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="hosts are POSIX")
ODD = "new\nline \u00fc\udcff\\n"


@pytest.fixture
async def copy(tmp_path: Path) -> AsyncIterator[HostCopy]:
    async with open_copy(await open_local("here"), folder=str(tmp_path / "w"), name="proj-1") as opened:
        yield opened
    assert isinstance(opened.shell.stream, CommandStream)
    await opened.shell.stream.wait_gone()


async def test_its_folders_are_made_and_it_keeps_its_mark(copy: HostCopy, tmp_path: Path) -> None:
    root = Path(copy.root)
    assert root == tmp_path / "w/proj-1"
    assert [folder.stat().st_mode & 0o777 for folder in (root.parent, root)] == [0o700, 0o755]
    assert len(copy.facts.copy_id) == 16
    assert copy.facts.has_find
    assert await copy.has_sftp() is False
    async with open_copy(copy.link, folder=str(tmp_path / "w"), name="proj-1") as again:
        assert again.facts == copy.facts
    assert isinstance(again.shell.stream, CommandStream)
    await again.shell.stream.wait_gone()


async def test_it_is_listed_looked_at_and_read(copy: HostCopy) -> None:
    root = Path(copy.root)
    (root / "sub").mkdir()
    for name in ("a.py", "a.log", f"sub/{ODD}"):
        (root / name).write_text(name, "utf-8", "surrogateescape")
    ignore = Ignore(own=["*.log"])
    found = await copy.listing(ignore)
    assert found.entries == scan(root, ignore).entries
    assert found.is_whole
    assert await copy.look(["a.py", "none"]) == {"a.py": look_here(root, "a.py")}
    expected = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in ("a.py", f"sub/{ODD}")}
    assert await copy.hashes([*expected, "none"]) == expected


async def test_what_was_replaced_goes_only_if_it_is_what_was_seen(copy: HostCopy) -> None:
    root = Path(copy.root)
    (root / "d").mkdir()
    (root / "d/seen").write_text("seen")
    (root / "changed.py").write_text("seen")
    seen = await copy.look(["d/seen", "changed.py"])
    (root / "changed.py").write_text("changed since")
    assert await copy.move_away(["d/seen", "changed.py", "never there"]) == {}
    assert await copy.settle(seen, stamp="T") == ["changed.changed-on-here-T.py"]
    assert (root / "changed.changed-on-here-T.py").read_text() == "changed since"
    assert not (root / "changed.py").exists()
    assert not (Path(copy.state_folder) / "replaced").exists()


async def test_nothing_is_thrown_away_that_was_not_looked_through(
    copy: HostCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(copy.root) / "a").write_text("changed")
    await copy.move_away(["a"])
    assert copy.facts.has_replaced

    async def broken(*_: object) -> tuple[int, bytes]:
        return 1, b""

    with monkeypatch.context() as patch:
        patch.setattr(host_copy, "_collected", broken)
        with pytest.raises(WorkspaceFailed, match="cannot be looked through"):
            await copy.settle({}, stamp="T")
    assert copy.facts.has_replaced
    assert await copy.settle({}, stamp="T") == ["a.changed-on-here-T"]
    assert not copy.facts.has_replaced


async def test_what_cannot_get_back_stays_where_it_is(copy: HostCopy) -> None:
    folder = Path(copy.root) / "d"
    folder.mkdir()
    (folder / "a").write_text("changed")
    await copy.move_away(["d/a"])
    folder.rmdir()
    folder.write_text("a file is where its folder was")
    with pytest.raises(WorkspaceFailed, match="cannot be kept"):
        await copy.settle({}, stamp="T")
    assert (Path(copy.state_folder) / "replaced/d/a").read_text() == "changed"


async def test_a_copy_that_goes_meanwhile_is_said(copy: HostCopy) -> None:
    await asyncio.to_thread(Path(copy.root).rmdir)
    with pytest.raises(WorkspaceFailed, match="its folder there is gone"):
        await copy.listing(Ignore())
    assert not copy.is_open


async def test_a_place_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceFailed, match="Not a directory"):
        async with open_copy(await open_local("here"), folder=str(tmp_path / "file/w"), name="p"):
            pass


def test_what_a_host_says_of_itself_is_read() -> None:
    facts = parse_facts_of_copy(b"id 0123\nreplaced yes\nfind yes\nrsync  version 3.2.7  protocol version 31\n")
    assert (facts.copy_id, facts.has_find, facts.rsync_version, facts.has_replaced) == ("0123", True, (3, 2), True)
    bare = parse_facts_of_copy(b"id 0123\n")
    assert (bare.has_find, bare.rsync_version, bare.has_replaced) == (False, None, False)
    assert rsync_version(b"openrsync: protocol version 29\nrsync version 2.6.9 compatible\n") is None


def test_hashes_are_read_with_their_escapes() -> None:
    one = b"a" * 64
    answer = one + b"  ./a b\n\\" + one + b"  ./new\\nline\\\\\nsha256sum: ./x: No such file\n"
    assert parse_hashes(answer) == {"a b": one.decode(), "new\nline\\": one.decode()}


async def test_many_folders_are_made_at_once_and_those_that_cannot_say_why(copy: HostCopy) -> None:
    odd = ["-p", "a b/c", "new\nline", "ü/'\"$x", "d/e/f"]
    many = [f"p{number}/sub" for number in range(100)]
    assert await copy.make_folders([*odd, *many, "", "d"]) == {}
    assert all((Path(copy.root) / folder).is_dir() for folder in [*odd, *many])
    (Path(copy.root) / "file").write_text("")
    refused = await copy.make_folders([*(f"q{number}" for number in range(100)), "file/x"])
    assert list(refused) == ["file/x"]
    assert "Not a directory" in refused["file/x"] or "File exists" in refused["file/x"]
    assert (Path(copy.root) / "q99").is_dir()
