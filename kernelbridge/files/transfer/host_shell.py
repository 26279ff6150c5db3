"""Keep one small shell open on a host that renames, removes and looks at files of a workspace.

Opened once, because a login shell's start-up files may take a second. One line asks, one line answers; names are
written so that neither spaces nor newlines nor bytes that are no text are in them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from kernelbridge.errors import KernelBridgeError, SshFailed
from kernelbridge.files.listing import FOLDER, Entry, Kind, file_entry, to_bytes, to_text
from kernelbridge.hosts.transport.stream import AnyLink, CommandError, Stream

# `$1` is the folder that all paths begin in. Answers are "0", or an exit code and a reason; of `look` and `hash` what
# was asked for. mv gets no folder as its second path, into which it would move: what is there already is refused.
_SCRIPT: Final = r"""
LC_ALL=C; export LC_ALL; umask 022
cd "$1" || exit 9
sum=
for try in sha256sum 'shasum -a 256'; do [ -n "$sum" ] || ! command -v ${try%% *} >/dev/null 2>&1 || sum=$try; done
decode() { case $1 in *\\*) word=$(printf '%b.' "$1"); word=${word%.} ;; *) word=$1 ;; esac; }
look() {
  [ -e "$1" ] || [ -L "$1" ] || { echo -; return; }
  find "$1" -maxdepth 0 -printf '%y %s %T@ %m ' && { [ ! -L "$1" ] || readlink "$1" | od -An -v -tx1 | tr -d ' \n'; }
}
there() { [ -e "$1" ] || [ -L "$1" ] || { echo gone; return 1; }; }
free() { ! { [ -e "$1" ] || [ -L "$1" ]; } || { echo 'File exists'; return 1; }; }
while IFS=' ' read -r deed first second; do
  decode "$first"; a=$word; decode "$second"; b=$word
  case $deed in
    folder) said=$(mkdir -p "$a" 2>&1) ;;
    move) said=$({ there "$a" && free "$b" && mv "$a" "$b"; } 2>&1) ;;
    unfolder) said=$({ rm -rf "$a/__pycache__" "$a/.kernelbridge-part"; rmdir "$a"; } 2>&1) ;;
    drop) said=$(rm -rf "$a" 2>&1) ;;
    link) said=$({ free "$a" && ln -s -- "$b" "$a"; } 2>&1) ;;
    mode) said=$({ there "$a" && chmod "$b" "$a"; } 2>&1) ;;
    look) said=$(look "$a" 2>&1) ;;
    hash) said=$({ head -c "$b" "$a" | ${sum:-false}; } 2>&1) ;;
    try) said=$({ head -c 65536 /dev/zero >"$a" && rm -f "$a"; } 2>&1) ;;
  esac
  code=$?
  case $said in *'
'*) said=$(printf '%s' "$said" | tr '\n' ' ') ;; esac
  printf '%s %s\n' "$code" "$said"
