"""Define the keys of the config: hosts, environments, the file around both; each with default, kind and meaning.

They stand in one place, because the reference, the editor's schema and each default are read here.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from kernelbridge.config import diagnostics, engine_options, fields, workspace_keys
from kernelbridge.config.container_paths import CACHE_FOLDER
from kernelbridge.config.fields import Duration, Gpus, Size, SlurmName, Ulimit, Variable, Variables, Words, as_tuple
from kernelbridge.errors import UnknownEnvironment, UnknownHost

# Where `cache` keeps things on the host, and the variables that say so to programs, by folder in it.
HOST_CACHE: Final = "~/.cache/kernelbridge/shared"
CACHE_VARIABLES: Final[Mapping[str, str]] = {
    "HF_HOME": "huggingface",
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "NUMBA_CACHE_DIR": "numba",
    "PIP_CACHE_DIR": "pip",
    "UV_CACHE_DIR": "uv",
    "XDG_CACHE_HOME": "xdg",
}
# Values of `user`: the login on the host; whoever the image says.
HOST_USER: Final = "host"
IMAGE_USER: Final = "image"


class Frozen(BaseModel):
    """A table of the config: it does not change while we run, and nothing in it is guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=False)

    @field_validator("*", mode="before")
    @classmethod
    def _without_control_characters(cls, value: object, field: ValidationInfo) -> object:
        # A variable may hold any text but the byte that ends it, and so may a script.
        is_free = field.field_name in ("env", "setup")
        fields.refuse_control_characters(value, allowed=fields.VARIABLE_CONTROLS if is_free else "")
        return value


class Mount(Frozen):
    """A folder or file of the host, or a volume, in the container; `~` is the login's home on the host."""

    source: Annotated[str, AfterValidator(fields.check_source)]
    target: Annotated[str, AfterValidator(fields.check_mount_target)]
    read_only: bool = False
    # Whether SELinux's label of the source is changed: for all containers, for this one alone.
    relabel: Literal["", "z", "Z"] = ""

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        source, target, read_only, relabel = fields.parse_mount(value)
        if relabel and fields.is_volume(source):
            raise ValueError(f"`{relabel}` is for folders of the host: the engine labels the volume {source} itself")
        # Checked here as well, so that a complaint names the mount and not one half of it.
        return {
            "source": fields.check_source(source),
            "target": fields.check_mount_target(target),
            "read_only": read_only,
            "relabel": relabel,
        }

    @property
    def is_volume(self) -> bool:
        """Whether it is a volume of the engine's, and no path on the host."""
        return fields.is_volume(self.source)


Commands = Annotated[tuple[Annotated[str, AfterValidator(fields.check_command)], ...], BeforeValidator(as_tuple)]


