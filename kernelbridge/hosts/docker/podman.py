"""What Podman takes otherwise than Docker on its Docker-compatible API. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kernelbridge.hosts import hardening

# It knows no `local`.
_LOG_DRIVER: Final = "k8s-file"


def container_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of POST /containers/create as Podman takes it."""
    log = {"Type": _LOG_DRIVER, "Config": {"max-size": hardening.LOG_OPTIONS["max-size"]}}
    return {**body, "HostConfig": {**body.get("HostConfig", {}), "LogConfig": log}}
