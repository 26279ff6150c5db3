"""relay/beside/archive.py: files into an archive and out of it, with all that a name and a mode can be."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelbridge.hosts import bootstrap
from kernelbridge.relay.beside import archive
from tests.made_relay import moved

PACKAGE = Path(bootstrap.__file__).parents[1]
ODD_NAME = os.fsdecode(b"caf\xe9\n x")


def packed(path: Path | str) -> io.BytesIO:
    sink = io.BytesIO()
    archive.pack(os.fspath(path), sink)
    return io.BytesIO(sink.getvalue())


def names(path: Path | str) -> list[str]:
    return tarfile.open(fileobj=packed(path)).getnames()


def copied(source: Path | str, target: Path | str) -> None:
    archive.unpack(os.fspath(target), packed(source))


def made(*members: tuple[str, bytes] | tarfile.TarInfo) -> io.BytesIO:
    """An archive that pack() did not make: names and contents, or members as they are."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as opened:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                opened.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                opened.addfile(info, io.BytesIO(member[1]))
    return io.BytesIO(sink.getvalue())


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a bit of everything."""
    folder = tmp_path / "source"
    (folder / "below" / "empty").mkdir(parents=True)
    (folder / "below" / "program").write_bytes(b"#!")
    (folder / "below" / "program").chmod(0o4750)
    (folder / ODD_NAME).write_bytes(b"odd")
    (folder / ("long" * 60)).write_bytes(b"long")
    (folder / "away").symlink_to("/nowhere/at all")
    (folder / "first").write_bytes(b"twice")
    (folder / "second").hardlink_to(folder / "first")
    os.utime(folder / "first", (5, 6))
    return folder


def check(copy: Path) -> None:
    assert (copy / ODD_NAME).read_bytes() == b"odd"
    assert (copy / ("long" * 60)).read_bytes() == b"long"
    assert (copy / "away").readlink() == Path("/nowhere/at all")
    assert (copy / "second").read_bytes() == b"twice"
    assert (copy / "second").samefile(copy / "first")
    assert (copy / "first").stat().st_mtime == 6
    assert (copy / "below" / "empty").is_dir()
    program = (copy / "below" / "program").stat()
    assert (stat.S_IMODE(program.st_mode), program.st_uid) == (0o4750, os.getuid())


def test_a_folder_goes_into_one_that_is_there_under_its_own_name(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    copied(source, tmp_path / "target")
    check(tmp_path / "target" / "source")


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_folder_goes_to_a_name_that_is_not_there_yet(source: Path, tmp_path: Path, ending: str) -> None:
    copied(source, f"{tmp_path}/new{ending}")
    check(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "source"]


def test_a_copy_over_an_earlier_one_is_as_the_first(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    for _ in range(2):
        copied(source, tmp_path / "target")
    check(tmp_path / "target" / "source")


def test_a_file_takes_the_place_or_the_name_that_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"text")
    Path("folder").mkdir()
    copied("file", "folder")
    copied("file", "folder/other")
    copied("file", "here")
    for path in ("folder/file", "folder/other", "here"):
        assert Path(path).read_bytes() == b"text"


def test_a_folder_that_may_not_be_written_is_filled_and_has_its_mode_and_time(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").touch()
    for path in (folder / "below", folder):
        os.utime(path, (7, 7))
        path.chmod(0o555)
    copied(folder, tmp_path / "new")
    for path in (tmp_path / "new", tmp_path / "new" / "below"):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime) == (0o555, 7)
    modes: list[int] = []
    unwritable = tarfile.TarInfo("d")
    unwritable.type, unwritable.mode = tarfile.DIRTYPE, 0o555
    # Root may write anywhere: what others could is seen from the mode at that moment.
    archive.unpack(
        os.fspath(tmp_path), Watched(made(unwritable, ("d/x", b"")), lambda: modes.append(mode_of(tmp_path / "d")))
    )
    assert 0o755 in modes
    assert mode_of(tmp_path / "d") == 0o555


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_files_go_into_a_folder_that_is_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o777)
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)
    member = tarfile.TarInfo("folder")
    member.type, member.mode = tarfile.DIRTYPE, 0o700
    source = made(member, ("folder/x", b"x"))
    os.seteuid(65534)
    try:
        archive.unpack(".", source)
    finally:
        os.seteuid(0)
    assert (folder / "x").read_bytes() == b"x"
    assert mode_of(folder) == 0o777


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else 0


class Watched(io.BytesIO):
    """Calls at each read."""

    def __init__(self, content: io.BytesIO, look: Callable[[], None]) -> None:
        super().__init__(content.getvalue())
        self._look = look

    def read(self, size: int | None = -1) -> bytes:
        self._look()
        # Not even the next member's head may be here before it is due.
        return super().read(min(512, size or 0))


@pytest.mark.parametrize(("ending", "name"), [("", "folder"), ("/", "folder"), ("/.", "folder"), ("/x/..", "folder")])
def test_an_archive_has_the_name_of_what_is_in_it(tmp_path: Path, ending: str, name: str) -> None:
    (tmp_path / "folder" / "x").mkdir(parents=True)
    assert set(names(f"{tmp_path}/folder{ending}")) == {name, f"{name}/x"}


def test_where_one_is_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    assert names(".") == ["folder"]
    assert names("..") == [tmp_path.name, f"{tmp_path.name}/folder"]


@pytest.mark.parametrize("name", ["../../out", "/out", "a/../../out", "./../out", "a/./out"])
@pytest.mark.parametrize("is_new", [False, True])
def test_a_member_stays_in_the_folder_whatever_its_name(tmp_path: Path, name: str, is_new: bool) -> None:
    target = tmp_path / "below" / "target"
    target.mkdir(parents=True)
    archive.unpack(os.fspath(target / "new" if is_new else target), made((name, b"x")))
    assert [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(target)] == []
    assert len([path for path in target.rglob("*") if path.is_file()]) == 1


def test_a_hard_link_links_to_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(FileNotFoundError):
        archive.unpack(os.fspath(target), made(link("a/x", "../secret", tarfile.LNKTYPE)))
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_a_name_that_is_none_is_left_out(tmp_path: Path) -> None:
    archive.unpack(os.fspath(tmp_path), made(("..", b"x"), ("./y", b"y")))
    assert [path.name for path in tmp_path.iterdir()] == ["y"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pack", "missing"), "missing: No such file or directory\n"),
        (("unpack", "missing/new"), "missing: No such file or directory\n"),
        (("unpack", "."), "empty file\n"),
    ],
)
def test_what_goes_wrong_is_a_line_and_an_exit_code(tmp_path: Path, words: tuple[str, str], said: str) -> None:
    done = run(tmp_path, *words)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", said)


def run(folder: Path, *words: str, fed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the program as a process, beside a relay."""
    if not (folder / "kernelbridge_relay").exists():
        (folder / "kernelbridge_relay").symlink_to(PACKAGE)
    argv = moved(bootstrap.beside_argv(sys.executable, "beside.archive"), folder)
    return subprocess.run([*argv, *words], input=fed, capture_output=True, cwd=folder, timeout=20, check=False)


def test_the_program_packs_to_its_output_and_unpacks_from_its_input(source: Path, tmp_path: Path) -> None:
    sent = run(tmp_path, "pack", "source")
    assert (sent.returncode, sent.stderr) == (0, b"")
    done = run(tmp_path, "unpack", "new", fed=sent.stdout)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    check(tmp_path / "new")
