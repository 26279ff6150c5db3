"""Ask `ssh -G` what its config says of one host, past bad lines that concern other hosts."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kernelbridge.hosts.transport.openssh.process import Answer, ask
from kernelbridge.hosts.transport.openssh.reader import Line, Values, globbed, split_line, words_of
from kernelbridge.hosts.transport.openssh.tokens import Around

_LOG = logging.getLogger(__name__)

# A `Match exec` may look for a VPN. It is a limit for what hangs.
SSH_QUERY_SECONDS = 60.0
SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
# "PATH line 3: ..." and "PATH: line 3: ...", depending on what is wrong.
_BAD_LINE = re.compile(r"(?P<path>.+?):? line (?P<number>\d+): (?P<reason>.*)")
# Said of lines that ssh goes on after.
_HARMLESS = ("Deprecated option", "Unsupported option")
# Apple's, in many a config that is shared with Linux: nothing that a login needs.
_APPLES = "usekeychain"
# A list that all its lines add to, and that nobody else reads: what stands in it at the end was in force.
_MARK = "KERNELBRIDGE_BAD_LINE_"
_NEVER = "Host !*"
# Bad lines of one file come together, those of files that it includes one file at a time.
_ROUNDS = 30
_CANNOT_ASK = ("No user exists for uid", "unknown option -- G", "illegal option -- G")


class SshUnusable(Exception):
    """There is no `ssh` here that could be asked."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Whom to ask about: as on ssh's command line."""

    name: str
    user: str | None
    port: int | None

    @property
    def words(self) -> list[str]:
        """The end of the command line."""
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        return [*user, *port, "--", self.name]


def config_words(around: Around) -> list[str]:
    """Return ssh's option for the config file: none where ssh itself finds the user's."""
    if around.home == around.database_home:
        return []
    config = around.home / ".ssh" / "config"
    return ["-F", str(config) if config.is_file() else "none"]


async def query(question: Question, around: Around, *, seconds: float = SSH_QUERY_SECONDS) -> Values:
    """Return what ssh would do, by keyword in lower case. Nothing is connected to.

    Raises: ValueError: the config cannot be used for this host. SshUnusable. TimeoutError.
    """
    ssh = shutil.which("ssh")
    if ssh is None:
        raise SshUnusable
    try:
        answer = await ask([ssh, "-G", *config_words(around), *question.words], seconds=seconds)
        if answer.exit_code != 0 and _bad_lines(answer):
            return await _query_mended(ssh, question, around, seconds=seconds)
    except TimeoutError:  # An OSError too.
        raise
    except OSError as exc:
        raise SshUnusable from exc
    return _parsed(answer)


async def query_defaults(*, seconds: float = SSH_QUERY_SECONDS) -> Values:
    """Return what ssh would do without any config. Raises: as query()."""
    ssh = shutil.which("ssh")
    if ssh is None:
        raise SshUnusable
    return _parsed(await ask([ssh, "-G", "-F", "none", "localhost"], seconds=seconds))


def _parsed(answer: Answer) -> Values:
    if answer.exit_code == 0:
        values: dict[str, list[str]] = {}
        for line in answer.stdout.splitlines():
            keyword, _, value = line.partition(" ")
            values.setdefault(keyword.lower(), []).append(value)
        return values
    if any(words in answer.stderr for words in _CANNOT_ASK):
        raise SshUnusable(answer.stderr)
    if "jumphost loop" in answer.stderr:
        raise ValueError("ProxyJump leads to itself")
    said = [line for line in answer.stderr.splitlines() if line and not line.startswith("Pseudo-terminal")]
    raise ValueError(said[-1].strip() if said else f"`ssh -G` ended with exit code {answer.exit_code}")


def _bad_lines(answer: Answer) -> dict[Line, str]:
    """Return what is wrong with which line, as far as ssh tells."""
    found = {}
    for text in answer.stderr.splitlines():
        match = _BAD_LINE.fullmatch(text)
        if match is not None and not match["reason"].startswith(_HARMLESS):
            found[Line(path=Path(match["path"]), number=int(match["number"]))] = match["reason"].rstrip(".")
    return found


