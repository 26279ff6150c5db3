"""Remember what a listing needs of a config that was read and checked, so that the next one need not load what does.

Nothing but time is lost with it: whoever finds nothing here, or anything that is not as it was, reads the config.
There are no secrets in it: names and addresses of hosts, names of environments and of their Pythons.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from kernelbridge import __version__

# How long nothing is remembered after a failure; each time so much longer, so many times.
FORGET_FAILURE_SECONDS = 60.0
_LONGER, _MOST_TIMES = 4, 6
_VARIABLES = ("HOME", "KERNELBRIDGE_CONFIG")
_PREFIXES = ("JUPYTER", "XDG_")


class RememberedEnvironment(NamedTuple):
    """What a listing needs of an environment; in place of schema.Environment."""

    name: str
    image: str
    python: str


class RememberedHost(NamedTuple):
    """What a listing needs of a host, and of the last login to it; in place of schema.Host."""

    name: str
    # As on the command line of `ssh`.
    ssh_words: tuple[str, ...]
    path: tuple[str, ...]
    socket: str | None
    # The engine's socket that was found on it, and the version of the API that it speaks.
    engine_socket: str
    api_version: str
    scheduler: None = None
    is_local: bool = False


class RememberedConfig(NamedTuple):
    """What a listing needs of a config; in place of schema.Config."""

    path: str
    hosts: Mapping[str, RememberedHost]
    pythons: Mapping[str, str]
    # What is assumed of an environment of another config.
    usual_python: str
    records_folder: str
    # Where VS Code finds the kernels that run; it is there where there are some.
    offers_folder: str

    def hosts_named(self, names: Collection[str]) -> list[RememberedHost]:
        """See schema.Config. Raises: KeyError."""
        wanted = {self.hosts[name].name for name in names}
        return [host for host in self.hosts.values() if not wanted or host.name in wanted]

    def environment_as(self, name: str, *, image: str, python: str) -> RememberedEnvironment:
        """See schema.Config."""
        python = python or self.pythons.get(name, self.usual_python)
        return RememberedEnvironment(name=name, image=image, python=python)


class Memory:
    """The file of what is remembered for a login that has these variables."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        names = sorted(name for name in environ if name in _VARIABLES or name.startswith(_PREFIXES))
        named = environ.get("KERNELBRIDGE_CONFIG", "/")
        from_here = "" if named.startswith(("/", "~")) else os.getcwd()  # noqa: PTH109
        whose = [__version__, sys.prefix, from_here, *(f"{name}={environ[name]}" for name in names)]
        digest = hashlib.sha256("\0".join(whose).encode("utf-8", "surrogateescape")).hexdigest()
        home = environ.get("HOME", "")
        cache = environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else "/nowhere")
        self.folder = f"{cache}/kernelbridge"
        self.path = f"{self.folder}/listing-{digest[:32]}.json"

    def __repr__(self) -> str:
        return f"<Memory {self.path}>"

    def recall(self) -> RememberedConfig | None:
        """Return what is remembered, if the config is as it was; else None."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            known = self._read()
            if "config" in known and _digest(known["config"]["path"]) == known["digest"]:
                config = known["config"]
                hosts = {
                    host[0]: RememberedHost(host[0], tuple(host[1]), tuple(host[2]), *host[3:])
                    for host in config["hosts"]
                }
                return RememberedConfig(**{**config, "hosts": hosts})
        return None

    def note_success(self) -> None:
        """Forget that there were failures."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            known = self._read()
            if known.pop("times", 0):
                self._write(known)

    def remember(self, config: RememberedConfig, *, digest: str) -> None:
        """Remember a config whose text had this digest; nothing happens where that failed a short time ago."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            known: dict[str, Any] = {}
            with contextlib.suppress(OSError, ValueError):
                known = self._read()
            plain = json.loads(json.dumps({**config._asdict(), "hosts": list(config.hosts.values())}))
            if known.get("config") == plain and known.get("digest") == digest:
                return
            if time.time() >= known.get("again", 0.0):
                self._write({**known, "config": plain, "digest": digest})

    def note_failure(self) -> None:
        """Remember nothing for a while, and for longer each time: it was of no use."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            times = min(int(self._read().get("times", 0)), _MOST_TIMES)
            self._write({"times": times + 1, "again": time.time() + FORGET_FAILURE_SECONDS * _LONGER**times})

    def _read(self) -> dict[str, Any]:
        with open(self.path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib would be loaded first
            known = json.load(file)
        if not isinstance(known, dict):
            raise ValueError("it is no object")
        return known

    def _write(self, known: Mapping[str, object]) -> None:
        # Here and not above: who only reads does without.
        from pathlib import Path

        from kernelbridge.atomic_files import write_whole

        os.makedirs(self.folder, mode=0o700, exist_ok=True)  # noqa: PTH103
        write_whole(Path(self.path), json.dumps(known).encode(), is_private=True)


def _digest(path: str) -> str:
    """Return what tells one text of a config from another. Raises: OSError."""
    with open(path, "rb") as file:  # noqa: PTH123
        return digest_of(file.read())


def digest_of(text: bytes) -> str:
    """Return what tells one text of a config from another."""
    return hashlib.sha256(text).hexdigest()
