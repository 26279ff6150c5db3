"""What a front-end has of one kernel: a page's websocket, or ZMQ sockets; either may be joined anew as the same client.

Nothing is kept here: each message goes to whoever hears it, on a thread of the wire's.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import websocket
import zmq
from jupyter_client.session import Session

from tests.clients.blocking import Message
from tests.clients.page import call
from tests.clients.server import JupyterServer
from tests.rig.daemon import SLOW

Hear = Callable[[Message], None]
_EXECUTE = {"silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
# So long nothing must come before sockets are closed whose other end is gone.
_DRAIN_SECONDS = 0.5
_SUBSCRIBE_SECONDS = 60.0


class PageWire:
    """A notebook's page of a Jupyter server, with a session of its own."""

    def __init__(self, server: JupyterServer, spec: str, path: str, hear: Hear) -> None:
        self.server = server
        self._hear = hear
        self._client = uuid.uuid4().hex
        self._socket: websocket.WebSocket | None = None
        self._reader: threading.Thread | None = None
        body = {"path": path, "name": path, "type": "notebook", "kernel": {"name": spec}}
        made = call(server, "POST", "api/sessions", body)
        self.session_id, self.kernel_id = str(made["id"]), str(made["kernel"]["id"])

    def join(self) -> None:
        """Open the websocket and ask for kernel_info, as JupyterLab does."""
        address = self.server.url.replace("http", "ws", 1)
        self._socket = websocket.create_connection(
            f"{address}api/kernels/{self.kernel_id}/channels?session_id={self._client}",
            header=[f"Authorization: token {self.server.token}"],
            timeout=60 * SLOW,
        )
        self._reader = threading.Thread(target=self._read, args=(self._socket,), daemon=True)
        self._reader.start()
        self._send("kernel_info_request", {}, uuid.uuid4().hex)

    def part(self, *, is_server_gone: bool = False) -> None:
        """Close the websocket; the kernel runs on. Of a server that has ended all is read first that it still sent."""
        if self._socket is not None and self._reader is not None:
            if is_server_gone:
                self._reader.join(120)
            self._socket.close()
            self._reader.join(20)
            self._socket = self._reader = None

    def _read(self, opened: websocket.WebSocket) -> None:
        opened.settimeout(None)
        with contextlib.suppress(websocket.WebSocketException, OSError):
            while text := opened.recv():
                self._hear(json.loads(text))

    def execute(self, code: str, identity: str) -> None:
        """Send a cell."""
        self._send("execute_request", {"code": code, **_EXECUTE}, identity)

    def _send(self, kind: str, content: dict[str, Any], identity: str) -> None:
        header = {"msg_id": identity, "msg_type": kind, "session": self._client, "username": "page"}
        message = {"header": header | {"version": "5.3", "date": "2000-01-01T00:00:00Z"}, "content": content}
        assert self._socket is not None
        self._socket.send(json.dumps({**message, "channel": "shell", "parent_header": {}, "metadata": {}}))


class ZmqWire:
    """A plain client on a connection file. `join` with another file goes on as the same client."""

    def __init__(self, hear: Hear) -> None:
        self._hear = hear
        self._client = uuid.uuid4().hex
        self._outbox: queue.SimpleQueue[tuple[str, dict[str, Any], str]] = queue.SimpleQueue()
        self._is_over = threading.Event()
        # Set when something has come on iopub.
        self._subscribed = threading.Event()
        self._thread: threading.Thread | None = None

    def join(self, connection_file: str) -> None:
        """Connect, and ask for kernel_info, as every client does first."""
        self._is_over.clear()
        self._subscribed.clear()
        facts = json.loads(Path(connection_file).read_text())
        self._thread = threading.Thread(target=self._run, args=(facts,), daemon=True)
        self._thread.start()
        # As every client does: what is asked before the subscription has arrived may be answered to nobody.
        self._subscribed.wait(_SUBSCRIBE_SECONDS)

    def part(self) -> None:
        """Take what has come, then close the sockets."""
        if self._thread is not None:
            self._is_over.set()
            self._thread.join(60)
            self._thread = None

    def execute(self, code: str, identity: str) -> None:
        """Send a cell."""
        self._send("execute_request", {"code": code, **_EXECUTE}, identity)

    def _send(self, kind: str, content: dict[str, Any], identity: str) -> None:
        self._outbox.put((kind, content, identity))

    def _run(self, facts: dict[str, Any]) -> None:
        session = Session(key=facts["key"].encode(), session=self._client, username="soak")
        mark = "-" if facts["transport"] == "ipc" else ":"
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        iopub, shell = context.socket(zmq.SUB), context.socket(zmq.DEALER)
        iopub.subscribe(b"")
        shell.identity = session.bsession
        for sock, name in ((shell, "shell"), (iopub, "iopub")):
            sock.linger = 1000
            sock.rcvhwm = 0
            sock.connect(f"{facts['transport']}://{facts['ip']}{mark}{facts[f'{name}_port']}")
        poller = zmq.Poller()
        poller.register(iopub, zmq.POLLIN)
        poller.register(shell, zmq.POLLIN)
        heard_at, nudge_at = time.monotonic(), 0.0
        while not self._is_over.is_set() or time.monotonic() < heard_at + _DRAIN_SECONDS:
            if not self._subscribed.is_set() and time.monotonic() > nudge_at and not self._is_over.is_set():
                session.send(shell, "kernel_info_request", {})
                nudge_at = time.monotonic() + 1.0
            while self._subscribed.is_set() and not self._is_over.is_set() and not self._outbox.empty():
                kind, content, identity = self._outbox.get()
                message = session.msg(kind, content)
                message["header"]["msg_id"] = message["msg_id"] = identity
                session.send(shell, message)
            for sock, _ in poller.poll(30):
                heard_at = time.monotonic()
                if sock is iopub:
                    self._subscribed.set()
                _, parts = session.feed_identities(sock.recv_multipart())
                self._hear(session.deserialize(parts))
        iopub.close()
        shell.close()
