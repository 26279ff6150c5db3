"""Leave kernels running when a Jupyter server stops, and take them up with their sessions when one is there again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import NoSuchKernel
from jupyter_server._tz import utcnow
from jupyter_server.serverapp import ServerApp
from jupyter_server.utils import url_path_join
from tornado.web import HTTPError

from kernelbridge.jupyter.kernelspecs import FOLDER_PREFIX
from kernelbridge.jupyter.provisioner import Provisioner
from kernelbridge.jupyter.rest import Stopping
from kernelbridge.kernel.kernel import Kernel
from kernelbridge.kernel.process_mark import Liveness
from kernelbridge.kernel.records import KernelRecord, Records, SessionRecord, default_folder
from kernelbridge.kernel.state import KernelState

# To bind the endpoints of one kernel takes some 20 ms; no host is asked.
TAKE_SECONDS = 10.0
# A goodbye takes 2 s at most; a start that is cancelled removes its container.
DETACH_ALL_SECONDS = 10.0
# Jupyter's own answers about kernels and sessions take milliseconds.
LET_IN_SECONDS = 0.3
# What cannot be taken up now is tried again after so long.
TAKE_RETRY_SECONDS = 60.0
# The 15 s in which a launcher may claim what another left, and some time for the relay to see it.
CLAIM_OVER_SECONDS = 20.0


def due(
    records: Iterable[KernelRecord],
    *,
    config: str,
    server: str,
    now: float,
    liveness: Callable[[KernelRecord], Liveness],
) -> list[KernelRecord]:
    """Return the kernels that a server with this root folder should take up: nobody holds them, and they live on.

    What a process of another machine holds, or held, is left to that machine: nobody knows here whether it has ended.
    `liveness` says of a record's holder whether it runs.
    """
    found = (record for record in records if record.config == config and not record.stop_wanted)
    return [record for record in found if _lives_on(record, server, now) and liveness(record) is Liveness.ENDED]


def _lives_on(record: KernelRecord, server: str, now: float) -> bool:
    if record.left is None:
        # Its process ended without a word, by a kill or with the machine: `lost_grace` keeps the kernel.
        return bool(record.server) and record.server == server
    if not record.persist or record.server not in ("", server):
        return False
    return not record.claim or now - record.left > CLAIM_OVER_SECONDS


def rows_by_kernel(models: Iterable[Mapping[str, Any]]) -> dict[str, tuple[SessionRecord, ...]]:
    """Return what is to be remembered of sessions, from what Jupyter's REST says of them."""
    found: dict[str, tuple[SessionRecord, ...]] = {}
    for model in models:
        texts = {key: str(model.get(key) or "") for key in ("path", "name", "type")}
        row = SessionRecord(session_id=str(model["id"]), **texts)
        kernel_id = str(model["kernel"]["id"])
        found[kernel_id] = (*found.get(kernel_id, ()), row)
    return found


def title_of(rows: Collection[SessionRecord]) -> str:
    """Return what people call a kernel with these sessions: the notebook's name; empty without one."""
    return next((row.name or row.path.rpartition("/")[2] for row in rows), "")


