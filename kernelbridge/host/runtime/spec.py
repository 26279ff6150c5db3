"""What a runtime must know of one kernel, and what all runtimes have in common. Who runs the result: jobscript.py."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from kernelbridge import values
from kernelbridge.environment import Environment, Mount
from kernelbridge.errors import ConfigInvalid, Problem

NAME_PREFIX: Final = "kernelbridge-"
# Where the relay has its sockets, and its journal, in every container.
RUN_FOLDER: Final = "/run/kernelbridge"
JOURNAL_FOLDER: Final = "/var/lib/kernelbridge"

# What only the job's node knows; the script puts it in. No word that a user writes has the byte 0.
FOLDER: Final = "\0folder\0"  # part of a word: the job's own folder on the node
CARDS: Final = "\0cards\0"  # part of a word: UUIDs joined by commas, or `void`
CARD_OPTIONS: Final = "\0card options\0"  # a word of its own: an option for each card; nothing without cards
CPU_OPTIONS: Final = "\0cpu options\0"  # a word of its own: the job's processors, where Slurm says them
MEMORY_OPTIONS: Final = "\0memory options\0"  # a word of its own: the job's memory, where Slurm says it
JOB: Final = "\0job\0"  # part of a word: the job's id
NAME: Final = "\0name\0"  # part of a word: the container's name, this job's or that of one that was killed


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One kernel as a runtime sees it."""

    kernel: str
    environment: Environment
    # The container's first process.
    command: tuple[str, ...]
    # Whether the job asks for GPUs, by `gpus` or by `gres`.
    wants_gpus: bool
    # Of the login on the host; the nodes have the same.
    home: str
    user_numbers: tuple[int, int]
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The container's name, and the job's."""
        return NAME_PREFIX + self.kernel

    @property
    def folders(self) -> tuple[str, str]:
        """The node's folders that become RUN_FOLDER and JOURNAL_FOLDER."""
        return f"{FOLDER}/run", f"{FOLDER}/journal"


class Runtime(Protocol):
    """What each file of this package has."""

    # What must be on the node's PATH.
    PROGRAM: str
    # What CARD_OPTIONS is made of: the option for one card, up to its UUID; empty where there is none.
    CARD_OPTION: str
    # Whether join_argv() is a step of the job by itself: it then runs on the login node.
    JOINS_AS_STEP: bool
    # Whether the container ends and is removed by itself even where all of the job is killed.
    ENDS_ALONE: bool

    def run_argv(self, spec: Spec) -> list[str]:
        """The command that runs the image in the foreground, with our stdin; its end is the container's."""

    def join_argv(self, spec: Spec, command: Sequence[str]) -> list[str]:
        """The command that runs another process which reaches the same RUN_FOLDER; stdin and stdout pass unchanged."""

    def remove_argv(self) -> list[str]:
        """The command that removes what is left of the container NAME; empty where nothing is."""

    def has_own_network(self, environment: Environment) -> bool:
        """Whether other logins of the node cannot reach the kernel's ports, the debugger's for one."""


def binds(spec: Spec) -> list[Mount]:
    """The user's mounts, with the login's home in place of ~. Raises: ConfigInvalid."""
    return [
        Mount(source=_source(mount, spec), target=mount.target, read_only=mount.read_only)
        for mount in spec.environment.mounts
    ]


def _source(mount: Mount, spec: Spec) -> str:
    source = mount.source
    if source == "~" or source.startswith("~/"):
        source = posixpath.normpath(posixpath.join(spec.home, source[2:]))
    try:
        # Again, because only now is it known what ~ stands for.
        return values.check_mount_source(source)
    except ValueError as error:
        raise refused_mount(mount, spec, str(error)) from error


def refused_mount(mount: Mount, spec: Spec, sentence: str) -> ConfigInvalid:
    """The error for a mount that this runtime, or any, cannot make."""
    problem = Problem(key=f"environments.{spec.environment.name}.mounts", sentence=sentence)
    return ConfigInvalid(path=mount.source, problems=[problem])


def engine_options(spec: Spec) -> list[str]:
    """What `docker run` and `podman run` both take, as container.py asks of an engine."""
    environment = spec.environment
    words = ["--interactive", f"--name={spec.name}", f"--pull={environment.pull}", "--cap-drop=ALL"]
    words += [f"--cap-add={name}" for name in environment.cap_add]
    words += ["--security-opt=no-new-privileges", f"--network={environment.network}", f"--ipc={environment.ipc}"]
    if environment.ipc != "host":
        words.append(f"--shm-size={environment.shm_size}")
    limits = {} if environment.core_dumps else {"core": (0, 0)}
    for limit, (soft, hard) in {**limits, **dict(sorted(environment.ulimits.items()))}.items():
        words.append(f"--ulimit={limit}={soft}:{hard}")
    words += [f"--tmpfs={RUN_FOLDER}:rw,nosuid,nodev,mode=1777,size=64m", f"--volume={JOURNAL_FOLDER}"]
    words += [f"--group-add={name}" for name in environment.groups]
    for key, text in sorted({**environment.labels, **spec.labels}.items()):
        words.append(f"--label={key}={text}")
    for mount in binds(spec):
        words.append(f"--mount={_mount_text(mount)}")
    # Always ours: an image's own `all` would be all cards.
    words.append(f"--env=NVIDIA_VISIBLE_DEVICES={CARDS}")
    if environment.workdir is not None:
        words.append(f"--workdir={environment.workdir}")
    # The image's own entrypoint does not run: it could eat our stdin.
    return [*words, f"--entrypoint={spec.command[0]}"]


def _mount_text(mount: Mount) -> str:
    """One line of CSV, which both engines read it as."""
    parts = ["type=bind", f"source={mount.source}", f"target={mount.target}"]
    if mount.read_only:
        parts.append("readonly")
    return ",".join('"{}"'.format(part.replace('"', '""')) if set(part) & set(',"') else part for part in parts)
