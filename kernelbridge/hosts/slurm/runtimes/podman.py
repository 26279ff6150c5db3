"""Write rootless Podman's command lines: the container is a child of the job, in the job's cgroup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kernelbridge.config.schema import HOST_USER, IMAGE_USER, Environment
from kernelbridge.hosts.slurm.runtimes.spec import CARD_OPTIONS, NAME, Spec, engine_options

PROGRAM: Final = "podman"
# The node's administrators make the CDI file: nvidia-ctk cdi generate.
CARD_OPTION: Final = "--device=nvidia.com/gpu="
JOINS_AS_STEP: Final = False
ENDS_ALONE: Final = False


def run_argv(spec: Spec) -> list[str]:
    """See JobRuntime."""
    # Without a cgroup of its own it stays in the job's, whose limits hold; a session's systemd would take it out.
    words = [PROGRAM, "run", "--rm", "--cgroups=disabled", *engine_options(spec)]
    words.append("--log-driver=none")
    if spec.environment.user != IMAGE_USER:
        # Files in mounts are the login's, whoever the kernel is in the container.
        words.append("--userns=keep-id")
    if spec.environment.user not in (HOST_USER, IMAGE_USER):
        words.append(f"--user={spec.environment.user}")
    if spec.wants_gpus:
        words.append(CARD_OPTIONS)
    return [*words, spec.environment.image, *spec.command[1:]]


def join_argv(spec: Spec, command: Sequence[str]) -> list[str]:
    """See JobRuntime."""
    return [PROGRAM, "exec", "--interactive", spec.name, *command]


def remove_argv() -> list[str]:
    """See JobRuntime."""
    return [PROGRAM, "rm", "--force", "--ignore", "--volumes", "--time=1", NAME]


def has_own_network(environment: Environment) -> bool:
    """See JobRuntime."""
    return environment.network != "host"
