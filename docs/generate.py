"""Write what the program says of itself into the pages: `python docs/generate.py`.

A page has places for it, from `<!-- NAME: generated -->` to `<!-- end -->`. tests/unit/test_docs.py compares them.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from typer.core import TyperArgument, TyperGroup, TyperOption
from typer.main import get_command

from kernelbridge.cli import app, reference
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet.gpu_listing import GpuRow, NodeRow, WaitRow
from kernelbridge.fleet.kernel_listing import KernelRow
from kernelbridge.jupyter import rest
from kernelbridge.kernel import lifecycle
from kernelbridge.protocol import exit_codes

DOCS = Path(__file__).parent
PLACE = re.compile(r"<!-- ([a-z ]+): generated -->\n(.*?)<!-- end -->", re.DOTALL)

# Exit codes by their first digit.
ERROR_GROUPS = {
    1: "1x: what you wrote, and this machine",
    2: "2x: the way to the host",
    3: "3x: the engine, the cluster",
    4: "4x: image and container",
    5: "5x: kernels",
    6: "6x: shared GPUs",
    8: "8x: files on the host",
    9: "9x: kernels, more",
}

# Why a container of ours ended, by the relay's own word for it.
CONTAINER_ENDS = {
    "goodbye": "its owner left",
    "delivered": "the kernel had ended and all its output was delivered",
    "lost_grace": "`lost_grace`",
    "idle_timeout": "`idle_timeout`",
    "max_lifetime": "`max_lifetime`",
    "keep_exited": "`keep_exited`",
    "unjoined": "it was never asked anything",
    "unused": "nobody had run a cell in it, and its owner was gone",
}


def anchor(section: str, key: str) -> str:
    """Return the anchor of a key of the config on its page."""
    return f"{section}-{key.replace('_', '-')}"


def keys(section: str) -> str:
    """Every key of `hosts` or `environments`: a heading, what it means, its value and its default."""
    parts = []
    for key, field in reference.SECTIONS[section].model_fields.items():
        if key == "name":
            continue
        default = reference.default_text(key, field)
        facts = f"Value: {field.title}. " + ("Required." if default == "required" else f"Default: {default}.")
        parts.append(f"({anchor(section, key)})=\n### `{key}`\n\n{field.description}\n\n{facts}\n")
    return "\n".join(parts)


def group() -> TyperGroup:
    """Return the command line as typer has it."""
    found = get_command(app.command_line())
    assert isinstance(found, TyperGroup)
    return found


def commands() -> str:
    """Every command: its usage, what it does, its arguments and options; those before the command first."""
    parts = ["```text\nkernelbridge [OPTIONS] COMMAND ...\n```\n\n" + _parameters(group())]
    for name, command in group().commands.items():
        if command.hidden:
            continue
        words = [_argument(one) for one in command.params if isinstance(one, TyperArgument)]
        usage = " ".join(["kernelbridge", name, "[OPTIONS]", *words])
        parts.append(
            f"(command-{name})=\n## `kernelbridge {name}`\n\n{command.help}\n\n```text\n{usage}\n```\n\n"
            + _parameters(command)
        )
    return "\n".join(parts)


def _argument(argument: TyperArgument) -> str:
    word = (argument.metavar or (argument.name or "").upper()).strip("[]")
    word += "..." if argument.nargs == -1 else ""
    return word if argument.required else f"[{word}]"


def _parameters(command: Any) -> str:
    listed = []
    for one in command.params:
        if isinstance(one, TyperArgument):
            listed.append((f"`{_argument(one)}`", one.help or ""))
        elif isinstance(one, TyperOption):
            words = "`, `".join([*one.opts, *one.secondary_opts])
            value = "" if one.is_flag else f" {one.metavar}"
            # A flag that is off unless it is written needs no default.
            default = "" if one.is_flag or one.default is None else f" Default: {one.default}."
            listed.append((f"`{words}{value}`", f"{one.help}{default}"))
    listed.append(("`-h`, `--help`", "Explain the command."))
    return _table(("argument or option", "meaning"), listed)


def errors() -> str:
    """Every error: an anchor for its exit code, what happened, what it says, what to do."""
    parts: list[str] = []
    group = 0
    for error in sorted((reference.example(kind) for kind in reference.kinds()), key=lambda error: error.exit_code):
        if error.exit_code // 10 != group:
            group = error.exit_code // 10
            parts.append(f"## {ERROR_GROUPS[group]}\n")
        parts.append(_error(error))
    return "\n".join(parts)


def _error(error: KernelBridgeError) -> str:
    lines = [f"(exit-{error.exit_code})=", f"### {error.exit_code}: {type(error).__name__}", ""]
    lines += [_plain(inspect.getdoc(type(error)) or ""), "", f"> {error.sentence}", ""]
    if error.remedy:
        lines += [f"**What to do:** {error.remedy}", ""]
    return "\n".join(lines)


def routes() -> str:
    """Every REST handler, by the docstrings of its class."""
    parts = []
    for path, handler in rest.ROUTES.items():
        parts.append(f"### `{path}`\n\n{_plain(inspect.getdoc(handler) or '')}\n")
    return "\n".join(parts)


def rows(kind: type[Any]) -> str:
    """The fields of one row of a listing: name, type, and the comment above it in the source."""
    comments = _comments(inspect.getsource(kind))
    fields = dataclasses.fields(kind)
    return _table(
        ("field", "type", "meaning"),
        [(f"`{one.name}`", _json_type(str(one.type)), comments[one.name]) for one in fields],
    )


def _comments(source: str) -> dict[str, str]:
    """Return, for each field of a class, the comment right above it."""
    found: dict[str, str] = {}
    comment: list[str] = []
    for line in map(str.strip, source.splitlines()):
        field = re.match(r"(\w+): ", line)
        if line.startswith("# "):
            comment.append(line[2:])
        elif field is not None:
            found[field[1]] = " ".join(comment)
            comment = []
    return found


def _json_type(written: str) -> str:
    """A Python type as JSON has it."""
    names = {"str": "text", "int": "number", "float": "number", "bool": "true or false", "datetime": "time (ISO 8601)"}
    kind, _, rest_ = written.partition(" | ")
    if kind.startswith("tuple["):
        named = "list of texts" if "[str" in kind else "list of objects"
    elif kind.startswith("Mapping["):
        named = "object"
    else:
        named = names.get(kind, "text")
    return f"{named}, or null" if rest_ == "None" else named


_EVENT_TYPES = {
    "string": "text",
    "array": "list of texts",
    "object": "object",
    "number": "number",
    "integer": "whole number",
}


def _inner(table: Any) -> list[tuple[str, Any]]:
    return list(table.get("properties", {}).items())


def event() -> str:
    """The schema of the events that Jupyter Server emits."""
    schema = yaml.safe_load((resources.files("kernelbridge.jupyter") / "kernel_progress.yaml").read_text("utf-8"))
    listed = []
    inside = [(f"{outer}.{name}", one) for outer, table in schema["properties"].items() for name, one in _inner(table)]
    for name, one in [*schema["properties"].items(), *inside]:
        kind = _EVENT_TYPES[one["type"]]
        choices = ": " + ", ".join(f"`{choice}`" for choice in one["enum"]) if "enum" in one else ""
        presence = "" if name in schema["required"] or "." in name else " Not in older versions."
        listed.append((f"`{name}`", kind + choices, one["description"] + presence))
    lines = [f"Schema: `{schema['$id']}`", "", schema["description"], "", _table(("field", "type", "meaning"), listed)]
    return "\n".join(lines)


def lifecycle_table() -> str:
    """The life of a kernel as lifecycle.py has it: phases, events, transitions, and what each step does."""
    comments = _members(inspect.getsource(lifecycle.Phase))
    phases = [(one.value, one.state.value, comments[one.name]) for one in lifecycle.Phase]
    events = [(f"`{kind.__name__}`", _first_line(kind)) for kind in get_args(lifecycle.Event)]
    rows, steps = [], dict[str, str]()
    for row in lifecycle.TRANSITIONS:
        names = [name for step in row.steps for name in step.__name__.split(", ")]
        steps |= {f"`{name}`": _first_line(getattr(lifecycle, name)) for name in names}
        before = "any" if row.phases == tuple(lifecycle.Phase) else ", ".join(phase.value for phase in row.phases)
        condition = "" if row.condition is None else _first_line(row.condition)
        after = "" if row.to is None else row.to.value
        rows.append((before, f"`{row.event.__name__}`", condition, after, ", ".join(f"`{name}`" for name in names)))
    parts = {
        "Phases": _table(("phase", "state that people see", "meaning"), phases),
        "Events": _table(("event", "meaning"), events),
        "Transitions": _table(("in the phase", "event", "if", "next phase", "steps"), rows),
        "Steps": _table(("step", "meaning"), sorted(steps.items(), key=lambda step: step[0].lower())),
    }
    return "\n".join(f"### {title}\n\n{table}" for title, table in parts.items())


def _members(source: str) -> dict[str, str]:
    """Return, for each member of an enum, the comment behind it."""
    return dict(re.findall(r"^\s+([A-Z_]+) = [^#\n]*(?:# (.*))?$", source, re.MULTILINE))


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").splitlines()[0]


def container_ends() -> str:
    """What a container ends with, by what ended it."""
    ends = {code: CONTAINER_ENDS[reason] for reason, code in exit_codes.EXIT_CODES.items()}
    ends |= {
        exit_codes.EXIT_TAKEN: "nothing was started: another kernel has one of the GPUs",
        exit_codes.EXIT_NO_LOCK: "nothing was started: there is no lock for one of the GPUs",
        exit_codes.EXIT_NO_ORDER: "nothing was started: nobody told the job what to start",
    }
    return _table(("exit code", "what ended it"), [(str(code), ends[code]) for code in sorted(ends)])


def _table(head: Sequence[str], listed: Iterable[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in listed]
    lines = [list(head), ["---"] * len(head), *escaped]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _plain(docstring: str) -> str:
    """A docstring as a paragraph."""
    return docstring.strip()


BLOCKS: dict[str, Callable[[], str]] = {
    "hosts": lambda: keys("hosts"),
    "environments": lambda: keys("environments"),
    "commands": commands,
    "errors": errors,
    "routes": routes,
    "kernel rows": lambda: rows(KernelRow),
    "gpu rows": lambda: rows(GpuRow),
    "node rows": lambda: rows(NodeRow),
    "waiting rows": lambda: rows(WaitRow),
    "event": event,
    "lifecycle": lifecycle_table,
    "exit codes": container_ends,
}


def renewed(page: str) -> str:
    """Return a page with all its generated places as the program says now."""
    return PLACE.sub(lambda place: f"<!-- {place[1]}: generated -->\n{BLOCKS[place[1]]().rstrip()}\n<!-- end -->", page)


def main() -> None:
    """Write every page anew that has such a place."""
    for path in sorted(DOCS.rglob("*.md")):
        page = path.read_text("utf-8")
        if renewed(page) != page:
            path.write_text(renewed(page), "utf-8")
            print(f"wrote {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
