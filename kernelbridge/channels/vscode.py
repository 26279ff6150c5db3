"""Recognise the hidden cells that VS Code runs before a user's first: answer them early, read the notebook. Pure.

VS Code runs one after the other: a probe for ipywidgets, start-up code of its own, and the user's `runStartupCommands`;
then it asks for kernel_info. It waits for each, so while a container starts it would not even send the user's cell.
Only the probe's output matters to it. They run for real later, and their output then is dropped.
Source: vscode-jupyter, src/kernels/kernel.ts (initializeAfterStart) and helpers.ts (executeSilently).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from kernelbridge.channels import messages
from kernelbridge.channels.messages import Outgoing, Request
from kernelbridge.protocol.frames import IOPUB, SHELL, Buffer

# The probe prints a prefix of VS Code's choice and the version; it prints nothing where ipywidgets is missing.
_PROBE = re.compile(r"""print\(["']([^"']*IPyWidgets:)["'] \+ _VSCODE_ipywidgets\.__version__\)""")
# VS Code's own start-up code; that of the Interactive Window begins otherwise.
_STARTUP = "def __VSCODE_inject_module():"
# The start-up cell sets this to the notebook's path; only backslashes are doubled in it.
_NOTEBOOK = re.compile(r'^__vsc_ipynb_file__ = "(.*)"$', re.MULTILINE)
# The Interactive Window sets it before each file's first cell, and waits for that.
_SET_FILE = re.compile(r"__file__ = '[^'\n]*'\s*")
# What the debugger asks the kernel itself: no answer but its own will do.
_DEBUGGER = re.compile(r"\bipykernel\.__version__|\bdebugpy\b")
NOT_INSTALLED = ""
# What the probe is told where nobody knows the image yet. VS Code asks for the major version alone, only to choose what
# it would load for a widget; without an answer it would show none until the next restart.
GUESSED_WIDGETS = "8.0.0"


def probe_prefix(request: Request) -> str | None:
    """Return what the ipywidgets probe prints in front of the version; None if the request is not that probe."""
    if request.kind != "execute_request":
        return None
    found = _PROBE.search(_code(request))
    return found[1] if found else None


def is_startup(request: Request) -> bool:
    """Whether the request is VS Code's own start-up code."""
    if request.kind != "execute_request" or request.is_cell:
        return False
    return _STARTUP in _code(request) or _NOTEBOOK.search(_code(request)) is not None


def notebook_path(request: Request) -> str:
    """Return the path of the notebook that an execute request comes from, as far as it says so; else empty.

    VS Code tells it twice: in the start-up cell, and as the address of each of a user's cells. One that was not saved
    yet has a name instead.
    """
    if is_startup(request):
        found = _NOTEBOOK.search(_code(request))
        return found[1].replace("\\\\", "\\") if found else ""
    if request.kind != "execute_request":
        return ""
    try:
        address = urlsplit(str(request.metadata.get("cellId", "")))
    except ValueError:
        return ""
    if not address.scheme.startswith("vscode-notebook-cell"):
        return ""
    path = unquote(address.path)
    # /c:/Users/ada/train.ipynb
    return path[1:] if re.match(r"/[A-Za-z]:/", path) else path


def _code(request: Request) -> str:
    return str(request.content.get("code", ""))


class StartupCells:
    """Tell VS Code's start-up cells from all others, by what they are and by their order."""

    def __init__(self) -> None:
        # Clients that have sent the probe, and nothing since that ends the sequence.
        self._starting: set[tuple[bytes, ...]] = set()
        # Ids of the start-up cells.
        self._found: set[str] = set()

    def __contains__(self, request: Request) -> bool:
        return request.id in self._found

    def look(self, request: Request) -> None:
        """Take in a request, in the order of arrival."""
        if request.kind == "execute_request" and self._is_startup(request):
            self._found.add(request.id)
        elif request.channel == SHELL and request.kind in ("execute_request", "kernel_info_request"):
            self._starting.discard(request.identities)

    def _is_startup(self, request: Request) -> bool:
        if probe_prefix(request) is not None:
            self._starting.add(request.identities)
            return True
        if request.is_cell or _DEBUGGER.search(_code(request)):
            return False
        is_next = request.identities in self._starting
        return is_next or is_startup(request) or _SET_FILE.fullmatch(_code(request)) is not None


def early_answer(request: Request, widgets: str) -> list[Outgoing]:
    """Return the answer to a start-up cell, as a kernel whose image has this version of ipywidgets would give it."""
    answers: list[Outgoing] = []
    prefix = probe_prefix(request)
    if prefix is not None and widgets != NOT_INSTALLED:
        stream = {"name": "stdout", "text": f"{prefix}{widgets}\n"}
        answers.append(Outgoing(channel=IOPUB, kind="stream", content=stream, parent=request))
    done = {"status": "ok", "execution_count": 0, "user_expressions": {}, "payload": []}
    return messages.between_busy_and_idle(request, *answers, messages.reply(request, done))


def printed_version(prefix: str, printed: Sequence[str]) -> str:
    """Return the version that the real probe printed; NOT_INSTALLED if it printed none."""
    text = "".join(printed)
    _, found, rest = text.partition(prefix)
    return rest.splitlines()[0].strip() if found and rest else NOT_INSTALLED


class EarlyAnswers:
    """Drop what the kernel sends for requests that were answered here before it could, and read the probe's output."""

    def __init__(self) -> None:
        # The request whose busy was sent here; empty once the kernel's own has come.
        self.had_busy = ""
        # Requests that were answered here, until the kernel is idle again after them.
        self.answered: set[str] = set()
        # Requests that got the reason for the kernel's end, or an interrupt's end, until their relay has replied.
        self.failed: set[str] = set()
        # The probe that was passed on: its id, its prefix, what it has printed.
        self._probe: tuple[str, str, list[str]] | None = None

    def __bool__(self) -> bool:
        """Whether anything on iopub must be dropped or read."""
        return bool(self.had_busy or self.answered or self._probe)

    def expect(self, request: Request) -> None:
        """Note a request that goes to the kernel: what it prints tells something where it is the probe."""
        prefix = probe_prefix(request)
        if prefix is not None:
            self._probe = (request.id, prefix, [])

    def passes(self, parts: Sequence[Buffer]) -> bool:
        """Whether an iopub message goes on to the clients."""
        parent, content = messages.parent_id(parts), bytes(parts[messages.delimiter_index(parts) + 5])
        if self._probe is not None and parent == self._probe[0] and b'"stdout"' in content:
            self._probe[2].append(str(json.loads(content).get("text", "")))
        if parent in self.answered:
            if b'"idle"' in content:
                self.answered.discard(parent)
            return False
        if parent == self.had_busy and b'"busy"' in content:
            self.had_busy = ""
            return False
        return True

    def is_second_answer(self, parent: str) -> bool:
        """Whether a reply is for a request that was told here why there is none: one that its relay got too late."""
        is_second = parent in self.failed
        self.failed.discard(parent)
        return is_second

    def finish(self, parent: str) -> str | None:
        """Note that a request has its reply; return the version that it printed, if it was the probe."""
        if self._probe is None or parent != self._probe[0]:
            return None
        (_, prefix, printed), self._probe = self._probe, None
        return printed_version(prefix, printed)
