"""cli/completion.py: names in bash, zsh, fish and PowerShell, as their scripts ask for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelbridge.kernel.records import KernelRecord, Records
from tests.unit.cli.conftest import CONFIG

IDS = ["aabb1111-0000-0000-0000-000000000000", "aacc2222-0000-0000-0000-000000000000"]
SHORT = ["aabb1111-000", "aacc2222-000"]


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The variables of a shell of a user with three hosts, an environment and two kernels of it."""
    config = tmp_path / "kernelbridge.toml"
    config.write_text(CONFIG)
    records = Records(tmp_path / "data/kernelbridge")
    for number, kernel_id in enumerate(IDS):
        records.keep(
            KernelRecord(
                kernel_id=kernel_id,
                environment="pytorch",
                config=str(config),
                host="lab",
                image="x",
                python="python3",
                session="s",
                started=float(number),
                title="train.ipynb",
            )
        )
    other = KernelRecord(
        kernel_id="aadd3333",
        environment="x",
        config="/other",
        host="x",
        image="x",
        python="x",
        session="s",
        started=0.0,
    )
    records.keep(other)
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "kernelbridge"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m kernelbridge "$@"\n')
    script.chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "KERNELBRIDGE_CONFIG": str(config),
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }


def in_bash(line: str, variables: dict[str, str]) -> list[str]:
    """What bash would offer at the end of a line, by the script that it is given."""
    words = line.split(" ")
    program = (
        'eval "$(_KERNELBRIDGE_COMPLETE=source_bash kernelbridge)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_kernelbridge_completion kernelbridge; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    answer = subprocess.run(
        ["bash", "-c", program, "bash", *words], env=variables, capture_output=True, text=True, check=True
    )
    assert answer.stderr == ""
    return answer.stdout.split()


def in_fish(line: str, variables: dict[str, str]) -> list[str]:
    program = "_KERNELBRIDGE_COMPLETE=source_fish kernelbridge | source; complete --do-complete $argv[1]"
    answer = subprocess.run(
        ["fish", "--no-config", "-c", program, line], env=variables, capture_output=True, text=True, check=True
    )
    return [one.split("\t")[0] for one in answer.stdout.splitlines()]


def in_zsh(line: str, variables: dict[str, str]) -> list[str]:
    """As its script asks; the rest is zsh's own."""
    asked = {**variables, "_KERNELBRIDGE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}
    answer = subprocess.run(["kernelbridge"], env=asked, capture_output=True, text=True, check=True)
    return [one.split('":"')[0].split('"')[1] for one in answer.stdout.splitlines()]


def in_powershell(line: str, variables: dict[str, str]) -> list[str]:
    """As its script asks; the rest is PowerShell's own."""
    last = line.rpartition(" ")[2]
    asked = {
        **variables,
        "_KERNELBRIDGE_COMPLETE": "complete_powershell",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": last,
    }
    answer = subprocess.run(["kernelbridge"], env=asked, capture_output=True, text=True, check=True)
    return [one.partition(":::")[0] for one in answer.stdout.splitlines()]


@pytest.mark.parametrize("shell", [in_bash, in_zsh, in_fish, in_powershell])
def test_each_shell_completes_commands_and_names(
    machine: dict[str, str], shell: Callable[[str, dict[str, str]], list[str]]
) -> None:
    if shell is in_fish and shutil.which("fish") is None:
        pytest.skip("no fish here: scripts/test installs it")
    assert set(shell("kernelbridge do", machine)) == {"doctor"}
    assert sorted(shell("kernelbridge logs aa", machine)) == SHORT
    assert shell("kernelbridge logs aac", machine) == SHORT[1:]
    assert shell("kernelbridge run py", machine) == ["pytorch"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("kernelbridge stop aabb1111 aac", SHORT[1:]),
        ("kernelbridge shell ", ["aacc2222-000", "aabb1111-000", "pytorch"]),
        ("kernelbridge trust ", ["lab", "two", "here"]),
        ("kernelbridge run --host l", ["lab"]),
        ("kernelbridge doctor ", ["lab", "two", "here", "pytorch"]),
        ("kernelbridge files status p", ["pytorch"]),
        ("kernelbridge pull --h", ["--help"]),
        ("kernelbridge --config /none/such.toml pull ", []),
    ],
)
def test_each_argument_has_names_of_its_kind(machine: dict[str, str], line: str, offered: list[str]) -> None:
    assert in_bash(line, machine) == offered


def test_a_config_with_a_mistake_completes_nothing_and_says_nothing(machine: dict[str, str]) -> None:
    Path(machine["KERNELBRIDGE_CONFIG"]).write_text("no TOML")
    assert in_bash("kernelbridge pull ", machine) == []
    assert sorted(in_bash("kernelbridge logs ", machine)) == SHORT, "the records are still there"
