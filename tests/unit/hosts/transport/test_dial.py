"""hosts/transport/dial.py: how long a login may take (all else: tests/real/test_link.py, test_ssh_config.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.config.schema import Host
from kernelbridge.hosts.transport.dial import login_seconds
from kernelbridge.hosts.transport.openssh.address import Address
from kernelbridge.hosts.transport.openssh.known_hosts import KnownHosts, Trusted
from kernelbridge.hosts.transport.ssh_config import Hop
from tests.unit.hosts.transport.openssh.around import settings


def hop(home: Path, *lines: str) -> Hop:
    """A machine on the way, with these lines in the config."""
    known_hosts = KnownHosts(
        name="lab", path=None, is_hashed=False, trusted=Trusted(keys=(), authorities=(), revoked=())
    )
    return Hop(
        host_name="lab",
        address=Address(name="lab"),
        settings=settings(home, *lines),
        known_hosts=known_hosts,
        user="ada",
    )


@pytest.mark.parametrize(
    ("written", "timeouts", "expected"),
    [
        (None, [None], 20),
        (None, ["60"], 80),
        (None, ["1m", "5"], 85),
        (None, ["none"], 20),
        (7, ["60"], 7),
        (90, [None], 90),
    ],
)
def test_a_login_may_take_what_the_configs_give_it(
    tmp_path: Path, written: float | None, timeouts: list[str | None], expected: float
) -> None:
    host = Host(name="lab", ssh="lab", login_seconds=written)
    hops = [hop(tmp_path, f"ConnectTimeout {text}" if text else "") for text in timeouts]
    assert login_seconds(host, hops) == expected
