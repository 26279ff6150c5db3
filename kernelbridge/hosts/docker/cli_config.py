"""Read the docker command's own config of the login on a host, and what it says of proxies for containers.

It may hold passwords, also in a proxy's address: what is read passes through this process's memory alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Final

from kernelbridge.errors import SshFailed, StartTimeout
from kernelbridge.hosts.transport.stream import AnyLink

_LOG = logging.getLogger(__name__)

CONFIG_SECONDS: Final = 10.0
# Prints the login's docker config, nothing where there is none.
_SCRIPT: Final = 'cat "${DOCKER_CONFIG:-$HOME/.docker}/config.json" 2>/dev/null'
# The variables that a docker command sets from `proxies`, in capitals and not.
_PROXY_VARIABLES: Final = {
    "httpProxy": "HTTP_PROXY",
    "httpsProxy": "HTTPS_PROXY",
    "ftpProxy": "FTP_PROXY",
    "noProxy": "NO_PROXY",
    "allProxy": "ALL_PROXY",
}


async def read_config(link: AnyLink) -> dict[str, Any]:
    """Return the login's docker config; {} where there is none, or it cannot be read. Raises: LinkLost."""
    try:
        answer = await link.run(["sh", "-c", _SCRIPT, "cat"], seconds=CONFIG_SECONDS)
    except (SshFailed, StartTimeout) as exc:
        _LOG.info("[%s] its docker config was not read: %s", link.name, exc)
        return {}
    return parse_config(answer.stdout.decode("utf-8", "replace"))


def parse_config(text: str) -> dict[str, Any]:
    """Read a docker config; one that is missing or broken has nothing in it."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a table of a config; one that is missing or none is empty."""
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def proxy_variables(config: Mapping[str, Any], socket: str) -> dict[str, str]:
    """Return the variables that `docker run` of the login sets in containers of the engine at this socket."""
    proxies = section(config, "proxies")
    # A Docker's usual socket has two names. An entry of the engine's own counts alone, as for the docker command.
    names = [f"unix://{socket}", f"unix:///var{socket}", f"unix://{socket.removeprefix('/var')}", "default"]
    own = next((section(proxies, name) for name in names if name in proxies), {})
    found = {variable: str(own[key]) for key, variable in _PROXY_VARIABLES.items() if own.get(key)}
    return {name: text for variable, text in found.items() for name in (variable, variable.lower())}
