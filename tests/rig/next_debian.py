"""The programs of the next Debian, for an engine alone: its Docker 26 where this Debian has 20.10, and its Podman 5.

apt downloads and checks them, dpkg unpacks them; nothing is installed. The engine sees their /usr in place of this
machine's, in a mount namespace of its own; everything else of the made machine is as before.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.rig.daemon import run
from tests.rig.debian import codename, mirror
from tests.rig.lab import Lab

THIS_RELEASE, RELEASE = "bookworm", "trixie"
DOCKER = ("docker.io", "docker-cli", "docker-buildx", "iptables")
ROOTLESS_DOCKER = ("docker.io", "iptables", "rootlesskit", "uidmap", "util-linux")
REGISTRY = ("docker-registry",)
PODMAN = ("podman", "conmon", "golang-github-containers-common", "netavark", "runc", "catatonit", "nftables")
# What engines run, and find on every machine.
_SYSTEM = ("coreutils", "dash", "procps", "sed")
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def missing_next_debian() -> str | None:
    """Why they cannot be had here; None where they can."""
    if codename() != THIS_RELEASE:
        return f"this is {codename()}, and not the Debian before {RELEASE}"
    for command in ("apt-get", "dpkg-deb", "unshare"):
        if shutil.which(command) is None:
            return f"the command {command} is missing"
    return None if _KEYS.exists() else f"{_KEYS} is missing (Debian: debian-archive-keyring)"


def next_debians_usr(lab: Lab, packages: Sequence[str], name: str) -> Path:
    """Return a /usr with these programs and all that they need, as a folder of this name in the made machine's.

    They are downloaded by the first who asks.
    """
    cache = os.environ.get("KERNELBRIDGE_TEST_CACHE")
    return lab.take(_made(Path(cache) if cache else lab.path, packages), name)


def _made(folder: Path, packages: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [*packages, *_SYSTEM]
    name = f"{RELEASE}-{hashlib.sha256(' '.join(wanted).encode()).hexdigest()[:12]}"
    handle = os.open(folder / f"{name}.lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        made = folder / name
        if not made.exists():
            unfinished = folder / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            _unpack(_download(unfinished, wanted), unfinished / "root")
            shutil.rmtree(unfinished / "apt")
            unfinished.rename(made)
    finally:
        os.close(handle)
    return made / "root/usr"


def with_usr(usr: Path, words: Sequence[str]) -> list[str]:
    """The same command, for which this is /usr."""
    script = 'mount --bind "$1" /usr && shift && exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, "sh", str(usr), *words]


def _download(folder: Path, packages: Sequence[str]) -> list[Path]:
    """Download them with an apt of their own, to which nothing is installed. Return the packages' files."""
    apt = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    address, proxy = mirror()
    (apt / "sources.list").write_text(f"deb [signed-by={_KEYS}] {address} {RELEASE} main\n")
    (apt / "status").touch()
    options = {
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::State::lists": "lists",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "-",
        # Its own user may not write here.
        "APT::Sandbox::User": "root",
        **({"Acquire::http::Proxy": proxy} if proxy else {}),
    }
    config = apt / "apt.conf"
    config.write_text("".join(f'{key} "{value}";\n' for key, value in options.items()))
    run(["apt-get", "-qq", "-c", config, "update"])
    run(
        [
            "apt-get",
            "-qq",
            "-c",
            config,
            "-y",
            "--no-install-recommends",
            "--download-only",
            "install",
            *packages,
        ]
    )
    return sorted((apt / "cache/archives").glob("*.deb"))


def _unpack(packages: Sequence[Path], root: Path) -> None:
    # Debian's one /usr: what a package has in /bin lies there.
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        # Alone, dpkg-deb would put a folder where the link is.
        run(["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$2"', "sh", package, root])
    # What their installation would make.
    for name in ("iptables", "ip6tables"):
        if (root / "usr/sbin" / f"{name}-nft").exists():
            (root / "usr/sbin" / name).symlink_to(f"{name}-nft")
