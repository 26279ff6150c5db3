"""The made machine's Docker engine: a dockerd of its own, stopped, started and asked. The images: see images.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import docker
import psutil
from docker.models.containers import Container

from tests.rig.daemon import SLOW, Daemon, RigError, run, tail, wait_until
from tests.rig.lab import USERS, Lab
from tests.rig.next_debian import DOCKER, next_debians_usr, with_usr
from tests.rig.standin_gpu import StandInGpus

LABEL = "kernelbridge.kernel"
# The last word of the command that joins an exec stream to a relay ends so.
BRIDGE_END = "/relay.sock"
ROOTLESS_UID = next(user.uid for user in USERS if user.name == "kbrootless")


def missing_engine() -> str | None:
    """Why no engine can run here; None where it can."""
    if shutil.which("dockerd") is None:
        return "dockerd is missing (Debian: docker.io); scripts/test installs it"
    if shutil.which("docker") is None:
        return "the docker command is missing (Debian: docker.io or docker-cli); scripts/test installs it"
    if shutil.which("iptables") is None:
        return "iptables is missing, dockerd needs it; scripts/test installs it"
    return None


class EngineRig:
    """A real dockerd in the made machine; `socket` is where this machine reaches it without ssh."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        # Where its programs are; None: this machine's own.
        self._usr: Path | None = None
        self.socket = lab.path / "docker.sock"
        # Images, containers, volumes.
        self.data = lab.path / "engine"
        # What a user's ssh session finds; /var/run is a link to /run on every Debian.
        self.host_socket = "/run/docker.sock"
        self.gpus = StandInGpus(lab.path / "standin-gpus")
        self._daemon: Daemon | None = None
        # Its daemon.json.
        self.config: dict[str, object] = {"live-restore": False}
        if os.environ.get("KERNELBRIDGE_TEST_ENGINE") == "next":
            self.upgrade()
        self.start()

    def __repr__(self) -> str:
        return f"<EngineRig {self.socket} {self._daemon!r}>"

    @property
    def url(self) -> str:
        """For DOCKER_HOST and docker-py, from this machine."""
        return f"unix://{self.socket}"

    @property
    def log(self) -> str:
        """The last lines of the engine's log."""
        return tail(self.lab.log_folder / "dockerd.log")

    def start(
        self,
        *,
        gpus: bool = True,
        toolkit: bool = True,
        sockets: Sequence[str] = (),
        options: Sequence[str] = (),
        before: Sequence[str] = (),
    ) -> None:
        """Start it. Without `gpus` it is an engine that knows no GPUs; without `toolkit` its machine has some.

        `sockets` are paths inside the machine; `before` are words that run it.

        A socket in /run/user/<uid> is given to that user, as a rootless engine's would be.
        """
        if self._daemon is not None:
            return
        self._write_config()
        if gpus:
            self.gpus.insert()
        else:
            self.gpus.remove()
        if not toolkit:
            self.gpus.take_hook()
        for stale in ("docker.pid", "docker.sock"):
            (self.lab.path / stale).unlink(missing_ok=True)
        hosts = [f"unix://{self.socket}", f"unix://{self.host_socket}", *(f"unix://{path}" for path in sockets)]
        words = ["dockerd", "--log-level", "warn", "--group", "docker", "--cgroup-parent", f"/{self.lab.cgroup}"]
        paths = {"data-root": self.data.name, "exec-root": "engine-run", "pidfile": "docker.pid"}
        for option, name in (paths | {"config-file": "daemon.json"}).items():
            words += [f"--{option}", str(self.lab.path / name)]
        for host in hosts:
            words += ["-H", host]
        path = f"{self.gpus.folder}:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8"}
        words = [*before, *words, *options]
        daemon = self.lab.start("dockerd", with_usr(self._usr, words) if self._usr else words, env=environment)
        self._daemon = daemon
        daemon.wait_until(self._answers, "dockerd's first answer", 60)
        for socket in sockets:
            parts = Path(socket).parts
            if parts[:3] == ("/", "run", "user"):
                self.lab.run(["chown", f"{parts[3]}:{parts[3]}", socket])
                self.lab.run(["chmod", "600", socket])

    def _answers(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            with self.client(seconds=5) as client:
                return bool(client.ping())
        except Exception:  # docker-py and requests raise a dozen kinds while it starts
            return False

    def stop(self) -> None:
        """Stop it with its containers, as `systemctl stop docker` does. Its socket file stays, as there."""
        if self._daemon is not None:
            self._daemon.stop(seconds=30)
            self._daemon = None

    def restart(self, *, gpus: bool = True, sockets: Sequence[str] = (), options: Sequence[str] = ()) -> None:
        """Stop and start; the arguments are those of start()."""
        self.stop()
        self.start(gpus=gpus, sockets=sockets, options=options)

    @property
    def pid(self) -> int:
        """The process id of the dockerd of now, as seen from here."""
        if self._daemon is None:
            raise RigError("dockerd is stopped")
        return self._daemon.main().pid

    def restart_alive(self) -> None:
        """Stop and start it while its containers run on, as an update of its package does under `live-restore`."""
        self._set_live_restore(True)
        self.restart()
        self._set_live_restore(False)

    @contextmanager
    def living_on(self) -> Iterator[None]:
        """Its containers would outlive it: `live-restore` is on. Off again at the end."""
        self._set_live_restore(True)
        try:
            yield
        finally:
            self._set_live_restore(False)

    @contextmanager
    def without_toolkit(self) -> Iterator[None]:
        """The machine has its cards, and no container toolkit. As before at the end."""
        self.stop()
        self.start(toolkit=False)
        try:
            yield
        finally:
            self.restart()

    def upgrade(self) -> Path:
        """Its programs are those of the next Debian from its next start on. Return their /usr."""
        if self._usr is None:
            self._usr = next_debians_usr(self.lab, DOCKER, "usr")
        return self._usr

    def _write_config(self) -> None:
        (self.lab.path / "daemon.json").write_text(json.dumps(self.config))

    def _set_live_restore(self, wanted: bool) -> None:
        """It reads its config file again; nothing else changes."""
        self.config["live-restore"] = wanted
        self._write_config()
        os.kill(self.pid, signal.SIGHUP)
        with self.client(seconds=10) as client:
            wait_until(lambda: client.info()["LiveRestoreEnabled"] is wanted, "dockerd to take its config", 10)

    def bridges(self) -> list[psutil.Process]:
        """The processes in containers that join an exec stream to a relay."""
        found = []
        for process in self.lab.processes():
            with suppress(psutil.Error):
                if "".join(process.cmdline()[-1:]).endswith(BRIDGE_END):
                    found.append(process)
        return found

    def kill_bridges(self) -> None:
        """End every exec stream from inside its container, without a word: SIGKILL to its process.

        Raises: RigError where there is none, nor comes within 10 s.
        """
        found: list[psutil.Process] = []

        def has_some() -> bool:
            found[:] = self.bridges()
            return bool(found)

        wait_until(has_some, "a bridge to kill", 10)
        for process in found:
            # In a job, one that ran the other ends with it.
            with suppress(psutil.NoSuchProcess):
                process.kill()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """No engine answers; its socket file is there. Started again at the end."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def without_gpus(self) -> Iterator[None]:
        """The engine knows no GPUs and the machine has no nvidia-smi. As before at the end."""
        self.restart(gpus=False)
        try:
            yield
        finally:
            self.restart()

    @contextmanager
    def only_rootless(self) -> Iterator[str]:
        """The only engine socket is that of user kbrootless in /run/user; yields its path."""
        path = f"/run/user/{ROOTLESS_UID}/docker.sock"
        self.restart(sockets=[path])
        self.lab.run(["rm", self.host_socket])
        try:
            yield path
        finally:
            self.lab.run(["rm", "-f", path])
            self.restart()

    @contextmanager
    def client(self, *, seconds: float = 120.0) -> Iterator[docker.DockerClient]:
        """docker-py on the engine's own socket, for a test's eyes: it goes around everything of ours."""
        with closing(docker.DockerClient(base_url=self.url, timeout=int(seconds * SLOW))) as client:
            yield client

    def cli(self, *words: str | Path, seconds: float = 600.0) -> str:
        """The docker command from this machine."""
        environment = {**os.environ, "DOCKER_HOST": self.url, "DOCKER_BUILDKIT": "0"}
        return run(["docker", *words], env=environment, seconds=seconds)

    @contextmanager
    def running_image(self, image: str, command: str) -> Iterator[str]:
        """An image in which a shell command was run, under a name of its own; gone in the end."""
        name = f"kernelbridge-test-run:{time.monotonic_ns()}"
        made = self.cli("create", "--user", "0", "--entrypoint", "sh", image, "-c", command).strip()
        self.cli("start", "--attach", made)
        self.cli("commit", "--change", "ENTRYPOINT []", made, name)
        self.cli("rm", made)
        try:
            yield name
        finally:
            self.cli("image", "rm", "-f", name)

    @contextmanager
    def changed(self, image: str, *changes: str) -> Iterator[str]:
        """An image with more of a Dockerfile's lines, under a name of its own; gone in the end."""
        name = f"kernelbridge-test-changed:{time.monotonic_ns()}"
        made = self.cli("create", image, "true").strip()
        self.cli("commit", *(word for change in changes for word in ("--change", change)), made, name)
        self.cli("rm", made)
        try:
            yield name
        finally:
            self.cli("image", "rm", "-f", name)

    def root_of(self, container: Container) -> Path:
        """A running container's files, as seen from here: a look at one costs nothing, where an exec is a process."""
        return self.lab.root / f"proc/{container.attrs['State']['Pid']}/root"

    def kernels(self) -> list[Container]:
        """All containers with our label, running or not."""
        with self.client() as client:
            return list(client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True))

    def sweep(self) -> list[str]:
        """Remove every container, with the folders of short ways, and say which had our label."""
        with self.client() as client:
            everything = client.containers.list(all=True, ignore_removed=True)
            for container in everything:
                _remove(container)
            # Who removes a container by hand leaves its folder.
            for folder in (self.lab.path / "tmp").glob("kernelbridge-[0-9]*"):
                shutil.rmtree(folder, ignore_errors=True)
            return [container.name or "" for container in everything if LABEL in container.labels]

    def report(self) -> str:
        """State and last 50 log lines of every container, then the engine's own log: for a failed test."""
        parts = []
        try:
            with self.client(seconds=10) as client:
                for container in client.containers.list(all=True, ignore_removed=True):
                    state = container.attrs.get("State", {})
                    try:
                        log = container.logs(tail=50).decode(errors="replace")
                    except docker.errors.APIError as error:
                        log = f"(no log: {error})"
                    parts.append(f"--- {container.name} {container.image} {state}\n{log}")
        except Exception as error:  # a report never hides the failure it reports on
            parts.append(f"--- the engine does not answer: {error}")
        return "\n".join([*parts, "--- dockerd", self.log])

    def close(self) -> None:
        """Remove every container and stop. Safe to call twice."""
        if self._daemon is None:
            return
        try:
            self.sweep()
        except Exception as error:  # what is left dies with the made machine
            print(f"the engine could not be swept: {error}")
        self.stop()


def _remove(container: Container) -> None:
    """Remove a container, unless somebody else has done so or does so now; gone when this returns."""
    try:
        container.remove(force=True, v=True)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        # 409: "removal of container ... is already in progress".
        if error.status_code != 409:
            raise
        wait_until(lambda: _is_gone(container), f"{container.name} to be removed by another", 10)


def _is_gone(container: Container) -> bool:
    try:
        container.reload()
    except docker.errors.NotFound:
        return True
    return False
