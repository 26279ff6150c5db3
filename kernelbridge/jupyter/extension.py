"""Keep kernel specs as the config says, and report kernels' states as events and over REST: the server extension."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jupyter_server.extension.application import ExtensionApp
from tornado.ioloop import PeriodicCallback
from traitlets import Float, Unicode

from kernelbridge import __version__
from kernelbridge.channels.rate_limit import Limits
from kernelbridge.config import load as configs
from kernelbridge.config.schema import Config
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet import log_files
from kernelbridge.fleet.kernel_listing import KernelRow
from kernelbridge.hosts.progress import WorkProgress
from kernelbridge.jupyter import kernelspecs, running_kernelspecs, shared_fleets
from kernelbridge.jupyter.forward_pages import ForwardedPage
from kernelbridge.jupyter.forwarded_http import ROUTE
from kernelbridge.jupyter.rest import ROUTES, Gpus, Kernels
from kernelbridge.jupyter.restore import KernelRestorer
from kernelbridge.kernel.records import Records, default_folder
from kernelbridge.kernel.state import KernelState
from kernelbridge.mailbox import LoopMailbox
from kernelbridge.plain_text import printable

PROGRESS_SCHEMA = "https://kernelbridge.dev/events/kernel_progress/v2"


@dataclass(frozen=True, kw_only=True)
class Told:
    """The last word on one kernel."""

    state: KernelState
    text: str
    # When it came into this state.
    since: datetime
    # How far it is, where that is known in numbers.
    progress: Mapping[str, Any] | None = None


class KernelBridge(ExtensionApp):
    """Provides the kernel specs of kernelbridge.toml, says how their kernels do, keeps those that are to persist."""

    name = "kernelbridge"
    app_name = "kernelbridge"
    version = __version__
    description = "Kernels in GPU containers on remote hosts."
    load_other_extensions = True

    config_path = Unicode(help="The kernelbridge.toml to use; empty: KERNELBRIDGE_CONFIG, or the usual place.").tag(
        config=True
    )
    renew_seconds = Float(
        2.0, help="How often the config file, and what other programs left running, are looked at, in seconds."
    ).tag(config=True)

    def initialize_settings(self) -> None:
        """Called by jupyter_server at load, before its loop runs."""
        # Time and size of the config file that the specs are of; how often in a row it was not there.
        self._seen: tuple[int, int] | None = None
        self._missing_looks = 0
        # What the file says; None until it could be read.
        self._config: Config | None = None
        # By kernel id; dropped when the kernel has stopped.
        self._told: dict[str, Told] = {}
        self._path = configs.find_path(os.environ, Path(self.config_path) if self.config_path else None)
        assert self.serverapp is not None and self.serverapp.event_logger is not None
        self._server, self._logger = self.serverapp, self.serverapp.event_logger
        self._logger.register_event_schema(Path(str(resources.files(__package__) / "kernel_progress.yaml")))
        log_files.begin("server", os.environ, default_folder())
        self._renew()
        shared_fleets.limit(self._limits())
        # Tornado's loop is asyncio's underneath.
        server_loop: Any = self._server.io_loop
        self._mailbox = LoopMailbox(server_loop.asyncio_loop)
        self._stop_observing = shared_fleets.observe(self._observed)
        self._restorer = KernelRestorer(self._server, self._path)
        self._restorer.at_load()
        self._timer = PeriodicCallback(self._look, self.renew_seconds * 1000)
        self._timer.start()

    def initialize_handlers(self) -> None:
        """Called by jupyter_server after the settings."""
        settings = {Kernels: {"config_path": self._path, "held": self._rows}, Gpus: {"config_path": self._path}}
        self.handlers += [(path, handler, settings[handler]) for path, handler in ROUTES.items()]
        # With a new server the pages' addresses are new.
        self.handlers.append((ROUTE, ForwardedPage, {"port_of": self._port_of, "key": secrets.token_bytes(32)}))

    def _port_of(self, prefix: str, port: int) -> tuple[str, int] | None:
        """Return the one kernel of this server whose id begins so, and where its port is here, if it is forwarded."""
        found = self._restorer.beginning(prefix)
        here = found[1].port_here(port) if found is not None else None
        return None if found is None or here is None else (found[0], here)

    def _limits(self) -> Limits:
        """Ask what the server's websockets let through."""
        # Any: another package's own class may have no limits.
        made: Any = self._server.kernel_websocket_connection_class(config=self._server.config)
        if not getattr(made, "limit_rate", False):
            return Limits(messages_per_second=0, stream_bytes_per_second=0, window_seconds=1)
        return Limits(
            messages_per_second=made.iopub_msg_rate_limit,
            stream_bytes_per_second=made.iopub_data_rate_limit,
            window_seconds=made.rate_limit_window,
        )

    async def _look(self) -> None:
        self._renew()
        try:
            await self._restorer.look()
        except Exception:
            # The edge of the timer: the next look may do better.
            self.log.exception("kernelbridge: what is remembered of kernels could not be looked at")
        self._offer()

    def _offer(self) -> None:
        """Let VS Code's picker show the kernels that run and that nobody holds."""
        if self._config is None:
            return
        try:
            running_kernelspecs.offer(Records(default_folder()), self._config)
        except KernelBridgeError as exc:
            self.log.debug("kernelbridge: %s", exc)

    def _renew(self) -> None:
        """Write the kernel specs anew if the config file changed since the last time."""
        try:
            found = self._path.stat()
            seen = (found.st_mtime_ns, found.st_size)
        except OSError:
            seen = (0, 0)
        # Editors that save by renaming leave no file for a moment: that counts only when it is seen twice.
        self._missing_looks = 0 if seen != (0, 0) else self._missing_looks + 1
        if seen == self._seen or (self._missing_looks == 1 and self._seen is not None):
            return
        self._seen = seen
        try:
            self._config = configs.load(self._path)
            changes = kernelspecs.write(self._config, kernelspecs.default_root(), kernelspecs.launcher_path())
        except KernelBridgeError as exc:
            # The specs that are there stay: a typing error must not take running notebooks' kernels away.
            self.log.error("kernelbridge: %s", exc)
        else:
            self.log.info("kernelbridge: kernel specs from %s: %s", self._path, changes)

    # -- states

    def _observed(self, kernel_id: str, state: KernelState, news: str | WorkProgress) -> None:
        """Called on a fleet's thread; events belong on the server's loop."""
        numbers = news.to_json() if isinstance(news, WorkProgress) else None
        told = Told(state=state, text=printable(str(news)), since=datetime.now(UTC), progress=numbers)
        self._mailbox.post(self._tell, kernel_id, told)

    def _tell(self, kernel_id: str, told: Told) -> None:
        before = self._told.get(kernel_id)
        if before is not None and before.state == told.state:
            told = replace(told, since=before.since)
        self._told[kernel_id] = told
        kernel = self._restorer.kernel(kernel_id)
        self._logger.emit(
            schema_id=PROGRESS_SCHEMA,
            data={
                "kernel_id": kernel_id,
                "state": told.state.value,
                "text": told.text,
                "since": told.since.isoformat(),
                "host": kernel.host.name if kernel is not None else "",
                "gpus": list(kernel.placement.gpu_ids) if kernel is not None else [],
                "job": kernel.placement.job if kernel is not None else "",
                **({"progress": told.progress} if told.progress is not None else {}),
            },
        )
        self._restorer.observed(kernel_id, told.state)
        if told.state in (KernelState.STOPPED, KernelState.DETACHED):
            del self._told[kernel_id]

    def _rows(self) -> list[KernelRow]:
        """Return the kernels that this server holds, as far as that is known without asking a host."""
        rows = []
        for kernel_id, record, kernel, state in self._restorer.held():
            told = self._told.get(kernel_id)
            rows.append(
                KernelRow(
                    kernel_id=kernel_id,
                    environment=kernel.request.environment.name,
                    host=kernel.host.name,
                    image=kernel.request.environment.image,
                    state=state,
                    link=KernelState.HELD if kernel.is_joined else KernelState.LINK_LOST,
                    since=told.since if told else None,
                    owner="",
                    is_ours=True,
                    is_orphan=False,
                    created=datetime.fromtimestamp(record.started, UTC) if record else datetime.now(UTC),
                    gpus=",".join(kernel.placement.gpu_ids),
                    why=told.text if told else "",
                    title=record.title if record else "",
                )
            )
        return rows

    async def stop_extension(self) -> None:
        """Called by jupyter_server before it ends its kernels."""
        self._timer.stop()
        await self._restorer.leave()
        await shared_fleets.finish_stops()
        self._stop_observing()


_load_jupyter_server_extension = KernelBridge.load_classic_server_extension
