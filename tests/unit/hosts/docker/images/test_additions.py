"""hosts/docker/images/additions.py: what an environment adds to its image is read, named and done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Environment
from kernelbridge.hosts.docker.images import additions
from kernelbridge.hosts.docker.images.additions import Additions
from tests.made_pythons import made_python
from tests.rig.daemon import SLOW

PYTHON = made_python()


def read(folder: Path, **keys: Any) -> Additions:
    return additions.read_additions(Environment(name="torch", image="torch:2", **keys), folder / "kernelbridge.toml")


def test_the_file_of_requirements_is_read_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("# tools\n\neinops # of tensors\npolars >= 1 ; python_version > '3.8'\n")
    found = read(tmp_path, packages=["six"], apt=["git"], requirements="more.txt")
    assert found == Additions(packages=("six", "einops", "polars >= 1 ; python_version > '3.8'"), apt=("git",))
    assert found.words == "`packages` and `apt`"
    assert not read(tmp_path)


def test_the_image_is_named_by_what_is_added() -> None:
    one = additions.additions_recipe("sha256:1", PYTHON, Additions(packages=("six",)))
    others = [
        additions.additions_recipe("sha256:1", PYTHON, Additions(packages=("six==1",))),
        additions.additions_recipe("sha256:1", PYTHON, Additions(packages=("six",), apt=("git",))),
        additions.additions_recipe("sha256:2", PYTHON, Additions(packages=("six",))),
    ]
    assert len({one.hash, *(other.hash for other in others)}) == 4
    # No text of the user's stands in a label.
    assert one.labels("now")["kernelbridge.added"] == "packages"


def order(added: Additions, wheels: list[str] | None = None) -> dict[str, object]:
    return dict(json.loads(additions.program_line(added, PYTHON, {"http_proxy": "p"}, wheels=wheels)))


def test_what_is_run_comes_over_stdin_and_words_of_the_user_are_no_options() -> None:
    added = Additions(packages=("six",), apt=("git",))
    assert "six" not in " ".join(additions.program_argv(PYTHON))
    told = order(added)
    assert told["steps"] == [
        ["apt-get", "update"],
        ["apt-get", "install", "-y", "--no-install-recommends", "--", "git"],
        ["/usr/bin/python3", "-m", "pip", "install", "--no-cache-dir", "--retries", "1", "--", "six"],
    ]
    assert told["remove"] == ["/tmp/kernelbridge-wheels", "/var/lib/apt/lists"]
    # Wheels of this machine, and its pip where there is one among them.
    folder = "/tmp/kernelbridge-wheels"
    rest = ["install", "--no-cache-dir", "--no-index", f"--find-links={folder}", "--", "six"]
    assert order(Additions(packages=("six",)), ["pip-25-py3-none-any.whl", "six-1.whl"])["steps"] == [
        ["/usr/bin/python3", f"{folder}/pip-25-py3-none-any.whl/pip", *rest]
    ]


@pytest.mark.parametrize(
    ("steps", "code", "said"),
    [
        ([["echo", "one"], ["echo", "two"]], 0, "one\ntwo\n"),
        ([["echo", "one"], ["false"], ["echo", "two"]], 1, "one\n"),
        ([["sh", "-c", "kill -9 $$"]], 1, ""),
        ([["sh", "-c", "echo $PROXY >&2"]], 0, "p\n"),
        ([["apt-get", "update"]], additions.EXIT_NO_APT, ""),
    ],
)
def test_steps_are_run_until_one_fails_and_nothing_is_left(
    tmp_path: Path, steps: list[list[str]], code: int, said: str
) -> None:
    left = tmp_path / "left"
    left.mkdir()
    told = {
        "steps": steps,
        "environ": {"PROXY": "p", "PATH": "/usr/bin:/bin" if code != 70 else ""},
        "remove": [str(left)],
    }
    argv = [sys.executable, *additions.program_argv(PYTHON)[1:]]
    env = {"PATH": "" if code == additions.EXIT_NO_APT else "/usr/bin:/bin"}
    done = subprocess.run(
        argv, input=json.dumps(told) + "\n", env=env, capture_output=True, text=True, timeout=20 * SLOW
    )
    assert (done.returncode, done.stdout) == (code, said)
    assert left.exists() == (code == additions.EXIT_NO_APT)
