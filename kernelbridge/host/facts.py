"""What a host says about itself right after login: one constant command, and the reading of its answer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# The first line of the answer; what stands before it was printed by the login's own shell files.
_FIRST_LINE = "kernelbridge facts 1"

# Fed to `sh -s` over stdin, so that the login's shell (fish, csh) never parses it. No input goes into it.
# sudo is asked only where no socket is writable: each refusal may be logged and mailed to root.
FACTS_SCRIPT = b"""
exec 2>/dev/null
uid=$(id -u)
printf 'kernelbridge facts 1\\n'
printf 'system %s\\nmachine %s\\nuid %s\\ngid %s\\nuser %s\\nhome %s\\n' \
  "$(uname -s)" "$(uname -m)" "$uid" "$(id -g)" "$(id -un)" "$HOME"
usable=no
look() {
  exists=no; writable=no
  [ -S "$1" ] && exists=yes
  [ "$exists" = yes ] && [ -w "$1" ] && writable=yes && usable=yes
  printf 'socket %s %s %s\\n' "$exists" "$writable" "$1"
}
case "$DOCKER_HOST" in unix://*) look "${DOCKER_HOST#unix://}";; esac
look /var/run/docker.sock
[ -n "$XDG_RUNTIME_DIR" ] && look "$XDG_RUNTIME_DIR/docker.sock"
look "/run/user/$uid/docker.sock"
look "$HOME/.docker/run/docker.sock"
[ -n "$XDG_RUNTIME_DIR" ] && look "$XDG_RUNTIME_DIR/podman/podman.sock"
look "/run/user/$uid/podman/podman.sock"
look /run/podman/podman.sock
command -v docker >/dev/null && printf 'docker yes\\n'
if [ "$usable" = no ] && command -v sudo >/dev/null && sudo -n -l docker system dial-stdio >/dev/null </dev/null; then
  printf 'sudo yes\\n'
fi
printf 'end\\n'
"""

# What one socket is like; `$1` is its path. Linux names listening sockets in /proc/net/unix (flag 00010000) by the path
# they were bound with, which for Docker is /run/docker.sock or, by the usual link, /var/run/docker.sock.
SOCKET_SCRIPT = b"""
exists=no; writable=no; listening=unknown
[ -S "$1" ] && exists=yes
[ -w "$1" ] && writable=yes
if [ -r /proc/net/unix ]; then
  listening=no
  real=$(readlink -f "$1" 2>/dev/null)
  while read -r _ _ _ flags _ _ _ path; do
    [ "$flags" = 00010000 ] || continue
    case "$path" in "$1"|"$real"|"/var$real") listening=yes;; esac
  done </proc/net/unix
fi
printf 'kernelbridge socket %s %s %s\\n' "$exists" "$writable" "$listening"
"""


@dataclass(frozen=True, kw_only=True)
class SocketFacts:
    """One place where an engine's socket may be."""

    path: str
    exists: bool
    is_writable: bool
    # None: this kind of host cannot say; or it was not asked.
    is_listening: bool | None = None


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What a host said right after login."""

    system: str
    machine: str
    user: str
    uid: int
    gid: int
    home: str
    sockets: tuple[SocketFacts, ...]
    has_docker_command: bool
    may_sudo_docker: bool

    @property
    def usable_sockets(self) -> tuple[SocketFacts, ...]:
        """The sockets that are there and that this login may write to, the likeliest first."""
        return tuple(socket for socket in self.sockets if socket.exists and socket.is_writable)


def parse_facts(answer: str) -> HostFacts:
    """Read the answer to FACTS_SCRIPT.

    Raises: ValueError with what is missing, when no POSIX shell answered.
    """
    _, found, rest = answer.partition(_FIRST_LINE + "\n")
    lines = rest.splitlines()
    if not found or "end" not in lines:
        raise ValueError("no POSIX shell answered")
    pairs = [line.partition(" ") for line in lines]
    words = {key: value for key, _, value in pairs if key != "socket"}
    try:
        return HostFacts(
            system=words["system"],
            machine=words["machine"],
            user=words["user"],
            uid=int(words["uid"]),
            gid=int(words["gid"]),
            home=words["home"],
            sockets=_parse_sockets([value for key, _, value in pairs if key == "socket"]),
            has_docker_command=words.get("docker") == "yes",
            may_sudo_docker=words.get("sudo") == "yes",
        )
    except (KeyError, ValueError) as exc:
        raise ValueError(f"the host's answer lacks {exc}") from exc


def _parse_sockets(values: Sequence[str]) -> tuple[SocketFacts, ...]:
    sockets: dict[str, SocketFacts] = {}
    for value in values:
        exists, writable, path = value.split(" ", 2)
        # The first mention wins: XDG_RUNTIME_DIR is usually /run/user/UID, which comes again.
        sockets.setdefault(path, SocketFacts(path=path, exists=exists == "yes", is_writable=writable == "yes"))
    return tuple(sockets.values())


def parse_socket(path: str, answer: str) -> SocketFacts:
    """Read the answer to SOCKET_SCRIPT; without one nothing is known, and the socket counts as missing."""
    for line in answer.splitlines():
        if line.startswith("kernelbridge socket "):
            exists, writable, listening = line.split()[2:5]
            return SocketFacts(
                path=path,
                exists=exists == "yes",
                is_writable=writable == "yes",
                is_listening=None if listening == "unknown" else listening == "yes",
            )
    return SocketFacts(path=path, exists=False, is_writable=False)
