"""The short way to a kernel: past the engine, for its login alone; the engine's own where a host allows no other."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.clients.notebook import notebook
from tests.clients.terminal import kernelbridge
from tests.rig.daemon import SLOW, wait_until
from tests.rig.lab import USERS
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(300)

UIDS = {user.name: user.uid for user in USERS}
BASE = f"/tmp/kernelbridge-{UIDS['kbtest']}"
CALL = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
sock.connect(sys.argv[1])
print(len(sock.recv(100)))
"""


def here(rig: Rig, path: str = BASE) -> Path:
    """A file of the made machine, as it is called here."""
    return Path(f"{rig.lab.root}{path}")


def sockets(rig: Rig) -> list[Path]:
    return list(here(rig).glob("*/relay.sock"))


def call(rig: Rig, path: str, *, as_user: str) -> str:
    """How many bytes the relay says to a user of the machine, or why none."""
    uid = str(UIDS[as_user])
    words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "/usr/bin/python3", "-c", CALL, path]
    done = subprocess.run(rig.lab.inside(words), capture_output=True, text=True, timeout=60 * SLOW, check=False)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def test_a_kernel_is_reached_by_a_socket_of_its_login_alone_and_leaves_nothing(rig: Rig, bridge_env: Laptop) -> None:
    with notebook(bridge_env) as kernel:
        assert kernel.value("6 * 7") == 42
        assert rig.engine.bridges() == []
        assert "its own socket" in kernelbridge(bridge_env, "ps", "--long").out
        (found,) = sockets(rig)
        base = here(rig).stat()
        assert (base.st_uid, base.st_mode & 0o777) == (UIDS["kbtest"], 0o700)
        path = f"{BASE}/{found.parent.name}/{found.name}"
        assert int(call(rig, path, as_user="kbtest")) > 0
        assert call(rig, path, as_user="kbother").startswith("PermissionError")
        # Whom the folder does not stop hears nothing either.
        there = subprocess.run(
            rig.lab.inside(["/usr/bin/python3", "-c", CALL, path]), capture_output=True, text=True, check=True
        )
        assert there.stdout == "0\n"
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=60 * SLOW)
        assert kernel.value("6 * 7") == 42
        assert sockets(rig) == [found]
    wait_until(lambda: not here(rig).exists(), "the folder to be gone", 20)


def test_cells_run_while_there_is_no_engine_at_all(rig: Rig, bridge_env: Laptop) -> None:
    with notebook(bridge_env) as kernel:
        kernel.run("import time; began = time.time()")
        with rig.engine.living_on():
            rig.engine.stop()
            for number in range(5):
                assert kernel.value(f"{number} + 1") == number + 1
            rig.engine.start()
        assert kernel.value("time.time() > began")
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=60 * SLOW)
        assert kernel.value("6 * 7") == 42
        assert rig.engine.bridges() == []


@contextmanager
def somebody_elses(rig: Rig, path: str) -> Iterator[None]:
    """Another login has made that folder first."""
    rig.lab.run(["install", "-d", "-m", "755", "-o", "kbother", "-g", "kbother", path])
    try:
        yield
    finally:
        rig.lab.run(["rmdir", path])


def off(rig: Rig, laptop: Laptop) -> AbstractContextManager[object]:
    laptop.write_environment(rig.image, host={"short_way": False})
    return rig.lab.home_files("kbtest", {})


@contextmanager
def hidden(rig: Rig, laptop: Laptop) -> Iterator[None]:
    """The engine sees another /tmp than its logins, as a snap's: the folder is not there."""
    rig.engine.stop()
    place = rig.lab.path / "tmp-of-its-own"
    place.mkdir(mode=0o1777)
    rig.engine.start(before=["unshare", "-m", "sh", "-c", f'mount --bind {place} /tmp && exec "$@"', "sh"])
    try:
        yield
    finally:
        rig.engine.restart()
        place.rmdir()


SHUT = {
    "`short_way` is off": off,
    "sshd forwards no sockets": lambda rig, laptop: rig.sshd.streamlocal_forbidden(),
    "somebody else has the folder": lambda rig, laptop: somebody_elses(rig, BASE),
    "the engine sees another /tmp": hidden,
}


@pytest.mark.parametrize("why", SHUT)
def test_where_it_is_shut_the_engines_way_is_taken(rig: Rig, bridge_env: Laptop, why: str) -> None:
    with SHUT[why](rig, bridge_env), notebook(bridge_env) as kernel:
        assert kernel.value("6 * 7") == 42
        assert len(rig.engine.bridges()) == 1
        assert "the engine" in kernelbridge(bridge_env, "ps", "--long").out
        assert sockets(rig) == []
    wait_until(lambda: not here(rig).exists(), "the folder to be gone", 20)