class KernelRestorer:
    """Leaves one server's kernels and takes them up; lives on the server's loop."""

    def __init__(self, server: ServerApp, config_path: Path) -> None:
        self._server = server
        self._log = server.log
        self._config = str(config_path)
        self._records = Records(default_folder())
        self._manager: Any = server.kernel_manager
        self._root = str(self._manager.root_dir)
        # When those that could not be taken up are tried again, by kernel id.
        self._retry_at: dict[str, float] = {}
        # Set by leave: nothing is taken up any more.
        self._is_leaving = False

    def __repr__(self) -> str:
        return f"<KernelRestorer {len(list(self._ours()))} kernels{', leaving' if self._is_leaving else ''}>"

    def at_load(self) -> None:
        """Take up what was left, before the server answers its first request: a page that asks earlier gives up.

        At load its loop does not run yet. Where it does, as in tests of others, this is done at the loop's next turn.
        """
        try:
            if not self._due():
                return
            loop = self._server.io_loop
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                loop.run_sync(self._take_all)
            else:
                # On the loop's own thread already: no call crosses one.
                loop.add_callback(self._take_all)
        except Exception:
            # The edge: a server without its old kernels is better than none.
            self._log.exception("kernelbridge: what was left running cannot be taken up")

    async def look(self) -> None:
        """Take up what others have left meanwhile, and remember which notebooks have the kernels; every 2 s."""
        await self._take_all()
        await self.keep_sessions()
        for _, manager, kernel in self._ours():
            if kernel.state is KernelState.STARTING:
                # Nobody knows whether it is idle: a culler must not count that time.
                manager.last_activity = utcnow()

    def observed(self, kernel_id: str, state: KernelState) -> None:
        """Tell Jupyter what a kernel does: without a page it hears nothing, and would cull one that works."""
        manager = self._manager.get_kernel(kernel_id) if kernel_id in self._manager else None
        if manager is not None and state in (KernelState.BUSY, KernelState.IDLE) and manager.execution_state != state:
            manager.execution_state = state.value
            manager.last_activity = utcnow()

    # -- taking up

    def _due(self) -> list[KernelRecord]:
        if self._server.gateway_config.gateway_enabled:
            # Another server has the kernels.
            return []
        now = time.time()
        known = self._records.kernels()
        liveness = self._records.holder_liveness
        found = due(known, config=self._config, server=self._root, now=now, liveness=liveness)
        waiting = {kernel_id for kernel_id, at in self._retry_at.items() if at > now}
        fresh = [one for one in found if one.kernel_id not in self._manager and one.kernel_id not in waiting]
        return [record for record in fresh if self._has_spec(record)]

    def _has_spec(self, record: KernelRecord) -> bool:
        """Whether Jupyter would start this very environment: it may have gone, or the name be another config's."""
        try:
            spec = self._manager.kernel_spec_manager.get_kernel_spec(FOLDER_PREFIX + record.environment)
        except NoSuchKernel:
            return False
        return bool(spec.metadata.get("kernelbridge", {}).get("config") == self._config)

    async def _take_all(self) -> None:
        for record in self._due():
            if self._is_leaving:
                return
            try:
                async with asyncio.timeout(TAKE_SECONDS):
                    await self._take(record)
            except Exception:
                # The edge: one that fails must not keep the server from starting, nor the others from coming.
                self._log.exception("kernelbridge: kernel %s cannot be taken up", record.kernel_id)
                self._retry_at[record.kernel_id] = time.time() + TAKE_RETRY_SECONDS

    async def _take(self, record: KernelRecord) -> None:
        kernel_id = record.kernel_id
        await self._manager.start_kernel(kernel_name=FOLDER_PREFIX + record.environment, kernel_id=kernel_id, path="")
        sessions = self._server.session_manager
        for row in record.sessions:
            try:
                # It is there where the sessions are kept in a file.
                await sessions.get_session(session_id=row.session_id)
            except HTTPError:
                await sessions.save_session(
                    row.session_id, path=row.path, name=row.name, type=row.type, kernel_id=kernel_id
                )
        self._log.info("kernelbridge: kernel %s (%s) is taken up again", kernel_id, record.title or record.environment)

    # -- what there is

    def kernel(self, kernel_id: str) -> Kernel | None:
        """Return a kernel that this server holds; None if it does not."""
        return next((kernel for mine, _, kernel in self._ours() if mine == kernel_id), None)

    def held(self) -> Iterator[tuple[str, KernelRecord | None, Kernel, str]]:
        """Yield the kernels that this server holds: id, what is remembered, kernel, what it does."""
        for kernel_id, manager, kernel in self._ours():
            runs = kernel.state is KernelState.RUNNING
            state = str(manager.execution_state) if runs else kernel.state.value
            yield kernel_id, self._records.kernel(kernel_id), kernel, state

    def _ours(self) -> Iterator[tuple[str, Any, Kernel]]:
        """Yield the kernels of ours that this server has: id, Jupyter's manager, kernel."""
        for kernel_id in self._manager.list_kernel_ids():
            manager = self._manager.get_kernel(kernel_id)
            provisioner = getattr(manager, "provisioner", None)
            if isinstance(provisioner, Provisioner) and provisioner.kernel is not None:
                yield kernel_id, manager, provisioner.kernel

    def beginning(self, prefix: str) -> tuple[str, Kernel] | None:
        """Return the one kernel of ours whose id begins so, if it is one."""
        found = [(kernel_id, kernel) for kernel_id, _, kernel in self._ours() if kernel_id.startswith(prefix)]
        return found[0] if len(found) == 1 else None

    # -- sessions

    async def keep_sessions(self) -> None:
        """Remember of each kernel which notebooks have it now."""
        ours = list(self._ours())
        if not ours:
            return
        rows = rows_by_kernel(await self._server.session_manager.list_sessions())
        for kernel_id, manager, _ in ours:
            found = rows.get(kernel_id, ())
            record = self._records.kernel(kernel_id)
            if record is not None and record.sessions != found:
                # On the fleet's loop: only there records are changed.
                title = title_of(found) or record.title
                change = _change(self._records, kernel_id, sessions=found, title=title)
                await asyncio.wrap_future(manager.provisioner.fleet.submit(change))

    # -- leaving

    async def leave(self) -> None:
        """Leave the kernels that are to persist, as the server stops, and let no page hear that they are gone.

        Called before jupyter_server ends those that it has still.
        """
        self._is_leaving = True
        try:
            async with asyncio.timeout(DETACH_ALL_SECONDS):
                await self.keep_sessions()
        except Exception:
            # An edge: without their names in the picker the kernels are to live on all the same.
            self._log.exception("kernelbridge: which notebooks have the kernels could not be kept")
        mine = [one for one in self._ours() if one[2].request.environment.persist and not one[2].is_final]
        if not mine:
            return
        base = self._server.base_url
        asked = [url_path_join(base, rf"/api/{what}.*") for what in ("kernels", "sessions")]
        # They come before Jupyter's own.
        web_app: Any = self._server.web_app
        web_app.add_handlers(".*$", [(pattern, Stopping) for pattern in asked])
        # Who was let in before is answered while the kernels are there still.
        await asyncio.sleep(LET_IN_SECONDS)
        ends = []
        for kernel_id, manager, kernel in mine:
            fleet = manager.provisioner.fleet
            manager.stop_restarter()
            self._manager.stop_watching_activity(kernel_id)
            self._manager.remove_kernel(kernel_id)
            ends.append(asyncio.wrap_future(fleet.submit(fleet.detach(kernel))))
        await asyncio.wait(ends, timeout=DETACH_ALL_SECONDS)


async def _change(records: Records, kernel_id: str, **changed: Any) -> None:
    records.change(kernel_id, **changed)
