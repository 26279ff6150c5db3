"""Expand `~`, `%` tokens and `${VARIABLES}` as OpenSSH's client does. Pure."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TOKEN = re.compile(r"%(?P<token>.)|\$\{(?P<variable>[^}]*)\}")
_PERCENT = re.compile(r"%(?P<token>.)(?P<variable>(?!))?")
_HOME = re.compile(r"~(?=/|\\|$)")


@dataclass(frozen=True, kw_only=True)
class Around:
    """Who and where the user is on this machine."""

    home: Path
    # What the user database says, which OpenSSH takes `~` from; the same as `home` almost everywhere.
    database_home: Path
    user: str
    uid: str
    machine: str
    environ: Mapping[str, str]

    def moved(self, path: Path) -> Path:
        """Return where a path is that OpenSSH made of `~`: HOME is the home for all of kernelbridge."""
        if self.home == self.database_home or not path.is_relative_to(self.database_home):
            return path
        return self.home / path.relative_to(self.database_home)

    def path(self, text: str) -> Path:
        """Read a path that may begin with `~` or `~user`; a relative one is one of the current folder."""
        return Path(os.path.expanduser(_HOME.sub(lambda _: str(self.home), text, count=1)))  # noqa: PTH111 - never raises


def target_tokens(*, name: str, host: str, port: int, user: str) -> dict[str, str]:
    """Return the tokens of ProxyCommand and ProxyJump: where the connection goes to."""
    return {"%": "%", "h": host, "n": name, "p": str(port), "r": user}


def all_tokens(around: Around, target: Mapping[str, str], *, alias: str, jump: str) -> dict[str, str]:
    """Return the tokens of file names."""
    digest = hashlib.sha1(  # noqa: S324 - OpenSSH's, a name and no proof
        "".join([around.machine, target["h"], target["p"], target["r"], jump]).encode()
    ).hexdigest()
    return {
        **target,
        "C": digest,
        "d": str(around.home),
        "i": around.uid,
        "j": jump,
        "k": alias,
        "L": around.machine.partition(".")[0],
        "l": around.machine,
        "u": around.user,
    }


def expand(text: str, tokens: Mapping[str, str], environ: Mapping[str, str] | None = None) -> str:
    """Replace tokens, and variables where there is an environment for them.

    Raises: ValueError: a token that does not exist, a variable that is not set.
    """

    def replaced(match: re.Match[str]) -> str:
        token, variable = match["token"], match["variable"]
        found = tokens.get(token) if token is not None else (environ or {}).get(variable)
        if found is None:
            what = f"`%{token}` is not a token there" if token is not None else f"{variable} is not set"
            raise ValueError(f"`{text}`: {what}")
        return found

    # In a line for a shell, variables are the shell's.
    return (_TOKEN if environ is not None else _PERCENT).sub(replaced, text)
