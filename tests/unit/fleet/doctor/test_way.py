"""fleet/doctor/way.py: which link a login's error is about."""

from __future__ import annotations

from typing import Any

import pytest

from kernelbridge.errors import (
    HostKeyChanged,
    HostKeyUnknown,
    HostNameUnknown,
    HostRefused,
    HostUnreachable,
    KernelBridgeError,
    LoginAttempt,
    LoginRefused,
    SshConfigInvalid,
    SshFailed,
)
from kernelbridge.fleet.doctor.finding import LinkName
from kernelbridge.fleet.doctor.way import broken_link
from kernelbridge.hosts.transport.login.stage import ASKS_FACTS

KEY: Any = {"host": "lab", "algorithm": "ssh-ed25519", "fingerprint": "SHA256:a"}
LATE = HostUnreachable(host="lab", address="lab:22", reason="no login in 20 s")
ACCEPTED = LoginAttempt(offered=("a",), accepted="a")
WANTED = LoginAttempt(offered=("a",), accepted="a", wanted=("keyboard-interactive",))
CONNECTING, WAITING, LOGGING_IN = "connecting to lab:22", "waiting for lab:22 to answer", "logging in as ada"


@pytest.mark.parametrize(
    ("error", "last_stage", "is_direct", "link"),
    [
        (HostKeyUnknown(**KEY), WAITING, True, LinkName.HOST_KEY),
        (HostKeyChanged(**KEY, known_hosts_name="lab"), WAITING, True, LinkName.HOST_KEY),
        (LoginRefused(host="lab", user="ada"), LOGGING_IN, True, LinkName.LOGIN),
        (LoginRefused(host="lab", user="ada", attempt=ACCEPTED), LOGGING_IN, True, LinkName.LOGIN),
        (LoginRefused(host="lab", user="ada", attempt=WANTED), LOGGING_IN, True, LinkName.SECOND_FACTOR),
        (LATE, "", True, LinkName.ROUTE),
        (LATE, CONNECTING, True, LinkName.ROUTE),
        (LATE, WAITING, True, LinkName.ROUTE),
        (LATE, LOGGING_IN, True, LinkName.LOGIN),
        (LATE, "waiting for the key a: touch it, or confirm that it may be used", True, LinkName.LOGIN),
        (LATE, ASKS_FACTS, True, LinkName.SHELL),
        (
            SshFailed.no_command(host="lab", user="ada", words="This account is not available."),
            ASKS_FACTS,
            True,
            "shell",
        ),
        (HostRefused(host="lab", address="inner:22"), CONNECTING, False, LinkName.ROUTE),
        (HostNameUnknown(host="lab", address="inner"), CONNECTING, False, LinkName.ROUTE),
        (SshConfigInvalid(host="lab", reason="its ProxyCommand needs cloudflared"), "", False, LinkName.ROUTE),
        (SshConfigInvalid(host="lab", reason="a key"), CONNECTING, True, LinkName.LOGIN),
        (SshFailed(host="lab", reason="no common cipher"), WAITING, True, LinkName.LOGIN),
    ],
)
def test_a_logins_error_is_about_one_link(
    error: KernelBridgeError, last_stage: str, is_direct: bool, link: LinkName
) -> None:
    assert broken_link(error, last_stage=last_stage, is_direct=is_direct) == link
