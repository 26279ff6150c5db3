"""Ask a person by the program that SSH_ASKPASS names, as ssh does where it has no terminal."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from kernelbridge.hosts.transport.login.questions import LoginQuestion
from kernelbridge.hosts.transport.openssh.process import ask

_LOG = logging.getLogger(__name__)

# A window that nobody looks at is closed some time.
ASKPASS_SECONDS = 3600.0
# Where OpenSSH and its packages look if SSH_ASKPASS names none.
USUAL_PATHS = ("/usr/libexec/ssh-askpass", "/usr/bin/ssh-askpass", "/usr/libexec/openssh/ssh-askpass")


class Askpass:
    """The program that asks, if these variables name one and let it be used."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        required = environ.get("SSH_ASKPASS_REQUIRE", "").lower()
        has_display = bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))
        self._is_allowed = required == "force" or (has_display and required != "never")
        # Whether it is to be used in the place of a terminal too.
        self.is_preferred = self._is_allowed and required in ("force", "prefer")

    def __repr__(self) -> str:
        return f"<Askpass {self.program or 'none'}{', preferred' if self.is_preferred else ''}>"

    @property
    def program(self) -> str | None:
        """The program; None where there is none, or it may not be used."""
        if not self._is_allowed:
            return None
        named = self._environ.get("SSH_ASKPASS")
        if named:
            return shutil.which(named)
        return next((path for path in USUAL_PATHS if Path(path).is_file()), None)

    async def ask(self, question: LoginQuestion) -> str | None:
        """Return what the person has typed; None where there is no program, or it was closed."""
        program = self.program
        if program is None:
            return None
        try:
            answer = await ask([program, "\n".join([*question.notes, question.prompt])], seconds=ASKPASS_SECONDS)
        except OSError as exc:  # A TimeoutError too.
            _LOG.warning("%s cannot ask: %s", program, exc)
            return None
        return answer.stdout.partition("\n")[0].rstrip("\r") if answer.exit_code == 0 else None
