"""The host's copy of a workspace: list it, read its hashes, move what is in the way, and never lose what was changed.

Beside the copy NAME stands a folder .NAME, which containers do not see: its mark (`id`), files that are not whole yet
(`parts`), and what was replaced (`replaced`) until it is sure that it was what had been seen.
"""

from __future__ import annotations

import asyncio
import posixpath
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from kernelbridge.errors import KernelBridgeError, SshFailed, WorkspaceFailed
from kernelbridge.files.ignore import Ignore
from kernelbridge.files.listing import (
    FIND_FORMAT,
    FOLDER,
    Entry,
    Kind,
    Listing,
    drop_ignored,
    find_words,
    is_inner,
    parse_find,
    to_bytes,
    to_text,
)
from kernelbridge.files.plan import beside_name
from kernelbridge.files.transfer.host_shell import GONE, DeedRefused, HostShell, open_shell, parse_look, reason_of
from kernelbridge.hosts.transport.stream import AnyLink, Collector, CommandError

if TYPE_CHECKING:
    from kernelbridge.hosts.transport.sftp import Sftp, SftpFacts  # loads asyncssh

# `$1` is where all workspaces are, closed to others; `$2` this one's name, `$3` the mark of a new one. The copy itself
# is open to all who get as far: a container's user may be another than the login.
_PREPARE_SCRIPT: Final = r"""
umask 077; mkdir -p "$1" && cd "$1" || exit 9
umask 022; mkdir -p ".$2/parts" || exit 9
[ -d "$2" ] || { rm -f ".$2/id"; mkdir "$2" || exit 9; }
[ -s ".$2/id" ] || printf '%s\n' "$3" >".$2/id" || exit 9
printf 'id %s\n' "$(cat ".$2/id")"
[ -d ".$2/replaced" ] && printf 'replaced yes\n'
find . -maxdepth 0 -printf 'find yes\n' 2>/dev/null
rsync --version 2>/dev/null | head -n 1
true
"""
_LIST_SCRIPT: Final = 'cd "$1" || exit 9; shift; LC_ALL=C exec find . "$@"'
_GONE: Final = 9
# The names come over stdin.
_HASH_SCRIPT: Final = r"""
cd "$1" || exit 9
if command -v sha256sum >/dev/null; then LC_ALL=C exec xargs -0 sha256sum; else LC_ALL=C exec xargs -0 shasum -a 256; fi
"""
_PREPARE_SECONDS: Final = 30.0
_LISTING_BYTES: Final = 1 << 30
_RSYNC_VERSION: Final = re.compile(rb"rsync +version (?:v)?(\d+)\.(\d+)")
# Of `sha256sum`: a backslash comes first where the name has escapes in it.
_HASH_LINE: Final = re.compile(rb"(\\?)([0-9a-f]{64}) [ *](.*)")
_ESCAPES: Final = {b"n": b"\n", b"r": b"\r", b"\\": b"\\"}
_FOLDERS_AT_ONCE: Final = 32
_FEW_FOLDERS: Final = 16
_FOLDERS_SCRIPT: Final = 'cd "$1" && xargs -0 mkdir -p --'
_FOLDERS_SECONDS: Final = 300.0
# Full, or not to be written at all: no other file fares better.
HOPELESS_REASONS: Final = frozenset(
    {"No space left on device", "Disk quota exceeded", "Read-only file system", "Input/output error"}
)


@dataclass(frozen=True, kw_only=True)
class CopyFacts:
    """What the host said of the copy and of its own programs."""

    copy_id: str
    has_find: bool
    # None: there is none, or another program of this name.
    rsync_version: tuple[int, int] | None
    # A pass before this one did not come to its end.
    has_replaced: bool


def parse_facts_of_copy(answer: bytes) -> CopyFacts:
    """Read what the host says once the copy's folders are made."""
    lines = answer.splitlines()
    words = dict(line.partition(b" ")[::2] for line in lines)
    return CopyFacts(
        copy_id=to_text(words.get(b"id", b"")),
        has_find=words.get(b"find") == b"yes",
        rsync_version=rsync_version(answer),
        has_replaced=words.get(b"replaced") == b"yes",
    )


def rsync_version(answer: bytes) -> tuple[int, int] | None:
    """Read `rsync --version`; None for none, and for what macOS has under this name."""
    match = None if b"openrsync" in answer else _RSYNC_VERSION.search(answer)
    return (int(match[1]), int(match[2])) if match else None


