"""Answer or queue requests while a kernel starts or restarts. Pure: requests in, messages out.

Answered at once: kernel_info (but see `_answer_info`), interrupt_request, shutdown_request. All else is queued in
order (architecture.md, waiting).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any

from kernelbridge.channels import interrupts, messages, vscode
from kernelbridge.channels.messages import Outgoing, Request
from kernelbridge.errors import KernelBridgeError
from kernelbridge.protocol.frames import IOPUB, SHELL

# A cell that is run again after a failed start only shows the failure again.
TRY_AGAIN = "Restart the kernel to try again."
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


class ShutdownIntent(enum.Enum):
    """The outcome that a shutdown_request asks for while the kernel itself cannot be asked."""

    CANCEL = "cancel"  # no kernel at all
    RESTART = "restart"  # a fresh one: the start under way is as good


def without_subshells(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return a kernel_info content that promises no subshells."""
    features = [name for name in info.get("supported_features", []) if name != "kernel subshells"]
    return {**info, "supported_features": features}


def shutdown_answer(request: Request) -> tuple[list[Outgoing], ShutdownIntent]:
    """Return the answer to a shutdown request, and what it asks for."""
    restart = bool(request.content.get("restart"))
    answers = messages.between_busy_and_idle(request, messages.reply(request, {"status": "ok", "restart": restart}))
    return answers, ShutdownIntent.RESTART if restart else ShutdownIntent.CANCEL


