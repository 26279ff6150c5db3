"""Define what a runtime needs to know of one kernel, and the options that several runtimes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from kernelbridge.config.container_paths import JOURNAL_FOLDER
from kernelbridge.config.schema import Environment, Mount
from kernelbridge.hosts import hardening, mounts
from kernelbridge.hosts.labels import container_name

# What only the job's node knows; the script puts it in. No word that a user writes has the byte 0.
NODE_FOLDER: Final = "\0folder\0"  # part of a word: the job's own folder on the node
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
        return container_name(self.kernel)

    @property
    def folders(self) -> tuple[str, str]:
        """The node's folders that become RUN_FOLDER and JOURNAL_FOLDER."""
        return f"{NODE_FOLDER}/run", f"{NODE_FOLDER}/journal"


class JobRuntime(Protocol):
    """The interface of each file of this package."""

    # What must be on the node's PATH.
    PROGRAM: str
    # What CARD_OPTIONS is made of: the option for one card, up to its UUID; empty where there is none.
    CARD_OPTION: str
    # Whether join_argv() is a step of the job by itself: it then runs on the login node.
    JOINS_AS_STEP: bool
    # Whether the container ends and is removed by itself even where all of the job is killed.
    ENDS_ALONE: bool

    def run_argv(self, spec: Spec) -> list[str]:
        """Return the command that runs the image in the foreground, with our stdin; its end is the container's."""

    def join_argv(self, spec: Spec, command: Sequence[str]) -> list[str]:
        """Return the command that runs another process in reach of the same RUN_FOLDER; its streams pass unchanged."""

    def remove_argv(self) -> list[str]:
        """Return the command that removes what is left of the container NAME; empty where nothing is."""

    def has_own_network(self, environment: Environment) -> bool:
        """Whether other logins of the node cannot reach the kernel's ports, the debugger's for one."""


def binds(spec: Spec) -> list[Mount]:
    """Return the mounts of the host's folders, with the login's home in place of ~. Raises: ConfigInvalid."""
    return [mounts.resolved(mount, spec.environment, spec.home) for mount in spec.environment.host_mounts]


def refuse_volumes(spec: Spec, program: str) -> None:
    """Say of a volume that the runtime has none: what is written there would be gone. Raises: ConfigInvalid."""
    for mount in spec.environment.volumes:
        raise mounts.refused(mount, spec.environment, f"{program} has no volumes; mount a folder of the host")


def engine_options(spec: Spec) -> list[str]:
    """Return the options that `docker run` and `podman run` both take; in an API's words: container_spec.spec()."""
    environment = spec.environment
    words = ["--interactive", f"--name={spec.name}", f"--pull={environment.pull}"]
    words.append(f"--cap-drop={hardening.DROPPED_CAPABILITIES}")
    words += [f"--cap-add={name}" for name in environment.cap_add]
    words += [
        *(f"--security-opt={option}" for option in hardening.security_options(environment)),
        f"--network={environment.network}",
        f"--ipc={environment.ipc}",
    ]
    if environment.ipc != "host":
        words.append(f"--shm-size={environment.shm_size}")
    words += [f"--ulimit={name}={soft}:{hard}" for name, (soft, hard) in hardening.ulimits(environment).items()]
    folders = hardening.memory_folders(environment, [mount.target for mount in environment.all_mounts])
    words += [*(f"--tmpfs={folder}:{options}" for folder, options in folders.items()), f"--volume={JOURNAL_FOLDER}"]
    words += _options(environment)
    words += [f"--group-add={name}" for name in environment.groups]
    for key, text in sorted({**environment.labels, **spec.labels}.items()):
        words.append(f"--label={key}={text}")
    for mount in binds(spec):
        words.append(_labelled(mount) if mount.relabel else f"--mount={_mount_text(mount, 'bind')}")
    words += [f"--mount={_mount_text(mount, 'volume')}" for mount in environment.volumes]
    # Always ours: an image's own `all` would be all cards.
    words.append(f"--env=NVIDIA_VISIBLE_DEVICES={CARDS}")
    if environment.workdir is not None:
        words.append(f"--workdir={environment.workdir}")
    # The image's own entrypoint does not run in a job: it could eat our stdin.
    return [*words, f"--entrypoint={spec.command[0]}"]


def _options(environment: Environment) -> list[str]:
    """Return those that a container has only where they are written."""
    words = [f"--device={text}" for text in environment.devices]
    words += [f"--dns={address}" for address in environment.dns]
    words += [f"--add-host={text}" for text in environment.extra_hosts]
    words += [f"--sysctl={name}={value}" for name, value in sorted(environment.sysctls.items())]
    named = {
        "hostname": environment.hostname,
        "runtime": environment.container_runtime,
        "stop-timeout": environment.stop_timeout,
    }
    words += [f"--{option}={value}" for option, value in named.items() if value is not None]
    return [*words, "--read-only"] if environment.read_only else words


def _labelled(mount: Mount) -> str:
    """Write a mount whose label SELinux changes: neither part has a colon, see fields.parse_mount()."""
    return f"--volume={mount.source}:{mount.target}:{'ro' if mount.read_only else 'rw'},{mount.relabel}"


def _mount_text(mount: Mount, kind: str) -> str:
    """Write one line of CSV, which both engines read it as."""
    parts = [f"type={kind}", f"source={mount.source}", f"target={mount.target}"]
    if mount.read_only:
        parts.append("readonly")
    return ",".join('"{}"'.format(part.replace('"', '""')) if set(part) & set(',"') else part for part in parts)
