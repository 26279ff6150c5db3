"""hosts/docker/hijack.py: an HTTP connection becomes a stream, and its frames are taken off."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest

from kernelbridge.hosts.docker.hijack import (
    Demultiplexer,
    FramingError,
    HeadReader,
    UpgradeError,
    error_message,
    request,
)


def frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


def test_framing_is_taken_off_however_the_bytes_are_cut() -> None:
    dice = random.Random(7)
    payloads = [(dice.choice([1, 1, 1, 2]), dice.randbytes(dice.choice([0, 1, 7, 8, 9, 5000]))) for _ in range(60)]
    wire = b"".join(frame(kind, payload) for kind, payload in payloads)
    for _ in range(50):
        cuts = sorted(dice.sample(range(1, len(wire)), dice.randint(0, 200)))
        frames, out, err = Demultiplexer(), b"", b""
        for begin, end in pairwise([0, *cuts, len(wire)]):
            stdout, stderr = frames.feed(wire[begin:end])
            out, err = out + stdout, err + stderr
        assert out == b"".join(payload for kind, payload in payloads if kind == 1)
        assert err == b"".join(payload for kind, payload in payloads if kind == 2)


def test_a_chunk_inside_one_frame_is_not_copied() -> None:
    frames = Demultiplexer()
    frames.feed(frame(1, bytes(1 << 20))[: 1 << 10])
    chunk = bytes(1 << 16)
    assert frames.feed(chunk)[0] is chunk


def test_the_engines_own_words_are_not_taken_for_output() -> None:
    with pytest.raises(FramingError, match="exec failed"):
        Demultiplexer().feed(b"OCI runtime exec failed: ...")
    with pytest.raises(FramingError, match="no such file"):
        Demultiplexer().feed(frame(1, b"OCI runtime exec failed: no such file"))
    later = Demultiplexer()
    later.feed(frame(1, b"x"))
    assert later.feed(frame(1, b"OCI runtime exec failed"))[0] == b"OCI runtime exec failed"


def test_an_upgrade_is_read_in_any_pieces() -> None:
    answer = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nUpgrade: tcp\r\n\r\nrest"
    reader = HeadReader()
    heads = [head for head in (reader.feed(bytes([byte])) for byte in answer[:-4]) if head is not None]
    assert [(head.status, head.is_upgraded, head.rest) for head in heads] == [(101, True, b"")]
    whole = HeadReader().feed(answer)
    assert whole is not None
    assert whole.rest == b"rest"


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n\r\n", b"x" * 70_000])
def test_an_answer_that_is_no_http_is_refused(answer: bytes) -> None:
    with pytest.raises(UpgradeError, match="no HTTP"):
        HeadReader().feed(answer)


def test_an_error_answer_gives_its_sentence() -> None:
    assert error_message(b'{"message":"No such container: x"}\n') == "No such container: x"
    assert error_message(b'1f\r\n{"message":"is not running"}\r\n0\r\n\r\n') == "is not running"
    assert error_message(b"plain words") == "plain words"


def test_an_upgrade_asks_for_what_it_says() -> None:
    head, _, body = request("/v1.41/exec/abc/start", {"Tty": False}).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1.41/exec/abc/start HTTP/1.1\r\n")
    assert b"Upgrade: tcp" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {"Tty": False}
