"""Each way in which a host cannot be used: the same one sentence in a terminal, from a manager, from a launcher.

What is wrong in the config or on this machine: test_bad_config.py. Every error's own text is pinned in
tests/unit/test_errors.py; failures that come after the start: test_late_failures.py.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer

import pytest

from kernelbridge import errors
from tests.clients.notebook import notebook
from tests.clients.refusals import expect_command, expect_everywhere
from tests.clients.terminal import kernelbridge
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

DOCKER_SOCKET = "/var/run/docker.sock"


pytestmark = pytest.mark.usefixtures("nothing_left")


# -- the link


def test_a_refused_connection_is_told_with_its_address(rig: Rig, bridge_env: Laptop) -> None:
    with rig.sshd.stopped():
        expect_everywhere(bridge_env, errors.HostRefused(host="lab", address=f"{rig.sshd.address}:{rig.sshd.port}"))


def test_an_unknown_name_is_told(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "kbtest@kernelbridge-test.invalid"})
    expect_everywhere(bridge_env, errors.HostNameUnknown(host="lab", address="kernelbridge-test.invalid"))


def test_a_refused_login_is_told_with_its_user(rig: Rig, bridge_env: Laptop) -> None:
    attempt = errors.LoginAttempt(offered=("~/.ssh/id_ed25519",))
    with rig.sshd.login_refused():
        expect_everywhere(bridge_env, errors.LoginRefused(host="lab", user="kbtest", attempt=attempt))


def fingerprint(rig: Rig) -> str:
    """As `ssh-keygen -l` on the host shows it to its owner."""
    digest = hashlib.sha256(base64.b64decode(rig.sshd.host_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def test_an_unknown_host_key_is_shown_and_trust_mends_it(rig: Rig, bridge_env: Laptop) -> None:
    known = bridge_env.ssh_folder / "known_hosts"
    known.unlink()
    expected = errors.HostKeyUnknown(host="lab", algorithm="ssh-ed25519", fingerprint=fingerprint(rig))
    expect_everywhere(bridge_env, expected)
    # Where the ssh config keeps no keys nothing could come of it: that is said once.
    config = bridge_env.ssh_folder / "config"
    before = config.read_text()
    bridge_env.configure_ssh("Host *", "  UserKnownHostsFile none")
    for _ in range(2):
        kept_nowhere = kernelbridge(bridge_env, "trust", "lab", "--yes")
        assert kept_nowhere.code == errors.SshConfigInvalid.exit_code
        assert " ".join(kept_nowhere.err.split()).count("UserKnownHostsFile names no file that would keep the key") == 1
    config.write_text(before)
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
    bridge_env.configure_ssh("Port twenty-two")
    ended = kernelbridge(bridge_env, "ps")
    assert ended.code == errors.SshConfigInvalid.exit_code
    assert "line 1" in ended.err
    assert len(ended.err.splitlines()) == 3


# -- the engine


def test_forbidden_forwarding_is_got_round_by_the_docker_command_and_told_where_there_is_none(
    rig: Rig, bridge_env: Laptop
) -> None:
    with rig.sshd.forwarding_forbidden(), notebook(bridge_env) as kernel:
        assert kernel.run("6 * 7") == "42"
        assert len(kernelbridge(bridge_env, "ps", "--json").json["kernels"]) == 1
    with rig.sshd.forwarding_forbidden(), rig.lab.without_command("docker"):
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
