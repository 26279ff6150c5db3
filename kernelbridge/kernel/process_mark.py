"""Name a process so that none is taken for another: neither a later one, nor one of another machine or container.

A home may be shared by several machines, and a number says nothing of a process of another one. So a mark has two
parts: `pid@start`, as it always was, and the process's birth: on which machine, in which boot and which pid namespace,
and how many clock ticks after that boot. Ticks and not the time of day: clocks are set, and psutil's start moves with
them. All that names a machine is hashed: marks go to hosts (see machine-id(5)).
"""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from kernelbridge.kernel import life_lock
from kernelbridge.protocol.mount_table import file_system

if sys.platform != "linux":
    import psutil
if sys.platform == "darwin":
    import ctypes
if sys.platform == "win32":
    import winreg

# Of marks without a birth, which the first release wrote: they have the time of day alone, and it may be set.
_SAME_SECONDS: Final = 2.0
_DIGEST_LENGTH: Final = 12
_PROC = Path("/proc")
# Beside the records.
LIFE_LOCKS_FOLDER: Final = "processes"
# Where these are, one machine at a time has the files. What is missing here may be shared.
_LOCAL_FILE_SYSTEMS: Final = frozenset(
    ("apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "reiserfs", "tmpfs", "xfs", "zfs")
)


class Liveness(enum.Enum):
    """Whether a process runs, as far as that can be known here."""

    ALIVE = "alive"
    ENDED = "ended"
    # It is another machine's, or another container's.
    UNKNOWN = "unknown"


class ProcessMark(NamedTuple):
    """The name of one process: `pid@start`, and where and when it began; empty: nobody."""

    process: str = ""
    # Empty in what the first release wrote.
    birth: str = ""

    @property
    def lock_name(self) -> str:
        """The name of its file in life_lock.py: processes that began in one tick have one birth."""
        return f"{self.process.partition('@')[0]}.{self.birth}"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What tells one machine's processes from all others; a part that cannot be known is empty."""

    # The installation's own id: a home that is shared has it not.
    machine_id: str
    hostname: str
    # Another one after each start of the machine.
    boot: str
    # Containers of one machine have the same boot, and numbers of their own.
    pid_namespace: str

    def has_processes_of(self, other: Machine) -> bool:
        """Whether the other's processes can be seen here by their numbers."""
        if (self.boot, self.pid_namespace) != (other.boot, other.pid_namespace):
            return False
        return bool(self.boot) or (self.machine_id == other.machine_id and self.hostname == other.hostname)

    def may_be_restarted(self, other: Machine) -> bool:
        """Whether this may be the other's container, started anew: nothing differs but the numbers of processes."""
        return bool(self.boot) and replace(self, pid_namespace=other.pid_namespace) == other

    def is_later_boot_of(self, other: Machine, *, shares_files: bool) -> bool:
        """Whether this is the other after a restart, with which all its processes ended.

        A cluster's nodes, and clones, may have one id: the host's name counts too, unless nobody else has the files.
        """
        if self.boot == other.boot or not other.boot or self.machine_id != other.machine_id:
            return False
        return not shares_files or (bool(self.machine_id) and self.hostname == other.hostname)


def own_mark() -> ProcessMark:
    """Return the mark of this process, the same all its life."""
    return _first_mark(os.getpid())


@functools.cache
def _first_mark(pid: int) -> ProcessMark:
    return mark_of(pid)


def mark_of(pid: int) -> ProcessMark:
    """Return the mark of a process of this machine that runs. Raises ProcessLookupError."""
    ticks = _start_ticks(pid)
    started = _start_time(pid)
    if ticks is None or started is None:
        raise ProcessLookupError(pid)
    here = this_machine()
    birth = ".".join((here.machine_id, here.hostname, here.boot, here.pid_namespace, str(ticks)))
    return ProcessMark(f"{pid}@{started:.2f}", birth)


def liveness(mark: ProcessMark, *, folder: Path | None = None, here: Machine | None = None) -> Liveness:
    """Whether the process of a mark runs; nobody has ended. `folder` is where the mark was found, if in a file."""
    if not mark.process:
        return Liveness.ENDED
    here = here or this_machine()
    number, _, started = mark.process.partition("@")
    try:
        pid, seconds = int(number), float(started)
        birth = _read_birth(mark.birth) if mark.birth else None
    except ValueError:
        return Liveness.UNKNOWN
    if birth is None:
        now = _start_time(pid)
        return _either(now is not None and abs(now - seconds) < _SAME_SECONDS)
    machine, ticks = birth
    if here.has_processes_of(machine):
        return _either(_start_ticks(pid) == ticks)
    own_disk = folder if folder is not None and is_local(folder) else None
    is_over = here.is_later_boot_of(machine, shares_files=own_disk is None)
    if own_disk is not None and here.may_be_restarted(machine):
        is_over = life_lock.is_free(own_disk / LIFE_LOCKS_FOLDER, mark.lock_name)
    return Liveness.ENDED if is_over else Liveness.UNKNOWN


def _either(is_alive: bool) -> Liveness:
    return Liveness.ALIVE if is_alive else Liveness.ENDED


def _read_birth(text: str) -> tuple[Machine, int]:
    """Read where and when a process began. Raises ValueError for another version's."""
    machine_id, hostname, boot, pid_namespace, ticks = text.split(".")
    return Machine(machine_id=machine_id, hostname=hostname, boot=boot, pid_namespace=pid_namespace), int(ticks)


# -- who holds a kernel, as a relay is told


def owner_text(installation: str, mark: ProcessMark, start_id: str) -> str:
    """Write the mark of a relay's owner; the first release reads it too."""
    return f"{installation}:{mark.process}:{start_id}~{mark.birth}"


def owner_process(text: str) -> ProcessMark:
    """Return the process of a relay's owner; of a text of another kind nothing can be known."""
    _, _, rest = text.partition(":")
    process, _, start_id = rest.partition(":")
    _, _, birth = start_id.partition("~")
    return ProcessMark(process or "?", birth)


def owner_has_ended(text: str) -> bool:
    """Whether the process of an owner is known to have ended."""
    return liveness(owner_process(text)) is Liveness.ENDED


# -- this machine


@functools.cache
def this_machine() -> Machine:
    """Return what tells this machine's processes, or this container's, from all others."""
    return Machine(
        machine_id=_digest(_machine_id()),
        hostname=_digest(platform.node()),
        boot=_digest(_boot_id()),
        pid_namespace=_pid_namespace(),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(b"kernelbridge " + text.encode()).hexdigest()[:_DIGEST_LENGTH] if text else ""


def is_local(folder: Path, *, mounts: Path = _PROC / "self/mountinfo") -> bool:
    """Whether a folder is on a disk that one machine at a time has; False where nobody knows."""
    try:
        path = str(folder.resolve())
        table = mounts.read_text("utf-8", "replace")
    except OSError:
        return False
    return file_system(path, table) in _LOCAL_FILE_SYSTEMS


if sys.platform == "linux":

    def _machine_id() -> str:
        for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
            text = _read(path)
            # systemd writes this word into images that are to be copied.
            if text and text != "uninitialized":
                return text
        return ""

    def _boot_id() -> str:
        return _read(_PROC / "sys/kernel/random/boot_id")

    def _pid_namespace() -> str:
        try:
            return str((_PROC / "self/ns/pid").stat().st_ino)
        except OSError:
            return ""

    def _start_ticks(pid: int) -> int | None:
        """Return the clock ticks from the boot to a process's start; None where there is no such process any more."""
        # The second field is the command, in parentheses, and may have both spaces and parentheses: see proc(5).
        fields = _read(_PROC / f"{pid}/stat").rpartition(")")[2].split()
        # A zombie has ended; only its parent has not heard of it.
        return None if not fields or fields[0] in "ZX" else int(fields[19])

    def _start_time(pid: int) -> float | None:
        """Return a process's start by the time of day, as it is set now."""
        ticks = _start_ticks(pid)
        lines = _read(_PROC / "stat").splitlines()
        boot_seconds = next((int(line.split()[1]) for line in lines if line.startswith("btime ")), 0)
        return None if ticks is None else boot_seconds + ticks / os.sysconf("SC_CLK_TCK")

    def _read(path: Path) -> str:
        try:
            return path.read_text("utf-8", "replace").strip()
        except OSError:
            return ""

else:

    def _pid_namespace() -> str:
        return ""

    def _start_time(pid: int) -> float | None:
        """Return a process's start by the time of day; these systems write it down, and setting the clock leaves it."""
        try:
            return psutil.Process(pid).create_time()
        except (ValueError, psutil.Error):
            return None

    def _start_ticks(pid: int) -> int | None:
        """Return a process's start in hundredths of a second; None where there is no such process any more."""
        started = _start_time(pid)
        return None if started is None else round(100 * started)


if sys.platform == "win32":

    def _machine_id() -> str:
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SOFTWARE\Microsoft\Cryptography") as key:
                return str(winreg.QueryValueEx(key, "MachineGuid")[0])
        except OSError:
            return ""

    def _boot_id() -> str:
        # There is none. A process of before has another start.
        return ""

elif sys.platform == "darwin":

    def _machine_id() -> str:
        wait, made = (ctypes.c_long * 2)(0, 0), ctypes.create_string_buffer(16)
        # See gethostuuid(2).
        return "" if ctypes.CDLL(None).gethostuuid(made, wait) else made.raw.hex()

    def _boot_id() -> str:
        text, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
        asked = ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", text, ctypes.byref(size), None, 0)
        return "" if asked else text.value.decode("ascii", "replace")

elif sys.platform != "linux":

    def _machine_id() -> str:
        return ""

    def _boot_id() -> str:
        return ""
