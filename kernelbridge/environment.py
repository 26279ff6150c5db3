"""One environment as the user wrote it: what a kernel runs in. Each key with its default, kind and meaning.

Hosts, and the file around both: config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from kernelbridge import values
from kernelbridge.value_types import Duration, Gpus, Size, Ulimit, Variable, Variables, Words, as_tuple


class Frozen(BaseModel):
    """What the user wrote does not change while we run, and nothing in it is guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=False)


class Mount(Frozen):
    """A folder or file of the host in the container; `~` is the login's home on the host."""

    source: Annotated[str, AfterValidator(values.check_mount_source)]
    target: Annotated[str, AfterValidator(values.check_mount_target)]
    read_only: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        source, target, read_only = values.parse_mount(value)
        # Checked here as well, so that a complaint names the mount and not one half of it.
        return {
            "source": values.check_mount_source(source),
            "target": values.check_mount_target(target),
            "read_only": read_only,
        }


def _each_at_its_own_place(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    for index, mount in enumerate(mounts):
        if any(mount.target == other.target for other in mounts[:index]):
            raise ValueError(f"two mounts have the target {mount.target}")
    return mounts


Mounts = Annotated[
    tuple[Annotated[Mount, WithJsonSchema({"type": "string", "pattern": values.MOUNT_PATTERN})], ...],
    BeforeValidator(as_tuple),
    AfterValidator(_each_at_its_own_place),
]


class Environment(Frozen):
    """What a kernel runs in. The defaults of the whole program stand here and nowhere else."""

    name: Annotated[str, AfterValidator(values.check_environment_name)]
    display_name: Annotated[str, AfterValidator(values.check_display_name)] | None = Field(
        default=None,
        title="text",
        description=f"What the kernel picker shows; not set: `{values.DISPLAY_NAME}`, with the environment's name "
        "behind it where several environments have none.",
    )
    hosts: Words = Field(
        default=(),
        title="list of host names",
        description="Where it may run: the first that can give the GPUs. Empty: all hosts, in the order of the file.",
    )
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9/][^\s]*$")] = Field(
        title="image name",
        description="The Docker image; it needs Python 3.8 or newer with ipykernel, nothing else. With Apptainer or "
        "pyxis also the path of an image file.",
    )
    python: Annotated[str, Field(min_length=1)] = Field(
        default="python3", title="command", description="The image's Python that has ipykernel: a name or a path."
    )
    pull: Literal["missing", "always", "never"] = Field(
        default="missing",
        title='"missing", "always" or "never"',
        description="When the host fetches the image from its registry.",
    )
    gpus: Gpus = Field(
        default=0,
        title='number, "all" or list of ids',
        description='How many free GPUs, or which: `0`, `2`, `"all"`, `["0", "GPU-...", "MIG-..."]`. The kernel sees '
        "no others, and nobody else's kernel gets them meanwhile.",
    )
    gpu_memory: Size | None = Field(
        default=None,
        title='size: bytes or "20g"',
        description="Free memory that each GPU must have at least; a MIG device may then be one of them.",
    )
    gpu_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9 ._-]+$")] | None = Field(
        default=None,
        title="text",
        description='Part of the name that `nvidia-smi` shows, for example `"H200"`: only such GPUs are taken.',
    )
    busy_gpus: Literal["avoid", "use"] = Field(
        default="avoid",
        title='"avoid" or "use"',
        description="Whether a GPU on which somebody computes outside of kernelbridge counts as free.",
    )
    gpu_lock: Literal["flock", "advisory"] = Field(
        default="flock",
        title='"flock" or "advisory"',
        description="`flock`: the container holds a lock on each of its GPUs, so that two kernels never share one; "
        "`advisory`: only the list of containers tells who has which.",
    )
    wait: Duration | None = Field(
        default=None,
        title='time: seconds or "30m"',
        description="How long a start waits in the queue for GPUs that others have; not set: it fails at once and says "
        "who has them, and in Slurm's own queue it waits for as long as Slurm lets it.",
    )
    gres: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:,()-]+$")] | None = Field(
        default=None,
        title="text",
        description='Slurm\'s own words for the GPUs of a job, for example `"gpu:h200:2"`; not set: made of `gpus`.',
    )
    time_limit: Duration | None = Field(
        default=None,
        title='time: seconds or "8h"',
        description="How long a Slurm job may last; not set: the partition's default.",
    )
    shm_size: Size = Field(
        default=1 << 30,
        title='size: bytes or "8g"',
        description="Upper limit of `/dev/shm`, which the workers of a PyTorch DataLoader share.",
    )
    memory: Size | None = Field(
        default=None, title='size: bytes or "8g"', description="Upper limit of main memory; not set: the host's."
    )
    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, title="number of cores", description="Upper limit of processor time; not set: all cores."
    )
    pids_limit: Annotated[int, Field(ge=16)] = Field(
        default=4096, title="number", description="Upper limit of processes and threads."
    )
    ulimits: Mapping[Annotated[str, AfterValidator(values.check_ulimit_name)], Ulimit] = Field(
        default={},
        title='table of numbers or "SOFT:HARD"',
        description="Limits of each process, for example `{ memlock = -1 }`; `-1` is no limit.",
    )
    core_dumps: bool = Field(
        default=False,
        title="true or false",
        description="Whether a crash may write a core file, which holds all that was in memory.",
    )
    ipc: Literal["private", "host"] = Field(
        default="private",
        title='"private" or "host"',
        description="Whose shared memory the kernel sees; with `host`, `shm_size` has no effect.",
    )
    network: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = Field(
        default="bridge",
        title='"bridge", "none", "host" or a network\'s name',
        description="What the kernel can reach. kernelbridge itself needs none of it; `none` works.",
    )
    debug_on_host_network: bool = Field(
        default=False,
        title="true or false",
        description='Whether the debugger stays on with `network = "host"`, where every login of the host could use it '
        "to run code in the kernel.",
    )
    mounts: Mounts = Field(
        default=(),
        title='list of "SOURCE:TARGET[:ro]"',
        description="Folders and files of the host in the container; `~` is the login's home on the host.",
    )
    env: Mapping[Variable, str] = Field(
        default={},
        repr=False,
        title="table of texts",
        description="Environment variables of the kernel process, as written here; for tokens see `secrets`.",
    )
    pass_env: Variables = Field(
        default=(),
        title="list of variable names",
        description="Variables of this machine that the kernel process gets where they are set here.",
    )
    secrets: Variables = Field(
        default=(),
        title="list of variable names",
        description="The same for tokens: a start without them fails with a sentence. Both go over the link into the "
        "kernel process alone: on no disk, in no label, log or `docker inspect`.",
    )
    user: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?$")] | None = Field(
        default=None,
        title='name, UID[:GID] or "host"',
        description="Who runs the kernel; `host` is the login's own numbers on the host, so that files in mounts are "
        "yours. Not set: the image's user.",
    )
    groups: Words = Field(default=(), title="list of texts", description="More groups of the user: names or numbers.")
    cap_add: Words = Field(
        default=("CHOWN", "DAC_OVERRIDE", "FOWNER"),
        title="list of texts",
        description="Capabilities that are kept while all others are dropped. The three let root of the container use "
        'files that others own, as in mounts; `apt-get` needs `"SETUID"` and `"SETGID"` too.',
    )
    workdir: Annotated[str, AfterValidator(values.check_container_path)] | None = Field(
        default=None, title="path in the container", description="Where the kernel begins; not set: the image's."
    )
    labels: Mapping[Annotated[str, AfterValidator(values.check_label)], str] = Field(
        default={}, title="table of texts", description="More labels of the container, for the host's owner."
    )
    start_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=300.0,
        title="seconds",
        description="How long container and kernel may take to start, after the image is there.",
    )
    persist: bool = Field(
        default=False,
        title="true or false",
        description="Whether the kernel runs on when Jupyter Server or VS Code ends, to be taken up again.",
    )
    lost_grace: Duration = Field(
        default=86400.0,
        title='time: seconds or "24h"',
        description="How long a kernel that nobody is joined to, that runs no cell and whose output was all delivered, "
        "waits for its owner to come back.",
    )
    max_lifetime: Duration | None = Field(
        default=None,
        title='time: seconds or "24h"',
        description="After how long the kernel ends whatever it does; not set: never.",
    )
    idle_timeout: Duration | None = Field(
        default=None,
        title='time: seconds or "24h"',
        description="After how long without a running cell the kernel ends, judged in the container; not set: never.",
    )
    keep_exited: Duration = Field(
        default=259200.0,
        title='time: seconds or "24h"',
        description="How long output that nobody took, and the container of a kernel that ended by itself, are kept.",
    )
    journal_size: Size = Field(
        default=256 << 20,
        title='size: bytes or "8g"',
        description="How much output is kept while nobody takes it: 8 MiB in memory, the rest on the host's disk. "
        "Beyond it the oldest text and pictures go, and a line in the output says how many.",
    )
    cull_idle_timeout: Annotated[int, Field(ge=0)] = Field(
        default=0,
        title="seconds",
        description="After how long without use Jupyter Server ends the kernel, if its culler runs; `0`: never.",
    )

    @property
    def has_debugger(self) -> bool:
        """On the host's network a debugger's port is open to every login there."""
        return self.network != "host" or self.debug_on_host_network
