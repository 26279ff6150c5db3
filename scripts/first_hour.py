"""A person's first hour on two bare machines, with times. Called by scripts/first-hour.

Both are Debian's minimal system, by debootstrap. They share this machine's kernel, and are joined by a cable without a
way out: what pip would fetch lies in a folder of the laptop, and the image that a person would pull is made of the same
Debian with its Python.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pexpect

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.rig.daemon import Daemon, run
from tests.rig.debian import codename, mirror
from tests.rig.lab import Lab, missing_rights
from tests.rig.sshd import make_key

ROOT = Path(__file__).parents[1]
HOST_PACKAGES = ("openssh-server", "docker.io", "iptables", "iproute2", "ca-certificates")
LAPTOP_PACKAGES = ("python3-venv", "openssh-client")
IMAGE = "python:3.11"
USER = "ada"
PACKAGES = "/packages"
COMMAND_SECONDS = 900
COLUMNS = 118
_CLEAN = (
    "HOME=/root",
    "TERM=xterm-256color",
    "LANG=C.UTF-8",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a person types, once the program has printed this."""

    after: str
    typed: str


@dataclass
class Transcript:
    """What was typed, what came, and how long it took; on this terminal as it comes."""

    # Headings and blocks, as a page has them.
    parts: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def head(self, text: str) -> None:
        """Begin a chapter."""
        self.parts.append(f"## {text}\n")
        print(f"\n== {text}\n", flush=True)

    def tell(self, text: str) -> None:
        """Say something between the commands."""
        self.parts.append(f"{text}\n")
        print(text, flush=True)

    def command(self, shown: str, came: str, seconds: float) -> None:
        """Note a command with what it printed."""
        self.seconds += seconds
        text = f"$ {shown}\n{came.rstrip()}".rstrip()
        self.parts.append(f"```text\n{text}\n```\n\n{seconds:.1f} s\n")
        print(f"{text}\n({seconds:.1f} s)\n", flush=True)


# A root folder becomes a mount namespace's own root. A mere chroot will not do: `docker exec` would lead out of it.
_BOOT = """
set -e
cd "$0"
mount --bind . .
cd "$0"
mount -t proc proc proc
mount --rbind /sys sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm run/sshd
for name in null zero full random urandom tty; do
    touch dev/$name
    mount --bind /dev/$name dev/$name
done
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mkdir old
pivot_root . old
umount -l /old
rmdir /old
touch /run/up
exec sleep infinity
"""


class Machine:
    """A Debian in a folder. `install` works before it is up, all else afterwards."""

    def __init__(self, path: Path, lab: Lab) -> None:
        self.path = path
        self._lab = lab
        # Its first process; set by boot().
        self._first: Daemon | None = None

    def boot(self) -> None:
        """It has a root of its own, in the lab's namespaces: it goes with the lab."""
        words = ["unshare", "-m", "sh", "-c", _BOOT, str(self.path)]
        self._first = self._lab.start(self.path.name, words)
        self._first.wait_until(lambda: self._is_up, f"{self.path.name} to be up")

    @property
    def _is_up(self) -> bool:
        assert self._first is not None
        return self.seen("run/up").exists()

    def seen(self, path: str) -> Path:
        """One of its files as its processes see it, from here."""
        assert self._first is not None
        return Path(f"/proc/{self._first.main().pid}/root") / path

    def words(self, words: Sequence[str]) -> list[str]:
        """The command as it is run from here."""
        assert self._first is not None
        enter = ["nsenter", "-t", str(self._first.main().pid), "-m", "-n", "-p", "-u", "-i", "--"]
        return [*enter, "env", "-i", "-C", "/", *_CLEAN, *words]

    def run(self, *words: str) -> str:
        """Run it as root and return what it printed."""
        return run(self.words(words), seconds=COMMAND_SECONDS)

    def install(self, packages: Sequence[str]) -> float:
        """Install Debian packages, none of whose services starts; return how many seconds it took."""
        policy = self.path / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        began = time.monotonic()
        address, proxy = mirror()
        (self.path / "etc/apt/sources.list").write_text(f"deb {address} {codename()} main\n")
        options = ["-o", f"Acquire::http::Proxy={proxy}"] if proxy else []
        clean = ["env", "-i", *_CLEAN, "DEBIAN_FRONTEND=noninteractive"]
        apt = ["chroot", str(self.path), *clean, "apt-get", "-q", *options]
        run([*apt, "update"])
        run([*apt, "install", "-y", "--no-install-recommends", *packages], seconds=COMMAND_SECONDS)
        policy.unlink()
        return time.monotonic() - began


