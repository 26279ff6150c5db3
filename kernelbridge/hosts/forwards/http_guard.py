"""Check each HTTP request to a forwarded port, and take Jupyter's secrets out of it. Pure: bytes in, bytes out.

Any web page can make a browser send requests to this machine's loopback, under a name of its own that it lets lead
there. So each request, the later ones of a connection too, must name this machine as its Host, and come from a page
of that same origin, or from none. Browsers do not tell ports apart where cookies are concerned: Jupyter's own are
taken out. What could be read in two ways is refused. The answers are not looked at, but for whether the connection
becomes a web socket.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum, auto
from http import HTTPStatus

MOST_HEAD_BYTES = 64 * 1024
# What may be sent before it is known whether the connection becomes a web socket.
MOST_EARLY_BYTES = 64 * 1024

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(%s) (/[^\s\x00-\x20\x7f]*|\*) HTTP/1\.([01])" % _TOKEN)
_FIELD = re.compile(rb"(%s):[ \t]*([^\x00\r\n]*?)[ \t]*" % _TOKEN)
_LOOPBACK = re.compile(r"(127\.0\.0\.1|\[::1\]|([a-z0-9-]+\.)*localhost)(:[0-9]{1,5})?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK = re.compile(rb"[0-9A-Fa-f]{1,8}")
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_STATUS_BYTES = 13
# By the names that Jupyter Server and JupyterHub give them.
_OUR_COOKIE = re.compile(rb"(_xsrf|username-.*|jupyterhub-.*)", re.DOTALL)
_OUR_TOKEN = re.compile(rb"token\s.*", re.IGNORECASE | re.DOTALL)
_OTHERS = frozenset({b"cross-site", b"same-site"})
# More than one of these is read differently by different programs.
_ONCE = (b"host", b"origin", b"content-length", b"transfer-encoding", b"upgrade")

Field = tuple[bytes, bytes]


class RequestRefused(Exception):
    """A request may not go on; the connection is to be closed, after response() where that can be told."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def response(status: int, text: str) -> bytes:
    """Return an answer of our own, after which the connection ends."""
    body = f"{text}\n".encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


class _Reading(Enum):
    """What comes next on a connection."""

    HEAD = auto()
    BODY = auto()
    CHUNK_HEAD = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    LAST_CHUNK = auto()
    # Whether it becomes a web socket is for the answer to say.
    ASKED = auto()
    RAW = auto()


class HttpGuard:
    """The requests of one connection."""

    def __init__(self) -> None:
        self._reading = _Reading.HEAD
        # What came and is not let through yet.
        self._held = bytearray()
        # Of the body or chunk that is under way.
        self._left_bytes = 0
        # How many requests were let through.
        self.passed = 0
        # The beginning of the answer to the request for a web socket.
        self._answer = b""

    def __repr__(self) -> str:
        return f"<HttpGuard {self._reading.name.lower()}, {self.passed} requests>"

    def feed(self, data: bytes) -> bytes:
        """Take what the client sends; return what of it may go on. Raises RequestRefused."""
        if self._reading is _Reading.RAW:
            return data
        self._held += data
        return self._let_through()

    def answered(self, data: bytes) -> bytes:
        """Take what the server answers; return what the client sent early and may go on now. Raises RequestRefused."""
        if self._reading is not _Reading.ASKED:
            return b""
        self._answer += data[: _STATUS_BYTES - len(self._answer)]
        if len(self._answer) < _STATUS_BYTES:
            return b""
        found = _STATUS.match(self._answer)
        self._reading = _Reading.RAW if found is not None and found[1] == b"101" else _Reading.HEAD
        return self._let_through()

    def _let_through(self) -> bytes:
        passed = bytearray()
        while (piece := self._next()) is not None:
            passed += piece
        return bytes(passed)

    def _next(self) -> bytes | None:
        """Return the next piece that may go on; None if more must come first."""
        match self._reading:
            case _Reading.HEAD:
                return self._head()
            case _Reading.BODY | _Reading.CHUNK:
                return self._body()
            case _Reading.CHUNK_HEAD:
                return self._chunk_head()
            case _Reading.CHUNK_END:
                return self._line_end(_Reading.CHUNK_HEAD)
            case _Reading.LAST_CHUNK:
                return self._line_end(_Reading.HEAD)
            case _Reading.ASKED:
                if len(self._held) > MOST_EARLY_BYTES:
                    raise RequestRefused(400, "Too much was sent before the answer.")
                return None
            case _Reading.RAW:
                return self._take(len(self._held)) or None

    def _take(self, count: int) -> bytes:
        taken = bytes(self._held[:count])
        del self._held[:count]
        return taken

    def _head(self) -> bytes | None:
        end = self._held.find(b"\r\n\r\n")
        if end > MOST_HEAD_BYTES or (end < 0 and len(self._held) > MOST_HEAD_BYTES):
            raise RequestRefused(431, "The head of the request is too long.")
        if end < 0:
            if re.search(rb"(?<!\r)\n|^\r\n|\r[^\n]", bytes(self._held)):
                raise RequestRefused(400, "The request has lines that end in other ways than HTTP's.")
            return None
        lines = self._take(end + 4)[:-4].split(b"\r\n")
        first = _REQUEST_LINE.fullmatch(lines[0])
        if first is None:
            raise RequestRefused(400, "This port takes HTTP requests.")
        fields = [_field(line) for line in lines[1:]]
        check(fields)
        self._reading, self._left_bytes = _what_follows(fields, first[3] == b"0")
        kept, asks = self._without_upgrade(first[1], fields)
        if asks:
            self._reading = _Reading.ASKED
        self.passed += 1
        return b"\r\n".join([lines[0], *(name + b": " + value for name, value in stripped(kept)), b"", b""])

    def _without_upgrade(self, method: bytes, fields: list[Field]) -> tuple[list[Field], bool]:
        """Return the fields, and whether they ask for a web socket; any other protocol is not asked for."""
        upgrade = _values(fields, b"upgrade")
        if not upgrade:
            return fields, False
        if upgrade[0].lower() == b"websocket":
            if self.passed or method != b"GET" or self._reading is not _Reading.HEAD:
                raise RequestRefused(400, "A web socket needs a connection of its own.")
            return fields, True
        return [field for field in fields if field[0].lower() not in (b"upgrade", b"http2-settings")], False

    def _body(self) -> bytes | None:
        if not self._left_bytes:
            self._reading = _Reading.HEAD if self._reading is _Reading.BODY else _Reading.CHUNK_END
            return b""
        piece = self._take(self._left_bytes)
        self._left_bytes -= len(piece)
        return piece or None

    def _chunk_head(self) -> bytes | None:
        end = self._held.find(b"\r\n")
        if end < 0 and len(self._held) < 10:
            return None
        if end < 0 or not _CHUNK.fullmatch(self._held[:end]):
            raise RequestRefused(400, "The request has a chunk without a plain length.")
        line = self._take(end + 2)
        self._left_bytes = int(line, 16)
        self._reading = _Reading.CHUNK if self._left_bytes else _Reading.LAST_CHUNK
        return line

    def _line_end(self, following: _Reading) -> bytes | None:
        if len(self._held) < 2:
            return None
        if self._held[:2] != b"\r\n":
            raise RequestRefused(400, "The request has something behind a chunk that is none.")
        self._reading = following
        return self._take(2)


