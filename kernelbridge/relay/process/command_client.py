"""Stand for a user's command as KernelClient does for a kernel: hand its output on, and give it its input.

Output travels as Jupyter's `stream` messages, whose last part has the bytes as they are.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, List, Optional, Tuple

from ...protocol import frames, terminal
from ...protocol.handshake import InputEvent
from .kernel_process import KernelProcess, drop_output

# How often it is told that input was taken.
TELL_TAKEN_BYTES = 128 * 1024
# With so much that nobody has taken the command waits, as long as somebody is there to take it.
MOST_UNTAKEN_BYTES = 4 * 1024 * 1024
_NAMES = {terminal.OUTPUT: "stdout", terminal.ERRORS: "stderr"}


def output_parts(kind: int, piece: bytes) -> List[frames.Buffer]:
    """Return the parts of the message for a piece of output."""
    name = _NAMES[kind]
    header = {"msg_id": "", "msg_type": "stream", "session": "", "username": "", "date": "", "version": "5.3"}
    content = {"name": name, "text": ""}
    topic = b"stream." + name.encode()
    return [
        topic,
        frames.DELIMITER,
        b"",
        json.dumps(header).encode(),
        b"{}",
        b"{}",
        json.dumps(content).encode(),
        piece,
    ]


class CommandClient:
    """What the relay has in the place of a kernel's sockets while a user's command runs."""

    # A command speaks no ZMQ: there is nothing to load or to poll.
    zmq: Any = None
    running: Optional[Dict[str, Any]] = None
    due_at = float("inf")

    def __init__(
        self,
        heard: Callable[[int, List[frames.Buffer]], None],
        ready: Callable[[Dict[str, Any]], None],
        tell: Callable[[InputEvent], None],
        *,
        waits: bool,
    ) -> None:
        """`waits` if the command does nothing but keep a container for others."""
        # Called with each message of output; once for each launch when the command runs; with what it has taken.
        self._heard = heard
        self._told_ready = ready
        self._tell = tell
        self.waits = waits
        self.sockets: Dict[int, Any] = {}
        self.is_ready = False
        # See KernelClient.
        self.is_held = False
        self.info: Optional[Dict[str, Any]] = None
        self._process: Optional[KernelProcess] = None
        self._told_bytes = 0

    @property
    def is_busy(self) -> bool:
        """Whether the command does something."""
        return self._process is not None and not self.waits

    @property
    def is_asking(self) -> bool:
        """Whether the setup before it has not ended, or its GPUs have not been seen yet."""
        return self._process is not None and not self.is_ready

    def load(self) -> None:
        """Do nothing: see KernelClient."""

    def connect(self, process: KernelProcess) -> None:
        """Take the output of a launch."""
        self._process, self._told_bytes = process, 0
        process.written = self._written
        self.nudge(0.0)

    def _written(self, kind: int, piece: bytes) -> None:
        self._heard(frames.IOPUB, output_parts(kind, piece))

    def nudge(self, now: float) -> None:
        """Say that the command runs, once it does."""
        if self.is_asking and not self.is_held and self._process is not None and self._process.setup_state() is None:
            self.is_ready, self.info = True, {}
            self._told_ready(self.info)

    def release(self) -> None:
        """Let the command be ready."""
        self.is_held = False
        self.nudge(0.0)

    def say(self, channel: int, parts: List[frames.Buffer]) -> None:
        """Give the command a piece of input; an empty one is its end."""
        pipes = self._process.pipes if self._process is not None else None
        if channel != frames.STDIN or pipes is None or not parts:
            return
        if parts[0]:
            pipes.feed(bytes(parts[0]))
        else:
            pipes.end_input()
        self._tell_taken()

    def do_due(self, now: float) -> None:
        """Give the command what it can take by now."""
        process = self._process
        if process is not None and process.pipes is not None and process.pipes.input is not None:
            process.pipes.push()
            self._tell_taken()

    def _tell_taken(self) -> None:
        assert self._process is not None and self._process.pipes is not None
        taken = self._process.pipes.taken_bytes
        if taken - self._told_bytes >= TELL_TAKEN_BYTES:
            self._told_bytes = taken
            self._tell(InputEvent(self._process.launch, taken))

    def outputs(self, untaken_bytes: int, *, is_joined: bool) -> Tuple[List[int], List[int]]:
        """Return the descriptors to read from, and to write to, with so much output that nobody has taken yet."""
        if self._process is None or self._process.pipes is None:
            return [], []
        pipes = self._process.pipes
        reads = [] if is_joined and untaken_bytes > MOST_UNTAKEN_BYTES else list(pipes.outputs)
        return reads, [pipes.input] if pipes.input is not None else []

    def listen(self, ready: Dict[Any, int]) -> None:
        """Do nothing: output is read where a kernel's is."""

    def listen_to_the_end(self) -> None:
        """Take in what a command that has ended left in its pipes."""
        if self._process is not None:
            self._process.drain()

    def refusal(self, message: frames.Message) -> List[frames.Message]:
        """Return nothing: input for a command that has ended needs no answer."""
        return []

    def close(self) -> None:
        """Let go of a launch that has ended."""
        if self._process is not None:
            self._process.written = drop_output
        self._process, self.is_ready = None, False
