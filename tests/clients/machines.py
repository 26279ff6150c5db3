"""Another machine, or container, that has the same home: words to put before a command. Needs root and util-linux.

Each is a pid namespace of its own, which ends with its first process; what it lacks of another machine is given to it.
"""

from __future__ import annotations

from pathlib import Path

_OWN_PROCESSES = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def machine(hostname: str) -> list[str]:
    """Run a command where this machine's processes are not, under another host name."""
    return [*_OWN_PROCESSES, "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', hostname]


def container() -> list[str]:
    """Run a command in another container of this machine, which has the same host name."""
    return list(_OWN_PROCESSES)


def after_a_restart(folder: Path) -> list[str]:
    """Run a command on this machine as it is after a restart: another boot, and all processes of before have ended."""
    boot_id = folder / "boot_id"
    boot_id.write_text("0e3f0c6e-3f0e-4b8e-9d52-3c1a7e2f9b10\n")
    mount = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    return [*_OWN_PROCESSES, "sh", "-c", mount, str(boot_id)]
