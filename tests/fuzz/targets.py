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
    # Of the short run in the tests: a second or two.
    examples: int = 300


TARGETS: Final[dict[str, Target]] = {
    "frames": Target(stream.STREAM, stream.check_stream),
    "messages": Target(stream.MESSAGE, stream.check_message),
    "handshake": Target(stream.SAID, stream.check_said),
    "handshake-bytes": Target(stream.RAW, stream.check_raw),
    "ports": Target(stream.TALK, stream.check_talk),
    "mounts": Target(stream.MOUNTS, stream.check_mounts),
    "clients": Target(clients.ASKED, clients.check_asked, examples=200),
    "relay": Target(clients.RELAYED, clients.check_relayed, examples=200),
    "debugger": Target(clients.DEBUGGED, clients.check_debugged),
    "nvidia-smi": Target(hosts.GPUS, hosts.check_gpus, examples=100),
    "slurm": Target(hosts.SLURM, hosts.check_slurm),
    "labels": Target(hosts.LABELS, hosts.check_labels, examples=60),
    "engine": Target(hosts.ENGINE, hosts.check_engine),
    "engine-errors": Target(hosts.REFUSAL, hosts.check_refusal, examples=100),
    "engine-streams": Target(hosts.UPGRADE, hosts.check_upgrade),
    "host-facts": Target(hosts.FACTS, hosts.check_facts),
    "dockerignore": Target(hosts.IGNORED, hosts.check_ignored, examples=200),
    "ssh-config": Target(configs.SSH, configs.check_ssh, examples=80),
    "known-hosts": Target(configs.KNOWN, configs.check_known, examples=150),
    "config": Target(configs.TOML, configs.check_toml, examples=200),
    "config-values": Target(configs.FIELDS, configs.check_fields),
}
