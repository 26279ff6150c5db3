"""A project's folder in the container: the command and the kernel start in it, edits arrive, breakpoints bind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.blocking import Client, connected
from tests.clients.terminal import Ended
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def project(bridge_env: Laptop) -> Path:
    """A small project in the user's home."""
    root = bridge_env.home / "proj"
    (root / "pkg").mkdir(parents=True)
    (root / "notebooks").mkdir()
    (root / "pyproject.toml").write_text("")
    (root / "pkg" / "__init__.py").write_text("")
    (root / "pkg" / "model.py").write_text("def answer():\n    value = 41\n    return value + 1\n")
    return root


@pytest.fixture(autouse=True)
def nothing_stays(rig: Rig, bridge_env: Laptop) -> Iterator[None]:
    yield
    rig.engine.sweep()


def kernelbridge_in(folder: Path, laptop: Laptop, *words: str) -> Ended:
    done = subprocess.run(
        [sys.executable, "-m", "kernelbridge", *words],
        env=laptop.env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90 * SLOW,
        check=False,
    )
    return Ended(code=done.returncode, out=done.stdout, err=done.stderr)


def test_a_command_runs_in_the_project_and_its_results_come_back(
    rig: Rig, bridge_env: Laptop, project: Path
) -> None:
    bridge_env.write_environment(rig.image, workspace={"local": ".", "sync": "both", "pull": ["runs/**"]})
    script = "import pkg.model, os; os.makedirs('runs'); open('runs/out', 'w').write(str(pkg.model.answer())); print(os.getcwd())"
    ended = kernelbridge_in(project, bridge_env, "run", "test", "--", "python", "-c", script)
    assert (ended.code, ended.out) == (0, "/workspace\n"), ended.err
    assert (project / "runs" / "out").read_text() == "42"
    below = kernelbridge_in(project / "notebooks", bridge_env, "run", "test", "--", "pwd")
    assert below.out == "/workspace/notebooks\n", below.err
