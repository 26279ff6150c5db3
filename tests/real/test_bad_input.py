"""Each way in which a start can be impossible: the same one sentence in a terminal, from a manager, from a launcher.

Every error's own text is pinned in tests/unit/test_errors.py; failures that come after the start: test_late_failures.py.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from kernelbridge import errors
from kernelbridge.errors import KernelBridgeError
from tests.clients.notebook import CellFailed, fleet_closed_after, notebook, write_specs
from tests.clients.terminal import Ended, begin, kernelbridge, launched, write_connection_file
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

DOCKER_SOCKET = "/var/run/docker.sock"


@pytest.fixture(autouse=True)
def _folder_of_sockets(bridge_env: Laptop, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After each test: no socket folder, no container, no running launcher or command is left."""
    runtime = bridge_env.home / "xdg"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    yield
    assert [path for path in runtime.glob("kernelbridge/*")] == []
    assert rig.engine.kernels() == []


def refusal_of_manager(laptop: Laptop) -> KernelBridgeError:
    """What `KernelManager.start_kernel` raises, as nbclient and papermill hand it on."""
    with fleet_closed_after(laptop):
        manager = KernelManager(kernel_name="kernelbridge-test")
        with pytest.raises(KernelBridgeError) as caught:
            manager.start_kernel()
        assert not manager.has_kernel
    return caught.value


def expect_launcher(ended: Ended, expected: KernelBridgeError) -> None:
    assert ended.code == 1
    assert ended.last_line == f"KernelBridgeError: {expected}"
    assert "Traceback" not in ended.err
    assert ended.out == ""


def expect_command(ended: Ended, expected: KernelBridgeError) -> None:
    assert ended.err.splitlines() == [line for line in (expected.sentence, expected.remedy) if line]
    assert (ended.code, ended.out) == (expected.exit_code, "")


def expect_everywhere(laptop: Laptop, expected: KernelBridgeError) -> None:
    """`ps` in a terminal, a KernelManager and VS Code's launcher all tell this error, and nothing else."""
    write_specs(laptop)
    with begin(laptop, "ps") as command, launched(laptop) as launcher:
        refusal = refusal_of_manager(laptop)
        assert (type(refusal), str(refusal)) == (type(expected), str(expected))
        expect_launcher(launcher.finish(), expected)
        ended = command.finish()
        # A listing of nothing is printed as such; the reason goes to stderr.
        assert ended.out in ("", "No kernels.\n")
        expect_command(Ended(code=ended.code, out="", err=ended.err), expected)


def expect_at_start(laptop: Laptop, expected: KernelBridgeError) -> None:
    """The same for what is no fault of the host: only starts meet it."""
    write_specs(laptop)
    with launched(laptop) as launcher:
        refusal = refusal_of_manager(laptop)
        assert (type(refusal), str(refusal)) == (type(expected), str(expected))
        expect_launcher(launcher.finish(), expected)


# -- the link


def aliased(laptop: Laptop, *lines: str) -> None:
    """Put lines in front of the user's ssh config: there the first value counts."""
    path = laptop.ssh_folder / "config"
    path.write_text("\n".join([*lines, "", path.read_text()]))


def test_a_refused_connection_is_told_with_its_address(rig: Rig, bridge_env: Laptop) -> None:
    with rig.sshd.stopped():
        expect_everywhere(bridge_env, errors.HostRefused(host="lab", address=f"{rig.sshd.address}:{rig.sshd.port}"))


def test_an_unknown_name_is_told(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "kbtest@kernelbridge-test.invalid"})
    expect_everywhere(bridge_env, errors.HostNameUnknown(host="lab", address="kernelbridge-test.invalid"))


def test_a_refused_login_is_told_with_its_user(rig: Rig, bridge_env: Laptop) -> None:
    with rig.sshd.login_refused():
        expect_everywhere(bridge_env, errors.LoginRefused(host="lab", user="kbtest"))


def fingerprint(rig: Rig) -> str:
    key = rig.lab.run(["ssh-keygen", "-l", "-f", f"{rig.sshd._host_key}.pub"])
    return key.split()[1]


