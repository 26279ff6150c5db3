"""Provision kernels for jupyter_client: its hooks, a few lines each on fleet and kernel."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePath
from typing import Any, TypeVar, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Unicode

from kernelbridge.channels import endpoints
from kernelbridge.config import load as configs
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.jupyter import shared_fleets
from kernelbridge.kernel.kernel import Kernel
from kernelbridge.kernel.lifecycle import PUBLISHED_AFTER_SECONDS
from kernelbridge.kernel.process_mark import Liveness
from kernelbridge.kernel.request import LaunchRequest
from kernelbridge.kernel.state import KernelState

_T = TypeVar("_T")
_POLL_SECONDS = 0.1
_SIGTERM, _SIGKILL = 15, 9
# How long jupyter_client waits for an end before it goes on without: with and without a link.
SHUTDOWN_SECONDS, SHUTDOWN_WITHOUT_LINK_SECONDS = 10.0, 1.0
# The removal of a container when Jupyter is done with the kernel.
CLEANUP_SECONDS = 30.0
CLEANUP_WITHOUT_KERNEL_SECONDS = 0.5
FORGOTTEN_AFTER_SECONDS = 60.0


class Provisioner(KernelProvisionerBase):
    """Starts a kernel of one environment in a container on one of its hosts."""

    environment = Unicode(help="Name of the environment in kernelbridge.toml.").tag(config=True)
    config_path = Unicode(help="The kernelbridge.toml that names it; empty: the usual one.").tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Set by launch_kernel; the same object over restarts, None before the first start and after the last end.
        self._kernel: Kernel | None = None
        self._fleet: Fleet | None = None
        # What the client wants to be said to the kernel process; set by pre_launch.
        self._extra_arguments: list[str] = []

    async def _on_loop(self, fleet: Fleet, coro: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the fleet's own loop; the caller's may stand still between calls."""
        return await asyncio.wrap_future(fleet.submit(coro))

    @property
    def kernel(self) -> Kernel | None:
        """The kernel behind this one, for the extension; None before its start and after its end."""
        return self._kernel

    @property
    def fleet(self) -> Fleet | None:
        """Whose kernel it is; None before the first start."""
        return self._fleet

    @property
    def has_process(self) -> bool:
        """Asked by KernelManager: whether a kernel was started and not cleaned up yet."""
        return self._kernel is not None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Called by KernelManager before every (re)start."""
        manager = self.parent
        if manager is not None and manager.connection_file and not manager._connection_file_written:
            # A file that a crashed server left would be compared with ours and refused.
            Path(manager.connection_file).unlink(missing_ok=True)  # noqa: ASYNC240 - one small local file
        self._extra_arguments = list(kwargs.pop("extra_arguments", None) or ())
        return dict(await super().pre_launch(cmd=[], **kwargs))

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Called by KernelManager to start, and to start again; returns when the endpoints answer."""
        fleet = self._fleet = shared_fleets.fleet_of(configs.find_path(os.environ, self._named_path()))
        kernel = self._kernel
        if kernel is None or kernel.state is KernelState.STOPPED:
            self._make_listable()
            request = self._wanted(fleet, kwargs)
            # From here on the kernel owns the folder of its endpoints.
            made = endpoints.made(runtime_folder=os.environ.get("XDG_RUNTIME_DIR"))
            begun = fleet.attach(request, made) if self._is_left(fleet) else fleet.start(request, made)
            kernel = self._kernel = await self._on_loop(fleet, begun)
        else:
            wants = partial(self._wanted, fleet, kwargs)
            # Before anything can fail: clients who come then are to hear why.
            kernel.channels.endpoints.publish()
            await self._on_loop(fleet, fleet.relaunch(kernel, wants))
        kernel.channels.endpoints.publish()
        self.connection_info = cast(KernelConnectionInfo, kernel.channels.endpoints.connection_info())
        return self.connection_info

    def _wanted(self, fleet: Fleet, launch: Mapping[str, Any]) -> LaunchRequest:
        """Read what the config says of the environment at this moment; `launch` are launch_kernel()'s own words.

        Raises UnknownEnvironment, WorkspaceRefused.
        """
        environ: Mapping[str, str] = launch.get("env") or {}
        return fleet.launch_request(
            self.environment,
            kernel_id=self.kernel_id,
            environ=environ,
            folder=str(launch.get("cwd") or Path.cwd()),
            arguments=tuple(self._extra_arguments),
            # Only Jupyter Server's multi kernel manager has a root folder.
            server=getattr(getattr(self.parent, "parent", None), "root_dir", ""),
            title=PurePath(environ.get("JPY_SESSION_NAME", "")).name,
            connection_file=getattr(self.parent, "connection_file", ""),
        )

    def _make_listable(self) -> None:
        """Set what Jupyter Server lists a kernel by, before it does so: it would answer 500 (jupyter_server 2.21)."""
        manager = self.parent
        if manager is not None and manager.has_trait("last_activity"):
            manager.execution_state, manager.last_activity = KernelState.STARTING.value, datetime.now(UTC)

    def _is_left(self, fleet: Fleet) -> bool:
        """Whether a kernel of this id runs already, held by no process of this machine: a KernelRestorer starts those.

        Its relay says whether anybody else holds it.
        """
        record = fleet.records.kernel(self.kernel_id)
        if record is None or record.stop_wanted:
            return False
        return fleet.records.holder_liveness(record) is not Liveness.ALIVE

    def _named_path(self) -> Path | None:
        return Path(self.config_path) if self.config_path else None

    async def poll(self) -> int | None:
        """Called by the restarter every few seconds: None while the kernel runs, or its end is not known or heard."""
        kernel = self._kernel
        if kernel is None:
            return 0
        if kernel.exit_code is not None and kernel.is_final:
            if not self._is_heard(kernel):
                return None
            self._forbid_restart()
        return kernel.exit_code

    def _is_heard(self, kernel: Kernel) -> bool:
        """Whether a cell has shown why the kernel ended: pages drop, without a word, what is run in a dead one.

        Only a server has pages, and a restarter; other clients ask whether the kernel is alive and want to be told.
        """
        manager: Any = self.parent
        if self._restarter is None or manager.shutting_down or kernel.state is not KernelState.FAILED:
            return True
        heard_at = kernel.channels.end_heard_at
        return heard_at is not None and time.monotonic() - heard_at >= PUBLISHED_AFTER_SECONDS

    @property
    def _restarter(self) -> Any:
        # A private name: nothing public tells whether there is one, nor makes it give up (jupyter_client 8.10).
        return getattr(self.parent, "_restarter", None)

    def _forbid_restart(self) -> None:
        """Stop the restarter, which would only repeat a late failure, five times."""
        restarter = self._restarter
        if restarter is not None and restarter.restart_limit:
            restarter.restart_limit = 0
            # Jupyter forgets a dead kernel without a cleanup; until then a client may still ask why.
            if self._kernel is not None and self._fleet is not None:
                self._fleet.submit(self._fleet.stop_failed(self._kernel, FORGOTTEN_AFTER_SECONDS))

    async def wait(self) -> int | None:
        """Called by KernelManager after terminate and kill."""
        while (code := await self.poll()) is None:  # noqa: ASYNC110 - the state is another loop's
            await asyncio.sleep(_POLL_SECONDS)
        return code

    async def send_signal(self, signum: int) -> None:
        """Called by KernelManager.signal_kernel."""
        if self._kernel is not None and self._fleet is not None:
            await self._on_loop(self._fleet, _signal(self._kernel, signum))

    async def kill(self, restart: bool = False) -> None:
        """Called by KernelManager; ends the process only, because `restart` is False on real restarts too."""
        await self.send_signal(_SIGKILL)

    async def terminate(self, restart: bool = False) -> None:
        """Called by KernelManager before kill."""
        await self.send_signal(_SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        """Called by KernelManager after the end; only without `restart` the container goes."""
        if restart or self._kernel is None or self._fleet is None:
            return
        kernel, self._kernel = self._kernel, None
        is_joined = kernel.is_joined
        stopped = self._fleet.submit(self._fleet.stop(kernel))
        # Without a kernel nobody waits for long: the removal goes on on the fleet's loop, and `clean` finds what stays.
        seconds = CLEANUP_SECONDS if is_joined else CLEANUP_WITHOUT_KERNEL_SECONDS
        await asyncio.wait([asyncio.wrap_future(stopped)], timeout=seconds)

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Called by KernelManager before a shutdown, in seconds."""
        is_joined = self._kernel is not None and self._kernel.is_joined
        return max(recommended, SHUTDOWN_SECONDS) if is_joined else SHUTDOWN_WITHOUT_LINK_SECONDS

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Called by gateways that keep kernels over restarts."""
        info = await super().get_provisioner_info()
        return {**info, "environment": self.environment, "config_path": self.config_path}


async def _signal(kernel: Kernel, number: int) -> None:
    kernel.signal(number)
