"""Ask a host about itself right after login, with one constant command, and parse its answer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# How long a script of this file may run.
SCRIPT_SECONDS = 20.0
_FIRST_LINE = "kernelbridge facts 1"

# For `sh -c`. No input goes into it. What the docker command would use comes first: DOCKER_HOST, else the context; of
# its files not more is read than that, for config.json may have passwords.
# sudo is asked only where no socket is writable: each refusal may be logged and mailed to root.
FACTS_SCRIPT = r"""
uid=$(id -u)
printf 'kernelbridge facts 1\n'
printf 'uid %s\ngid %s\nuser %s\nhome %s\n' "$uid" "$(id -g)" "$(id -un)" "$HOME"
printf 'groups %s\n' "$(id -G)"
exec 2>/dev/null
usable=no
look() {
  exists=no; writable=no
  [ -S "$1" ] && exists=yes
  [ "$exists" = yes ] && [ -w "$1" ] && writable=yes && usable=yes
  printf 'socket %s %s %s\n' "$exists" "$writable" "$1"
}
flat() { tr '\n' ' ' <"$1" | sed 's/"[[:space:]]*:[[:space:]]*"/":"/g'; }
docker=${DOCKER_CONFIG:-$HOME/.docker}
engine=$DOCKER_HOST
if [ -z "$engine" ]; then
  context=${DOCKER_CONTEXT:-$(flat "$docker/config.json" | sed -n 's/.*"currentContext":"\([^"]*\)".*/\1/p')}
  [ "$context" = default ] && context=
  for meta in ${context:+"$docker"/contexts/meta/*/meta.json}; do
    text=$(flat "$meta")
    case $text in *'"Name":"'"$context"'"'*)
      engine=$(printf '%s\n' "$text" | sed -n 's/.*"docker"[[:space:]]*:[[:space:]]*{[^}]*"Host":"\([^"]*\)".*/\1/p')
    esac
  done
fi
[ -z "$engine" ] || printf 'engine %s\n' "$engine"
case "$engine" in unix://*) look "${engine#unix://}";; esac
for runtime in "$XDG_RUNTIME_DIR" "/run/user/$uid"; do
  [ -z "$runtime" ] || own="$own $runtime"
done
look /var/run/docker.sock
for runtime in $own; do look "$runtime/docker.sock"; done
for place in .docker/run/docker.sock .docker/desktop/docker.sock .orbstack/run/docker.sock .rd/docker.sock \
  .colima/default/docker.sock .config/colima/default/docker.sock .colima/docker.sock .lima/docker/sock/docker.sock; do
  look "$HOME/$place"
done
for runtime in $own; do look "$runtime/podman/podman.sock"; done
look /run/podman/podman.sock
look "$HOME/.local/share/containers/podman/machine/podman.sock"
command -v docker >/dev/null && printf 'docker yes\n'
if [ "$usable" = no ] && command -v sudo >/dev/null && sudo -n -l docker system dial-stdio >/dev/null </dev/null; then
  printf 'sudo yes\n'
fi
printf 'end\n'
"""

# What one socket is like; `$1` is its path. Linux names listening sockets in /proc/net/unix (flag 00010000) by the path
# they were bound with, which for Docker is /run/docker.sock or, by the usual link, /var/run/docker.sock.
SOCKET_SCRIPT = r"""
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
printf 'kernelbridge socket %s %s %s\n' "$exists" "$writable" "$listening"
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
    """A host's own description, from right after login."""

    user: str
    uid: int
    gid: int
    home: str
    sockets: tuple[SocketFacts, ...]
    has_docker_command: bool
    may_sudo_docker: bool
    # Where DOCKER_HOST or the current context of the docker command leads; empty: nowhere else than usual.
    engine: str = ""
    # All its groups, with `gid`.
    groups: tuple[int, ...] = ()

    @property
    def usable_sockets(self) -> tuple[SocketFacts, ...]:
        """The sockets that are there and that this login may write to, the likeliest first."""
        return tuple(socket for socket in self.sockets if socket.exists and socket.is_writable)


def parse_facts(answer: str) -> HostFacts:
    """Read the answer to FACTS_SCRIPT.

    Raises: ValueError with what is missing.
    """
    lines = answer.splitlines()
    if lines[:1] != [_FIRST_LINE] or "end" not in lines:
        raise ValueError("the host's answer is cut")
    pairs = [line.partition(" ") for line in lines]
    words = {key: value for key, _, value in pairs if key != "socket"}
    try:
        return HostFacts(
            user=words["user"],
            uid=int(words["uid"]),
            gid=int(words["gid"]),
            home=words["home"],
            sockets=_parse_sockets([value for key, _, value in pairs if key == "socket"]),
            has_docker_command=words.get("docker") == "yes",
            may_sudo_docker=words.get("sudo") == "yes",
            engine=words.get("engine", ""),
            groups=tuple(map(int, words.get("groups", "").split())),
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
        words = line.split()
        if words[:2] == ["kernelbridge", "socket"] and len(words) >= 5:
            exists, writable, listening = words[2:5]
            return SocketFacts(
                path=path,
                exists=exists == "yes",
                is_writable=writable == "yes",
                is_listening=None if listening == "unknown" else listening == "yes",
            )
    return SocketFacts(path=path, exists=False, is_writable=False)
