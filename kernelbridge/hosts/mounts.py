"""Resolve a mount's source on its host, its `~` and its links, and refuse one that is forbidden there. Pure."""

from __future__ import annotations

import posixpath

from kernelbridge.config import fields
from kernelbridge.config.schema import Environment, Mount
from kernelbridge.errors import ConfigInvalid, MountMissing, Problem

# Makes a folder of the login for itself alone.
MAKE_SCRIPT = 'umask 077; mkdir -p "$1"'
# Prints for each of its arguments where it leads in the end and a byte 0: "=/path", "-" for what is not there, "?" for
# what cannot be told. macOS before 12.3 has no `readlink -f`; there a folder can be told, a file cannot.
RESOLVE_SCRIPT = r"""
for path do
  if [ ! -e "$path" ]; then printf '%s\0' -
  elif end=$(readlink -f "$path" 2>/dev/null) || end=$(cd -P "$path" 2>/dev/null && pwd -P); then printf '=%s\0' "$end"
  else printf '%s\0' '?'
  fi
done
"""


def host_path(source: str, host_home: str) -> str:
    """Replace `~` in a mount's source by the login's home on the host."""
    if source == "~" or source.startswith("~/"):
        return posixpath.normpath(posixpath.join(host_home, source[2:]))
    return source


def check_source(path: str, mount: Mount, environment: Environment) -> str:
    """Refuse what a mount's source turned out to be on the host; return it in its plain form. Raises: ConfigInvalid."""
    try:
        return fields.check_mount_source(path)
    except ValueError as error:
        raise refused(mount, environment, str(error)) from error


def resolved(mount: Mount, environment: Environment, host_home: str) -> Mount:
    """Return the mount with its source as it is on the host. Raises: ConfigInvalid."""
    # Checked again, because only now is it known what ~ stands for.
    source = check_source(host_path(mount.source, host_home), mount, environment)
    return mount.model_copy(update={"source": source})


def sources(environment: Environment, host_home: str, *, socket: str) -> list[str]:
    """Return the arguments of RESOLVE_SCRIPT: the sources of all mounts, the engine's socket. Raises: ConfigInvalid."""
    return [*(resolved(mount, environment, host_home).source for mount in environment.host_mounts), socket]


def check_resolved(answer: bytes, environment: Environment) -> None:
    """Refuse a mount whose source leads, by the answer to RESOLVE_SCRIPT, to what is forbidden. Raises: ConfigInvalid.

    For a cluster's login node: what is not there may be on its nodes, where the job's script looks again.
    """
    ends = answer.decode("utf-8", "surrogateescape").split("\0")[:-1]
    for mount, end in zip(environment.host_mounts, ends, strict=False):
        if end.startswith("="):
            check_source(end[1:], mount, environment)


def parse_resolved(
    answer: bytes, environment: Environment, *, host: str, host_home: str, socket: str
) -> tuple[Mount, ...]:
    """Read the answer to RESOLVE_SCRIPT: the mounts with sources in which nothing is a link. What was checked is used.

    Raises: MountMissing; ConfigInvalid, for what may not be mounted, such as a folder of the engine's own socket, or
    cannot be told.
    """
    ends = answer.decode("utf-8", "surrogateescape").split("\0")[:-1]
    last = ends[-1] if len(ends) > len(environment.host_mounts) else ""
    # One that this login cannot see is where the engine says that it is.
    socket_end = last[1:] if last.startswith("=") else socket
    found = []
    for index, mount in enumerate(environment.host_mounts):
        end = ends[index] if index < len(ends) else "?"
        if end == "-":
            raise MountMissing(host=host, path=host_path(mount.source, host_home))
        if not end.startswith("="):
            raise refused(mount, environment, f"{host} cannot tell where the source leads")
        source = check_source(end[1:], mount, environment)
        if fields.holds(source, socket_end):
            sentence = f"{source} may not be mounted: the engine's socket is there; whoever has it is root on {host}"
            raise refused(mount, environment, sentence)
        found.append(mount.model_copy(update={"source": source}))
    return tuple(found)


def refused(mount: Mount, environment: Environment, sentence: str) -> ConfigInvalid:
    """Make the error for a mount that cannot be made, or must not be."""
    problem = Problem(key=f"environments.{environment.name}.mounts", sentence=sentence)
    return ConfigInvalid(path=mount.source, problems=[problem])
