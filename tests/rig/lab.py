"""The made machine: a host of its own (processes, network, users, /run, /tmp) that leaves nothing behind.

It is Linux namespaces, not a stand-in: its sshd, engine and containers are real, and reach this machine ("the laptop")
only over one network cable. What runs in it: see sshd.py and engine.py.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.rig.daemon import Daemon, RigError, run, wait_until

PREFIX = "kernelbridge-test-"
LOCK = "owner.lock"
NAME = "lab"


@dataclass(frozen=True, kw_only=True)
class User:
    """A login of the made machine; it exists nowhere else."""

    name: str
    uid: int
    groups: tuple[str, ...] = ()


# kbtest may use the engine; kbother may not; kbsudo may run one docker command with sudo; kbrootless has an own socket.
USERS = (
    User(name="kbtest", uid=21001, groups=("docker",)),
    User(name="kbother", uid=21002),
    User(name="kbsudo", uid=21003),
    User(name="kbrootless", uid=21004),
)
DOCKER_GID = 21100


def missing_rights() -> str | None:
    """Why no machine can be made here; None where it can."""
    if not sys.platform.startswith("linux"):
        return "the made machine needs Linux namespaces"
    if os.geteuid() != 0:
        return "the made machine (sshd and dockerd in namespaces) needs root"
    for command in ("unshare", "nsenter", "ip"):
        if shutil.which(command) is None:
            return f"the command {command} is missing; scripts/test installs it"
    return None


class Lab:
    """The machine: `run` and `start` do things in it, `address` is where it is reached from here."""

    def __init__(self) -> None:
        reason = missing_rights()
        if reason:
            raise RigError(reason)
        sweep_dead()
        self.token = secrets.token_hex(3)
        # On a real disk: overlay2 needs one, and /tmp is memory on many machines.
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/var/tmp"))
        self.path.chmod(0o711)
        self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.log_folder = self._folder("log", 0o700)
        self.cgroup = self.path.name
        self.interface = f"kbt-{self.token}"
        network = _free_network()
        self.gateway, self.address = (str(address) for address in network.hosts())
        self._init: subprocess.Popen[str] | None = None
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Lab {self.address} in {self.path}, {len(self.processes())} processes>"

    def _folder(self, name: str, mode: int) -> Path:
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)
        return folder

    def take(self, source: Path, name: str) -> Path:
        """Have a folder of this machine in the made one too; on one disk they share its files: nobody changes them."""
        target = self.path / name
        how = "-al" if source.stat().st_dev == self.path.stat().st_dev else "-a"
        run(["cp", how, source, target])
        return target

    def home(self, user: str) -> Path:
        """The home folder of a login; the path is the same from here and from inside."""
        return self.path / "home" / user

    @contextmanager
    def shell(self, user: str, shell: str) -> Iterator[None]:
        """A login has another shell, for new connections. As before at the end."""
        passwd = self.path / "etc/passwd"
        before = passwd.read_text()
        lines = [
            line.rpartition(":")[0] + f":{shell}" if line.startswith(f"{user}:") else line
            for line in before.splitlines()
        ]
        # In place: the machine has this very file at /etc/passwd.
        passwd.write_text("\n".join([*lines, ""]))
        try:
            yield
        finally:
            passwd.write_text(before)

    @contextmanager
    def expired(self, user: str) -> Iterator[None]:
        """A login's account is over since 1970. As before at the end."""
        shadow = self.path / "etc/shadow"
        before = shadow.read_text()
        lines = [
            f"{user}:*:19000:0:99999:7::1:" if line.startswith(f"{user}:") else line for line in before.splitlines()
        ]
        shadow.write_text("\n".join([*lines, ""]))
        try:
            yield
        finally:
            shadow.write_text(before)

    @contextmanager
    def home_files(self, user: str, files: Mapping[str, str]) -> Iterator[None]:
        """A login's home has these files, by their path in it. Gone at the end, with folders made for them."""
        home, made = self.home(user), []
        for name, text in files.items():
            folder = home
            for part in Path(name).parts[:-1]:
                folder = folder / part
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
            (home / name).write_text(text)
            (home / name).chmod(0o755)
            made.append(home / name)
        self.run(["chown", "-hR", f"{user}:{user}", str(home)])
        try:
            yield
        finally:
            for path in reversed(made):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    @contextmanager
    def without_command(self, name: str) -> Iterator[None]:
        """Nobody there can run this command, wherever on this machine's PATH or in the usual places it is."""
        folders = [*os.get_exec_path(), "/usr/local/bin", "/usr/bin", "/snap/bin"]
        found = (shutil.which(name, path=folder) for folder in folders)
        # /bin is often /usr/bin.
        places = {Path(path).resolve() for path in found if path}
        with ExitStack() as undo:
            for place in map(str, places):
                self.run(["mount", "--bind", "/dev/null", place])
                undo.callback(self.run, ["umount", place])
            yield

    def _boot(self) -> None:
        wish = {
            "name": NAME,
            "folders": {"/run/sshd": "755", "/run/user": "755", "/run/lock": "1777"}
            | {f"/run/user/{user.uid}": "755" for user in USERS},
            "binds": self._binds(),
        }
        wish_path = self.path / "machine.json"
        wish_path.write_text(json.dumps(wish))
        words = ["unshare", "-m", "-n", "-p", "-u", "-i", "--fork", "--mount-proc", "--kill-child"]
        log = self.log_folder / "init.log"
        with log.open("wb") as sink:
            self._init = subprocess.Popen(
                [*words, sys.executable, "-I", str(Path(__file__).with_name("lab_init.py")), str(wish_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                start_new_session=True,
            )
        assert self._init.stdout is not None
        if self._init.stdout.readline() != "ready\n":
            raise RigError(f"the made machine did not start:\n{log.read_text()}")
        self._pid = psutil.Process(self._init.pid).children()[0].pid
        self._namespace = _pid_namespace(self._pid)
        run(["ip", "link", "add", self.interface, "type", "veth", "peer", "name", "eth0", "netns", str(self._pid)])
        run(["ip", "addr", "add", f"{self.gateway}/30", "dev", self.interface])
        self.run(["ip", "addr", "add", f"{self.address}/30", "dev", "eth0"])
        for device in ("lo", "eth0"):
            self.run(["ip", "link", "set", device, "up"])
        run(["ip", "link", "set", self.interface, "up"])
        wait_until(lambda: _is_up(self.interface), "the network cable")

    def _binds(self) -> Mapping[str, str]:
        """This machine's user files with our logins added; the originals stay as they are."""
        etc = self._folder("etc", 0o755)
        names = {user.name for user in USERS}
        known = ("passwd", "group", "shadow")
        text = {name: _lines_without(Path("/etc") / name, {*names, "docker", "root"}) for name in known}
        text["passwd"].append(f"root:x:0:0:root:{self.home('root')}:/bin/bash")
        text["group"].append("root:x:0:")
        text["shadow"].append("root:*:19000:0:99999:7:::")
        docker = ",".join(user.name for user in USERS if "docker" in user.groups)
        text["group"].append(f"docker:x:{DOCKER_GID}:{docker}")
        self._folder("home", 0o711)
        self._folder("home/root", 0o700)
        for user in USERS:
            home = self._folder(f"home/{user.name}", 0o700)
            os.chown(home, user.uid, user.uid)
            text["passwd"].append(f"{user.name}:x:{user.uid}:{user.uid}::{home}:/bin/bash")
            text["group"].append(f"{user.name}:x:{user.uid}:")
            text["shadow"].append(f"{user.name}:*:19000:0:99999:7:::")
        modes = {"passwd": 0o644, "group": 0o644, "shadow": 0o600}
        for name in known:
            (etc / name).write_text("\n".join(text[name]) + "\n")
            (etc / name).chmod(modes[name])
        (etc / "hosts").write_text(f"127.0.0.1 localhost {NAME}\n{self.address} {NAME}\n")
        binds = {f"/etc/{name}": str(etc / name) for name in (*known, "hosts")}
        if Path("/etc/sudoers").exists():
            sudoers = etc / "sudoers"
            docker_command = shutil.which("docker") or "/usr/bin/docker"
            sudoers.write_text(f"kbsudo ALL=(root) NOPASSWD: {docker_command} system dial-stdio\n")
            sudoers.chmod(0o440)
            binds["/etc/sudoers"] = str(sudoers)
        return binds | {"/tmp": str(self._folder("tmp", 0o1777))}

    @property
    def root(self) -> Path:
        """The machine's files as its processes see them, from here; its /proc has its own process ids."""
        return Path(f"/proc/{self._pid}/root")

    def inside(self, words: Sequence[str]) -> list[str]:
        """The same command, as root of the made machine."""
        return ["nsenter", "-t", str(self._pid), "-m", "-n", "-p", "-u", "-i", "--", *words]

    def run(self, words: Sequence[str], *, seconds: float = 60.0) -> str:
        """Run a command in the machine as root and return what it printed."""
        return run(self.inside(words), seconds=seconds)

    def start(self, name: str, words: Sequence[str], *, env: Mapping[str, str] | None = None) -> Daemon:
        """A long-running process in the machine; its log is `<log folder>/<name>.log`."""
        return Daemon(name, self.inside(words), log=self.log_folder / f"{name}.log", env=env)

    def processes(self) -> list[psutil.Process]:
        """Every process of the machine, its containers' too, as seen from here."""
        parents = _parents()
        owned: dict[int, bool] = {0: False}
        found = []
        for pid in parents:
            # Such as: it has ended meanwhile.
            with suppress(OSError, psutil.Error):
                if self._owns(pid, parents, owned):
                    found.append(psutil.Process(pid))
        return found

    def processes_named(self, *names: str) -> list[psutil.Process]:
        """Those of them with one of these names; one that ends meanwhile is none."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if process.name() in names:
                    found.append(process)
        return found

    def _owns(self, pid: int, parents: Mapping[int, int], owned: dict[int, bool]) -> bool:
        # A container may have a pid namespace of its own; then an ancestor is in ours.
        if pid not in owned:
            is_ours = _pid_namespace(pid) == self._namespace
            owned[pid] = is_ours or self._owns(parents.get(pid, 0), parents, owned)
        return owned[pid]

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """The network cable is out: packets vanish, nobody is told. Plugged in again at the end."""
        run(["ip", "link", "set", self.interface, "down"])
        try:
            yield
        finally:
            run(["ip", "link", "set", self.interface, "up"])
            wait_until(lambda: _is_up(self.interface), "the network cable")

    def close(self) -> None:
        """End every process of the machine, then remove its files and cgroups. Safe to call twice."""
        if self._init is not None:
            left = self.processes() if hasattr(self, "_namespace") else []
            assert self._init.stdin is not None
            assert self._init.stdout is not None
            self._init.stdin.close()
            self._init.stdout.close()
            try:
                self._init.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._init.kill()
                self._init.wait(timeout=10)
            psutil.wait_procs(left, timeout=20)
            self._init = None
        # The kernel removes the cable with the machine's network, a moment after its last process.
        with suppress(RigError):
            wait_until(lambda: self.interface not in psutil.net_if_addrs(), "the cable to go", 5)
        _remove_cgroups(self.cgroup)
        if self.path.exists():
            _remove_files(self.path)
            os.close(self._lock)


def _lines_without(path: Path, names: set[str]) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.split(":")[0] not in names]


def _parents() -> dict[int, int]:
    """The parent of each process here. psutil's own way takes six times as long, and the tests ask often."""
    found: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                # The name before it, in brackets, may have any character.
                words = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()
                found[int(entry.name)] = int(words[1])
    return found


def _pid_namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def _is_up(interface: str) -> bool:
    # sysfs shows the network namespace of whoever mounted it: this machine's.
    return Path(f"/sys/class/net/{interface}/operstate").read_text().strip() == "up"


def _free_network() -> ipaddress.IPv4Network:
    """A /30 of the range kept for measurements (RFC 2544) that no interface here has."""
    taken = [address.address for cards in psutil.net_if_addrs().values() for address in cards]
    while True:
        network = ipaddress.IPv4Network((0xC6120000 + 4 * secrets.randbelow(1 << 15), 30))
        if not any(str(address) in taken for address in network.hosts()):
            return network


def cgroups_of(name: str) -> list[Path]:
    """The top folder of a machine's control groups in each hierarchy that has one."""
    tops = (*Path("/sys/fs/cgroup").glob(f"*/{name}"), Path("/sys/fs/cgroup") / name)
    return [top for top in tops if top.is_dir()]


def _remove_cgroups(name: str) -> None:
    for top in cgroups_of(name):
        # os.walk passes over what goes while it looks: a dying container's groups go by themselves.
        for folder, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()


def _remove_files(folder: Path) -> None:
    """Remove a machine's folder, its lock last: what a killed removal leaves is the next run's to sweep."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == LOCK):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    folder.rmdir()


def sweep_dead() -> None:
    """Remove what a killed test run left: folders whose lock nobody holds, and their cgroups.

    Many runs may sweep at once: who has the lock removes, the others pass by. What cannot be removed now stays for the
    next one.
    """
    for folder in Path("/var/tmp").glob(f"{PREFIX}*"):
        lock = folder / LOCK
        # A minute's grace: the owner makes the file a moment before it takes the lock.
        with suppress(OSError):
            if time.time() - lock.stat().st_mtime < 60:
                continue
            handle = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_cgroups(folder.name)
                _remove_files(folder)
            finally:
                os.close(handle)
