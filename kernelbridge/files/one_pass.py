"""Bring both sides of a workspace into step once: list, decide, ask, carry out, look again, remember."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from kernelbridge.config import fields
from kernelbridge.errors import WorkspaceBig, WorkspaceFailed
from kernelbridge.files.ignore import PARTS_FOLDER, Ignore
from kernelbridge.files.listing import FOLDER, Entry, Kind, Listing, hash_here, look_here, relative_target, scan
from kernelbridge.files.manifest import Manifest
from kernelbridge.files.plan import Action, Deed, Known, PlanTerms, big_copies, plan
from kernelbridge.files.project import Project
from kernelbridge.files.results import ResultTerms, results
from kernelbridge.files.transfer import local_copy, rsync
from kernelbridge.files.transfer.host_copy import HostCopy
from kernelbridge.files.transfer.local_copy import NotDone
from kernelbridge.files.transfer.sftp_copy import SftpCopier
from kernelbridge.hosts.progress import Meter, Say

_LOG = logging.getLogger(__name__)
# Up to so many files, and so many bytes together, SFTP is faster than a new rsync is started.
FEW_FILES: Final = 16
_FEW_BYTES: Final = 8 << 20
# So many are named one by one; of more their number is told.
_MOST_TOLD: Final = 5
_SAY_SECONDS: Final = 0.5
# Hashes are read side by side, as disks like it.
_HASHES_AT_ONCE: Final = 4


@dataclass(frozen=True, kw_only=True)
class WorkspaceVoice:
    """How a pass speaks to the user: `say` tells how far it is, `tell` what has to be known."""

    say: Say
    tell: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Side:
    """This machine's side of a workspace."""

    project: Project
    # The path of rsync here; None where there is none that we can use.
    rsync: str | None
    has_modes: bool
    folds_case: bool

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self.project.local_root

    @property
    def is_both(self) -> bool:
        """Whether results come back."""
        return self.project.workspace.sync == "both"

    def ignore(self) -> Ignore:
        """Return the rules of the project; a scan adds what .gitignore files say."""
        workspace = self.project.workspace
        try:
            docker = (self.root / ".dockerignore").read_text("utf-8", "replace")
        except OSError:
            docker = ""
        pull = workspace.pull if self.is_both else ()
        return Ignore(own=workspace.ignore, pull=pull, docker=docker)


