"""Every error a user can meet: its sentence, its remedy, its exit code.

Those of image, container and kernel: kernel_errors.py.

KernelBridgeError
    1x  what the user wrote: ConfigInvalid, ConfigMissing, UnknownEnvironment, UnknownHost, SpecsUnwritable,
        SecretMissing, ConnectionFileInvalid, EndpointTaken
    2x  the way to the host: HostRefused, HostNameUnknown, HostUnreachable, LoginRefused, HostKeyUnknown,
        HostKeyChanged, ForwardingForbidden, LinkLost, SshConfigInvalid, SshFailed
    3x  the engine: EngineMissing, EngineDown, EngineDenied, EngineTooOld, EngineFailed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class KernelBridgeError(Exception):
    """What failed and where (`sentence`), and what to do next (`remedy`)."""

    exit_code: ClassVar[int] = 1

    def __init_subclass__(cls, *, exit_code: int) -> None:
        super().__init_subclass__()
        cls.exit_code = exit_code

    def __init__(self, sentence: str, remedy: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.sentence} {self.remedy}".rstrip()


def nearest_hint(nearest: str | None) -> str:
    """Ask whether the nearest right name was meant; nothing where there is none."""
    return f" Did you mean `{nearest}`?" if nearest else ""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong in the config: the key's dotted path and a sentence on it."""

    key: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.key}: {self.sentence}"


