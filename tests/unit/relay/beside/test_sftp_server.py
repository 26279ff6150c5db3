"""relay/beside/sftp_server.py: SFTP packet by packet and over pipes; a real client is in cli/ssh/test_server.py."""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.relay.beside import sftp_server
from kernelbridge.relay.beside.sftp_server import Reader, SftpServer, attributes, long_name

OK, EOF, NO_SUCH_FILE, DENIED, FAILURE, BAD_MESSAGE, UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8
INIT, OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT, OPENDIR, READDIR = 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME, READLINK, SYMLINK, EXTENDED = 13, 14, 15, 16, 17, 18, 19, 20, 200
STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105
FOR_READ, FOR_WRITE, APPEND, CREATE, TRUNCATE, EXCLUSIVE = 1, 2, 4, 8, 16, 32
NO_ATTRIBUTES = struct.pack("!I", 0)
NUMBER = 77
# Neither ASCII nor UTF-8, nor on one line.
ODD_NAME = b"caf\xe9 \xff\n-x"


class Answer(NamedTuple):
    """What came back: its kind, and what stands behind the request's number."""

    kind: int
    body: bytes

    @property
    def code(self) -> int:
        assert self.kind == STATUS
        return int(struct.unpack("!I", self.body[:4])[0])


def text(value: bytes | Path | str) -> bytes:
    raw = value if isinstance(value, bytes) else os.fsencode(value)
    return struct.pack("!I", len(raw)) + raw


class Client:
    """Asks one server that has no pipes."""

    def __init__(self) -> None:
        self.sink = io.BytesIO()
        self.server = SftpServer(io.BytesIO(), self.sink)

    def ask(self, kind: int, *parts: bytes) -> Answer:
        said = self.server.answer(bytes([kind]) + struct.pack("!I", NUMBER) + b"".join(parts))
        assert struct.unpack("!I", said[1:5])[0] == NUMBER
        return Answer(said[0], said[5:])

    def handle(self, kind: int, *parts: bytes) -> bytes:
        """Return what was opened, as further requests name it."""
        said = self.ask(kind, *parts)
        assert said.kind == HANDLE, said
        return said.body

    def open(self, path: Path | bytes, flags: int, attrs: bytes = NO_ATTRIBUTES) -> bytes:
        return self.handle(OPEN, text(path), struct.pack("!I", flags), attrs)

    def read(self, handle: bytes, offset: int, size: int) -> Answer:
        return self.ask(READ, handle, struct.pack("!QI", offset, size))

    def write(self, handle: bytes, offset: int, data: bytes) -> Answer:
        return self.ask(WRITE, handle, struct.pack("!Q", offset), text(data))

    def names(self, handle: bytes) -> list[list[bytes]]:
        """Return the names of an open folder, page by page."""
        pages = []
        while (said := self.ask(READDIR, handle)).kind == NAME:
            pages.append([name for name, _ in names_of(said)])
        assert said.code == EOF
        return pages


def names_of(said: Answer) -> list[tuple[bytes, bytes]]:
    """Return each name with its long form."""
    packet = Reader(said.body)
    found = []
    for _ in range(packet.number()):
        found.append((packet.text(), packet.text()))
        sftp_server.Attributes.read(packet)
    assert packet._at == len(said.body)
    return found


def room(client: Client, path: Path) -> tuple[int, ...]:
    said = client.ask(EXTENDED, text("statvfs@openssh.com"), text(path))
    assert said.kind == 201
    return struct.unpack("!11Q", said.body)


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.server.serve()  # Its source is at its end: it closes what is open.


# -- the beginning, and what is no request


