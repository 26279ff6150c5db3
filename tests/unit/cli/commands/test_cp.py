"""cli/commands/cp.py: files there and back, into what is there and to new names, and what a container may not do."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.cli.commands import cp
from kernelbridge.cli.commands.cp import MOST_ARRIVED_BYTES, Place, place_of
from kernelbridge.hosts import bootstrap
from kernelbridge.protocol import terminal
from tests.made_copies import CopyFleet, CopyStream, MadeContainer
from tests.unit.cli.conftest import Call, Ended, calls

OUT = terminal.OUTPUT


@pytest.fixture
def container(tmp_path: Path) -> MadeContainer:
    (tmp_path / "container" / "work").mkdir(parents=True)
    return MadeContainer(root=tmp_path / "container")


@pytest.fixture
def fleet(container: MadeContainer) -> CopyFleet:
    return CopyFleet(container=container)


@pytest.fixture
def call(
    fleet: CopyFleet,
    config_path: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Call:
    """One call, in a folder that is `here`."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return calls(fleet, config_path, capfd)


# -- the two sides


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("aabb:/data/x", Place("aabb", "/data/x")),
        ("pytorch:x:y", Place("pytorch", "x:y")),
        ("pytorch:", Place("pytorch", ".")),
        ("a-b.c_1:x\ny", Place("a-b.c_1", "x\ny")),
        ("x", Place("", "x")),
        ("C:\\data\\x", Place("", "C:\\data\\x")),
        ("c:x", Place("", "c:x")),
        ("./aa:x", Place("", "./aa:x")),
        ("folder/aa:x", Place("", "folder/aa:x")),
        ("/aa:x", Place("", "/aa:x")),
        (":x", Place("", ":x")),
        ("-aa:x", Place("", "-aa:x")),
    ],
)
def test_a_side_is_a_kernels_where_a_name_and_a_colon_stand_before_the_path(text: str, place: Place) -> None:
    assert place_of(text) == place


@given(st.text())
def test_any_text_is_a_side(text: str) -> None:
    place = place_of(text)
    if place.kernel:
        assert text in (f"{place.kernel}:{place.path}", f"{place.kernel}:")
    else:
        assert place.path == text


@pytest.mark.parametrize("words", [("a", "b"), ("aa:x", "bb:y"), ("aa:x", "aa:y")])
def test_exactly_one_side_is_a_kernels(call: Call, fleet: CopyFleet, words: tuple[str, str]) -> None:
    ended = call("cp", *words)
    assert ended.code == 2
    assert "KERNEL:PATH" in ended.err
    assert fleet.names == []


# -- there and back


def test_a_folder_goes_there_and_comes_back(call: Call, fleet: CopyFleet, container: MadeContainer) -> None:
    Path("folder/below").mkdir(parents=True)
    Path("folder/below/x").write_bytes(b"x" * 700_000)
    Path("folder/link").symlink_to("below/x")
    assert call("cp", "folder", "pytorch:/work") == Ended(code=0, out="", err="")
    assert (container.root / "work/folder/below/x").read_bytes() == b"x" * 700_000
    assert call("cp", "pytorch:/work/folder", "new") == Ended(code=0, out="", err="")
    assert Path("new/below/x").read_bytes() == b"x" * 700_000
    assert Path("new/link").readlink() == Path("below/x")
    assert fleet.names == ["pytorch", "pytorch"]
    assert [order.argv for order in container.orders] == [
        [*bootstrap.beside_argv("/opt/py", cp.ARCHIVE_MODULE), "unpack", "/work"],
        [*bootstrap.beside_argv("/opt/py", cp.ARCHIVE_MODULE), "pack", "/work/folder"],
    ]
    assert all(stream.is_closed for stream in container.streams)


def test_a_file_has_its_own_name_in_a_folder_and_the_one_that_it_is_given(call: Call, container: MadeContainer) -> None:
    Path("x").write_bytes(b"x")
    Path("into").mkdir()
    assert call("cp", "x", "pytorch:/work").code == 0
    assert call("cp", "x", "pytorch:/work/y").code == 0
    assert call("cp", "pytorch:/work/y", "into").code == 0
    assert call("cp", "pytorch:/work/y", "into/z").code == 0
    assert {path.name for path in (container.root / "work").iterdir()} == {"x", "y"}
    assert {path.name for path in Path("into").iterdir()} == {"y", "z"}


