"""Rootless Podman: its container is a child of the job, in the job's cgroup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kernelbridge.environment import Environment
from kernelbridge.host.runtime.spec import CARD_OPTIONS, NAME, Spec, engine_options

PROGRAM: Final = "podman"
# The node's administrators make the CDI file: nvidia-ctk cdi generate.
CARD_OPTION: Final = "--device=nvidia.com/gpu="
JOINS_AS_STEP: Final = False
ENDS_ALONE: Final = False


def run_argv(spec: Spec) -> list[str]:
    """See Runtime."""
    # Without a cgroup of its own it stays in the job's, whose limits hold; a session's systemd would take it out.
    words = [PROGRAM, "run", "--rm", "--cgroups=disabled", *engine_options(spec)]
    # Files in mounts are the login's, whoever the kernel is in the container.
    words += ["--userns=keep-id", "--log-driver=none"]
    if spec.environment.user not in (None, "host"):
        words.append(f"--user={spec.environment.user}")
    if spec.wants_gpus:
        words.append(CARD_OPTIONS)
    return [*words, spec.environment.image, *spec.command[1:]]


def join_argv(spec: Spec, command: Sequence[str]) -> list[str]:
    """See Runtime."""
    return [PROGRAM, "exec", "--interactive", spec.name, *command]


def remove_argv() -> list[str]:
    """See Runtime."""
    return [PROGRAM, "rm", "--force", "--ignore", "--volumes", "--time=1", NAME]


def has_own_network(environment: Environment) -> bool:
    """See Runtime."""
    return environment.network != "host"
