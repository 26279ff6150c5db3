"""Ask in the terminal what a login needs of a person, wherever this program's input and output go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kernelbridge.cli import status_line
from kernelbridge.hosts.transport.login.questions import Ask, LoginQuestion
from kernelbridge.hosts.transport.openssh.askpass import Askpass

if sys.platform == "win32":
    import msvcrt
    import threading
else:
    import select
    import termios

_LONGEST_BYTES = 4096
_LOOK_SECONDS = 0.05
TERMINAL = "/dev/tty"


class TerminalUse:
    """What else this program does with its terminal."""

    def __init__(self) -> None:
        # Whether another program has the terminal's keys; changed by `taken`.
        self.is_taken = False

    def __repr__(self) -> str:
        return f"<TerminalUse{', taken' if self.is_taken else ''}>"

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Ask nothing while the block runs: another program has the keys."""
        self.is_taken = True
        try:
            yield
        finally:
            self.is_taken = False


# Of this process, which has one.
USE = TerminalUse()


class LoginPrompt:
    """Asks in the terminal that this program was started in, one question at a time."""

    def __init__(self, use: TerminalUse = USE, *, terminal: str = TERMINAL) -> None:
        self._use = use
        self._terminal = terminal
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<LoginPrompt {self._use!r}>"

    async def ask(self, question: LoginQuestion) -> str | None:
        """Return what was typed; None where there is no terminal, or its user gave an end of file."""
        async with self._turn:
            if self._use.is_taken:
                return None
            with status_line.hidden():
                return await _asked(question, self._terminal)


def askers(environ: Mapping[str, str]) -> Sequence[Ask]:
    """Return who asks a person for a command, in ssh's order."""
    askpass = Askpass(environ)
    return [askpass.ask] if askpass.is_preferred else [LoginPrompt().ask, askpass.ask]


if sys.platform == "win32":

    async def _asked(question: LoginQuestion, terminal: str) -> str | None:
        over = threading.Event()
        try:
            return await asyncio.to_thread(_read_keys, question, over)
        finally:
            over.set()

    def _read_keys(question: LoginQuestion, over: threading.Event) -> str | None:
        """Read a line from the console key by key, which neither a pipe nor a file can be in the way of."""
        try:
            screen = Path("CONOUT$").open("w", encoding="utf-8")  # noqa: SIM115 - closed below
        except OSError:
            return None  # A program without a window.
        with screen:
            print(*question.notes, question.prompt, sep="\n", end="", file=screen, flush=True)
            typed = ""
            while not over.wait(0 if msvcrt.kbhit() else _LOOK_SECONDS):
                if not msvcrt.kbhit():
                    continue
                key = msvcrt.getwch()
                if key in "\r\n":
                    break
                if key in "\x03\x1a":
                    return None
                typed = typed[:-1] if key == "\b" else typed + key
                if question.echo:
                    print(key, end="", file=screen, flush=True)
            print(file=screen)
        return None if over.is_set() else typed

else:

    async def _asked(question: LoginQuestion, path: str) -> str | None:
        try:
            terminal = os.open(path, os.O_RDWR | os.O_NOCTTY)
        except OSError:
            return None  # There is none: a service, or a program that another one has started.
        # Its other end is closed when nobody waits any more.
        end, wake = os.pipe()
        reading = asyncio.create_task(asyncio.to_thread(_read_line, question, terminal, end))
        try:
            return await asyncio.shield(reading)
        finally:
            os.close(wake)
            # In a moment, and then it echoes again.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([reading])
            os.close(end)
            os.close(terminal)

    def _read_line(question: LoginQuestion, terminal: int, end: int) -> str | None:
        """Read a line from the terminal; None at its end, or once `end` can be read."""
        before = termios.tcgetattr(terminal)
        quiet = list(before)
        quiet[3] = before[3] & ~(termios.ECHO | termios.ECHONL) | termios.ICANON | termios.ISIG
        quiet[3] |= termios.ECHO if question.echo else 0
        try:
            # What was typed before it was asked is no answer.
            termios.tcsetattr(terminal, termios.TCSAFLUSH, quiet)
            os.write(terminal, "".join(f"{line}\n" for line in question.notes).encode("utf-8", "replace"))
            os.write(terminal, question.prompt.encode("utf-8", "replace"))
            line = b""
            while not line.endswith(b"\n") and len(line) < _LONGEST_BYTES:
                if end in select.select([terminal, end], [], [])[0]:
                    return None
                piece = os.read(terminal, _LONGEST_BYTES)
                if not piece:
                    return None
                line += piece
            return line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
            if not question.echo:
                os.write(terminal, b"\n")
