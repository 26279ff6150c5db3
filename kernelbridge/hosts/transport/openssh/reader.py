"""Read ssh_config files by ourselves, where there is no `ssh` to ask: into what `ssh -G` would print.

What a login does not need is left out: values of unknown keywords, `Match canonical` and `final`, canonical names.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import logging
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kernelbridge.hosts.transport.openssh.tokens import Around, all_tokens, expand, target_tokens

_LOG = logging.getLogger(__name__)

# By keyword in lower case, in the order in which they count: as `ssh -G` prints them.
Values = Mapping[str, Sequence[str]]

DEFAULT_PORT = 22
DEFAULT_KEYS = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk", "id_xmss", "id_dsa")
DEFAULT_KNOWN_HOSTS = ("known_hosts", "known_hosts2")
# Of all others the first value counts.
_LISTS = frozenset({"identityfile", "certificatefile"})
# Criteria of `Match` whose patterns fit small letters and capitals alike; users, tags and `Host` lines tell them apart.
_ANY_CASE = frozenset({"host", "originalhost"})
# The rest of the line, with all its quotes and number signs.
_COMMANDS = frozenset({"proxycommand", "remotecommand", "localcommand", "knownhostscommand"})
_PROXIES = ("proxycommand", "proxyjump")
_SWITCHES = frozenset(
    {
        "compression",
        "identitiesonly",
        "passwordauthentication",
        "pubkeyauthentication",
        "hashknownhosts",
        "tcpkeepalive",
    }
)
_TIMES = frozenset({"connecttimeout", "serveraliveinterval"})
_NUMBERS = frozenset({"port", "serveralivecountmax"})
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MOST_INCLUDES = 16

_LINE = re.compile(r'\s*"?(?P<keyword>[^\s="]*)"?(?:\s*=\s*|\s*)(?P<rest>.*?)\s*')
_WORD = re.compile(r"""(?:"(?:\\["\\]|[^"])*"|'(?:\\['\\]|[^'])*'|\\["'\\ ]|[^\s"'])+""")
_PART = re.compile(r""""((?:\\["\\]|[^"])*)"|'((?:\\['\\]|[^'])*)'|\\(["'\\ ])""")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a config file."""

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{self.path} line {self.number}"


def split_line(text: str) -> tuple[str, str]:
    """Split a line into its keyword, in lower case, and the rest; both empty for a comment."""
    match = _LINE.fullmatch(text.strip())
    if match is None or match["keyword"].startswith("#"):
        return "", ""
    return match["keyword"].lower(), match["rest"]


def words_of(rest: str) -> list[str]:
    """Split the rest of a line into words; a word that begins with # ends it.

    Raises: ValueError: a quote is not closed.
    """
    words, at = [], 0
    while (rest := rest[at:].lstrip()) and not rest.startswith("#"):
        match = _WORD.match(rest)
        if match is None or (match.end() < len(rest) and not rest[match.end()].isspace()):
            raise ValueError("a quote is not closed")
        words.append(_PART.sub(lambda part: re.sub(r"\\(.)", r"\1", part[1] or part[2] or part[3] or ""), match[0]))
        at = match.end()
    return words


def seconds_of(text: str) -> int:
    """Read `90`, `10s`, `1m30s`. Raises: ValueError."""
    if not re.fullmatch(r"(\d+[smhdwSMHDW]?)+", text):
        raise ValueError(f"`{text}` is not a time")
    return sum(int(number) * _UNITS[unit.lower()] for number, unit in re.findall(r"(\d+)([smhdwSMHDW]?)", text))


def globbed(pattern: Path) -> list[Path]:
    """Return the files that an Include means, in ssh's order; without those whose names begin with a dot."""
    # Path.glob takes dot files too.
    return [Path(name) for name in sorted(glob.glob(str(pattern))) if Path(name).is_file()]  # noqa: PTH207


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the patterns and none of those with an exclamation mark."""
    # Only * and ? are special in OpenSSH's patterns.
    hits = [pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]"))]
    return bool(hits) and not any(pattern.startswith("!") for pattern in hits)


@dataclass
class ConfigReader:
    """Reads the files for one host."""

    name: str
    user: str | None = field(kw_only=True)
    port: int | None = field(kw_only=True)
    around: Around = field(kw_only=True)
    # How long the command of a `Match exec` may take.
    exec_seconds: float = field(default=60, kw_only=True)
    # Filled line by line.
    _values: dict[str, list[str]] = field(default_factory=dict, kw_only=True)

    def read(self, paths: Sequence[Path]) -> Values:
        """Read the files, the first one counting most; a missing one is fine.

        Raises: ValueError: a line that concerns this host cannot be read, said with its file and number. TimeoutError.
        """
        if self.user:
            self._values["user"] = [self.user]
        if self.port:
            self._values["port"] = [str(self.port)]
        for path in paths:
            if path.is_file():
                self._read(path, is_active=True, depth=0)
        ssh_folder = self.around.home / ".ssh"
        known = [" ".join(str(ssh_folder / name) for name in DEFAULT_KNOWN_HOSTS)]
        system = ["/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"]
        defaults = {"user": [self.around.user], "port": [str(DEFAULT_PORT)], "userknownhostsfile": known}
        defaults |= {"globalknownhostsfile": system, "identityfile": [f"~/.ssh/{name}" for name in DEFAULT_KEYS]}
        return {**defaults, **self._values, "hostname": [self._host()]}

    def _host(self) -> str:
        named = self._values.get("hostname", [self.name])[0]
        return expand(named, {"h": self.name, "%": "%"}).lower()

    def _read(self, path: Path, *, is_active: bool, depth: int) -> None:
        # Not as text, which would end lines at a lone carriage return too: that is a blank.
        text = path.read_bytes().decode("utf-8", "replace")
        now = is_active
        for number, line in enumerate(text.split("\n"), 1):
            keyword, rest = split_line(line)
            if not keyword:
                continue
            here = Line(path=path, number=number)
            try:
                if keyword in ("host", "match"):
                    now = is_active and self._begins(keyword, rest, here)
                elif now and keyword == "include":
                    for included in self._included(path, rest, depth):
                        self._read(included, is_active=True, depth=depth + 1)
                elif now:
                    self._take(keyword, rest)
            except ValueError as exc:
                raise exc if " line " in str(exc) else ValueError(f"{here}: {exc}") from exc

    def _included(self, path: Path, rest: str, depth: int) -> Iterator[Path]:
        if depth >= _MOST_INCLUDES:
            raise ValueError("too many files that include each other")
        yield from included_files(self.around, path, rest)

    def _take(self, keyword: str, rest: str) -> None:
        """Keep the value of a line that is in force."""
        # ProxyJump ends at the first blank, whatever quotes it has.
        words = rest.split()[:1] if keyword == "proxyjump" else [rest] if keyword in _COMMANDS else words_of(rest)
        if not any(words):
            raise ValueError(f"{keyword} has no value")
        value = _checked(keyword, words)
        if keyword in _PROXIES and any(self._values.get(proxy) for proxy in _PROXIES):
            return  # The first of the two counts, also where it says `none`.
        if keyword in _LISTS:
            self._values.setdefault(keyword, []).append(value)
        elif keyword == "sendenv":
            self._take_names(words)
        elif keyword == "setenv":
            # The first line alone, and in it the first value of each variable.
            first = {word.partition("=")[0]: word for word in reversed(words)}
            self._values.setdefault(keyword, [word for word in words if first[word.partition("=")[0]] is word])
        else:
            self._values.setdefault(keyword, [value])

    def _take_names(self, words: Sequence[str]) -> None:
        """Keep the names of variables that are sent; `-NAME` takes away what stands before it."""
        names = self._values.setdefault("sendenv", [])
        for word in words:
            if word.startswith("-"):
                names[:] = [name for name in names if not matches(name, [word[1:]])]
            else:
                names.append(word)

    def _begins(self, keyword: str, rest: str, here: Line) -> bool:
        """Whether the block that begins here is in force. One that we cannot judge never is, and is told of."""
        try:
            words = words_of(rest)
            return matches(self.name, words) if keyword == "host" else self._is_match(words)
        except ValueError as exc:
            _LOG.warning("%s: %s; its block is left out", here, exc)
            return False

    def _is_match(self, words: Sequence[str]) -> bool:
        rest = [part for word in words for part in _split_criterion(word)]
        result = True
        while rest:
            word = rest.pop(0)
            criterion = word.lower().removeprefix("!")
            if criterion in ("all", "canonical", "final"):
                holds = criterion == "all"
            else:
                if not rest:
                    raise ValueError(f"`Match {criterion}` has no value")
                holds = self._holds(criterion, rest.pop(0), is_asked=result)
            result = result and holds != word.startswith("!")
        return result

    def _holds(self, criterion: str, value: str, *, is_asked: bool) -> bool:
        user = self._values.get("user", [self.around.user])[0]
        tag = self._values.get("tag", [""])[0]
        subjects = {"host": self._host(), "originalhost": self.name, "user": user, "localuser": self.around.user}
        subjects |= {"tagged": tag, "sessiontype": "exec", "command": "sh"}
        if criterion == "exec":
            return is_asked and self._succeeds(value, user)
        if criterion not in subjects:
            raise ValueError(f"`Match {criterion}` is not known here")
        subject = subjects[criterion]
        if criterion in _ANY_CASE:
            subject, value = subject.lower(), value.lower()
        return matches(subject, value.split(","))

    def _succeeds(self, command: str, user: str) -> bool:
        port = int(self._values.get("port", [str(DEFAULT_PORT)])[0])
        target = target_tokens(name=self.name, host=self._host(), port=port, user=user)
        whole = expand(command, all_tokens(self.around, target, alias=self.name, jump=""))
        try:
            # The user's own config: a line for a shell, which ssh runs in the same way.
            ended = subprocess.run(  # noqa: S602
                whole,
                shell=True,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=self.exec_seconds,
            )
        except subprocess.TimeoutExpired as exc:
            raise TimeoutError(f"`{whole}` took longer than {self.exec_seconds:g} s") from exc
        return ended.returncode == 0


def _split_criterion(word: str) -> list[str]:
    """Split `host=lab`, which OpenSSH takes for `host lab`."""
    match = re.fullmatch(r"(!?[a-z]+)=(.+)", word, re.IGNORECASE)
    return [match[1], match[2]] if match else [word]


def _checked(keyword: str, words: Sequence[str]) -> str:
    """Return the value as `ssh -G` prints it. Raises: ValueError."""
    value = " ".join(words)
    if keyword in _SWITCHES and value.lower() not in ("yes", "no", "true", "false"):
        raise ValueError(f"{keyword} is yes or no, not `{value}`")
    if keyword in _NUMBERS and not value.isdecimal():
        raise ValueError(f"bad {keyword} `{value}`")
    if keyword == "port" and not 0 < int(value) < 65536:
        raise ValueError(f"bad port `{value}`")
    if keyword in _TIMES and value.lower() != "none":
        return str(seconds_of(value))
    if keyword == "addressfamily" and value.lower() not in ("any", "inet", "inet6"):
        raise ValueError(f"addressfamily is any, inet or inet6, not `{value}`")
    return value


def aliases(around: Around, paths: Sequence[Path]) -> list[str]:
    """Return the names that the files have a `Host` line of their own for, in order; patterns are no names.

    Nor are those that systemd puts into its ssh config for machines of this one, such as `machine/.host`.
    Files that they include count too, whatever `Match` or `Host` those stand in. What cannot be read has none.
    """
    found: dict[str, None] = {}
    for path in paths:
        if path.is_file():
            found |= dict.fromkeys(_aliases(around, path, depth=0))
    return list(found)


def _aliases(around: Around, path: Path, depth: int) -> Iterator[str]:
    try:
        lines = path.read_text("utf-8", errors="replace").split("\n")
    except OSError:
        return
    for keyword, rest in map(split_line, lines):
        with contextlib.suppress(ValueError):
            if keyword == "host":
                yield from (word for word in words_of(rest) if not set("*?!/") & set(word) and word != ".host")
            elif keyword == "include" and depth < _MOST_INCLUDES:
                for included in included_files(around, path, rest):
                    yield from _aliases(around, included, depth + 1)


def included_files(around: Around, path: Path, rest: str) -> Iterator[Path]:
    """Return the files that an `Include` line of a file means, by what stands behind it. Raises: ValueError."""
    folder = path.parent if path.is_relative_to("/etc/ssh") else around.home / ".ssh"
    for word in words_of(rest):
        yield from globbed(folder / around.path(word))


def default_paths(around: Around) -> list[Path]:
    """Return the user's config and the machine's."""
    machine = Path(around.environ.get("PROGRAMDATA", "/etc")) / "ssh" / "ssh_config"
    return [around.home / ".ssh" / "config", machine]