def _each_at_its_own_place(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    for index, mount in enumerate(mounts):
        if any(mount.target == other.target for other in mounts[:index]):
            raise ValueError(f"two mounts have the target {mount.target}")
    return mounts


Mounts = Annotated[
    tuple[Annotated[Mount, WithJsonSchema({"type": "string", "pattern": fields.MOUNT_PATTERN})], ...],
    BeforeValidator(as_tuple),
    AfterValidator(_each_at_its_own_place),
]


def _beside_the_mounts(folders: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    taken = [mount.target for mount in info.data.get("mounts", ())]
    for folder in folders:
        target, _ = fields.parse_tmpfs(folder)
        if target in taken:
            raise ValueError(f"{target} is named twice in `mounts` and `tmpfs`")
        taken.append(target)
    return folders


MemoryFolders = Annotated[
    tuple[
        Annotated[
            str,
            AfterValidator(fields.check_tmpfs),
            WithJsonSchema({"type": "string", "pattern": fields.TMPFS_PATTERN}),
        ],
        ...,
    ],
    BeforeValidator(as_tuple),
    AfterValidator(_beside_the_mounts),
]


class Forward(Frozen):
    """A TCP port of the container that is brought to this machine's loopback."""

    here: int
    there: int
    # Whether it is no HTTP: nobody looks at what is sent.
    is_raw: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: object) -> object:
        if isinstance(value, dict):
            return value
        here, there, is_raw = fields.parse_forward(value)
        return {"here": here, "there": there, "is_raw": is_raw}

    @property
    def written(self) -> int | str:
        """As the user writes it."""
        text = f"{'raw:' if self.is_raw else ''}{self.here}{'' if self.here == self.there else f':{self.there}'}"
        return int(text) if text.isdigit() else text


def _each_port_once(forwards: tuple[Forward, ...]) -> tuple[Forward, ...]:
    for index, forward in enumerate(forwards):
        if any(forward.here == other.here for other in forwards[:index]):
            raise ValueError(f"two forwards have the port {forward.here} here")
        if any(forward.there == other.there for other in forwards[:index]):
            raise ValueError(f"the container's port {forward.there} is forwarded twice")
    return forwards


Forwards = Annotated[
    tuple[
        Annotated[
            Forward,
            WithJsonSchema(
                {
                    "anyOf": [
                        {"type": "integer", "minimum": 1, "maximum": 65535},
                        {"type": "string", "pattern": fields.FORWARD_PATTERN},
                    ]
                }
            ),
        ],
        ...,
    ],
    BeforeValidator(as_tuple),
    AfterValidator(_each_port_once),
]


class Build(Frozen):
    """What an image is built of: a folder of this machine or of the host, or a git repository that the host reaches."""

    context: Annotated[str, AfterValidator(fields.check_context)] | None = None
    git: Annotated[str, AfterValidator(fields.check_git)] | None = None
    dockerfile: Annotated[str, AfterValidator(fields.check_path_inside)] = "Dockerfile"
    target: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    args: Annotated[Mapping[str, str], AfterValidator(fields.check_build_args)] = {}

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: object) -> object:
        if isinstance(value, str):
            return {"context": value}
        if isinstance(value, dict) and ("context" in value) == ("git" in value):
            raise ValueError("needs either `context`, a folder, or `git`, a repository")
        return value

    @property
    def local_folder(self) -> Path | None:
        """The context where it is a folder of this machine."""
        is_local = self.context is not None and not self.context.startswith(fields.HOST_CONTEXT)
        return Path(self.context or "").expanduser() if is_local else None

    @property
    def host_folder(self) -> str:
        """The context where it is a folder of the host, as it was written; else empty."""
        is_on_host = self.context is not None and self.context.startswith(fields.HOST_CONTEXT)
        return (self.context or "").removeprefix(fields.HOST_CONTEXT) if is_on_host else ""


class Workspace(Frozen):
    """The user's project folder: where it is here, there and in the container, and what of it is copied."""

    local: Annotated[str, AfterValidator(workspace_keys.check_local)] = "."
    host: Annotated[str, AfterValidator(fields.check_mount_source)] | None = None
    container: Annotated[str, AfterValidator(workspace_keys.check_container)] = "/workspace"
    sync: Literal["push", "both"] = "push"
    ignore: Words = ()
    pull: Annotated[Words, AfterValidator(workspace_keys.check_patterns)] = ()
    big_files: Size = 1 << 30

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: object) -> object:
        return workspace_keys.as_table(value)


def _beside_all_mounts(workspace: Workspace | None, info: ValidationInfo) -> Workspace | None:
    if workspace is not None:
        taken = [mount.target for mount in info.data.get("mounts", ())]
        taken += [fields.parse_tmpfs(folder)[0] for folder in info.data.get("tmpfs", ())]
        workspace_keys.check_free(workspace.container, taken)
    return workspace


