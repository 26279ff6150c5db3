"""Find, read and check kernelbridge.toml, and report everything that is wrong with it at once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from jupyter_core.paths import jupyter_config_dir
from pydantic import ValidationError

from kernelbridge.config import defaults, diagnostics, fields
from kernelbridge.config.schema import LOCAL, Config, Environment, Host
from kernelbridge.errors import ConfigInvalid, ConfigMissing, Problem

FILE_NAME: Final = "kernelbridge.toml"
PATH_VARIABLE: Final = "KERNELBRIDGE_CONFIG"


def find_path(environ: Mapping[str, str], named: Path | None = None) -> Path:
    """Find the config: as named, else as KERNELBRIDGE_CONFIG says, else in Jupyter's config folder."""
    if named is None and environ.get(PATH_VARIABLE):
        named = Path(environ[PATH_VARIABLE])
    return named.expanduser().absolute() if named is not None else default_path()


def default_path() -> Path:
    """Ask Jupyter, which reads os.environ, for the config's place where nobody names another."""
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
    except (ValueError, RecursionError) as error:  # Of tomllib, of numbers too long for int(), of tables too deep.
        raise ConfigInvalid(path=str(path), problems=[diagnostics.of_syntax(error)]) from error
    problems = diagnostics.of_unknown_tables(tables, known=("hosts", "environments", defaults.SECTION))
    problems += _of_defaults(tables)
    whole = defaults.merged(tables)
    whole = _with_local(whole)
    hosts = _read(Host, "hosts", whole, problems)
    environments = _read(Environment, "environments", whole, problems)
    problems += diagnostics.of_hosts(whole, default=LOCAL)
    problems += diagnostics.of_images(whole)
    problems += diagnostics.of_display_names(whole)
    problems += diagnostics.of_variables(whole)
    problems += diagnostics.of_engine_options(whole)
    if problems:
        problems = [defaults.as_written(problem, tables) for problem in problems]
        first = {problem.key: problem for problem in reversed(problems)}
        raise ConfigInvalid(path=str(path), problems=[problem for problem in problems if problem is first[problem.key]])
    config = Config(path=path, hosts=hosts, environments=environments)
    if problems := _of_additions(config):
        raise ConfigInvalid(path=str(path), problems=problems)
    return config


def _with_local(tables: dict[str, Any]) -> dict[str, Any]:
    """Return the tables with this machine's own engine as host `local`, where an environment names it so."""
    hosts, environments = tables.get("hosts", {}), tables.get("environments", {})
    if not isinstance(hosts, dict) or not isinstance(environments, dict) or LOCAL in hosts:
        return tables
    named = [table.get("hosts") for table in environments.values() if isinstance(table, dict)]
    if not any(isinstance(names, list) and LOCAL in names for names in named):
        return tables
    return {**tables, "hosts": {**hosts, LOCAL: {"ssh": LOCAL}}}


def _of_additions(config: Config) -> list[Problem]:
    """Say which environments add to an image where none can be made: in jobs of a cluster."""
    return [
        Problem(
            key=f"environments.{environment.name}.{key}",
            sentence=f"nothing can be added to an image on {host.name}, where Slurm runs it: add it to the image",
        )
        for environment in config.environments.values()
        for key in ("packages", "requirements", "apt")
        for host in config.hosts_of(environment)
        if getattr(environment, key) and host.scheduler is not None
    ]


def _of_defaults(tables: Mapping[str, Any]) -> list[Problem]:
    """Check the table of the defaults by itself, as there may be no environment yet."""
    written = tables.get(defaults.SECTION, {})
    if not isinstance(written, dict):
        return [Problem(key=defaults.SECTION, sentence=f"must be a table: [{defaults.SECTION}]")]
    stray = {"name ": written["name"]} if "name" in written else {}
    try:
        Environment.model_validate({"image": "any", **written, **stray, "name": defaults.SECTION})
    except ValidationError as error:
        others = _ELSEWHERE["environments"]
        return diagnostics.of_fields(error, model=Environment, at=(defaults.SECTION,), others=others)
    return []


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
            problems += diagnostics.of_fields(error, model=model, at=(section, name), others=_ELSEWHERE[section])
    return made


def display_names(config: Config) -> dict[str, str]:
    """Return what the kernel pickers show for each environment; no two are the same."""
    return fields.shown_names({name: environment.display_name for name, environment in config.environments.items()})


def warnings(config: Config) -> tuple[str, ...]:
    """Warn of what is allowed and unwise, in sentences for the user."""
    secrets = (
        f"environments.{environment.name}.env.{variable} looks like a secret and is stored in a file as plain text: "
        f'remove it, set it on this machine and write secrets = ["{variable}"].'
        for environment in config.environments.values()
        for variable, value in environment.env.items()
        if fields.looks_secret(variable, value)
    )
    unheard = (
        f"environments.{environment.name}.{key} has no effect on {host.name}, where Slurm assigns the GPUs: "
        "write Slurm's own syntax in `gres`."
        for environment in config.environments.values()
        for host in config.hosts_of(environment)
        for key in ("gpu_memory", "gpu_model")
        if host.scheduler is not None and environment.gres is None and getattr(environment, key) is not None
    )
    unasked = (
        f"environments.{environment.name}.engine_config has no effect on {host.name}, where a job of Slurm runs the "
        "image: no engine is asked by its API there."
        for environment in config.environments.values()
        for host in config.hosts_of(environment)
        if host.scheduler is not None and environment.engine_config
    )
    in_no_memory = (
        f"environments.{environment.name}.tmpfs has no effect on {host.name}, where {host.runtime} runs the image."
        for environment in config.environments.values()
        for host in config.hosts_of(environment)
        if host.scheduler is not None and host.runtime in ("apptainer", "pyxis") and environment.tmpfs
    )
    unguarded = (
        f"environments.{environment.name}.forwards: any program of this machine (on Linux: of your login) can connect "
        f"to {forward.written}, and any web page can send to it."
        for environment in config.environments.values()
        for forward in environment.forwards
        if forward.is_raw
    )
    return (*secrets, *unheard, *unasked, *in_no_memory, *unguarded)


def schema() -> dict[str, Any]:
    """Make the JSON schema of the file, for editors, from the models."""
    whole = Config.model_json_schema()
    del whole["properties"]["path"]
    whole.pop("required", None)
    whole["title"] = FILE_NAME
    for section in ("Host", "Environment"):
        table = whole["$defs"][section]
        del table["properties"]["name"]
        table["required"].remove("name")
    for written_as_text in ("Mount", "Forward"):
        whole["$defs"].pop(written_as_text, None)
    # All keys of an environment, and none of them has to be there.
    environment = whole["$defs"]["Environment"]
    whole["$defs"]["Defaults"] = {**environment, "title": "Defaults", "required": []}
    whole["properties"][defaults.SECTION] = {"$ref": "#/$defs/Defaults", "title": "Defaults of all environments"}
    # One of both, and the defaults may have it.
    environment["not"] = {"required": ["image", "build"]}
    return whole