@pytest.mark.parametrize("source", [".", "..", "sub/.."])
def test_a_folder_is_sent_by_its_own_name_however_it_is_called(
    call: Call, container: MadeContainer, tmp_path: Path, source: str
) -> None:
    Path("sub").mkdir()
    if source == "..":
        os.chdir("sub")
    assert call("cp", source, "pytorch:/work").code == 0
    assert [path.name for path in (container.root / "work").iterdir()] == ["here"]
    assert call("cp", source, "pytorch:/work/new").code == 0
    assert (container.root / "work/new/sub").is_dir()


def test_files_with_two_names_come_over_an_earlier_copy(call: Call, container: MadeContainer) -> None:
    folder = container.root / "work/folder"
    folder.mkdir()
    (folder / "first").write_bytes(b"twice")
    (folder / "second").hardlink_to(folder / "first")
    for _ in range(2):
        assert call("cp", "pytorch:/work/folder", ".").code == 0
        assert call("cp", "pytorch:/work/folder", "new").code == 0
    assert Path("folder/second").read_bytes() == b"twice"
    assert Path("new/folder/second").read_bytes() == b"twice"


# -- what goes wrong


def test_a_path_that_is_not_here_is_told_and_nothing_asked(call: Call, container: MadeContainer) -> None:
    ended = call("cp", "missing", "pytorch:/work")
    assert ended.code == 1
    assert "No such file or directory: 'missing'" in ended.err
    assert container.orders == []


def test_a_folder_that_is_not_here_is_told_and_the_line_closed(call: Call, container: MadeContainer) -> None:
    (container.root / "work/x").touch()
    ended = call("cp", "pytorch:/work/x", "no/such")
    assert (ended.code, ended.out) == (1, "")
    assert "No such file or directory: 'no'" in ended.err
    assert container.streams[0].is_closed


@pytest.mark.parametrize("words", [("pytorch:/missing", "new"), ("x", "pytorch:/missing/new")])
def test_a_path_that_is_not_there_is_told_in_the_containers_words(call: Call, words: tuple[str, str]) -> None:
    Path("x").touch()
    ended = call("cp", *words)
    assert ended.code == 1
    assert ended.err.startswith("aabb1111-000 on lab: /missing")
    assert "No such file or directory" in ended.err
    assert not Path("new").exists()


def test_what_the_container_takes_no_more_of_is_not_sent_to_its_end(call: Call, container: MadeContainer) -> None:
    """It says why, as soon as it is asked for the next piece."""
    with Path("large").open("wb") as file:
        file.truncate(1 << 30)
    ended = call("cp", "large", "pytorch:/missing/new")
    assert ended.code == 1
    assert "No such file or directory" in ended.err
    assert container.taken_bytes < 1 << 29