class HostCopy:
    """One copy, while a link is open. Made by open_copy()."""

    def __init__(self, link: AnyLink, shell: HostShell, *, folder: str, name: str, facts: CopyFacts) -> None:
        self.link, self.shell, self.facts = link, shell, facts
        self._folder, self._name = folder, name
        # The SFTP session, kept open; None until it is asked for. Set by sftp().
        self._sftp: Sftp | None = None
        # Why there is none; set by sftp().
        self._no_sftp: KernelBridgeError | None = None

    def __repr__(self) -> str:
        return f"<HostCopy {self._name} on {self.link.name}, {self.shell!r}>"

    @property
    def root(self) -> str:
        """Where the copy is on the host."""
        return posixpath.join(self._folder, self._name)

    @property
    def state_folder(self) -> str:
        """Where what belongs to it is, which containers do not see."""
        return posixpath.join(self._folder, f".{self._name}")

    @property
    def is_open(self) -> bool:
        """Whether it can still be used."""
        return self.link.is_open and self.shell.is_open

    def inside(self, path: str) -> str:
        """Return a path of the copy as the shell takes it."""
        return f"./{self._name}/{path}"

    def replaced(self, path: str) -> str:
        """Return where the shell puts what a path had before."""
        return f"./.{self._name}/replaced/{path}"

    async def sftp(self) -> Sftp:
        """Return the SFTP session, opened at the first call. Raises: SshFailed: there is none, LinkLost."""
        if self._no_sftp is not None:
            raise self._no_sftp
        if self._sftp is None:
            try:
                self._sftp = await self.link.open_sftp()
            except SshFailed as exc:
                self._no_sftp = exc
                raise
        return self._sftp

    async def has_sftp(self) -> bool:
        """Whether the host has SFTP. Raises: LinkLost."""
        try:
            await self.sftp()
        except SshFailed:
            return False
        return True

    async def listing(self, ignore: Ignore) -> Listing:
        """List the copy without what is ignored. Raises: LinkLost, SshFailed, WorkspaceFailed."""
        if not self.facts.has_find:
            found = await self._listing_by_sftp(self.root, ignore)
            await asyncio.to_thread(drop_ignored, found, ignore)
            return found
        exit_code, answer = await _collected(
            self.link, ["sh", "-c", _LIST_SCRIPT, "find", self.root, *find_words(ignore)]
        )
        if exit_code == _GONE:
            # The next one who opens it makes it anew.
            self.shell.close()
            remedy = "Try again: the folder is made anew then."
            raise WorkspaceFailed(host=self.link.name, reason=f"its folder there is gone: {self.root}", remedy=remedy)
        # Many entries: the loop has other kernels to serve.
        found = await asyncio.to_thread(parse_find, answer, ignore)
        # What vanishes while it is listed is no error, but nobody knows what else was not seen.
        found.is_whole = found.is_whole and exit_code == 0
        return found

    async def _listing_by_sftp(self, root: str, ignore: Ignore | None) -> Listing:
        sftp = await self.sftp()
        found = Listing()

        async def read(folder: str) -> list[str]:
            try:
                entries = await sftp.entries(to_bytes(posixpath.join(root, folder)))
            except OSError as exc:
                found.unknown[folder] = exc.strerror or str(exc)
                return []
            inner = []
            for name, facts in entries:
                path = f"{folder}/{to_text(name)}" if folder else to_text(name)
                if b"/" in name or not is_inner(path):
                    found.is_whole = False
                elif facts.is_link:
                    try:
                        target = await sftp.link_target(to_bytes(posixpath.join(root, path)))
                    except OSError:
                        # Gone since the folder was read, or nobody knows.
                        found.is_whole = False
                        continue
                    found.entries[path] = Entry(Kind.LINK, target=to_text(target))
                elif (entry := _of_sftp(facts)) is not None:
                    found.entries[path] = entry
                    if facts.is_folder and (ignore is None or ignore.enters(path)):
                        inner.append(path)
            return inner

        todo = [""]
        while todo:
            some, todo = todo[:_FOLDERS_AT_ONCE], todo[_FOLDERS_AT_ONCE:]
            for inner in await asyncio.gather(*map(read, some)):
                todo += inner
        return found

    async def look(self, paths: Sequence[str]) -> dict[str, Entry]:
        """Say what some paths are, those that are there. Raises: LinkLost, SshFailed."""
        if self.facts.has_find:
            answers = await self.shell.ask_all("look", [(self.inside(path), "") for path in paths])
            try:
                entries = [None if isinstance(answer, DeedRefused) else parse_look(answer) for answer in answers]
            except ValueError as exc:
                raise SshFailed(host=self.link.name, reason=f"its shell does not say what a file is: {exc}") from exc
            return {path: entry for path, entry in zip(paths, entries, strict=True) if entry is not None}
        sftp, found = await self.sftp(), {}
        for path in paths:
            where = to_bytes(posixpath.join(self.root, path))
            facts = await sftp.look(where)
            if facts is not None and facts.is_link:
                found[path] = Entry(Kind.LINK, target=to_text(await sftp.link_target(where)))
            elif facts is not None and (entry := _of_sftp(facts)) is not None:
                found[path] = entry
        return found

    async def hashes(self, paths: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of files of the copy, of those that can be read. Raises: LinkLost, SshFailed."""
        names = b"".join(b"./%s\0" % to_bytes(path) for path in paths)
        if not names:
            return {}
        _, answer = await _collected(self.link, ["sh", "-c", _HASH_SCRIPT, "hash", self.root], names)
        return parse_hashes(answer)

    async def make_folders(self, folders: Iterable[str]) -> dict[str, str]:
        """Make folders of the copy, with those above them; return why some could not be made.

        Raises: LinkLost, SshFailed, StartTimeout.
        """
        wanted = sorted({folder for folder in folders if folder})
        if len(wanted) > _FEW_FOLDERS:
            # One command makes hundreds in the time in which the shell makes ten, and does not say which it could not.
            names = b"".join(b"%s\0" % to_bytes(folder) for folder in wanted)
            made = await self.link.run(
                ["sh", "-c", _FOLDERS_SCRIPT, "mkdir", self.root], stdin=names, seconds=_FOLDERS_SECONDS
            )
            if made.exit_code == 0:
                return {}
        return await self._each("folder", [(folder, "") for folder in wanted])

    async def make_links(self, targets: Mapping[str, str]) -> dict[str, str]:
        """Make links; return why some could not be made. Raises: LinkLost."""
        return await self._each("link", list(targets.items()))

    async def set_modes(self, executable: Mapping[str, bool]) -> dict[str, str]:
        """Set whether files can be executed; return why some could not be set. Raises: LinkLost."""
        return await self._each("mode", [(path, "+x" if is_so else "-x") for path, is_so in executable.items()])

    async def remove_empty(self, folders: Sequence[str]) -> None:
        """Remove folders in this order; one that is not empty stays. Raises: LinkLost."""
        await self._each("unfolder", [(folder, "") for folder in folders])

    async def keep_beside(self, names: Mapping[str, str]) -> dict[str, str]:
        """Give what is at some paths other names; return why some have not got them. Raises: LinkLost."""
        pairs = [(self.inside(path), self.inside(beside)) for path, beside in names.items()]
        return self._refusals(list(names), await self.shell.ask_all("move", pairs))

    async def move_away(self, paths: Sequence[str]) -> dict[str, str]:
        """Move files out of the copy, for settle(); return why some are there still. Raises: LinkLost."""
        if paths:
            self.facts = replace(self.facts, has_replaced=True)
        folders = sorted({self.replaced(path).rpartition("/")[0] for path in paths})
        await self.shell.ask_all("folder", [(folder, "") for folder in folders])
        pairs = [(self.inside(path), self.replaced(path)) for path in paths]
        return self._refusals(paths, await self.shell.ask_all("move", pairs))

    async def _each(self, deed: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
        answers = await self.shell.ask_all(deed, [(self.inside(path), more) for path, more in pairs])
        return self._refusals([path for path, _ in pairs], answers)

    def _refusals(self, paths: Sequence[str], answers: Sequence[bytes | DeedRefused]) -> dict[str, str]:
        reasons = {
            path: answer.reason for path, answer in zip(paths, answers, strict=True) if isinstance(answer, DeedRefused)
        }
        return {path: reason for path, reason in reasons.items() if reason != GONE}

    async def settle(self, expected: Mapping[str, Entry], *, stamp: str) -> list[str]:
        """Let go what was replaced and is what had been seen; all else gets back into the copy, beside its successor.

        Returns the new names. Raises: LinkLost, SshFailed, WorkspaceFailed.
        """
        root = posixpath.join(self.state_folder, "replaced")
        if self.facts.has_find:
            words = ["-mindepth", "1", "-printf", FIND_FORMAT]
            exit_code, answer = await _collected(self.link, ["sh", "-c", _LIST_SCRIPT, "find", root, *words])
            found = await asyncio.to_thread(parse_find, answer)
            found.is_whole = found.is_whole and exit_code in (0, _GONE)
        else:
            found = await self._listing_by_sftp(root, None)
        # Nothing that was not seen is thrown away.
        if found.unknown or not found.is_whole:
            reason = f"what was replaced there cannot be looked through: {root}"
            raise WorkspaceFailed(host=self.link.name, reason=reason)
        strange = [
            path
            for path, entry in found.entries.items()
            if entry.kind is not Kind.FOLDER and entry != expected.get(path)
        ]
        names = {path: beside_name(path, host=self.link.name, stamp=stamp) for path in strange}
        refused = await self.make_folders(path.rpartition("/")[0] for path in names)
        pairs = [(self.replaced(path), self.inside(beside)) for path, beside in names.items()]
        refused |= self._refusals(strange, await self.shell.ask_all("move", pairs))
        for path, reason in refused.items():
            raise WorkspaceFailed(
                host=self.link.name, reason=f"{path}, which was changed there, cannot be kept: {reason}"
            )
        await self.shell.ask_all("drop", [(f"./.{self._name}/replaced", "")])
        self.facts = replace(self.facts, has_replaced=False)
        return list(names.values())

    async def why_not_written(self) -> str:
        """Say why nothing can be written, of which SFTP says only that it failed. Raises: LinkLost, SshFailed."""
        try:
            await self.shell.ask("try", f"./.{self._name}/parts/.try")
        except DeedRefused as exc:
            return exc.reason
        return "Failure"

    async def aclose(self) -> None:
        """End what is open there; the link stays. Safe to call twice."""
        self.shell.close()
        sftp, self._sftp = self._sftp, None
        if sftp is not None:
            await sftp.aclose()


@asynccontextmanager
async def open_copy(link: AnyLink, *, folder: str, name: str) -> AsyncIterator[HostCopy]:
    """Make the folders of a copy where they are missing, and open it.

    Raises: WorkspaceFailed, LinkLost, SshFailed, HostUnreachable.
    """
    words = ["sh", "-c", _PREPARE_SCRIPT, "workspace", folder, name, secrets.token_hex(8)]
    answer = await link.run(words, seconds=_PREPARE_SECONDS)
    if answer.exit_code != 0:
        reason = f"{folder} on {link.name}: {reason_of(answer.stderr)}"
        raise WorkspaceFailed(host=link.name, reason=reason, remedy="Make room for it in your home there.")
    facts = parse_facts_of_copy(answer.stdout)
    shell = await open_shell(link, folder)
    copy = HostCopy(link, shell, folder=folder, name=name, facts=facts)
    try:
        yield copy
    finally:
        await copy.aclose()


def _of_sftp(facts: SftpFacts) -> Entry | None:
    if facts.is_folder:
        return FOLDER
    if facts.is_file:
        return Entry(Kind.FILE, facts.size_bytes, facts.mtime_seconds * 1_000_000_000, bool(facts.mode & 0o100))
    return None


def parse_hashes(answer: bytes) -> dict[str, str]:
    """Read what `sha256sum` prints, by path."""
    found = {}
    for line in answer.split(b"\n"):
        if match := _HASH_LINE.fullmatch(line):
            name = match[3]
            if match[1]:
                name = re.sub(rb"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[0]), name)
            found[to_text(name.removeprefix(b"./"))] = match[2].decode()
    return found


async def _collected(link: AnyLink, words: Sequence[str], stdin: bytes = b"") -> tuple[int, bytes]:
    """Run a command whose answer may be long and may take as long as it likes; return exit code and answer."""
    collector = Collector(limit_bytes=_LISTING_BYTES)
    stream = await link.open_command(words, collector)
    try:
        stream.write(stdin)
        stream.write_eof()
        await collector.wait_ended()
    finally:
        stream.close()
    failure = collector.failure
    if isinstance(failure, KernelBridgeError):
        raise failure
    if failure is not None and not isinstance(failure, CommandError):
        raise SshFailed(host=link.name, reason=f"`{words[3]}` printed {failure}") from failure
    return failure.exit_code if failure is not None else 0, bytes(collector.received)
