"""What clients and kernels say: messages, signed or broken, at both ends; what debuggers ask."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final, cast

import zmq
from hypothesis import strategies as st

from kernelbridge.channels import messages
from kernelbridge.channels.cell_questions import CellQuestion
from kernelbridge.channels.debug_paths import DebugPaths
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.channels.messages import MessageInvalid, Request, Signer
from kernelbridge.channels.poller import PolledSockets, ZmqPoller
from kernelbridge.channels.proxy import KernelProxy, ProxyOwner
from kernelbridge.channels.waiting import DEFAULT_INFO
from kernelbridge.errors import KernelDied, LinkLost
from kernelbridge.files.path_map import PathMap, PathPair
from kernelbridge.mailbox import LoopMailbox
from kernelbridge.protocol import frames, requests
from kernelbridge.protocol.frames import CONTROL, DELIMITER, IOPUB, SHELL, STDIN, Message
from kernelbridge.protocol.left_output import CellTitles, LeftOutput, plain
from kernelbridge.relay.eviction import OVER, Batch, Notices
from kernelbridge.relay.journal import Journal
from kernelbridge.relay.kernel_client import KernelClient
from kernelbridge.relay.spool import Spool
from tests.fuzz.mutations import TOKENS, mutated, mutated_json, refused

KEY: Final = b"a key"
_HEADER: Final = {"msg_id": "m1", "session": "s", "username": "ada", "version": "5.3", "date": "2026-01-01T00:00:00Z"}
_CELL: Final = {"code": "print(1)", "silent": False, "store_history": True, "allow_stdin": True, "stop_on_error": True}
_PROBE: Final = 'print("p1IPyWidgets:" + _VSCODE_ipywidgets.__version__)'
_DAP: Final = {"type": "request", "seq": 3}
# Channel, type, content, metadata.
_ASKED: Final[tuple[tuple[int, str, dict[str, Any], dict[str, Any]], ...]] = (
    (SHELL, "execute_request", _CELL, {"cellId": "vscode-notebook-cell:/c%3A/Users/ada/a.ipynb#X1"}),
    (SHELL, "execute_request", {**_CELL, "code": _PROBE, "silent": True, "store_history": False}, {}),
    (SHELL, "execute_request", {**_CELL, "code": '__vsc_ipynb_file__ = "/home/a/b.ipynb"', "silent": True}, {}),
    (SHELL, "kernel_info_request", {}, {}),
    (SHELL, "complete_request", {"code": "x", "cursor_pos": 1}, {}),
    (SHELL, "comm_msg", {"comm_id": "c", "data": {}}, {}),
    (SHELL, "shutdown_request", {"restart": True}, {}),
    (CONTROL, "shutdown_request", {"restart": False}, {}),
    (CONTROL, "interrupt_request", {}, {}),
    (CONTROL, "interrupt_request", {}, {"kernelbridge_cell": "m1"}),
    (CONTROL, "debug_request", {**_DAP, "command": "initialize", "arguments": {"clientID": "vscode"}}, {}),
    (CONTROL, "debug_request", {**_DAP, "command": "debugInfo"}, {}),
    (CONTROL, "debug_request", {**_DAP, "command": "attach", "arguments": {"pathMappings": []}}, {}),
    (CONTROL, "usage_request", {}, {}),
    (STDIN, "input_reply", {"value": "secret"}, {}),
)
# What kernels say: channel, type, content.
_ERROR: Final = {
    "ename": "E",
    "evalue": "x",
    "traceback": ["File /workspace/a.py:3, in f()", "\x1b[32m/workspace/b.py\x1b[0m"],
}
_UPDATE: Final = {"comm_id": "c", "data": {"method": "update", "state": {"value": 1}}}
_SAID: Final[tuple[tuple[int, str, dict[str, Any]], ...]] = (
    (IOPUB, "stream", {"name": "stdout", "text": "1\n"}),
    (IOPUB, "status", {"execution_state": "busy"}),
    (IOPUB, "status", {"execution_state": "idle"}),
    (IOPUB, "execute_input", {"code": "print(1)", "execution_count": 3}),
    (IOPUB, "display_data", {"data": {"text/plain": "x"}, "metadata": {}, "transient": {}}),
    (IOPUB, "error", _ERROR),
    (IOPUB, "clear_output", {"wait": True}),
    (IOPUB, "comm_open", {"comm_id": "c", "target_name": "t", "data": {}}),
    (IOPUB, "comm_msg", _UPDATE),
    (IOPUB, "debug_event", {"type": "event", "event": "stopped", "body": {"path": "\\tmp\\a"}}),
    (SHELL, "execute_reply", {"status": "ok", "execution_count": 3}),
    (SHELL, "kernel_info_reply", dict(DEFAULT_INFO)),
    (CONTROL, "debug_reply", {**_DAP, "type": "response", "body": {"tmpFilePrefix": "/tmp/x/ipykernel_7/"}}),
    (CONTROL, "interrupt_reply", {"status": "ok", "kernelbridge_sent": True}),
    (STDIN, "input_request", {"prompt": "?", "password": False}),
)


def _tables(kind: str, content: Any, metadata: Any = None, **header: Any) -> list[Any]:
    return [{**_HEADER, "msg_type": kind, **header}, {}, metadata or {}, content]


# [channel, [header, parent header, metadata, content], how the message is broken]
ASKED: Final = st.tuples(
    st.lists(
        mutated_json([[channel, _tables(kind, content, metadata)] for channel, kind, content, metadata in _ASKED]),
        min_size=1,
        max_size=6,
    ),
    st.lists(
        mutated_json([[channel, _tables(kind, content)] for channel, kind, content in _SAID]),
        max_size=4,
    ),
    st.integers(0, 1 << 16),
)


class _Context:
    """Sockets that keep what is sent, in the place of a zmq.Context."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, list[bytes]]] = []

    def socket(self, kind: int) -> Any:
        return _Socket(self, kind)