def test_an_unknown_host_key_is_shown_and_trust_mends_it(rig: Rig, bridge_env: Laptop) -> None:
    known = bridge_env.ssh_folder / "known_hosts"
    known.unlink()
    expected = errors.HostKeyUnknown(host="lab", algorithm="ssh-ed25519", fingerprint=fingerprint(rig))
    expect_everywhere(bridge_env, expected)
    # Asked, and answered with no: nothing is written.
    refused = kernelbridge(bridge_env, "trust", "lab", typed="n\n")
    assert refused.code == 1
    assert f"shows the key ssh-ed25519 {fingerprint(rig)}" in refused.out
    assert "Traceback" not in refused.err
    assert not known.exists()
    trusted = kernelbridge(bridge_env, "trust", "lab", "--yes")
    assert (trusted.code, trusted.err) == (0, "")
    assert trusted.out.splitlines()[-1] == f"lab is trusted: ssh-ed25519 {fingerprint(rig)}"
    assert kernelbridge(bridge_env, "ps").out == "No kernels.\n"
    # OpenSSH's own client reads what we wrote.
    assert rig.sshd.host_key.split()[1] in known.read_text()


def test_a_changed_host_key_is_told_and_trust_refuses_it(rig: Rig, bridge_env: Laptop) -> None:
    known = bridge_env.ssh_folder / "known_hosts"
    before = known.read_text()
    with rig.sshd.key_changed():
        expected = errors.HostKeyChanged(
            host="lab",
            algorithm="ssh-ed25519",
            fingerprint=fingerprint(rig),
            known_hosts_name=f"[{rig.sshd.address}]:{rig.sshd.port}",
        )
        expect_everywhere(bridge_env, expected)
        expect_command(kernelbridge(bridge_env, "trust", "lab", "--yes"), expected)
    assert known.read_text() == before


def test_a_broken_ssh_config_is_told_with_its_line(bridge_env: Laptop) -> None:
    aliased(bridge_env, "Port twenty-two")
    ended = kernelbridge(bridge_env, "ps")
    assert ended.code == errors.SshConfigInvalid.exit_code
    assert "line 1" in ended.err
    assert len(ended.err.splitlines()) == 2


# -- the engine


@pytest.fixture
def no_docker_command(rig: Rig) -> str:
    """A line of sshd_config: all commands of the host but docker."""
    folder = rig.lab.path / "bin-without-docker"
    if not folder.exists():
        folder.mkdir()
        for program in Path("/usr/bin").iterdir():
            if program.name != "docker":
                (folder / program.name).symlink_to(program)
    return f'SetEnv PATH="{rig.engine.gpus.folder}:{folder}"'


def test_forbidden_forwarding_is_got_round_by_the_docker_command_and_told_where_there_is_none(
    rig: Rig, bridge_env: Laptop, no_docker_command: str
) -> None:
    with rig.sshd.forwarding_forbidden(), notebook(bridge_env) as kernel:
        assert kernel.run("6 * 7") == "42"
        assert len(kernelbridge(bridge_env, "ps", "--json").json["kernels"]) == 1
    with rig.sshd.configured("DisableForwarding yes", no_docker_command):
        expect_everywhere(bridge_env, errors.ForwardingForbidden(host="lab"))


def test_a_stopped_engine_is_told(rig: Rig, bridge_env: Laptop) -> None:
    with rig.engine.stopped():
        expect_everywhere(bridge_env, errors.EngineDown(host="lab", socket=DOCKER_SOCKET))


def test_a_login_without_docker_rights_is_told(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "lab-other"})
    expect_everywhere(bridge_env, errors.EngineDenied(host="lab", user="kbother", socket=DOCKER_SOCKET))


def test_a_socket_that_is_not_there_is_told(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, host={"socket": "/run/none.sock"})
    expect_everywhere(bridge_env, errors.EngineMissing(host="lab", looked=["/run/none.sock"]))


class _OldEngine(StreamRequestHandler):
    """STAND-IN for an engine of 2018: says its version, knows nothing else."""

    def handle(self) -> None:
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        body = b'{"Version": "18.06.3-ce", "ApiVersion": "1.38", "MinAPIVersion": "1.12"}'
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.wfile.write(head.encode() + b"Connection: close\r\n\r\n" + body)


def test_an_engine_that_is_too_old_is_told_with_both_versions(rig: Rig, bridge_env: Laptop) -> None:
    path = rig.lab.path / "old.sock"
    with ThreadingUnixStreamServer(str(path), _OldEngine) as old:
        path.chmod(0o666)
        thread = threading.Thread(target=old.serve_forever)
        thread.start()
        bridge_env.write_environment(rig.image, host={"socket": str(path)})
        try:
            expect_everywhere(bridge_env, errors.EngineTooOld(host="lab", api="1.38", needed="1.40"))
        finally:
            old.shutdown()
            thread.join()
            path.unlink()


def test_the_way_by_sudo_is_found(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "lab-sudo"})
    with notebook(bridge_env) as kernel:
        assert kernel.run("6 * 7") == "42"


