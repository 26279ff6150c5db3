"""The two cells that VS Code runs unseen before a user's first: recognised, answered early where that is safe. Pure.

VS Code waits for both, so while a container starts it would not even send the user's cell. They run for real later,
and what they say then is discarded. Source: vscode-jupyter, src/kernels/kernel.ts, src/kernels/chat/generator.ts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from kernelbridge.channels import messages
from kernelbridge.channels.messages import Request, Say
from kernelbridge.relay.wire import IOPUB, Buffer

# The probe prints a prefix of VS Code's choice and the version; it prints nothing where ipywidgets is missing.
_PROBE = re.compile(r"""print\(["']([^"']*IPyWidgets:)["'] \+ _VSCODE_ipywidgets\.__version__\)""")
_STARTUP = "def __VSCODE_inject_module():"
NOT_INSTALLED = ""


def probe_prefix(request: Request) -> str | None:
    """Return what the ipywidgets probe prints in front of the version; None if the request is not that probe."""
    if request.kind != "execute_request":
        return None
    found = _PROBE.search(_code(request))
    return found[1] if found else None


def is_startup(request: Request) -> bool:
    """Whether the request is the start-up cell."""
    return request.kind == "execute_request" and _code(request).lstrip().startswith(_STARTUP)


def _code(request: Request) -> str:
    return str(request.content.get("code", ""))


def early_answer(request: Request, widgets: str | None) -> list[Say]:
    """Return the answer to a hidden cell; none for other requests, or while the image's ipywidgets are not known."""
    if widgets is None:
        return []
    says: list[Say] = []
    prefix = probe_prefix(request)
    if prefix is not None and widgets != NOT_INSTALLED:
        stream = {"name": "stdout", "text": f"{prefix}{widgets}\n"}
        says.append(Say(channel=IOPUB, kind="stream", content=stream, parent=request))
    elif prefix is None and not is_startup(request):
        return []
    done = {"status": "ok", "execution_count": 0, "user_expressions": {}, "payload": []}
    return messages.between_busy_and_idle(request, *says, messages.reply(request, done))


def printed_version(prefix: str, printed: Sequence[str]) -> str:
    """Return the version that the real probe printed; NOT_INSTALLED if it printed none."""
    text = "".join(printed)
    _, found, rest = text.partition(prefix)
    return rest.splitlines()[0].strip() if found and rest else NOT_INSTALLED


class Said:
    """What clients were told here before the kernel could: it says it again, and that is swallowed."""

    def __init__(self) -> None:
        # The request whose busy was said here; empty once the kernel's own has come.
        self.had_busy = ""
        # Requests that were answered here, until the kernel is idle again after them.
        self.answered: set[str] = set()
        # The probe that was passed on: its id, its prefix, what it has printed.
        self._probe: tuple[str, str, list[str]] | None = None

    def __bool__(self) -> bool:
        """Whether anything on iopub is swallowed or listened to."""
        return bool(self.had_busy or self.answered or self._probe)

    def expect(self, request: Request) -> None:
        """A request goes to the kernel that was not answered here."""
        prefix = probe_prefix(request)
        if prefix is not None:
            self._probe = (request.id, prefix, [])

    def passes(self, parts: Sequence[Buffer]) -> bool:
        """Whether an iopub message goes on to the clients."""
        parent, content = messages.parent_id(parts), bytes(parts[messages.delimiter_index(parts) + 5])
        if parent in self.answered:
            if b'"idle"' in content:
                self.answered.discard(parent)
            return False
        if self._probe is not None and parent == self._probe[0] and b'"stdout"' in content:
            self._probe[2].append(str(json.loads(content).get("text", "")))
        if parent == self.had_busy and b'"busy"' in content:
            self.had_busy = ""
            return False
        return True

    def finish(self, parent: str) -> str | None:
        """A request has its reply; return the version that it printed, if it was the probe."""
        if self._probe is None or parent != self._probe[0]:
            return None
        (_, prefix, printed), self._probe = self._probe, None
        return printed_version(prefix, printed)
