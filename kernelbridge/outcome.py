"""What a user hears of a kernel's start and end: the relay's words made into sentences. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from kernelbridge.checks import Wanted
from kernelbridge.config import Environment, Host
from kernelbridge.errors import ContainerFailed, ImageUnusable, KernelBridgeError, KernelDied, KernelOutOfMemory
from kernelbridge.host.answers import PullProgress


def failed_start(wanted: Wanted, host: Host, event: Mapping[str, Any]) -> KernelBridgeError:
    """Return the error for the relay's word that it could not start the kernel process at all."""
    image = wanted.environment.image
    if event.get("lacks"):
        return ImageUnusable(image=image, lacks=str(event["lacks"]))
    return ContainerFailed(host=host.name, image=image, reason=str(event.get("reason", "")))


def death(wanted: Wanted, host: Host, event: Mapping[str, Any]) -> KernelBridgeError:
    """Return the error for a kernel process that ended by itself."""
    if event["out_of_memory"]:
        memory = wanted.environment.memory
        limit = f"its limit is {memory / 2**30:.3g} GiB" if memory else "the host had no more"
        return KernelOutOfMemory(environment=wanted.display_name, host=host.name, limit=limit)
    how = how_ended(int(event["code"]))
    last_words = str(event["last_words"])
    return KernelDied(environment=wanted.display_name, host=host.name, how=how, last_words=last_words)


def debug_refusal(environment: Environment) -> str:
    """Return why debugging is off in an environment; empty where it is on."""
    if environment.has_debugger:
        return ""
    return (
        f"Debugging is off in {environment.name}: on the host's network every login there could run code in your "
        "kernel. Use another `network`, or set `debug_on_host_network = true`."
    )


def how_ended(code: int) -> str:
    """Return what an exit code says: negative ones are signals."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def pull_text(image: str, progress: PullProgress) -> str:
    """Return how far a pull is."""
    if not progress.total_bytes:
        return f"pulling {image}"
    done, total = progress.done_bytes, progress.total_bytes
    if done >= total:
        return f"unpacking {image}: {progress.done_layers} of {progress.total_layers} layers"
    return f"pulling {image}: {100 * done // total} % ({done / 1e9:.2f} of {total / 1e9:.2f} GB)"
