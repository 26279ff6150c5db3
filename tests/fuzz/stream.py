"""What comes over a relay's stream, at both ends of it: frames, lanes, handshake, ports, commands."""

from __future__ import annotations

import itertools
import json
from functools import partial
from typing import Any, Final

from hypothesis import strategies as st

from kernelbridge.protocol import frames, handshake, port_mux, terminal
from kernelbridge.protocol.frames import ACK, DATA, IOPUB, SHELL, Decoder, Frame, Message, WireError
from kernelbridge.protocol.handshake import (
    Busy,
    DroppedEvent,
    ExitedEvent,
    FailedEvent,
    Goodbye,
    GpuLostEvent,
    GpuStatus,
    Hello,
    InputEvent,
    LeftOutputEvent,
    MismatchedGpus,
    NoticeEvent,
    ReadyEvent,
    Status,
    TimeLeft,
    Welcome,
)
from kernelbridge.protocol.json_object import JsonObject, parse_object
from kernelbridge.protocol.mount_table import file_system
from kernelbridge.protocol.port_mux import Opened, Opening, PortMux, Received
from kernelbridge.protocol.session import Queue, Session
from tests.fuzz.mutations import mutated, mutated_json, refused

_KEYS: Final = {"msg_id": "m1", "msg_type": "execute_request", "session": "s", "version": "5.3"}
_PARTS: Final = [b"client", frames.DELIMITER, b"", json.dumps(_KEYS).encode(), b"{}", b"{}", b'{"code": "1"}']


def _streams() -> list[bytes]:
    packed = frames.pack(Message(SHELL, 1, _PARTS))
    data = [frames.head(DATA, len(packed), lane, number) + packed for number in (1, 2) for lane in (0, 1)]
    cut = [frames.head(DATA, 40, frames.MORE, 3) + packed[:40], frames.head(DATA, len(packed) - 40, 0, 4) + packed[40:]]
    others = [frames.acknowledgement(2, 1), frames.frame(frames.PING, b"x"), frames.frame(frames.PONG)]
    return [b"".join([*data, *others]), b"".join([*others, *cut]), frames.frame(frames.HELLO, b"{}")]


_CUTS: Final = st.lists(st.integers(1, 400), max_size=12)
STREAM: Final = st.tuples(mutated(_streams()), _CUTS)


def _decoded(pieces: list[bytes]) -> tuple[list[tuple[int, int, int, bytes]], bool]:
    """Return what a decoder makes of some pieces, and whether it refused."""
    decoder, found = Decoder(), list[tuple[int, int, int, bytes]]()
    for piece in pieces:
        try:
            came = decoder.feed(piece)
        except WireError:
            return found, True
        found += [(one.kind, one.flags, one.number, bytes(one.payload)) for one in came]
        assert decoder._held_bytes <= decoder._needed_bytes <= 14 + frames._LONGEST_BYTES
    return found, False


def check_stream(example: tuple[bytes, list[int]]) -> None:
    """Bytes become the same frames wherever they are cut; those go into a session, which takes or refuses them."""
    data, cuts = example
    places = [at for at in itertools.accumulate([0, *cuts]) if at < len(data)]
    pieces = [data[at:end] for at, end in itertools.pairwise([*places, len(data)])]
    found, is_refused = _decoded(pieces)
    whole, is_whole_refused = _decoded([data])
    assert is_refused == is_whole_refused
    assert is_refused or found == whole
    for session in (Session(), Session(Queue())):
        session.add(frames.ORDERED, frames.pack(Message(SHELL, 1, _PARTS)))
        session.outgoing(0.0)
        for kind, flags, number, payload in found:
            taken = refused(partial(session.accept, Frame(kind, flags, number, payload), 1.0), WireError)
            assert sum(lane.begun_bytes for lane in session.receive_lanes) <= len(data)
            if taken is not None:
                message = refused(partial(frames.unpack, taken), WireError)
                if message is not None:
                    parts = [bytes(part) for part in message.parts]
                    assert frames.pack(Message(message.channel, message.launch, parts)) == bytes(taken)
            if kind == ACK:
                refused(partial(frames.acknowledged, payload), WireError)
        session.outgoing(2.0)


_INFO: Final = {"banner": "Python", "language_info": {"name": "python"}, "help_links": [], "status": "ok"}
_EXITED: Final = ExitedEvent(3, -9, True, False, "Killed", "", ("/tmp",), 64)
_STATUS: Final = Status(
    state="busy",
    launch=3,
    ready=True,
    info=dict(_INFO),
    running=dict(_KEYS),
    lacks="",
    outcome=_EXITED,
    undelivered_bytes=9,
    deadline=TimeLeft(5.5, "lost_grace"),
    persist=False,
    claim=True,
    owner="m:p:1",
    who="ada@lap",
    held_seconds=1.0,
    alone_seconds=None,
    gpus=GpuStatus(("GPU-1",), 1, False),
)
_EVENTS: Final = (
    ReadyEvent(1, dict(_INFO), "failed"),
    FailedEvent(1, gpus=MismatchedGpus(("GPU-1",), ("GPU-2",))),
    FailedEvent(1, lacks="ipykernel", setup="pip"),
    _EXITED,
    GpuLostEvent(1, dict(_KEYS)),
    DroppedEvent(1, dict(_KEYS), 4, 500, "size"),
    LeftOutputEvent(1, {"m1": [3, "x = 1"], "m2": [None, ""]}),
    NoticeEvent(1, "moved", "/w", "no right"),
    InputEvent(1, 77),
)
_ORDER: Final = {"argv": ["sh", "-c", "x"], "env": {"A": "b"}, "folder": "~", "window": {"columns": 80, "rows": 24}}
# What reads each, and what writes it again; None: nothing does.
_SAID: Final[tuple[tuple[Any, Any, Any], ...]] = (
    *((one.to_dict(), handshake.event_from, None) for one in _EVENTS),
    (_STATUS.to_dict(), Status.from_dict, None),
    (Welcome(_STATUS, (3, 4), "e").to_dict(), Welcome.from_dict, None),
    (Hello("k", "m:p:1", "ada", "s", (1, 2), True, "c", "attach", True).to_dict(), Hello.from_dict, None),
    (Hello("k", ask="status").to_dict(), Hello.from_dict, None),
    (Busy("held", "ada", "m:p:1", 3.0, 2, "0.1").to_dict(), Busy.from_dict, None),
    (Goodbye(True, "c", True)._asdict(), Goodbye.from_dict, lambda one: one._asdict()),
    (_ORDER, terminal.CommandOrder.from_dict, lambda one: json.loads(one.frame()[14:])),
    ({"code": 1, "signal": 9}, terminal.CommandEnd.from_dict, lambda one: one._asdict()),
    ({"columns": 80, "rows": 24}, terminal.WindowSize.from_dict, None),
)
# Each with what reads it: [number, what is said].
SAID: Final = mutated_json([[number, said] for number, (said, _, _) in enumerate(_SAID)])


