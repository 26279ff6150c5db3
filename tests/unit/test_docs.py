"""README and docs/ say what the program is: generated parts are the program's own, examples are right, names exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.core import TyperCommand, TyperGroup

from docs import generate, pictures
from kernelbridge import __version__, errors
from kernelbridge.cli import app, reference
from kernelbridge.cli.commands.setup.config import in_force
from kernelbridge.config import load
from kernelbridge.config.schema import Environment, Host
from kernelbridge.fleet.doctor.finding import LinkName
from kernelbridge.hosts import labels

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in [
        *map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *sorted(ROOT.glob("docs/**/*.md")),
    ]
}
README = PAGES["README.md"]
EACH_PAGE = pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))
# Every `kernelbridge ...` of the pages, in code or in text, and the test that runs it.
COMMANDS = {
    "kernelbridge --config": "tests/unit/cli/test_app.py",
    "kernelbridge --debug": "tests/unit/cli/test_app.py",
    "kernelbridge --help": "tests/unit/cli/test_app.py",
    "kernelbridge --version": "tests/unit/cli/test_app.py",
    "kernelbridge init": "tests/unit/cli/commands/setup/test_init.py",
    "kernelbridge config": "tests/unit/cli/commands/setup/test_config.py",
    "kernelbridge trust": "tests/unit/cli/commands/setup/test_trust.py",
    "kernelbridge install": "tests/unit/cli/commands/setup/test_install.py",
    "kernelbridge uninstall": "tests/unit/cli/commands/setup/test_install.py",
    "kernelbridge pull": "tests/unit/cli/commands/test_images_pull.py",
    "kernelbridge doctor": "tests/unit/cli/commands/setup/test_doctor.py",
    "kernelbridge report": "tests/unit/cli/commands/setup/test_report.py",
    "kernelbridge ps": "tests/unit/cli/commands/test_kernels.py",
    "kernelbridge gpus": "tests/unit/cli/commands/test_gpus.py",
    "kernelbridge stop": "tests/unit/cli/commands/test_kernels.py",
    "kernelbridge logs": "tests/unit/cli/commands/test_kernels.py",
    "kernelbridge attach": "tests/unit/cli/commands/test_attach.py",
    "kernelbridge clean": "tests/unit/cli/commands/test_clean.py",
    "kernelbridge run": "tests/real/test_run.py",
    "kernelbridge up": "tests/real/test_run.py",
    "kernelbridge shell": "tests/real/test_shell.py",
    "kernelbridge exec": "tests/real/test_shell.py",
    "kernelbridge cp": "tests/real/test_shell.py",
    "kernelbridge files": "tests/real/test_workspace_kernels.py",
    "kernelbridge ssh-config": "tests/real/test_ssh_into.py",
    "kernelbridge forward": "tests/unit/cli/commands/test_ports.py",
    "kernelbridge tensorboard": "tests/unit/cli/commands/test_ports.py",
    "kernelbridge snapshot": "tests/real/test_images.py",
    "kernelbridge images": "tests/real/test_images.py",
    "kernelbridge open": "tests/real/test_open.py",
}
# Other programs in blocks of commands, with what a test has of them.
OTHER_COMMANDS = {
    "pip install .": ("tests/real/test_installed.py", '"pip"'),
    "pip install --editable .": ("tests/real/test_packages.py", '"--editable"'),
    "pip uninstall kernelbridge": ("tests/real/test_packages.py", '"uninstall"'),
    "pipx install .": ("scripts/packages", "pipx"),
    "pipx inject kernelbridge jupyterlab": ("kernelbridge/cli/commands/open.py", "pipx inject"),
    "uv tool install .": ("scripts/packages", "uv"),
    "uv tool install . --with jupyterlab": ("kernelbridge/cli/commands/open.py", "--with jupyterlab"),
    f'docker system prune --filter "label!={labels.KERNEL_LABEL}"': ("tests/unit/test_docs.py", "KERNEL_LABEL"),
}
FENCE = re.compile(r"^(?:<!-- fragment of \[(\w+)\.NAME\] -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a fragment needs around it to be a config.
AROUND = {"environments": '[environments.a]\nimage = "x"\n', "hosts": '[hosts.a]\nssh = "a"\n'}


def blocks(page: str, language: str) -> Iterator[tuple[str, str]]:
    """The code blocks in a language: the section that it is a fragment of, or nothing, and its text."""
    for section, written_in, text in FENCE.findall(page):
        if written_in == language:
            yield section, text


def code_of(page: str) -> list[str]:
    """Every line of a block of commands, and what stands between backticks."""
    lines = [line for _, text in blocks(page, "sh") for line in text.splitlines()]
    plain = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return [*lines, *re.findall(r"`([^`\n]+)`", plain)]


def options_of(command: TyperGroup | TyperCommand) -> set[str]:
    named = (word for parameter in command.params for word in [*parameter.opts, *parameter.secondary_opts])
    return {*named, "-h", "--help"}


# -- what the program writes


@EACH_PAGE
def test_each_generated_part_is_what_the_program_says(page: str) -> None:
    assert generate.renewed(page) == page, "run scripts/docs"


def test_each_generated_part_has_its_place() -> None:
    places = [name for page in PAGES.values() for name, _ in generate.PLACE.findall(page)]
    assert sorted(places) == sorted(generate.BLOCKS)


@pytest.mark.parametrize("path", pictures.drawn(), ids=lambda path: path.name)
def test_each_diagram_is_what_is_drawn(path: Path) -> None:
    assert path.read_text("utf-8") == pictures.drawn()[path], "run scripts/docs"


def test_each_error_has_an_anchor_that_the_terminal_names() -> None:
    page = PAGES["docs/reference/errors.md"]
    codes = {kind.exit_code for kind in reference.kinds()} | {1, app.UNEXPECTED_EXIT_CODE, 2}
    for code in codes:
        assert page.count(f"(exit-{code})=\n") == 1
        assert errors.error_page(code).endswith(f"/reference/errors.html#exit-{code}")
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    assert errors.error_page(52).startswith(f"{urls['Documentation']}/")


@pytest.mark.parametrize(("section", "model"), [("hosts", Host), ("environments", Environment)])
def test_each_key_of_the_config_has_a_heading_with_kind_default_and_meaning(
    section: str, model: type[Host] | type[Environment]
) -> None:
    page = PAGES["docs/reference/configuration.md"]
    for key, field in model.model_fields.items():
        if key == "name":
            continue
        _, heading, after = page.partition(f"({generate.anchor(section, key)})=\n### `{key}`\n\n")
        assert heading, key
        meaning, facts = after.split("\n\n")[:2]
        assert meaning == field.description
        assert facts.startswith(f"Value: {field.title}. ")
        assert facts.endswith("Required.") == field.is_required()
        assert facts.endswith("Default: not set.") == (not field.is_required() and field.default in (None, ""))


def test_each_default_on_the_page_means_the_same_when_it_is_written() -> None:
    text = generate.keys("environments")
    written = re.findall(r"### `(\w+)`\n\n.*?Default: `(.*)`\.\n", re.sub(r"\n\n.*\n\n", "\n\n", text))
    assert len(written) > 10
    lines = "\n".join(f"{key} = {default}" for key, default in written)
    loaded = load.parse(f'[environments.a]\nimage = "x"\n{lines}', Path("/k.toml"))
    assert loaded.environment("a") == Environment(name="a", image="x")


# -- what people write


def test_doctors_table_has_each_link_in_its_order() -> None:
    table = PAGES["docs/how-to/troubleshooting.md"].partition("## Doctor's table of faults")[2]
    assert re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE) == [name.value for name in LinkName]


@EACH_PAGE
def test_each_config_is_a_right_one(page: str) -> None:
    for section, example in blocks(page, "toml"):
        loaded = load.parse(AROUND.get(section, "") + example, Path("/k.toml"))
        assert load.warnings(loaded) == ()
        assert json.dumps(in_force(loaded)), "`kernelbridge config` prints it"
        if not section:
            assert "Docker-GPU (remote)" in load.display_names(loaded).values()


@EACH_PAGE
def test_each_line_of_a_block_of_commands_is_one_that_a_test_knows(page: str) -> None:
    for _, text in blocks(page, "sh"):
        for line in text.splitlines():
            program, *words = shlex.split(line)
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), line
            if program != "kernelbridge" and not program.startswith("scripts/"):
                test_path, evidence = OTHER_COMMANDS[line]
                assert evidence in (ROOT / test_path).read_text("utf-8")


@EACH_PAGE
def test_each_settings_file_can_be_read(page: str) -> None:
    for _, text in blocks(page, "json"):
        json.loads(text)


def test_each_command_in_the_pages_exists_and_is_tested() -> None:
    pattern = re.compile(r"(?<!inject )\bkernelbridge (--[a-z]+|[a-z]+(?:-[a-z]+)?)(?= |$)")
    named = {
        f"kernelbridge {word}" for page in PAGES.values() for code in code_of(page) for word in pattern.findall(code)
    }
    assert named == set(COMMANDS)
    group = generate.group()
    shown = {name for name, command in group.commands.items() if not command.hidden}
    assert shown == {command.split()[1] for command in COMMANDS if "--" not in command}
    for command, test_path in COMMANDS.items():
        word = command.split()[1]
        assert word in set(group.commands) | options_of(group)
        assert f'"{word}"' in (ROOT / test_path).read_text("utf-8")


@EACH_PAGE
def test_each_option_of_a_command_exists(page: str) -> None:
    group = generate.group()
    for code in code_of(page):
        for words in re.findall(r"\bkernelbridge ([^|;]*)", code):
            command: TyperGroup | TyperCommand = group
            for word in words.split():
                if word.startswith("-"):
                    assert word in options_of(command), code
                elif command is group and word in group.commands:
                    command = group.commands[word]  # type: ignore[assignment]
                elif command.context_settings.get("allow_interspersed_args") is False:
                    break  # What follows is another program's.


def test_each_script_exists_and_can_be_read_by_bash() -> None:
    named = {name for page in PAGES.values() for name in re.findall(r"\bscripts/[a-z-]+\b(?!\.)", page)}
    assert named == {
        "scripts/check",
        "scripts/mutants",
        "scripts/first-hour",
        "scripts/foreign",
        "scripts/test",
        "scripts/docs",
        "scripts/demo",
        "scripts/bench",
        "scripts/packages",
        "scripts/soak",
    }
    for name in named:
        assert (ROOT / name).stat().st_mode & 0o100, name
        subprocess.run(["bash", "-n", ROOT / name], check=True, timeout=30)


@pytest.mark.parametrize("name", PAGES)
def test_each_picture_and_each_file_that_is_linked_to_exists(name: str) -> None:
    # Anchors inside docs/ are for the build, which takes a link that leads nowhere for an error.
    links = re.findall(
        r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"^```.*?^```$", "", PAGES[name], flags=re.MULTILINE | re.DOTALL)
    )
    for link in links:
        if "://" not in link:
            assert (ROOT / name).parent.joinpath(link).exists(), link


def test_each_picture_is_shown_in_light_and_dark_and_all_are_small() -> None:
    files = {path.name for path in (ROOT / "docs/images").iterdir()}
    assert not {name for name in files if not name.endswith((".svg", ".png"))}
    assert {name for name in files if name not in "".join(PAGES.values())} == set()
    for name in files - {path.name for path in pictures.drawn()}:
        assert {name.replace("-dark", "-light"), name.replace("-light", "-dark")} <= files
        assert re.search(r"-(light|dark)\.", name), name
    assert sum(path.stat().st_size for path in (ROOT / "docs/images").iterdir()) < 1_500_000
    for page, text in PAGES.items():
        for scheme in ("light", "dark"):
            shown = re.findall(rf"-{scheme}\.\w+\)(.*)$", text, re.MULTILINE)
            assert set(shown) <= {f"{{.only-{scheme}}}"}, page
    for path in re.findall(r'(?:src|srcset)="([^"]+)"', README):
        assert (ROOT / path).exists(), path


def test_the_readme_tells_what_getting_started_does() -> None:
    walked = [line for _, text in blocks(PAGES["docs/getting-started.md"], "sh") for line in text.splitlines()]
    told = [line for _, text in blocks(README, "sh") for line in text.splitlines() if not line.startswith("scripts/")]
    assert set(told) <= set(walked)
    assert list(blocks(README, "toml")) == list(blocks(PAGES["docs/getting-started.md"], "toml"))


@EACH_PAGE
def test_each_file_of_ours_that_is_named_exists(page: str) -> None:
    for path in re.findall(r"`((?:kernelbridge|tests|docs)/[\w./-]*)`", page):
        assert (ROOT / path).exists(), path


@EACH_PAGE
def test_each_test_that_is_named_exists(page: str) -> None:
    for path, name in re.findall(r"`(tests/[\w./-]+)::(\w+)`", page):
        assert f"def {name}(" in (ROOT / path).read_text("utf-8"), name


def test_each_limit_names_a_test_that_shows_it() -> None:
    table = PAGES["docs/explanation/security.md"].partition("| whose | bound |")[2]
    rows = table.partition("\n\n")[0].splitlines()[2:]
    assert len(rows) > 20
    for row in rows:
        assert re.search(r"\| (`tests/[\w./-]+::\w+`(<br>)?)+ \|$", row), row


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len(README.splitlines()) <= 130


def test_the_glossary_has_the_words_of_the_house() -> None:
    glossary = PAGES["docs/explanation/architecture.md"].partition("## Words")[2]
    words = re.findall(r"^\| ([a-z]+) \|", glossary, re.MULTILINE)
    assert " ".join(words[1:]) == "host link engine environment kernel lease relay bridge frame journal channels owner"


def test_each_folder_of_the_package_is_described() -> None:
    page = PAGES["docs/explanation/architecture.md"]
    folders = {f"{path.parent.name}/" for path in (ROOT / "kernelbridge").glob("*/__init__.py")}
    assert folders <= set(re.findall(r"^\| `([a-z]+/)` \|", page, re.MULTILINE))


def test_each_decision_that_a_comment_cites_is_on_its_page() -> None:
    page = PAGES["docs/explanation/decisions.md"]
    numbers = [int(number) for number in re.findall(r"^\(decision-(\d+)\)=\n### \1\. ", page, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    cited = 0
    for folder in ("kernelbridge", "tests", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            if "node_modules" in path.parts or path == Path(__file__):
                continue
            text = path.read_text("utf-8")
            assert not re.search(r"\(design\b|\bdesign\.md|\(facts \d", text), path
            for found in re.findall(r"decisions\.md, ([\d, and]+\d|\d)", text):
                assert {int(number) for number in re.findall(r"\d+", found)} <= set(numbers), path
                cited += 1
    assert cited > 5


def test_the_issue_form_asks_for_the_version_and_the_sentence() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text("utf-8"))
    required = {one["id"] for one in form["body"] if one.get("validations", {}).get("required")}
    assert {"version", "sentence"} <= required
    assert (
        "kernelbridge --version"
        in next(one for one in form["body"] if one.get("id") == "version")["attributes"]["label"]
    )


def test_the_commit_hook_runs_the_checks() -> None:
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert [hook["entry"] for repository in settings["repos"] for hook in repository["hooks"]] == ["scripts/check"]


def test_the_changelog_has_this_version() -> None:
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