def test_a_rootless_engines_socket_is_found(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "lab-rootless"})
    with rig.engine.only_rootless(), notebook(bridge_env) as kernel:
        assert kernel.run("6 * 7") == "42"


# -- the environment

# What is written in the environment, and what its start says.
AT_ONCE: dict[str, tuple[dict[str, Any], Callable[[Rig], KernelBridgeError]]] = {
    "a mount whose source is missing": (
        {"mounts": ["/no/such/folder:/data"]},
        lambda rig: errors.MountMissing(host="lab", path="/no/such/folder"),
    ),
    "a mount below home whose source is missing": (
        {"mounts": ["/etc:/etc2:ro", "~/none:/data"]},
        lambda rig: errors.MountMissing(host="lab", path=f"{rig.lab.home('kbtest')}/none"),
    ),
    "a secret that is not set here": (
        {"secrets": ["KERNEL_TOKEN"]},
        lambda rig: errors.SecretMissing(environment="test", name="KERNEL_TOKEN"),
    ),
    "more cards than there are": (
        {"gpus": 3},
        lambda rig: errors.GpuUnavailable(
            host="lab", wanted="3 GPUs", found="2 GPUs: 0 (Stand-in GPU, 80 GiB), 1 (Stand-in GPU, 80 GiB)"
        ),
    ),
    "a card that is not there": (
        {"gpus": ["7"]},
        lambda rig: errors.GpuUnavailable(
            host="lab", wanted="GPU 7", found="2 GPUs: 0 (Stand-in GPU, 80 GiB), 1 (Stand-in GPU, 80 GiB)"
        ),
    ),
    "an image that may not be pulled": (
        {"image": "kernelbridge-test/none:1", "pull": "never"},
        lambda rig: errors.ImageMissing(host="lab", image="kernelbridge-test/none:1", reason="`pull` is never"),
    ),
}


@pytest.mark.parametrize("what", AT_ONCE)
def test_what_an_environment_lacks_is_told_before_anything_is_started(
    rig: Rig, bridge_env: Laptop, what: str
) -> None:
    keys, expected = AT_ONCE[what]
    with rig.slow_engine() as engine:
        wanted = {"image": rig.image, "host": {"socket": str(engine.path)}, **keys}
        bridge_env.write_environment(wanted.pop("image"), **wanted)
        expect_at_start(bridge_env, expected(rig))
        assert not [one for one in engine.requests if one.startswith("POST")]


