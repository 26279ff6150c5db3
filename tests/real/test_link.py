"""A link to a real sshd: what it gives, each way in which it can fail and its sentence, and what follows a cut."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from kernelbridge import errors
from kernelbridge.config.schema import Host
from kernelbridge.hosts.transport import dial, host_keys
from kernelbridge.hosts.transport.local import open_local
from kernelbridge.hosts.transport.pool import Lost, Open, Pool
from kernelbridge.hosts.transport.ssh import Link, open_link
from kernelbridge.hosts.transport.stream import Collector, CommandError
from tests.rig.daemon import wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

LAB = Host(name="lab", ssh="lab")
PROXIED = Host(name="lab", ssh="lab-proxied")


@pytest.fixture
async def link(rig: Rig, bridge_env: Laptop) -> AsyncIterator[Link]:
    """A link through the proxy, as user kbtest."""
    async with await open_link(PROXIED) as opened:
        yield opened


# -- what a link gives


async def test_a_login_tells_who_and_where_we_are(rig: Rig, link: Link) -> None:
    assert link.facts.user == "kbtest"
    assert link.facts.uid == int((await link.run(["id", "-u"], seconds=10)).stdout)
    assert link.facts.usable_sockets[0].path == "/var/run/docker.sock"
    assert link.facts.has_docker_command
    # A command's answer is there a moment before its stream is closed.
    async with asyncio.timeout(10):
        while not repr(link).endswith(" 0 streams>"):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)
    assert repr(link) == f"<Link lab open, kbtest@127.0.0.1:{rig.proxy.port}, 0 streams>"


async def test_a_command_gets_its_words_unharmed(link: Link) -> None:
    words = ["it's", 'a "b"', "$HOME", "`id`", "*", "new\nline", ""]
    answer = await link.run(["printf", "%s|", *words], seconds=10)
    assert answer.stdout.decode().split("|")[:-1] == words


async def test_a_command_has_stdin_both_outputs_and_an_exit_code(link: Link) -> None:
    answer = await link.run(["sh", "-c", "cat; echo no >&2; exit 7"], stdin=b"in", seconds=10)
    assert (answer.exit_code, answer.stdout, answer.stderr) == (7, b"in", b"no\n")


async def test_a_command_without_an_end_is_given_up(link: Link) -> None:
    with pytest.raises(errors.StartTimeout, match=r"lab: `sleep` took longer than 0\.3 s\."):
        await link.run(["sleep", "60"], seconds=0.3)
    assert link.is_open


async def test_a_stream_of_a_command_ends_with_its_reason(link: Link) -> None:
    collector = Collector()
    stream = await link.open_command(["sh", "-c", "cat; echo reason >&2; exit 3"], collector)
    stream.write(b"to and fro")
    stream.write_eof()
    await asyncio.wait_for(collector.wait_ended(), 10)
    assert bytes(collector.received) == b"to and fro"
    assert isinstance(collector.failure, CommandError)
    assert (collector.failure.exit_code, collector.failure.stderr) == (3, "reason\n")


async def test_a_receiver_that_pauses_is_not_flooded(link: Link) -> None:
    collector = Collector(limit_bytes=64 << 20)
    stream = await link.open_command(["head", "-c", "40000000", "/dev/zero"], collector)
    stream.pause_reading()
    await asyncio.sleep(0.5)
    paused_at = len(collector.received)
    await asyncio.sleep(0.3)
    assert len(collector.received) == paused_at < 40_000_000
    stream.resume_reading()
    await asyncio.wait_for(collector.wait_ended(), 30)
    assert len(collector.received) == 40_000_000


async def test_a_socket_that_is_missing_denied_or_dead_is_told_apart(rig: Rig, link: Link) -> None:
    with pytest.raises(FileNotFoundError):
        await link.open_socket("/nowhere.sock", Collector())
    dead = "import socket; socket.socket(socket.AF_UNIX).bind('/tmp/kernelbridge-test-dead.sock')"
    rig.lab.run(["python3", "-c", dead])
    rig.lab.run(["chmod", "600", "/tmp/kernelbridge-test-dead.sock"])
    with pytest.raises(PermissionError):
        await link.open_socket("/tmp/kernelbridge-test-dead.sock", Collector())
    rig.lab.run(["chmod", "666", "/tmp/kernelbridge-test-dead.sock"])
    with pytest.raises(ConnectionRefusedError):
        await link.open_socket("/tmp/kernelbridge-test-dead.sock", Collector())
    rig.lab.run(["rm", "/tmp/kernelbridge-test-dead.sock"])


async def test_this_machine_is_a_host_too(tmp_path: Path) -> None:
    link = await open_local("local")
    answer = await link.run(["sh", "-c", "cat; exit 4"], stdin=b"x", seconds=10)
    assert (answer.exit_code, answer.stdout) == (4, b"x")
    assert (await link.run(["kernelbridge-test-no-such"], seconds=10)).exit_code == 127
    assert link.facts.home == str(Path.home())
    with pytest.raises(FileNotFoundError):
        await link.open_socket(str(tmp_path / "none"), Collector())
    with pytest.raises(errors.StartTimeout):
        await link.run(["sleep", "60"], seconds=0.2)


# -- how a login fails


async def refusal(host: Host = LAB, *, seconds: float = 20) -> errors.KernelBridgeError:
    with pytest.raises(errors.KernelBridgeError) as caught:
        await open_link(host.model_copy(update={"login_seconds": seconds}))
    return caught.value


async def test_nobody_listening_is_refused(rig: Rig, bridge_env: Laptop) -> None:
    with rig.sshd.stopped():
        exc = await refusal()
    assert type(exc) is errors.HostRefused
    assert exc.sentence == f"lab: {rig.sshd.address}:{rig.sshd.port} refused the connection."


async def test_a_name_that_does_not_exist_is_named(bridge_env: Laptop) -> None:
    bridge_env.configure_ssh("Host gone", "  HostName kernelbridge-test.invalid")
    exc = await refusal(Host(name="lab", ssh="gone"))
    assert type(exc) is errors.HostNameUnknown
    assert "the name kernelbridge-test.invalid cannot be resolved" in exc.sentence


async def test_a_silent_host_is_given_up_in_time(rig: Rig, bridge_env: Laptop) -> None:
    with rig.proxy.blackhole():
        exc = await refusal(PROXIED, seconds=1)
    assert type(exc) is errors.HostUnreachable
    assert "(no login in 1 s)" in exc.sentence


async def test_a_host_that_hangs_up_is_unreachable(rig: Rig, bridge_env: Laptop) -> None:
    with rig.proxy.accept_then_close():
        exc = await refusal(PROXIED)
    assert type(exc) is errors.HostUnreachable


async def test_a_refused_login_names_the_user_who_was_refused(rig: Rig, bridge_env: Laptop) -> None:
    with rig.sshd.login_refused():
        exc = await refusal()
    assert type(exc) is errors.LoginRefused
    assert exc.sentence == "lab: the login as kbtest was refused (offered: ~/.ssh/id_ed25519)."


async def test_an_unknown_host_key_shows_its_fingerprint_and_trust_helps(rig: Rig, bridge_env: Laptop) -> None:
    known = bridge_env.ssh_folder / "known_hosts"
    known.unlink()
    exc = await refusal()
    key = await dial.fetch_key(LAB)
    assert type(exc) is errors.HostKeyUnknown
    assert f"(ssh-ed25519 {key.fingerprint})" in exc.sentence
    assert key.fingerprint.startswith("SHA256:")
    assert (key.is_known, key.is_changed) == (False, False)
    host_keys.remember(LAB, key)
    assert (await dial.fetch_key(LAB)).is_known
    async with await open_link(LAB) as link:
        assert link.is_open


async def test_of_several_keys_the_one_that_ssh_would_show_is_asked_about(rig: Rig, bridge_env: Laptop) -> None:
    (bridge_env.ssh_folder / "known_hosts").unlink()
    rsa = bridge_env.home / "rsa"
    await command("ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", str(rsa))
    with rig.sshd.configured(f"HostKey {rsa}"):
        exc = await refusal()
        key = await dial.fetch_key(LAB)
    assert key.algorithm == "ssh-ed25519"
    assert f"(ssh-ed25519 {key.fingerprint})" in exc.sentence


async def test_a_changed_host_key_is_told_from_an_unknown_one(rig: Rig, bridge_env: Laptop) -> None:
    with rig.sshd.key_changed():
        exc = await refusal()
        key = await dial.fetch_key(LAB)
        assert type(exc) is errors.HostKeyChanged
        assert key.fingerprint in exc.sentence
        assert f"ssh-keygen -R '[{rig.sshd.address}]:{rig.sshd.port}'" in exc.remedy
        with pytest.raises(errors.HostKeyChanged):
            host_keys.remember(LAB, key)


async def test_a_key_is_checked_even_where_the_config_would_not(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.configure_ssh("Host *", "  UserKnownHostsFile none", "  StrictHostKeyChecking no")
    assert type(await refusal()) is errors.HostKeyUnknown


async def command(*words: str) -> None:
    """Run a command here, to its end."""
    link = await open_local("here")
    answer = await link.run(words, seconds=20)
    assert answer.exit_code == 0, answer.stderr.decode()


async def test_a_host_key_of_another_kind_counts_as_changed(rig: Rig, bridge_env: Laptop) -> None:
    other = bridge_env.home / "other"
    await command("ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(other))
    public = other.with_suffix(".pub").read_text()
    (bridge_env.ssh_folder / "known_hosts").write_text(f"[{rig.sshd.address}]:{rig.sshd.port} {public}")
    exc = await refusal()
    assert type(exc) is errors.HostKeyChanged
    assert "(now ssh-ed25519 SHA256:" in exc.sentence


async def test_a_key_with_a_passphrase_is_never_asked_for_but_taken_from_the_agent(
    rig: Rig, bridge_env: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, agent_socket = bridge_env.ssh_folder / "id_ed25519", bridge_env.home / "agent.sock"
    # With -a it goes to the background, listening; it ends with the command it was given.
    agent = asyncio.create_task(command("ssh-agent", "-a", str(agent_socket), "sleep", "100"))
    await asyncio.to_thread(wait_until, agent_socket.exists, "the agent to listen", 10)
    with monkeypatch.context() as around:
        around.setenv("SSH_AUTH_SOCK", str(agent_socket))
        await command("ssh-add", "-q", str(key))
    await command("ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(key))
    assert type(await refusal()) is errors.LoginRefused
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent_socket))
    async with await open_link(LAB) as link:
        assert link.facts.user == "kbtest"
    agent.cancel()
    with suppress(asyncio.CancelledError):
        await agent


async def test_a_proxy_command_is_a_way_too(rig: Rig, bridge_env: Laptop) -> None:
    config = bridge_env.ssh_folder / "config"
    bridge_env.configure_ssh(
        "Host behind",
        f"  HostName {rig.sshd.address}",
        f"  Port {rig.sshd.port}",
        "  User kbtest",
        f"  ProxyCommand ssh -F {config} -W %h:%p lab",
    )
    async with await open_link(Host(name="lab", ssh="behind")) as link:
        assert (await link.run(["echo", "there"], seconds=10)).stdout == b"there\n"


async def test_a_broken_ssh_config_is_named_with_its_line(bridge_env: Laptop) -> None:
    bridge_env.configure_ssh("Port twenty-two")
    exc = await refusal()
    assert type(exc) is errors.SshConfigInvalid
    assert "line 1" in exc.sentence


async def test_a_missing_identity_file_is_no_reason_to_fail(bridge_env: Laptop) -> None:
    bridge_env.configure_ssh("Host *", f"  IdentityFile {bridge_env.home}/none")
    async with await open_link(LAB) as link:
        assert link.is_open


async def test_without_any_ssh_config_the_address_is_enough(rig: Rig, bridge_env: Laptop) -> None:
    (bridge_env.ssh_folder / "config").unlink()
    address = f"kbtest@{rig.sshd.address}:{rig.sshd.port}"
    async with await open_link(Host(name="lab", ssh=address)) as link:
        assert link.facts.user == "kbtest"


async def test_a_jump_host_is_used_and_checked_like_any_other(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.configure_ssh(
        "Host behind", "  HostName 127.0.0.1", f"  Port {rig.sshd.port}", "  User kbtest", "  ProxyJump lab"
    )
    behind = Host(name="lab", ssh="behind")
    known = bridge_env.ssh_folder / "known_hosts"
    known.unlink()
    names = []
    for _ in range(2):
        key = await dial.fetch_key(behind)
        assert not key.is_known
        names.append(key.name)
        host_keys.remember(behind, key)
    assert names == [f"[{rig.sshd.address}]:{rig.sshd.port}", f"[127.0.0.1]:{rig.sshd.port}"]
    async with await open_link(behind) as link:
        assert (await link.run(["hostname"], seconds=10)).stdout == b"lab\n"


async def test_a_jump_host_that_leads_to_itself_is_refused(bridge_env: Laptop) -> None:
    bridge_env.configure_ssh("Host round", "  ProxyJump round")
    exc = await refusal(Host(name="lab", ssh="round"))
    assert type(exc) is errors.SshConfigInvalid
    assert "ProxyJump leads to itself" in exc.sentence


async def test_a_server_that_is_no_ssh_server_is_told_so(bridge_env: Laptop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            near, _ = server.accept()
            with near:
                near.sendall(b"220 mail.example ESMTP\r\n" * 2000)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        exc = await refusal(Host(name="lab", ssh=f"kbtest@127.0.0.1:{server.getsockname()[1]}"), seconds=5)
        thread.join(5)
    assert isinstance(exc, errors.SshFailed | errors.HostUnreachable)


async def test_a_cancelled_login_leaves_no_connection_behind(rig: Rig, bridge_env: Laptop) -> None:
    with rig.proxy.delay(0.4):
        login = asyncio.create_task(open_link(PROXIED))
        await asyncio.to_thread(wait_until, lambda: rig.proxy.connections == 1, "the connection", 10)
        assert not login.done()
        login.cancel()
        with pytest.raises(asyncio.CancelledError):
            await login
    for _ in range(50):
        if rig.proxy.connections == 0:
            break
        await asyncio.sleep(0.1)
    assert rig.proxy.connections == 0


# -- what follows a cut


async def test_a_cut_ends_every_stream_with_link_lost(rig: Rig, link: Link) -> None:
    collectors = [Collector() for _ in range(3)]
    for collector in collectors:
        await link.open_command(["cat"], collector)
    rig.proxy.reset()
    for collector in collectors:
        await asyncio.wait_for(collector.wait_ended(), 5)
        assert type(collector.failure) is errors.LinkLost
    await asyncio.wait_for(link.wait_lost(), 5)
    assert not link.is_open
    assert repr(link).startswith("<Link lab lost, ")
    with pytest.raises(errors.LinkLost):
        await link.run(["true"], seconds=5)
    with pytest.raises(errors.LinkLost):
        await link.open_socket("/var/run/docker.sock", Collector())


async def test_the_pool_opens_a_new_link_after_sshds_process_was_killed(rig: Rig, bridge_env: Laptop) -> None:
    async with Pool() as pool:
        first = await pool.link(LAB)
        rig.sshd.kill_connections()
        await asyncio.wait_for(first.wait_lost(), 5)
        await asyncio.sleep(0)
        assert isinstance(pool.state("lab"), Lost)
        second = await pool.link(LAB)
        assert second is not first
        assert pool.state("lab") == Open()
        assert (await second.run(["echo", "back"], seconds=10)).stdout == b"back\n"


async def test_a_silent_line_is_noticed_in_twenty_seconds(rig: Rig, link: Link) -> None:
    collector = Collector()
    await link.open_command(["cat"], collector)
    loop = asyncio.get_running_loop()
    with rig.proxy.blackhole():
        began = loop.time()
        await asyncio.wait_for(link.wait_lost(), 30)
        assert 10 < loop.time() - began < 25
    assert type(collector.failure) is errors.LinkLost


async def test_a_cancelled_opening_leaves_no_channel_behind(rig: Rig, link: Link) -> None:
    with rig.proxy.delay(0.6):
        opening = asyncio.create_task(link.open_command(["cat"], Collector()))
        await asyncio.sleep(0.2)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await asyncio.sleep(1.5)
    answer = await link.run(["sh", "-c", "ps -o comm= --ppid $PPID"], seconds=10)
    assert "cat" not in answer.stdout.decode().split()
