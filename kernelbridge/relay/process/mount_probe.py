"""Write a file into each mount and look whose it is: what the kernel writes there should be its user's on the host."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from typing import Callable, List, NamedTuple, Optional, Sequence

from ...protocol.mount_table import file_system

# In proc(5)'s words. A server of theirs may take root, or anybody, for nobody.
_NFS = ("nfs", "nfs4")
_MOUNTS = "/proc/self/mountinfo"
_USERS = "/proc/self/uid_map"
_LABEL = "/proc/self/attr/current"


class MountTrouble(NamedTuple):
    """What became of a file: its kind, and the system's word or the number of its owner.

    `refused`, by `selinux` or by a server that has `squashed` root where that is plain; or `foreign`, where it is a
    server that has made the file another's: `mapped`.
    """

    kind: str
    path: str
    reason: str


def look(path: str) -> Optional[MountTrouble]:
    """Write a file there, and remove it again; None where it belonged to this user."""
    if not os.path.isdir(path):
        if os.access(path, os.W_OK):
            return None
        # Where SELinux refuses, it mostly hides even what a path is.
        kind = "refused" if os.path.isfile(path) else _refusal(path, errno.EACCES)
        return MountTrouble(kind, path, os.strerror(errno.EACCES))
    probe = os.path.join(path, ".kernelbridge-probe-" + uuid.uuid4().hex)
    try:
        with open(probe, "x"):
            owner = os.stat(probe).st_uid
        os.unlink(probe)
    except OSError as exc:
        return MountTrouble(_refusal(path, exc.errno), path, exc.strerror or str(exc))
    if owner == os.geteuid():
        return None
    return MountTrouble("mapped" if _is_on_nfs(path) else "foreign", path, str(owner))


def _refusal(path: str, number: Optional[int]) -> str:
    """Say which kind a refusal with this error number is."""
    if number not in (errno.EACCES, errno.EPERM):
        return "refused"
    if _is_on_nfs(path):
        # A rootless engine's root is another user to the server.
        is_root = os.geteuid() == 0 and _read(_USERS).split()[:2] == ["0", "0"]
        return "squashed" if is_root else "refused"
    # SELinux's labels are USER:ROLE:TYPE:LEVEL; other modules have other words there.
    has_selinux = number == errno.EACCES and _read(_LABEL).count(":") >= 3
    return "selinux" if has_selinux and _mode_allows(path) else "refused"


def _is_on_nfs(path: str) -> bool:
    return file_system(os.path.realpath(path), _read(_MOUNTS)) in _NFS


def _mode_allows(path: str) -> bool:
    """Whether the modes let this user make files in a folder, whatever else may not."""
    try:
        facts = os.stat(path)
    except PermissionError:
        # For that the folder's own mode does not count.
        return os.access(os.path.dirname(path), os.X_OK)
    except OSError:
        return False
    if facts.st_uid == os.geteuid():
        rights = facts.st_mode >> 6
    elif facts.st_gid in (os.getegid(), *os.getgroups()):
        rights = facts.st_mode >> 3
    else:
        rights = facts.st_mode
    return rights & 3 == 3


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


class MountProbe:
    """Looks at mounts in a thread of its own: a file server that hangs holds up nothing else."""

    def __init__(self, paths: Sequence[str], ring: Callable[[], object]) -> None:
        self._paths = paths
        self._ring = ring
        # Set by begin.
        self.has_begun = False
        # What was found and not taken yet; added to by the thread, whole troubles only.
        self._found: List[MountTrouble] = []

    def __repr__(self) -> str:
        return "<MountProbe of %d mounts, %d troubles>" % (len(self._paths), len(self._found))

    def begin(self) -> None:
        """Look at all of them, once; the second call does nothing."""
        if self._paths and not self.has_begun:
            threading.Thread(target=self._look_at_all, daemon=True).start()
        self.has_begun = True

    def _look_at_all(self) -> None:
        for path in self._paths:
            trouble = look(path)
            if trouble is not None:
                self._found.append(trouble)
                self._ring()

    def take(self) -> List[MountTrouble]:
        """Return what was found since the last call."""
        return [self._found.pop(0) for _ in range(len(self._found))]
