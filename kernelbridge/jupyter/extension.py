"""The Jupyter server extension: kernel specs kept as the config says, progress as Jupyter events.

Starting and ending kernels is not here but in provisioner.py, which Jupyter's own kernel managers call.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from jupyter_server.extension.application import ExtensionApp
from tornado.ioloop import PeriodicCallback
from traitlets import Float, Unicode

from kernelbridge import config as configs
from kernelbridge import kernelspecs
from kernelbridge.errors import KernelBridgeError
from kernelbridge.jupyter import fleets
from kernelbridge.version import __version__

PROGRESS_SCHEMA = "https://kernelbridge.dev/events/kernel_progress/v1"


class KernelBridge(ExtensionApp):
    """Provides the kernel specs of kernelbridge.toml and says how their starts go on."""

    name = "kernelbridge"
    app_name = "kernelbridge"
    version = __version__
    description = "Kernels in GPU containers on remote hosts."
    load_other_extensions = True

    config_path = Unicode(help="The kernelbridge.toml to use; empty: KERNELBRIDGE_CONFIG, or the usual place.").tag(
        config=True
    )
    renew_seconds = Float(2.0, help="How often the config file is looked at for changes, in seconds.").tag(config=True)

    def initialize_settings(self) -> None:
        """Called by jupyter_server at load, before its loop runs."""
        # Time and size of the config file that the specs are of; how often in a row it was not there.
        self._seen: tuple[int, int] | None = None
        self._missing_looks = 0
        self._path = configs.find_path(os.environ, Path(self.config_path) if self.config_path else None)
        assert self.serverapp is not None and self.serverapp.event_logger is not None
        self._server, self._logger = self.serverapp, self.serverapp.event_logger
        self._logger.register_event_schema(Path(str(resources.files(__package__) / "kernel_progress.yaml")))
        self._renew()
        self._timer = PeriodicCallback(self._renew, self.renew_seconds * 1000)
        self._timer.start()
        self._stop_observing = fleets.observe(self._observed)

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
            changes = kernelspecs.write(
                configs.load(self._path), kernelspecs.default_root(), kernelspecs.launcher_path()
            )
        except KernelBridgeError as exc:
            # The specs that are there stay: a typing error must not take running notebooks' kernels away.
            self.log.error("kernelbridge: %s", exc)
        else:
            self.log.info("kernelbridge: kernel specs from %s: %s", self._path, changes)

    def _observed(self, kernel_id: str, state: str, text: str) -> None:
        """Called on a fleet's thread; events belong on the server's loop."""
        self._server.io_loop.add_callback(self._emit, {"kernel_id": kernel_id, "state": state, "text": text})

    def _emit(self, said: dict[str, Any]) -> None:
        self._logger.emit(schema_id=PROGRESS_SCHEMA, data=said)

    async def stop_extension(self) -> None:
        """Called by jupyter_server before it ends its kernels."""
        self._timer.stop()
        self._stop_observing()


_load_jupyter_server_extension = KernelBridge.load_classic_server_extension
