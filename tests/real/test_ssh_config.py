"""Configs, keys and proxies as people have them: we are let in where OpenSSH's own client is, or told why not.

Each config is tried with `ssh lab true`, by a link that asks that `ssh`, and by one on a machine without any `ssh`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from kernelbridge import errors
from kernelbridge.config.schema import Host
from kernelbridge.hosts.transport import dial, host_keys
from kernelbridge.hosts.transport.ssh import open_link
from tests.rig.daemon import run, wait_until
from tests.rig.laptop import Laptop
from tests.rig.sshd import make_key
from tests.rig.whole import Rig

LAB = Host(name="lab", ssh="lab")
CAT = """
import os, select, socket, sys
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
ends = {0: peer.fileno(), peer.fileno(): 1}
while True:
    for ready in select.select(list(ends), [], [])[0]:
        if not (data := os.read(ready, 65536)):
            sys.exit()
        while data:
            data = data[os.write(ends[ready], data):]
"""


@dataclass
class Desk:
    """One user's ssh folder, and an agent that holds the key that logs in."""

    rig: Rig
    laptop: Laptop
    # The key is not among ssh's default names.
    good: Path
    agent: Path
    without_ssh: Path

    @property
    def ssh_folder(self) -> Path:
        return self.laptop.ssh_folder

    def configure(self, *block: str, front: tuple[str, ...] = (), known_hosts: str = "DIR/known_hosts") -> None:
        """Write the config: `front`, then the block of `lab`, with these lines in front."""
        sshd = self.rig.sshd
        usual = (f"HostName {sshd.address}", f"Port {sshd.port}", "User kbtest", f"UserKnownHostsFile {known_hosts}")
        text = "\n".join([*front, "Host lab", *(f"  {line}" for line in (*block, *usual)), ""])
        (self.ssh_folder / "config").write_bytes(self.fill(text).encode("utf-8", "surrogateescape"))

    def fill(self, text: str) -> str:
        return text.replace("DIR", str(self.ssh_folder)).replace("AGENT", str(self.agent))

    def ssh_enters(self) -> bool:
        """Whether OpenSSH's own client is let in with this config."""
        words = self.laptop.ssh("lab", "true", options=["-o", "ConnectTimeout=20"])
        ended = subprocess.run(words, env=dict(os.environ), stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return ended.returncode == 0


@pytest.fixture(scope="module")
def module_desk(rig: Rig, module_env: Laptop) -> Iterator[Desk]:
    """What all tests of the file share: keys of all kinds, a real agent, a PATH without ssh."""
    folder = module_env.ssh_folder
    for name in ("id_ed25519", "id_ed25519.pub"):
        (folder / name).rename(folder / name.replace("id_ed25519", "good"))
    good = folder / "good"
    shutil.copy(folder / "good.pub", folder / "id_lab.pub")
    shutil.copy(folder / "good.pub", folder / "absent2.pub")
    (folder / "lab.ppk").write_text("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nPublic-Lines: 1\nAAAA\n")
    (folder / "garbage").write_bytes(b"\x00\xff\xfenothing\n")
    make_key(folder / "other")
    for name, words in {"locked": ["-N", "secret"], "locked-alone": ["-N", "secret"]}.items():
        shutil.copy(good, folder / name)
        (folder / name).chmod(0o600)
        run(["ssh-keygen", "-q", "-p", "-P", "", *words, "-f", folder / name])
    bin_folder = module_env.home / "bin"
    bin_folder.mkdir()
    netcat = bin_folder / "nc"
    netcat.write_text(f"#!{sys.executable} -S{CAT}")
    netcat.chmod(0o755)
    without_ssh = module_env.home / "bin-without-ssh"
    without_ssh.mkdir()
    for program in ("bash", "sh", "sleep", "true", "false", "test", "env", "cat", "seq"):
        (without_ssh / program).symlink_to(shutil.which(program) or f"/bin/{program}")
    (without_ssh / "nc").symlink_to(netcat)
    agent = module_env.home / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(agent)], stdout=subprocess.DEVNULL)
    try:
        wait_until(agent.exists, "the agent to listen", 10)
        run(["ssh-add", "-q", good], env={**os.environ, "SSH_AUTH_SOCK": str(agent)})
        yield Desk(rig=rig, laptop=module_env, good=good, agent=agent, without_ssh=without_ssh)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def desk(module_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The same, with the agent in the environment."""
    monkeypatch.setenv("SSH_AUTH_SOCK", str(module_desk.agent))
    monkeypatch.setenv("PATH", f"{module_desk.laptop.home / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SHELL", "/bin/bash")
    monkeypatch.delenv("PROXYFLAG", raising=False)
    return module_desk


@dataclass
class Reader:
    """kernelbridge's side: on a machine with OpenSSH's client, or without."""

    desk: Desk
    has_ssh: bool

    @contextmanager
    def path(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as around:
            if not self.has_ssh:
                around.setenv("PATH", str(self.desk.without_ssh))
            yield

    async def enter(self, host: Host = LAB) -> str:
        """Log in; who we are there."""
        with self.path():
            async with await open_link(host) as link:
                return link.facts.user

    async def expect_entry(self) -> None:
        """Let in, as OpenSSH's client is."""
        assert not self.has_ssh or self.desk.ssh_enters()
        assert await self.enter() == "kbtest"

    async def refusal(self, host: Host = LAB) -> errors.KernelBridgeError:
        with self.path(), pytest.raises(errors.KernelBridgeError) as caught:
            await open_link(host)
        return caught.value


@pytest.fixture(params=[True, False], ids=["asking ssh", "without ssh"])
def reader(request: pytest.FixtureRequest, desk: Desk) -> Reader:
    """Each test both ways."""
    return Reader(desk=desk, has_ssh=request.param)


# -- keys

KEYS = {
    "an absent file": ("IdentityFile DIR/absent",),
    "a public half": ("IdentityFile DIR/id_lab.pub",),
    "a public half alone": ("IdentityFile DIR/id_lab.pub", "IdentitiesOnly yes"),
    "a PuTTY key first": ("IdentityFile DIR/lab.ppk", "IdentityFile DIR/good", "IdentityAgent none"),
    "an absent file with its public half": ("IdentityFile DIR/absent2", "IdentitiesOnly yes"),
    "the agent by name": ("IdentityAgent SSH_AUTH_SOCK",),
    "the agent by variable": ("IdentityAgent $SSH_AUTH_SOCK",),
    "the agent by braces": ("IdentityAgent ${SSH_AUTH_SOCK}",),
    "the agent by path": ("IdentityAgent AGENT",),
    "an absent certificate": ("IdentityFile DIR/good", "CertificateFile DIR/gone-cert.pub", "IdentityAgent none"),
    "garbage first": ("IdentityFile DIR/garbage", "IdentityFile DIR/good", "IdentitiesOnly yes"),
    "a folder first": ("IdentityFile DIR", "IdentityFile DIR/good"),
    "another key first": ("IdentityFile DIR/other", "IdentityFile DIR/good", "IdentitiesOnly yes"),
    "a locked key that the agent holds": ("IdentityFile DIR/locked", "IdentitiesOnly yes"),
    "no agent": ("IdentityAgent none", "IdentityFile DIR/good"),
    "an agent that is gone": ("IdentityAgent DIR/none.sock", "IdentityFile DIR/good"),
    "a path with tokens": ("IdentityFile DIR/%%%r", "IdentityFile ${KEYS}/good", "IdentityAgent none"),
    "a quoted path with a blank": ('IdentityFile "DIR/a key"', "IdentityAgent none"),
    "no file at all": ("IdentityFile none",),
    "publickey preferred": ("PreferredAuthentications publickey", "IdentityFile DIR/good"),
}


@pytest.mark.parametrize("case", KEYS)
async def test_a_key_opens_the_door_as_it_does_for_ssh(
    desk: Desk, reader: Reader, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYS", str(desk.ssh_folder))
    shutil.copy(desk.good, desk.ssh_folder / "a key")
    desk.configure(*KEYS[case])
    await reader.expect_entry()


async def test_a_refusal_names_the_keys_and_why_others_were_not_offered(desk: Desk, reader: Reader) -> None:
    desk.configure(
        "IdentityFile DIR/absent",
        "IdentityFile DIR/lab.ppk",
        "IdentityFile DIR/locked",
        "IdentityFile DIR/other",
        "CertificateFile DIR/gone-cert.pub",
        "IdentityAgent none",
        "BatchMode yes",
    )
    assert not desk.ssh_enters()
    exc = await reader.refusal()
    assert type(exc) is errors.LoginRefused
    assert exc.sentence == (
        "lab: the login as kbtest was refused (offered: ~/.ssh/other; skipped: "
        "~/.ssh/gone-cert.pub (not there), ~/.ssh/absent (not there), ~/.ssh/lab.ppk (not a key that OpenSSH reads), "
        "~/.ssh/locked (it has a passphrase, and the agent does not hold it))."
    )
    desk.configure("IdentityFile DIR/locked", "IdentityAgent none")
    asked = "lab: the login as kbtest asks a person `Enter passphrase for key '~/.ssh/locked':`"
    assert (await reader.refusal()).sentence == f"{asked}, and nobody was there to answer."


async def test_without_any_key_the_refusal_says_so(desk: Desk, reader: Reader) -> None:
    desk.configure("IdentityAgent none")
    assert (await reader.refusal()).sentence == "lab: the login as kbtest was refused (no key was offered)."
    desk.configure("PubkeyAuthentication no", "IdentityFile DIR/good")
    assert not desk.ssh_enters()
    assert "skipped: all keys (PubkeyAuthentication is off)" in (await reader.refusal()).sentence


async def test_a_certificate_opens_the_door_with_the_agents_key_and_with_the_files(desk: Desk, reader: Reader) -> None:
    authority, folder = desk.ssh_folder / "user-ca", desk.ssh_folder
    make_key(authority)
    make_key(folder / "certified")
    run(["ssh-keygen", "-q", "-s", authority, "-I", "x", "-n", "kbtest", folder / "certified.pub"])
    trusted = desk.rig.sshd.folder / "user-ca.pub"
    shutil.copy(authority.with_suffix(".pub"), trusted)
    with desk.rig.sshd.configured(f"TrustedUserCAKeys {trusted}"):
        desk.configure("IdentityFile DIR/certified", "IdentityAgent none")
        await reader.expect_entry()
        shutil.move(folder / "certified-cert.pub", folder / "elsewhere.pub")
        desk.configure("IdentityFile DIR/certified", "CertificateFile DIR/elsewhere.pub", "IdentityAgent none")
        await reader.expect_entry()
        run(["ssh-add", "-q", folder / "certified"])
        (folder / "certified").unlink()
        desk.configure("IdentityFile DIR/certified", "CertificateFile DIR/elsewhere.pub", "IdentitiesOnly yes")
        await reader.expect_entry()
        run(["ssh-add", "-q", "-d", folder / "certified.pub"])


async def test_a_key_that_is_accepted_is_told_from_one_that_is_refused(desk: Desk, reader: Reader) -> None:
    desk.configure("IdentityFile DIR/good", "ControlPath DIR/cm-%C", "BatchMode yes")
    wanted = ("AuthenticationMethods publickey,keyboard-interactive", "UsePAM yes", "KbdInteractiveAuthentication yes")
    with desk.rig.sshd.configured(*wanted):
        exc = await reader.refusal()
    assert type(exc) is errors.LoginRefused
    key = "~/.ssh/good (agent)"
    assert exc.sentence == f"lab: the key {key} was accepted for kbtest, but the host wants keyboard-interactive too."
    assert "cannot share an open connection of `ssh` (ControlPath)" in exc.remedy


async def test_a_config_that_prefers_other_ways_is_named(desk: Desk, reader: Reader) -> None:
    desk.configure("PreferredAuthentications password,keyboard-interactive", "IdentityFile DIR/good")
    assert not desk.ssh_enters()
    assert "all keys (PreferredAuthentications has no publickey)" in (await reader.refusal()).sentence


async def test_too_many_keys_are_told_with_what_helps(desk: Desk, reader: Reader) -> None:
    desk.configure("IdentityFile DIR/other", "IdentityAgent none")
    with desk.rig.sshd.configured("MaxAuthTries 1"):
        exc = await reader.refusal()
    assert type(exc) is errors.LoginRefused
    assert "after too many keys (offered: ~/.ssh/other)" in exc.sentence
    assert "IdentitiesOnly yes" in exc.remedy


# -- configs

# In front of the host's block, and in it.
CONFIGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a comment behind a value": (("Host *", "  Compression no # off"), ()),
    "times with units": (("Host *", "  ConnectTimeout 10s", "  ServerAliveInterval 1m"), ()),
    "an include that meets a binary file": (("Include DIR/config.d/*",), ()),
    "a comment that is not UTF-8": (("# B\udcfcro",), ("# B\udcfcro",)),
    "a bad line of another host": (("Host other", "  Port xx", "  Nonsense yes", "  ConnectTimeout x"), ()),
    "a bad line of another host in an included file": (("Include DIR/config.d/*.bad",), ()),
    "an open quote of another host": (("Host other", '  IdentityFile "DIR/x'), ()),
    "a bad Match": (("Match sessiontypes shell", "  RemoteCommand tmux", "  Nonsense yes", "Match all"), ()),
    "Match exec": (('Match host lab exec "test %n = lab"', "  User kbtest", "Host *", "  User nobody"), ()),
    "Match exec that fails": (('Match originalhost lab exec "false"', "  User nobody"), ()),
    "Match user": (
        ("Host lab", "  User kbtest", "Match user ada,root", "  Port 1", "Match user kb*", "  Compression yes"),
        (),
    ),
    "negations": (("Host * !lab", "  Port 1", "Match !host lab", "  Port 2", "Host l?b", "  User kbtest"), ()),
    "equal signs and quotes": ((), ('User="kbtest"', "ConnectTimeout = 15", "compression=no")),
    "an include in a block": ((), ("Include DIR/config.d/in-lab", "ConnectTimeout 15")),
    "commands that are not ours": ((), ("RemoteCommand tmux", "RequestTTY no", "SetEnv A=B", "SendEnv LC_*")),
    "algorithms put in front": (
        (),
        ("Ciphers ^aes256-ctr", "MACs -hmac-sha1*", "KexAlgorithms +diffie-hellman-group14-sha1"),
    ),
    "algorithms added": ((), ("HostKeyAlgorithms +ssh-rsa", "PubkeyAcceptedAlgorithms +ssh-rsa")),
    "algorithms that only OpenSSH has": (
        (),
        ("Ciphers aes128-ctr,chacha20-poly1305@openssh.com", "MACs umac-64@openssh.com,hmac-sha2-256"),
    ),
    "compression": ((), ("Compression yes",)),
    "an address family": ((), ("AddressFamily inet", "BindAddress 0.0.0.0", "TCPKeepAlive no")),
    "no escape from the agent": ((), ("ForwardAgent yes", "ForwardX11 yes", "GSSAPIAuthentication yes")),
    "names to be made canonical": ((), ("CanonicalizeHostname yes", "CanonicalDomains invalid")),
}
# What OpenSSH refuses for a line of another host is let in by us.
OURS = {name for name in CONFIGS if name.startswith(("a bad", "an open quote"))} | {"commands that are not ours"}


@pytest.mark.parametrize("case", CONFIGS)
async def test_a_config_leads_in_as_it_does_for_ssh(desk: Desk, reader: Reader, case: str) -> None:
    more = desk.ssh_folder / "config.d"
    more.mkdir(exist_ok=True)
    (more / ".lab.swp").write_bytes(b"b0VIM 9.0\0\0\xff\xfe\x00junk\n")
    (more / "x.bad").write_text(f"Host other\n  Port zzz\nHost third\n  Include {more}/y.worse\n")
    (more / "y.worse").write_text("AddressFamily seven\n")
    (more / "in-lab").write_text("User kbtest\nHost lab\n  Port 2222\nHost nobody\n  Port 1\n")
    if case == "an include that meets a binary file":
        for name in ("x.bad", "y.worse", "in-lab"):
            (more / name).unlink()
    front, block = CONFIGS[case]
    desk.configure(*block, "IdentityFile DIR/good", front=front)
    if case not in OURS and reader.has_ssh:
        assert desk.ssh_enters()
    assert await reader.enter() == "kbtest"


BAD_LINES = {
    "a port": ("Port twenty-two", "wenty-two"),
    "a keyword": ("IdentitiyFile ~/.ssh/x", "identitiyfile"),
    "a time": ("ConnectTimeout soon", ""),
    "a switch": ("IdentitiesOnly perhaps", ""),
    "a quote": ('IdentityFile "~/.ssh/x', ""),
    "no value": ("User", ""),
}


@pytest.mark.parametrize("case", BAD_LINES)
async def test_a_bad_line_of_the_host_itself_is_named_with_its_file(desk: Desk, reader: Reader, case: str) -> None:
    line, words = BAD_LINES[case]
    desk.configure(line, front=("Host other", "  Port yy", "Include DIR/absent/*", ""))
    assert not desk.ssh_enters()
    if case == "a keyword" and not reader.has_ssh:
        # There it may be one that only a newer OpenSSH has.
        assert await reader.enter() == "kbtest"
        return
    exc = await reader.refusal()
    assert type(exc) is errors.SshConfigInvalid
    assert f"{desk.ssh_folder}/config line 6: " in exc.sentence
    assert words in exc.sentence
    (desk.ssh_folder / "more").write_text(f"\n{line}\n")
    desk.configure("Include DIR/more")
    assert f"{desk.ssh_folder}/more line 2: " in (await reader.refusal()).sentence


async def test_a_config_that_waits_is_given_up_with_what_it_waits_for(desk: Desk, reader: Reader) -> None:
    began = asyncio.get_running_loop().time()
    desk.configure("IdentityFile DIR/good", front=('Match host lab exec "sleep 60"', "  Port 1"))
    exc = await reader.refusal(LAB.model_copy(update={"login_seconds": 1}))
    assert asyncio.get_running_loop().time() - began < 30
    assert type(exc) is errors.HostUnreachable
    assert "its ssh config was not read in 1 s; is the command of a `Match exec` waiting?" in exc.sentence


# -- proxies

PROXIES = {
    "a redirection": "nc %h %p 2>/dev/null",
    "a home": "~/ctbin/proxy %h %p",
    "a default value": "nc ${PROXYFLAG:-%h} %p",
    "an exec": "exec nc %h %p",
    "a shell": 'sh -c "sleep 0.1; exec nc %h %p"',
    "tokens": "sh -c 'test %r-%n-%% = kbtest-lab-%% && exec nc %h %p'",
    "a pipe": "nc %h %p | cat",
    "quotes": "nc '%h' \"%p\" # to it",
    "much on stderr": "sh -c 'for i in $(seq 3000); do echo $i; done >&2; exec nc %h %p'",
}


@pytest.mark.parametrize("case", PROXIES)
async def test_a_proxy_command_leads_there_as_it_does_for_ssh(
    desk: Desk, reader: Reader, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy = desk.laptop.home / "ctbin" / "proxy"
    proxy.parent.mkdir(exist_ok=True)
    proxy.write_text('#!/bin/sh\nexec nc "$1" "$2"\n')
    proxy.chmod(0o755)
    desk.configure(f"ProxyCommand {PROXIES[case]}", "IdentityFile DIR/good")
    # ssh puts an exec before it, and bash refuses a second one.
    if case != "an exec" and reader.has_ssh:
        assert desk.ssh_enters()
    assert await reader.enter() == "kbtest"
    assert capfd.readouterr() == ("", "")


async def test_a_proxy_command_ends_with_its_link(desk: Desk) -> None:
    desk.configure("ProxyCommand nc %h %p | cat", "IdentityFile DIR/good")
    async with await open_link(LAB) as link:
        assert (await link.run(["echo", "there"], seconds=20)).stdout == b"there\n"
        assert len(netcats()) == 1
    await asyncio.to_thread(wait_until, lambda: not netcats(), "the ProxyCommand to end", 10)


def netcats() -> list[psutil.Process]:
    """The ProxyCommands that run now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(word.endswith("/nc") for word in process.cmdline()):
                found.append(process)
    return found


async def test_a_proxy_command_that_fails_is_told_with_its_own_words(
    desk: Desk, reader: Reader, capfd: pytest.CaptureFixture[str]
) -> None:
    desk.configure("ProxyCommand cloudflaredx access ssh --hostname %h")
    exc = await reader.refusal()
    assert type(exc) is errors.SshConfigInvalid
    command = f"cloudflaredx access ssh --hostname {desk.rig.sshd.address}"
    assert f"ProxyCommand `{command}` needs cloudflaredx, which is not installed" in exc.sentence
    assert exc.remedy.startswith("Install cloudflaredx here")
    desk.configure("ProxyCommand sh -c 'echo gate closed >&2; exit 3'")
    exc = await reader.refusal()
    assert type(exc) is errors.HostUnreachable
    assert "ended with exit code 3: gate closed)" in exc.sentence
    desk.configure("ProxyCommand sh -c 'echo open https://gate >&2; sleep 60'")
    exc = await reader.refusal(LAB.model_copy(update={"login_seconds": 1}))
    assert "(no login in 1 s; its ProxyCommand `sh -c 'echo open" in exc.sentence
    assert ": open https://gate)" in exc.sentence
    assert "raise `login_seconds` of [hosts.lab]" in exc.remedy
    assert capfd.readouterr() == ("", "")


async def test_a_key_is_fetched_and_trusted_through_a_proxy_command(desk: Desk, reader: Reader) -> None:
    desk.configure("ProxyCommand nc %h %p", "IdentityFile DIR/good", known_hosts="DIR/fresh")
    (desk.ssh_folder / "fresh").unlink(missing_ok=True)
    assert type(await reader.refusal()) is errors.HostKeyUnknown
    with reader.path():
        key = await dial.fetch_key(LAB)
    host_keys.remember(LAB, key)
    await reader.expect_entry()


async def test_connect_timeout_is_for_the_connection(desk: Desk, reader: Reader) -> None:
    desk.configure("ConnectTimeout 1", "HostName 127.0.0.1", f"Port {desk.rig.proxy.port}", "IdentityFile DIR/good")
    with desk.rig.proxy.blackhole():
        exc = await reader.refusal()
    assert type(exc) is errors.HostUnreachable
    assert "no answer in 1 s, its ConnectTimeout" in exc.sentence


# -- jump hosts

JUMPS = {
    "one with a block of its own": "ProxyJump j1",
    "a user and tokens": "ProxyJump %r@j1",
    "several": "ProxyJump j1,kbtest@j2,ssh://j1",
    "one behind a ProxyCommand": "ProxyJump j3",
    "one behind another": "ProxyJump j4",
    "none": "ProxyJump none",
}


@pytest.mark.parametrize("case", JUMPS)
async def test_jump_hosts_are_taken_as_ssh_takes_them(desk: Desk, reader: Reader, case: str) -> None:
    sshd = desk.rig.sshd
    far = ("HostName 127.0.0.1", f"Port {sshd.port}", "HostKeyAlias far", "IdentityFile DIR/good")
    near = (f"  HostName {sshd.address}", f"  Port {sshd.port}")
    desk.configure(
        JUMPS[case],
        *(far if case != "none" else ("IdentityFile DIR/good",)),
        front=(
            *("Host j1", *near, f"  HostKeyAlias [{sshd.address}]:{sshd.port}"),
            *("Host j2", "  HostName 127.0.0.1", f"  Port {sshd.port}", "  HostKeyAlias far"),
            *("Host j3", *near, "  ProxyCommand nc %h %p"),
            *("Host j4", "  HostName 127.0.0.1", f"  Port {sshd.port}", "  HostKeyAlias far", "  ProxyJump j1"),
            *("Host j*", "  UserKnownHostsFile DIR/known_hosts", "  IdentityFile DIR/good", "  User kbother"),
        ),
    )
    known = desk.ssh_folder / "known_hosts"
    if "far " not in known.read_text():
        known.write_text(f"{known.read_text()}far {sshd.host_key}\n")
    await reader.expect_entry()


# -- known_hosts

OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE0yVnBIqO3VbPcJ0CkJ0m0n1w6f8h9W2mH4uQ0o1a2b"
# What known_hosts has, and more of the config; AT is `[address]:port`, ADDRESS the address, KEY the host's key.
KNOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("AT KEY comment\n", ()),
    "hashed": ("HASHED", ()),
    "a wildcard": ("[198.*]:*,!other KEY\n", ()),
    "without the port": ("ADDRESS KEY\n", ()),
    "an alias": ("labs-key KEY\n", ("HostKeyAlias Labs-Key",)),
    "in the third file": ("AT KEY\n", ("UserKnownHostsFile DIR/none DIR/revoked DIR/tried",)),
    "in a path with a blank": ("", ('UserKnownHostsFile "DIR/two words"',)),
    "in the machine's file": ("", ("UserKnownHostsFile none", "GlobalKnownHostsFile DIR/more")),
    "from a command": ("", ("KnownHostsCommand /bin/cat DIR/more",)),
    "after lines that are none": (
        "\udcff\udcfe\nAT\n@odd AT KEY\nAT ssh-ed25519 AAAA\nAT new AAAA\n\nAT KEY\n",
        (),
    ),
    "beside another": (f"AT {OTHER}\nAT KEY\n", ()),
    "where addresses are checked": ("AT KEY\n", ("CheckHostIP yes",)),
}
UNKNOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "nothing": ("", ()),
    "another name": ("[198.1.1.1]:2222 KEY\n", ()),
    "a comment": ("# AT KEY\n", ()),
    "a revoked key": ("AT KEY\n@revoked * KEY\n", ()),
    "a key of a list of revoked ones": ("AT KEY\n", ("RevokedHostKeys DIR/revoked",)),
    "an alias that is not there": ("AT KEY\n", ("HostKeyAlias labs-key",)),
    "another key": (f"AT {OTHER}\n", ()),
    "an authority that has signed nothing of it": (f"@cert-authority * {OTHER}\n", ()),
}


def know(desk: Desk, case: tuple[str, tuple[str, ...]]) -> None:
    sshd = desk.rig.sshd
    at = f"[{sshd.address}]:{sshd.port}"
    text, lines = case
    for name in ("more", "two words"):
        (desk.ssh_folder / name).write_text(f"{at} {sshd.host_key}\n")
    (desk.ssh_folder / "revoked").write_text(f"{sshd.host_key}\n")
    tried = desk.ssh_folder / "tried"
    filled = text.replace("HASHED", "AT KEY\n").replace("ADDRESS", sshd.address).replace("AT ", f"{at} ")
    filled = filled.replace("KEY", sshd.host_key)
    tried.write_bytes(filled.encode("utf-8", "surrogateescape"))
    if text == "HASHED":
        run(["ssh-keygen", "-q", "-H", "-f", tried])
    desk.configure(*lines, "IdentityFile DIR/good", known_hosts="DIR/tried")


@pytest.mark.parametrize("case", KNOWN)
async def test_a_host_is_known_where_it_is_to_ssh(desk: Desk, case: str) -> None:
    know(desk, KNOWN[case])
    await Reader(desk=desk, has_ssh=True).expect_entry()


@pytest.mark.parametrize("case", UNKNOWN)
async def test_a_host_is_refused_where_ssh_refuses_it(desk: Desk, case: str) -> None:
    know(desk, UNKNOWN[case])
    assert not desk.ssh_enters()
    is_changed = case in ("a revoked key", "a key of a list of revoked ones", "another key")
    exc = await Reader(desk=desk, has_ssh=True).refusal()
    assert type(exc) is (errors.HostKeyChanged if is_changed else errors.HostKeyUnknown)
    assert ("REVOKED" in exc.sentence) is ("revoked" in case)


async def test_a_config_that_keeps_no_keys_is_told_what_would(desk: Desk, reader: Reader) -> None:
    desk.configure("StrictHostKeyChecking no", "IdentityFile DIR/good", known_hosts="/dev/null")
    assert desk.ssh_enters()
    exc = await reader.refusal()
    assert type(exc) is errors.HostKeyUnknown
    assert exc.remedy.startswith("Let UserKnownHostsFile of this host name a file that keeps keys; ")
    with reader.path():
        key = await dial.fetch_key(LAB)
    with pytest.raises(errors.SshConfigInvalid, match="names no file that would keep the key"):
        host_keys.remember(LAB, key)
