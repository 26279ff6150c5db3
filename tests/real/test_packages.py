"""The sdist and the wheel: what is in them, an editable installation, and what is left when the package goes."""

from __future__ import annotations

import configparser
import email
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from kernelbridge import __version__
from tests.rig.daemon import SLOW, run
from tests.rig.laptop import Laptop

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@dataclass(frozen=True, kw_only=True)
class Built:
    """What was built, and of what."""

    clone: Path
    sdist: Path
    wheel: Path
    # Out of the sdist.
    other_wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    clone = folder / "clone"
    # What a clean clone would have, with what is not committed yet.
    listed = run(["git", "-C", ROOT, "-c", f"safe.directory={ROOT}", "ls-files", "-coz", "--exclude-standard"])
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder / "sdist"], cwd=clone, check=True
    )
    (sdist,) = (folder / "sdist").iterdir()
    return Built(
        clone=clone, sdist=sdist, wheel=wheel_of(clone, folder / "wheel"), other_wheel=wheel_of(sdist, folder / "other")
    )


def wheel_of(source: Path, folder: Path) -> Path:
    run([*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source])
    (wheel,) = folder.glob("*.whl")
    return wheel


def contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as file:
        return {name: hashlib.sha256(file.read(name)).hexdigest() for name in file.namelist()}


def made_python(folder: Path) -> Path:
    """A Python of its own; what the package needs is this environment's, and comes last."""
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def test_the_sdist_makes_the_same_wheel_as_the_clone(built: Built) -> None:
    assert contents(built.wheel) == contents(built.other_wheel)


def test_the_wheel_has_each_file_of_the_package_and_nothing_else(built: Built) -> None:
    names = set(contents(built.wheel))
    ours = {
        path.relative_to(built.clone).as_posix() for path in (built.clone / "kernelbridge").rglob("*") if path.is_file()
    }
    assert {name for name in names if name.startswith("kernelbridge/")} == ours
    assert {"kernelbridge/py.typed", "kernelbridge/relay/__main__.py"} <= ours
    data = f"kernelbridge-{__version__}.data/data/etc/jupyter/jupyter_server_config.d/kernelbridge.json"
    assert {name for name in names - ours if ".dist-info/" not in name} == {data}


def test_the_metadata_say_what_the_project_says(built: Built) -> None:
    folder = f"kernelbridge-{__version__}.dist-info"
    with zipfile.ZipFile(built.wheel) as file:
        found = email.message_from_bytes(file.read(f"{folder}/METADATA"))
        entries = configparser.ConfigParser()
        entries.read_string(file.read(f"{folder}/entry_points.txt").decode())
        assert file.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert (found["Version"], found["Summary"]) == (__version__, PROJECT["description"])
    assert (found["License-Expression"], found["Requires-Python"]) == ("BSD-3-Clause", PROJECT["requires-python"])
    assert set(found["Keywords"].split(",")) == set(PROJECT["keywords"])
    assert found.get_all("Project-URL") == [f"{name}, {url}" for name, url in PROJECT["urls"].items()]
    assert found["Description-Content-Type"] == "text/markdown"
    assert dict(entries["console_scripts"]) == PROJECT["scripts"]


def test_the_sdist_has_what_its_tests_need_and_nothing_that_was_made(built: Built) -> None:
    with tarfile.open(built.sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"tests/conftest.py", "scripts/test", "packaging/floors.txt", "docs/index.md", "CHANGELOG.md"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", ".git/", "dist"))]


def test_an_editable_installation_runs_what_is_in_the_checkout(built: Built, module_env: Laptop) -> None:
    folder = module_env.home / "editable"
    python = made_python(folder)
    run([*PIP, "--python", python, "install", "-q", "--no-deps", "--no-build-isolation", "--editable", built.clone])
    place = subprocess.run(
        [python, "-c", "import kernelbridge; print(kernelbridge.__file__)"],
        cwd=module_env.home, env=without_sources(module_env), capture_output=True, text=True, timeout=60 * SLOW,
    )  # fmt: skip
    assert place.stdout.strip() == str(built.clone / "kernelbridge/__init__.py")
    assert (folder / "etc/jupyter/jupyter_server_config.d/kernelbridge.json").exists()


def without_sources(laptop: Laptop) -> dict[str, str]:
    """The user's variables without the path to the sources that the tests run with."""
    return {name: value for name, value in laptop.env.items() if name != "PYTHONPATH"}


def test_an_uninstallation_in_order_leaves_no_kernel_spec(built: Built, module_env: Laptop) -> None:
    folder = module_env.home / "installed"
    python = made_python(folder)
    run([*PIP, "--python", python, "install", "-q", "--no-deps", built.wheel])
    program, env = folder / "bin/kernelbridge", without_sources(module_env)

    def call(*words: str, config: Path = module_env.config) -> str:
        ended = subprocess.run(
            [program, "--config", config, *words], env=env, capture_output=True, text=True, timeout=60 * SLOW
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    other = module_env.home / "other.toml"
    for config, name in ((module_env.config, "one"), (other, "two")):
        config.write_text(f'[hosts.here]\nssh = "local"\n[environments.{name}]\nimage = "x"\n')
        call("install", config=config)
    specs = module_env.data_dir / "kernels"
    assert {path.name for path in specs.iterdir()} >= {"kernelbridge-one", "kernelbridge-two"}
    somebodys = specs / "kernelbridge-by-hand"
    somebodys.mkdir()
    (somebodys / "kernel.json").write_text("{}")
    assert "kernelbridge-two" not in call("uninstall")
    call("install")
    assert "Removed kernelbridge-two." in call("uninstall", "--all")
    assert list(specs.glob("kernelbridge*")) == [somebodys]
    run([*PIP, "--python", python, "uninstall", "-q", "-y", "kernelbridge"])
    left = [path for path in folder.rglob("*kernelbridge*") if "__pycache__" not in path.parts]
    assert left == []
