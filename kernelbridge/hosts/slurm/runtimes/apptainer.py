"""Write Apptainer's command lines (SingularityCE's are the same): the container is a child of the job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kernelbridge.config.container_paths import JOURNAL_FOLDER, RUN_FOLDER
from kernelbridge.config.schema import Environment
from kernelbridge.hosts.mounts import refused
from kernelbridge.hosts.slurm.runtimes.spec import NODE_FOLDER, Spec, binds, refuse_volumes

PROGRAM: Final = "apptainer"
# --nv gives all cards that the job's cgroup lets through; the variables that the script exports choose.
CARD_OPTION: Final = ""
JOINS_AS_STEP: Final = False
ENDS_ALONE: Final = False


def image_word(image: str) -> str:
    """Return a path or a URI as it is; else a name in a registry, as Docker takes it."""
    return image if image.startswith("/") or "://" in image else f"docker://{image}"


def run_argv(spec: Spec) -> list[str]:
    """See JobRuntime."""
    refuse_volumes(spec, PROGRAM)
    words = _exec(spec)
    # /tmp and the home: on the node's disk, and not in a tmpfs that is small by default.
    words += [f"--workdir={NODE_FOLDER}/work"]
    if spec.wants_gpus:
        words.append("--nv")
    for mount in binds(spec):
        if set(mount.source + mount.target) & set(":,\\"):
            raise refused(mount, spec.environment, f"{PROGRAM} takes no path with a colon, comma or backslash")
        words.append(f"--bind={mount.source}:{mount.target}:{'ro' if mount.read_only else 'rw'}")
    words.append(f"--pwd={spec.environment.workdir or '/'}")
    return [*words, image_word(spec.environment.image), *spec.command]


def join_argv(spec: Spec, command: Sequence[str]) -> list[str]:
    """See JobRuntime. A container of its own, with the same folder: it hands its streams over and waits."""
    return [*_exec(spec), "--pwd=/", image_word(spec.environment.image), *command]


def _exec(spec: Spec) -> list[str]:
    run, journal = spec.folders
    # No variable of the login or the node gets in: --containall cleans the environment too.
    words = [PROGRAM, "--silent", "exec", "--containall", f"--bind={run}:{RUN_FOLDER}"]
    words.append(f"--bind={journal}:{JOURNAL_FOLDER}")
    if spec.environment.network == "none":
        words += ["--net", "--network=none"]
    return words


def remove_argv() -> list[str]:
    """See JobRuntime."""
    return []


def has_own_network(environment: Environment) -> bool:
    """See JobRuntime. Without rights Apptainer has the node's network or none."""
    return environment.network == "none"