def _field(line: bytes) -> Field:
    found = _FIELD.fullmatch(line)
    if found is None:
        raise RequestRefused(400, "The request has a header that is none.")
    return found[1], found[2]


def _values(fields: Iterable[Field], name: bytes) -> list[bytes]:
    return [value for key, value in fields if key.lower() == name]


def check(fields: list[Field]) -> None:
    """Raise RequestRefused unless a page of this very origin, or none, sends these headers to this machine."""
    for name in _ONCE:
        if len(_values(fields, name)) > 1:
            raise RequestRefused(400, f"The request has more than one {name.decode().title()}.")
    hosts = _values(fields, b"host")
    if not hosts:
        raise RequestRefused(400, "The request has no Host.")
    host = hosts[0].decode("latin-1").lower()
    if not _LOOPBACK.fullmatch(host):
        raise RequestRefused(403, "A forwarded port is reached as localhost or 127.0.0.1 only.")
    for origin in _values(fields, b"origin"):
        if origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
            raise RequestRefused(403, "Pages of other origins may not use a forwarded port.")
    # Of one site are all ports of this machine, whoever's.
    is_others = not _OTHERS.isdisjoint(_values(fields, b"sec-fetch-site"))
    if is_others and _values(fields, b"sec-fetch-mode") != [b"navigate"]:
        raise RequestRefused(403, "Pages of other origins may not use a forwarded port.")


def _what_follows(fields: list[Field], is_old: bool) -> tuple[_Reading, int]:
    """Return how the body is sent, and its length. Raises RequestRefused where that could be read in two ways."""
    lengths, codings = _values(fields, b"content-length"), _values(fields, b"transfer-encoding")
    if codings:
        if lengths or is_old or codings[0].lower() != b"chunked":
            raise RequestRefused(400, "The request does not say plainly how long it is.")
        return _Reading.CHUNK_HEAD, 0
    if not lengths:
        return _Reading.HEAD, 0
    if not _LENGTH.fullmatch(lengths[0]):
        raise RequestRefused(400, "The request has a length that is none.")
    return _Reading.BODY, int(lengths[0])


def stripped(fields: Iterable[Field]) -> list[Field]:
    """Return the headers without what belongs to Jupyter: its cookies, its token."""
    kept = []
    for name, value in fields:
        key = name.lower()
        if key == b"x-xsrftoken" or (key == b"authorization" and _OUR_TOKEN.fullmatch(value)):
            continue
        if key == b"cookie":
            value = b"; ".join(one for one in map(bytes.strip, value.split(b";")) if one and not _is_ours(one))
            if not value:
                continue
        kept.append((name, value))
    return kept


def _is_ours(cookie: bytes) -> bool:
    return _OUR_COOKIE.fullmatch(cookie.partition(b"=")[0].strip()) is not None
