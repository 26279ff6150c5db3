"""What is said of the package in several places is said alike: its version, its dependencies and their floors."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

import kernelbridge

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
DEPENDENCIES = PROJECT["project"]["dependencies"]
# conda-forge's names, where they are not the index's.
CONDA_NAMES = {"docker": "docker-py"}


def lines(name: str) -> list[str]:
    """The lines of a file in packaging/, without comments."""
    text = (ROOT / "packaging" / name).read_text("utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def recipe() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "packaging/conda/recipe.yaml").read_text("utf-8"))
    return found


def test_the_floors_that_are_tried_are_those_of_the_project() -> None:
    bounds = [Requirement(one) for one in DEPENDENCIES]
    assert all([part.operator for part in one.specifier] == [">="] for one in bounds)
    assert lines("floors.txt") == [one.replace(">=", "==") for one in DEPENDENCIES]


def test_the_recipe_has_the_dependencies_programs_and_summary_of_the_project() -> None:
    project, found = PROJECT["project"], recipe()
    wanted = [re.sub(r"(>=)", r" \1", one) for one in DEPENDENCIES]
    wanted = [" ".join([CONDA_NAMES.get(name, name), bound]) for name, bound in (one.split() for one in wanted)]
    assert found["requirements"]["run"] == ["python >=${{ python_min }}", *wanted]
    assert found["requirements"]["host"][2] == PROJECT["build-system"]["requires"][0].replace(">=", " >=")
    assert f">={found['context']['python_min']}" == project["requires-python"]
    programs = [f"{name} = {place}" for name, place in project["scripts"].items()]
    assert found["build"]["python"]["entry_points"] == programs
    about = found["about"]
    assert (about["summary"], about["license"]) == (project["description"], project["license"])
    assert about["homepage"] == project["urls"]["Homepage"]


def test_the_version_is_written_once_and_the_recipe_follows() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "kernelbridge/__init__.py"
    assert recipe()["context"]["version"] == kernelbridge.__version__


def test_each_python_that_is_named_is_tried_before_a_release() -> None:
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["project"]["classifiers"]))
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))
    assert release["jobs"]["try"]["strategy"]["matrix"]["python"] == named
    assert f">={named[0]}" == PROJECT["project"]["requires-python"]


def test_a_release_is_published_without_a_secret_by_the_one_job_that_may() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    release = yaml.safe_load(text)
    assert "secrets." not in text
    assert release["permissions"] == {"contents": "read"}
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert [name for name, job in release["jobs"].items() if "permissions" in job] == ["publish"]
