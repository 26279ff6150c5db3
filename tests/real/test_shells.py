"""Logins with other shells than bash, and with start-up files that do all that start-up files do, on a real sshd.

No difference to a silent /bin/sh is the claim; where a host runs nothing, its own words are told.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from kernelbridge import errors
from kernelbridge.config.schema import Environment, Host
from kernelbridge.hosts.docker.engine import open_engine
from kernelbridge.hosts.docker.registry_auth import find_login
from kernelbridge.hosts.gpus.nvidia_smi import Inventory
from kernelbridge.hosts.transport.ssh import Link, open_link
from kernelbridge.hosts.transport.stream import Collector, CommandError
from kernelbridge.kernel.start.preflight import resolve_mounts
from tests.clients.notebook import notebook, write_specs
from tests.clients.refusals import refusal_of_manager
from tests.real.test_engine_ways import echo
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

LAB = Host(name="lab", ssh="lab")
USER = "kbtest"
WORDS = ["it's", 'a "b"', "$HOME", "`id`", "*", "!!", "a\\b", "new\nline", ""]


@asynccontextmanager
async def opened(host: Host = LAB) -> AsyncIterator[Link]:
    async with await open_link(host) as link:
        yield link


async def expect_commands(rig: Rig, link: Link) -> None:
    """Words, stdin, both outputs and the exit code pass unharmed; what we ask a host for is answered."""
    answer = await link.run(
        ["sh", "-c", 'cat; printf "<%s>" "$@"; echo no >&2; exit 7', "sh", *WORDS], stdin=b"i\0n\n", seconds=30
    )
    assert answer.stdout == b"i\0n\n" + b"".join(f"<{word}>".encode() for word in WORDS)
    assert (answer.exit_code, answer.stderr) == (7, b"no\n")
    home = rig.lab.home(USER)
    assert (link.facts.user, link.facts.home, link.facts.uid) == (USER, str(home), 21001)
    assert link.facts.usable_sockets[0].path == "/var/run/docker.sock"
    assert link.facts.has_docker_command
    assert len((await Inventory(link).look()).gpus) == 4


async def expect_streams(link: Link) -> None:
    """What goes to and fro is binary, ends with its reason, and nothing is said between; stdin has any length."""
    sent, collector = os.urandom(300_000), Collector()
    answer = await link.run(["sh", "-c", "cat; exit 3"], stdin=sent, seconds=30)
    assert (answer.exit_code, answer.stdout) == (3, sent)
    # Nobody reads it.
    assert (await link.run(["true"], stdin=os.urandom(5_000_000), seconds=30)).exit_code == 0
    stream = await link.open_command(["sh", "-c", "cat; echo reason >&2; exit 3"], collector)
    stream.write(sent)
    stream.write_eof()
    await asyncio.wait_for(collector.wait_ended(), 60)
    assert bytes(collector.received) == sent
    assert isinstance(collector.failure, CommandError)
    assert (collector.failure.exit_code, collector.failure.stderr) == (3, "reason\n")


# Splits at blanks and knows nothing else: what is plain to it is plain to all.
OWN_SYNTAX = """#!/usr/bin/python3
import os, sys
words = sys.argv[2].split() if sys.argv[1:2] == ["-c"] else ["true"]
os.execvp(words[0], words)
"""
SHELLS = ("/bin/dash", "/bin/tcsh", "/usr/bin/fish", "/bin/zsh", "/bin/rbash", "a shell of its own syntax")


@pytest.mark.parametrize("shell", SHELLS)
async def test_any_login_shell_will_do(rig: Rig, bridge_env: Laptop, shell: str) -> None:
    with ExitStack() as undo:
        undo.enter_context(rig.lab.home_files(USER, {"own-shell": OWN_SYNTAX}))
        own = str(rig.lab.home(USER) / "own-shell")
        undo.enter_context(rig.lab.shell(USER, shell if shell.startswith("/") else own))
        async with opened() as link:
            await expect_commands(rig, link)
            await expect_streams(link)


# The first lines of ~/.bashrc.
START_UP = {
    "prints": "echo '*** Welcome to lab'; echo 'permission denied' >&2",
    "prints a path": "echo '/quota: 3 of 5 GB used'",
    "prints no end of a line": "echo; echo hello; printf '/'; printf 'kernelbridge facts 1' >&2",
    "prints at the end": "trap 'echo bye; echo bye >&2' EXIT",
    "prints a lot": "seq 20000; seq 20000 >&2",
    "goes to zsh": "exec zsh",
    "goes to tcsh": "exec tcsh",
    "goes to dash": "exec dash",
    "is strict": "set -eu; export SHELLOPTS",
    "has names of commands": 'for name in sh printf id cat tr sed; do eval "$name() { echo mine; }"; done\n'
    "alias exec=echo cd=false; export -f sh printf id cat tr sed",
    "asks": "read -r answer; read -r -n 1 key",
    "goes away": "cd /usr; CDPATH=/usr; export CDPATH",
    "has another PATH": "export PATH=/opt/nothing",
    "has no PATH": "unset PATH",
    "has no HOME": "unset HOME",
    "leaves something running": "sleep 300 & (sleep 300 >/dev/null 2>&1 &)",
}


@pytest.mark.parametrize("what", START_UP)
async def test_start_up_files_make_no_difference(rig: Rig, bridge_env: Laptop, what: str) -> None:
    cards = Host(name="lab", ssh="lab", path=(str(rig.engine.gpus.folder),))
    with rig.lab.home_files(USER, {".bashrc": START_UP[what] + "\n"}):
        async with opened(cards if "PATH" in what else LAB) as link:
            await expect_commands(rig, link)
            await expect_streams(link)


@pytest.mark.parametrize("text", ["exec fish", "cat >/dev/null"], ids=["reads all before it runs", "reads all"])
async def test_commands_get_through_where_no_stream_can(rig: Rig, bridge_env: Laptop, text: str) -> None:
    with rig.lab.home_files(USER, {".bashrc": text + "\n"}):
        async with opened() as link:
            await expect_commands(rig, link)
            streams = link.open_command(["cat"], Collector()), link.run(["cat"], stdin=bytes(300_000), seconds=30)
            for answer in await asyncio.gather(*streams, return_exceptions=True):
                assert isinstance(answer, errors.SshFailed)
                assert "a start-up file of the login, such as ~/.bashrc" in answer.sentence


async def test_start_up_files_have_a_limit_of_their_own(rig: Rig, bridge_env: Laptop) -> None:
    with rig.lab.home_files(USER, {".bashrc": "sleep 2\n"}):
        async with opened() as link:
            assert link.shell_seconds >= 2
            assert (await link.run(["echo", "x"], seconds=1)).stdout == b"x\n"
    with rig.lab.home_files(USER, {".bashrc": "sleep 100\n"}), pytest.raises(errors.HostUnreachable) as caught:
        await open_link(Host(name="lab", ssh="lab", login_seconds=2))
    assert caught.value.sentence.endswith("cannot be reached (its login shell was not ready in 2 s).")
    assert caught.value.remedy == "Make its start-up files faster, or raise `login_seconds` of [hosts.lab]."


# -- a host that runs nothing


async def words_of(host: Host = LAB) -> str:
    with pytest.raises(errors.SshFailed) as caught:
        await open_link(host)
    assert "ssh -v" not in caught.value.remedy
    assert "Log in there once" in caught.value.remedy
    said = caught.value.sentence
    assert said.startswith("lab: SSH failed (the login as kbtest was accepted, but the host runs no command for it")
    return said


async def test_a_host_that_runs_nothing_is_told_in_its_own_words(rig: Rig, bridge_env: Laptop) -> None:
    with rig.lab.shell(USER, "/usr/sbin/nologin"):
        assert '"This account is currently not available."' in await words_of()
    with rig.sshd.configured('ForceCommand echo "Only git here"; echo "(ask Ada)" >&2; exit 1'):
        assert '"Only git here (ask Ada)"' in await words_of()
    with rig.sshd.configured("ForceCommand internal-sftp"):
        await words_of()
    with rig.sshd.configured("ChrootDirectory /run/sshd"):
        assert "No such file or directory" in await words_of()
    with rig.lab.home_files(USER, {".bashrc": "echo 'Your quota is used up.'; exit 1\n"}):
        assert '"Your quota is used up."' in await words_of()
    with other_etc(rig) as etc:
        (etc / "nologin").write_text("Maintenance until noon.\n")
        assert 'Maintenance until noon."' in await words_of()


@contextmanager
def other_etc(rig: Rig) -> Iterator[Path]:
    """Let the lab have a copy of its /etc, in which files can be made: other labs have the same one."""
    copy = rig.lab.path / "etc-copy"
    rig.lab.run(["cp", "-a", "/etc", str(copy)])
    rig.lab.run(["mount", "--bind", str(copy), "/etc"])
    try:
        yield copy
    finally:
        rig.lab.run(["umount", "/etc"])
        rig.lab.run(["rm", "-r", str(copy)])


async def test_a_host_that_hangs_up_after_the_login_is_told(rig: Rig, bridge_env: Laptop) -> None:
    # A folder that sshd does not trust: it says so in its log alone.
    with rig.sshd.configured("ChrootDirectory /tmp"), pytest.raises(errors.HostUnreachable) as caught:
        await open_link(LAB)
    assert "accepted the login as kbtest and then closed the connection" in caught.value.sentence
    assert "the log of its sshd" in caught.value.remedy


async def test_an_expired_password_is_told(rig: Rig, bridge_env: Laptop) -> None:
    shadow = rig.lab.path / "etc/shadow"
    before = shadow.read_text()
    shadow.write_text(before.replace(f"{USER}:*:19000:", f"{USER}:*:0:"))
    try:
        with rig.sshd.configured("UsePAM yes"):
            said = await words_of()
    finally:
        shadow.write_text(before)
    assert "password has expired" in said


# -- what goes over commands


async def test_the_engine_by_command_and_the_registrys_helper_are_heard_behind_a_greeting(
    rig: Rig, bridge_env: Laptop
) -> None:
    helper = '#!/bin/sh\nread -r r\nprintf \'{"ServerURL":"%s","Username":"ada","Secret":"s3"}\' "$r"\n'
    greeting = "echo '{\"quota\": 3}'; echo permission denied >&2\n"
    files = {
        ".cshrc": greeting,
        ".docker/config.json": '{"credHelpers": {"registry.lab": "kbx"}}',
        "bin/docker-credential-kbx": helper,
    }
    with rig.lab.home_files(USER, files), rig.lab.shell(USER, "/bin/tcsh"), rig.sshd.streamlocal_forbidden():
        async with opened() as link, await open_engine(link, LAB) as engine:
            assert engine.about.transport == "docker system dial-stdio"
            await echo(engine, rig)
            told = (await find_login(link, "registry.lab/private:1")).credentials
    assert told == {"username": "ada", "password": "s3", "serveraddress": "registry.lab"}


def test_a_mount_is_where_its_links_lead_whatever_a_shell_prints(rig: Rig, bridge_env: Laptop) -> None:
    home = rig.lab.home(USER)
    with (
        rig.lab.home_files(USER, {".cshrc": "echo '/quota: 3 of 5 GB used'\n", "data/file": "here"}),
        rig.lab.shell(USER, "/bin/tcsh"),
    ):
        (home / "link").symlink_to("data")
        (home / "rootlink").symlink_to("/")
        try:
            bridge_env.write_environment(rig.image, mounts=["~/link:/data:ro"])
            write_specs(bridge_env)
            with notebook(bridge_env) as kernel:
                assert kernel.value("open('/data/file').read()") == "here"
                (container,) = rig.engine.kernels()
                (bind,) = [one for one in container.attrs["HostConfig"]["Mounts"] if one["Target"] == "/data"]
                assert bind["Source"] == str(home / "data")
            bridge_env.write_environment(rig.image, mounts=["~/rootlink:/data:ro"])
            refused = refusal_of_manager(bridge_env)
        finally:
            (home / "link").unlink()
            (home / "rootlink").unlink()
    assert type(refused) is errors.ConfigInvalid
    assert "the whole host (/) may not be mounted" in refused.sentence


async def test_a_link_that_changes_after_the_check_is_followed_anew_before_the_mount(
    rig: Rig, bridge_env: Laptop
) -> None:
    environment = Environment.model_validate({"name": "t", "image": "x", "mounts": ["~/turned:/data"]})
    home = rig.lab.home(USER)
    with rig.lab.home_files(USER, {"data/file": "here"}):
        async with opened() as link, await open_engine(link, LAB) as engine:
            try:
                (home / "turned").symlink_to("data")
                (first,) = await resolve_mounts(environment, engine)
                assert first.source == str(home / "data")
                (home / "turned").unlink()
                (home / "turned").symlink_to("/")
                with pytest.raises(errors.ConfigInvalid, match="the whole host"):
                    await resolve_mounts(environment, engine)
            finally:
                (home / "turned").unlink()


# -- where things are


async def test_cards_are_found_by_a_login_shells_path(rig: Rig, bridge_env: Laptop) -> None:
    bare = 'SetEnv PATH="/usr/bin:/bin"'
    with rig.sshd.configured(bare):
        async with opened() as link:
            assert (await Inventory(link).look()).gpus == ()
        with rig.lab.home_files(USER, {".profile": f"echo PATH=/greeting; PATH=$PATH:{rig.engine.gpus.folder}\n"}):
            async with opened() as link:
                assert len((await Inventory(link).look()).gpus) == 4
        async with opened(Host(name="lab", ssh="lab", path=(str(rig.engine.gpus.folder),))) as link:
            assert len((await Inventory(link).look()).gpus) == 4


async def test_the_engine_is_that_of_the_hosts_own_context(rig: Rig, bridge_env: Laptop) -> None:
    def files(endpoint: str) -> dict[str, str]:
        meta = (
            f'{{"Name":"mine","Metadata":{{}},"Endpoints":{{"docker":{{"Host":"{endpoint}","SkipTLSVerify":false}}}}}}'
        )
        return {".docker/config.json": '{"currentContext": "mine"}', ".docker/contexts/meta/abc/meta.json": meta}

    with rig.lab.home_files(USER, files(f"unix://{rig.engine.socket}")):
        async with opened() as link, await open_engine(link, LAB) as engine:
            assert engine.about.socket == str(rig.engine.socket)
    # A context that leads nowhere: the first of the usual sockets that answers.
    with rig.lab.home_files(USER, files("unix:///nowhere.sock")):
        async with opened() as link, await open_engine(link, LAB) as engine:
            assert engine.about.socket == "/var/run/docker.sock"


def test_the_made_shells_are_here() -> None:
    """The tests above would not be of what they say they are."""
    for shell in SHELLS[:-1]:
        assert Path(shell).exists(), f"{shell} is missing; scripts/test installs it"