class Environment(Frozen):
    """The surroundings of a kernel. The defaults of the whole program stand here and nowhere else."""

    name: Annotated[str, AfterValidator(fields.check_environment_name)]
    display_name: Annotated[str, AfterValidator(fields.check_display_name)] | None = Field(
        default=None,
        title="string",
        description=f"The name in the kernel picker; not set: `{fields.DISPLAY_NAME}`, followed by the environment's "
        "name if several environments have no display name.",
    )
    hosts: Words = Field(
        default=(),
        title="list of host names",
        description="Where it may run: on the first of these that has the GPUs. Empty: all hosts, in the order of "
        "the file.",
    )
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9/][^\s]*$")] = Field(
        default="",
        title="image name",
        description="The Docker image; it needs Python 3.8 or newer, nothing else; in jobs of Slurm ipykernel too. "
        "With Apptainer or pyxis, the path of an image file works too.",
    )
    build: Annotated[Build, WithJsonSchema(fields.BUILD_SCHEMA)] | None = Field(
        default=None,
        title="path, or a table",
        description="Instead of `image`: what the host's engine builds it of. A folder of this machine with a "
        '`Dockerfile`, `"~/project"`; one of the host, `"host:~/project"`; or a table with `context`, which is such a '
        'folder, or `git`, `"URL#BRANCH:SUBFOLDER"`, which the host fetches, and with `dockerfile`, `target` and '
        "`args`, which are no place for secrets.",
    )
    python: Annotated[str, Field(min_length=1)] = Field(
        default="python3",
        title="command",
        description="The image's Python: a name or a path. `python3` is the one on the image's `PATH`; if there is "
        "none, or it lacks ipykernel, Pythons in conda and virtual environments are looked for too, and the one that "
        "has PyTorch, TensorFlow or JAX is taken.",
    )
    packages: Words = Field(
        default=(),
        title="list of strings",
        description='Python packages to add to the image, as pip takes them: `["einops", "polars>=1"]`. They are '
        "installed once, into an image of its own on the host; where that has no internet, this machine's pip "
        "fetches them. Not on Slurm clusters.",
    )
    requirements: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        title="path on this machine",
        description="A file with more of `packages`, one on each line, without options of pip; a relative path "
        "begins at the config's folder.",
    )
    apt: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.:=~_-]*$")], ...], BeforeValidator(as_tuple)
    ] = Field(
        default=(),
        title="list of strings",
        description="Packages of Debian or Ubuntu to add to the image in the same way; the host needs to reach the "
        "image's own mirror.",
    )
    add_ipykernel: bool = Field(
        default=True,
        title="true or false",
        description="Whether ipykernel and debugpy are added where the image lacks them or has too old ones, in an "
        "image of its own on the host; what the image has stays as it is. Not on Slurm clusters.",
    )
    entrypoint: Literal["environment", "off"] = Field(
        default="environment",
        title='"environment" or "off"',
        description="What becomes of the image's `ENTRYPOINT`: `environment` runs it once, before the kernel, which "
        "gets the variables, the folder and the umask that it sets up; `off` does not run it.",
    )
    pull: Literal["missing", "always", "never"] = Field(
        default="missing",
        title='"missing", "always" or "never"',
        description="When the host pulls the image from its registry. With `build`: whether what is unchanged is used "
        "as it is, is built anew on the newest base images, or nothing is built at all.",
    )
    gpus: Gpus = Field(
        default=0,
        title='number, "all", list of ids, or a table',
        description='How many free GPUs, or which: `0`, `2`, `"all"`, `["0", "GPU-..."]`; MIG devices by '
        '`"0:1"` (device 1 of card 0) or `"MIG-..."`. The kernel sees '
        "no other GPUs, and no other kernel gets these in the meantime. `{ wanted = 1, min = 0 }`: where a host has "
        "fewer than are wanted, all that it has are enough, if they are `min`; so the same environment runs on a "
        "laptop without any.",
    )
    gpu_memory: Size | None = Field(
        default=None,
        title='size: bytes or "20g"',
        description="The least free memory of each GPU; a MIG device may then be chosen too.",
    )
    gpu_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9 ._-]+$")] | None = Field(
        default=None,
        title="string",
        description='Part of the name that `nvidia-smi` shows, for example `"H200"`: only such GPUs are used.',
    )
    busy_gpus: Literal["avoid", "use"] = Field(
        default="avoid",
        title='"avoid" or "use"',
        description="Whether a GPU that programs outside kernelbridge are using counts as free.",
    )
    gpu_lock: Literal["flock", "advisory"] = Field(
        default="flock",
        title='"flock" or "advisory"',
        description="`flock`: the container holds a lock on each of its GPUs, so that two kernels never share one; "
        "`advisory`: only the list of containers says who has which.",
    )
    wait: Duration | None = Field(
        default=None,
        title='time: seconds or "30m"',
        description="How long a start waits in the queue for GPUs that others have; not set: it fails at once and says "
        "who has them; in Slurm's own queue it waits for as long as Slurm allows.",
    )
    gres: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:,()-]+$")] | None = Field(
        default=None,
        title="string",
        description='The GPUs of a job in Slurm\'s own syntax, for example `"gpu:h200:2"`; not set: derived from '
        "`gpus`.",
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
        default=None,
        title='size: bytes or "8g"',
        description="Upper limit of main memory; not set: the host's. The kernel gets no swap beyond it, where the "
        "host's cgroups can limit swap.",
    )
    cpus: Annotated[float, Field(ge=0.01, le=65536, allow_inf_nan=False)] | None = Field(
        default=None, title="number of cores", description="Upper limit of processor time; not set: all cores."
    )
    pids_limit: Annotated[int, Field(ge=16, le=1 << 22)] = Field(
        default=4096, title="number", description="Upper limit of processes and threads."
    )
    ulimits: Mapping[Annotated[str, AfterValidator(fields.check_ulimit_name)], Ulimit] = Field(
        default={},
        title='table of numbers or "SOFT:HARD"',
        description="Limits of each process, for example `{ memlock = -1 }`; `-1` means no limit.",
    )
    core_dumps: bool = Field(
        default=False,
        title="true or false",
        description="Whether a crash may write a core file, which contains everything that was in memory.",
    )
    ipc: Literal["private", "host"] = Field(
        default="private",
        title='"private" or "host"',
        description="Whose shared memory the kernel sees; with `host`, `shm_size` has no effect.",
    )
    network: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = Field(
        default="bridge",
        title='"bridge", "none", "host" or a network\'s name',
        description="What the kernel can reach. kernelbridge itself needs no network: `none` works.",
    )
    debug_on_host_network: bool = Field(
        default=False,
        title="true or false",
        description='Whether the debugger stays on with `network = "host"`, where every user of the host could use it '
        "to run code in the kernel.",
    )
    mounts: Mounts = Field(
        default=(),
        title='list of "SOURCE:TARGET[:ro]"',
        description="What to mount into the container. The source is a folder or file of the host (`~` is your home "
        "there, and `./data` is `~/data`), or a bare name: a volume of the engine, made where it is missing, empty and "
        "yours. `:ro` is read-only; `:z` and `:Z` label a folder for SELinux as docker does, `:ro,z` both.",
    )
    tmpfs: MemoryFolders = Field(
        default=(),
        title='list of "/path[:SIZE]"',
        description='Folders of the container that are in memory, for example `"/scratch:8g"`: empty at each new '
        "container, and counted to `memory`. Without a size it is half of the host's memory.",
    )
    workspace: Annotated[
        Workspace | None, AfterValidator(_beside_all_mounts), WithJsonSchema(workspace_keys.SCHEMA)
    ] = Field(
        default=None,
        title="path, or a table",
        description='Your project\'s folder, brought into the container, where the kernel starts: `"."` is the folder '
        "in which the notebook is, or the nearest one above it that has `.git` or `pyproject.toml`. It is copied to "
        "the host, each change too while a kernel runs, and kept there for your next kernels; `.gitignore`, "
        "`.dockerignore` and `ignore` say what is left out. What was changed over there is never overwritten. A table "
        'has `local`, the folder; `container`, its place, `"/workspace"` if not set, or `"same"` for the path that it '
        'has here; `sync`, `"push"` or `"both"`, which also brings back what matches `pull`, for example '
        '`["runs/**"]`, and changes to files that are on both sides; `ignore`, a list of lines as in .gitignore; '
        '`big_files`, a size, `"1g"` if not set: you are asked before a bigger file is copied, or more than ten times '
        "as much at once; or `host`, where the host has the folder by itself (NFS, sshfs): nothing is copied then.",
    )
    cache: bool = Field(
        default=False,
        title="true or false",
        description="Whether downloads and compiled code (Hugging Face, torch, Triton, CUDA, pip, uv) are kept in "
        f"`{HOST_CACHE}` of your home on the host, for all your kernels there.",
    )
    env: Mapping[Variable, str] = Field(
        default={},
        repr=False,
        title="table of strings",
        description="Environment variables of the kernel process, as written here; for tokens see `secrets`. They win "
        "over the image's, and over the proxies of the login's docker config on the host, which come as with `docker "
        "run`.",
    )
    pass_env: Variables = Field(
        default=(),
        title="list of variable names",
        description="Variables of this machine that are passed to the kernel process, if they are set here.",
    )
    secrets: Variables = Field(
        default=(),
        title="list of variable names",
        description="The same for tokens, but the start fails if one of them is not set. Both are sent over the link "
        "to "
        "the kernel process alone: they appear on no disk and in no label, log or `docker inspect`.",
    )
    user: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?$")] = Field(
        default=HOST_USER,
        title='"host", "image", name or UID[:GID]',
        description="The user who runs the kernel. `host`: your own user, group and groups on the host, by number, so "
        "that files in mounts belong to you, with a name and a home in the container; `image`: the image's user.",
    )
    groups: Words = Field(
        default=(), title="list of strings", description="Additional groups of the user: names or numbers."
    )
    cap_add: Words = Field(
        default=("CHOWN", "DAC_OVERRIDE", "FOWNER"),
        title="list of strings",
        description="Capabilities to keep; all others are dropped. The three defaults let the container's root use "
        'files that others own, such as those in mounts; `apt-get` needs `"SETUID"` and `"SETGID"` too.',
    )
    workdir: Annotated[str, AfterValidator(fields.check_container_path)] | None = Field(
        default=None,
        title="path in the container",
        description="The folder in which the kernel starts; not set: the image's.",
    )
    setup: Commands = Field(
        default=(),
        repr=False,
        title="list of commands",
        description="Commands that run before the kernel, as its user and in its folder, each by `sh`, for example "
        '`["pip install -e ."]`. One that fails ends the start with its last words. Their time is part of '
        "`start_seconds`.",
    )
    setup_every: Literal["start", "restart"] = Field(
        default="start",
        title='"start" or "restart"',
        description="When `setup` runs: once in each new container, or before each restart of the kernel too.",
    )
    labels: Mapping[Annotated[str, AfterValidator(fields.check_label)], str] = Field(
        default={}, title="table of strings", description="Additional labels of the container, for the host's owner."
    )
    devices: Annotated[
        tuple[Annotated[str, AfterValidator(engine_options.check_device)], ...], BeforeValidator(as_tuple)
    ] = Field(
        default=(),
        title='list of "DEVICE[:IN_CONTAINER][:rwm]"',
        description='Devices of the host, for example `"/dev/fuse"`. GPUs of NVIDIA come by `gpus` alone.',
    )
    dns: Annotated[tuple[Annotated[str, AfterValidator(fields.check_address)], ...], BeforeValidator(as_tuple)] = Field(
        default=(), title="list of addresses", description="Name servers of the container; empty: the engine's."
    )
    extra_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(fields.check_extra_host)], ...], BeforeValidator(as_tuple)
    ] = Field(
        default=(),
        title='list of "NAME:ADDRESS"',
        description="Names that the container knows beside those of its name servers; the address `host-gateway` is "
        "the host's own in its network.",
    )
    forwards: Forwards = Field(
        default=(),
        title='list of ports or "HERE:THERE"',
        description="TCP ports of the container that you reach on this machine while the kernel runs: `6006` at "
        '`http://127.0.0.1:6006`, `"8080:80"` at port 8080. If the port is taken here, the next free one is used, and '
        'your next cell says which. `"raw:5555"` is for what is not HTTP; any program of this machine (on Linux: of '
        "your login) can connect to it. Under Jupyter Server those of HTTP are pages too: "
        "`/kernelbridge/forward/KERNEL/6006/`.",
    )
    hostname: Annotated[str, Field(pattern=fields.MACHINE_NAME_PATTERN)] | None = Field(
        default=None, title="name", description="The container's own host name; not set: the beginning of its id."
    )
    sysctls: Mapping[Annotated[str, Field(pattern=r"^[a-z0-9_.-]+$")], str] = Field(
        default={},
        title="table of strings",
        description='Settings of the Linux kernel for this container, for example `{ "net.core.somaxconn" = "1024" }`.',
    )
    container_runtime: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*$")] | None = Field(
        default=None,
        title="name",
        description="Which of the engine's runtimes runs the container, for example `sysbox-runc`; not set: the "
        "engine's default, or what gives it its GPUs.",
    )
    stop_timeout: Annotated[int, Field(ge=0, le=86400)] | None = Field(
        default=None,
        title="seconds",
        description="How long a `docker stop` from elsewhere waits before it kills; not set: 10.",
    )
    security_opt: Annotated[
        tuple[Annotated[str, AfterValidator(engine_options.check_security_opt)], ...], BeforeValidator(as_tuple)
    ] = Field(
        default=(),
        title="list of strings",
        description='Options of AppArmor, SELinux and seccomp, for example `"apparmor=PROFILE"`. `no-new-privileges` '
        "is always on.",
    )
    read_only: bool = Field(
        default=False,
        title="true or false",
        description="Whether the image's files cannot be changed: `/tmp` is in memory then, and the home folder where "
        "nothing writable is mounted there.",
    )
    engine_config: Annotated[Mapping[str, Any], AfterValidator(engine_options.check_json)] = Field(
        default={},
        title="table",
        description="All else that the Engine API knows for a new container, in its own words, for example "
        '`{ HostConfig = { CpusetCpus = "0-7" } }`. What has a key here is refused there.',
    )
    allow_unsafe: bool = Field(
        default=False,
        title="true or false",
        description="Whether `engine_config`, `devices` and `security_opt` may take away what protects the host and "
        "its other users; `kernelbridge ps` shows such kernels.",
    )
    start_seconds: Annotated[float, Field(gt=0, le=fields.MOST_SECONDS, allow_inf_nan=False)] = Field(
        default=300.0,
        title="seconds",
        description="How long container and kernel may take to start, once the image is on the host.",
    )
    persist: bool = Field(
        default=False,
        title="true or false",
        description="Whether the kernel keeps running when Jupyter Server or VS Code exits, so that you can come "
        "back to it.",
    )
    lost_grace: Duration = Field(
        default=86400.0,
        title='time: seconds or "24h"',
        description="How long a kernel waits for its owner to come back, once nobody is connected to it, no cell is "
        "running and all output was delivered.",
    )
    max_lifetime: Duration | None = Field(
        default=None,
        title='time: seconds or "24h"',
        description="The time after which the kernel is stopped, whatever it is doing; not set: never.",
    )
    idle_timeout: Duration | None = Field(
        default=None,
        title='time: seconds or "24h"',
        description="The time without a running cell after which the kernel is stopped, measured in the container; "
        "not set: never.",
    )
    keep_exited: Duration = Field(
        default=259200.0,
        title='time: seconds or "24h"',
        description="How long output that nobody has fetched, and the container of a kernel that ended by itself, "
        "are kept.",
    )
    journal_size: Size = Field(
        default=256 << 20,
        title='size: bytes or "8g"',
        description="How much output is kept until somebody fetches it: 8 MiB in memory, the rest on the host's disk. "
        "Beyond that the oldest text and pictures are dropped, and a line in the output says how many.",
    )
    cull_idle_timeout: Annotated[int, Field(ge=0, le=fields.MOST_SECONDS)] = Field(
        default=0,
        title="seconds",
        description="The time without use after which Jupyter Server's culler, if it runs, stops the kernel; `0`: "
        "never.",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_what_is_built(cls, value: object) -> object:
        if not isinstance(value, dict) or value.get("image") or not value.get("build"):
            return value
        # Two machines that share an engine may have other files under the same path.
        made_of = json.dumps([value["build"], platform.node(), str(Path.home())], sort_keys=True, default=str)
        return {**value, "image": f"{BUILT_PREFIX}{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"}

    @property
    def volumes(self) -> tuple[Mount, ...]:
        """The mounts whose source is a volume of the engine's."""
        return tuple(mount for mount in self.mounts if mount.is_volume)

    @property
    def host_mounts(self) -> tuple[Mount, ...]:
        """The mounts of the host's folders and files, and that of the caches."""
        return tuple(mount for mount in self.all_mounts if not mount.is_volume)

    @property
    def all_mounts(self) -> tuple[Mount, ...]:
        """The mounts, and that of the caches."""
        # Not checked: no mount of the user's may be there.
        caches = (Mount.model_construct(source=HOST_CACHE, target=CACHE_FOLDER),) if self.cache else ()
        return (*self.mounts, *caches)

    @property
    def is_host_user(self) -> bool:
        """Whether the kernel runs as the login on the host."""
        return self.user == HOST_USER

    @property
    def has_debugger(self) -> bool:
        """On the host's network a debugger's port is open to every login there."""
        return self.network != "host" or self.debug_on_host_network


LOCAL: Final = "local"
# How the images are called that a host's engine builds for an environment.
BUILT_PREFIX: Final = "kernelbridge/build:"


class Host(Frozen):
    """A machine with Docker."""

    name: Annotated[str, AfterValidator(fields.check_host_name)]
    ssh: Annotated[str, AfterValidator(fields.check_ssh)] = Field(
        title="string",
        description='An alias of `~/.ssh/config`, or `user@name:port`; `"local"` is this machine\'s own engine.',
    )
    socket: Annotated[str, AfterValidator(fields.check_container_path)] | None = Field(
        default=None,
        title="path on the host",
        description="The engine's socket; not set: the usual places are tried.",
    )
    login_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        title="seconds",
        description="How long a login may take, without the time in which a person is asked, and after it the start-up "
        "files of the login shell; not set: 20 for the login, beside `ConnectTimeout` of the ssh config, and 60 for "
        "the start-up files.",
    )
    path: Annotated[
        tuple[Annotated[str, AfterValidator(fields.check_command_folder)], ...], BeforeValidator(as_tuple)
    ] = Field(
        default=(),
        title="list of paths on the host",
        description="More folders in which commands are looked for: `nvidia-smi`, `docker`, Slurm's, credential "
        "helpers. The usual places and the login shell's `PATH` need not be named.",
    )
    short_way: bool = Field(
        default=True,
        title="true or false",
        description="Whether kernels are reached by a unix socket of their own in a folder of yours on the host, "
        "`/tmp/kernelbridge-UID`, past the engine, where the host allows that; else by an exec stream of the engine's.",
    )
    gpu_access: Literal["auto", "gpus", "runtime", "cdi"] = Field(
        default="auto",
        title='"auto", "gpus", "runtime" or "cdi"',
        description="How its engine gives GPUs to containers: as `docker run --gpus`, by the `nvidia` runtime, or as "
        "CDI "
        "devices; `auto`: chosen from what the engine reports.",
    )
    scheduler: Literal["slurm"] | None = Field(
        default=None,
        title='"slurm"',
        description="Set this for a login node of a Slurm cluster: each kernel is then a job, and Slurm assigns the "
        "GPUs.",
    )
    runtime: Literal["apptainer", "pyxis", "podman", "docker"] = Field(
        default="apptainer",
        title='"apptainer", "pyxis", "podman" or "docker"',
        description="What runs the image inside a Slurm job. Docker's containers are not children of the job, so "
        "limits and GPUs are copied from it.",
    )
    partition: SlurmName | None = Field(
        default=None, title="name", description="Slurm partition of the jobs; not set: the cluster's default."
    )
    account: SlurmName | None = Field(
        default=None, title="name", description="Slurm account that the jobs are charged to; not set: yours."
    )
    sbatch_args: Annotated[Words, AfterValidator(fields.check_sbatch_args)] = Field(
        default=(),
        title="list of strings",
        description='More arguments of `sbatch`, for example `["--qos=debug"]`.',
    )
    node_login: Literal["auto", "jump", "ssh", "srun"] = Field(
        default="auto",
        title='"auto", "jump", "ssh" or "srun"',
        description="How a job's node is reached: from here through the login node (ProxyJump), by the login node's "
        "own ssh, or by `srun --overlap`. `auto`: the first of these that works.",
    )

    @property
    def is_local(self) -> bool:
        """Whether this machine's own engine is meant: no ssh."""
        return self.ssh == LOCAL


