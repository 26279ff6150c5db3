"""The login's own credentials for an image's registry: what `docker login` on the host has stored there.

The engine itself keeps none: whoever asks it to pull brings them along. They pass through this process's memory, from
the host's file to the host's engine, and are written and logged nowhere.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
from typing import Any

from docker import auth

from kernelbridge.host.stream import AnyLink

log = logging.getLogger(__name__)

ASK_SECONDS = 10.0
# Fed to `sh -s`: prints the login's docker config, nothing where there is none.
_CONFIG_SCRIPT = b'cat "${DOCKER_CONFIG:-$HOME/.docker}/config.json" 2>/dev/null\n'

Credentials = dict[str, str]


def registry_of(image: str) -> str:
    """The registry's name as docker's config writes it."""
    index, _ = auth.resolve_repository_name(image)
    return auth.INDEX_URL if index == auth.INDEX_NAME else index


def parse_config(text: str) -> dict[str, Any]:
    """Read a docker config; one that is missing or broken has nothing in it."""
    try:
        config = json.loads(text)
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def helper_for(config: dict[str, Any], registry: str) -> str | None:
    """The credential helper that knows this registry's password; None: the config itself has it, or nobody."""
    helper = (config.get("credHelpers") or {}).get(registry) or config.get("credsStore")
    return helper if isinstance(helper, str) and re.fullmatch(r"[A-Za-z0-9._-]+", helper) else None


def stored(config: dict[str, Any], registry: str) -> Credentials:
    """The credentials that stand in the config itself; none: {}."""
    auths = config.get("auths") or {}
    entry = auths.get(registry) or auths.get(f"https://{registry}") or auths.get(f"https://{registry}/v2/") or {}
    if entry.get("identitytoken"):
        return {"identitytoken": str(entry["identitytoken"]), "serveraddress": registry}
    try:
        user, colon, password = base64.b64decode(entry.get("auth") or "").decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return {}
    return {"username": user, "password": password, "serveraddress": registry} if colon else {}


def told_by_helper(answer: str, registry: str) -> Credentials:
    """Read a credential helper's answer; <token> as the user's name means an identity token."""
    told = parse_config(answer)
    user, secret = str(told.get("Username") or ""), str(told.get("Secret") or "")
    if not secret:
        return {}
    if user == "<token>":
        return {"identitytoken": secret, "serveraddress": registry}
    return {"username": user, "password": secret, "serveraddress": registry}


async def credentials(link: AnyLink, image: str) -> Credentials:
    """What the login on the host would pull this image with; {} for an anonymous pull.

    Raises: LinkLost, SshFailed, StartTimeout.
    """
    registry = registry_of(image)
    answer = await link.run(["sh", "-s"], stdin=_CONFIG_SCRIPT, seconds=ASK_SECONDS)
    # The login's own shell files may have printed something first.
    _, brace, rest = answer.stdout.decode("utf-8", "replace").partition("{")
    config = parse_config(brace + rest)
    helper = helper_for(config, registry)
    if helper is not None:
        said = await link.run([f"docker-credential-{helper}", "get"], stdin=registry.encode(), seconds=ASK_SECONDS)
        if said.exit_code == 0:
            return told_by_helper(said.stdout.decode("utf-8", "replace"), registry)
        log.debug("[%s] docker-credential-%s has nothing for %s", link.name, helper, registry)
    return stored(config, registry)