def make_roots(folder: Path) -> tuple[Path, Path]:
    """Two bare Debians: the host's and the laptop's."""
    bare = folder / "bare"
    address, proxy = mirror()
    environment = {**os.environ, **({"http_proxy": proxy} if proxy else {})}
    run(["debootstrap", "--variant=minbase", codename(), bare, address], env=environment, seconds=COMMAND_SECONDS)
    run(["cp", "-a", bare, folder / "laptop"])
    bare.rename(folder / "host")
    return folder / "host", folder / "laptop"


def pack(folder: Path, *, python: str) -> None:
    """What `pip install kernelbridge` would fetch, and what an image without ipykernel is given."""
    folder.mkdir()
    source = folder.parent / "source"
    source.mkdir()
    tar = folder.parent / "source.tar"
    run(["git", "-C", ROOT, "archive", "-o", tar, "HEAD"])
    run(["tar", "-C", source, "-xf", tar])
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source])
    (wheel,) = folder.glob("kernelbridge-*.whl")
    run([*pip, "download", "-q", "--only-binary=:all:", "--python-version", python, "-d", folder, wheel, "ipykernel"])
    tar.unlink()


class Host:
    """The services of a bare machine that becomes a container host."""

    def __init__(self, lab: Lab, machine: Machine) -> None:
        self._lab, self._machine = lab, machine
        self._daemons: list[Daemon] = []

    def start(self, public_key: str) -> None:
        """Its services run, and the user can log in."""
        self._machine.run("useradd", "--create-home", "--shell", "/bin/bash", "--groups", "docker", USER)
        home = self._machine.path / "home" / USER
        (home / ".ssh").mkdir(mode=0o700)
        (home / ".ssh/authorized_keys").write_text(public_key + "\n")
        self._machine.run("chown", "-R", f"{USER}:{USER}", f"/home/{USER}/.ssh")
        engine = ["dockerd", "--group", "docker", "--cgroup-parent", f"/{self._lab.cgroup}", "--log-level", "warn"]
        for words in (engine, ["/usr/sbin/sshd", "-D", "-e"]):
            name = Path(words[0]).name
            self._daemons.append(Daemon(name, self._machine.words(words), log=self._lab.log_folder / f"{name}.log"))
        socket = self._machine.seen("run/docker.sock")
        self._daemons[0].wait_until(socket.exists, "dockerd's socket", 60)

    def give_image(self, root: Path) -> None:
        """The engine has an image: a bare Debian with Python, and no ipykernel."""
        tar = self._machine.path / "image.tar"
        run(["tar", "-C", root, "-cf", tar, "."], seconds=COMMAND_SECONDS)
        self._machine.run("docker", "import", "/image.tar", IMAGE)
        tar.unlink()

    def containers(self) -> str:
        """All containers that there are."""
        return self._machine.run("docker", "ps", "-aq")

    def stop(self) -> None:
        """End its services."""
        for daemon in self._daemons:
            daemon.stop()


class Person:
    """Somebody at the laptop's terminal."""

    def __init__(self, machine: Machine, transcript: Transcript) -> None:
        self._machine, self._transcript = machine, transcript
        self.environ: dict[str, str] = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": PACKAGES, "HOME": "/root"}

    def types(self, line: str, *answers: Answer) -> str:
        """Type a line, and the answers to what it asks; return what was printed. It must end well."""
        settings = [f"{name}={value}" for name, value in self.environ.items()]
        path = "/root/kb/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        words = self._machine.words(["env", *settings, f"PATH={path}", "sh", "-c", f"cd; {line}"])
        began = time.monotonic()
        program = pexpect.spawn(
            words[0], words[1:], encoding="utf-8", timeout=COMMAND_SECONDS, dimensions=(50, COLUMNS), echo=True
        )
        came = ""
        for answer in answers:
            program.expect_exact(answer.after)
            came += str(program.before) + answer.after
            program.sendline(answer.typed)
        program.expect(pexpect.EOF)
        came = _plain(came + str(program.before))
        program.close()
        self._transcript.command(line, came, time.monotonic() - began)
        if program.exitstatus != 0:
            raise SystemExit(f"`{line}` ended with {program.exitstatus}")
        return came


