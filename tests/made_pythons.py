"""Pythons as images have them, for the tests of what is added to those."""

from __future__ import annotations

from typing import Any

from kernelbridge.hosts.docker.images.python_probe import FoundPython

MARKERS = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "python_full_version": "3.11.2",
    "python_version": "3.11",
    "sys_platform": "linux",
}


def made_python(path: str = "/usr/bin/python3", version: str = "3.11.2", **facts: Any) -> FoundPython:
    """A Python of Debian 12, unless `facts` say otherwise."""
    known: dict[str, Any] = {
        "prefix": path.rpartition("/bin/")[0],
        "cache_tag": "cpython-311",
        "soabi": "cpython-311-x86_64-linux-gnu",
        "libc": "glibc 2.36",
        "packages": {},
        "markers": MARKERS,
        **facts,
    }
    return FoundPython(path=path, version=version, **known)
