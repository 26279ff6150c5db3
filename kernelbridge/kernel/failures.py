"""Turn what a relay, a container and a start came to into errors and texts for people. Pure."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Final

from kernelbridge import plain_text
from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import (
    ContainerFailed,
    GpuMismatch,
    ImageUnusable,
    KernelBridgeError,
    KernelDied,
    KernelEnded,
    KernelExpired,
    KernelOutOfMemory,
    LinkLost,
    SetupFailed,
    StartCancelled,
)
from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.backend import Exited, Missing, Over
from kernelbridge.hosts.docker import error_map
from kernelbridge.hosts.docker.responses import PullProgress
from kernelbridge.hosts.labels import container_name, short_id
from kernelbridge.hosts.progress import Meter, WorkProgress
from kernelbridge.hosts.slurm import job_script
from kernelbridge.kernel.request import LaunchRequest
from kernelbridge.protocol import exit_codes
from kernelbridge.protocol.frames import MESSAGE_BYTES
from kernelbridge.protocol.handshake import DroppedEvent, ExitedEvent, FailedEvent, MismatchedGpus, NoticeEvent

# Of Linux, whatever this machine is: that is where it ended.
_SIGILL, _SIGBUS = 4, 7
_MEANINGS: Final = {
    4: "it has an instruction that this processor does not know",
    6: "native code gave up",
    8: "native code divided by zero",
    9: "something outside killed it",
    11: "native code used memory that is not its own",
    31: "it made a system call that containers may not make",
}
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108


# What a container's init ends with when the command is not there, or may not be run.
_NOT_EXECUTABLE = (126, 127)
# What a relay ends with by itself, before anybody has joined it.
_RELAY_ENDS: Final = {
    exit_codes.EXIT_CODES["unjoined"]: f"nobody could join it for {exit_codes.UNJOINED_SECONDS:.0f} s",
    exit_codes.EXIT_NO_ORDER: "what it was to do did not reach it",
    exit_codes.EXIT_BY_SIGNAL: "something stopped it",
}
# What an executable says that is there and lacks something itself.
_MISLINKED = "error while loading shared libraries"
# What init (Docker's tini, Podman's catatonit) says then.
_INIT_SAYS = re.compile(r"(?:exec (?P<name>\S+) failed|failed to exec pid1): (?P<why>.*)")
# Programs that only start others: what stands behind them sets something up, or nothing does.
_STARTERS = frozenset({"tini", "tini-static", "dumb-init", "catatonit", "env", "sh", "bash", "--", "-g", "-c", "-l"})


def failed_start(
    request: LaunchRequest, host: Host, event: FailedEvent, *, entrypoint: Sequence[str] = ()
) -> KernelBridgeError:
    """Return the error for a kernel process that the relay could not start at all."""
    return _noting(request, entrypoint, _failed_start(request, host, event))


def _failed_start(request: LaunchRequest, host: Host, event: FailedEvent) -> KernelBridgeError:
    image = request.environment.image
    if event.gpus is not None:
        return _mismatch(host, event.gpus)
    if event.lacks:
        return ImageUnusable(image=image, lacks=event.lacks)
    if event.setup:
        return SetupFailed(environment=request.display_name, host=host.name, command=event.setup, how=event.reason)
    return ContainerFailed(host=host.name, image=image, reason=event.reason)


def _mismatch(host: Host, gpus: MismatchedGpus) -> KernelBridgeError:
    """Return the error for a container that sees other GPUs than it should."""
    wanted, seen = gpus.wanted, gpus.seen
    seen_text = f"{seen} of them" if isinstance(seen, int) else ", ".join(seen) or "none"
    remedy = ""
    if not wanted:
        remedy = f"Fix the default runtime of the engine on {host.name}, which hands GPUs to every container."
    return GpuMismatch(host=host.name, wanted=", ".join(wanted) or "no GPU", seen=seen_text, remedy=remedy)


def relay_end(
    *, host: str, image: str, python: str, how: Exited, log: str, architectures: tuple[str, str]
) -> KernelBridgeError:
    """Return the error for a relay that ended before it could be joined; `log` is what its container wrote.

    `architectures`: the image's and the host's, empty where not known.
    """
    said = _INIT_SAYS.search(log)
    if how.code == exit_codes.EXIT_OLD_PYTHON:
        return bootstrap.old_python(image, log)
    if error_map.is_foreign(log):
        return error_map.foreign_image(image, host, architectures)
    if "docker-init" in log and said is None:
        return error_map.container_error(host=host, image=image, message=log)
    if said is not None and "permission" in said["why"].lower():
        remedy = "Set `python` or `user` of the environment."
        fault = f"has no `{python}` that its user may run"
        return ImageUnusable(image=image, fault=fault, remedy=remedy, of_python=True)
    lines = [line for line in log.splitlines() if line.strip()]
    if (said is not None and "no such file" in said["why"].lower()) or (
        how.code in _NOT_EXECUTABLE and _MISLINKED not in log
    ):
        return ImageUnusable(image=image, lacks=f"`{python}`")
    words = _RELAY_ENDS.get(how.code, "")
    reason = words or (f"{how}: {lines[-1].strip()[:200]}" if lines else f"it ended with {how}")
    return ContainerFailed(host=host, image=image, reason=reason)


def entrypoint_text(entrypoint: Sequence[str]) -> str:
    """Return an image's ENTRYPOINT as text, if it may set something up; empty where it only starts what it is given."""
    sets_up = [word for word in entrypoint if word.rpartition("/")[2] not in _STARTERS]
    return plain_text.printable(" ".join(entrypoint))[:120] if sets_up else ""