def _plain(text: str) -> str:
    """What stays on the screen: no colours, and of a line that was written anew its last text."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]", "", text.replace("\r\n", "\n"))
    return "\n".join(line.rpartition("\r")[2].rstrip() for line in text.split("\n"))


def walk(lab: Lab, folder: Path, transcript: Transcript) -> None:
    """Both machines from bare to a cell that is debugged, then to nothing."""
    host_root, laptop_root = make_roots(folder)
    server, laptop = Machine(host_root, lab), Machine(laptop_root, lab)
    for machine, packages, text in (
        (server, HOST_PACKAGES, "The host, once, by who owns it"),
        (laptop, LAPTOP_PACKAGES, "The laptop"),
    ):
        transcript.head(text)
        transcript.command(f"apt-get install {' '.join(packages)}", "", machine.install(packages))
    image_root = folder / "image"
    run(["cp", "-a", laptop_root, image_root])
    server.boot()
    laptop.boot()
    version = laptop.run("python3", "-c", "import platform; print(platform.python_version())").strip()
    pack(folder / "packages", python=version)
    run(["cp", "-a", folder / "packages", laptop_root / PACKAGES.strip("/")])
    shutil.copy(ROOT / "scripts/debugging.py", laptop_root / "root/debugging.py")
    key = laptop_root / "root/.ssh/id_ed25519"
    key.parent.mkdir(mode=0o700)
    make_key(key)
    (key.parent / "config").write_text(f"Host gpu1\n  HostName {lab.address}\n  User {USER}\n")
    host = Host(lab, server)
    try:
        host.start(key.with_suffix(".pub").read_text().strip())
        host.give_image(image_root)
        first_hour(Person(laptop, transcript), transcript)
        left = host.containers()
        if left:
            raise SystemExit(f"containers were left behind: {left}")
    finally:
        host.stop()


def first_hour(person: Person, transcript: Transcript) -> None:
    """What a person types who has README and nothing else."""
    before = transcript.seconds
    transcript.head("From `pip install` to a debugged cell")
    transcript.tell("`~/.ssh/config` names the host: `gpu1`.")
    person.types("python3 -m venv kb && . kb/bin/activate && pip install -q kernelbridge")
    said = person.types(
        "kernelbridge init",
        Answer(after="[1]: ", typed="1"),
        Answer(after="[y/N]: ", typed="y"),
        Answer(after="[1]: ", typed="1"),
    )
    name = next(line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("Wrote kernelbridge-"))
    person.types(f"python debugging.py {name}")
    transcript.tell(f"**{transcript.seconds - before:.0f} s from `pip install` to the breakpoint.**")
    transcript.head("And then")
    person.types(f"python debugging.py {name}")
    person.types("kernelbridge doctor")
    person.types("kernelbridge ps")


def page(transcript: Transcript) -> str:
    """The page of docs/."""
    today = datetime.date.today().isoformat()
    about = (
        f"Written by `scripts/first-hour` on {today}, with {os.cpu_count()} processors and no GPU: two bare Debians "
        f"({codename()}, from debootstrap), joined by a cable that leads nowhere else. What pip would fetch lies in a "
        "folder, and the image, Debian's Python without ipykernel, is on the host already."
    )
    return "\n".join(["# A first hour\n", textwrap.fill(about, 119) + "\n", *transcript.parts])


def main() -> int:
    """Called by scripts/first-hour."""
    parser = argparse.ArgumentParser(prog="scripts/first-hour", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="make a page of the transcript")
    chosen = parser.parse_args()
    reason = missing_rights()
    if reason:
        print(f"It cannot run: {reason}.")
        return 1
    transcript = Transcript()
    lab = Lab()
    try:
        walk(lab, lab.path, transcript)
    finally:
        lab.close()
    if chosen.write:
        chosen.write.write_text(page(transcript))
    return 0


if __name__ == "__main__":
    sys.exit(main())
