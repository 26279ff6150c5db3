"""The errors of GPUs and of Slurm with facts, for the table of all errors: test_errors.py."""

from __future__ import annotations

from kernelbridge.errors import (
    DriverTooOld,
    GpuLost,
    GpuMismatch,
    GpusBusy,
    GpuTaken,
    GpuWayMissing,
    JobEnded,
    JobRefused,
    KernelBridgeError,
    RuntimeMissing,
    SchedulerSilent,
    SlurmMissing,
)

# Each error with facts; its exit code; what failed, and where; what to do next.
GPU_ERRORS: list[tuple[KernelBridgeError, int, str, str]] = [
    (
        SlurmMissing(host="lab", reason="its commands are not installed"),
        35,
        "lab: Slurm does not answer (its commands are not installed).",
        "Is it a login node? If not, remove `scheduler` from the host; if its commands are elsewhere, name their "
        "folder in `path` of the host.",
    ),
    (
        JobRefused(host="lab", reason="Invalid partition name specified"),
        36,
        "lab: Slurm refused the job (Invalid partition name specified).",
        "Fix `partition`, `account` and `sbatch_args` of the host, or `gpus`, `gres`, `time_limit`, `memory` and "
        "`cpus` of the environment.",
    ),
    (
        JobEnded(environment="pytorch", host="lab", job="11", how="was cancelled"),
        37,
        "The job 11 of pytorch on lab was cancelled.",
        "Start it again to get another job.",
    ),
    (
        RuntimeMissing(host="lab", node="n1", runtime="apptainer", reason="not found"),
        38,
        "lab: apptainer could not run the image on node n1 (not found).",
        "Set `runtime` of the host to one that its nodes have, or ask its administrators.",
    ),
    (
        SchedulerSilent(host="lab", reason="no answer in 45 s"),
        39,
        "lab: Slurm's controller is not answering (no answer in 45 s).",
        "The job may still be running; Slurm will be asked again.",
    ),
    (
        GpuWayMissing(
            host="lab", reason="the engine does not support CDI devices", remedy="Run `nvidia-ctk cdi generate`."
        ),
        48,
        "lab: the engine does not support CDI devices.",
        "Run `nvidia-ctk cdi generate`.",
    ),
    (
        GpuTaken(host="lab"),
        49,
        "lab: another kernel took the GPU first.",
        "Try again, or set `wait` of the environment to queue for it.",
    ),
    (
        GpusBusy(host="lab", wanted="1 GPU", holders=["GPU 0: pytorch of ada", "GPU 1: process 7"]),
        60,
        "lab: 1 GPU requested, but not free: GPU 0: pytorch of ada; GPU 1: process 7.",
        "Wait, or set `wait` of the environment to queue; `kernelbridge gpus` shows who has what.",
    ),
    (
        GpusBusy(host="lab", wanted="1 GPU", holders=["GPU 0: pytorch of ada"], waited="5 min"),
        60,
        "lab: 1 GPU requested, but not free after 5 min in the queue: GPU 0: pytorch of ada.",
        "Start it again, or raise `wait`; `kernelbridge gpus` shows who has what.",
    ),
    (
        DriverTooOld(host="lab", image="pytorch:2", needs="CUDA 13.0", driver="driver 550.00.00 (CUDA 12.4)"),
        61,
        "lab: the image pytorch:2 needs CUDA 13.0, but the host has driver 550.00.00 (CUDA 12.4).",
        "Update the NVIDIA driver on lab, or use an image with an older CUDA.",
    ),
    (
        GpuMismatch(host="lab", wanted="GPU-1", seen="GPU-2"),
        62,
        "lab: the container should see GPU-1 but sees GPU-2, so it was stopped.",
        "Set `gpu_access` of the host, or have its container toolkit repaired.",
    ),
    (
        GpuLost(environment="pytorch", host="lab"),
        63,
        "The kernel of pytorch on lab can no longer reach its GPUs, as happens after `systemctl daemon-reload` there.",
        "Save what you need and restart the kernel: it gets a new container.",
    ),
]