def entrypoint_failure(entrypoint: Sequence[str], words: str, *, what: str = "kernel") -> str:
    """Return the line for what runs without what its image's ENTRYPOINT sets up; `words` say why."""
    text = entrypoint_text(entrypoint)
    named = f" ({text})" if text else ""
    return (
        f"the image's ENTRYPOINT{named} {plain_text.printable(words)}; the {what} runs without "
        'what it sets up. `entrypoint = "off"` of the environment leaves it out'
    )


def _noting(request: LaunchRequest, entrypoint: Sequence[str], error: KernelBridgeError) -> KernelBridgeError:
    """Say with an error what of the image's ENTRYPOINT is not there, where that may be what is missing."""
    text = entrypoint_text(entrypoint)
    if text and isinstance(error, ImageUnusable) and error.lacks:
        why = "runs after `python` was looked for: write the Python that it sets up there"
        if request.environment.entrypoint == "off":
            why = "is not run: what it sets up, set with `env` and `python`"
        error.remedy += f" The image's ENTRYPOINT ({text}) {why}."
    return error


def broken_start(
    request: LaunchRequest, host: Host, exc: BaseException, *, entrypoint: Sequence[str] = ()
) -> KernelBridgeError:
    """Return the error for a start that ended with an exception."""
    match exc:
        case ImageUnusable():
            return _noting(request, entrypoint, exc)
        case LinkLost():
            how = "did not start because the link was lost"
            return KernelEnded(environment=request.display_name, host=host.name, how=how, what=request.workload)
        case KernelBridgeError():
            return exc
        case asyncio.CancelledError():
            return StartCancelled(environment=request.display_name)
    return ContainerFailed(host=host.name, image=request.environment.image, reason=repr(exc))


def name_log(error: KernelBridgeError, request: LaunchRequest) -> None:
    """Say with the error of a start how what it wrote can be read, though it is gone."""
    words = f"`kernelbridge logs {short_id(request.kernel_id)}` shows what it wrote."
    if words not in error.remedy:
        error.remedy = f"{error.remedy} {words}".lstrip()