def check_said(example: Any) -> None:
    """What is understood of the other end's JSON is written and understood again as the same; all else is refused."""
    match example:
        case [int() as number, said]:
            read, write = _SAID[number % len(_SAID)][1:]
        case said:
            read, write = _SAID[0][1:]
    table = refused(lambda: parse_object(json.dumps(said).encode()), WireError)
    if table is None:
        return
    found = refused(lambda: read(table), WireError)
    if found is not None:
        # As it is written: a list that was a tuple is the same there.
        written = json.dumps(found.to_dict() if write is None else write(found))
        again = read(parse_object(written.encode()))
        assert json.dumps(again.to_dict() if write is None else write(again)) == written
        assert "\x1b" not in repr(found) and repr(found)


RAW: Final = mutated([json.dumps(said).encode() for said, _, _ in _SAID] + [b'{"ports": [8888, 1]}\n', b"[" * 100_000])


def check_raw(example: bytes) -> None:
    """Bytes in the place of JSON are an object or refused."""
    refused(lambda: JsonObject(parse_object(example)), WireError)
    ports = refused(lambda: port_mux.ordered_ports(example), WireError)
    assert ports is None or port_mux.ordered_ports(port_mux.port_order(ports)) == sorted(set(ports))


def _talks() -> list[bytes]:
    """What both ends of a mux say in a short talk."""
    here, there = PortMux(opens=True), PortMux(opens=False)
    said: list[bytes] = []
    for port in (8888, 6006):
        here.open(port)
    here.ping()
    said.append(here.take_out())
    for event in there.feed(said[-1]):
        assert isinstance(event, Opening)
        if event.port == 8888:
            there.accept(event.connection)
        else:
            there.refuse(event.connection, "nobody listens")
    there.send(1, b"x" * 5000)
    there.took(1, 0)
    said.append(there.take_out())
    here.feed(said[-1])
    here.send(1, b"GET /")
    here.took(1, 5000)
    here.send_eof(1)
    return [said[0] + here.take_out(), said[1] + b""]


TALK: Final = st.tuples(mutated(_talks()), st.booleans(), st.integers(1, 5000))


def check_talk(example: tuple[bytes, bool, int]) -> None:
    """A mux takes what its other end may say and refuses all else; it holds no more than its windows."""
    data, opens, step = example
    mux, untaken = PortMux(opens=opens), 0
    if opens:
        for port in (8888, 6006):
            mux.open(port)
    for at in range(0, len(data), step):
        events = refused(partial(mux.feed, data[at : at + step]), WireError)
        if events is None:
            return
        for event in events:
            if isinstance(event, Opening) and event.port % 2 == 0:
                mux.accept(event.connection)
            if isinstance(event, Received):
                untaken += len(event.piece)
                mux.took(event.connection, len(event.piece))
            if isinstance(event, Opened):
                mux.send(event.connection, b"x" * mux.credit(event.connection))
        assert len(mux._connections) <= port_mux.MOST_CONNECTIONS
        assert len(mux._held) <= port_mux.MUX_PIECE_BYTES + 7
    assert untaken <= len(data)


MOUNTS: Final = mutated(
    [b"36 35 98:0 /a /b rw shared:1 - ext4 /dev/sda rw\n37 35 0:3 / /data\\040x ro - nfs4 h:/e ro\n"]
)


def check_mounts(example: bytes) -> None:
    """A container's table of mounts is anybody's text."""
    file_system("/data x/y", example.decode("utf-8", "replace"))


_MESSAGES: Final = st.builds(
    lambda channel, launch, parts: (channel, launch, parts),
    st.integers(0, 255),
    st.integers(0, (1 << 32) - 1),
    st.lists(st.binary(max_size=60), max_size=9),
)
MESSAGE: Final = st.one_of(_MESSAGES, st.just((IOPUB, 1, _PARTS)))


def check_message(example: tuple[int, int, list[bytes]]) -> None:
    """A message comes out as it went in, alone and cut into the frames of a session."""
    channel, launch, parts = example
    packed = frames.pack(Message(channel, launch, parts))
    message = frames.unpack(packed)
    assert (message.channel, message.launch, [bytes(part) for part in message.parts]) == example
    here, there, decoder = Session(), Session(Queue()), Decoder()
    there.add(frames.ORDERED, packed)
    stream = b"".join(map(bytes, there.outgoing(0.0)))
    came = [one for one in (here.accept(frame, 0.0) for frame in decoder.feed(stream)) if one is not None]
    assert list(map(bytes, came)) == [packed]