def test_an_image_that_no_registry_gives_is_told_by_its_name(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment("kernelbridge-test/none:1")
    write_specs(bridge_env)
    with launched(bridge_env) as launcher:
        refusal = refusal_of_manager(bridge_env)
        assert type(refusal) is errors.ImageMissing
        assert refusal.sentence.startswith("lab: there is no image kernelbridge-test/none:1 (")
        assert "Check the name" in refusal.remedy
        ended = launcher.finish()
        assert (ended.code, ended.last_line[:60]) == (1, f"KernelBridgeError: {refusal}"[:60])


def expect_in_first_cell(laptop: Laptop, expected: KernelBridgeError) -> None:
    """What only the container's start can tell: the first cell ends with it, and so does the launcher."""
    with launched(laptop) as launcher:
        with notebook(laptop) as kernel, pytest.raises(CellFailed) as caught:
            kernel.run("1")
        assert (caught.value.name, caught.value.text) == (type(expected).__name__, str(expected))
        expect_launcher(launcher.finish(), expected)


def test_missing_cards_and_a_missing_gpu_toolkit_are_told_apart(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, gpus=1)
    with rig.engine.without_gpus():
        expect_at_start(bridge_env, errors.GpuUnavailable(host="lab", wanted="1 GPU", found="no GPU"))
        # The driver is there now, and the engine was started without the toolkit.
        rig.engine.gpus.insert()
        expect_in_first_cell(bridge_env, errors.GpuToolkitMissing(host="lab"))


def test_a_limit_that_the_engine_may_not_set_is_told(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, ulimits={"nofile": 1 << 40})
    write_specs(bridge_env)
    with launched(bridge_env) as launcher:
        with notebook(bridge_env) as kernel, pytest.raises(CellFailed, match="may not set the limits") as caught:
            kernel.run("1")
        assert caught.value.name == "UlimitRefused"
        assert "Lower `ulimits`" in launcher.finish().last_line


# -- what is wrong on this machine


def test_a_kernel_spec_whose_environment_is_gone_says_so(rig: Rig, bridge_env: Laptop) -> None:
    write_specs(bridge_env)
    bridge_env.write_config(bridge_env.config.read_text().replace("environments.test", "environments.tests"))
    expected = errors.UnknownEnvironment(name="test", path=str(bridge_env.config), nearest="tests")
    with launched(bridge_env) as launcher:
        refusal = refusal_of_manager(bridge_env)
        assert str(refusal) == str(expected)
        expect_launcher(launcher.finish(), expected)


def test_all_that_is_wrong_in_the_config_is_told_at_once(rig: Rig, bridge_env: Laptop) -> None:
    write_specs(bridge_env)
    bridge_env.write_environment(rig.image, host={"gpu": 1}, shm_size="8 apples", mount=["/a:/b"], hosts=["labb"])
    where = f"{bridge_env.config}: "
    ended = kernelbridge(bridge_env, "config")
    assert (ended.code, ended.out) == (10, "")
    *problems, remedy = ended.err.splitlines()
    assert len(problems) == 4
    assert all(line.startswith(where) for line in problems)
    assert "did you mean `mounts`" in ended.err
    assert "did you mean `lab`" in ended.err
    assert remedy == "Mend the file; `kernelbridge config` checks it."
    with launched(bridge_env) as launcher:
        refusal = refusal_of_manager(bridge_env)
        assert type(refusal) is errors.ConfigInvalid
        assert [f"{where}{problem}" for problem in refusal.problems] == problems
        expect_launcher(launcher.finish(), refusal)
    others = (["ps"], ["install"], ["clean"], ["stop", "--all"], ["logs", "x"], ["trust", "lab"])
    with ExitStack() as stack:
        commands = [stack.enter_context(begin(bridge_env, *words)) for words in others]
        assert {(one.code, one.err) for one in [command.finish() for command in commands]} == {(10, ended.err)}


def test_a_config_that_is_named_and_not_there_is_told(bridge_env: Laptop) -> None:
    path = bridge_env.home / "none.toml"
    expected = errors.ConfigMissing(path=str(path), reason="there is no such file")
    expect_command(kernelbridge(bridge_env, "--config", str(path), "ps"), expected)
    with launched(bridge_env, KERNELBRIDGE_CONFIG=str(path)) as launcher:
        expect_launcher(launcher.finish(), expected)


def test_a_host_that_is_not_in_the_config_is_told(bridge_env: Laptop) -> None:
    expected = errors.UnknownHost(name="lap", path=str(bridge_env.config), nearest="lab")
    expect_command(kernelbridge(bridge_env, "trust", "lap"), expected)


def test_an_unknown_command_or_option_is_told_without_a_traceback(bridge_env: Laptop) -> None:
    wrong = (["pss"], ["ps", "--jsn"], ["stop"], ["logs"], ["logs", "x", "--tail", "0"])
    with ExitStack() as stack:
        commands = [stack.enter_context(begin(bridge_env, *words)) for words in wrong]
        for ended in [command.finish() for command in commands]:
            assert (ended.code, ended.out) == (2, "")
            assert ended.err
            assert "Traceback" not in ended.err


@pytest.mark.parametrize("text", ["", "garbage", "[]", '{"ip": "127.0.0.1"}', '{"shell_port": "x"}'])
def test_a_connection_file_that_is_garbage_is_told(bridge_env: Laptop, text: str) -> None:
    file = bridge_env.runtime_dir / "kernel-x.json"
    file.write_text(text)
    with launched(bridge_env, file) as launcher:
        ended = launcher.finish()
    assert ended.code == 1
    assert ended.last_line.startswith(f"KernelBridgeError: {file}: the connection file cannot be used (")
    assert "Traceback" not in ended.err


def test_a_connection_file_that_would_open_the_kernel_to_the_network_is_refused(bridge_env: Laptop) -> None:
    file = write_connection_file(bridge_env.runtime_dir)
    file.write_text(file.read_text().replace("127.0.0.1", "0.0.0.0"))
    with launched(bridge_env, file) as launcher:
        ended = launcher.finish()
    assert "the address 0.0.0.0 is not this machine's loopback" in ended.last_line


def test_a_port_that_is_taken_is_told_and_nothing_is_started(rig: Rig, bridge_env: Laptop) -> None:
    file = write_connection_file(bridge_env.runtime_dir)
    before = rig.sshd.log
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(file.stem.rsplit("-", 1)[1]) + 1))
        other.listen()
        with launched(bridge_env, file) as launcher:
            ended = launcher.finish()
    assert ended.code == 1
    assert ended.last_line.startswith("KernelBridgeError: This machine: the kernel's ports are taken (")
    assert "Traceback" not in ended.err
    assert rig.sshd.log == before
