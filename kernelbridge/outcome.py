"""What a user hears of a kernel's start and end: the relay's words made into sentences. Pure."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from typing import Any

from kernelbridge.config import Environment, Host
from kernelbridge.errors import KernelBridgeError, LinkLost
from kernelbridge.gpu_errors import GpuMismatch
from kernelbridge.host import jobscript
from kernelbridge.host.answers import PullProgress
from kernelbridge.kernel_errors import (
    ContainerFailed,
    ImageUnusable,
    KernelDied,
    KernelEnded,
    KernelExpired,
    KernelOutOfMemory,
    StartCancelled,
)
from kernelbridge.wanted import Wanted


def failed_start(wanted: Wanted, host: Host, event: Mapping[str, Any]) -> KernelBridgeError:
    """Return the error for the relay's word that it could not start the kernel process at all."""
    image = wanted.environment.image
    if "gpus" in event:
        return _mismatch(wanted.environment, host, event["gpus"])
    if event.get("lacks"):
        return ImageUnusable(image=image, lacks=str(event["lacks"]))
    return ContainerFailed(host=host.name, image=image, reason=str(event.get("reason", "")))


def _mismatch(environment: Environment, host: Host, gpus: Mapping[str, Any]) -> KernelBridgeError:
    """Return the error for a container that sees other GPUs than it should."""
    wanted, seen = gpus["wanted"], gpus["seen"]
    seen_text = f"{seen} of them" if isinstance(seen, int) else ", ".join(seen) or "none"
    remedy = ""
    if not wanted:
        remedy = f"Mend the default runtime of the engine on {host.name}, which hands GPUs to every container."
    return GpuMismatch(host=host.name, wanted=", ".join(wanted) or "no GPU", seen=seen_text, remedy=remedy)


def broken_start(wanted: Wanted, host: Host, exc: BaseException) -> KernelBridgeError:
    """Return the error for a start that ended with an exception."""
    match exc:
        case LinkLost():
            how = "did not start: the link was lost meanwhile"
            return KernelEnded(environment=wanted.display_name, host=host.name, how=how)
        case KernelBridgeError():
            return exc
        case asyncio.CancelledError():
            return StartCancelled(environment=wanted.display_name)
    return ContainerFailed(host=host.name, image=wanted.environment.image, reason=repr(exc))


def death(wanted: Wanted, host: Host, event: Mapping[str, Any]) -> KernelBridgeError:
    """Return the error for a kernel process that ended by itself, or by a deadline of its environment."""
    if event.get("why"):
        return KernelExpired(environment=wanted.display_name, host=host.name, key=str(event["why"]))
    if event["out_of_memory"]:
        memory = wanted.environment.memory
        limit = f"its limit is {memory / 2**30:.3g} GiB" if memory else "the host had no more"
        return KernelOutOfMemory(environment=wanted.display_name, host=host.name, limit=limit)
    how = how_ended(int(event["code"]))
    last_words = str(event["last_words"])
    return KernelDied(environment=wanted.display_name, host=host.name, how=how, last_words=last_words)


def dropped_text(event: Mapping[str, Any]) -> str:
    """Return the line that stands for output which the journal had no room for."""
    count, size = int(event["messages"]), int(event["bytes"])
    what = "1 message" if count == 1 else f"{count:,} messages"
    return f"[kernelbridge: {what} of this output ({size / 1e6:.1f} MB) had no room while nobody took it]\n"


def debug_refusal(environment: Environment, host: Host) -> str:
    """Return why debugging is off in an environment on a host; empty where it is on."""
    is_on_nodes_network = host.scheduler is not None and not jobscript.RUNTIMES[host.runtime].has_own_network(
        environment
    )
    if is_on_nodes_network and not environment.debug_on_host_network:
        return (
            f"Debugging is off in {environment.name}: {host.runtime} runs it on the node's network, where every login "
            'could run code in your kernel. `network = "none"` with apptainer, or `debug_on_host_network = true`, '
            "turn it on."
        )
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
