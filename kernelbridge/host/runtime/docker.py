"""Docker inside a job: only where the config says so. Its container is no child of the job: limits are copied.

Its lifetime is tied to the job by our stdin: the first process ends on EOF, which comes even if the script is killed.
The engine removes it then: nobody reaches a job's node after the job, so what it keeps could be fetched by nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kernelbridge.environment import Environment
from kernelbridge.host.runtime.spec import CARDS, CPU_OPTIONS, MEMORY_OPTIONS, NAME, Spec, engine_options

PROGRAM: Final = "docker"
CARD_OPTION: Final = ""
JOINS_AS_STEP: Final = False
ENDS_ALONE: Final = True


def run_argv(spec: Spec) -> list[str]:
    """See Runtime."""
    environment = spec.environment
    words = [PROGRAM, "run", "--rm", "--init", *engine_options(spec), f"--pids-limit={environment.pids_limit}"]
    words += ["--no-healthcheck", "--restart=no", "--log-driver=local", "--log-opt=max-size=4m", "--log-opt=max-file=2"]
    words += [MEMORY_OPTIONS, CPU_OPTIONS]
    if environment.user == "host":
        words += ["--user={}:{}".format(*spec.user_numbers), "--env=HOME=/tmp", "--env=USER=kernelbridge"]
    elif environment.user is not None:
        words.append(f"--user={environment.user}")
    if spec.wants_gpus:
        # One option for all cards; its value is a line of CSV, hence the quotes.
        words.append(f'--gpus="device={CARDS}"')
    return [*words, environment.image, *spec.command[1:]]


def join_argv(spec: Spec, command: Sequence[str]) -> list[str]:
    """See Runtime."""
    return [PROGRAM, "exec", "--interactive", spec.name, *command]


def remove_argv() -> list[str]:
    """See Runtime."""
    return [PROGRAM, "rm", "--force", "--volumes", NAME]


def has_own_network(environment: Environment) -> bool:
    """See Runtime."""
    return environment.network != "host"
