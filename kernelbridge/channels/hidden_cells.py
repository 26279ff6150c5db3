"""The two cells that VS Code runs unseen before a user's first: recognised, answered early where that is safe. Pure.

VS Code waits for both, so while a container starts it would not even send the user's cell. They run for real later,
and what they say then is discarded. Source: vscode-jupyter, src/kernels/kernel.ts, src/kernels/chat/generator.ts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kernelbridge.channels import messages
from kernelbridge.channels.messages import Request, Say
from kernelbridge.relay.wire import IOPUB

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
