"""The shell on a host, tried with this machine's own: odd names, refusals, its end."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kernelbridge.errors import SshFailed
from kernelbridge.files.listing import FOLDER, Entry, Kind, look_here
from kernelbridge.files.transfer.host_shell import DeedRefused, HostShell, open_shell, parse_look, reason_of
from kernelbridge.hosts.transport.local import CommandStream, open_local

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="hosts are POSIX")
ODD_NAMES = [
    "new\nline\n",
    " -rf",
    "-dash",
    "it's",
    'a"b',
    "tab\t",
    "*",
    "\u00fc",
    "$HOME",
    "a\\0101",
    "\udcff\udcfe",
    "`id`",
]


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[HostShell]:
    opened = await open_shell(await open_local("here"), str(tmp_path))
    yield opened
    await ended(opened)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def look(shell: HostShell, path: str) -> Entry | None:
    return parse_look(await shell.ask("look", path))


async def ended(shell: HostShell) -> None:
    shell.close()
    assert isinstance(shell.stream, CommandStream)
    await shell.stream.wait_gone()


async def test_names_are_no_words_of_the_shell(shell: HostShell, tmp_path: Path) -> None:
    for name in ODD_NAMES:
        (tmp_path / name).write_text(name, "utf-8", "surrogateescape")
        assert await look(shell, f"./{name}") == look_here(tmp_path, name)
        await shell.ask("move", f"./{name}", f"./{name}.moved")
    assert names(tmp_path) == sorted(f"{name}.moved" for name in ODD_NAMES)
    await shell.ask_all("drop", [(f"./{name}.moved", "") for name in ODD_NAMES])
    assert names(tmp_path) == []


async def test_what_is_there_is_not_overwritten(shell: HostShell, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for taken in ("b", "folder", "dangling"):
        with pytest.raises(DeedRefused, match="File exists"):
            await shell.ask("move", "./a", f"./{taken}")
    with pytest.raises(DeedRefused, match="File exists"):
        await shell.ask("link", "./a", "x")
    assert (tmp_path / "b").read_text() == "b"


async def test_links_folders_and_modes(shell: HostShell, tmp_path: Path) -> None:
    await shell.ask("folder", "./d/e f")
    await shell.ask("link", "./d/l", "../x\ny")
    assert (tmp_path / "d/l").readlink() == Path("../x\ny")
    with pytest.raises(DeedRefused, match="File exists"):
        await shell.ask("link", "./d/l", "z")
    await shell.ask("link", "./d/m", "-td/e f")
    assert (tmp_path / "d/m").readlink() == Path("-td/e f")
    (tmp_path / "d/m").unlink()
    with pytest.raises(DeedRefused, match="No such file"):
        await shell.ask("link", "./none/l", "z")
    assert await look(shell, "./d/l") == Entry(Kind.LINK, target="../x\ny")
    assert await look(shell, "./d") == FOLDER
    assert await look(shell, "./none") is None
    (tmp_path / "d/f").touch(mode=0o644)
    await shell.ask("mode", "./d/f", "+x")
    found = await look(shell, "./d/f")
    assert found is not None
    assert found.is_executable
    with pytest.raises(DeedRefused, match="not empty"):
        await shell.ask("unfolder", "./d")
    (tmp_path / "d/e f/__pycache__").mkdir()
    (tmp_path / "d/e f/__pycache__/x.pyc").touch()
    await shell.ask("unfolder", "./d/e f")
    assert not (tmp_path / "d/e f").exists()


async def test_the_beginning_of_a_file_has_a_hash(shell: HostShell, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcdef")
    assert await shell.hash_beginning("./a", 3) == hashlib.sha256(b"abc").hexdigest()
    assert await shell.hash_beginning("./a", 0) == hashlib.sha256(b"").hexdigest()


async def test_its_end_is_an_error_for_who_waits_and_who_comes(tmp_path: Path) -> None:
    shell = await open_shell(await open_local("here"), str(tmp_path / "none"))
    with pytest.raises(SshFailed, match="the shell for the workspace ended"):
        await shell.ask("folder", "./a")
    assert not shell.is_open
    assert repr(shell) == "<HostShell here ended>"
    with pytest.raises(SshFailed):
        await shell.ask_all("folder", [("./a", "")])
    await ended(shell)


def test_answers_are_read() -> None:
    for damaged in (b"f", b"f x 1.0 644", b"f 1 1.0 999", b"l 1 1.0 777", b"l 1 1.0 777 xyz"):
        with pytest.raises(ValueError):
            parse_look(damaged)
    assert parse_look(b"-") is None
    assert parse_look(b"s 0 1.0 777 ") is None
    assert parse_look(b"f 5 7.1234567890 755 ") == Entry(Kind.FILE, 5, 7_123_456_789, True)
    assert reason_of(b"mkdir: cannot create directory 'x': No space left on device ") == "No space left on device"
    assert reason_of(b"") == "no reason given"