class OnePass:
    """One pass over a workspace. `is_due` says afterwards whether another is due: something changed meanwhile."""

    def __init__(self, side: Side, copy: HostCopy, manifest: Manifest, voice: WorkspaceVoice) -> None:
        self._side, self._copy, self._manifest, self._voice = side, copy, manifest, voice
        self._stamp = time.strftime("%Y%m%dT%H%M%S")
        # The rules, with what .gitignore files say once all of it was listed.
        self.ignore = side.ignore()
        # What goes into the memory at the end, and out of it.
        self._learned: dict[str, Known] = {}
        self._forgotten: list[str] = []
        # What was replaced or deleted on the host, as it had been seen.
        self._replaced: dict[str, Entry] = {}
        # By path: what could not be done, and why; without a reason it changed meanwhile.
        self._failures: dict[str, str] = {}
        # What stays as it is until somebody does something, in sentences; filled at the end.
        self.lasting: set[str] = set()
        self.is_due = False

    async def run(
        self,
        paths: Collection[str] | None = None,
        *,
        asked: set[str] | None = None,
        told: Collection[str] = (),
    ) -> None:
        """Bring everything into step, or some files alone.

        Big files raise WorkspaceBig before anything is copied; with `asked` they are told, once, and left out. What is
        in `told` is not told again. Raises: WorkspaceBig, WorkspaceFailed, LinkLost, SshFailed.
        """
        await self._begin()
        known: Mapping[str, Known]
        if paths is None:
            local = await self._local()
            host = await self._copy.listing(self.ignore)
            known = await self._known_of(host)
        else:
            local = await asyncio.to_thread(self._look_here, paths)
            host = await self._look_there(paths)
            known = {path: one for path in paths if (one := self._manifest.known.get(path)) is not None}
        actions = await self._decide(local, host, known)
        actions = self._without_big(actions, known, asked)
        try:
            await self._carry_out(actions, host)
        finally:
            # What was done is known, also where a later step failed.
            await asyncio.to_thread(self._manifest.note, self._learned, self._forgotten)
        self._note_failures()
        if paths is None:
            self._note_left_out(local, host)
        for words in sorted(self.lasting.difference(told)):
            self._voice.tell(words)

    async def look(self) -> list[Action]:
        """Return what a whole pass would do, and do nothing of it. Raises as run()."""
        local = await self._local()
        host = await self._copy.listing(self.ignore)
        is_known = self._copy.facts.copy_id == self._manifest.copy_id and bool(host.entries)
        actions = await self._decide(local, host, self._manifest.known if is_known else {})
        return [action for action in actions if action.deed is not Deed.REMEMBER]

    async def _begin(self) -> None:
        facts = self._copy.facts
        if facts.copy_id != self._manifest.copy_id:
            await asyncio.to_thread(self._manifest.forget_all, copy_id=facts.copy_id)
        # Beside a commit's copy somebody else may be at work.
        if facts.has_replaced and self._side.project.checkout is None:
            before = {path: known.host for path, known in self._manifest.known.items()}
            self._tell_kept(await self._copy.settle(before, stamp=self._stamp))

    async def _known_of(self, host: Listing) -> Mapping[str, Known]:
        """Return what was known; of a copy in which nothing is any more nothing is, whoever has emptied it."""
        if not host.entries and self._manifest.known:
            await asyncio.to_thread(self._manifest.forget_all, copy_id=self._copy.facts.copy_id)
        return self._manifest.known

    async def _local(self) -> Listing:
        """List the project; of results those alone count that are looked at one by one."""
        if self._side.project.checkout is not None:
            return Listing()
        return await asyncio.to_thread(scan, self._side.root, self.ignore)

    def _look_here(self, paths: Collection[str]) -> Listing:
        found = {path: look_here(self._side.root, path) for path in paths}
        return Listing(entries={path: entry for path, entry in found.items() if entry is not None})

    async def _look_there(self, paths: Collection[str]) -> Listing:
        """Look at some paths on the host. Why one is not there is not known, so nothing is deleted here for it."""
        above = {folder.as_posix() for path in paths for folder in PurePosixPath(path).parents} - {"."}
        found = await self._copy.look([*paths, *above])
        listing = Listing(entries={path: entry for path, entry in found.items() if path in paths}, is_whole=False)
        # Whoever follows a link gets somewhere else: a pass over everything sees what is to be done.
        listing.unknown = {
            folder: "it is no folder there" for folder in above if folder in found and found[folder] != FOLDER
        }
        self.is_due = self.is_due or bool(listing.unknown)
        return listing

    # -- deciding

    async def _decide(self, local: Listing, host: Listing, known: Mapping[str, Known]) -> list[Action]:
        if self._side.project.checkout is not None:
            return await self._decide_results(host, known)
        terms = PlanTerms(
            host=self._copy.link.name,
            stamp=self._stamp,
            is_both=self._side.is_both,
            pulls=self.ignore.pulls,
            keeps_deleted=self._side.project.keeps_deleted,
            has_modes=self._side.has_modes,
            folds_case=self._side.folds_case,
        )
        actions = await asyncio.to_thread(plan, local, host, known, terms)
        if same := await self._compared(actions):
            return await asyncio.to_thread(plan, local, host, known, replace(terms, same=same))
        return actions

    async def _decide_results(self, host: Listing, known: Mapping[str, Known]) -> list[Action]:
        checkout = self._side.project.checkout
        assert checkout is not None
        terms = ResultTerms(
            host=self._copy.link.name,
            checkout=checkout,
            pulls=self.ignore.pulls,
            here=lambda path: look_here(self._side.root, path),
        )
        actions = await asyncio.to_thread(results, host, known, terms)
        if same := await self._compared(actions):
            return await asyncio.to_thread(results, host, known, replace(terms, same=same))
        return actions

    async def _compared(self, actions: Sequence[Action]) -> dict[str, bool]:
        paths = [action.path for action in actions if action.deed is Deed.COMPARE]
        return await self._compare(paths) if paths else {}

    async def _compare(self, paths: Sequence[str]) -> dict[str, bool]:
        """Read files on both sides; return which are the same. What cannot be read is not."""
        if len(paths) > FEW_FILES:
            self._voice.say(f"comparing {len(paths):,} files with those on {self._copy.link.name}")
        places = asyncio.Semaphore(_HASHES_AT_ONCE)

        async def ours(path: str) -> str:
            async with places:
                try:
                    return await asyncio.to_thread(hash_here, self._side.root / path)
                except OSError:
                    return ""

        theirs, own = await asyncio.gather(self._copy.hashes(paths), asyncio.gather(*map(ours, paths)))
        return {path: bool(one) and theirs.get(path) == one for path, one in zip(paths, own, strict=True)}

    def _without_big(self, actions: list[Action], known: Mapping[str, Known], asked: set[str] | None) -> list[Action]:
        limit_bytes = self._side.project.workspace.big_files
        big = big_copies(actions, limit_bytes, known=known)
        if not big:
            return actions
        sizes = {action.path: action.local.size_bytes for action in big if action.local is not None}
        biggest = max(sizes.values())
        # Of many that are big together alone, as much as would let them all.
        wanted = biggest if biggest > limit_bytes else -(-sum(sizes.values()) // 10)
        named = [f"{path} ({_megabytes(size)})" for path, size in list(sizes.items())[:_MOST_TOLD]]
        if len(sizes) > _MOST_TOLD:
            named.append(f"{len(sizes) - _MOST_TOLD:,} more")
        limit = fields.size_text(-(-wanted // (1 << 20)) << 20)
        error = WorkspaceBig(host=self._copy.link.name, files=named, limit=limit)
        if asked is None:
            raise error
        if not asked.issuperset(sizes):
            asked.update(sizes)
            self._voice.tell(str(error))
        left_out = {action.path for action in big}
        # What is kept beside something that does not come stays where it is.
        left_out |= {action.beside for action in actions if action.beside and action.path in left_out}
        return [action for action in actions if action.path not in left_out]

    # -- carrying out

    async def _carry_out(self, actions: Sequence[Action], host: Listing) -> None:
        by_deed: dict[Deed, list[Action]] = {deed: [] for deed in Deed}
        for action in actions:
            by_deed[action.deed].append(action)
        for action in by_deed[Deed.TELL]:
            self._voice.tell(f"{action.words}.")
        self._forgotten += [action.path for action in by_deed[Deed.FORGET]]
        for action in by_deed[Deed.REMEMBER]:
            if action.local is not None and action.host is not None:
                self._learned[action.path] = Known(action.local, action.host)
        try:
            await self._keep_beside(by_deed[Deed.KEEP_BESIDE])
            await self._delete_there(by_deed[Deed.DELETE_THERE])
            await self._here(by_deed[Deed.DELETE_HERE], self._delete_here)
            copies = [action for action in by_deed[Deed.COPY_THERE] if action.path not in self._failures]
            await self._copy_there(copies, host)
            modes = {action.path: action.local.is_executable for action in by_deed[Deed.MODE_THERE] if action.local}
            self._failures |= await self._copy.set_modes(modes)
            await self._learn([*copies, *by_deed[Deed.MODE_THERE]])
        finally:
            if self._copy.is_open and self._replaced:
                self._tell_kept(await self._copy.settle(self._replaced, stamp=self._stamp))
        await self._copy_here([action for action in by_deed[Deed.COPY_HERE] if action.path not in self._failures])

    async def _keep_beside(self, actions: Sequence[Action]) -> None:
        names = {action.path: action.beside for action in actions}
        refused = await self._copy.keep_beside(names)
        self._failures |= refused
        kept = [beside for path, beside in names.items() if path not in refused]
        self._tell_kept(kept)

    async def _delete_there(self, actions: Sequence[Action]) -> None:
        files = {action.path: action.host for action in actions if action.host and action.host.kind is not Kind.FOLDER}
        self._replaced |= files
        refused = await self._copy.move_away(list(files))
        self._failures |= refused
        await self._copy.remove_empty([action.path for action in actions if action.path not in files])
        self._forgotten += [action.path for action in actions if action.path not in refused]

    async def _copy_there(self, actions: Sequence[Action], host: Listing) -> None:
        """Make folders, then links, then files."""
        of_kind = {kind: [action for action in actions if action.local and action.local.kind is kind] for kind in Kind}
        folders = {action.path for action in of_kind[Kind.FOLDER]}
        for action in (*of_kind[Kind.LINK], *of_kind[Kind.FILE]):
            above = action.path.rpartition("/")[0]
            if above and above not in host.entries:
                folders.add(above)
        self._failures |= await self._copy.make_folders(folders)
        replaced = {action.path: action.host for action in of_kind[Kind.LINK] if action.host}
        self._replaced |= replaced
        self._failures |= await self._copy.move_away(list(replaced))
        links = {action.path: action.local.target for action in of_kind[Kind.LINK] if action.local}
        links = {path: target for path, target in links.items() if path not in self._failures}
        refused = await self._copy.make_links(links)
        self._failures |= refused
        self._tell_leading_out({path: target for path, target in links.items() if path not in refused})
        await self._send(of_kind[Kind.FILE], replaces=bool(host.entries) or not host.is_whole)

    async def _send(self, actions: Sequence[Action], *, replaces: bool) -> None:
        if not actions:
            return
        sizes = {action.path: action.local.size_bytes for action in actions if action.local}
        total_bytes = sum(sizes.values())
        meter = _CopyMeter(self._voice.say, f"to {self._copy.link.name}", len(actions), total_bytes)
        program = await self._bulk_program(len(actions), total_bytes)
        if program is not None:
            self._replaced |= {action.path: action.host for action in actions if action.host}
            try:
                await rsync.send(program, self._copy, self._side.root, sizes, meter.have, replaces=replaces)
                return
            except rsync.RsyncGaveUp as exc:
                await self._fall_back(exc)
                # What it has copied already is no longer as it was seen, and comes with the next pass.
        copier = SftpCopier(self._copy, await self._copy.sftp(), self._side.root, meter.add)
        try:
            await copier.send(actions)
        finally:
            self._failures |= copier.failures

    async def _fall_back(self, failure: rsync.RsyncGaveUp) -> None:
        """Go on by SFTP, which knows of each file why it cannot be copied. Raises: WorkspaceFailed: there is none."""
        _LOG.warning("[%s] rsync gave up: %s", self._copy.link.name, failure)
        if not await self._copy.has_sftp():
            raise WorkspaceFailed(host=self._copy.link.name, reason=str(failure)) from failure

    async def _bulk_program(self, count: int, total_bytes: int) -> str | None:
        """Return rsync where it is faster, or there is nothing else; None: SFTP. Raises: WorkspaceFailed: neither."""
        has_sftp = await self._copy.has_sftp()
        has_rsync = self._side.rsync is not None and rsync.can_serve(self._copy)
        if not has_sftp and not has_rsync:
            name = self._copy.link.name
            remedy = f"Install rsync on {name} and here, or ask for the sftp subsystem in its sshd_config."
            raise WorkspaceFailed(host=name, reason="it has no SFTP, and rsync is not on both ends", remedy=remedy)
        is_few = count <= FEW_FILES and total_bytes <= _FEW_BYTES
        return self._side.rsync if has_rsync and not (is_few and has_sftp) else None

    async def _learn(self, actions: Sequence[Action]) -> None:
        """Look what is on the host now, and remember what is what was meant."""
        actions = [action for action in actions if action.path not in self._failures]
        if not actions:
            return
        if len(actions) > FEW_FILES and self._copy.facts.has_find:
            found = (await self._copy.listing(self.ignore)).entries
        else:
            found = await self._copy.look([action.path for action in actions])
        doubtful, failed = {}, {}
        # What looks as before, and as it should: of one size and second.
        alike = await self._compare([action.path for action in actions if _is_alike(action, found.get(action.path))])
        for action in actions:
            there, local, is_copied = found.get(action.path), action.local, action.deed is Deed.COPY_THERE
            assert local is not None
            if there is None or (there == action.host and is_copied and not alike.get(action.path)):
                failed[action.path] = local
            elif _is_as_meant(local, there, is_copied=is_copied):
                self._learned[action.path] = Known(local, there)
            else:
                doubtful[action.path] = Known(local, there)
        for path, local in failed.items():
            self._failures[path] = await asyncio.to_thread(self._why_not_copied, path, local)
        await self._learn_doubtful(doubtful)

    def _why_not_copied(self, path: str, local: Entry) -> str:
        """Say why rsync has left a file as it was; nothing for one that has changed since."""
        try:
            if look_here(self._side.root, path) != local:
                return ""
            if local.kind is Kind.FILE:
                (self._side.root / path).open("rb").close()
        except OSError as exc:
            return f"{exc.strerror or exc} here"
        return f"it cannot be written on {self._copy.link.name}"

    async def _learn_doubtful(self, doubtful: Mapping[str, Known]) -> None:
        """Tell what changed while it was copied, here or there, from a file system that keeps times as it likes."""
        same = await self._compare([path for path, known in doubtful.items() if known.host.kind is Kind.FILE])
        for path, known in doubtful.items():
            if look_here(self._side.root, path) != known.local:
                self.is_due = True
            elif same.get(path):
                self._learned[path] = known
            else:
                # What we have put there, so that what is there now counts as changed.
                self._learned[path] = Known(known.local, known.local)
                self.is_due = True

    # -- what comes back

    async def _copy_here(self, actions: Sequence[Action]) -> None:
        files = [action for action in actions if action.host and action.host.kind is Kind.FILE]
        total_bytes = sum(action.host.size_bytes for action in files if action.host)
        meter = _CopyMeter(self._voice.say, f"from {self._copy.link.name}", len(files), total_bytes)
        program = await self._bulk_program(len(files), total_bytes) if files else None
        if program is not None:
            try:
                await self._fetch_by_rsync(program, files, meter)
                files = []
            except rsync.RsyncGaveUp as exc:
                await self._fall_back(exc)
        if files:
            copier = SftpCopier(self._copy, await self._copy.sftp(), self._side.root, meter.add)
            try:
                await copier.fetch(files)
            finally:
                self._failures |= copier.failures
        await self._here([action for action in actions if action.path not in self._failures], self._place)
        await asyncio.to_thread(local_copy.sweep_parts, self._side.root)

    async def _fetch_by_rsync(self, program: str, files: Sequence[Action], meter: _CopyMeter) -> None:
        arrived = self._side.root / PARTS_FOLDER / "arrived"
        await asyncio.to_thread(arrived.mkdir, parents=True, exist_ok=True)
        await rsync.fetch(program, self._copy, arrived, [action.path for action in files], meter.have)

        def stage() -> None:
            for action in files:
                assert action.host is not None
                try:
                    local_copy.stage(self._side.root, action.path, action.host, arrived=arrived)
                except FileNotFoundError:
                    self._failures[action.path] = ""
                except NotDone as exc:
                    self._failures[action.path] = exc.reason
            shutil.rmtree(arrived, ignore_errors=True)

        await asyncio.to_thread(stage)

    async def _here(self, actions: Iterable[Action], act: Callable[[Action], None]) -> None:
        """Change files of this machine; what cannot be changed is told."""

        def change() -> None:
            for action in actions:
                try:
                    act(action)
                except NotDone as exc:
                    self._failures[action.path] = exc.reason
                except OSError as exc:
                    self._failures[action.path] = f"{exc.strerror or exc} here"
                except (OverflowError, ValueError) as exc:
                    # A time, for example, that this machine's disk cannot have.
                    self._failures[action.path] = f"{exc} here"

        await asyncio.to_thread(change)

    def _delete_here(self, action: Action) -> None:
        assert action.local is not None
        local_copy.delete(self._side.root, action.path, action.local)
        self._forgotten.append(action.path)

    def _place(self, action: Action) -> None:
        assert action.host is not None
        entry = action.host
        if entry.kind is Kind.LINK:
            root = self._side.project.container_root
            entry = entry._replace(target=relative_target(action.path, entry.target, root))
        part = local_copy.staged(self._side.root, action.path, entry) if entry.kind is Kind.FILE else None
        if part is not None and part.stat().st_size != entry.size_bytes:
            # It grew while it was copied, as logs do.
            part.unlink()
            self.is_due = True
            return
        name = action.beside or action.path
        here = local_copy.place(self._side.root, name, entry, part=part, seen=action.local)
        if action.beside and action.local is None:
            self._voice.tell(f"{action.path} is another file here: the one of {self._copy.link.name} is {name}.")
        self._learned[action.path] = Known(here, action.host)

    # -- telling

    def _tell_kept(self, names: Sequence[str]) -> None:
        host = self._copy.link.name
        for name in names[:_MOST_TOLD]:
            self._voice.tell(f"{_original(name, host)} was changed here and on {host}: {host}'s version is now {name}.")
        if len(names) > _MOST_TOLD:
            self._voice.tell(
                f"{len(names) - _MOST_TOLD:,} more files were changed here and on {host}, and are kept so."
            )

    def _tell_leading_out(self, links: Mapping[str, str]) -> None:
        out = [path for path, target in links.items() if local_copy.leads_out(path, target)]
        for path in out[:_MOST_TOLD]:
            words = f"{path} is a link to {links[path]}, which is not in the workspace"
            self._voice.tell(f"{words}: it leads nowhere on {self._copy.link.name}, unless that is there too.")

    def _note_failures(self) -> None:
        told = {path: reason for path, reason in self._failures.items() if reason}
        self.is_due = self.is_due or len(told) < len(self._failures)
        for path, reason in list(told.items())[:_MOST_TOLD]:
            self.lasting.add(f"{path} could not be brought into step ({reason}).")
        if len(told) > _MOST_TOLD:
            self.lasting.add(f"{len(told) - _MOST_TOLD:,} more files could not be brought into step.")

    def _note_left_out(self, local: Listing, host: Listing) -> None:
        unread = {path or ".": f"it cannot be read here ({reason})" for path, reason in local.unknown.items()}
        unread |= {path: f"it cannot be read on {self._copy.link.name} ({why})" for path, why in host.unknown.items()}
        for path, reason in list({**unread, **local.left_out}.items())[:_MOST_TOLD]:
            self.lasting.add(f"{path} is not copied: {reason}.")


def _original(name: str, host: str) -> str:
    before, mark, after = name.rpartition(f".changed-on-{host}-")
    return before + (f".{after.partition('.')[2]}" if "." in after else "") if mark else name


def _is_alike(action: Action, there: Entry | None) -> bool:
    """Whether a file that was copied looks as the one that it replaced, though it may be the new one."""
    if action.deed is not Deed.COPY_THERE or action.local is None or there is None or there != action.host:
        return False
    return there.kind is Kind.FILE and _is_as_meant(action.local, there, is_copied=True)


def _is_as_meant(local: Entry, there: Entry, *, is_copied: bool) -> bool:
    """Whether what is on the host is what was copied there. SFTP sets whole seconds."""
    if local.kind is not there.kind:
        return False
    if local.kind is not Kind.FILE:
        return local.target == there.target
    is_same_time = local.mtime_ns // 1_000_000_000 == there.mtime_ns // 1_000_000_000
    return local.size_bytes == there.size_bytes and (is_same_time or not is_copied)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"


class _CopyMeter:
    """Counts what has been copied and says so now and then."""

    def __init__(self, say: Say, direction: str, files: int, size_bytes: int) -> None:
        self._say, self._files = say, files
        self._meter = Meter(f"copying {files:,} file{'' if files == 1 else 's'} {direction}", size_bytes)
        # What has been copied; moved by add() and have().
        self._files_done = self._bytes_done = 0
        self._said_at = time.monotonic()

    def add(self, files: int, size_bytes: int) -> None:
        """Count more."""
        self.have(self._files_done + files, self._bytes_done + size_bytes)

    def have(self, files: int, size_bytes: int) -> None:
        """Set the counts."""
        self._files_done, self._bytes_done = files, size_bytes
        now = time.monotonic()
        if now - self._said_at >= _SAY_SECONDS:
            self._said_at = now
            detail = f"{files:,} of {self._files:,} files" if self._files > 1 else ""
            self._say(self._meter.at(size_bytes, detail=detail))
