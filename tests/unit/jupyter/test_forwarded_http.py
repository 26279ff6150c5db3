"""jupyter/forwarded_http.py: what passes between a browser and a forwarded port, and under which address."""

from __future__ import annotations

import pytest

from kernelbridge.jupyter import forwarded_http
from kernelbridge.jupyter.forwarded_http import SANDBOX, PageAddress, ScriptInsert, page_address, pass_of

PASS = pass_of(b"k" * 32, "aabb1111", 6006)
ADDRESS = page_address(f"/lab/kernelbridge/forward/aabb/6006/~{PASS}/x", "/lab/")
AUTHORITY = "127.0.0.1:7007"


def address() -> PageAddress:
    assert ADDRESS is not None
    return ADDRESS


@pytest.mark.parametrize(
    ("path", "base", "parts"),
    [
        (f"/kernelbridge/forward/aabb/6006/~{PASS}/a/b", "/", ("aabb", 6006, PASS, "/a/b")),
        (f"/lab/kernelbridge/forward/aabb/6006/~{PASS}", "/lab/", ("aabb", 6006, PASS, "")),
        ("/kernelbridge/forward/aabb/6006", "/", ("aabb", 6006, "", "")),
        ("/kernelbridge/forward/aabb/6006/", "/", ("aabb", 6006, "", "/")),
        # Encoded as it was sent.
        ("/kernelbridge/forward/aabb/6006/a%2F..%2Fb", "/", ("aabb", 6006, "", "/a%2F..%2Fb")),
        # What only looks like a pass is the program's.
        ("/kernelbridge/forward/aabb/6006/~user/", "/", ("aabb", 6006, "", "/~user/")),
        (f"/kernelbridge/forward/aabb/6006/~{PASS}x/", "/", ("aabb", 6006, "", f"/~{PASS}x/")),
        ("/kernelbridge/forward/aabb/6006x", "/", None),
        ("/kernelbridge/forward/AABB/6006/", "/", None),
        ("/kernelbridge/forward/aabb/6006/", "/lab/", None),
        ("/kernelbridge/kernels", "/", None),
    ],
)
def test_an_address_is_taken_apart(path: str, base: str, parts: tuple[str, int, str, str] | None) -> None:
    found = page_address(path, base)
    assert (found and (found.kernel, found.port, found.given_pass, found.path)) == parts


def test_what_stands_before_the_programs_own_paths_is_its_prefix() -> None:
    assert address().prefix == f"/lab/kernelbridge/forward/aabb/6006/~{PASS}"


def test_a_pass_opens_one_port_of_one_kernel_of_one_server() -> None:
    others = {
        pass_of(b"k" * 32, "aabb1112", 6006),
        pass_of(b"k" * 32, "aabb1111", 6007),
        pass_of(b"l" * 32, "aabb1111", 6006),
    }
    assert len(others | {PASS}) == 4
    assert pass_of(b"k" * 32, "aabb1111", 6006) == PASS


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("token=secret", ""),
        ("a=1&token=secret&b=%20", "a=1&b=%20"),
        ("%74oken=secret&tokens=1", "tokens=1"),
        ("a&b=&&c==", "a&b=&c=="),
        ("", ""),
    ],
)
def test_jupyters_token_is_taken_out_of_a_query_and_the_rest_stays_as_it_was_written(query: str, kept: str) -> None:
    assert forwarded_http.without_token(query) == kept


