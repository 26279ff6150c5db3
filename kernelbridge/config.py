"""What the user wrote in kernelbridge.toml: hosts and environments; parsed, checked, complained about all at once.

An environment's keys: environment.py. What one value may look like: values.py.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from jupyter_core.paths import jupyter_config_dir
from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    field_validator,
)

from kernelbridge import complaints, values
from kernelbridge.environment import Environment, Frozen, Mount
from kernelbridge.errors import ConfigInvalid, ConfigMissing, Problem, UnknownEnvironment, UnknownHost
from kernelbridge.value_types import SlurmName, Words

__all__ = ["Config", "Environment", "Host", "Mount"]

FILE_NAME: Final = "kernelbridge.toml"
PATH_VARIABLE: Final = "KERNELBRIDGE_CONFIG"
LOCAL: Final = "local"


class Host(Frozen):
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
    gpu_access: Literal["auto", "gpus", "runtime", "cdi"] = Field(
        default="auto",
        title='"auto", "gpus", "runtime" or "cdi"',
        description="How its engine hands out GPUs: as `docker run --gpus`, by the `nvidia` runtime, or as CDI "
        "devices; `auto`: by what the engine says of itself.",
    )
    scheduler: Literal["slurm"] | None = Field(
        default=None,
        title='"slurm"',
        description="Set for a login node of a Slurm cluster: each kernel is then a job, and Slurm gives the GPUs.",
    )
    runtime: Literal["apptainer", "pyxis", "podman", "docker"] = Field(
        default="apptainer",
        title='"apptainer", "pyxis", "podman" or "docker"',
        description="What runs the image inside a Slurm job. Docker's containers are no children of the job: limits "
        "and GPUs are copied from it.",
    )
    partition: SlurmName | None = Field(
        default=None, title="name", description="Slurm partition of the jobs; not set: the cluster's default."
    )
    account: SlurmName | None = Field(
        default=None, title="name", description="Slurm account that the jobs are charged to; not set: yours."
    )
    sbatch_args: Annotated[Words, AfterValidator(values.check_sbatch_args)] = Field(
        default=(),
        title="list of texts",
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
    secrets = (
        f"environments.{environment.name}.env.{variable} looks like a secret, and stands in a file as plain text: "
        f'take it out, set it on this machine and write secrets = ["{variable}"].'
        for environment in config.environments.values()
        for variable, value in environment.env.items()
        if values.looks_secret(variable, value)
    )
    unheard = (
        f"environments.{environment.name}.{key} means nothing on {host.name}, where Slurm gives the GPUs: "
        "write Slurm's own words in `gres`."
        for environment in config.environments.values()
        for host in config.hosts_of(environment)
        for key in ("gpu_memory", "gpu_model")
        if host.scheduler is not None and environment.gres is None and getattr(environment, key) is not None
    )
    return (*secrets, *unheard)


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
