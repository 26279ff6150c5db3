"""This machine's Debian, and where apt has its packages from."""

from __future__ import annotations

from pathlib import Path

from tests.rig.daemon import RigError, run


def codename() -> str:
    """Such as `bookworm`."""
    words = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return words.get("VERSION_CODENAME", "").strip('"')


def mirror() -> tuple[str, str | None]:
    """The mirror that apt itself uses for this Debian, and apt's proxy if it has one."""
    targets = run(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(CODENAME)|$(COMPONENT)"])
    for line in targets.splitlines():
        address, release, component = line.split("|")
        if release == codename() and component == "main":
            proxy = run(["apt-config", "shell", "proxy", "Acquire::http::Proxy"]).partition("=")[2].strip().strip("'")
            return address, proxy or None
    raise RigError("apt names no mirror of this Debian; set KERNELBRIDGE_TEST_IMAGE to an image to take")
