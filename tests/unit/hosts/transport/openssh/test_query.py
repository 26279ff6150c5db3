"""hosts/transport/openssh/query.py: how `ssh -G` is asked, and what its answers and complaints are taken for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kernelbridge.hosts.transport.openssh.query import Question, SshUnusable, config_words, query
from tests.unit.hosts.transport.openssh.around import around

LAB = Question(name="lab", user=None, port=None)


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for ssh that notes how it was called and answers what the test has written into answer.json."""
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable} -S\n"
        "import json, pathlib, sys\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / 'asked.json').write_text(json.dumps(sys.argv[1:]))\n"
        "answer = json.loads((folder / 'answer.json').read_text())\n"
        "print(answer.get('out', ''))\n"
        "print(answer.get('err', ''), file=sys.stderr)\n"
        "sys.exit(answer['code'])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return tmp_path


def answer(folder: Path, code: int, **texts: str) -> None:
    (folder / "answer.json").write_text(json.dumps({"code": code, **texts}))


async def test_the_address_is_given_in_options_and_never_taken_for_one(ssh: Path) -> None:
    answer(ssh, 0, out="host lab\nidentityfile ~/a\nidentityfile ~/b c\ncanonicalizePermittedcnames none\n")
    values = await query(Question(name="lab", user="-oX", port=7), around(ssh))
    asked = json.loads((ssh / "asked.json").read_text())
    assert asked == ["-G", "-l", "-oX", "-p", "7", "--", "lab"]
    assert (values["identityfile"], values["canonicalizepermittedcnames"]) == (["~/a", "~/b c"], ["none"])


def test_a_home_that_ssh_does_not_know_is_named_to_it(tmp_path: Path) -> None:
    place = around(tmp_path, database_home=Path("/elsewhere"))
    assert config_words(place) == ["-F", "none"]
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").touch()
    assert config_words(place) == ["-F", f"{tmp_path}/.ssh/config"]
    assert config_words(around(tmp_path)) == []


@pytest.mark.parametrize(
    "err", ["No user exists for uid 1000810000", "ssh: unknown option -- G", "illegal option -- G"]
)
async def test_an_ssh_that_cannot_be_asked_is_as_good_as_none(ssh: Path, err: str) -> None:
    answer(ssh, 255, err=err)
    with pytest.raises(SshUnusable):
        await query(LAB, around(ssh))


async def test_no_ssh_at_all_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SshUnusable):
        await query(LAB, around(tmp_path))


@pytest.mark.parametrize(
    ("err", "expected"),
    [
        ("Pseudo-terminal will not be allocated\nBad owner or permissions on /home/ada/.ssh/config", "Bad owner or"),
        ("hostname contains invalid characters", "hostname contains invalid characters"),
        ("jumphost loop via lab", "ProxyJump leads to itself"),
        ("", "ended with exit code 255"),
    ],
)
async def test_what_ssh_says_of_the_whole_config_is_told(ssh: Path, err: str, expected: str) -> None:
    answer(ssh, 255, err=err)
    with pytest.raises(ValueError, match=expected):
        await query(LAB, around(ssh))


async def test_a_complaint_that_does_not_go_away_ends_the_asking(ssh: Path) -> None:
    (ssh / ".ssh").mkdir()
    (ssh / ".ssh" / "config").write_text("Host lab\n  Port x\n")
    answer(ssh, 255, err=f"{ssh}/.ssh/config line 2: Bad port 'x'.\nterminating, 1 bad configuration options")
    with pytest.raises(ValueError, match="terminating"):
        await query(LAB, around(ssh))
