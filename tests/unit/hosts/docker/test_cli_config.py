"""hosts/docker/cli_config.py: what the docker command's config says of proxies, as `docker run` reads it."""

from __future__ import annotations

from typing import Any

import pytest

from kernelbridge.errors import LinkLost, SshFailed, StartTimeout
from kernelbridge.hosts.docker import cli_config
from kernelbridge.hosts.transport.stream import Completed

SOCKET = "/var/run/docker.sock"
BOTH = {"HTTP_PROXY": "http://p:3128", "http_proxy": "http://p:3128", "NO_PROXY": "lab", "no_proxy": "lab"}


@pytest.mark.parametrize(
    ("proxies", "socket", "expected"),
    [
        ({"default": {"httpProxy": "http://p:3128", "noProxy": "lab"}}, SOCKET, BOTH),
        (
            {"default": {"ftpProxy": "f", "allProxy": "a", "httpsProxy": ""}},
            SOCKET,
            {"FTP_PROXY": "f", "ftp_proxy": "f", "ALL_PROXY": "a", "all_proxy": "a"},
        ),
        # An entry of the engine's own counts alone, whichever of its two names it has.
        (
            {"default": {"httpProxy": "x"}, f"unix://{SOCKET}": {"noProxy": "n"}},
            SOCKET,
            {"NO_PROXY": "n", "no_proxy": "n"},
        ),
        ({"unix:///run/docker.sock": {"noProxy": "n"}}, SOCKET, {"NO_PROXY": "n", "no_proxy": "n"}),
        ({f"unix://{SOCKET}": {"noProxy": "n"}}, "/run/docker.sock", {"NO_PROXY": "n", "no_proxy": "n"}),
        ({"unix:///other.sock": {"noProxy": "n"}}, SOCKET, {}),
        (
            {"default": {"httpProxy": "http://p", "unknown": "x"}},
            SOCKET,
            {"HTTP_PROXY": "http://p", "http_proxy": "http://p"},
        ),
        ({"default": ["x"]}, SOCKET, {}),
        ([], SOCKET, {}),
        (None, SOCKET, {}),
    ],
)
def test_proxies_become_variables_in_capitals_and_not(proxies: Any, socket: str, expected: dict[str, str]) -> None:
    assert cli_config.proxy_variables({"proxies": proxies}, socket) == expected


def test_a_config_that_is_missing_or_broken_says_nothing() -> None:
    for text in ("", "<html>", "[]", "{"):
        assert cli_config.parse_config(text) == {}


async def test_a_host_that_does_not_show_its_config_has_none_and_a_lost_link_is_told() -> None:
    class Host:
        name = "lab"

        def __init__(self, outcome: Completed | Exception) -> None:
            self.outcome = outcome

        async def run(self, *_: object, **__: object) -> Completed:
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return self.outcome

    async def read(outcome: Completed | Exception) -> dict[str, Any]:
        host: Any = Host(outcome)
        return await cli_config.read_config(host)

    assert await read(Completed(exit_code=0, stdout=b'{"a": 1}', stderr=b"")) == {"a": 1}
    assert await read(SshFailed(host="lab", reason="no shell")) == {}
    assert await read(StartTimeout(host="lab", what="`sh`", seconds=10)) == {}
    with pytest.raises(LinkLost):
        await read(LinkLost(host="lab"))
