"""What the engine's messages mean: from its status and its words to our errors. One table, pure."""

from __future__ import annotations

import re

from kernelbridge.errors import KernelBridgeError
from kernelbridge.kernel_errors import (
    ContainerFailed,
    GpuToolkitMissing,
    ImageMissing,
    ImagePullFailed,
    ImageUnusable,
    MountMissing,
    UlimitRefused,
)

_BIND_SOURCE = re.compile(r"bind source path does not exist: (?P<path>\S.*?)\s*$")
_EXECUTABLE = re.compile(r'exec: "(?P<name>[^"]+)"')
# What a registry, or the engine in its place, says when asking again would not help.
_NO_IMAGE = (
    "manifest unknown",
    "not found",
    "no such image",
    "pull access denied",
    "repository does not exist",
    "unauthorized",
    "denied",
    "invalid reference",
    "no matching manifest",
)
_NO_GPU = (
    "could not select device driver",
    "unknown runtime specified nvidia",  # until 20.10
    "unknown or invalid runtime name: nvidia",
    "unresolvable cdi devices",
    "cdi device injection failed",
)


def container_error(*, host: str, image: str, message: str) -> KernelBridgeError:
    """Why a container could not be created or started."""
    words = message.lower()
    if found := _BIND_SOURCE.search(message):
        return MountMissing(host=host, path=found["path"])
    if any(part in words for part in _NO_GPU):
        return GpuToolkitMissing(host=host)
    if "error setting rlimit" in words:
        return UlimitRefused(host=host, reason=shortened(message))
    is_no_executable = "executable file not found" in words or "no such file or directory: unknown" in words
    if is_no_executable and (found := _EXECUTABLE.search(message)):
        return ImageUnusable(image=image, lacks=f"`{found['name']}`")
    if "no such image" in words:
        return ImageMissing(host=host, image=image, reason="not on the host")
    return ContainerFailed(host=host, image=image, reason=shortened(message))


def pull_error(*, host: str, image: str, message: str) -> KernelBridgeError:
    """Why an image could not be pulled."""
    if any(part in message.lower() for part in _NO_IMAGE):
        return ImageMissing(host=host, image=image, reason=shortened(message))
    return ImagePullFailed(host=host, image=image, reason=shortened(message))


def shortened(message: str) -> str:
    """The engine's words on one line, without their end where they are very long."""
    line = " ".join(message.split())
    return line if len(line) <= 300 else line[:299] + "…"
