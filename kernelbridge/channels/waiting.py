"""What to answer while the kernel is not there: not yet, or not again yet. Pure: requests in, messages out.

Answered at once: kernel_info (but see `_answer_info`), interrupt_request, shutdown_request. All else is queued in
order (design, "Waiting").
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from kernelbridge.channels import hidden_cells, messages
from kernelbridge.channels.messages import Request, Say
from kernelbridge.errors import KernelBridgeError
from kernelbridge.relay.wire import IOPUB, SHELL

# No progress before this: most starts need none.
QUIET_SECONDS = 2.0

# Clients keep the first answer for the life of the connection (nbclient writes its language_info into notebooks).
# Subshells are never claimed: JupyterLab would send requests for them to a kernel that may have none.
DEFAULT_INFO: Mapping[str, Any] = {
    "status": "ok",
    "protocol_version": messages.PROTOCOL_VERSION,
    "implementation": "ipython",
    "implementation_version": "9.0.0",
    "language_info": {
        "name": "python",
        "version": "3.11.0",
        "mimetype": "text/x-python",
        "codemirror_mode": {"name": "ipython", "version": 3},
        "pygments_lexer": "ipython3",
        "nbconvert_exporter": "python",
        "file_extension": ".py",
    },
    "banner": "Python 3 in a container",
    "help_links": [],
    "debugger": True,
    "supported_features": ["debugger"],
}


class Wish(enum.Enum):
    """What a client wants of the start that is under way."""

    CANCEL = "cancel"  # no kernel at all
    RESTART = "restart"  # a fresh one: the start under way is as good


def without_subshells(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return a kernel_info content that promises no subshells."""
    features = [name for name in info.get("supported_features", []) if name != "kernel subshells"]
    return {**info, "supported_features": features}


def shutdown_answer(request: Request) -> tuple[list[Say], Wish]:
    """Return the answer to a shutdown request, and what it wishes."""
    restart = bool(request.content.get("restart"))
    says = messages.between_busy_and_idle(request, messages.reply(request, {"status": "ok", "restart": restart}))
    return says, Wish.RESTART if restart else Wish.CANCEL


