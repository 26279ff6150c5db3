"""Rootless Docker on the made machine: the next Debian's, run by the login kbrootless, with our kernel image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.rig.daemon import RigError
from tests.rig.engine import ROOTLESS_UID
from tests.rig.lab import Lab
from tests.rig.next_debian import ROOTLESS_DOCKER, next_debians_usr, with_usr
from tests.rig.whole import Rig

LOGIN = "kbrootless"
# RootlessKit's own /run has links to root's engine. Docker 26 looks into RootlessKit's state, and crashes where that is
# without a network of its own, as here.
_SCRIPT = 'rm -f /run/docker /run/containerd /run/xtables.lock /run/docker.sock; exec env -u ROOTLESSKIT_STATE_DIR "$@"'


@contextmanager
def sub_ids(lab: Lab, login: str, first: int) -> Iterator[None]:
    """A login has 65536 numbers for the users of its containers."""
    mounted = []
    try:
        for name in ("subuid", "subgid"):
            path = lab.path / name
            path.write_text(f"{login}:{first}:65536\n")
            lab.run(["mount", "--bind", str(path), f"/etc/{name}"])
            mounted.append(f"/etc/{name}")
        yield
    finally:
        for place in mounted:
            lab.run(["umount", place])


@contextmanager
def rootless_docker(rig: Rig) -> Iterator[str]:
    """It runs; yields its socket. Its containers have no network: that needs a device which not every machine has."""
    lab = rig.lab
    usr = next_debians_usr(lab, ROOTLESS_DOCKER, "rootless-usr")
    saved = lab.path / "rootless.tar"
    rig.engine.cli("save", "--output", saved, rig.image)
    run, data = f"/run/user/{ROOTLESS_UID}", lab.home(LOGIN) / "docker"
    lab.run(["chown", LOGIN, run])
    lab.run(["chmod", "700", run])
    dockerd = ["dockerd", "--rootless", "--iptables=false", "--bridge=none", "--log-level=warn"]
    places = {"data-root": data, "exec-root": f"{run}/docker", "pidfile": f"{run}/docker.pid"}
    dockerd += [f"--host=unix://{run}/docker.sock", *(f"--{option}={place}" for option, place in places.items())]
    # runc takes who is called root for root.
    variables = {"USER": LOGIN, "HOME": lab.home(LOGIN), "XDG_RUNTIME_DIR": run}
    words = ["setpriv", f"--reuid={LOGIN}", f"--regid={LOGIN}", "--init-groups"]
    words += ["env", *(f"{name}={text}" for name, text in variables.items())]
    words += ["rootlesskit", "--net=host", "--copy-up=/etc", "--copy-up=/run", "sh", "-c", _SCRIPT, "sh", *dockerd]
    with sub_ids(lab, LOGIN, 400000):
        daemon = lab.start("rootless", with_usr(usr, words), env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        try:
            daemon.wait_until(lambda: _answers(lab, run), "rootless Docker's first answer")
            lab.run(["docker", f"--host=unix://{run}/docker.sock", "load", "--input", str(saved)], seconds=120)
            saved.unlink()
            yield f"{run}/docker.sock"
        finally:
            daemon.stop()
            # Its files belong to numbers that only it could name.
            lab.run(["rm", "-rf", str(data)])


def _answers(lab: Lab, run: str) -> bool:
    try:
        lab.run(["docker", f"--host=unix://{run}/docker.sock", "version"])
    except RigError:
        return False
    return True
