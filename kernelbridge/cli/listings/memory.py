"""Remember for the next listing what this one has found out: see quick.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kernelbridge.config.remembered import Memory, RememberedConfig, RememberedHost, digest_of
from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import KernelBridgeError

if TYPE_CHECKING:
    from kernelbridge.cli.context import CliContext
    from kernelbridge.fleet.fleet import Fleet

# Hosts that have answered say at once what is asked of them here.
KEEP_SECONDS = 5.0


class ListingMemory:
    """Made before the config is read, so that what is remembered is of the text that was read."""

    def __init__(self, context: CliContext) -> None:
        self._context = context
        self._digest = self._digest_now()

    def __repr__(self) -> str:
        return f"<ListingMemory of {self._context.config_path}>"

    def _digest_now(self) -> str:
        if self._context.has_named_config:
            return ""
        try:
            return digest_of(self._context.config_path.read_bytes())
        except OSError:
            return ""

    def keep(self, fleet: Fleet, asked: Sequence[Host], problems: Sequence[KernelBridgeError]) -> None:
        """Remember the config, where a listing over `ssh` would find the same as this one that had no problems."""
        hosts = fleet.config.hosts.values()
        if sys.platform == "win32" or problems or not self._digest or len(asked) < len(hosts):
            return
        if any(host.is_local or host.scheduler is not None for host in hosts) or self._digest_now() != self._digest:
            return
        from kernelbridge.hosts.transport.openssh.settings import command_line
        from kernelbridge.jupyter import kernelspecs, running_kernelspecs

        try:
            engines = fleet.run(fleet.unasked_engines(), KEEP_SECONDS)
        except (KernelBridgeError, TimeoutError):
            return
        if len(engines) < len(hosts):
            return
        remembered = RememberedConfig(
            path=str(fleet.config.path),
            hosts={
                host.name: RememberedHost(
                    name=host.name,
                    ssh_words=tuple(command_line(host.ssh)),
                    path=host.path,
                    socket=host.socket,
                    engine_socket=engines[host.name].socket,
                    api_version=engines[host.name].api_version,
                )
                for host in hosts
            },
            pythons={name: environment.python for name, environment in fleet.config.environments.items()},
            usual_python=Environment.model_fields["python"].default,
            records_folder=str(fleet.records.folder),
            offers_folder=str(kernelspecs.default_root() / running_kernelspecs.RUNNING_FOLDER),
        )
        Memory(self._context.environ).remember(remembered, digest=self._digest)
