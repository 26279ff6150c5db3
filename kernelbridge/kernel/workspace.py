"""Have a kernel's workspace on its host, in its container, and in step for as long as the kernel is held here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kernelbridge.channels.debug_paths import DebugPaths
from kernelbridge.config.schema import Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.files.project import Project
from kernelbridge.hosts.progress import Say
from kernelbridge.hosts.transport.stream import AnyLink
from kernelbridge.kernel.request import LaunchRequest

if TYPE_CHECKING:
    from kernelbridge.files.sync import WorkspaceSync  # loads watchfiles

_LOG = logging.getLogger(__name__)
# A first copy over a slow line takes hours, and so may results.
COPY_SECONDS = 12 * 3600.0


def with_workspace(request: LaunchRequest, host: Host, host_home: str) -> LaunchRequest:
    """Return a request whose environment mounts the workspace as it is on a host."""
    project, environment = request.project, request.environment
    if project is None:
        return request
    mounts = (*environment.mounts, project.mount(host, host_home))
    return replace(request, environment=environment.model_copy(update={"mounts": mounts}))


def debug_paths(project: Project | None) -> DebugPaths | None:
    """Return what an editor is told of paths; None where files are called the same here and there, or are not there."""
    if project is None or str(project.local_root) == project.container_root:
        return None
    paths = project.path_map()
    return DebugPaths(paths.path_mappings(), to_local=paths.to_local, is_windows=paths.is_windows)


class KernelWorkspace:
    """The workspace of one kernel; does nothing where it has none, or its host has the folder by itself."""

    def __init__(
        self,
        *,
        data_folder: Path,
        link_of: Callable[[Host], Awaitable[AnyLink]],
        say: Say,
        tell: Callable[[str], None],
    ) -> None:
        """`link_of` returns the link to a host at this moment, and raises why there is none.

        `say` takes how far a copy is, `tell` what the user has to know.
        """
        self._data_folder = data_folder
        self._link_of = link_of
        self._say, self._tell = say, tell
        # Of the host that has the kernel, or will, and what is copied; replaced where that is another one.
        self._sync: WorkspaceSync | None = None
        self._copied: tuple[str, Project] | None = None
        self._watching: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<KernelWorkspace {self._sync!r}{', watched' if self._watching else ''}>"

    async def bring(self, project: Project | None, host: Host) -> bool:
        """Have the copy on a host in step; whether there was anything to do. Raises KernelBridgeError."""
        sync = await self._of(project.brought() if project is not None else None, host)
        if sync is None:
            return False
        await sync.bring()
        return True

    async def _of(self, project: Project | None, host: Host) -> WorkspaceSync | None:
        if project is None or not project.is_copied(host):
            return None
        # Here and not above: most kernels have no workspace, and it loads watchfiles and pathspec.
        from kernelbridge.files.one_pass import WorkspaceVoice
        from kernelbridge.files.sync import WorkspaceSync

        if self._sync is None or self._copied != (host.name, project):
            await self.aclose()
            self._copied = (host.name, project)
            self._sync = WorkspaceSync(
                project,
                host,
                data_folder=self._data_folder,
                link=lambda: self._link_of(host),
                voice=WorkspaceVoice(say=self._say, tell=self._tell),
            )
        return self._sync

    async def watch(self, project: Project | None, host: Host) -> None:
        """Bring each change from now on, until aclose(); of a commit's copy fetch results. Safe to call twice."""
        if project is not None and not project.is_watched:
            await self.aclose()
            return
        sync = await self._of(project, host)
        if sync is not None and self._watching is None:
            self._watching = asyncio.create_task(self._watch(sync))

    async def _watch(self, sync: WorkspaceSync) -> None:
        try:
            await sync.watch()
        except Exception as exc:
            # The edge of the task: the kernel runs on without.
            _LOG.exception("a workspace is not watched any more")
            self._tell(f"The workspace is not kept in step any more ({type(exc).__name__}: {exc}).")

    async def aclose(self, *, finishes: bool = False) -> None:
        """Watch no more; with `finishes` what the kernel has made last is fetched. Safe to call twice."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
        sync, self._sync = self._sync, None
        if sync is not None:
            try:
                if finishes:
                    await sync.finish()
            except KernelBridgeError as exc:
                _LOG.warning("the last results of a workspace were not fetched: %s", exc)
                self._tell(f"The last results were not fetched: {exc}")
            finally:
                await sync.aclose()