def test_an_archive_that_ends_too_soon_is_told_by_its_reason(
    call: Call, container: MadeContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(stream: CopyStream, what: str, path: str) -> None:
        info = tarfile.TarInfo("x")
        info.size = 1000
        stream.output(info.tobuf() + bytes(100))
        raise OSError("the disk is broken")

    monkeypatch.setattr(container, "act", act)
    ended = call("cp", "pytorch:/work", "new")
    assert ended.code == 1
    assert "the disk is broken" in ended.err


@pytest.mark.parametrize("is_sent", [False, True])
def test_an_archive_that_is_none_is_told(
    call: Call, container: MadeContainer, monkeypatch: pytest.MonkeyPatch, is_sent: bool
) -> None:
    content = b"no archive" * 4000 if is_sent else b""
    monkeypatch.setattr(container, "act", lambda stream, what, path: stream.output(content))
    ended = call("cp", "pytorch:/work", "new")
    assert ended.code == 1
    assert ended.err.startswith("It could not be copied: ")


def test_much_that_comes_behind_an_end_is_dropped(
    call: Call, container: MadeContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that goes on after its archive keeps nobody waiting, and nobody's memory."""

    def act(stream: CopyStream, what: str, path: str) -> None:
        sink = io.BytesIO()
        tarfile.open(fileobj=sink, mode="w").close()
        stream.output(sink.getvalue())
        stream.output(bytes(4 * MOST_ARRIVED_BYTES))

    monkeypatch.setattr(container, "act", act)
    assert call("cp", "pytorch:/work", "new").code == 0


def test_what_is_refused_is_told_without_the_rest_of_it(
    call: Call, container: MadeContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(stream: CopyStream, what: str, path: str) -> None:
        stream.output(tarfile.TarInfo("../out").tobuf())
        while not stream.is_closed:
            stream.output(bytes(1 << 16))

    monkeypatch.setattr(container, "act", act)
    ended = call("cp", "pytorch:/work", ".")
    assert ended.code == 1
    assert "'../out' would be outside of" in ended.err


# -- what a container's archive may say


def archive(*members: tuple[str, str] | tuple[str, str, bytes]) -> io.BytesIO:
    """Files by name and content; links by name, target and kind."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as made:
        for name, text, *kind in members:
            info = tarfile.TarInfo(name)
            if kind:
                info.type, info.linkname = kind[0], text
            else:
                info.size = len(text)
            made.addfile(info, io.BytesIO(text.encode()))
    return io.BytesIO(sink.getvalue())


HOSTILE = [
    archive(("../out", "x")),
    archive(("a/../../out", "x")),
    archive(("/out", "x")),
    archive(("..", "x")),
    archive(("a", "..", tarfile.SYMTYPE), ("a/out", "x")),
    archive(("a", "/", tarfile.SYMTYPE), ("a/out", "x")),
    archive(("a/b", "../../out", tarfile.SYMTYPE), ("a/b", "x")),
    archive(("a/b", "../secret", tarfile.LNKTYPE)),
    archive(("a/b", "../../secret", tarfile.LNKTYPE), ("a/b", "x")),
    archive(("a/../../secret", "a", tarfile.LNKTYPE)),
    archive(("a", "../secret", tarfile.SYMTYPE), ("a", "x")),
    archive(("a", "", tarfile.CHRTYPE)),
    archive(("a", "b", tarfile.SYMTYPE), ("b", "a", tarfile.SYMTYPE), ("a/out", "x")),
]


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_nothing_gets_outside_whatever_the_archive_says(tmp_path: Path, number: int, is_new: bool) -> None:
    target = tmp_path / "below" / "target"
    target.mkdir(parents=True)
    secret = target.parent / "secret"
    secret.write_text("secret")
    HOSTILE[number].seek(0)
    with contextlib.suppress(OSError, tarfile.TarError):
        cp.unpack(HOSTILE[number], target / "new" if is_new else target)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(target)]
    assert outside == [secret]
    assert (secret.read_text(), secret.stat().st_nlink) == ("secret", 1)
    assert not Path("/out").exists()
    assert not any(path.is_char_device() for path in target.rglob("*"))


def test_what_leads_out_is_left_out_and_told_and_the_rest_comes(call: Call, container: MadeContainer) -> None:
    work = container.root / "work"
    (work / "data").symlink_to("/data")
    (work / "up").symlink_to("../..")
    (work / "latest").symlink_to("run1/model")
    (work / "run1").mkdir()
    (work / "run1" / "model").write_text("weights")
    (work / "run1" / "again").symlink_to("../run1/model")
    os.mkfifo(work / "pipe")
    for target in (".", "new"):
        ended = call("cp", "pytorch:/work", target)
        name = "work" if target == "." else "new"
        assert ended.code == 0, ended.err
        said = sorted(ended.err.splitlines())
        assert said == [
            f"{name}/data is left out: it is a link to /data.",
            f"{name}/pipe is left out: it is neither a file nor a folder.",
            f"{name}/up is left out: it is a link to ../...",
        ]
        here = Path(name)
        assert sorted(path.name for path in here.iterdir()) == ["latest", "run1"]
        assert (here / "latest").read_text() == (here / "run1" / "again").read_text() == "weights"


def test_another_name_of_a_link_that_is_left_out_is_left_out(tmp_path: Path) -> None:
    made = archive(("a", "/data", tarfile.SYMTYPE), ("b", "a", tarfile.LNKTYPE), ("c", "x"))
    assert cp.unpack(made, tmp_path) == [
        "a is left out: it is a link to /data.",
        "b is left out: it is another name of a.",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_python_without_filters_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian 12 has 3.11.2, whose tarfile knows no filters."""
    for name in ("data_filter", "tar_filter", "FilterError", "fully_trusted_filter"):
        monkeypatch.delattr(tarfile, name)
    assert cp.unpack(archive(("a/x", "text")), tmp_path) == []
    assert (tmp_path / "a" / "x").read_text() == "text"


def test_a_file_that_sets_rights_gives_none(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as made:
        info = tarfile.TarInfo("x")
        info.mode = 0o6777
        made.addfile(info)
    cp.unpack(io.BytesIO(sink.getvalue()), tmp_path)
    assert (tmp_path / "x").stat().st_mode & 0o7022 == 0


# -- what comes faster than it is written


class Line:
    """Whether the container is asked to wait, in the order in which it was said."""

    def __init__(self) -> None:
        self.said: list[bool] = []
        self.moved = 0

    def arriving(self) -> cp._Arriving:
        def moved(size: int) -> None:
            self.moved += size

        return cp._Arriving(self.said.append, moved)


def test_what_comes_is_read_in_order_to_its_end() -> None:
    line = Line()
    arriving = line.arriving()
    for piece in (b"one", b"two", b"", b"after the end"):
        arriving.put(OUT, piece)
    assert io.BufferedReader(arriving, 4).read() == b"onetwo"
    assert line.moved == 6


def test_errors_are_no_part_of_it() -> None:
    arriving = Line().arriving()
    arriving.put(terminal.ERRORS, b"no ")
    arriving.put(terminal.ERRORS, b"such")
    arriving.put(OUT, b"")
    assert (bytes(arriving.said), arriving.read()) == (b"no such", b"")


def test_the_container_waits_while_much_is_queued_and_no_longer() -> None:
    line = Line()
    arriving = line.arriving()
    for _ in range(4):
        arriving.put(OUT, bytes(MOST_ARRIVED_BYTES // 3))
    assert line.said == [True]
    for _ in range(2):
        assert len(arriving.read(MOST_ARRIVED_BYTES)) == MOST_ARRIVED_BYTES // 3
        assert line.said[-1]
    arriving.read(MOST_ARRIVED_BYTES)
    assert not line.said[-1]


def test_the_container_is_not_left_waiting_once_the_rest_is_dropped() -> None:
    line = Line()
    arriving = line.arriving()
    arriving.put(OUT, bytes(MOST_ARRIVED_BYTES + 1))
    arriving.drop_rest()
    arriving.put(OUT, bytes(MOST_ARRIVED_BYTES + 1))
    assert line.said == [True, False]


def test_the_last_word_to_a_container_whose_pieces_are_all_read_is_to_go_on() -> None:
    """The two are said on two threads: a pause that was said too late would be for ever."""
    reading = threading.Event()

    class Slow(Line):
        def arriving(self) -> cp._Arriving:
            def congested(is_congested: bool) -> None:
                if is_congested:
                    reading.wait(0.02)  # The other thread has all the time it wants.
                self.said.append(is_congested)

            return cp._Arriving(congested, lambda size: None)

    line = Slow()
    arriving = line.arriving()

    def read() -> None:
        while arriving.read(1 << 20):
            pass
        reading.set()

    thread = threading.Thread(target=read)
    thread.start()
    arriving.put(OUT, bytes(MOST_ARRIVED_BYTES + 1))
    arriving.put(OUT, b"")
    thread.join(10)
    assert not thread.is_alive()
    assert line.said[0]
    assert not line.said[-1]
