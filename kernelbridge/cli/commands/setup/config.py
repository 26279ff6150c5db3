"""Serve `kernelbridge config`: what is in force, and the tables of keys and errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from kernelbridge.cli import reference
from kernelbridge.cli.context import CliContext
from kernelbridge.config import fields, load, requirements_file, schema

HIDDEN = "(looks like a secret)"


def show(
    ctx: typer.Context,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the config file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Print all keys as a Markdown table.")] = False,
    errors: Annotated[bool, typer.Option("--errors", help="Print all errors as a Markdown table.")] = False,
) -> None:
    """Carry out `kernelbridge config`."""
    context: CliContext = ctx.obj
    if schema:
        print(json.dumps(load.schema(), indent=1))
    elif table:
        print(reference.of_keys())
    elif errors:
        print(reference.of_errors())
    elif as_json:
        print(json.dumps(in_force(context.read_config()), indent=1))
    else:
        loaded = context.read_config()
        _show(context, loaded)
        context.warn_of(loaded)
        requirements_file.check(loaded)


def in_force(loaded: schema.Config) -> dict[str, Any]:
    """Return the whole config as plain values, defaults and display names included, secrets left out."""
    shown = load.display_names(loaded)
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
        "warnings": list(load.warnings(loaded)),
    }


def _values(model: BaseModel) -> dict[str, Any]:
    plain = {key: _as_written(getattr(model, key)) for key in type(model).model_fields if key != "name"}
    if isinstance(model, schema.Environment):
        plain["mounts"] = [reference.mount_text(mount) for mount in model.mounts]
        plain["forwards"] = [forward.written for forward in model.forwards]
        plain["ulimits"] = {name: f"{soft}:{hard}" for name, (soft, hard) in model.ulimits.items()}
        plain["env"] = _without_secrets(dict(sorted(model.env.items())))
        if model.build is not None:
            plain["build"]["args"] = _without_secrets(model.build.args)
    return plain


def _as_written(value: object) -> Any:
    """Return a table in the config as plain values, without what is not set; all else as it is."""
    if isinstance(value, fields.GpuRange):
        return dataclasses.asdict(value)
    return value.model_dump(exclude_none=True) if isinstance(value, schema.Build | schema.Workspace) else value


def _without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: HIDDEN if fields.looks_secret(name, text) else text for name, text in variables.items()}


def _show(context: CliContext, loaded: schema.Config) -> None:
    context.say(f"# {loaded.path}" + ("" if loaded.path.exists() else " (not there: defaults only)"))
    whole = in_force(loaded)
    models: tuple[tuple[str, type[BaseModel]], ...] = (("hosts", schema.Host), ("environments", schema.Environment))
    for section, model in models:
        for name, table in whole[section].items():
            context.say(f"\n[{section}.{name}]".lstrip("\n"))
            for key, value in table.items():
                # The image of a build has a name of ours, which may not be written beside it.
                if value is not None and not (key == "image" and table.get("build")):
                    context.say(f"{key} = {reference.toml(key, value)}{_mark(loaded, model, (section, name, key))}")
    if not loaded.environments:
        context.say("# no environments yet: write [environments.NAME] with an image")


def _mark(loaded: schema.Config, model: type[BaseModel], where: tuple[str, str, str]) -> str:
    """Tell what the user wrote from what was added."""
    section, name, key = where
    written: BaseModel = loaded.hosts[name] if section == "hosts" else loaded.environments[name]
    return "" if key in written.model_fields_set else "  # default"
