"""hosts/transport/openssh/askpass.py: which program asks, and when, as ssh decides it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kernelbridge.hosts.transport.login.questions import LoginQuestion
from kernelbridge.hosts.transport.openssh.askpass import Askpass

QUESTION = LoginQuestion(prompt="(ada@lab) Code: ", notes=("ada@lab: Welcome",))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    made = tmp_path / "askpass"
    made.write_text(f'#!/bin/sh\nprintf "%s" "$1" > {tmp_path}/asked\n. {tmp_path}/does\n')
    made.chmod(0o755)
    return made


@pytest.mark.parametrize(
    ("around", "is_used", "is_preferred"),
    [
        ({"DISPLAY": ":0"}, True, False),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True, False),
        ({}, False, False),
        ({"DISPLAY": ""}, False, False),
        ({"SSH_ASKPASS_REQUIRE": "force"}, True, True),
        ({"SSH_ASKPASS_REQUIRE": "prefer"}, False, False),
        ({"SSH_ASKPASS_REQUIRE": "prefer", "DISPLAY": ":0"}, True, True),
        ({"SSH_ASKPASS_REQUIRE": "NEVER", "DISPLAY": ":0"}, False, False),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="a shell script is no program on Windows")
def test_the_variables_decide_as_for_ssh(
    program: Path, around: dict[str, str], is_used: bool, is_preferred: bool
) -> None:
    made = Askpass({"SSH_ASKPASS": str(program), **around})
    assert (made.program is not None, made.is_preferred) == (is_used, is_preferred)


def test_a_program_that_is_not_there_asks_nobody() -> None:
    assert Askpass({"SSH_ASKPASS": "/nowhere/askpass", "DISPLAY": ":0"}).program is None


@pytest.mark.parametrize(
    ("does", "answer"),
    [
        ("echo the code", "the code"),
        ("printf 'the code\\r\\nmore\\n'", "the code"),
        ("printf ''", ""),
        ("echo typed; exit 1", None),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="a shell script is no program on Windows")
async def test_it_gets_the_question_as_its_word_and_answers_by_its_output(
    program: Path, tmp_path: Path, does: str, answer: str | None
) -> None:
    (tmp_path / "does").write_text(does)
    made = Askpass({"SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force"})
    assert await made.ask(QUESTION) == answer
    assert (tmp_path / "asked").read_text() == "ada@lab: Welcome\n(ada@lab) Code: "
    assert repr(made) == f"<Askpass {program}, preferred>"


async def test_without_a_program_nobody_is_asked() -> None:
    assert await Askpass({}).ask(QUESTION) is None
