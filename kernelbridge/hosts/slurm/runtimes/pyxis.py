"""Write the command lines of pyxis, NVIDIA's plugin of Slurm: srun itself makes the container, with enroot.

Written from its manual, never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kernelbridge.config.container_paths import JOURNAL_FOLDER, RUN_FOLDER
from kernelbridge.config.schema import Environment
from kernelbridge.hosts.mounts import refused
from kernelbridge.hosts.slurm.runtimes.spec import JOB, NAME, Spec, binds, refuse_volumes

PROGRAM: Final = "srun"
# enroot's hook reads NVIDIA_VISIBLE_DEVICES, which the script exports.
CARD_OPTION: Final = ""
JOINS_AS_STEP: Final = True
ENDS_ALONE: Final = False

_STEP: Final = ("--overlap", "--nodes=1", "--ntasks=1", "--mpi=none", "--quiet", "--unbuffered")
# Ours win over the image's, which often says `all`.
_VARIABLES: Final = "NVIDIA_VISIBLE_DEVICES,CUDA_VISIBLE_DEVICES"


def image_word(image: str) -> str:
    """Return a path as it is; else enroot's form, where # ends the registry's name."""
    plain = image.removeprefix("docker://")
    registry, mark, rest = plain.partition("/")
    is_registry = "#" not in plain and mark and ("." in registry or ":" in registry or registry == "localhost")
    if image.startswith("/") or not is_registry:
        return plain
    return f"{registry}#{rest}"


def run_argv(spec: Spec) -> list[str]:
    """See JobRuntime."""
    refuse_volumes(spec, "pyxis")
    run, journal = spec.folders
    mounts = [f"{run}:{RUN_FOLDER}", f"{journal}:{JOURNAL_FOLDER}"]
    for mount in binds(spec):
        if set(mount.source + mount.target) & set(":,\\"):
            raise refused(mount, spec.environment, "pyxis takes no path with a colon, comma or backslash")
        mounts.append(f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else ""))
    words = [PROGRAM, *_STEP, f"--container-image={image_word(spec.environment.image)}"]
    words += [f"--container-name={spec.name}", f"--container-mounts={','.join(mounts)}", "--no-container-mount-home"]
    # The image is unpacked for this job alone, so it may be written to.
    words += ["--container-writable", "--no-container-entrypoint", f"--container-env={_VARIABLES}"]
    if spec.environment.workdir is not None:
        words.append(f"--container-workdir={spec.environment.workdir}")
    return [*words, *spec.command]


def join_argv(spec: Spec, command: Sequence[str]) -> list[str]:
    """See JobRuntime. pyxis enters the container of this name that runs on the node."""
    return [PROGRAM, f"--jobid={JOB}", *_STEP, f"--container-name={spec.name}", "--no-container-entrypoint", *command]


def remove_argv() -> list[str]:
    """See JobRuntime. A named container outlives the step where the cluster's `container_scope` is global."""
    return ["enroot", "remove", "--force", f"pyxis_{NAME}"]


def has_own_network(environment: Environment) -> bool:
    """See JobRuntime. enroot has the node's network alone."""
    return False