class ConfigInvalid(KernelBridgeError, exit_code=10):
    """The config file has problems; all of them are in `problems`."""

    def __init__(self, *, path: str, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(problems)
        lines = "; ".join(str(problem) for problem in self.problems)
        super().__init__(f"{path}: {lines}", "Mend the file; `kernelbridge config` checks it.")


class ConfigMissing(KernelBridgeError, exit_code=11):
    """A config file that was named does not exist, or cannot be read."""

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(
            f"{path}: the config file cannot be read ({reason}).",
            "Write it, or name another with KERNELBRIDGE_CONFIG.",
        )


class UnknownEnvironment(KernelBridgeError, exit_code=12):
    """No environment of this name in the config."""

    def __init__(self, *, name: str, path: str, nearest: str | None = None) -> None:
        super().__init__(
            f"{path}: there is no environment `{name}`.{nearest_hint(nearest)}",
            "Add it to the config, or run `kernelbridge install` to renew the kernel specs.",
        )


class UnknownHost(KernelBridgeError, exit_code=13):
    """No host of this name in the config."""

    def __init__(self, *, name: str, path: str, nearest: str | None = None) -> None:
        super().__init__(
            f"{path}: there is no host `{name}`.{nearest_hint(nearest)}",
            f"Add [hosts.{name}] to the config.",
        )


class SpecsUnwritable(KernelBridgeError, exit_code=14):
    """A kernel spec folder could not be written or removed."""

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(
            f"{path}: the kernel spec cannot be written ({reason}).", "Give yourself the right to write it."
        )


class SecretMissing(KernelBridgeError, exit_code=15):
    """`secrets` names a variable that this machine's environment does not have."""

    def __init__(self, *, environment: str, name: str) -> None:
        super().__init__(
            f"{environment}: the secret {name} is not set on this machine.",
            f"Set {name} where JupyterLab or VS Code is started, or take it out of `secrets`.",
        )


class ConnectionFileInvalid(KernelBridgeError, exit_code=16):
    """The connection file that an editor or Jupyter wrote cannot be used."""

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(f"{path}: the connection file cannot be used ({reason}).", "Start the kernel again.")


class EndpointTaken(KernelBridgeError, exit_code=17):
    """A port that the front-end chose is in use by another program."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(f"This machine: the kernel's ports are taken ({reason}).", "Start the kernel again.")


class HostRefused(KernelBridgeError, exit_code=20):
    """The connection was refused: no SSH server listens there."""

    def __init__(self, *, host: str, address: str) -> None:
        super().__init__(
            f"{host}: {address} refused the connection.",
            "Is sshd running there, and is the port right?",
        )


class HostNameUnknown(KernelBridgeError, exit_code=21):
    """The host's name does not resolve."""

    def __init__(self, *, host: str, address: str) -> None:
        super().__init__(
            f"{host}: the name {address} is not known here.",
            f"Mend `ssh` of [hosts.{host}] or HostName in ~/.ssh/config; are you on the right network?",
        )


class HostUnreachable(KernelBridgeError, exit_code=22):
    """No answer from the host: time out, no route, connection reset before login."""

    def __init__(self, *, host: str, address: str, reason: str) -> None:
        super().__init__(
            f"{host}: {address} cannot be reached ({reason}).",
            "Is the machine on, and are you on the right network or VPN?",
        )


class LoginRefused(KernelBridgeError, exit_code=23):
    """sshd accepts none of our keys for this user."""

    def __init__(self, *, host: str, user: str) -> None:
        super().__init__(
            f"{host}: the login as {user} was refused.",
            "Try `ssh` yourself; load the key into the ssh agent or name it as IdentityFile in ~/.ssh/config.",
        )


class HostKeyUnknown(KernelBridgeError, exit_code=24):
    """The host's key is not in known_hosts yet."""

    def __init__(self, *, host: str, algorithm: str, fingerprint: str) -> None:
        super().__init__(
            f"{host}: its host key is not known yet ({algorithm} {fingerprint}).",
            f"Compare the fingerprint with the one its owner gives you, then run `kernelbridge trust {host}`.",
        )


class HostKeyChanged(KernelBridgeError, exit_code=25):
    """The host shows another key than known_hosts has: a new machine, or somebody in between."""

    def __init__(self, *, host: str, algorithm: str, fingerprint: str, known_hosts_name: str) -> None:
        super().__init__(
            f"{host}: its host key has CHANGED (now {algorithm} {fingerprint}); somebody may be in between.",
            f"Ask its owner. If that is right: `ssh-keygen -R '{known_hosts_name}'`, then `kernelbridge trust {host}`.",
        )


class ForwardingForbidden(KernelBridgeError, exit_code=26):
    """sshd forbids forwarding, and there is no docker command on the host to go round it."""

    def __init__(self, *, host: str) -> None:
        super().__init__(
            f"{host}: its sshd forbids forwarding, and the docker command is not there to go round it.",
            "Ask for `AllowStreamLocalForwarding yes` in its sshd_config, or for the docker command to be installed.",
        )


class LinkLost(KernelBridgeError, exit_code=27):
    """The link to the host is down at this moment."""

    def __init__(self, *, host: str, since: str = "") -> None:
        when = f" since {since}" if since else ""
        super().__init__(f"{host}: the link is lost{when}.", "It is being opened again; the kernel there runs on.")


class SshConfigInvalid(KernelBridgeError, exit_code=28):
    """~/.ssh/config, or a key that it names, cannot be used."""

    def __init__(self, *, host: str, reason: str) -> None:
        super().__init__(f"{host}: the ssh configuration cannot be used ({reason}).", "Mend ~/.ssh/config.")


class SshFailed(KernelBridgeError, exit_code=29):
    """SSH failed in another way than those above."""

    def __init__(self, *, host: str, reason: str) -> None:
        super().__init__(f"{host}: SSH failed ({reason}).", "Try `ssh -v` to the same host; it tells more.")


class EngineMissing(KernelBridgeError, exit_code=30):
    """No engine socket was found on the host."""

    def __init__(self, *, host: str, looked: Sequence[str]) -> None:
        super().__init__(
            f"{host}: no Docker engine was found (looked at {', '.join(looked)}).",
            f"Install Docker there, or set `socket` of [hosts.{host}].",
        )


class EngineDown(KernelBridgeError, exit_code=31):
    """The engine's socket is there, and nobody answers."""

    def __init__(self, *, host: str, socket: str) -> None:
        super().__init__(
            f"{host}: the Docker engine at {socket} does not answer.",
            f"Start it on {host}: `systemctl start docker`.",
        )


class EngineDenied(KernelBridgeError, exit_code=32):
    """The login may not use the engine's socket."""

    def __init__(self, *, host: str, user: str, socket: str) -> None:
        super().__init__(
            f"{host}: user {user} may not use Docker ({socket}).",
            f"Add {user} to the group `docker` on {host}, use rootless Docker, or allow `sudo -n docker`.",
        )


class EngineTooOld(KernelBridgeError, exit_code=33):
    """The engine speaks an API older than what GPUs need."""

    def __init__(self, *, host: str, api: str, needed: str) -> None:
        super().__init__(
            f"{host}: its Docker engine is too old (API {api}, needed {needed}).",
            "Update Docker there to 19.03 or newer.",
        )


class EngineFailed(KernelBridgeError, exit_code=34):
    """The engine answered with an error of another kind."""

    def __init__(self, *, host: str, action: str, reason: str) -> None:
        super().__init__(
            f"{host}: Docker could not {action} ({reason}).", "The engine's log on the host may tell more."
        )
