"""A Jupyter server's kernel by REST and websocket alone, each answer timed. With its own library: services.mjs."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import websocket

from tests.clients.blocking import Cell, Message
from tests.clients.server import JupyterServer
from tests.rig.daemon import SLOW


class ServerKernel:
    """One kernel of a server, and one page's websocket to it."""

    def __init__(self, server: JupyterServer, name: str) -> None:
        """Start it. Raises urllib.error.HTTPError."""
        self._server = server
        self.id = str(self.call("POST", "api/kernels", {"name": name})["id"])
        self._session = uuid.uuid4().hex
        self._seen: list[Message] = []
        self._socket = websocket.create_connection(
            f"{server.url.replace('http', 'ws', 1)}api/kernels/{self.id}/channels?session_id={self._session}",
            header=[f"Authorization: token {server.token}"],
            timeout=60 * SLOW,
        )

    def __repr__(self) -> str:
        return f"<ServerKernel {self.id[:8]} {len(self._seen)} messages>"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer of the server's REST, None where it has none."""
        request = urllib.request.Request(
            self._server.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self._server.token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60 * SLOW) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as exc:
            # A test's report shows it.
            exc.add_note(self._server.log)
            raise

    def timed(self, method: str, what: str = "") -> float:
        """Do something with this kernel (`POST interrupt`, `POST restart`, `DELETE`) and say how long that took."""
        began = time.monotonic()
        self.call(method, f"api/kernels/{self.id}{what and '/' + what}", {} if method == "POST" else None)
        return time.monotonic() - began

    @property
    def state(self) -> str:
        """What /api/kernels says of it; `gone` where the server has forgotten it."""
        models = self._server.get("api/kernels")
        return next((str(one["execution_state"]) for one in models if one["id"] == self.id), "gone")

    def send(self, code: str) -> str:
        """Send an execute request and give its id."""
        identity = uuid.uuid4().hex
        header = {"msg_id": identity, "msg_type": "execute_request", "session": self._session, "username": "page"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = {"header": header | {"version": "5.3", "date": "2000-01-01T00:00:00Z"}, "content": content}
        self._socket.send(json.dumps({**message, "channel": "shell", "parent_header": {}, "metadata": {}}))
        return identity

    def finish(self, request: str, *, seconds: float = 60) -> Cell:
        """Wait for the reply and the idle of one request. Raises TimeoutError."""
        limit = time.monotonic() + seconds * SLOW
        mine: list[Message] = []
        looked_at = 0
        while True:
            mine += [one for one in self._seen[looked_at:] if one["parent_header"].get("msg_id") == request]
            looked_at = len(self._seen)
            reply = next((one["content"] for one in mine if one["channel"] == "shell"), None)
            if reply is not None:
                cell = Cell(reply=reply, iopub=[one for one in mine if one["channel"] == "iopub"])
                if "idle" in cell.states:
                    return cell
            try:
                self._take(limit, f"reply and idle of {request}")
            except TimeoutError as exc:
                raise TimeoutError(f"{exc}; the last that came: {mine[-20:]}") from exc

    def wait_heard(self, request: str, *, seconds: float = 10) -> None:
        """Return when something was said of a request. Raises TimeoutError."""
        limit = time.monotonic() + seconds * SLOW
        while not any(one["parent_header"].get("msg_id") == request for one in self._seen):
            self._take(limit, f"a word of {request}")

    def listen(self, seconds: float) -> Message | None:
        """The next message, which then nobody else gets; None if none comes in that time."""
        self._socket.settimeout(max(seconds, 0.001))
        try:
            message: Message = json.loads(self._socket.recv())
        except websocket.WebSocketTimeoutException:
            return None
        return message

    def states(self) -> list[str]:
        """All status messages that this page has got."""
        return [one["content"]["execution_state"] for one in self._seen if one["msg_type"] == "status"]

    def _take(self, limit: float, what: str) -> None:
        self._socket.settimeout(max(limit - time.monotonic(), 0.001))
        try:
            self._seen.append(json.loads(self._socket.recv()))
        except websocket.WebSocketTimeoutException as exc:
            raise TimeoutError(f"waited for {what}") from exc

    def close(self) -> None:
        """Close the page; the kernel runs on."""
        self._socket.close()


@contextmanager
def started_by(server: JupyterServer, name: str) -> Iterator[ServerKernel]:
    """A kernel of the server, ended at the end if it is still there."""
    kernel = ServerKernel(server, name)
    try:
        yield kernel
    finally:
        kernel.close()
        if kernel.state != "gone":
            kernel.timed("DELETE")
