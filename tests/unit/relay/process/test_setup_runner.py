"""relay/process/setup_runner.py: commands run one after the other in the kernel's place, and then the kernel does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kernelbridge.relay.process import setup_runner

RUNNER = str(setup_runner.__file__)
KERNEL = [sys.executable, "-c", "import sys; print('kernel', sys.argv[1])", "a b"]


def ran(folder: Path, *commands: str, kernel: Sequence[str] = KERNEL) -> tuple[int, str, dict[str, object] | None]:
    """What a run ended with, what it printed, and the state that it left."""
    path = folder / "setup.json"
    path.write_text(json.dumps({"commands": commands}))
    words = [sys.executable, RUNNER, str(path), *kernel]
    # As a kernel has it: one pipe for both.
    done = subprocess.run(
        words, input="not read", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )
    return done.returncode, done.stdout, json.loads(path.read_text()) if path.exists() else None


def test_commands_run_in_order_and_then_the_kernel_in_their_place(tmp_path: Path) -> None:
    code, printed, state = ran(tmp_path, "echo 'it''s' > made", "cat made; cat", "for n in 1 2; do\n  echo $n\ndone")
    assert (code, printed, state) == (0, "its\n1\n2\nkernel a b\n", None)


def test_no_command_stands_in_an_argv_or_a_variable(tmp_path: Path) -> None:
    look = "tr '\\0' '\\n' < /proc/$$/cmdline; tr '\\0' '\\n' < /proc/$$/environ; : hf_secret"
    code, printed, _ = ran(tmp_path, look)
    assert code == 0
    assert "sh\n/proc/self/fd/" in printed
    assert "hf_secret" not in printed


@pytest.mark.parametrize(
    ("command", "code"), [("false", 1), ("cd /nowhere && true", 2), ("nowhere-command", 127), ("kill -9 $$", -9)]
)
def test_the_first_that_fails_is_the_end_and_is_named(tmp_path: Path, command: str, code: int) -> None:
    ended, printed, state = ran(tmp_path, "echo first", command, "echo last")
    assert (ended, printed.splitlines()[0], state) == (1, "first", {"command": command, "code": code})
    assert "last" not in printed


def test_without_a_shell_the_command_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ran(tmp_path, "echo first") == (
        1,
        "sh: No such file or directory\n",
        {"command": "echo first", "code": 127},
    )


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [(["no-such-command"], 127, "No such file or directory"), (["/etc/passwd"], 126, "Permission denied")],
)
def test_a_command_that_cannot_be_run_ends_as_in_a_shell(tmp_path: Path, words: list[str], code: int, why: str) -> None:
    assert ran(tmp_path, "echo first", kernel=words) == (code, f"first\n{words[0]}: {why}\n", None)


def test_a_setups_output_is_not_that_of_a_users_command(tmp_path: Path) -> None:
    path = tmp_path / "setup.json"
    path.write_text(json.dumps({"commands": ["echo making"]}))
    words = [sys.executable, RUNNER, str(path), "cat"]
    done = subprocess.run(words, input="its own input", capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("its own input", "making\n")