def death(request: LaunchRequest, host: Host, event: ExitedEvent) -> KernelBridgeError:
    """Return the error for a kernel process that ended by itself, or by a deadline of its environment."""
    name, what = request.display_name, request.workload
    if event.why == "unused":
        return KernelEnded(environment=name, host=host.name, how=_unused_text())
    if event.why:
        return KernelExpired(environment=name, host=host.name, key=event.why, what=what)
    if event.out_of_memory:
        memory = request.environment.memory
        limit = f"its limit is {memory / 2**30:.3g} GiB" if memory else "the host had no memory left"
        return KernelOutOfMemory(environment=name, host=host.name, limit=limit, what=what)
    how, remedy = _why_died(request, host, event)
    # A relay of an older version takes the last line of ipykernel's banner for the kernel's own.
    last_words = "" if event.last_words.startswith("--existing ") else event.last_words
    return KernelDied(environment=name, host=host.name, how=how, last_words=last_words, remedy=remedy, what=what)


def _why_died(request: LaunchRequest, host: Host, event: ExitedEvent) -> tuple[str, str]:
    """Return how a kernel process ended and what helps, as far as its exit code and its folders tell."""
    is_kernel = request.command is None
    how, again = (
        exit_codes.how_ended(event.code),
        "Restart the kernel to continue." if is_kernel else "Then start it again.",
    )
    disks = [folder for folder in event.full if folder != _SHARED_MEMORY]
    if event.code == -_SIGBUS and not disks:
        is_ours = _is_shm_ours(request.environment, host)
        facts = ["whose size is `shm_size`"] if is_ours else []
        facts += [f"{event.shm_bytes / 2**20:,.0f} MiB"] if event.shm_bytes else []
        is_full = "is full" if _SHARED_MEMORY in event.full else "was most likely full"
        how += f" ({', '.join([_SHARED_MEMORY, *facts])}{',' * bool(facts)} {is_full})"
        if is_ours:
            anew = "shut the kernel down and start it anew (a restart keeps the container)"
            return how, (
                f"Raise `shm_size` of its environment, {anew if is_kernel else 'and start it again'}, or use fewer "
                "workers."
            )
        return how, f"Free {_SHARED_MEMORY} on the host, or use fewer workers. {again}"
    if disks:
        return f"{how}; there is no room left in {' and '.join(disks)}", f"Free some there. {again}"
    if -event.code in _MEANINGS:
        how += f" ({_MEANINGS[-event.code]})"
    if event.code == -_SIGILL:
        again = f"Use a build of the package, or an image, for the processor of {host.name}."
    return how, again


def _is_shm_ours(environment: Environment, host: Host) -> bool:
    """Whether `shm_size` is what /dev/shm has there."""
    if host.scheduler is not None:
        return host.runtime in ("docker", "podman")
    return environment.ipc != "host"


def container_end(request: LaunchRequest, host: Host, how: Exited | Missing | Over) -> KernelBridgeError:
    """Return the error for a kernel whose container has ended, or is gone."""
    if isinstance(how, Over):
        return how.explain(request.display_name)
    if isinstance(how, Missing):
        return KernelEnded(
            environment=request.display_name,
            host=host.name,
            how="was removed by another program",
            what=request.workload,
        )
    key = exit_codes.key_of(how.code)
    if key:
        return KernelExpired(environment=request.display_name, host=host.name, key=key, what=request.workload)
    text = f"was ended ({how})"
    if how.code == exit_codes.EXIT_CODES["unjoined"]:
        seconds = exit_codes.UNJOINED_SECONDS
        joined = "asked the kernel anything" if request.command is None else f"joined the {request.workload}"
        text = f"was ended: this machine could not be reached for {seconds:.0f} s, before it {joined}"
    if how.code == exit_codes.EXIT_CODES["unused"]:
        text = _unused_text()
    return KernelEnded(environment=request.display_name, host=host.name, how=text, what=request.workload)


def _unused_text() -> str:
    minutes = exit_codes.UNUSED_SECONDS / 60
    return f"was ended: nobody had run a cell in it, and this machine could not be reached for {minutes:.0f} minutes"


def pause_text(kernel_id: str, host: Host, *, what: str = "cell") -> str:
    """Return why nothing happens in a container that is paused, and what makes it go on."""
    if host.scheduler is not None:
        return f"the job is suspended on {host.name}; the {what} goes on when the cluster resumes it"
    unpause = f"docker unpause {container_name(kernel_id)}"
    return f"the container is paused on {host.name}; the {what} goes on after `{unpause}` there"


