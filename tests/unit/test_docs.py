"""README.md says what the program is: its tables are the program's own, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from kernelbridge import config
from kernelbridge.cli import app, tables
from kernelbridge.config import Environment, Host

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
# Every `kernelbridge ...` of the README, in code or in text, without what stands for the user's own names.
COMMANDS = {
    "kernelbridge --config": "tests/unit/cli/test_cli.py",
    "kernelbridge --debug": "tests/unit/cli/test_cli.py",
    "kernelbridge config": "tests/unit/cli/test_settings.py",
    "kernelbridge trust": "tests/unit/cli/test_cli.py",
    "kernelbridge install": "tests/unit/cli/test_settings.py",
    "kernelbridge uninstall": "tests/unit/cli/test_settings.py",
    "kernelbridge ps": "tests/unit/cli/test_kernels.py",
    "kernelbridge gpus": "tests/unit/cli/test_gpus.py",
    "kernelbridge stop": "tests/unit/cli/test_kernels.py",
    "kernelbridge logs": "tests/unit/cli/test_kernels.py",
    "kernelbridge attach": "tests/unit/cli/test_attach.py",
    "kernelbridge clean": "tests/unit/cli/test_kernels.py",
}


def generated(mark: str) -> str:
    match = re.search(rf"<!-- {re.escape(mark)} -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert match is not None, mark
    return match[1]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]


def test_the_readmes_config_table_is_what_the_program_prints() -> None:
    assert generated("kernelbridge config --table") == tables.of_keys()


def test_the_readmes_errors_are_what_the_program_prints() -> None:
    assert generated("kernelbridge config --errors") == tables.of_errors()


@pytest.mark.parametrize(("section", "model"), [("hosts.NAME", Host), ("environments.NAME", Environment)])
def test_the_table_has_each_key_of_the_model_with_kind_default_and_meaning(
    section: str, model: type[Host] | type[Environment]
) -> None:
    rows = {
        key: rest for key, *rest in cells(generated("kernelbridge config --table")) if key.startswith(f"`{section}.")
    }
    fields = {f"`{section}.{name}`": field for name, field in model.model_fields.items() if name != "name"}
    assert list(rows) == list(fields)
    for key, (kind, default, meaning) in rows.items():
        field = fields[key]
        assert kind == field.title
        assert meaning.replace("\\|", "|") == field.description
        assert (default == "required") == field.is_required()
        assert (default == "not set") == (not field.is_required() and field.default is None)


def test_each_default_in_the_table_means_the_same_when_it_is_written() -> None:
    lines = [
        f"{key.strip('`').rpartition('.')[2]} = {default.strip('`')}"
        for key, _, default, _ in cells(generated("kernelbridge config --table"))
        if key.startswith("`environments.") and default.startswith("`")
    ]
    written = config.parse('[environments.a]\nimage = "x"\n' + "\n".join(lines), Path("/k.toml"))
    assert written.environment("a") == Environment(name="a", image="x")


def test_each_toml_example_is_a_right_config() -> None:
    examples = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert examples
    for example in examples:
        loaded = config.parse(example, Path("/k.toml"))
        assert config.warnings(loaded) == ()
        assert "Docker-GPU (remote)" in config.display_names(loaded).values()


def test_each_command_of_the_readme_is_tested_and_exists() -> None:
    named = set(re.findall(r"\bkernelbridge (?:--[a-z]+|[a-z]+)(?=[ `\n]| -->)", "\n".join(code_of(README))))
    assert named == set(COMMANDS)
    known = get_command(app.app)
    names = set(known.commands) | {option for parameter in known.params for option in parameter.opts}  # type: ignore[attr-defined]
    for command, test_path in COMMANDS.items():
        word = command.split()[1]
        assert word in names
        assert f'"{word}"' in (ROOT / test_path).read_text("utf-8")
    assert set(known.commands) == {command.split()[1] for command in COMMANDS if "--" not in command}  # type: ignore[attr-defined]


def test_each_option_in_the_table_of_commands_exists() -> None:
    commands = get_command(app.app).commands  # type: ignore[attr-defined]
    for name, text in re.findall(r"^\| `kernelbridge ([a-z]+)[^`]*` \| (.*) \|$", README, re.MULTILINE):
        named = ([*parameter.opts, *parameter.secondary_opts] for parameter in commands[name].params)
        options = {option for options in named for option in options}
        assert set(re.findall(r"`(--[a-z-]+)", text)) <= options, name


def test_each_script_of_the_readme_is_there() -> None:
    for script in sorted(set(re.findall(r"\bscripts/[a-z]+", README))):
        assert (ROOT / script).is_file(), script


def test_each_picture_and_room_of_the_readme_is_there() -> None:
    rooms = re.findall(r"^\| `(kernelbridge/[^`]*)` \|", README, re.MULTILINE)
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", README)
    assert len(rooms) > 10
    assert len(pictures) == 1
    for path in (*rooms, *pictures):
        assert (ROOT / path).exists(), path


def test_the_readme_has_every_room() -> None:
    rooms = set(re.findall(r"^\| `(kernelbridge/[^`]*)` \|", README, re.MULTILINE))
    folders = {f"kernelbridge/{path.parent.name}/" for path in (ROOT / "kernelbridge").glob("*/__init__.py")}
    assert folders <= rooms


def test_the_glossary_has_the_words_of_the_house() -> None:
    glossary = README.partition("## Glossary")[2].partition("\n## ")[0]
    words = re.findall(r"^\| ([a-z]+) \|", glossary, re.MULTILINE)
    assert " ".join(words[1:]) == (
        "host link engine environment kernel lease relay bridge frame journal channels workspace forward owner"
    )


def test_the_changelog_has_this_version() -> None:
    from kernelbridge.version import __version__

    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def code_of(text: str) -> list[str]:
    """What stands in code blocks and between backticks, and the marks of generated tables."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [*blocks, *(f"{piece} " for piece in re.findall(r"`([^`\n]+)`", plain))]