class Config(Frozen):
    """All that the user wrote, checked; with no host written, this machine's own engine is the only one."""

    path: Path
    hosts: Mapping[str, Host] = Field(default={}, validate_default=True)
    environments: Mapping[str, Environment] = {}

    @field_validator("hosts")
    @classmethod
    def _never_empty(cls, hosts: Mapping[str, Host]) -> Mapping[str, Host]:
        return hosts or {LOCAL: Host(name=LOCAL, ssh=LOCAL)}

    def with_local(self) -> Config:
        """Return it with this machine's own engine as one more host, if it has none of that name."""
        if LOCAL in self.hosts:
            return self
        return self.model_copy(update={"hosts": {**self.hosts, LOCAL: Host(name=LOCAL, ssh=LOCAL)}})

    def environment(self, name: str) -> Environment:
        """Return the environment of this name. Raises: UnknownEnvironment."""
        if name not in self.environments:
            raise UnknownEnvironment(
                name=name, path=str(self.path), nearest=diagnostics.nearest(name, self.environments)
            )
        return self.environments[name]

    def environment_as(self, name: str, *, image: str, python: str) -> Environment:
        """Return an environment as a container of it was made; another machine's may be unknown here.

        `python` is empty where nobody knows it.
        """
        known = self.environments.get(name) or Environment.model_construct(name=name, image=image)
        return known.model_copy(update={"image": image, "python": python or known.python})

    def host(self, name: str) -> Host:
        """Return the host of this name. Raises: UnknownHost."""
        if name not in self.hosts:
            raise UnknownHost(name=name, path=str(self.path), nearest=diagnostics.nearest(name, self.hosts))
        return self.hosts[name]

    def hosts_named(self, names: Collection[str]) -> list[Host]:
        """Return the hosts of these names, in the order of the config; all of them where none is named.

        Raises: UnknownHost.
        """
        wanted = {self.host(name).name for name in names}
        return [host for host in self.hosts.values() if not wanted or host.name in wanted]

    def hosts_of(self, environment: Environment) -> tuple[Host, ...]:
        """Return where the environment may run, first choice first."""
        return tuple(self.host(name) for name in environment.hosts or self.hosts)
