"""Write Docker's command lines inside a job. Its container is not a child of the job, so limits are copied.

Its lifetime is tied to the job by our stdin: the first process ends on EOF, which comes even if the script is killed.
The engine removes it then: nobody reaches a job's node after the job, so what it keeps could be fetched by nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kernelbridge.config.schema import HOST_USER, IMAGE_USER, Environment
from kernelbridge.hosts import hardening
from kernelbridge.hosts.slurm.runtimes.spec import CARDS, CPU_OPTIONS, MEMORY_OPTIONS, NAME, Spec, engine_options

PROGRAM: Final = "docker"
CARD_OPTION: Final = ""
JOINS_AS_STEP: Final = False
ENDS_ALONE: Final = True


def run_argv(spec: Spec) -> list[str]:
    """See JobRuntime."""
    environment = spec.environment
    words = [PROGRAM, "run", "--rm", "--init", *engine_options(spec), f"--pids-limit={environment.pids_limit}"]
    words += ["--no-healthcheck", "--restart=no", f"--log-driver={hardening.LOG_DRIVER}"]
    words += [f"--log-opt={key}={text}" for key, text in hardening.LOG_OPTIONS.items()]
    words += [MEMORY_OPTIONS, CPU_OPTIONS]
    if environment.user == HOST_USER:
        # The image may not know it: the relay then gives the kernel a home and a name.
        words.append("--user={}:{}".format(*spec.user_numbers))
    elif environment.user != IMAGE_USER:
        words.append(f"--user={environment.user}")
    if spec.wants_gpus:
        # One option for all cards; its value is a line of CSV, hence the quotes.
        words.append(f'--gpus="device={CARDS}"')
    return [*words, environment.image, *spec.command[1:]]


def join_argv(spec: Spec, command: Sequence[str]) -> list[str]:
    """See JobRuntime."""
    return [PROGRAM, "exec", "--interactive", spec.name, *command]


def remove_argv() -> list[str]:
    """See JobRuntime."""
    return [PROGRAM, "rm", "--force", "--volumes", NAME]


def has_own_network(environment: Environment) -> bool:
    """See JobRuntime."""
    return environment.network != "host"
