"""Choose the user of a container, and enter one whom the image does not know into its /etc/passwd, with a home. Pure.

What goes in and comes out is as the engine's API has it: tar archives.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kernelbridge.config.schema import HOST_USER, IMAGE_USER, Environment
from kernelbridge.hosts.transport.facts import HostFacts

PASSWD_FOLDER, PASSWD_NAME = "/etc", "passwd"
# More is no list of users.
PASSWD_BYTES: Final = 256 * 1024
# Of who has no name on the host, or one that another user of the image has.
_NAME: Final = "kernelbridge"
_NAME_PATTERN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_HOMES: Final = "home"
# The largest number that engines take for a user or a group.
_MOST_NUMBER: Final = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True)
class ContainerUser:
    """Who the kernel is in its container."""

    # As the engine takes it; empty: the image's own user.
    text: str = ""
    # Numbers of the login's other groups.
    groups: tuple[str, ...] = ()
    # The login's name, for a number that the image does not know.
    name: str = ""
    # Why it is not the login, though nobody has asked for another.
    trouble: str = ""


def choose(environment: Environment, facts: HostFacts, info: Mapping[str, Any]) -> ContainerUser:
    """Return the user: as the environment says, else the login on the host, where the engine has its number.

    `info` is the engine's GET /info.
    """
    if environment.user == IMAGE_USER:
        return ContainerUser()
    if environment.user != HOST_USER:
        return ContainerUser(text=environment.user)
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    if any("rootless" in option for option in options):
        # Its root is the login itself; its other numbers, of groups too, are nobody's.
        return ContainerUser(text="0:0")
    if any(option.startswith("name=userns") for option in options):
        return ContainerUser(trouble="its Docker runs with `userns-remap`, under which no container has your number")
    if max(facts.uid, facts.gid) > _MOST_NUMBER:
        return ContainerUser(trouble=f"no engine takes a user number as high as yours ({facts.uid}:{facts.gid})")
    others = sorted({group for group in facts.groups if group not in (facts.gid, 0) and group <= _MOST_NUMBER})
    groups = tuple(map(str, others)) if facts.uid else ()
    return ContainerUser(text=f"{facts.uid}:{facts.gid}", groups=groups, name=facts.user)


def enter(archive: bytes, user: str, name: str = "") -> bytes | None:
    """Return an archive for `/`: the list of users with a line for `user` (`UID` or `UID:GID`), and a home of its own.

    `archive` holds the image's list. None where the user is in it already, or it is no plain file.
    """
    uid, _, gid = user.partition(":")
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            file = tar.next()
            content = tar.extractfile(file) if file is not None and file.isfile() else None
            text = content.read().decode("utf-8", "surrogateescape") if content is not None else None
    except tarfile.TarError:
        return None
    if file is None or text is None or not (uid.isdecimal() and (gid or "0").isdecimal()):
        return None
    lines = [line.split(":") for line in text.splitlines()]
    taken = {words[0] for words in lines}
    free = next((one for one in (name, _NAME) if _NAME_PATTERN.fullmatch(one) and one not in taken), None)
    if free is None or any(words[2:3] == [uid] for words in lines):
        return None
    home = f"{_HOMES}/{free}"
    separator = "" if not text or text.endswith("\n") else "\n"
    line = f"{free}:x:{uid}:{gid or 0}:{free}:/{home}:/bin/sh\n"
    added = f"{text}{separator}{line}".encode("utf-8", "surrogateescape")
    folder = tarfile.TarInfo(f"{home}/")
    folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, 0o700, int(uid), int(gid or 0)
    file.name, file.size = f"{PASSWD_FOLDER[1:]}/{PASSWD_NAME}", len(added)
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        tar.addfile(file, io.BytesIO(added))
        tar.addfile(folder)
    return written.getvalue()
