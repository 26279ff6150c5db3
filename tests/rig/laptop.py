"""The user's side of the tests: a home with ssh configuration and keys, Jupyter's folders, the config file.

Nothing of it lies where the made machine can see it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.rig.sshd import SshRig, make_key

_ALIASES = {
    "lab": "kbtest",
    "lab-root": "root",
    "lab-other": "kbother",
    "lab-sudo": "kbsudo",
    "lab-rootless": "kbrootless",
}


class Keys:
    """The user's ssh key pair, one for the whole test run."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kernelbridge-test-keys-"))
        self.private = self.folder / "id_ed25519"
        make_key(self.private)

    @property
    def public(self) -> str:
        """The line for authorized_keys."""
        return self.private.with_suffix(".pub").read_text().strip()

    def close(self) -> None:
        """Remove the pair."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Laptop:
    """One user's folders. `env` is what a process started for this user gets; `config` is the kernelbridge.toml."""

    home: Path
    config: Path
    data_dir: Path
    config_dir: Path
    runtime_dir: Path

    @property
    def env(self) -> dict[str, str]:
        """The whole environment for a child process of this user."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "KERNELBRIDGE_"))}
        return ours | self.variables

    @property
    def variables(self) -> dict[str, str]:
        """Only what makes this user's folders be found."""
        return {
            "HOME": str(self.home),
            "JUPYTER_DATA_DIR": str(self.data_dir),
            "JUPYTER_CONFIG_DIR": str(self.config_dir),
            "JUPYTER_RUNTIME_DIR": str(self.runtime_dir),
            "IPYTHONDIR": str(self.home / ".ipython"),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_DATA_HOME": str(self.home / ".local/share"),
            "XDG_STATE_HOME": str(self.home / ".local/state"),
            "KERNELBRIDGE_CONFIG": str(self.config),
        }

    @property
    def ssh_folder(self) -> Path:
        """Where config, known_hosts and the key are."""
        return self.home / ".ssh"

    def configure_ssh(self, *lines: str) -> None:
        """Put lines in front of the ssh config: there the first value counts."""
        path = self.ssh_folder / "config"
        path.write_text("\n".join([*lines, "", path.read_text()]))

    def ssh(self, alias: str, *words: str, options: Sequence[str] = ()) -> list[str]:
        """The words of OpenSSH's own client for this user; it never asks."""
        return ["ssh", "-F", str(self.ssh_folder / "config"), "-o", "BatchMode=yes", *options, alias, *words]

    def write_config(self, text: str) -> Path:
        """Replace kernelbridge.toml."""
        self.config.write_text(text)
        return self.config

    def write_environment(self, image: str | None, *, host: Mapping[str, object] | None = None, **keys: object) -> Path:
        """Replace kernelbridge.toml by one host `lab` and one environment `test`; keys go into the environment."""
        host_keys: dict[str, object] = {"ssh": "lab", **(host or {})}
        environment_keys: dict[str, object] = {"hosts": ["lab"], **({"image": image} if image else {}), **keys}
        lines = ["[hosts.lab]", *_toml(host_keys), "", "[environments.test]", *_toml(environment_keys), ""]
        return self.write_config("\n".join(lines))


def make_laptop(folder: Path, *, keys: Keys, sshd: SshRig, proxy_port: int) -> Laptop:
    """A new home in `folder`: the aliases lab, lab-root, lab-other, lab-sudo, lab-rootless; each also as X-proxied.

    lab-behind is the machine's own loopback address, with lab-proxied as the jump host.
    """
    laptop = Laptop(
        home=folder,
        config=folder / "jupyter-config" / "kernelbridge.toml",
        data_dir=folder / "jupyter-data",
        config_dir=folder / "jupyter-config",
        runtime_dir=folder / "run",
    )
    for made in (laptop.ssh_folder, laptop.data_dir, laptop.config_dir, laptop.runtime_dir):
        made.mkdir(parents=True)
        made.chmod(0o700)
    key = laptop.ssh_folder / "id_ed25519"
    for suffix in ("", ".pub"):
        shutil.copy(keys.private.with_suffix(suffix), key.with_suffix(suffix))
    known = laptop.ssh_folder / "known_hosts"
    known.write_text(
        sshd.known_hosts_line(sshd.address, sshd.port)
        + sshd.known_hosts_line("127.0.0.1", proxy_port)
        + f"lab-behind {sshd.host_key}\n",
    )
    places = {"": (sshd.address, sshd.port), "-proxied": ("127.0.0.1", proxy_port)}
    lines: list[str] = []
    for alias, user in _ALIASES.items():
        for suffix, (address, port) in places.items():
            lines += [f"Host {alias}{suffix}", f"  HostName {address}", f"  Port {port}", f"  User {user}", ""]
    lines += ["Host lab-behind", "  HostName 127.0.0.1", f"  Port {sshd.port}", "  User kbtest"]
    lines += ["  HostKeyAlias lab-behind", "  ProxyJump lab-proxied", ""]
    # OpenSSH's client takes ~ from the user database, not from HOME: the paths are absolute.
    lines += ["Host *", f"  IdentityFile {key}", "  IdentitiesOnly yes", f"  UserKnownHostsFile {known}", ""]
    config = laptop.ssh_folder / "config"
    config.write_text("\n".join(lines))
    config.chmod(0o600)
    return laptop


def _toml(keys: Mapping[str, object]) -> list[str]:
    return [f"{name} = {_toml_value(value)}" for name, value in keys.items()]


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_value(name)} = {_toml_value(one)}" for name, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(one) for one in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