def test_the_first_answer_is_the_version_and_what_is_known_beyond_it(client: Client) -> None:
    said = client.server.answer(bytes([INIT]) + struct.pack("!I", 6))
    assert said[:5] == bytes([2]) + struct.pack("!I", 3)
    packet = Reader(said[5:])
    known = {packet.text(): packet.text() for _ in range(4)}
    assert known[b"posix-rename@openssh.com"] == b"1"
    assert known[b"statvfs@openssh.com"] == b"2"


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (bytes([STAT]) + b"\0\0", BAD_MESSAGE),
        (bytes([STAT]) + struct.pack("!I", NUMBER), BAD_MESSAGE),
        (bytes([STAT]) + struct.pack("!II", NUMBER, 1 << 31) + b"/", BAD_MESSAGE),
        (bytes([SETSTAT]) + struct.pack("!I", NUMBER) + text("/") + struct.pack("!II", 0x80000000, 1 << 31), 5),
        (bytes([READ]) + struct.pack("!I", NUMBER) + text("1"), FAILURE),
        (bytes([99]) + struct.pack("!I", NUMBER), UNSUPPORTED),
        (bytes([EXTENDED]) + struct.pack("!I", NUMBER) + text("check-file"), UNSUPPORTED),
        (bytes([STAT]) + struct.pack("!I", NUMBER) + text("/a\0b"), FAILURE),
    ],
)
def test_what_is_no_request_gets_a_status_and_the_server_lives_on(client: Client, packet: bytes, code: int) -> None:
    said = client.server.answer(packet)
    assert (said[0], struct.unpack("!I", said[5:9])[0]) == (STATUS, code)
    assert client.ask(STAT, text("/")).kind == ATTRS


@given(st.sampled_from([OPEN, CLOSE, READ, WRITE, FSTAT, FSETSTAT, READDIR, STAT, READLINK, 255]), st.binary())
def test_no_packet_ends_the_server(kind: int, rest: bytes) -> None:
    if kind == OPEN and b"\0" not in rest[8:]:
        return
    client = Client()
    try:
        said = client.server.answer(bytes([kind]) + rest)
        assert STATUS <= said[0] <= ATTRS
    finally:
        client.server.serve()


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 1])
def test_a_number_that_no_file_has_gets_a_status(client: Client, tmp_path: Path, offset: int) -> None:
    handle = client.open(tmp_path / "x", FOR_READ | FOR_WRITE | CREATE)
    assert client.read(handle, offset, 1).code == FAILURE
    assert client.write(handle, offset, b"x").code == FAILURE
    assert client.ask(SETSTAT, text(tmp_path / "x"), struct.pack("!IQ", 1, offset)).code == FAILURE


# -- files


def test_a_file_is_written_and_read_at_any_place_to_its_end(client: Client, tmp_path: Path) -> None:
    handle = client.open(tmp_path / "x", FOR_READ | FOR_WRITE | CREATE)
    assert client.write(handle, 0, b"hello").code == OK
    assert client.write(handle, 8, b"!").code == OK
    assert client.read(handle, 1, 3) == (DATA, text(b"ell"))
    assert client.read(handle, 5, 1 << 31) == (DATA, text(b"\0\0\0!"))
    assert client.read(handle, 9, 1).code == EOF
    assert client.ask(FSTAT, handle).body == attributes((tmp_path / "x").stat())
    assert client.ask(EXTENDED, text("fsync@openssh.com"), handle).code == OK
    assert client.ask(CLOSE, handle).code == OK
    assert client.ask(CLOSE, handle).code == FAILURE
    assert client.read(handle, 0, 1).code == FAILURE


