"""The same ways under a real jupyter_server, spoken to over its websocket; and a link that was just opened."""

from __future__ import annotations

import json
import queue
import secrets
import socket
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket
from jupyter_client.blocking.client import BlockingKernelClient

from tests.bench import measures, ways
from tests.bench.ways import Place, Reached
from tests.clients.server import JupyterServer
from tests.clients.specs import installed_spec


class SocketClient(BlockingKernelClient):
    """Enough of a blocking client for measures.py, over a server's websocket."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__()
        self._socket = websocket.create_connection(
            f"{url}?token={token}", timeout=60, sockopt=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
        )
        self._held: dict[str, queue.SimpleQueue[dict[str, Any]]] = {
            channel: queue.SimpleQueue() for channel in ("shell", "iopub", "control", "stdin")
        }

    def execute(self, code: str, **_: Any) -> str:  # type: ignore[override]
        """Send an execute request."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": "bench"}
        header |= {"version": "5.3", "date": "2026-01-01T00:00:00Z"}
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        self._socket.send(json.dumps(message))
        return header["msg_id"]

    def _next(self, channel: str, timeout: float) -> dict[str, Any]:
        while self._held[channel].empty():
            self._socket.settimeout(timeout)
            # The server writes small pieces with Nagle's algorithm on; a delayed acknowledgement would cost 40 ms each.
            if self._socket.sock is not None:
                self._socket.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            try:
                said = self._socket.recv()
            except websocket.WebSocketTimeoutException as exc:
                raise queue.Empty from exc
            message = json.loads(said)
            message["msg_type"] = message["header"]["msg_type"]
            self._held[message["channel"]].put(message)
        return self._held[channel].get()

    def get_shell_msg(self, *_: Any, timeout: float = 60) -> dict[str, Any]:
        """The next message on shell."""
        return self._next("shell", timeout)

    def get_iopub_msg(self, *_: Any, timeout: float = 60) -> dict[str, Any]:
        """The next message on iopub."""
        return self._next("iopub", timeout)

    def stop_channels(self) -> None:
        """Close the websocket."""
        self._socket.close()


def _ask(server: JupyterServer, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Authorization": f"token {server.token}"}
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(server.url + path, method=method, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


@contextmanager
def _under_server(place: Place, kernel_name: str) -> Iterator[Reached]:
    with tempfile.TemporaryDirectory() as folder:
        server = JupyterServer(Path(folder) / "server", lab=False, env=place.laptop.env)
        try:
            server.wait_ready()
            began = time.perf_counter()
            made = _ask(server, "POST", "api/kernels", {"name": kernel_name})
            url = f"{server.url.replace('http', 'ws', 1)}api/kernels/{made['id']}/channels"
            client = SocketClient(url, server.token)
            measures._reply(client, "1")
            yield Reached(client=client, start_seconds=time.perf_counter() - began)
            client.stop_channels()
            _ask(server, "DELETE", f"api/kernels/{made['id']}")
        finally:
            server.close()


@contextmanager
def ours(place: Place) -> Iterator[Reached]:
    """Ours in a jupyter_server."""
    installed_spec(place.laptop)
    with _under_server(place, "kernelbridge-test") as reached:
        yield reached


@contextmanager
def ssh_tunnel(place: Place) -> Iterator[Reached]:
    """A hand-made ssh -L as the argv of a kernel spec in a jupyter_server."""
    folder = Path(place.laptop.data_dir) / "kernels" / "bench-ssh"
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"socket": place.rig.engine.url, "image": place.rig.image, "ssh": place.laptop.ssh(place.alias)}
    script = str(Path(__file__).with_name("tunnel_kernel.py"))
    argv = [sys.executable, script, json.dumps(facts), f"kernelbridge-test-bench-{secrets.token_hex(4)}"]
    spec = {"argv": [*argv, "{connection_file}"], "display_name": "ssh -L", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps({**spec, "interrupt_mode": "message"}))
    with _under_server(place, "bench-ssh") as reached:
        yield reached


def just_opened_ms(place: Place) -> float:
    """The round trip p50 of the first cells on a link that was opened for them, in milliseconds."""
    place.laptop.write_environment(place.rig.image)
    with ways.launcher(place) as reached:
        return measures.round_trip_ms(reached.client)