done
"""
# Reason of a deed whose file is not there any more.
GONE: Final = "gone"
_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./:=,+@%-")
# How long an answer may take; reading a file of many gigabytes takes its time, at this many bytes a second at least.
_ANSWER_SECONDS: Final = 60.0
_HASH_BYTES_PER_SECOND: Final = 20 << 20


class DeedRefused(Exception):
    """The host did not do what was asked, for a reason in its own words. Users never see it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class HostShell:
    """The shell, and a Receiver of its answers. Made by open_shell()."""

    def __init__(self, link: AnyLink) -> None:
        self._link = link
        # Set by open_shell().
        self.stream: Stream
        self._received = bytearray()
        # Who waits for the next answers, in the order in which they asked.
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        # Why there are no more answers; set by closed().
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        return f"<HostShell {self._link.name} {'open' if self._failure is None else 'ended'}>"

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return self._failure is None

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        *lines, rest = (bytes(self._received) + data).split(b"\n")
        self._received[:] = rest
        for line in lines:
            if self._waiting and not (answer := self._waiting.popleft()).done():
                answer.set_result(line)

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        self._failure = exc or SshFailed(host=self._link.name, reason="the shell for the workspace ended")
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(self._error())
                # Whoever asked for many hears it of the first: the others are nobody's error.
                answer.exception()
        self._waiting.clear()

    def _error(self) -> KernelBridgeError:
        if isinstance(self._failure, KernelBridgeError):
            return self._failure
        said = self._failure.stderr.strip() if isinstance(self._failure, CommandError) else str(self._failure)
        return SshFailed(host=self._link.name, reason=f"the shell for the workspace ended: {said}")

    async def ask(self, deed: str, path: str, more: str = "", *, seconds: float = _ANSWER_SECONDS) -> bytes:
        """Have something done. Raises: DeedRefused, LinkLost, SshFailed: it is no more, or does not answer in time."""
        return await self._answer(self._write(deed, path, more), seconds)

    async def ask_all(self, deed: str, pairs: Sequence[tuple[str, str]]) -> list[bytes | DeedRefused]:
        """Have the same done with many paths, without waiting in between. Raises as ask(), but for DeedRefused."""
        written = [self._write(deed, path, more) for path, more in pairs]
        answers: list[bytes | DeedRefused] = []
        for answer in written:
            try:
                answers.append(await self._answer(answer, _ANSWER_SECONDS))
            except DeedRefused as exc:
                answers.append(exc)
        return answers

    def _write(self, deed: str, path: str, more: str) -> asyncio.Future[bytes]:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self._failure is not None:
            answer.set_exception(self._error())
            return answer
        self._waiting.append(answer)
        self.stream.write(f"{deed} {_word(path)} {_word(more)}\n".encode())
        return answer

    async def _answer(self, answer: asyncio.Future[bytes], seconds: float) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                line = await answer
        except TimeoutError as exc:
            self.close()
            raise SshFailed(host=self._link.name, reason=f"no answer about the workspace in {seconds:g} s") from exc
        code, _, said = line.partition(b" ")
        if code != b"0":
            raise DeedRefused(reason_of(said))
        return said

    async def hash_beginning(self, path: str, size_bytes: int) -> str:
        """Return the SHA-256 of the first bytes of a file. Raises as ask()."""
        seconds = _ANSWER_SECONDS + size_bytes / _HASH_BYTES_PER_SECOND
        return to_text((await self.ask("hash", path, str(size_bytes), seconds=seconds)).partition(b" ")[0])

    def close(self) -> None:
        """End it. Safe to call twice."""
        self._failure = self._failure or SshFailed(host=self._link.name, reason="the shell for the workspace is closed")
        self.stream.close()


async def open_shell(link: AnyLink, folder: str) -> HostShell:
    """Open a shell whose paths begin in a folder of the host. Raises: LinkLost, SshFailed, HostUnreachable."""
    shell = HostShell(link)
    shell.stream = await link.open_command(["sh", "-c", _SCRIPT, "workspace", folder], shell)
    return shell


def _word(text: str) -> str:
    written = "".join(chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in to_bytes(text))
    return written or "."


def parse_look(answer: bytes) -> Entry | None:
    """Read what the shell says of one path; None where nothing is, or what is not copied. Raises: ValueError."""
    kind, *rest = answer.split(b" ")
    if kind in (b"f", b"l") and len(rest) < (4 if kind == b"l" else 3):
        raise ValueError("words are missing")
    if kind == b"d":
        return FOLDER
    if kind == b"l":
        return Entry(Kind.LINK, target=to_text(bytes.fromhex(rest[3].decode())).removesuffix("\n"))
    if kind != b"f":
        return None
    return file_entry(*rest[:3])


def reason_of(said: bytes) -> str:
    """Return the reason of a program's complaint: what stands behind its last colon."""
    return said.decode("utf-8", "replace").strip().rpartition(": ")[2] or "no reason given"