class _Socket:
    def __init__(self, context: _Context, kind: int) -> None:
        self._context = context
        self.kind = kind
        self.linger = self.sndhwm = 0
        self.arrived: deque[list[bytes]] = deque()

    def setsockopt(self, option: int, value: int) -> None: ...
    def bind(self, address: str) -> None: ...
    def close(self) -> None: ...

    def recv_multipart(self, flags: int) -> list[bytes]:
        if not self.arrived:
            raise zmq.Again
        return self.arrived.popleft()

    def send_multipart(self, parts: Sequence[Any], flags: int = 0, **how: Any) -> Any:
        self._context.sent.append((self.kind, [bytes(part) for part in parts]))
        return zmq.MessageTracker() if how else None


class _Poller:
    """Runs what is posted at once: the fuzz has one thread."""

    def __init__(self) -> None:
        self.context = _Context()
        self.sockets: PolledSockets | None = None

    def add(self, sockets: PolledSockets) -> None:
        self.sockets = sockets
        sockets.bind(cast(Any, self.context))

    def remove(self, sockets: PolledSockets) -> None: ...

    def post(self, function: Callable[..., object], *args: Any, of: object = None) -> None:
        function(*args)

    def call(self, function: Callable[[], Any], *, of: object = None) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function())
        return done


class _Mailbox:
    def post(self, function: Callable[..., object], *args: Any) -> None:
        function(*args)


def _paths(*, is_windows: bool) -> DebugPaths:
    local = r"c:\Users\ann\proj" if is_windows else "/home/ann/proj"
    pairs = PathMap([PathPair(local_path=local, container_path="/workspace")], is_windows=is_windows)
    return DebugPaths(pairs.path_mappings(), to_local=pairs.to_local, is_windows=is_windows)


def _made(number: int) -> tuple[KernelProxy, _Poller, list[Any]]:
    poller, heard = _Poller(), list[Any]()
    owner = ProxyOwner(
        mailbox=cast(LoopMailbox, _Mailbox()),
        requested=heard.extend,
        shutdown_requested=heard.append,
        widgets_learned=heard.append,
        cell_asked=heard.append,
        cell_waits=lambda: None,
        only_own=bool(number & 1),
        paths=_paths(is_windows=bool(number & 2)) if number & 4 else None,
    )
    endpoints = Endpoints(transport="tcp", ip="127.0.0.1", ports=(1, 2, 3, 4, 5), key=KEY if number & 8 else b"")
    proxy = KernelProxy(cast(ZmqPoller, poller), endpoints, session="kernel", info=dict(DEFAULT_INFO), owner=owner)
    return proxy, poller, heard


def _bytes(table: Any) -> bytes:
    return json.dumps(table).encode()


