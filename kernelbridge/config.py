"""What the user wrote in kernelbridge.toml: hosts and environments; parsed, checked, complained about all at once.

What one value may look like: see values.py. How a container is made of it: see container.py.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from jupyter_core.paths import jupyter_config_dir
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from kernelbridge import complaints, values
from kernelbridge.errors import ConfigInvalid, ConfigMissing, Problem, UnknownEnvironment, UnknownHost
from kernelbridge.value_types import Duration, Gpus, Size, Ulimit, Variable, Variables, Words, as_tuple

FILE_NAME: Final = "kernelbridge.toml"
PATH_VARIABLE: Final = "KERNELBRIDGE_CONFIG"
LOCAL: Final = "local"


class _Frozen(BaseModel):
    """What the user wrote does not change while we run, and nothing in it is guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=False)


class Host(_Frozen):
    """A machine with Docker."""

    name: Annotated[str, AfterValidator(values.check_host_name)]
    ssh: Annotated[str, AfterValidator(values.check_ssh)] = Field(
        title="text",
        description='An alias of `~/.ssh/config`, or `user@name:port`; `"local"` is this machine\'s own engine.',
    )
    socket: Annotated[str, AfterValidator(values.check_container_path)] | None = Field(
        default=None,
        title="path on the host",
        description="The engine's socket; not set: the usual places are tried.",
    )

    @property
    def is_local(self) -> bool:
        """Whether this machine's own engine is meant: no ssh."""
        return self.ssh == LOCAL


class Mount(_Frozen):
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


class Environment(_Frozen):
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
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9][^\s]*$")] = Field(
        title="image name",
        description="The Docker image; it needs Python 3.8 or newer with ipykernel, nothing else.",
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
        description='How many GPUs, or which: `0`, `2`, `"all"`, `["0", "GPU-..."]`. The kernel sees no others.',
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


class Config(_Frozen):
    """All that the user wrote, checked; with no host written, this machine's own engine is the only one."""

    path: Path
    hosts: Mapping[str, Host] = Field(default={}, validate_default=True)
    environments: Mapping[str, Environment] = {}

    @field_validator("hosts")
    @classmethod
    def _never_empty(cls, hosts: Mapping[str, Host]) -> Mapping[str, Host]:
        return hosts or {LOCAL: Host(name=LOCAL, ssh=LOCAL)}

    def environment(self, name: str) -> Environment:
        """The environment of this name. Raises: UnknownEnvironment."""
        if name not in self.environments:
            raise UnknownEnvironment(
                name=name, path=str(self.path), nearest=complaints.nearest(name, self.environments)
            )
        return self.environments[name]

    def host(self, name: str) -> Host:
        """The host of this name. Raises: UnknownHost."""
        if name not in self.hosts:
            raise UnknownHost(name=name, path=str(self.path), nearest=complaints.nearest(name, self.hosts))
        return self.hosts[name]

    def hosts_of(self, environment: Environment) -> tuple[Host, ...]:
        """Where the environment may run, first choice first."""
        return tuple(self.host(name) for name in environment.hosts or self.hosts)


def find_path(environ: Mapping[str, str], named: Path | None = None) -> Path:
    """Where the config is: as named, else as KERNELBRIDGE_CONFIG says, else in Jupyter's config folder."""
    if named is None and environ.get(PATH_VARIABLE):
        named = Path(environ[PATH_VARIABLE])
    return named.expanduser().absolute() if named is not None else default_path()


def default_path() -> Path:
    """The config's place where nobody names another: the one place that asks Jupyter, which reads os.environ."""
    return Path(jupyter_config_dir()).absolute() / FILE_NAME


def load(path: Path) -> Config:
    """Read and check the config; the default file need not be there. Raises: ConfigMissing, ConfigInvalid."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        if path == default_path():
            return Config(path=path)
        raise ConfigMissing(path=str(path), reason="there is no such file") from error
    except OSError as error:
        raise ConfigMissing(path=str(path), reason=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ConfigInvalid(path=str(path), problems=[Problem(key="file", sentence="is not UTF-8 text")]) from error
    return parse(text, path)


def parse(text: str, path: Path) -> Config:
    """Make a config of TOML. Raises: ConfigInvalid, with everything that is wrong."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(path=str(path), problems=[complaints.of_syntax(error)]) from error
    problems = complaints.of_unknown_tables(tables, known=("hosts", "environments"))
    hosts = _read(Host, "hosts", tables, problems)
    environments = _read(Environment, "environments", tables, problems)
    problems += complaints.of_hosts(tables, default=LOCAL)
    problems += complaints.of_display_names(tables)
    problems += complaints.of_variables(tables)
    if problems:
        raise ConfigInvalid(path=str(path), problems=problems)
    return Config(path=path, hosts=hosts, environments=environments)


_Named = TypeVar("_Named", Host, Environment)
# Where a key that is unknown in one kind of table may belong.
_ELSEWHERE: Final = {
    "hosts": dict.fromkeys(Environment.model_fields.keys() - {"name"}, "an environment"),
    "environments": dict.fromkeys(Host.model_fields.keys() - {"name"}, "a host"),
}


def _read(model: type[_Named], section: str, tables: Mapping[str, Any], problems: list[Problem]) -> dict[str, _Named]:
    """Make one object of each table of the section; what is wrong goes to `problems`."""
    written = tables.get(section, {})
    if not isinstance(written, dict):
        problems.append(Problem(key=section, sentence=f"must be tables: [{section}.NAME]"))
        return {}
    made: dict[str, _Named] = {}
    for name, table in written.items():
        if not isinstance(table, dict):
            problems.append(Problem(key=f"{section}.{name}", sentence=f"must be a table: [{section}.{name}]"))
            continue
        # The name is the table's; a key `name` inside it is unknown like any other.
        stray = {"name ": table["name"]} if "name" in table else {}
        try:
            made[name] = model.model_validate({**table, **stray, "name": name})
        except ValidationError as error:
            problems += complaints.of_fields(error, model=model, at=(section, name), others=_ELSEWHERE[section])
    return made


def display_names(config: Config) -> dict[str, str]:
    """What the kernel pickers show for each environment; no two are the same."""
    return values.shown_names({name: environment.display_name for name, environment in config.environments.items()})


def warnings(config: Config) -> tuple[str, ...]:
    """What is allowed and unwise: sentences for the user."""
    return tuple(
        f"environments.{environment.name}.env.{variable} looks like a secret, and stands in a file as plain text: "
        f'take it out, set it on this machine and write secrets = ["{variable}"].'
        for environment in config.environments.values()
        for variable, value in environment.env.items()
        if values.looks_secret(variable, value)
    )


def schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors; made of the models."""
    whole = Config.model_json_schema()
    del whole["properties"]["path"]
    whole.pop("required", None)
    whole["title"] = FILE_NAME
    for section in ("Host", "Environment"):
        table = whole["$defs"][section]
        del table["properties"]["name"]
        table["required"].remove("name")
    whole["$defs"].pop("Mount", None)
    return whole