class Waiting:
    """One wait: what is queued, who watches the progress, what was said."""

    def __init__(self, info: Mapping[str, Any], *, is_guess: bool = False, widgets: str | None = None) -> None:
        self._info = without_subshells(info)
        # Whether no kernel of this image has said what `_info` says; set by know.
        self._is_guess = is_guess
        # Who was told a guess: channel and routing ids.
        self._told: set[tuple[int, tuple[bytes, ...]]] = set()
        # The ipywidgets version of this image, empty if it has none; None while that is not known.
        self._widgets = widgets
        # Hidden cells that have their answer and wait in the queue to be run.
        self.answered: set[str] = set()
        # Requests for the kernel, in the order of their arrival.
        self.queue: list[Request] = []
        # The newest progress, and the cell that shows it with the text that it shows.
        self._progress = ""
        self._watcher: Request | None = None
        self._shown = ""

    def __repr__(self) -> str:
        return f"<Waiting {len(self.queue)} queued, {self._progress!r}>"

    @property
    def unanswered(self) -> list[Request]:
        """What is queued, without the hidden cells that have their answer."""
        return [request for request in self.queue if request.id not in self.answered]

    def receive(self, request: Request) -> tuple[list[Say], Wish | None]:
        """Answer a request, or queue it."""
        match request.kind:
            case "kernel_info_request":
                return self._answer_info(request), None
            case "interrupt_request":
                says = messages.between_busy_and_idle(request, messages.reply(request, {"status": "ok"}))
                return self._interrupt() + says, None
            case "shutdown_request":
                says, wish = shutdown_answer(request)
                return self._abort_queue() + says, wish
        self.queue.append(request)
        return self._answer_early(request), None

    def _answer_info(self, request: Request) -> list[Say]:
        """Answer at once; only who asks again after a guess waits for the truth.

        nbclient writes the answer to its second question into the notebook, and asks no third. Clients that ask in a
        loop, until they hear something on iopub too (VS Code, jupyter_server, jupyter_client), do ask a third time:
        that answers both.
        """
        asker = (request.channel, request.identities)
        if not self._is_guess or asker not in self._told:
            self._told.add(asker)
            return self._info_answer(request)
        held = [other for other in self._held_questions() if (other.channel, other.identities) == asker]
        if not held:
            self.queue.append(request)
            return []
        self.queue = [other for other in self.queue if other not in held]
        return [say for other in (*held, request) for say in self._info_answer(other)]

    def _info_answer(self, request: Request) -> list[Say]:
        return messages.between_busy_and_idle(request, messages.reply(request, self._info))

    def _held_questions(self) -> list[Request]:
        return [request for request in self.queue if request.kind == "kernel_info_request"]

    def _answer_held(self) -> list[Say]:
        """Answer the questions that wait for the truth with what is known now."""
        held = self._held_questions()
        self.queue = [request for request in self.queue if request not in held]
        return [say for request in held for say in self._info_answer(request)]

    def _answer_early(self, request: Request) -> list[Say]:
        says = hidden_cells.early_answer(request, self._widgets) if request.id not in self.answered else []
        if says:
            self.answered.add(request.id)
        return says

    def know(self, info: Mapping[str, Any], widgets: str | None) -> list[Say]:
        """The image is known now: answer the questions and the hidden cells that came before."""
        self._info, self._widgets, self._is_guess = without_subshells(info), widgets, False
        return self._answer_held() + [say for request in self.queue for say in self._answer_early(request)]

    def _interrupt(self) -> list[Say]:
        says: list[Say] = []
        executes = [request for request in self.queue if self._is_open_execute(request)]
        self.queue = [request for request in self.queue if not self._is_open_execute(request)]
        says += self._stop_watching()
        for request in executes:
            says += messages.error_answer(
                request, "KeyboardInterrupt", "interrupted before the kernel started", shown=True
            )
        return says

    def _is_open_execute(self, request: Request) -> bool:
        return request.kind == "execute_request" and request.id not in self.answered

    def _abort_queue(self) -> list[Say]:
        says = self._stop_watching() + self._answer_held()
        for request in self.queue:
            if self._is_open_execute(request):
                says += messages.aborted_answer(request)
        self.queue.clear()
        return says

    def progress(self, text: str) -> None:
        """Note what the start is doing now; `show` says it."""
        self._progress = text

    def show(self, waited_seconds: float) -> list[Say]:
        """Say the newest progress in the first waiting cell, once QUIET_SECONDS have passed."""
        if waited_seconds < QUIET_SECONDS or not self._progress:
            return []
        text = f"{self._progress} ({int(waited_seconds)} s)\n"
        says: list[Say] = []
        if self._watcher is None:
            self._watcher = next((request for request in self.queue if self._shows_output(request)), None)
            if self._watcher is None:
                return []
            says.append(messages.status("busy", self._watcher))
        elif self._shown:
            if self._shown == text:
                return []
            says.append(Say(channel=IOPUB, kind="clear_output", content={"wait": True}, parent=self._watcher))
        self._shown = text
        stream = {"name": "stdout", "text": text}
        says.append(Say(channel=IOPUB, kind="stream", content=stream, parent=self._watcher))
        return says

    def _shows_output(self, request: Request) -> bool:
        """Whether somebody sees the output of a request: a cell, and none of VS Code's hidden ones."""
        if request.channel != SHELL or not self._is_open_execute(request) or request.content.get("silent"):
            return False
        return hidden_cells.probe_prefix(request) is None and not hidden_cells.is_startup(request)

    def _stop_watching(self) -> list[Say]:
        if self._watcher is None:
            return []
        says = [Say(channel=IOPUB, kind="clear_output", content={"wait": False}, parent=self._watcher)]
        self._watcher, self._shown = None, ""
        return says

    def release(self) -> tuple[list[Say], list[Request], str]:
        """The kernel is there: return the last words, the queue for it, and the request that had its busy already."""
        watched = self._watcher.id if self._watcher else ""
        says = self._stop_watching()
        queue, self.queue = self.queue, []
        return says, queue, watched

    def fail(self, error: KernelBridgeError) -> list[Say]:
        """The kernel will not come: answer all that is queued, the first cell with the sentence."""
        says = self._stop_watching() + self._answer_held()
        unanswered, self.queue = self.unanswered, []
        return says + failure_answers(unanswered, error)


def failure_answers(requests: list[Request], error: KernelBridgeError) -> list[Say]:
    """Return the answers when a kernel will not come or has ended: the first cell shows why, later ones are aborted."""
    says: list[Say] = []
    told = False
    for request in requests:
        if request.kind == "execute_request" and told:
            says += messages.aborted_answer(request)
            continue
        says += messages.error_answer(request, type(error).__name__, str(error), shown=True)
        told = told or (request.kind == "execute_request" and not request.content.get("silent"))
    return says
