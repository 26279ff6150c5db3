"""`kernelbridge config`: what is in force, and the README's tables. The keys themselves: see kernelbridge/config.py."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from kernelbridge import config, values
from kernelbridge.cli import tables
from kernelbridge.cli.session import Session

HIDDEN = "(looks like a secret)"


def show(
    ctx: typer.Context,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the config file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Print all keys as the README has them.")] = False,
    errors: Annotated[bool, typer.Option("--errors", help="Print all errors as the README has them.")] = False,
) -> None:
    """Check the config and print what is in force, defaults included."""
    session: Session = ctx.obj
    if schema:
        print(json.dumps(config.schema(), indent=1))
    elif table:
        print(tables.of_keys())
    elif errors:
        print(tables.of_errors())
    elif as_json:
        print(json.dumps(in_force(session.read_config()), indent=1))
    else:
        loaded = session.read_config()
        _show(session, loaded)
        session.warn_of(loaded)


def in_force(loaded: config.Config) -> dict[str, Any]:
    """The whole config as plain values, defaults and display names included, secrets left out."""
    shown = config.display_names(loaded)
    return {
        "path": str(loaded.path),
        "hosts": {name: _values(host) for name, host in loaded.hosts.items()},
        "environments": {
            name: {
                **_values(environment),
                "display_name": shown[name],
                "hosts": [host.name for host in loaded.hosts_of(environment)],
            }
            for name, environment in loaded.environments.items()
        },
        "warnings": list(config.warnings(loaded)),
    }


def _values(model: BaseModel) -> dict[str, Any]:
    plain = {key: getattr(model, key) for key in type(model).model_fields if key != "name"}
    if isinstance(model, config.Environment):
        plain["mounts"] = [tables.mount_text(mount) for mount in model.mounts]
        plain["ulimits"] = {name: f"{soft}:{hard}" for name, (soft, hard) in model.ulimits.items()}
        plain["env"] = {
            name: HIDDEN if values.looks_secret(name, text) else text for name, text in sorted(model.env.items())
        }
    return plain


def _show(session: Session, loaded: config.Config) -> None:
    session.say(f"# {loaded.path}" + ("" if loaded.path.exists() else " (not there: defaults only)"))
    whole = in_force(loaded)
    models: tuple[tuple[str, type[BaseModel]], ...] = (("hosts", config.Host), ("environments", config.Environment))
    for section, model in models:
        for name, table in whole[section].items():
            session.say(f"\n[{section}.{name}]".lstrip("\n"))
            for key, value in table.items():
                if value is not None:
                    session.say(f"{key} = {tables.toml(key, value)}{_mark(loaded, model, (section, name, key))}")
    if not loaded.environments:
        session.say("# no environments yet: write [environments.NAME] with an image")


def _mark(loaded: config.Config, model: type[BaseModel], where: tuple[str, str, str]) -> str:
    """Tell what the user wrote from what was added."""
    section, name, key = where
    written: BaseModel = loaded.hosts[name] if section == "hosts" else loaded.environments[name]
    return "" if key in written.model_fields_set else "  # default"
