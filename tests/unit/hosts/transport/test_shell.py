"""hosts/transport/shell.py: one line that every shell reads alike, and a frame around a command's own output."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from kernelbridge.errors import LinkLost, SshFailed
from kernelbridge.hosts.transport import shell
from kernelbridge.hosts.transport.shell import CommandFrame, FramedStream
from kernelbridge.hosts.transport.stream import Collector, CommandError
from tests.unit.hosts.transport.test_pool import turns

MARK = "0123456789abcdef" * 2
BEGIN, END = f"{MARK}<".encode(), f"{MARK}>7;".encode()

# -- the line


def text_of(argv: Sequence[str], *, stdin: bytes | None = b"", settings: str = "") -> str:
    return shell.script(argv, mark=MARK, stdin=stdin, settings=settings)


def run(
    words: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> tuple[CommandFrame, CommandFrame, bytes]:
    """The frames of what a command here prints, and what is in the first."""
    ended = subprocess.run(words, input=stdin, capture_output=True, check=False, timeout=60, env=env)
    stdout, stderr = CommandFrame(MARK), CommandFrame(MARK)
    inside = stdout.feed(ended.stdout) + stdout.finish()
    stderr.feed(ended.stderr)
    return stdout, stderr, inside


# What a shell takes for its own, in one shell or another.
HARD = [
    "it's",
    'a "b"',
    "$HOME ${x}",
    "`id`",
    "!x !! !$",
    "*?[a]{b,c}~",
    "a\\b\\n\\\\",
    "new\nline\n",
    "",
    "%s%d",
    "é",
    "#;&|<>()",
]
# As the login's shell, and as one that a start-up file has put in its place, which reads its stdin.
SHELLS = ("sh", "dash", "bash", "bash --posix", "zsh", "tcsh", "csh", "fish", "ksh", "mksh", "elvish", "busybox sh")


@pytest.fixture(params=SHELLS)
def words(request: pytest.FixtureRequest) -> list[str]:
    found: list[str] = request.param.split()
    if shutil.which(found[0]) is None:
        pytest.skip(f"no {found[0]} is here; scripts/test installs all")
    return found


@pytest.mark.parametrize("times", [1, 60], ids=["a short line", "a long line"])
def test_every_shell_reads_the_line_alike(words: list[str], times: int) -> None:
    text = text_of(["printf", r"%s\0", *(HARD * times)])
    for asked, stdin in ((words, shell.for_stdin(text)), ([*words, "-c", shell.one_line(text)], b"")):
        stdout, _, inside = run(asked, stdin=stdin)
        assert stdout.exit_code == 0, asked
        assert inside.decode().split("\0")[:-1] == HARD * times


def test_the_longest_stdin_of_a_line_fits_one_argument(words: list[str]) -> None:
    stdin = bytes(shell.INLINE_STDIN_BYTES)
    text = text_of(["cat"], stdin=stdin, settings=shell.settings())
    assert run([*words, "-c", shell.one_line(text)])[2] == stdin


def test_a_login_shell_gets_plain_words_and_sh_gets_the_rest(words: list[str]) -> None:
    stdout, stderr, inside = run(
        [*words, "-c", shell.SHELL_COMMANDS[0]],
        stdin=shell.for_stdin(text_of(["sh", "-c", "cat; echo no >&2; exit 7"], stdin=b"in\0\n")),
    )
    assert (stdout.exit_code, stderr.exit_code, inside) == (7, 7, b"in\0\n")


def test_a_restricted_shell_gets_a_word_without_a_slash() -> None:
    text = shell.for_stdin(text_of(["echo", "x"]))
    assert not run(["rbash", "-c", shell.SHELL_COMMANDS[0]], stdin=text)[0].has_begun
    assert run(["rbash", "-c", shell.SHELL_COMMANDS[1]], stdin=text)[2] == b"x\n"


def test_the_text_that_is_sent_never_has_the_mark() -> None:
    assert MARK not in shell.one_line(text_of(["x"]))
    assert shell.new_mark() != shell.new_mark()


@pytest.mark.parametrize("home", [None, "", "gone"])
def test_a_home_that_a_start_up_file_has_taken_away_is_the_logins_own(home: str | None) -> None:
    env = {"PATH": "/nowhere"} | ({} if home is None else {"HOME": home})
    _, _, inside = run(["/bin/sh", "-c", text_of(["sh", "-c", "echo $HOME; pwd"])], env=env)
    own = os.path.expanduser(f"~{os.environ.get('USER') or 'root'}")  # noqa: PTH111 - pathlib asks HOME
    assert inside.decode().splitlines()[0] == own


def test_commands_are_found_where_the_user_says_and_in_the_usual_places(tmp_path: Path) -> None:
    for place in ("mine", "set", "login"):
        (tmp_path / place).mkdir()
    for place, name in (("mine", "one"), ("set", "one"), ("set", "two"), ("login", "two"), ("login", "three")):
        program = tmp_path / place / name
        program.write_text(f"#!/bin/sh\necho {place}\n")
        program.chmod(0o755)
    login = {"PATH": f"relative::{tmp_path / 'login'}", "DOCKER_HOST": "unix:///it's", "SLURM_CONF": "/etc/s"}
    settings = shell.settings([str(tmp_path / "mine")], login)
    argv = ["sh", "-c", 'one; two; three; echo "$DOCKER_HOST $SLURM_CONF $PATH"']
    env = {"PATH": str(tmp_path / "set"), "HOME": "/h", "SLURM_CONF": "/mine"}
    stdout, _, inside = run(["/bin/sh", "-c", text_of(argv, settings=settings)], env=env)
    *programs, variables = inside.decode().splitlines()
    assert (stdout.exit_code, programs) == (0, ["mine", "set", "login"])
    host, conf, path = variables.split(" ", 2)[0], variables.split(" ", 2)[1], variables.split(" ", 2)[2]
    assert (host, conf) == ("unix:///it's", "/mine")
    assert {"/usr/lib/wsl/lib", "/run/current-system/sw/bin", "/usr/local/nvidia/bin", "/h/.orbstack/bin"} < set(
        path.split(":")
    )
    assert "" not in path.split(":")
    assert "relative" not in path.split(":")


@pytest.mark.parametrize("login_shell", ["bash", "dash", "tcsh", "zsh", "fish"])
def test_a_login_shell_says_what_it_sets(login_shell: str, tmp_path: Path) -> None:
    path = shutil.which(login_shell)
    if path is None:
        pytest.skip(f"no {login_shell} is here; scripts/test installs all")
    (tmp_path / ".profile").write_text("echo PATH=/greeting\nexport PATH=$PATH:/from/profile\n")
    (tmp_path / ".zprofile").write_text("export PATH=$PATH:/from/profile\n")
    (tmp_path / ".login").write_text("setenv PATH ${PATH}:/from/profile\n")
    (tmp_path / ".config/fish").mkdir(parents=True)
    (tmp_path / ".config/fish/config.fish").write_text("status is-login; and set -gx PATH $PATH /from/profile\n")
    env = {"SHELL": path, "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    answer = subprocess.run(["sh", "-c", shell.LOGIN_SHELL_SCRIPT], capture_output=True, env=env, check=False)
    found = shell.parse_variables(answer.stdout.decode())
    assert "/from/profile" in found["PATH"].split(":")
    assert set(found) <= {"PATH", "XDG_RUNTIME_DIR"}


# -- the frame


@pytest.mark.parametrize("size", [1, 2, 3, 16, 33, 34, 1000])
@pytest.mark.parametrize("is_live", [False, True])
def test_a_frame_is_cut_out_wherever_the_bytes_are_split(size: int, is_live: bool) -> None:
    output = bytes(range(256)) + MARK[:20].encode() + b"\0" + BEGIN
    sent = b"/greeting without an end" + BEGIN + output + END + b"a late word"
    frame = CommandFrame(MARK, is_live=is_live)
    inside = b"".join(frame.feed(sent[at : at + size]) for at in range(0, len(sent), size))
    # Of the end's mark a few bytes may have gone through, where it came in pieces.
    assert MARK.encode()[: 7 if is_live else 0].startswith(inside.removeprefix(output))
    assert inside.startswith(output)
    assert (frame.exit_code, frame.before) == (7, b"/greeting without an end")
    assert frame.feed(b"more") == b""


def test_live_output_does_not_wait_for_what_comes_after_it() -> None:
    frame = CommandFrame(MARK, is_live=True)
    frame.feed(BEGIN)
    for count in range(1, 8):
        assert frame.feed(b"x" + MARK[:count].encode()) == b"x" + MARK[:count].encode()
    assert CommandFrame(MARK).feed(BEGIN + b"x" + MARK[:1].encode()) == b"x"


@pytest.mark.parametrize("code", [b"<x>;", b";", b"-1;", b"1234", b"x" * 100_000])
def test_what_is_no_exit_code_behind_the_end_is_no_success_and_is_not_kept(code: bytes) -> None:
    frame = CommandFrame(MARK)
    assert frame.feed(BEGIN + b"x" + END.rpartition(b"7")[0] + code) == b"x"
    assert frame.exit_code == -1
    assert frame.finish() == b""


def test_what_was_kept_back_comes_at_the_end() -> None:
    frame = CommandFrame(MARK)
    assert frame.feed(BEGIN + b"x" + MARK.encode()) == b"x"
    assert frame.finish() == MARK.encode()
    assert repr(frame) == "<CommandFrame within>"


def test_what_a_host_said_is_told_in_one_line() -> None:
    assert shell.said(b"Only git\r\n  here\n", b"\x1b[1mbye\n") == "Only git here  [1mbye".replace("  [", " [")
    assert shell.said(b"x" * 600, b"") == "... " + "x" * 500


# -- the stream


class Raw:
    """The raw stream, which is told what came by the test."""

    def __init__(self) -> None:
        self.written = b""
        self.log: list[str] = []

    def write(self, data: bytes | memoryview) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.log.append("eof")

    def unsent_bytes(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.log.append("pause")

    def resume_reading(self) -> None:
        self.log.append("resume")

    async def drain(self) -> None:
        self.log.append("drain")

    def close(self) -> None:
        self.log.append("close")


def framed(*, has_stderr: bool = True) -> tuple[FramedStream, Raw, Collector]:
    def refusal(words: str) -> Exception:
        return SshFailed.no_command(host="lab", user="ada", words=words)

    raw, collector = Raw(), Collector()
    stream = FramedStream(collector, command="x", mark=MARK, refusal=refusal, has_stderr=has_stderr)
    stream.attach(raw)
    return stream, raw, collector


async def test_nothing_is_written_before_the_command_reads_it() -> None:
    stream, raw, _ = framed()
    stream.write(b"one ")
    stream.write(memoryview(b"two"))
    stream.write_eof()
    assert (raw.written, raw.log, stream.unsent_bytes()) == (b"", [], 7)
    stream.data_received(b"hello" + BEGIN)
    assert (raw.written, raw.log, stream.unsent_bytes()) == (b"one two", ["eof"], 0)
    await stream.drain()


async def test_a_command_ends_when_it_does_and_not_with_what_a_start_up_file_left_running() -> None:
    stream, raw, collector = framed()
    stream.stderr_received(b"noise" + BEGIN + b"no" + END)
    stream.data_received(b"/quota" + BEGIN + b"out" + END + b"bye")
    await asyncio.wait_for(collector.wait_ended(), 5)
    assert bytes(collector.received) == b"out"
    assert isinstance(collector.failure, CommandError)
    assert (collector.failure.exit_code, collector.failure.stderr, stream.exit_code) == (7, "no", 7)
    assert raw.log == ["close"]
    # Of what start-up files print only stdout's may be taken for an answer.
    assert stream.noise == "/quota"


async def test_stderr_may_come_with_the_end_of_the_raw_stream() -> None:
    stream, _, collector = framed(has_stderr=False)
    stream.data_received(BEGIN + b"out" + END)
    noise = f"noise{MARK}<no{MARK}>7;bye"
    stream.closed(CommandError(command="ssh", exit_code=7, stderr=noise))
    await asyncio.wait_for(collector.wait_ended(), 5)
    assert isinstance(collector.failure, CommandError)
    assert (collector.failure.exit_code, collector.failure.stderr) == (7, "no")


async def test_a_host_that_runs_nothing_is_told_with_its_words() -> None:
    stream, _, collector = framed()
    stream.data_received(b"This account is currently not available.\n")
    stream.closed(CommandError(command="x", exit_code=1, stderr=""))
    with pytest.raises(SshFailed, match=r'no command for it: "This account is currently not available\."'):
        await asyncio.wait_for(stream.wait_begun(), 5)
    assert (stream.exit_code, stream.has_begun) == (None, False)
    # Who opens it is told, and not the Receiver too.
    stream.close()
    await turns()
    assert collector.failure is None


@pytest.mark.parametrize(("end", "code"), [(CommandError(command="x", exit_code=-1, stderr=""), -1), (None, -1)])
async def test_a_command_that_is_cut_off_is_no_success(end: Exception | None, code: int) -> None:
    stream, _, collector = framed()
    stream.data_received(BEGIN + b"half")
    stream.closed(end)
    await asyncio.wait_for(collector.wait_ended(), 5)
    assert isinstance(collector.failure, CommandError)
    assert (bytes(collector.received), collector.failure.exit_code) == (b"half", code)


async def test_a_lost_link_stays_one() -> None:
    stream, _, collector = framed()
    stream.closed(LinkLost(host="lab"))
    with pytest.raises(LinkLost):
        await asyncio.wait_for(stream.wait_begun(), 5)
    stream, _, collector = framed()
    stream.data_received(BEGIN)
    stream.closed(LinkLost(host="lab"))
    await asyncio.wait_for(collector.wait_ended(), 5)
    assert isinstance(collector.failure, LinkLost)


def test_a_script_is_called_by_its_name_in_messages() -> None:
    assert shell.name_of(["sh", "-c", "cat /x", "cat", "more"]) == "cat"
    assert shell.name_of(["sh", "-c", "cat /x"]) == "sh"
    assert shell.name_of(["docker", "system"]) == "docker"
