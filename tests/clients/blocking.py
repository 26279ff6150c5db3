"""A blocking client that keeps apart what answers which request; several on one kernel. Simpler: notebook.py."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty
from typing import Any

import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.clients.notebook import NAME
from tests.rig.daemon import SLOW

Message = dict[str, Any]


@dataclass(kw_only=True)
class Cell:
    """What a client got for one execute request: the reply's content, and all of iopub that answers it."""

    reply: Message
    iopub: list[Message] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """The types of the iopub messages, in order."""
        return [message["msg_type"] for message in self.iopub]

    @property
    def states(self) -> list[str]:
        """What the status messages said."""
        return [message["content"]["execution_state"] for message in self.of("status")]

    @property
    def text(self) -> str:
        """What was printed, to stdout and stderr, and not cleared again."""
        shown, is_to_clear = "", False
        for message in self.iopub:
            if message["msg_type"] == "clear_output":
                is_to_clear = bool(message["content"]["wait"])
                shown = shown if is_to_clear else ""
            elif message["msg_type"] == "stream":
                shown = ("" if is_to_clear else shown) + message["content"]["text"]
                is_to_clear = False
        return shown

    @property
    def result(self) -> str | None:
        """The value of the last expression."""
        return next((message["content"]["data"]["text/plain"] for message in self.of("execute_result")), None)

    @property
    def error(self) -> str:
        """The error that is shown in the cell: `NAME: text`; empty for none."""
        shown = [message["content"] for message in self.of("error")]
        return "; ".join(f"{one['ename']}: {one['evalue']}" for one in shown)

    def of(self, kind: str) -> list[Message]:
        """The iopub messages of one type."""
        return [message for message in self.iopub if message["msg_type"] == kind]


class Client:
    """A blocking client that keeps apart what answers which request."""

    def __init__(self, kernel: BlockingKernelClient) -> None:
        self.kernel = kernel
        # All of iopub so far, and the same by request: a cell may have tens of thousands of messages.
        self._seen: list[Message] = []
        self._answers: dict[str, list[Message]] = defaultdict(list)
        # The requests whose idle has come.
        self._idle: set[str] = set()
        self._replies: dict[str, Message] = {}

    def __repr__(self) -> str:
        return f"<Client {self.kernel.session.session}>"

    def send(self, code: str, **options: Any) -> str:
        """Send an execute request and give its id."""
        request: str = self.kernel.execute(code, **options)
        return request

    def finish(self, request: str, *, seconds: float = 60) -> Cell:
        """Wait for the reply and the idle of one request. Raises TimeoutError."""
        limit = time.monotonic() + seconds * SLOW
        while request not in self._replies or request not in self._idle:
            if not self._take() and time.monotonic() > limit:
                so_far = Cell(reply={}, iopub=self._answers[request][-20:])
                raise TimeoutError(f"{request}: no reply and idle in {seconds} s; the last that came: {so_far}")
        return Cell(reply=self._replies[request]["content"], iopub=list(self._answers[request]))

    def run(self, code: str, *, seconds: float = 60, **options: Any) -> Cell:
        """Run a cell to its end."""
        return self.finish(self.send(code, **options), seconds=seconds)

    def ask(self, channel: str, kind: str, content: Message | None = None, **header: Any) -> str:
        """Send any request on `shell` or `control` and give its id; `header` is added to its header."""
        message = self.kernel.session.msg(kind, content or {})
        message["header"].update(header)
        getattr(self.kernel, f"{channel}_channel").send(message)
        identity: str = message["header"]["msg_id"]
        return identity

    def answer(self, request: str, *, seconds: float = 60) -> Message:
        """Wait for the reply to a request, on either channel, and give it whole. Raises TimeoutError."""
        limit = time.monotonic() + seconds * SLOW
        while request not in self._replies:
            if not self._take() and time.monotonic() > limit:
                raise TimeoutError(f"{request}: no reply in {seconds} s")
        return self._replies[request]

    def has_answer(self, request: str) -> bool:
        """Whether the reply has come; waits for nothing."""
        self._take()
        return request in self._replies

    def wait_for(self, claim: Callable[[Message], bool], *, seconds: float = 30) -> Message:
        """Wait for an iopub message. Raises TimeoutError."""
        limit = time.monotonic() + seconds * SLOW
        looked_at = 0
        while True:
            found = next((message for message in self._seen[looked_at:] if claim(message)), None)
            if found is not None:
                return found
            looked_at = len(self._seen)
            if not self._take() and time.monotonic() > limit:
                raise TimeoutError(f"no such message in {seconds} s; seen: {[one['msg_type'] for one in self._seen]}")

    def wait_for_words(self, words: str, *, seconds: float = 30) -> Message:
        """Wait until a cell has printed this. Only that tells that it runs: progress comes before, and looks alike.

        Raises TimeoutError.
        """
        return self.wait_for(
            lambda one: one["msg_type"] == "stream" and words in one["content"]["text"], seconds=seconds
        )

    def listen(self, seconds: float) -> Message | None:
        """The next message on shell or iopub, which then nobody else gets; None if none comes in that time."""
        channels = {one.socket: one for one in (self.kernel.iopub_channel, self.kernel.shell_channel)}
        ready, _, _ = zmq.select(list(channels), [], [], seconds)
        return channels[ready[0]].get_msg(timeout=1) if ready else None

    def seen(self) -> list[Message]:
        """All iopub messages so far, of all clients' requests."""
        while self._take():
            pass
        return list(self._seen)

    def _take(self) -> bool:
        """Take what has come; wait a moment for iopub. False if nothing came."""
        came = False
        for channel in (self.kernel.shell_channel, self.kernel.control_channel):
            while channel.msg_ready():
                message = channel.get_msg(timeout=1)
                self._replies[message["parent_header"].get("msg_id", "")] = message
                came = True
        try:
            message = self.kernel.get_iopub_msg(timeout=0.02)
        except Empty:
            return came
        request = message["parent_header"].get("msg_id", "")
        self._seen.append(message)
        self._answers[request].append(message)
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            self._idle.add(request)
        return True

    def close(self) -> None:
        """Close the client's sockets; the kernel runs on."""
        self.kernel.stop_channels()


@contextmanager
def connected(connection_file: str, *, ready: bool = True) -> Iterator[Client]:
    """A further client of a kernel, with a session of its own, as `jupyter console --existing` has."""
    kernel = BlockingKernelClient()
    kernel.load_connection_file(connection_file)
    kernel.start_channels()
    if ready:
        kernel.wait_for_ready(timeout=60 * SLOW)
    try:
        yield Client(kernel)
    finally:
        kernel.stop_channels()


@contextmanager
def started(name: str = NAME, *, ready: bool = True) -> Iterator[tuple[KernelManager, Client]]:
    """A kernel and its client; at the end the kernel is shut down, whatever happened."""
    manager = KernelManager(kernel_name=name)
    manager.start_kernel()
    try:
        with connected(manager.connection_file, ready=ready) as client:
            yield manager, client
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
