"""Name the folders of a container that are kernelbridge's own: no mount of the user's may cover them."""

from __future__ import annotations

from typing import Final

# Where the relay keeps its sockets and each launch's TMPDIR: memory, gone with the container.
RUN_FOLDER: Final = "/run/kernelbridge"
# Where it keeps output that nobody took yet: an anonymous volume, on disk, gone with the container.
JOURNAL_FOLDER: Final = "/var/lib/kernelbridge"
# Where `cache = true` mounts the login's folder of caches.
CACHE_FOLDER: Final = "/var/cache/kernelbridge"
# Where it sees the folders whose locks say which cards are taken.
LOCKS_FOLDER: Final = "/var/lib/kernelbridge.locks"
# Where it has the folder of the host in which its short way's socket is.
DOOR_FOLDER: Final = "/run/kernelbridge.door"