@pytest.mark.parametrize(
    "name",
    [
        *("Cookie", "authorization", "X-XSRFToken", "Referer", "X-Forwarded-Host", "Forwarded", "Sec-Fetch-Site"),
        *("Connection", "Keep-Alive", "TE", "Transfer-Encoding", "Upgrade", "Proxy-Authorization", "Expect"),
    ],
)
def test_what_is_jupyters_or_of_one_connection_does_not_reach_the_program(name: str) -> None:
    sent = forwarded_http.to_container(
        [(name, "1"), ("Accept", "*/*")], address(), authority=AUTHORITY, host="lab:8888", protocol="https"
    )
    assert sent == [
        ("Host", AUTHORITY),
        ("X-Forwarded-Host", "lab:8888"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Prefix", address().prefix),
        ("Accept", "*/*"),
    ]


def test_the_program_sees_its_own_origin_and_no_header_that_the_connection_names() -> None:
    given = [("Origin", "null"), ("Host", "lab"), ("Connection", "close, X-Mine"), ("X-Mine", "1"), ("X-Other", "1")]
    sent = forwarded_http.to_container(given, address(), authority=AUTHORITY, host="lab", protocol="http")
    assert sent[4:] == [("Origin", f"http://{AUTHORITY}"), ("X-Other", "1")]


@pytest.mark.parametrize(
    "name",
    [
        *("Set-Cookie", "Service-Worker-Allowed", "Access-Control-Allow-Origin", "access-control-allow-credentials"),
        *("Clear-Site-Data", "Strict-Transport-Security", "Alt-Svc", "Refresh", "Connection", "Transfer-Encoding"),
    ],
)
def test_what_would_touch_jupyters_origin_does_not_reach_the_browser(name: str) -> None:
    given = [(name, "1"), ("Content-Type", "text/html")]
    told = forwarded_http.to_browser(given, address(), authority=AUTHORITY, is_null_origin=False)
    own = [("Content-Security-Policy", SANDBOX), ("Referrer-Policy", "no-referrer")]
    assert told == [*own, ("Content-Type", "text/html")]


def test_the_programs_own_policy_stands_beside_the_sandbox() -> None:
    policy = ("Content-Security-Policy", "sandbox allow-same-origin allow-scripts")
    told = forwarded_http.to_browser([policy], address(), authority=AUTHORITY, is_null_origin=False)
    # A browser keeps to both: what one of them forbids is forbidden.
    assert [value for name, value in told if name == policy[0]] == [SANDBOX, policy[1]]
    assert "allow-same-origin" not in SANDBOX


def test_a_page_in_the_sandbox_may_read_what_it_asks_for() -> None:
    given = [("Access-Control-Allow-Origin", "*")]
    told = dict(forwarded_http.to_browser(given, address(), authority=AUTHORITY, is_null_origin=True))
    assert told["Access-Control-Allow-Origin"] == "null"
    assert forwarded_http.cors(False) == []


@pytest.mark.parametrize(
    ("location", "rewritten"),
    [
        ("/login?next=%2F", "PREFIX/login?next=%2F"),
        ("/", "PREFIX/"),
        ("next", "next"),
        ("?a=1", "?a=1"),
        (f"http://{AUTHORITY}/a#b", "PREFIX/a#b"),
        (f"http://{AUTHORITY}", "PREFIX/"),
        (f"//{AUTHORITY}/a", "PREFIX/a"),
        ("https://elsewhere.example/a", "https://elsewhere.example/a"),
        ("//elsewhere.example/a", "//elsewhere.example/a"),
        ("http://[", "PREFIX/"),
    ],
)
def test_a_redirect_stays_below_the_programs_address(location: str, rewritten: str) -> None:
    found = forwarded_http.rewritten_location(location, address(), AUTHORITY)
    assert found == rewritten.replace("PREFIX", address().prefix)


TAG = f'<script src="{address().prefix}/.kernelbridge/storage.js"></script>'


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("<!doctype html><html><HEAD lang=en><script>", f"<!doctype html><html><HEAD lang=en>{TAG}<script>"),
        ("<!DOCTYPE html><title>x</title>", f"<!DOCTYPE html>{TAG}<title>x</title>"),
        ("<header>no head</header>", "<header>no head</header>"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_page_gets_a_storage_before_its_own_scripts_however_it_was_cut(page: str, shown: str, size: int) -> None:
    insert = ScriptInsert(address())
    pieces = [page.encode()[at : at + size] for at in range(0, len(page), size)]
    assert b"".join([*map(insert.feed, pieces), insert.rest()]).decode() == shown


def test_a_page_without_a_head_is_not_held_for_ever() -> None:
    insert = ScriptInsert(address())
    assert insert.feed(b"x" * 20_000) == b"x" * 20_000
    assert insert.feed(b"<head>") == b"<head>"


@pytest.mark.parametrize(
    ("headers", "is_page"),
    [
        ({"Sec-Fetch-Dest": "document"}, True),
        ({"Sec-Fetch-Dest": "iframe"}, True),
        ({"Sec-Fetch-Dest": "empty", "Accept": "text/html"}, False),
        ({"Accept": "text/html,*/*"}, True),
        ({"Accept": "*/*"}, False),
        ({}, False),
    ],
)
def test_a_browser_says_whether_it_wants_a_page(headers: dict[str, str], is_page: bool) -> None:
    assert forwarded_http.is_for_page(headers) is is_page