_DROPPED: Final = {
    "invalid": "the kernel sent what is no Jupyter message",
    "size": f"one message may have {MESSAGE_BYTES // 1_000_000} MB",
}


def dropped_text(event: DroppedEvent) -> str:
    """Return the line that stands for output which was dropped, in the middle of it."""
    return f"[kernelbridge: {dropped_words(event)}]\n"


def dropped_words(event: DroppedEvent) -> str:
    """Return how much output was dropped, and why."""
    count = event.messages
    what = "1 message" if count == 1 else f"{count:,} messages"
    return (
        f"dropped {what} of this output ({event.size_bytes / 1e6:.1f} MB): "
        f"{_DROPPED.get(event.why, '`journal_size` was reached')}"
    )


def setup_progress(event: NoticeEvent) -> WorkProgress | None:
    """Return how far the setup before a kernel is; None for a notice of another kind."""
    if event.kind != "setup":
        return None
    command = event.path.strip().partition("\n")[0][:80]
    return WorkProgress(what="setup", detail=command + (f": {event.reason[:120]}" if event.reason else ""))


def notice_text(event: NoticeEvent, host: Host, *, what: str = "kernel") -> str:
    """Return the line for something that a user would not expect; empty for what only a newer relay knows."""
    match event.kind:
        case "moved":
            return (
                f"the {what} starts in {event.reason}: your user may not enter {event.path}, the image's or "
                'environment\'s working folder; set `workdir`, or `user = "image"`'
            )
        case "refused":
            return (
                f"you cannot write to the mount {event.path} on {host.name} ({event.reason}); if you only read it, add "
                "`:ro` to it"
            )
        case "squashed":
            return (
                f"root cannot write to the mount {event.path} on {host.name} ({event.reason}): its NFS server takes "
                "root for nobody (root_squash); log in there as a user of that server, or add `:ro` to it"
            )
        case "selinux":
            return (
                f"SELinux on {host.name} keeps the {what} out of the mount {event.path} ({event.reason}), whose mode "
                "allows it: add `:z` to it, or `:Z` if no other container uses it"
            )
        case "mapped":
            return (
                f"what is written to the mount {event.path} belongs to user {event.reason} on {host.name}, not to you: "
                "its NFS server says so (root_squash, all_squash, or other user numbers there)"
            )
        case "foreign":
            return (
                f"what is written to the mount {event.path} belongs to user {event.reason} on {host.name}, not to you: "
                "its file system says so"
            )
    return ""


def other_user_text(host: str, trouble: str, *, what: str) -> str:
    """Return the line that says why a workload is not its login's user, and what follows for files in mounts."""
    return (
        f"on {host} the {what} runs as the image's user, and files that it writes into mounts are not yours: "
        f'{trouble}; `user = "image"` says that this is meant'
    )


def debug_refusal(environment: Environment, host: Host) -> str:
    """Return why debugging is off in an environment on a host; empty where it is on."""
    is_on_nodes_network = host.scheduler is not None and not job_script.RUNTIMES[host.runtime].has_own_network(
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
        f"Debugging is off in {environment.name}: on the host's network, every login there could run code in your "
        "kernel. Use another `network`, or set `debug_on_host_network = true`."
    )


def pull_progress(meter: Meter, now: PullProgress) -> WorkProgress:
    """Return how far a pull is, of which `meter` keeps the speed."""
    done, total = now.done_bytes, now.total_bytes
    if not total:
        return meter.progress
    if done < total or now.grows:
        return meter.at(done, total, grows=now.grows, what=f"pulling {now.image}")
    layers = f"{now.done_layers} of {now.total_layers} layers"
    if now.unpacked_bytes is None:
        return WorkProgress(what=f"unpacking {now.image}", detail=layers)
    return meter.at(now.unpacked_bytes, total, grows=False, what=f"unpacking {now.image}", detail=layers)