def _written(one: Any, signer: Signer, number: int) -> tuple[int, list[bytes]]:
    """Return an example's message as the parts that a client sends."""
    channel, tables = one if isinstance(one, list) and len(one) == 2 else (SHELL, one)
    channel = channel if type(channel) is int and channel in (SHELL, STDIN, CONTROL) else SHELL
    written = [_bytes(table) for table in (tables if isinstance(tables, list) else [tables])][:40]
    parts = [b"client", DELIMITER, signer.sign(written[:4]), *written]
    if number % 16 == 0:
        # Broken as bytes: a part is lost, doubled, or another.
        at = number // 16 % (len(parts) + 1)
        parts = [*parts[:at], TOKENS[number // 256 % len(TOKENS)], *parts[at + 1 :]]
    return channel, parts


def _enter(proxy: KernelProxy, number: int) -> None:
    """Let the kernel be as far as the example says."""
    match number % 5:
        case 0:
            proxy.progress("pulling")
        case 1:
            proxy.open(launch=1, info=dict(DEFAULT_INFO), busy=_HEADER if number & 16 else None)
            proxy.expect_left_output()
        case 2:
            proxy.open(launch=1, info=dict(DEFAULT_INFO), refuse_debug="no debugger")
            proxy.link_lost(LinkLost(host="lab"))
        case 3:
            proxy.fail(KernelDied(environment="torch", host="lab", how="exit code 3"))
        case _:
            proxy.set_kernel_info(dict(DEFAULT_INFO), "8.1.1")


def check_asked(example: tuple[list[Any], list[Any], int]) -> None:
    """A signed message is answered, kept or passed on, and any other is dropped; the kernel's go on or are dropped.

    Nothing else is raised, in no state of the kernel, and what goes to clients is always a message.
    """
    asked, said, number = example
    proxy, poller, _ = _made(number)
    raw: Any = proxy
    signer = Signer(KEY if number & 8 else b"")
    for at, one in enumerate([None, *asked]):
        if at == (number >> 8) % 3:
            _enter(proxy, number)
            proxy.ask(CellQuestion(prompt="password?", answered=lambda answer: None))
        if at:
            channel, parts = _written(one, signer, number >> 4 if at == 1 else 1)
            request = refused(partial(messages.parse, channel, parts, raw._signer), MessageInvalid)
            if request is not None:
                refused(partial(raw._receive, request), frames.MessageTooLong)
                _read_request(request)
    for one in said:
        channel, tables = one if isinstance(one, list) and len(one) == 2 else (IOPUB, one)
        channel = channel if type(channel) is int and 0 <= channel < 6 else IOPUB
        topic = (
            str(tables[0].get("msg_type", ""))
            if isinstance(tables, list) and tables and isinstance(tables[0], dict)
            else ""
        )
        first = topic.encode("utf-8", "replace") if channel == IOPUB else b"client"
        parts = [
            first,
            DELIMITER,
            b"",
            *(_bytes(table) for table in (tables if isinstance(tables, list) else [tables])[:9]),
        ]
        _deliver(raw, Message(channel, 1, parts))
        _read_said(parts)
    raw._tick()
    if number & 32:
        proxy.restarting("again", LinkLost(host="lab"))
        proxy.open(launch=2, info=dict(DEFAULT_INFO))
    assert repr(proxy)
    proxy.close()
    for kind, parts in poller.context.sent:
        if kind == zmq.ROUTER and len(parts) > 1:
            at = parts.index(DELIMITER)
            assert len(parts) >= at + 6


def _deliver(proxy: Any, message: Message) -> None:
    """Do as proxy._deliver, but let through what that would log: all that is documented is MessageInvalid."""
    try:
        messages.check(message.parts)
    except MessageInvalid:
        return
    if proxy._left is not None and proxy._was_left(message):
        return
    if proxy._passes(message):
        proxy._send(message.channel, proxy._session.renamed(proxy._linked(message)))
    if message.channel == SHELL and proxy._interrupts:
        proxy._send_own(proxy._interrupts.cell_replied(messages.parent_id(message.parts)))


def _read_request(request: Request) -> None:
    """Do with a request what the relay's side does; it knows bytes alone."""
    read = requests.read(request.parts)
    assert read is None or read.kind == request.kind
    if read is not None:
        requests.unknown(read)
        for _, parts in requests.Voice("s").answer(SHELL, read, {"status": "ok"}):
            assert requests.read(parts) is None
    if request.kind == requests.INTERRUPT:
        named = requests.read(requests.naming(request.parts, "m7"))
        assert named is not None and named.cell == "m7"


def _read_said(parts: Sequence[frames.Buffer]) -> None:
    titles = CellTitles()
    left = LeftOutput(titles)
    titles.note(parts)
    left.add(parts)
    plain(left.flush())


def _relay_samples() -> list[Any]:
    return [[channel, _tables(kind, content)] for channel, kind, content in _SAID] + [
        [channel, _tables(kind, content, metadata)] for channel, kind, content, metadata in _ASKED
    ]


# What passes a relay: parts as bytes, since neither a client nor a kernel has to write JSON.
_RAW_PART: Final = mutated([_bytes(table) for _, tables in _relay_samples() for table in tables] + [b"", DELIMITER])
RELAYED: Final = st.tuples(
    st.lists(mutated_json(_relay_samples()), max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.lists(_RAW_PART, max_size=9)), max_size=3),
)


class _KernelSocket:
    def __init__(self) -> None:
        self.arrived: deque[list[bytes]] = deque()

    def send_multipart(self, parts: Sequence[Any]) -> None: ...
    def close(self) -> None: ...

    def recv_multipart(self, flags: int) -> list[bytes]:
        if not self.arrived:
            raise zmq.Again
        return self.arrived.popleft()


def check_relayed(example: tuple[list[Any], list[tuple[int, list[bytes]]]]) -> None:
    """A relay passes on, answers or counts whatever a client and a kernel say, and keeps it in a bounded journal."""
    tables, raw = example
    passed: list[tuple[int, Sequence[frames.Buffer]]] = []
    dropped: list[Any] = []
    client = KernelClient(
        lambda *one: passed.append(one), lambda info: None, lambda: None, lambda *bad: dropped.append(bad)
    )
    made: Any = client
    made.zmq = zmq
    made.sockets = {channel: _KernelSocket() for channel in (SHELL, IOPUB, STDIN, CONTROL)}
    made._iopub_seen, made.info = True, dict(DEFAULT_INFO)
    client.release()
    all_parts = [
        (one[0], [b"status", DELIMITER, b"", *map(_bytes, one[1][:9])])
        for one in tables
        if isinstance(one, list) and len(one) == 2 and isinstance(one[0], int) and isinstance(one[1], list)
    ]
    for channel, parts in [*all_parts, *raw]:
        if channel in made.sockets:
            client.say(channel, list(parts))
            client.refusal(Message(channel, 1, parts))
            made.sockets[channel].arrived.append(list(parts) or [b""])
            client.listen(dict.fromkeys(made.sockets.values(), 1))
    client.do_due(float("1e12"))
    assert client.running is None or isinstance(client.running, dict)
    journal = Journal(Spool(None), limit_bytes=2000, memory_bytes=2000)
    notices, batch = Notices(), Batch()
    packed = [frames.pack(Message(channel % 6, 1, [bytes(part) for part in parts])) for channel, parts in passed]
    for one in packed * 3:
        journal.add(one)
    batch.evict(packed, OVER, notices)
    while (out := journal.pop()) is not None:
        frames.unpack(out)


_FOLDER: Final = "/workspace"
_PLACES: Final = (
    "/workspace",
    "/workspace/a/b.py",
    "/workspacex/a",
    "/tmp/x",
    "",
    ".",
    "/workspace/../etc",
    "//workspace//a",
)
DEBUGGED: Final = st.tuples(
    mutated_json(
        [content for _, kind, content, _ in _ASKED if kind == "debug_request"]
        + [_ERROR, {"body": {"path": "/tmp\\a.py"}}]
    ),
    mutated([place.encode() for place in _PLACES]).map(lambda data: data.decode("utf-8", "replace")),
    st.booleans(),
)


def check_debugged(example: tuple[Any, str, bool]) -> None:
    """What an editor is told of paths: nothing but paths changes, and a path that was mapped leads back."""
    content, path, is_windows = example
    paths = _paths(is_windows=is_windows)
    header = {**_HEADER, "msg_type": "debug_request"}
    for told in ({**_DAP, "command": "initialize", "arguments": {"clientID": "vscode"}}, content):
        parts = (b"client", DELIMITER, b"", _bytes(header), b"{}", b"{}", _bytes(told))
        request = Request(channel=CONTROL, identities=(b"client",), header=header, parts=parts)
        written = paths.rewritten(request)
        if written is not request:
            assert written.parts[:-1] == request.parts[:-1]
            assert {**request.content, "arguments": 0} == {**written.content, "arguments": 0} or _has_nan(told)
        if isinstance(told, dict):
            reply = [b"client", DELIMITER, b"", _bytes(header), b"{}", b"{}", _bytes(told)]
            changed = paths.replied("m1", reply)
            assert is_windows or changed == reply
            linked = paths.with_local_links(reply)
            assert json.loads(bytes(linked[-1])).keys() == told.keys()
    maps = PathMap([PathPair(local_path="/home/ann/proj", container_path=_FOLDER)], is_windows=False)
    local = maps.to_local(path)
    if local is not None:
        back = PathMap([PathPair(local_path=_FOLDER, container_path="/home/ann/proj")], is_windows=False).to_local(
            local
        )
        assert back is not None and PurePosixPath(back).is_relative_to(_FOLDER)


def _has_nan(told: Any) -> bool:
    return "NaN" in json.dumps(told)
