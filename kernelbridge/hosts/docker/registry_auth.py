"""Read the credentials that `docker login` on a host has stored for an image's registry.

The engine itself keeps none: whoever asks it to pull brings them along. They pass through this process's memory, from
the host's file to the host's engine, and are written and logged nowhere.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from docker import auth

from kernelbridge.errors import SshFailed, StartTimeout
from kernelbridge.hosts.docker.cli_config import parse_config, read_config, section
from kernelbridge.hosts.transport.stream import AnyLink, Completed

_LOG = logging.getLogger(__name__)

HELPER_SECONDS: Final = 10.0
# Docker Hub's names in configs, its own first.
_HUB: Final = (auth.INDEX_URL, "index.docker.io", auth.INDEX_NAME, "registry-1.docker.io")
# Run with the names of a helper and a registry.
_HELPER_SCRIPT: Final = """
if ! command -v "docker-credential-$1" >/dev/null 2>&1; then echo 'not found' >&2; exit 127; fi
printf '%s' "$2" | "docker-credential-$1" get
"""
# What a helper says that has nothing for a registry, which is no fault.
_NOTHING: Final = re.compile(r"credentials not found|no credentials|not found in|could not be found", re.IGNORECASE)

Credentials = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class RegistryLogin:
    """What a pull brings along: credentials, or none for an anonymous one; and why there are none that there should."""

    credentials: Credentials = field(default_factory=dict, repr=False)
    trouble: str = ""


def registry_of(image: str) -> str:
    """Return the registry's name as docker's config writes it."""
    index, _ = auth.resolve_repository_name(image)
    return auth.INDEX_URL if index == auth.INDEX_NAME else index


def helper_for(config: Mapping[str, Any], registry: str) -> str | None:
    """Return the credential helper that knows this registry's password; None: the config itself has it, or nobody."""
    helpers = section(config, "credHelpers")
    names = _HUB if registry == auth.INDEX_URL else (registry,)
    own = next((helpers[name] for name in names if name in helpers), None)
    helper = own or config.get("credsStore")
    return helper if isinstance(helper, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", helper) else None


def stored(config: Mapping[str, Any], registry: str) -> Credentials:
    """Return the credentials that stand in the config itself; none: {}."""
    auths = section(config, "auths")
    # Older entries have a scheme and a path.
    host = _host_of(registry)
    entry = auths.get(registry) or next((one for name, one in auths.items() if _host_of(str(name)) == host), None)
    if not isinstance(entry, dict):
        return {}
    for token in ("identitytoken", "registrytoken"):
        if entry.get(token):
            return {token: str(entry[token]), "serveraddress": registry}
    if entry.get("username") and entry.get("password"):
        return {"username": str(entry["username"]), "password": str(entry["password"]), "serveraddress": registry}
    try:
        user, colon, password = base64.b64decode(entry.get("auth") or "").decode().partition(":")
    except (ValueError, TypeError):  # Of base64 too.
        return {}
    return {"username": user, "password": password.rstrip("\0"), "serveraddress": registry} if colon else {}


def _host_of(name: str) -> str:
    return re.sub(r"^https?://", "", name).partition("/")[0]


def told_by_helper(answer: str, registry: str) -> Credentials:
    """Read a credential helper's answer; <token> as the user's name means an identity token."""
    told = parse_config(answer)
    user, secret = str(told.get("Username") or ""), str(told.get("Secret") or "")
    if not secret:
        return {}
    if user == "<token>":
        return {"identitytoken": secret, "serveraddress": registry}
    return {"username": user, "password": secret, "serveraddress": registry}


async def find_login(link: AnyLink, image: str) -> RegistryLogin:
    """Find what the login on the host would pull this image with. Raises: LinkLost."""
    registry = registry_of(image)
    config = await read_config(link)
    helper = helper_for(config, registry)
    own = stored(config, registry)
    if helper is None:
        return RegistryLogin(credentials=own)
    program = f"docker-credential-{helper}"
    command = ["sh", "-c", _HELPER_SCRIPT, program, helper, registry]
    try:
        said = await link.run(command, seconds=HELPER_SECONDS)
        if said.exit_code == 127 and await link.ask_login_shell():
            said = await link.run(command, seconds=HELPER_SECONDS)
    except (SshFailed, StartTimeout) as exc:
        return RegistryLogin(credentials=own, trouble=f"{program} did not answer ({exc.sentence})")
    if said.exit_code == 0:
        return RegistryLogin(credentials=told_by_helper(said.stdout.decode("utf-8", "replace"), registry) or own)
    words = helper_words(said)
    _LOG.debug("[%s] %s has nothing for %s: %s", link.name, program, registry, words)
    return RegistryLogin(credentials=own, trouble="" if own or _NOTHING.search(words) else f"{program}: {words}")


def helper_words(said: Completed) -> str:
    """Return why a helper failed, on one line: helpers write that to their stdout, shells to their stderr."""
    words = b" ".join((said.stderr, said.stdout)).decode("utf-8", "replace")
    return " ".join(words.split())[:300] or f"exit code {said.exit_code}"