async def _query_mended(ssh: str, question: Question, around: Around, *, seconds: float) -> Values:
    """Ask with copies of the config files, in which each bad line only leaves a mark."""
    bad: dict[Line, str] = {}
    for _ in range(_ROUNDS):
        with tempfile.TemporaryDirectory(prefix="kernelbridge-ssh-") as folder:
            copies = _Copies(Path(folder), bad=list(bad), around=around)
            answer = await ask([ssh, "-G", "-F", str(copies.write_all()), *question.words], seconds=seconds)
        new = {copies.original(line): reason for line, reason in _bad_lines(answer).items()}
        if answer.exit_code == 0 or not new.keys() - bad.keys():
            break
        bad |= new
    values = _parsed(answer)
    for number, (line, reason) in enumerate(bad.items()):
        concerns_us = any(name == f"{_MARK}{number}" for name in values.get("sendenv", ()))
        if concerns_us and _APPLES not in reason.lower():
            raise ValueError(f"{line}: {reason}")
        _LOG.log(logging.WARNING if line in copies.closed else logging.DEBUG, "%s is left out: %s", line, reason)
    return values


@dataclass(kw_only=True)
class _Copy:
    path: Path
    original: Path


@dataclass
class _Copies:
    """Copies of the user's and the machine's config, and of all files that they include, line for line."""

    folder: Path
    bad: Sequence[Line] = field(kw_only=True)
    around: Around = field(kw_only=True)
    # Filled by write_all().
    made: list[_Copy] = field(default_factory=list)
    # Bad lines that would have begun a block.
    closed: set[Line] = field(default_factory=set)

    def original(self, line: Line) -> Line:
        """Return the line that a copy's line was made of."""
        found = {copy.path: copy.original for copy in self.made}
        return Line(path=found.get(line.path, line.path), number=line.number)

    def write_all(self) -> Path:
        """Write them; return the one to begin with."""
        user = self.around.home / ".ssh" / "config"
        roots = [self._write(user, (self.around.database_home / ".ssh",))] if user.is_file() else []
        if self.around.home == self.around.database_home and SYSTEM_CONFIG.is_file():
            roots.append(self._write(SYSTEM_CONFIG, (SYSTEM_CONFIG.parent,)))
        first = self.folder / "config"
        first.write_text("".join(f'Include "{path}"\n' for path in roots), encoding="utf-8")
        return first

    def _write(self, original: Path, chain: tuple[Path, ...]) -> Path:
        """Write the copy of one file; `chain` is the folder of relative names, then the files that led to this one."""
        copy = _Copy(path=self.folder / f"{len(self.made)}", original=original)
        self.made.append(copy)
        lines = original.read_text("utf-8", errors="surrogateescape").split("\n")
        mended = [self._line(text, Line(path=original, number=n), chain) for n, text in enumerate(lines, 1)]
        copy.path.write_text("\n".join(mended), "utf-8", errors="surrogateescape")
        return copy.path

    def _line(self, text: str, line: Line, chain: tuple[Path, ...]) -> str:
        keyword, rest = split_line(text)
        if line in self.bad:
            if keyword in ("host", "match"):
                self.closed.add(line)
                return _NEVER
            return f"SendEnv {_MARK}{self.bad.index(line)}"
        if keyword != "include" or "%" in rest or "${" in rest:
            return text
        found = [path for word in words_of(rest) for path in self._included(word, chain[0])]
        if any(path in chain for path in found):
            return text  # A file that includes itself: ssh says so.
        copies = [self._write(path, (*chain, line.path)) for path in found]
        return "Include " + " ".join(f'"{path}"' for path in copies) if copies else ""

    def _included(self, word: str, folder: Path) -> list[Path]:
        pattern = re.sub(r"^~(?=/)", lambda _: str(self.around.database_home), word)
        return globbed(folder / pattern)
