"""Write what OpenSSH's client, and all that reads its config, needs to reach into containers."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kernelbridge.atomic_files import write_through, write_whole

# What a container is called for ssh: this, and an environment's name or the beginning of a kernel's id.
HOST_PREFIX: Final = "kb-"
# What the host key is known by, whichever container it is.
_KEY_ALIAS: Final = "kernelbridge"
_FILE_NAME: Final = "kernelbridge.conf"
_NOTE: Final = "# Made by `kernelbridge ssh-config --write`; the next one writes it anew."
_INCLUDE: Final = f"Include {_FILE_NAME}"
_HEAD: Final = f"# Containers of kernelbridge: `ssh kb-NAME`.\n{_INCLUDE}\n\n"


def host_key_path(folder: Path) -> Path:
    """Where the key is that containers are known by, in the folder of this machine's records."""
    return folder / "ssh" / "host_key"


def known_hosts_path(folder: Path) -> Path:
    """Where it is written that the key is right."""
    return folder / "ssh" / "known_hosts"


def known_hosts_line(public: str) -> str:
    """Return the line for the public half of the host key."""
    return f"{_KEY_ALIAS} {public}\n"


def entries(names: Sequence[str], *, folder: Path, config: Path, python: str = sys.executable) -> str:
    """Return the ssh config: an entry for each environment, by which editors list it, and one for all kernels."""
    proxy = _command([python, "-m", "kernelbridge", "--config", str(config), "ssh-proxy"])
    hosts = " ".join([*(f"{HOST_PREFIX}{name}" for name in names), f"{HOST_PREFIX}*"])
    lines = [
        _NOTE,
        f"Host {hosts}",
        f"  ProxyCommand {proxy} %n",
        # Whoever it is in the container, that is who it is.
        "  User kernelbridge",
        f"  HostKeyAlias {_KEY_ALIAS}",
        f"  UserKnownHostsFile {_quoted(str(known_hosts_path(folder)))}",
        "  StrictHostKeyChecking yes",
        # No key of the user's is needed, and none is offered.
        "  PubkeyAuthentication no",
        "  PasswordAuthentication no",
        "  KbdInteractiveAuthentication no",
        "  ForwardAgent no",
        "  ControlMaster no",
    ]
    return "\n".join(lines) + "\n"


def _command(words: Sequence[str]) -> str:
    """Return words as a ProxyCommand: OpenSSH gives it to the user's shell, on Windows to cmd."""
    text = subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
    return text.replace("%", "%%")


def _quoted(path: str) -> str:
    text = path.replace("\\", "/").replace("%", "%%")
    return f'"{text}"' if " " in text else text


def write(text: str, ssh_folder: Path) -> Path:
    """Write the entries to a file of their own, and include that in the user's config. Raises OSError."""
    ssh_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = ssh_folder / _FILE_NAME
    write_whole(own, text.encode(), is_private=True)
    config = ssh_folder / "config"
    written = _text(config) if config.exists() else ""
    if not includes(written):
        # First: what stands below a `Host` line is that one's alone.
        write_through(config, f"{_HEAD}{written}".encode("utf-8", "surrogateescape"))
    return own


def _text(path: Path) -> str:
    """Return a file whose bytes may be anything: they go back as they were."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def includes(config: str) -> bool:
    """Whether a user's config includes the entries."""
    return any(_FILE_NAME in names for names in map(_included, config.splitlines()))


def _included(line: str) -> set[str]:
    """Return the names of the files, without their folders, that a line includes."""
    found = re.match(r"\s*include\s*[\s=]\s*(.*)", line, re.IGNORECASE)
    words = re.findall(r'"[^"]*"|\S+', found[1]) if found else []
    return {word.strip('"').replace("\\", "/").rpartition("/")[2] for word in words}


def remove(ssh_folder: Path) -> bool:
    """Take all of it out of the user's config again; whether there was any."""
    own, config = ssh_folder / _FILE_NAME, ssh_folder / "config"
    was_there = own.exists()
    own.unlink(missing_ok=True)
    if config.exists() and includes(text := _text(config)):
        write_through(config, text.replace(_HEAD, "", 1).encode("utf-8", "surrogateescape"))
        was_there = True
    return was_there