def test_one_answer_has_at_most_as_much_as_a_packet_holds(client: Client, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(1 << 20))
    said = client.read(client.open(tmp_path / "x", FOR_READ), 0, 0xFFFFFFFF)
    assert 1 << 17 < len(said.body) < 256 << 10


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (FOR_WRITE, b"new text"),
        (FOR_WRITE | TRUNCATE, b"new"),
        (FOR_WRITE | CREATE | TRUNCATE, b"new"),
        (FOR_WRITE | APPEND, b"old textnew"),
    ],
)
def test_a_file_is_opened_as_the_client_says(client: Client, tmp_path: Path, flags: int, left: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old text")
    assert client.write(client.open(path, flags), 0, b"new").code == OK
    assert path.read_bytes() == left


def test_a_file_that_is_there_is_not_made_and_one_that_is_not_is_not_found(client: Client, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    new = struct.pack("!I", FOR_WRITE | CREATE | EXCLUSIVE) + NO_ATTRIBUTES
    assert client.ask(OPEN, text(tmp_path / "x"), new).code == FAILURE
    assert client.ask(OPEN, text(tmp_path / "y"), struct.pack("!I", FOR_READ) + NO_ATTRIBUTES).code == NO_SUCH_FILE
    assert not (tmp_path / "y").exists()


def test_a_new_file_has_the_mode_that_the_client_names(client: Client, tmp_path: Path) -> None:
    client.open(tmp_path / "x", FOR_WRITE | CREATE, struct.pack("!II", 4, 0o100640))
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_so_many_files_can_be_open_and_a_closed_one_makes_room(client: Client, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    handles = [client.handle(OPENDIR, text(tmp_path)) for _ in range(sftp_server._MOST_HANDLES)]
    assert len(set(handles)) == len(handles)
    opening = struct.pack("!I", FOR_READ) + NO_ATTRIBUTES
    assert client.ask(OPEN, text(tmp_path / "x"), opening).code == FAILURE
    assert client.ask(OPENDIR, text(tmp_path)).code == FAILURE
    assert client.ask(CLOSE, handles[0]).code == OK
    assert client.ask(OPEN, text(tmp_path / "x"), opening).kind == HANDLE


def test_attributes_are_given_each_as_the_client_says(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert client.ask(SETSTAT, text(path), struct.pack("!IQ", 1, 3)).code == OK
    assert path.read_bytes() == b"123"
    assert client.ask(SETSTAT, text(path), struct.pack("!III", 4 | 8, 0o100751, 11) + struct.pack("!I", 22)).code == OK
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_atime, found.st_mtime) == (0o751, 11, 22)
    handle = client.open(path, FOR_WRITE)
    owner = struct.pack("!III", 2, found.st_uid, found.st_gid)
    assert client.ask(FSETSTAT, handle, owner).code == OK
    assert client.ask(FSETSTAT, handle, struct.pack("!II", 4, 0o600)).code == OK
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    extended = struct.pack("!II", 0x80000000, 1) + text("name") + text("value")
    assert client.ask(SETSTAT, text(path), extended).code == OK


def test_a_file_of_a_time_that_no_calendar_has_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    about = list(path.stat())
    for moment in (-1, 1 << 40, 1 << 60):
        found = os.stat_result([*about[:7], moment, moment, moment])
        assert long_name(b"x", found).endswith(b" x")
        assert len(attributes(found)) == 32


# -- folders and names


def test_a_folder_is_listed_page_by_page_with_names_of_any_bytes(client: Client, tmp_path: Path) -> None:
    wanted = {b".", b"..", ODD_NAME, *(b"%d" % number for number in range(250))}
    for name in wanted - {b".", b".."}:
        (tmp_path / os.fsdecode(name)).touch()
    handle = client.handle(OPENDIR, text(tmp_path))
    pages = client.names(handle)
    assert [len(page) for page in pages] == [100, 100, 53]
    assert {name for page in pages for name in page} == wanted
    assert client.ask(CLOSE, handle).code == OK
    assert client.ask(READDIR, handle).code == FAILURE


def test_what_is_removed_while_a_folder_is_listed_is_left_out(client: Client, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    handle = client.handle(OPENDIR, text(tmp_path))
    (tmp_path / "x").unlink()
    assert client.names(handle) == [[b".", b".."]]


def test_a_long_name_is_a_line_of_ls(client: Client, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    (tmp_path / "x").chmod(0o640)
    ((_, _), (_, _), (name, line)) = names_of(client.ask(READDIR, client.handle(OPENDIR, text(tmp_path))))
    assert name == b"x"
    assert line.startswith(b"-rw-r-----    1 ")
    assert line.split()[4] == b"5"
    assert line.endswith(b" x")


def test_folders_are_made_and_removed_when_empty(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert client.ask(MKDIR, text(folder), struct.pack("!II", 4, 0o40750)).code == OK
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert client.ask(MKDIR, text(folder), NO_ATTRIBUTES).code == FAILURE
    (folder / "x").touch()
    assert client.ask(RMDIR, text(folder)).code == FAILURE
    assert client.ask(REMOVE, text(folder / "x")).code == OK
    assert client.ask(REMOVE, text(folder / "x")).code == NO_SUCH_FILE
    assert client.ask(RMDIR, text(folder)).code == OK
    assert not folder.exists()
    assert client.ask(OPENDIR, text(folder)).code == NO_SUCH_FILE


def test_a_path_is_told_whole(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.fsencode(tmp_path)
    for asked, told in ((b"", here), (b".", here), (b"a/../b", here + b"/b"), (b"/", b"/")):
        assert names_of(client.ask(REALPATH, text(asked))) == [(told, told)]
    assert client.ask(STAT, text(b"")).body == attributes(tmp_path.stat())


def test_a_link_is_made_to_the_first_of_both_and_read_as_it_is(client: Client, tmp_path: Path) -> None:
    assert client.ask(SYMLINK, text(b"no\xffwhere"), text(tmp_path / "link")).code == OK
    assert os.fsencode((tmp_path / "link").readlink()) == b"no\xffwhere"
    assert names_of(client.ask(READLINK, text(tmp_path / "link")))[0][0] == b"no\xffwhere"
    assert client.ask(STAT, text(tmp_path / "link")).code == NO_SUCH_FILE
    assert client.ask(LSTAT, text(tmp_path / "link")).body == attributes((tmp_path / "link").lstat())
    assert client.ask(READLINK, text(tmp_path)).code == FAILURE


def test_a_rename_replaces_nothing_and_a_posix_rename_does(client: Client, tmp_path: Path) -> None:
    new, old, link = tmp_path / "new", tmp_path / "old", tmp_path / "link"
    new.write_bytes(b"new")
    old.write_bytes(b"old")
    link.symlink_to("nowhere")
    assert client.ask(RENAME, text(new), text(old)).code == FAILURE
    assert client.ask(RENAME, text(new), text(link)).code == FAILURE
    assert old.read_bytes() == b"old"
    assert client.ask(EXTENDED, text("posix-rename@openssh.com"), text(new), text(old)).code == OK
    assert (old.read_bytes(), new.exists()) == (b"new", False)
    assert client.ask(RENAME, text(old), text(new)).code == OK
    assert (new.read_bytes(), old.exists()) == (b"new", False)
    assert client.ask(RENAME, text(old), text(tmp_path / "other")).code == NO_SUCH_FILE


def test_a_hard_link_is_the_same_file(client: Client, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert client.ask(EXTENDED, text("hardlink@openssh.com"), text(tmp_path / "x"), text(tmp_path / "y")).code == OK
    assert (tmp_path / "y").samefile(tmp_path / "x")


def test_how_much_room_there_is_is_told(client: Client, tmp_path: Path) -> None:
    found, told = os.statvfs(tmp_path), room(client, tmp_path)
    assert (told[0], told[1], told[2], told[10]) == (found.f_bsize, found.f_frsize, found.f_blocks, found.f_namemax)


# -- over pipes


def test_packets_are_answered_one_by_one_until_the_client_has_gone_and_files_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    packets = [
        bytes([INIT]) + struct.pack("!I", 3),
        bytes([OPEN]) + struct.pack("!I", 1) + text(path) + struct.pack("!I", FOR_READ) + NO_ATTRIBUTES,
        bytes([READ]) + struct.pack("!I", 2) + text("1") + struct.pack("!QI", 0, 9),
    ]
    sink = io.BytesIO()
    before = set(Path("/proc/self/fd").iterdir())
    SftpServer(io.BytesIO(b"".join(map(text, packets)) + b"\0\0\0\x09cut"), sink).serve()
    assert set(Path("/proc/self/fd").iterdir()) == before
    said = Reader(sink.getvalue())
    kinds = [said.text()[0] for _ in packets]
    assert kinds == [2, HANDLE, DATA]
    assert said._at == len(sink.getvalue())


@pytest.mark.parametrize("size", [0, 256 * 1024 + 1, 0xFFFFFFFF])
def test_a_packet_of_no_size_or_too_large_a_one_ends_it(size: int) -> None:
    sink = io.BytesIO()
    SftpServer(io.BytesIO(struct.pack("!I", size) + bytes([INIT, 0, 0, 0, 3])), sink).serve()
    assert sink.getvalue() == b""


def test_it_ends_when_nobody_reads_any_more() -> None:
    source, sink = os.pipe()
    os.close(source)
    with os.fdopen(sink, "wb", buffering=0) as closed:
        SftpServer(io.BytesIO(text(bytes([INIT]) + struct.pack("!I", 3))), closed).serve()
