"""Keep a project's copy on a host in step for as long as a kernel runs there; one process of this machine does so.

`bring` before the kernel starts, `watch` while it runs, `finish` when it has ended, `aclose` at last. Of a project with
a checkout, whose own files nobody has there, results alone are fetched.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from watchfiles import Change, awatch

from kernelbridge.config.schema import Host
from kernelbridge.errors import KernelBridgeError, WorkspaceFailed
from kernelbridge.files.holder import Holder
from kernelbridge.files.ignore import Ignore
from kernelbridge.files.listing import Kind, look_here
from kernelbridge.files.manifest import Manifest
from kernelbridge.files.one_pass import FEW_FILES, OnePass, Side, WorkspaceVoice
from kernelbridge.files.plan import Action
from kernelbridge.files.project import HOST_WORKSPACES, LOCAL_WORKSPACES, Project
from kernelbridge.files.transfer import rsync
from kernelbridge.files.transfer.host_copy import HostCopy, open_copy
from kernelbridge.hosts.transport.retry import delays, is_transient
from kernelbridge.hosts.transport.stream import AnyLink

_LOG = logging.getLogger(__name__)
# So long after a change it is waited for more.
_DEBOUNCE_MS: Final = 50
_STEP_MS: Final = 20
# How often it is looked for results, at most; and how much of the time that may take.
_RESULTS_SECONDS: Final = 3.0
_RESULTS_SHARE: Final = 10
# How often changes are looked for where nothing tells of them.
_POLL_SECONDS: Final = 3.0
# How often who waits for the holder looks.
_WAIT_SECONDS: Final = 0.1
_TAKE_OVER_SECONDS: Final = 1.0
# After a failure that no other link heals.
_PAUSE_SECONDS: Final = 10.0
# Files that change while they are copied are copied again, but not for ever.
_MOST_PASSES: Final = 3
_RULE_FILES: Final = frozenset({".gitignore", ".dockerignore"})
Watch = Callable[[Path, Callable[[Change, str], bool]], AsyncIterator[set[tuple[Change, str]]]]


def _reason(exc: KernelBridgeError) -> str:
    return exc.reason if isinstance(exc, WorkspaceFailed) else exc.sentence.rstrip(".")


def _of_this_machine(exc: OSError) -> WorkspaceFailed:
    """Make the error for what this machine's own disk refuses."""
    words = f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror or str(exc)
    return WorkspaceFailed(host="This machine", reason=words, remedy="Make room, or give yourself the right to write.")


def watched(root: Path, is_wanted: Callable[[Change, str], bool]) -> AsyncIterator[set[tuple[Change, str]]]:
    """Yield what changes in a folder, until cancelled."""
    return awatch(root, watch_filter=is_wanted, debounce=_DEBOUNCE_MS, step=_STEP_MS, recursive=True)


class _Changes:
    """What has changed here since the last pass: some paths, or nobody knows what."""

    def __init__(self) -> None:
        # Filled by add() and add_all(), emptied by take().
        self._paths: set[str] = set()
        self._is_all = False
        self.come = asyncio.Event()

    def add(self, paths: Iterable[str]) -> None:
        """Some paths have changed."""
        self._paths.update(paths)
        self.come.set()

    def add_all(self) -> None:
        """Anything may have changed."""
        self._is_all = True
        self.come.set()

    def take(self) -> set[str] | None:
        """Return what has changed, None for anything; it is as if nothing had changed since."""
        paths = None if self._is_all else self._paths
        self._paths, self._is_all = set(), False
        self.come.clear()
        return paths