class Waiting:
    """Answer and queue the requests of one wait, and show its progress in a cell."""

    def __init__(
        self,
        info: Mapping[str, Any],
        *,
        is_guess: bool = False,
        widgets: str | None = None,
        guessed_widgets: str = vscode.GUESSED_WIDGETS,
    ) -> None:
        self._info = without_subshells(info)
        # Whether `_info` is a default, which no kernel of this image has sent; cleared by set_kernel_info.
        self._is_guess = is_guess
        # Clients that a default was sent to: channel and routing ids.
        self._guessed_to: set[tuple[int, tuple[bytes, ...]]] = set()
        # The ipywidgets version of this image, empty if it has none; None while that is not known.
        self._widgets = widgets
        # What VS Code is told instead once it has waited QUIET_SECONDS: else it would not send the user's cell.
        self.guessed_widgets = guessed_widgets
        self._is_quiet = True
        self._startup = vscode.StartupCells()
        # Start-up cells that have their answer and wait in the queue to be run.
        self.answered: set[str] = set()
        # Requests for the kernel, in the order of their arrival.
        self.queue: list[Request] = []
        # The newest progress, and the cell that shows it with the text that it shows.
        self._progress = ""
        self._progress_cell: Request | None = None
        self._shown = ""
        # Whether the cell asks its user something; set by ask_in, cleared by asked.
        self._is_asking = False

    def __repr__(self) -> str:
        return f"<Waiting {len(self.queue)} queued, {self._progress!r}>"

    @property
    def unanswered(self) -> list[Request]:
        """What is queued, without the start-up cells that have their answer."""
        return [request for request in self.queue if request.id not in self.answered]

    def receive(self, request: Request) -> tuple[list[Outgoing], ShutdownIntent | None]:
        """Answer a request, or queue it."""
        self._startup.look(request)
        match request.kind:
            case "kernel_info_request":
                return self._answer_info(request), None
            case "interrupt_request":
                return self.interrupt() + interrupts.done(request), None
            case "shutdown_request":
                answers, intent = shutdown_answer(request)
                return self._abort_queue() + answers, intent
        self.queue.append(request)
        return self._answer_early(request), None

    def _answer_info(self, request: Request) -> list[Outgoing]:
        """Answer at once; only a client that asks again after a default waits for the image's own.

        nbclient writes the answer to its second question into the notebook, and asks no third. Clients that ask in a
        loop, until they hear something on iopub too (VS Code, jupyter_server, jupyter_client), do ask a third time:
        that answers both.
        """
        asker = (request.channel, request.identities)
        if not self._is_guess or asker not in self._guessed_to:
            self._guessed_to.add(asker)
            return self._info_answer(request)
        held = [other for other in self._held_questions() if (other.channel, other.identities) == asker]
        if not held:
            self.queue.append(request)
            return []
        self.queue = [other for other in self.queue if other not in held]
        return [answer for other in (*held, request) for answer in self._info_answer(other)]

    def _info_answer(self, request: Request) -> list[Outgoing]:
        return messages.between_busy_and_idle(request, messages.reply(request, self._info))

    def _held_questions(self) -> list[Request]:
        return [request for request in self.queue if request.kind == "kernel_info_request"]

    def _answer_held(self) -> list[Outgoing]:
        """Answer the questions that wait with what is known now."""
        held = self._held_questions()
        self.queue = [request for request in self.queue if request not in held]
        return [answer for request in held for answer in self._info_answer(request)]

    def _answer_early(self, request: Request) -> list[Outgoing]:
        widgets = self.guessed_widgets if self._widgets is None and not self._is_quiet else self._widgets
        if request not in self._startup or request.id in self.answered or widgets is None:
            return []
        self.answered.add(request.id)
        return vscode.early_answer(request, widgets)

    def set_kernel_info(self, info: Mapping[str, Any], widgets: str | None) -> list[Outgoing]:
        """Answer, from the image's own kernel_info, the questions and the start-up cells that came before it."""
        self._info, self._widgets, self._is_guess = without_subshells(info), widgets, False
        return self._answer_held() + self._answer_all_early()

    def need_cell(self) -> list[Outgoing]:
        """Answer all questions with what is guessed: the start needs a cell, and cells come after those."""
        self._is_guess = False
        return self._answer_held()

    def _answer_all_early(self) -> list[Outgoing]:
        return [answer for request in self.queue for answer in self._answer_early(request)]

    def interrupt(self) -> list[Outgoing]:
        """End the cells that wait; the start goes on."""
        answers: list[Outgoing] = []
        executes = [request for request in self.queue if self._is_open_execute(request)]
        self.queue = [request for request in self.queue if not self._is_open_execute(request)]
        answers += self._clear_progress()
        for request in executes:
            answers += messages.error_answer(
                request, "KeyboardInterrupt", "interrupted before the kernel started", shown=True
            )
        return answers

    def _is_open_execute(self, request: Request) -> bool:
        return request.kind == "execute_request" and request.id not in self.answered

    def _abort_queue(self) -> list[Outgoing]:
        answers = self._clear_progress() + self._answer_held()
        for request in self.queue:
            if self._is_open_execute(request):
                answers += messages.aborted_answer(request)
        self.queue.clear()
        return answers

    def progress(self, text: str) -> None:
        """Note what the start is doing now, for `show`."""
        self._progress = text

    def show(self, waited_seconds: float) -> list[Outgoing]:
        """Print the newest progress in the first waiting cell, once QUIET_SECONDS have passed.

        From then on VS Code's start-up cells are answered without knowing the image, so that such a cell comes.
        """
        if waited_seconds < QUIET_SECONDS or self._is_asking:
            return []
        answers: list[Outgoing] = []
        if self._is_quiet:
            self._is_quiet = False
            answers += self._answer_all_early()
        return answers + self._show_progress(waited_seconds)

    def _show_progress(self, waited_seconds: float) -> list[Outgoing]:
        if not self._progress:
            return []
        text = f"{self._progress} ({int(waited_seconds)} s)\n"
        answers: list[Outgoing] = []
        if self._progress_cell is None:
            self._progress_cell = next((request for request in self.queue if self._shows_output(request)), None)
            if self._progress_cell is None:
                return []
            answers.append(messages.status("busy", self._progress_cell))
        elif self._shown:
            if self._shown == text:
                return []
            answers.append(
                Outgoing(channel=IOPUB, kind="clear_output", content={"wait": True}, parent=self._progress_cell)
            )
        self._shown = text
        stream = {"name": "stdout", "text": text}
        answers.append(Outgoing(channel=IOPUB, kind="stream", content=stream, parent=self._progress_cell))
        return answers

    @property
    def cells(self) -> list[Request]:
        """The cells that wait whose output a user sees."""
        return [request for request in self.queue if self._shows_output(request)]

    def ask_in(self, cell: Request, notes: Sequence[str]) -> list[Outgoing]:
        """Print in a cell what its user is told with a question; progress is shown again once it is `asked`."""
        answers: list[Outgoing] = []
        if self._progress_cell is not cell:
            answers += [*self._clear_progress(), messages.status("busy", cell)]
            self._progress_cell = cell
        elif self._shown:
            answers.append(Outgoing(channel=IOPUB, kind="clear_output", content={"wait": True}, parent=cell))
        self._is_asking = True
        self._shown = "".join(f"{note}\n" for note in notes)
        if self._shown:
            stream = {"name": "stdout", "text": self._shown}
            answers.append(Outgoing(channel=IOPUB, kind="stream", content=stream, parent=cell))
        return answers

    def asked(self) -> None:
        """Note that the question is answered, or put aside."""
        self._is_asking = False

    def _shows_output(self, request: Request) -> bool:
        """Whether a user sees the output of a request: a cell, but none of VS Code's own."""
        is_open = request.channel == SHELL and self._is_open_execute(request)
        return is_open and request not in self._startup and request.is_cell

    def _clear_progress(self) -> list[Outgoing]:
        if self._progress_cell is None:
            return []
        answers = [Outgoing(channel=IOPUB, kind="clear_output", content={"wait": False}, parent=self._progress_cell)]
        self._progress_cell, self._shown = None, ""
        return answers

    def release(self) -> tuple[list[Outgoing], list[Request], str]:
        """End the wait for a kernel that is there now.

        Return the last messages, the queue for the kernel, and the id of the request that had its busy already.
        """
        had_busy = self._progress_cell.id if self._progress_cell else ""
        answers = self._clear_progress()
        queue, self.queue = self.queue, []
        return answers, queue, had_busy

    def fail(self, error: KernelBridgeError) -> list[Outgoing]:
        """Answer all that is queued because the kernel will not come; the first cell shows why."""
        answers = self._clear_progress() + self._answer_held()
        unanswered, self.queue = self.unanswered, []
        return answers + failure_answers(unanswered, error, is_start=True)


def failure_answers(requests: list[Request], error: KernelBridgeError, *, is_start: bool = False) -> list[Outgoing]:
    """Return the answers when a kernel will not come (`is_start`) or has ended.

    The first cell shows why, later ones are aborted.
    """
    lines = error.lines()
    if is_start and "restart" not in error.remedy.lower():
        lines.append(TRY_AGAIN)
    answers: list[Outgoing] = []
    is_shown = False
    for request in requests:
        if is_shown and request.is_cell:
            answers += messages.aborted_answer(request)
            continue
        answers += messages.error_answer(request, type(error).__name__, str(error), shown=True, lines=lines)
        is_shown = is_shown or request.is_cell
    return answers
