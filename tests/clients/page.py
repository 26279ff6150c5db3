"""An open page of a Jupyter server whose server may go and come: the same ids all along, as JupyterLab's. No screen.

What a page asks at once and only once: rest.py. JupyterLab itself: lab.py.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import websocket

from tests.clients.blocking import Cell, Message
from tests.clients.server import JupyterServer
from tests.rig.daemon import SLOW, wait_until


class ReturningServer(JupyterServer):
    """A server that can be started again: same folder, same port, same token."""

    def __init__(self, folder: Path, *, env: dict[str, str], lab: bool = False, args: list[str] | None = None) -> None:
        self._given = env
        super().__init__(folder, lab=lab, env=env, args=args)

    def kill(self) -> None:
        """End it as a crash or a reset does: nothing is said, nothing is cleaned up."""
        self.process.kill()
        self.process.wait(10)

    def again(self) -> None:
        """Start it anew once it has ended; returns when it answers."""
        self._log.close()
        self._log = self.log_path.open("a")
        self.process = subprocess.Popen(
            list(map(str, self.process.args)),  # type: ignore[arg-type]  # it was a list
            env=self._environment(self._given),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.wait_ready()


def call(server: JupyterServer, method: str, path: str, body: Any = None) -> Any:
    """The JSON answer of a server's REST, None where it has none."""
    request = urllib.request.Request(
        server.url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"token {server.token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60 * SLOW) as answer:
        return json.loads(answer.read() or b"null")


class Page:
    """One notebook's page: its session, its kernel and its websocket. All that comes is kept."""

    def __init__(
        self, server: JupyterServer, name: str, path: str = "work.ipynb", *, kernel_id: str | None = None
    ) -> None:
        """Open the notebook: its session and its kernel are started, or it gets one that runs."""
        self._server = server
        self._client = uuid.uuid4().hex
        self.seen: list[Message] = []
        kernel = {"name": name, "id": kernel_id} if kernel_id else {"name": name}
        body = {"path": path, "name": path.rpartition("/")[2], "type": "notebook", "kernel": kernel}
        made = call(self._server, "POST", "api/sessions", body)
        self.session_id, self.kernel_id = str(made["id"]), str(made["kernel"]["id"])
        self.connect()

    def __repr__(self) -> str:
        return f"<Page of {self.kernel_id[:8]}, {len(self.seen)} messages>"

    def connect(self) -> float:
        """Open the websocket and ask for kernel_info, as JupyterLab does; say how long the server took to let us in."""
        began = time.monotonic()
        address = self._server.url.replace("http", "ws", 1)
        self._socket = websocket.create_connection(
            f"{address}api/kernels/{self.kernel_id}/channels?session_id={self._client}",
            header=[f"Authorization: token {self._server.token}"],
            timeout=60 * SLOW,
        )
        seconds = time.monotonic() - began
        threading.Thread(target=self._listen, args=(self._socket,), daemon=True).start()
        self._send("kernel_info_request", {})
        return seconds

    def _listen(self, opened: websocket.WebSocket) -> None:
        opened.settimeout(None)
        with contextlib.suppress(websocket.WebSocketException, OSError):
            while text := opened.recv():
                self.seen.append(json.loads(text))

    def close(self) -> None:
        """Close the websocket; session and kernel stay."""
        self._socket.close()

    def _send(self, kind: str, content: dict[str, Any]) -> str:
        identity = uuid.uuid4().hex
        header = {"msg_id": identity, "msg_type": kind, "session": self._client, "username": "page"}
        message = {"header": header | {"version": "5.3", "date": "2000-01-01T00:00:00Z"}, "content": content}
        self._socket.send(json.dumps({**message, "channel": "shell", "parent_header": {}, "metadata": {}}))
        return identity

    def send(self, code: str) -> str:
        """Send a cell and give its id."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        return self._send("execute_request", content)

    def cell(self, request: str) -> Cell:
        """What has come of a cell until now."""
        mine = [one for one in self.seen if one["parent_header"].get("msg_id") == request]
        reply = next((one["content"] for one in mine if one["channel"] == "shell"), None)
        return Cell(reply=reply or {}, iopub=[one for one in mine if one["channel"] == "iopub"])

    def finish(self, request: str, *, seconds: float = 60) -> Cell:
        """Wait for the reply and the idle of a cell."""

        def is_over() -> bool:
            cell = self.cell(request)
            return bool(cell.reply) and "idle" in cell.states

        try:
            wait_until(is_over, f"reply and idle of {request}", seconds)
        except RuntimeError as exc:
            raise AssertionError(f"{exc}; so far {self.cell(request)}") from exc
        return self.cell(request)

    def run(self, code: str) -> str:
        """What a cell prints."""
        return self.finish(self.send(code)).text

    @property
    def model(self) -> dict[str, Any]:
        """What api/kernels says of the kernel; empty where it does not know it."""
        try:
            return dict(call(self._server, "GET", f"api/kernels/{self.kernel_id}"))
        except urllib.error.HTTPError as exc:
            if exc.code == 404:
                return {}
            raise

    @property
    def session(self) -> dict[str, Any]:
        """What api/sessions says of the session; empty where it does not know it."""
        rows = call(self._server, "GET", "api/sessions")
        return next((row for row in rows if row["id"] == self.session_id), {})
