"""The errors of GPUs that people share, and of Slurm's jobs; the others: errors.py and kernel_errors.py.

KernelBridgeError
    3x  the scheduler: SlurmMissing, JobRefused, JobEnded, RuntimeMissing, SchedulerSilent
    4x  how GPUs are handed out: GpuWayMissing, GpuTaken
    6x  GPUs: GpusBusy, DriverTooOld, GpuMismatch, GpuLost
"""

from __future__ import annotations

from collections.abc import Sequence

from kernelbridge.errors import KernelBridgeError


class SlurmMissing(KernelBridgeError, exit_code=35):
    """The host is no login node of a Slurm cluster, or its controller refuses this login."""

    def __init__(self, *, host: str, reason: str) -> None:
        super().__init__(
            f"{host}: Slurm does not answer ({reason}).",
            "Is it a login node? Take `scheduler` out of the host if it is not.",
        )


class JobRefused(KernelBridgeError, exit_code=36):
    """sbatch would not take the job."""

    def __init__(self, *, host: str, reason: str) -> None:
        super().__init__(
            f"{host}: Slurm refused the job ({reason}).",
            "Mend `partition`, `account` and `sbatch_args` of the host, or `gpus`, `gres`, `time_limit`, `memory` and "
            "`cpus` of the environment.",
        )


class JobEnded(KernelBridgeError, exit_code=37):
    """Slurm ended the job: its time limit, preemption, a node that failed, a cancel."""

    def __init__(self, *, environment: str, host: str, job: str, how: str, remedy: str = "") -> None:
        super().__init__(
            f"The job {job} of {environment} on {host} {how}.", remedy or "Start the kernel again to get another job."
        )


class RuntimeMissing(KernelBridgeError, exit_code=38):
    """The job's node cannot run the image: the runtime is not installed there, or refused it."""

    def __init__(self, *, host: str, node: str, runtime: str, reason: str) -> None:
        super().__init__(
            f"{host}: {runtime} could not run the image on node {node} ({reason}).",
            "Set `runtime` of the host to what its nodes have, or ask its administrators.",
        )


class SchedulerSilent(KernelBridgeError, exit_code=39):
    """Slurm's controller did not answer; what became of the job is not known."""

    def __init__(self, *, host: str, reason: str) -> None:
        super().__init__(
            f"{host}: Slurm's controller does not answer at this time ({reason}).",
            "The job may run on; it is asked again.",
        )


class GpuWayMissing(KernelBridgeError, exit_code=48):
    """The engine has no way, or not the one asked for, to hand GPUs to containers."""

    def __init__(self, *, host: str, reason: str, remedy: str) -> None:
        super().__init__(f"{host}: {reason}.", remedy)


class GpuTaken(KernelBridgeError, exit_code=49):
    """Another kernel had the lock on a GPU first."""

    def __init__(self, *, host: str) -> None:
        super().__init__(
            f"{host}: another kernel was faster to take the GPU.",
            "Run the cell again, or set `wait` of the environment to queue for it.",
        )


class GpusBusy(KernelBridgeError, exit_code=60):
    """The host has what is asked for, and others use it."""

    def __init__(self, *, host: str, wanted: str, holders: Sequence[str], waited: str = "") -> None:
        self.host, self.wanted, self.waited = host, wanted, waited
        self.holders = tuple(holders)
        after = f" after {waited} in the queue" if waited else ""
        remedy = (
            "Start it again, or make `wait` longer" if waited else "Wait, or set `wait` of the environment to queue"
        )
        super().__init__(
            f"{host}: {wanted} wanted, not free{after}: {'; '.join(self.holders)}.",
            f"{remedy}; `kernelbridge gpus` shows who has what.",
        )

    @classmethod
    def on_all(cls, busy: Sequence[GpusBusy]) -> GpusBusy:
        """Return one error for hosts that are all full: who has what on each."""
        if len(busy) == 1:
            return busy[0]
        return cls(
            host=", ".join(one.host for one in busy),
            wanted=busy[0].wanted,
            holders=[f"on {one.host} {holder}" for one in busy for holder in one.holders],
            waited=busy[0].waited,
        )


class DriverTooOld(KernelBridgeError, exit_code=61):
    """The image's CUDA needs a newer driver than the host's."""

    def __init__(self, *, host: str, image: str, needs: str, driver: str) -> None:
        super().__init__(
            f"{host}: the image {image} needs {needs}, the host has {driver}.",
            f"Update the NVIDIA driver on {host}, or use an image with an older CUDA.",
        )


class GpuMismatch(KernelBridgeError, exit_code=62):
    """The container sees other GPUs than it should."""

    def __init__(self, *, host: str, wanted: str, seen: str, remedy: str = "") -> None:
        super().__init__(
            f"{host}: the container should see {wanted} and sees {seen}; it was ended.",
            remedy or "Set `gpu_access` of the host, or have its container toolkit mended.",
        )


class GpuLost(KernelBridgeError, exit_code=63):
    """A container that had its GPUs can reach them no more; a `systemctl daemon-reload` of the host does that."""

    def __init__(self, *, environment: str, host: str) -> None:
        super().__init__(
            f"The kernel of {environment} on {host} can no longer reach its GPUs, as happens after `systemctl "
            "daemon-reload` there.",
            "Save what you need and restart the kernel: it gets a new container.",
        )
