"""All targets by name: what makes examples, and what must hold for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from hypothesis.strategies import SearchStrategy

from tests.fuzz import clients, configs, hosts, stream


@dataclass(frozen=True)
class Target:
    """One reader, or several that read the same."""

    made: SearchStrategy[Any]
    # Raises where something does not hold.
    check: Callable[[Any], None]
    # Of the short run in the tests: about two seconds.
    examples: int = 600


TARGETS: Final[dict[str, Target]] = {
    "frames": Target(stream.STREAM, stream.check_stream),
    "messages": Target(stream.MESSAGE, stream.check_message),
    "handshake": Target(stream.SAID, stream.check_said),
    "handshake-bytes": Target(stream.RAW, stream.check_raw),
    "ports": Target(stream.TALK, stream.check_talk),
    "mounts": Target(stream.MOUNTS, stream.check_mounts),
    "clients": Target(clients.ASKED, clients.check_asked),
    "relay": Target(clients.RELAYED, clients.check_relayed),
    "debugger": Target(clients.DEBUGGED, clients.check_debugged),
    "nvidia-smi": Target(hosts.GPUS, hosts.check_gpus),
    "slurm": Target(hosts.SLURM, hosts.check_slurm),
    "labels": Target(hosts.LABELS, hosts.check_labels),
    "engine": Target(hosts.ENGINE, hosts.check_engine),
    "engine-errors": Target(hosts.REFUSAL, hosts.check_refusal),
    "engine-streams": Target(hosts.UPGRADE, hosts.check_upgrade),
    "host-facts": Target(hosts.FACTS, hosts.check_facts),
    "dockerignore": Target(hosts.IGNORED, hosts.check_ignored),
    "ssh-config": Target(configs.SSH, configs.check_ssh),
    "known-hosts": Target(configs.KNOWN, configs.check_known),
    "config": Target(configs.TOML, configs.check_toml),
    "config-values": Target(configs.FIELDS, configs.check_fields),
}