class WorkspaceSync:
    """One project on one host, for one kernel. Several of one machine share the copy, and one of them does the work."""

    def __init__(
        self,
        project: Project,
        host: Host,
        *,
        data_folder: Path,
        link: Callable[[], Awaitable[AnyLink]],
        voice: WorkspaceVoice,
        watch: Watch = watched,
    ) -> None:
        """`link` returns the link of now, and raises why there is none."""
        self._project, self._host, self._link, self._voice, self._watch = project, host, link, voice, watch
        folder = data_folder / LOCAL_WORKSPACES
        name = f"{project.name}.{host.name}" + (".results" if project.checkout is not None else "")
        self._manifest_path = folder / f"{name}.jsonl"
        self._holder = Holder(folder / f"{name}.lock")
        # The memory, read anew each time that this object becomes the holder: another may have changed it.
        self._manifest: Manifest | None = None
        # Set by the first pass.
        self._side: Side | None = None
        # The host's copy while its link is open, and what closes it; changed by _opened() and _close().
        self._copy: HostCopy | None = None
        self._closing = AsyncExitStack()
        self._passing = asyncio.Lock()
        # The rules as the last whole pass has read them.
        self._ignore: Ignore | None = None
        # Of which big files, and of which failure, the user was told.
        self._asked: set[str] = set()
        self._told = ""
        # What of single files stays as it is, in sentences that the user has heard.
        self._lasting: set[str] = set()
        # How long the last whole pass took.
        self._pass_seconds = 0.0

    def __repr__(self) -> str:
        return f"<WorkspaceSync {self._project.name} on {self._host.name}, {self._holder!r}>"

    async def __aenter__(self) -> WorkspaceSync:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def is_holder(self) -> bool:
        """Whether this object does the work for all kernels that share the copy."""
        return self._holder.is_held

    async def bring(self) -> None:
        """Have the copy in step; by a pass of ours, or by who holds the workspace.

        Raises: WorkspaceBig, WorkspaceFailed, LinkLost, SshFailed, HostUnreachable.
        """
        is_said = False
        while not self._take():
            if self._holder.is_in_step():
                return
            if failure := self._holder.failure():
                raise WorkspaceFailed(host=self._host.name, reason=failure)
            if not is_said:
                self._voice.say("waiting for another process that copies the workspace")
                is_said = True
            await asyncio.sleep(_WAIT_SECONDS)
        await self._pass(None, asked=None)

    async def pending(self) -> list[Action]:
        """Return what a pass would do; whoever holds the workspace is not disturbed. Raises as bring()."""
        try:
            manifest = await asyncio.to_thread(Manifest, self._manifest_path)
            copy = await self._opened()
            assert self._side is not None
            return await OnePass(self._side, copy, manifest, self._voice).look()
        except OSError as exc:
            raise _of_this_machine(exc) from exc

    def _take(self) -> bool:
        if self._holder.is_held:
            return True
        try:
            if not self._holder.take():
                return False
        except OSError as exc:
            raise _of_this_machine(exc) from exc
        self._manifest = None
        return True

    async def _pass(self, paths: set[str] | None, *, asked: set[str] | None) -> None:
        async with self._passing:
            self._holder.tell_state(is_in_step=False)
            try:
                try:
                    await self._passes(paths, asked)
                except OSError as exc:
                    raise _of_this_machine(exc) from exc
            except KernelBridgeError as exc:
                await self._close()
                # Who waits would wait in vain.
                self._holder.tell_state(is_in_step=False, failure="" if is_transient(exc) else _reason(exc))
                raise
            self._holder.tell_state(is_in_step=True)

    async def _passes(self, paths: set[str] | None, asked: set[str] | None) -> None:
        if self._manifest is None:
            self._manifest = await asyncio.to_thread(Manifest, self._manifest_path)
        copy = await self._opened()
        assert self._side is not None
        for _ in range(_MOST_PASSES):
            began_at = time.monotonic()
            one = OnePass(self._side, copy, self._manifest, self._voice)
            await one.run(paths, asked=asked, told=self._lasting)
            self._lasting |= one.lasting
            if paths is None:
                # What is in order again is told anew if it fails once more.
                self._lasting = one.lasting
                self._ignore, self._pass_seconds = one.ignore, time.monotonic() - began_at
            if not one.is_due:
                return
            paths = None

    async def _opened(self) -> HostCopy:
        link = await self._link()
        if self._copy is not None and self._copy.is_open and self._copy.link is link:
            return self._copy
        await self._close()
        if self._side is None:
            self._side = Side(
                project=self._project,
                rsync=await rsync.local_rsync(),
                has_modes=sys.platform != "win32",
                folds_case=sys.platform in ("win32", "darwin"),
            )
        folder = f"{link.facts.home}/{HOST_WORKSPACES}"
        self._copy = await self._closing.enter_async_context(open_copy(link, folder=folder, name=self._project.name))
        return self._copy

    async def _close(self) -> None:
        self._copy = None
        await self._closing.aclose()

    # -- while the kernel runs

    async def watch(self) -> None:
        """Bring each change to the host until cancelled, over whatever link there is; results come back as they appear.

        Never fails: what cannot be copied is told.
        """
        changes = _Changes()
        # Since the first pass, or since another process held it.
        changes.add_all()
        async with asyncio.TaskGroup() as group:
            if self._project.checkout is None:
                group.create_task(self._notice(changes))
            await self._keep_in_step(changes)

    async def _notice(self, changes: _Changes) -> None:
        """Note what changes in the folder; where the system tells nothing, look for it now and then."""
        root = self._project.local_root
        try:
            async for found in self._watch(root, self._is_wanted):
                changes.add(filter(None, (self._path_of(name) for _, name in found)))
        except (OSError, RuntimeError) as exc:
            # Too many folders for inotify, or a file system that tells nothing.
            self._voice.tell(f"{root} cannot be watched ({exc}): changes are looked for every {_POLL_SECONDS:g} s.")
        while True:
            await asyncio.sleep(max(_POLL_SECONDS, _RESULTS_SHARE * self._pass_seconds))
            changes.add_all()

    def _path_of(self, name: str) -> str:
        """Return the path of the workspace that the system calls so; empty for the folder itself."""
        path = Path(name).relative_to(self._project.local_root).as_posix()
        path = unicodedata.normalize("NFC", path) if sys.platform == "darwin" else path
        return "" if path == "." else path

    def _is_wanted(self, change: Change, name: str) -> bool:
        """Called on the watching thread for each change."""
        path, ignore = self._path_of(name), self._ignore
        return bool(path) and (ignore is None or not ignore.covers(path, is_folder=Path(name).is_dir()))

    async def _keep_in_step(self, changes: _Changes) -> None:
        pauses: Iterator[float] | None = None
        while True:
            try:
                if not self._holder.is_held:
                    if not self._take():
                        await asyncio.sleep(_TAKE_OVER_SECONDS)
                        continue
                    changes.add_all()
                await self._wait_due(changes)
                paths = self._few(changes.take())
                if paths is None or paths:
                    await self._pass(paths, asked=self._asked)
                pauses, self._told = None, ""
            except KernelBridgeError as exc:
                changes.add_all()
                pauses = pauses or delays()
                await asyncio.sleep(self._pause(exc, pauses))

    async def _wait_due(self, changes: _Changes) -> None:
        """Return when something has changed here, or results are to be looked for."""
        is_both = self._project.workspace.sync == "both"
        seconds = max(_RESULTS_SECONDS, _RESULTS_SHARE * self._pass_seconds) if is_both else None
        try:
            async with asyncio.timeout(seconds):
                await changes.come.wait()
        except TimeoutError:
            changes.add_all()

    def _pause(self, exc: KernelBridgeError, pauses: Iterator[float]) -> float:
        """Say how long to wait after a failure; of a link that is away others tell."""
        if is_transient(exc):
            return next(pauses)
        _LOG.info("the workspace %s is not in step: %s", self._project.name, exc)
        self._tell_once(str(exc))
        return _PAUSE_SECONDS

    def _tell_once(self, words: str) -> None:
        if words != self._told:
            self._told = words
            self._voice.tell(words)

    def _few(self, paths: set[str] | None) -> set[str] | None:
        """Return which files alone have to be looked at; None: everything, for a folder or a rule has changed."""
        if paths is None or len(paths) > FEW_FILES or self._ignore is None or self._manifest is None:
            return None
        found = set()
        for path in paths:
            folder, _, name = path.rpartition("/")
            known = self._manifest.known.get(path)
            try:
                here = look_here(self._project.local_root, path)
            except OSError:
                return None
            kinds = {entry.kind for entry in (here, known.local if known else None) if entry is not None}
            is_folder_known = not folder or folder in self._manifest.known
            if name in _RULE_FILES or Kind.FOLDER in kinds or (kinds and not is_folder_known):
                return None
            if kinds:
                found.add(path)
        return found

    async def finish(self) -> None:
        """Fetch the last results of what has ended, if nobody else does. Raises as bring()."""
        if self._project.workspace.sync == "both" and self._take():
            await self._pass(None, asked=self._asked)

    async def aclose(self) -> None:
        """Close what is open there, and let another process hold the workspace. Safe to call twice."""
        try:
            await self._close()
        finally:
            self._holder.release()
