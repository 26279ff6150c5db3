"""The errors of a kernel and of what it runs in; what all errors have in common, and the others: errors.py.

KernelBridgeError
    4x  image and container: ImageMissing, ImagePullFailed, ImageUnusable, MountMissing, GpuUnavailable,
        GpuToolkitMissing, ContainerFailed, UlimitRefused
    5x  the kernel: KernelDied, KernelOutOfMemory, KernelNotFound, StartTimeout, StartCancelled, KernelEnded,
        KernelHeld, KernelTaken, KernelExpired, OutputUndelivered
"""

from __future__ import annotations

from collections.abc import Sequence

from kernelbridge.errors import KernelBridgeError


class ImageMissing(KernelBridgeError, exit_code=40):
    """The image is neither on the host nor in its registry."""

    def __init__(self, *, host: str, image: str, reason: str) -> None:
        super().__init__(
            f"{host}: there is no image {image} ({reason}).",
            f"Check the name; if it is private, `docker login` on {host}.",
        )


class ImagePullFailed(KernelBridgeError, exit_code=41):
    """A pull began and broke off."""

    def __init__(self, *, host: str, image: str, reason: str) -> None:
        super().__init__(
            f"{host}: the image {image} could not be pulled ({reason}).",
            "Is the host's disk full or its network down? Run the cell again to try again.",
        )


class ImageUnusable(KernelBridgeError, exit_code=42):
    """The image lacks what a kernel needs."""

    def __init__(self, *, image: str, lacks: str, remedy: str = "") -> None:
        super().__init__(
            f"The image {image} has no {lacks}.",
            remedy or "Add `RUN pip install ipykernel` to the image, or set `python` of the environment.",
        )


class MountMissing(KernelBridgeError, exit_code=43):
    """The source of a mount is not on the host."""

    def __init__(self, *, host: str, path: str) -> None:
        super().__init__(
            f"{host}: the mount source {path} does not exist.",
            f"Make it on {host}, or take it out of `mounts`.",
        )


class GpuUnavailable(KernelBridgeError, exit_code=44):
    """The host has fewer GPUs than asked for, or not those."""

    def __init__(self, *, host: str, wanted: str, found: str) -> None:
        super().__init__(
            f"{host}: {wanted} wanted, {found} there.", "Set `gpus` of the environment, or name another host."
        )


class GpuToolkitMissing(KernelBridgeError, exit_code=45):
    """The engine cannot hand GPUs to containers."""

    def __init__(self, *, host: str) -> None:
        super().__init__(
            f"{host}: its Docker engine cannot hand GPUs to containers.",
            f"Install the NVIDIA Container Toolkit on {host} and restart Docker, or set `gpus = 0`.",
        )


class ContainerFailed(KernelBridgeError, exit_code=46):
    """The engine could not create or start the container, or it ended at once."""

    def __init__(self, *, host: str, image: str, reason: str) -> None:
        super().__init__(
            f"{host}: the container of {image} did not start ({reason}).", "Mend the environment and try again."
        )


class UlimitRefused(KernelBridgeError, exit_code=47):
    """The engine may not raise a limit that the environment asks for."""

    def __init__(self, *, host: str, reason: str) -> None:
        super().__init__(
            f"{host}: the engine may not set the limits asked for ({reason}).", "Lower `ulimits` or take them out."
        )


class KernelDied(KernelBridgeError, exit_code=50):
    """The kernel process ended by itself."""

    def __init__(self, *, environment: str, host: str, how: str, last_words: str = "") -> None:
        tail = f" Its last words: {last_words}" if last_words else ""
        super().__init__(f"The kernel of {environment} on {host} ended: {how}.{tail}", "Restart the kernel to go on.")


class KernelOutOfMemory(KernelBridgeError, exit_code=51):
    """The host's kernel ended the process because its memory limit was reached."""

    def __init__(self, *, environment: str, host: str, limit: str) -> None:
        super().__init__(
            f"The kernel of {environment} on {host} ran out of memory ({limit}) and was ended.",
            "Raise `memory` of the environment or use less; restart the kernel to go on.",
        )


class KernelNotFound(KernelBridgeError, exit_code=52):
    """No kernel of this id on the hosts of the config, or several whose ids begin so."""

    def __init__(self, *, kernel: str, hosts: Sequence[str], count: int = 0) -> None:
        what = f"{count} kernels begin with" if count else "No kernel"
        super().__init__(f"{what} `{kernel}` on {', '.join(hosts)}.", "`kernelbridge ps` lists them.")


class StartTimeout(KernelBridgeError, exit_code=53):
    """Something that a start waited for did not come in time."""

    def __init__(self, *, host: str, what: str, seconds: float) -> None:
        super().__init__(f"{host}: {what} took longer than {seconds:g} s.", "Raise `start_seconds` of the environment.")


class StartCancelled(KernelBridgeError, exit_code=54):
    """The user cancelled the start."""

    def __init__(self, *, environment: str) -> None:
        super().__init__(f"The start of {environment} was cancelled.")


class KernelEnded(KernelBridgeError, exit_code=55):
    """The container is gone or was stopped from elsewhere."""

    def __init__(self, *, environment: str, host: str, how: str) -> None:
        super().__init__(f"The container of {environment} on {host} {how}.", "Start the kernel again.")


class KernelHeld(KernelBridgeError, exit_code=56):
    """Another process, here or on another machine, is joined to the kernel."""

    def __init__(self, *, kernel: str, host: str, who: str, since: str) -> None:
        self.who = who
        super().__init__(
            f"The kernel {kernel} on {host} is held by {who or 'another'} since {since}.",
            f"`kernelbridge attach --take {kernel}` takes it over; the other then loses it.",
        )


class KernelTaken(KernelBridgeError, exit_code=57):
    """Somebody else has taken over the kernel, which lives on."""

    def __init__(self, *, environment: str, host: str, who: str) -> None:
        super().__init__(
            f"The kernel of {environment} on {host} was taken over by {who or 'another'}.",
            "It runs on there; `kernelbridge ps` shows it, `kernelbridge attach --take` takes it back.",
        )


class KernelExpired(KernelBridgeError, exit_code=58):
    """A time limit of the environment ended the kernel."""

    def __init__(self, *, environment: str, host: str, key: str) -> None:
        super().__init__(
            f"The kernel of {environment} on {host} was ended by `{key}` of its environment.",
            f"Start the kernel again; raise `{key}` if it came too soon.",
        )


class OutputUndelivered(KernelBridgeError, exit_code=59):
    """`clean` leaves a kernel alone whose output nobody has taken yet."""

    def __init__(self, *, kernel: str, host: str, megabytes: float) -> None:
        super().__init__(
            f"The kernel {kernel} on {host} has output that nobody took yet ({megabytes:.1f} MB): it stays.",
            f"`kernelbridge attach {kernel}` fetches it, `kernelbridge clean --discard` throws it away.",
        )
