"""hosts/forwards/http_guard.py: which requests go on to a forwarded port, and what is taken out of them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.hosts.forwards.http_guard import (
    MOST_EARLY_BYTES,
    MOST_HEAD_BYTES,
    HttpGuard,
    RequestRefused,
    response,
)


def request(*fields: str, line: str = "GET / HTTP/1.1", host: str = "localhost:6006") -> bytes:
    heads = [line, *([f"Host: {host}"] if host else []), *fields]
    return "".join(f"{head}\r\n" for head in [*heads, ""]).encode("latin-1")


SOCKET = request("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Origin: http://localhost:6006")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:6006",
        "127.0.0.1:6006",
        "127.0.0.1",
        "[::1]:6006",
        "kernel-1.localhost:6006",
        "a.b.localhost",
    ],
)
def test_a_request_to_this_machine_by_its_own_names_goes_on(host: str) -> None:
    assert HttpGuard().feed(request(host=host)) == request(host=host)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:6006", "10.0.0.3:6006"),
        *("127.0.0.2", "0.0.0.0", "[::]", "localhost:6006@evil.example", "evillocalhost", "localhost:", "localhost:x"),
        *("localhost.", "127.0.0.1:123456", "a..localhost", ".localhost"),
    ],
)
def test_a_request_by_another_name_is_refused_for_it_may_be_a_web_pages(host: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        HttpGuard().feed(request(host=host))
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("fields", "goes_on"),
    [
        (["Origin: http://localhost:6006"], True),
        (["Origin: https://LocalHost:6006"], True),
        (["Origin: http://localhost:8888"], False),
        (["Origin: http://127.0.0.1:6006"], False),
        (["Origin: http://evil.example"], False),
        (["Origin: null"], False),
        (["Origin: "], False),
        (["Origin: http://localhost:6006/"], False),
        (["Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"], True),
        (["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"], True),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"], True),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"], False),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: websocket"], False),
        (["Sec-Fetch-Site: cross-site"], False),
        # Of one site are all ports of this machine.
        (["Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate"], True),
        (["Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"], False),
        # A form of another site is a navigation, and has its origin.
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Origin: https://evil.example"], False),
    ],
)
def test_a_request_of_another_origins_page_is_refused(fields: list[str], goes_on: bool) -> None:
    if goes_on:
        assert HttpGuard().feed(request(*fields)) == request(*fields)
        return
    with pytest.raises(RequestRefused) as refused:
        HttpGuard().feed(request(*fields))
    assert refused.value.status == 403


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="TLS"),
        pytest.param(b"SSH-2.0-x\r\n\r\n", id="another protocol"),
        pytest.param(request(host=""), id="no host"),
        pytest.param(request("Host: localhost"), id="two hosts"),
        pytest.param(request("Origin: http://localhost:6006", "origin: http://evil.example"), id="two origins"),
        pytest.param(request(line="GET http://evil.example/ HTTP/1.1"), id="a whole address"),
        pytest.param(request(line="CONNECT evil.example:80 HTTP/1.1"), id="a tunnel"),
        pytest.param(request(line="GET / HTTP/2.0"), id="another version"),
        pytest.param(request(line="GET  / HTTP/1.1"), id="two spaces"),
        pytest.param(request(line="GET /a b HTTP/1.1"), id="a space in the path"),
        pytest.param(request(" folded: x"), id="a folded line first"),
        pytest.param(request("A: b", "\tfolded"), id="a folded line"),
        pytest.param(request("A : b"), id="a space before the colon"),
        pytest.param(request("A"), id="no colon"),
        pytest.param(request("A: b\rHost: evil.example"), id="a bare CR"),
        pytest.param(request("A: b\0"), id="a zero byte"),
        pytest.param(request("A: b\nHost: evil.example"), id="a bare LF"),
        pytest.param(request().replace(b"\r\n", b"\n"), id="bare LFs only"),
        pytest.param(b"\r\n" + request(), id="an empty line before"),
        pytest.param(request("Content-Length: 1", "Transfer-Encoding: chunked"), id="two kinds of length"),
        pytest.param(request("Content-Length: 1", "Content-Length: 1"), id="two lengths"),
        pytest.param(request("Content-Length: 1, 1"), id="a list of lengths"),
        pytest.param(request("Content-Length: +1"), id="a sign"),
        pytest.param(request("Content-Length: 0x1"), id="a hexadecimal length"),
        pytest.param(request("Transfer-Encoding: gzip, chunked"), id="another coding"),
        pytest.param(request("Transfer-Encoding: identity"), id="no coding"),
        pytest.param(request("Transfer-Encoding: chunked", line="GET / HTTP/1.0"), id="chunks in HTTP/1.0"),
        pytest.param(request("Transfer-Encoding: chunked") + b"1;a=b\r\n", id="a chunk's extension"),
        pytest.param(request("Transfer-Encoding: chunked") + b"-1\r\n", id="a chunk below zero"),
        pytest.param(request("Transfer-Encoding: chunked") + b"1\r\nab\r\n", id="a chunk that is too long"),
        pytest.param(request("Transfer-Encoding: chunked") + b"0\r\nA: b\r\n\r\n", id="a trailer"),
        pytest.param(request("Transfer-Encoding: chunked") + b"0000000001", id="an endless chunk length"),
        pytest.param(request("Upgrade: websocket", line="POST / HTTP/1.1"), id="a web socket by POST"),
        pytest.param(request("Upgrade: websocket", "Content-Length: 3"), id="a web socket with a body"),
        pytest.param(request("Upgrade: websocket", "Upgrade: h2c"), id="two protocols"),
        pytest.param(request() + SOCKET, id="a web socket on a used connection"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(said: bytes) -> None:
    with pytest.raises(RequestRefused) as refused:
        HttpGuard().feed(said)
    assert refused.value.status == 400


def test_a_head_that_is_too_long_is_refused() -> None:
    for said in (request("A: " + "x" * MOST_HEAD_BYTES), b"GET /" + b"x" * (MOST_HEAD_BYTES + 1)):
        with pytest.raises(RequestRefused) as refused:
            HttpGuard().feed(said)
        assert refused.value.status == 431


@pytest.mark.parametrize(
    ("field", "kept"),
    [
        ("Cookie: _xsrf=1; mine=2; username-localhost-8888=3", "Cookie: mine=2"),
        ("Cookie: _xsrf=1;username-127-0-0-1-8888=2;jupyterhub-session-id=3", ""),
        ("cookie: a=b; _xsrf2=c; username=d", "cookie: a=b; _xsrf2=c; username=d"),
        ("Authorization: token 123", ""),
        ("Authorization: TOKEN 123", ""),
        ("Authorization: Bearer 123", "Authorization: Bearer 123"),
        ("X-XSRFToken: 1", ""),
        ("X-Other: 1", "X-Other: 1"),
    ],
)
def test_jupyters_own_secrets_do_not_reach_the_container(field: str, kept: str) -> None:
    assert HttpGuard().feed(request(field)) == request(*filter(None, [kept]))


def test_each_request_of_a_connection_is_checked_whatever_bodies_stand_between() -> None:
    guard = HttpGuard()
    body = request("Content-Length: 9", line="POST / HTTP/1.1") + b"GET / HTT"
    chunks = (
        request("Transfer-Encoding: chunked", line="PUT /x HTTP/1.1") + b"3\r\nabc\r\n0A\r\n0123456789\r\n0\r\n\r\n"
    )
    said = request() + body + chunks + request("Content-Length: 0") + request()
    assert guard.feed(said) == said
    assert repr(guard) == "<HttpGuard head, 5 requests>"
    with pytest.raises(RequestRefused):
        guard.feed(request(host="evil.example"))


def test_a_connection_is_raw_only_after_the_server_has_agreed_to_a_web_socket() -> None:
    guard = HttpGuard()
    assert guard.feed(SOCKET + b"early") == SOCKET
    assert guard.answered(b"HTTP/1.1 10") == b""
    assert guard.feed(b" too") == b""
    assert guard.answered(b"1 Switching Protocols\r\n\r\n") == b"early too"
    assert guard.feed(b"\0\1raw\r") == b"\0\1raw\r"
    assert guard.answered(b"more") == b""


def test_a_web_socket_that_the_server_refuses_leaves_an_http_connection() -> None:
    guard = HttpGuard()
    assert guard.feed(SOCKET) == SOCKET
    later = request(host="evil.example")
    assert guard.feed(later) == b""
    with pytest.raises(RequestRefused):
        guard.answered(b"HTTP/1.1 404 Not Found\r\n")


def test_too_much_before_the_answer_is_refused() -> None:
    guard = HttpGuard()
    with pytest.raises(RequestRefused):
        guard.feed(SOCKET + b"x" * (MOST_EARLY_BYTES + 1))


def test_no_other_protocol_is_asked_for() -> None:
    asked = request("Upgrade: h2c", "HTTP2-Settings: x", "Connection: close")
    assert HttpGuard().feed(asked) == request("Connection: close")


@given(cuts=st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_requests_are_the_same_however_they_were_cut(cuts: list[int]) -> None:
    said = (
        request("Cookie: _xsrf=1")
        + request("Content-Length: 3", line="POST / HTTP/1.1")
        + b"abc"
        + request("Transfer-Encoding: chunked", line="POST / HTTP/1.1")
        + b"2\r\nab\r\n0\r\n\r\n"
        + request()
    )
    guard, passed, at = HttpGuard(), b"", 0
    for cut in cuts:
        passed += guard.feed(said[at : at + cut])
        at += cut
    passed += guard.feed(said[at:])
    assert passed == said.replace(b"Cookie: _xsrf=1\r\n", b"")


@given(said=st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(said: bytes) -> None:
    with contextlib.suppress(RequestRefused):
        assert HttpGuard().feed(said) == b""
    with contextlib.suppress(RequestRefused):
        HttpGuard().feed(request() + said)


def test_an_answer_of_ours_is_whole_and_ends_the_connection() -> None:
    assert response(403, "No.") == (
        b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 4\r\n"
        b"Cache-Control: no-store\r\nConnection: close\r\n\r\nNo.\n"
    )
