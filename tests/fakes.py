"""Small real objects with the same methods as ours, for tests without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from kernelbridge.config import Config
from kernelbridge.errors import KernelBridgeError, KernelNotFound
from kernelbridge.fleet import KernelRow, Listing
from kernelbridge.host.trust import HostKey

T = TypeVar("T")


def row(kernel_id: str, **facts: Any) -> KernelRow:
    """One kernel as a listing shows it; what the test does not care about is made up."""
    made_up: dict[str, Any] = {
        "environment": "pytorch",
        "host": "lab",
        "image": "pytorch/pytorch:2",
        "state": "running",
        "owner": "ada@laptop",
        "is_ours": True,
        "is_orphan": False,
        "created": datetime(2026, 11, 20, 12, 0, tzinfo=UTC),
        "gpus": "",
    }
    return KernelRow(kernel_id=kernel_id, **{**made_up, **facts})


def host_key(**facts: Any) -> HostKey:
    """A host's key as the host shows it."""
    made_up: dict[str, Any] = {
        "name": "lab.example",
        "algorithm": "ssh-ed25519",
        "fingerprint": "SHA256:abc",
        "line": "lab.example ssh-ed25519 AAAA\n",
        "is_known": False,
        "is_changed": False,
        "known_hosts_path": Path("known_hosts"),
    }
    return HostKey(**{**made_up, **facts})


@dataclass(kw_only=True)
class FakeFleet:
    """A fleet whose kernels are a list in memory."""

    rows: list[KernelRow] = field(default_factory=list)
    problems: tuple[KernelBridgeError, ...] = ()
    # What known_hosts does not have yet, in the order in which the way meets them.
    keys: list[HostKey] = field(default_factory=list)
    log_text: str = ""
    # Faults: it never answers; it does not remember what it was told to trust.
    is_stuck: bool = False
    is_forgetful: bool = False
    # What happened to it, for assertions.
    trusted: list[tuple[str, HostKey]] = field(default_factory=list)
    is_closed: bool = False
    config: Config | None = None

    def open(self, config: Config) -> FakeFleet:
        """Stands where Fleet's constructor stands."""
        self.config = config
        return self

    def run(self, coro: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        assert seconds is not None and seconds > 0, "every wait has a limit"
        if self.is_stuck:
            coro.close()
            raise TimeoutError
        return asyncio.run(coro)

    def close(self) -> None:
        self.is_closed = True

    async def list_kernels(self) -> Listing:
        return Listing(kernels=tuple(self.rows), problems=self.problems)

    def _find(self, prefix: str) -> KernelRow:
        found = [row for row in self.rows if row.kernel_id.startswith(prefix)]
        if len(found) != 1:
            raise KernelNotFound(kernel=prefix, hosts=self._hosts(), count=len(found))
        return found[0]

    def _hosts(self) -> Sequence[str]:
        return list(self.config.hosts) if self.config else []

    async def stop(self, prefix: str) -> KernelRow:
        found = self._find(prefix)
        self.rows.remove(found)
        return found

    async def logs(self, prefix: str, *, tail_lines: int) -> str:
        self._find(prefix)
        return "\n".join(self.log_text.splitlines()[-tail_lines:])

    async def clean(self, *, dry_run: bool) -> Listing:
        orphans = tuple(row for row in self.rows if row.is_ours and row.is_orphan)
        if not dry_run:
            self.rows = [row for row in self.rows if row not in orphans]
        return Listing(kernels=orphans, problems=self.problems)

    async def host_key(self, host_name: str) -> HostKey:
        return self.keys[0] if self.keys else host_key(is_known=True)

    async def trust(self, host_name: str, key: HostKey) -> None:
        self.trusted.append((host_name, key))
        if not self.is_forgetful:
            self.keys.remove(key)
