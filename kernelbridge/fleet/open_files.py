"""Refuse a start that would open more files than this process may have: libzmq would end the process."""

from __future__ import annotations

import sys

import psutil

from kernelbridge.errors import KernelBridgeError

if sys.platform != "win32":
    import resource

# The sockets of one kernel, of its clients and, for the first one, of the link: 28 were seen.
KERNEL_FILES = 40
_WANTED_FILES = 1024


def check() -> None:
    """Know that one more kernel's files can be opened. Raises KernelBridgeError."""
    if sys.platform != "win32":  # There is no such limit there.
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most != resource.RLIM_INFINITY:
            check_room(opened=psutil.Process().num_fds(), most=most)


def check_room(*, opened: int, most: int) -> None:
    """Know that so many open files leave room for one more kernel. Raises KernelBridgeError."""
    if most - opened < KERNEL_FILES:
        wanted = max(_WANTED_FILES, 4 * most)
        raise KernelBridgeError(
            f"This process may open {most} files and has opened {opened}: another kernel needs {KERNEL_FILES}.",
            f"Allow more with `ulimit -n {wanted}` before it is started.",
        )
