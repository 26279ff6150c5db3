"""Run a command through a login shell, whichever shell that is and whatever its start-up files print. No I/O.

The login shell parses plain words alone, which start `sh`. All else goes to that one over stdin, as one line that every
shell reads alike: a start-up file may have put another shell in its place. Around the command's output stand marks made
for it alone, and what comes before and behind them is not its answer.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from kernelbridge.hosts.transport.stream import STDERR_BYTES, CommandError, Ending, Receiver, Stream
from kernelbridge.plain_text import printable

# What the login shell is asked to run, in the order of trying. A restricted shell allows no / in it; empty: the line
# itself, for start-up files that read what is on stdin.
SHELL_COMMANDS: Final = ("/bin/sh -s", "sh -s", "")
# A shell that gets more words at once, or longer ones, is not known; csh's limit was 1024.
_WORD_BYTES: Final = 400
# Longer stdin does not stand in the line, which becomes arguments of a program: Linux allows 128 KiB, as one argument.
# Each byte takes up to 9 there.
INLINE_STDIN_BYTES: Final = 12 * 1024
# Plain in each shell's single quotes. Elsewhere ! is history, \ an escape, and a new line an error.
_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 _./:=,+@%-")
# Before it: a start-up file that reads a line or a key has those.
_UNPACK: Final = """/bin/sh -c 'IFS=; t=$(printf %b "$*"); unset IFS; eval "$t"' sh """
_EMPTY_LINES: Final = "\n" * 4
# How much is kept of what was printed around the frame, for the error message.
_AROUND_BYTES: Final = 4096
_WORDS: Final = 500
# What stands behind the end's mark; whatever else does, a host has written by itself.
_EXIT_CODE: Final = re.compile(rb"[0-9]{1,3}")
_EXIT_CODE_BYTES: Final = 3
# So many random bytes are the mark's beginning, and nothing else. Who talks to and fro waits for the last byte.
_SURE_BYTES: Final = 8

# Where commands are that are not on every PATH: sbin, drivers (containers' hosts, WSL, CUDA), NixOS, Homebrew, engines'
# own, Slurm's.
USUAL_FOLDERS: Final = (
    *("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin", "/snap/bin", "/opt/bin"),
    *("/usr/local/nvidia/bin", "/opt/nvidia/bin", "/usr/lib/wsl/lib", "/usr/local/cuda/bin"),
    *("/home/kubernetes/bin/nvidia/bin", "/run/current-system/sw/bin", "/nix/var/nix/profiles/default/bin"),
    *("/opt/homebrew/bin", "/Applications/Docker.app/Contents/Resources/bin"),
    *("/opt/slurm/bin", "/opt/slurm/current/bin", "/usr/local/slurm/bin", "/cm/shared/apps/slurm/current/bin"),
)
_USUAL_BELOW_HOME: Final = (
    ".docker/bin",
    ".orbstack/bin",
    ".rd/bin",
    ".nix-profile/bin",
    ".local/bin",
    "bin",
    "google-cloud-sdk/bin",
)
# Start-up files may have set all of this. `eval` gets letters, digits and . _ - alone.
_SETTLE_HOME: Final = """\
PATH=${PATH:+$PATH:}/usr/bin:/bin
case ${HOME-} in
  /*) ;;
  *) u=$(id -un); case $u in *[!A-Za-z0-9._-]*|"") HOME=/ ;; *) eval "HOME=~$u" ;; esac; export HOME ;;
esac
cd "$HOME" 2>/dev/null || cd /
"""
# Prints a login shell's environment. Each shell takes -l alone, and csh takes no other option beside it.
LOGIN_SHELL_SCRIPT: Final = 'echo env | "${SHELL:-/bin/sh}" -l 2>/dev/null'
# What of it engines' and Slurm's commands need, beside PATH.
_NEEDED_VARIABLES: Final = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "SLURM_CONF")


def settings(folders: Sequence[str] = (), login: Mapping[str, str] | None = None) -> str:
    """Write what sets a command's PATH: the user's folders, what is set, the usual places, then the login shell's.

    The login shell's other variables stand where they are not set.
    """
    login = login or {}
    below_home = [f"${{HOME-}}/{folder}" for folder in _USUAL_BELOW_HOME]
    before = "".join(f"{shlex.quote(folder)}:" for folder in folders)
    # Not one part may be empty: that is the working folder.
    last = [shlex.quote(folder) for folder in login.get("PATH", "").split(":") if folder.startswith("/")]
    lines = [f"PATH={before}${{PATH:+$PATH:}}{':'.join([*USUAL_FOLDERS, *below_home, *last])}; export PATH"]
    for name in _NEEDED_VARIABLES:
        if login.get(name):
            lines.append(f'[ -n "${{{name}-}}" ] || {name}={shlex.quote(login[name])}; export {name}')
    return "\n".join([*lines, ""])


def parse_variables(answer: str) -> dict[str, str]:
    """Read the answer to LOGIN_SHELL_SCRIPT; what the start-up files print before it is overruled."""
    pairs = (line.partition("=") for line in answer.splitlines())
    return {name: text for name, _, text in pairs if name in ("PATH", *_NEEDED_VARIABLES) and text.isprintable()}


def script(argv: Sequence[str], *, mark: str, stdin: bytes | None, settings: str) -> str:
    """Write what `sh` runs: the command between its marks on stdout and stderr. Without `stdin` it has the channel's.

    `stdin` has at most INLINE_STDIN_BYTES. `settings` are settings()'. What is in argv and stdin can be seen in the
    host's list of processes.
    """
    # In two halves: a shell that prints what it reads does not print the mark.
    halves = f"{mark[:16]} {mark[16:]}"
    begin, end = f"printf '%s%s<' {halves}", f"printf '%s%s>%d;' {halves} $code"
    command = shlex.join(argv)
    if stdin is not None:
        command = f"printf %b '{_escaped(stdin)}' | {command}" if stdin else f"{command} </dev/null"
    start = f"set +eu\n{_SETTLE_HOME}{settings}{begin} >&2; {begin}"
    return f"{start}\n{command}\ncode=$?; {end} >&2; {end}; exit $code\n"


def _escaped(text: bytes) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in text)


def one_line(text: str) -> str:
    """Write a script as a line that makes `sh` run it, the same to sh, csh, fish and zsh: plain words in quotes."""
    words = [""]
    for byte in text.encode():
        escaped = _escaped(bytes([byte]))
        if len(words[-1]) + len(escaped) > _WORD_BYTES:
            words.append("")
        words[-1] += escaped
    return f"exec {_UNPACK}" + " ".join(f"'{word}'" for word in words)


def for_stdin(text: str) -> bytes:
    """Return what is written to a shell that reads commands from its stdin."""
    return f"{_EMPTY_LINES}{one_line(text)}\n".encode()


def for_next(text: str) -> bytes:
    """Return the same for a shell that is to read more commands after this one."""
    return for_stdin(text).replace(b"exec ", b"", 1)


def name_of(argv: Sequence[str]) -> str:
    """Return what a command is called in messages: that of a script is its $0."""
    return argv[3] if list(argv[:2]) == ["sh", "-c"] and len(argv) > 3 else argv[0]


def new_mark() -> str:
    """Return a mark that nobody can have printed before."""
    return secrets.token_hex(16)


class CommandFrame:
    """Cuts one command's output out of all that comes on one stream.

    Live output is not kept back for what may be the beginning of the end's mark, unless that is _SURE_BYTES long.
    """

    def __init__(self, mark: str, *, is_live: bool = False) -> None:
        self._least = _SURE_BYTES if is_live else 1
        self._begin, self._end = f"{mark}<".encode(), f"{mark}>".encode()
        # The last bytes, if they may be the first of a mark; cut by feed().
        self._tail = b""
        # How many of these were handed on all the same.
        self._handed_on = 0
        # What was printed before the frame, its end alone.
        self.before = b""
        self.has_begun = False
        # Of the command; set at the frame's end.
        self.exit_code: int | None = None

    def __repr__(self) -> str:
        state = "before" if not self.has_begun else "within" if self.exit_code is None else f"ended {self.exit_code}"
        return f"<CommandFrame {state}>"

    @property
    def has_ended(self) -> bool:
        """Whether the command has ended, and all of its output is here."""
        return self.exit_code is not None

    def feed(self, data: bytes) -> bytes:
        """Take what comes next; return what of it is the command's."""
        if self.has_ended:
            return b""
        data = self._tail + data
        if not self.has_begun:
            before, mark, rest = data.partition(self._begin)
            if not mark:
                cut = len(data) - _overlap(data, self._begin)
                before, self._tail = data[:cut], data[cut:]
            self.before = (self.before + before)[-_AROUND_BYTES:]
            if not mark:
                return b""
            self.has_begun, data = True, rest
        at = data.find(self._end)
        if at >= 0:
            return self._feed_end(data, at)
        overlap = _overlap(data, self._end)
        at = len(data) - overlap
        handed_on = len(data) if overlap < self._least else max(at, self._handed_on)
        inside = data[self._handed_on : handed_on]
        self._tail, self._handed_on = data[at:], handed_on - at
        return inside

    def _feed_end(self, data: bytes, at: int) -> bytes:
        """Take the end's mark, the exit code behind it, and what of the output stands before them."""
        inside = data[self._handed_on : at]
        code, semicolon, _ = data[at + len(self._end) :].partition(b";")
        if semicolon or len(code) > _EXIT_CODE_BYTES:
            self.exit_code, self._tail = int(code) if _EXIT_CODE.fullmatch(code) else -1, b""
        else:
            # The code is cut; all that is there before it was handed on.
            self._tail, self._handed_on = data[at:], len(data) - at
        return inside

    def finish(self) -> bytes:
        """Return what was kept back, when nothing more comes."""
        rest, self._tail = self._tail[self._handed_on :], b""
        if not self.has_begun:
            self.before, rest = self.before + rest, b""
        return rest


def _overlap(data: bytes, mark: bytes) -> int:
    """Return how many of the last bytes may be the first of the mark."""
    lengths = range(min(len(mark) - 1, len(data)), 0, -1)
    return next((length for length in lengths if data.endswith(mark[:length])), 0)


def said(stdout: bytes, stderr: bytes) -> str:
    """Return in one line what a host said instead of running a command; its end, where that is long."""
    lines = (stdout + b"\n" + stderr).decode("utf-8", "replace").splitlines()
    words = " ".join(filter(None, (printable(line, instead=" ").strip() for line in lines)))
    return words if len(words) <= _WORDS else f"... {words[-_WORDS:]}"


@dataclass(kw_only=True)
class _Held:
    """What was written before the shell was ready for it."""

    parts: list[bytes] = field(default_factory=list)
    has_eof: bool = False

    def size(self) -> int:
        return sum(map(len, self.parts))


class FramedStream:
    """A command's stream, without what the shells around the command print; a Receiver of the raw stream.

    Writes are held back until the command runs: a shell reads more than its line.
    """

    def __init__(
        self,
        receiver: Receiver,
        *,
        command: str,
        mark: str,
        refusal: Callable[[str], Exception],
        is_live: bool = True,
        has_stderr: bool = True,
    ) -> None:
        self._ending = Ending(receiver)
        self.command = command
        # Makes the error for a host that does not run the command, of its words.
        self._refusal = refusal
        # Whether stderr_received() is called; else stderr comes with the raw stream's end.
        self._has_stderr = has_stderr
        self._stdout, self._stderr_frame = CommandFrame(mark, is_live=is_live), CommandFrame(mark)
        self.stderr = bytearray()
        # Set by attach().
        self._raw: Stream
        # None from the moment that the command runs.
        self._held: _Held | None = _Held()
        self._begun = asyncio.Event()
        # Why the command never ran; and whether nobody has said why, nor given an exit code. Set by closed().
        self._failure: Exception | None = None
        self.is_cut = False
        # Of the command, as its frame says it, or else the shell around it; None: it is not known.
        self.exit_code: int | None = None

    def __repr__(self) -> str:
        return f"<FramedStream {self.command} {self._stdout!r}>"

    @property
    def has_begun(self) -> bool:
        """Whether the command runs, or has run."""
        return self._held is None

    @property
    def noise(self) -> str:
        """What the shells around the command printed to stdout before it, in one line."""
        return said(self._stdout.before, b"")

    def attach(self, raw: Stream) -> None:
        """Take the stream that this one gets its bytes from; before any come."""
        self._raw = raw

    async def wait_begun(self) -> None:
        """Return when the command runs. Raises why it does not; the Receiver is told nothing then."""
        await self._begun.wait()
        if self._failure is not None:
            raise self._failure

    def data_received(self, data: bytes) -> None:
        """Called by the raw stream."""
        inside = self._stdout.feed(data)
        if self._stdout.has_begun:
            self._begin()
        if inside and not self._ending.hand_on(inside):
            self.close()
        self._end_with_frames()

    def stderr_received(self, data: bytes) -> None:
        """Called by a raw stream that tells stderr from stdout."""
        self.stderr += self._stderr_frame.feed(data)[: STDERR_BYTES - len(self.stderr)]
        self._end_with_frames()

    def _begin(self) -> None:
        held, self._held = self._held, None
        self._begun.set()
        if held is not None:
            for part in held.parts:
                self._raw.write(part)
            if held.has_eof:
                self._raw.write_eof()

    def _end_with_frames(self) -> None:
        """End once the command has: a start-up file's own processes may keep the raw stream open for ever."""
        if self._has_stderr and self._stdout.has_ended and self._stderr_frame.has_ended and not self._ending.has_ended:
            self._end(self._stdout.exit_code)
            self._raw.close()

    def closed(self, exc: Exception | None) -> None:
        """Called once by the raw stream."""
        if self._ending.has_ended:
            return
        if exc is not None and not isinstance(exc, CommandError):
            self._fail(exc) if self._held is not None else self._ending.end(exc)
            return
        if rest := self._stdout.finish():
            self._ending.hand_on(rest)
        around = exc.stderr.encode() if exc is not None and not self._has_stderr else b""
        self.stderr += self._stderr_frame.feed(around) + self._stderr_frame.finish()
        if not self._stdout.has_begun:
            words = said(self._stdout.before, self._stderr_frame.before)
            self.is_cut = not words and exc is None
            self._fail(self._refusal(words))
            return
        code = self._stdout.exit_code
        self._end(exc.exit_code if code is None and exc is not None else code)

    def _fail(self, failure: Exception) -> None:
        self._failure = failure
        self._ending.abandon()
        self._begun.set()

    def _end(self, code: int | None) -> None:
        self.exit_code = code
        if code == 0:
            self._ending.end(None)
        else:
            stderr = self.stderr.decode("utf-8", "replace")
            self._ending.end(CommandError(command=self.command, exit_code=-1 if code is None else code, stderr=stderr))

    def write(self, data: bytes | memoryview) -> None:
        """See Stream."""
        if self._held is None:
            self._raw.write(data)
        elif not self._ending.has_ended:
            self._held.parts.append(bytes(data))

    def write_eof(self) -> None:
        """See Stream."""
        if self._held is None:
            self._raw.write_eof()
        else:
            self._held.has_eof = True

    def unsent_bytes(self) -> int:
        """See Stream."""
        return self._raw.unsent_bytes() + (self._held.size() if self._held is not None else 0)

    def pause_reading(self) -> None:
        """See Stream."""
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        """See Stream."""
        self._raw.resume_reading()

    async def drain(self) -> None:
        """See Stream."""
        await self._raw.drain()

    def close(self) -> None:
        """See Stream. Before the command runs its Receiver is told nothing."""
        if self._held is not None:
            self._ending.abandon()
        self._ending.end(None)
        self._raw.close()
