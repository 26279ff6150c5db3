"""Define every error a user can meet: its sentence, its remedy, its exit code.

One table in one place, however long: `kernelbridge config --errors`, the docs and the tests walk it.

KernelBridgeError
    1x  what the user wrote: ConfigInvalid, ConfigMissing, UnknownEnvironment, UnknownHost, SpecsUnwritable,
        SecretMissing, ConnectionFileInvalid, EndpointTaken, SetupFailed, FileFailed
    2x  the way to the host: HostRefused, HostNameUnknown, HostUnreachable, LoginRefused, HostKeyUnknown,
        HostKeyChanged, ForwardingForbidden, LinkLost, SshConfigInvalid, SshFailed
    3x  engine and scheduler: EngineMissing, EngineDown, EngineDenied, EngineTooOld, EngineFailed, SlurmMissing,
        JobRefused, JobEnded, RuntimeMissing, SchedulerSilent
    4x  image and container: ImageMissing, ImagePullFailed, ImageUnusable, MountMissing, GpuUnavailable,
        GpuToolkitMissing, ContainerFailed, UlimitRefused, GpuWayMissing, GpuTaken
    5x  the kernel: KernelDied, KernelOutOfMemory, KernelNotFound, StartTimeout, StartCancelled, KernelEnded,
        KernelHeld, KernelTaken, KernelExpired, OutputUndelivered
    6x  GPUs: GpusBusy, DriverTooOld, GpuMismatch, GpuLost
    8x  files on the host: CacheFailed, WorkspaceRefused, WorkspaceBig, WorkspaceFailed
    9x  more of the kernel and its image: KernelOfOtherVersion, PackagesFailed, BuildFailed, CommandNotRun,
        ForwardFailed, BoardFailed
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kernelbridge.plain_text import printable

# Where the documentation is published, as in project.urls of pyproject.toml; below /page/ stands its newest version.
DOCUMENTATION = "https://kernelbridge.readthedocs.io"
# A line of a cell's output that VS Code shows whole in a window of usual size: it wraps none.
TRACEBACK_COLUMNS = 80


def wrapped(text: str, columns: int = TRACEBACK_COLUMNS) -> list[str]:
    """Return the lines of a text, none longer than so many columns unless it is one word, which people may copy."""
    return [
        piece
        for line in text.splitlines()
        for piece in textwrap.wrap(line, columns, break_long_words=False, break_on_hyphens=False)
    ]


def error_page(exit_code: int) -> str:
    """Return the address at which an error is explained."""
    return f"{DOCUMENTATION}/page/reference/errors.html#exit-{exit_code}"


class KernelBridgeError(Exception):
    """What failed and where (`sentence`), and what to do next (`remedy`)."""

    exit_code: ClassVar[int] = 1
    # What remains of the sentence without words of the user's own programs; empty where it has none. Set by the error.
    own_words: str = ""

    def __init_subclass__(cls, *, exit_code: int) -> None:
        super().__init_subclass__()
        cls.exit_code = exit_code

    def __init__(self, sentence: str, remedy: str = "") -> None:
        # Words of hosts, images and kernels are among them, and they end in terminals, logs and cells.
        self.sentence, self.remedy = printable(sentence.replace("\n", " ")), printable(remedy)
        super().__init__(self.sentence)

    def __str__(self) -> str:
        return f"{self.sentence} {self.remedy}".rstrip()

    @property
    def parts(self) -> list[str]:
        """What people read, each on a line of its own: what failed, what to do next, what is done already."""
        return [self.sentence, *filter(None, [self.remedy]), *getattr(self, "__notes__", ())]

    @property
    def logged(self) -> str:
        """What a log gets of it: not the words of the user's own programs, which may be anything."""
        return self.own_words or str(self)

    def lines(self) -> list[str]:
        """Return what a cell or an editor shows: the parts under the error's name, in lines that need no wrapping."""
        first, *rest = self.parts
        return [line for part in (f"{type(self).__name__}: {first}", *rest) for line in wrapped(part)]

    def to_json(self) -> dict[str, str | int]:
        """Return the error as REST and the commands' `--json` have it."""
        return {"sentence": self.sentence, "remedy": self.remedy, "exit_code": self.exit_code}


def unexpected_answer(host: str, exc: Exception) -> KernelBridgeError:
    """Make the error for an answer of a host that nobody foresaw: it is that host's problem, and no other's."""
    reason = f"{type(exc).__name__}: {exc}"[:200]
    return KernelBridgeError(
        f"{host}: what it answers cannot be understood ({reason}).", "`kernelbridge --debug` shows where; send us that."
    )


def _start_again(what: str) -> str:
    return "Start the kernel again" if what == "kernel" else "Start it again"


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
        super().__init__(f"{path}: {lines}", "Fix the file; `kernelbridge config` checks it.")

    @property
    def parts(self) -> list[str]:
        """See KernelBridgeError: problem by problem."""
        return [*(f"{self.path}: {problem}" for problem in self.problems), *super().parts[1:]]


class ConfigMissing(KernelBridgeError, exit_code=11):
    """A config file that was named does not exist, or cannot be read."""

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(
            f"{path}: the config file cannot be read ({reason}).",
            "Create it, or name another one in KERNELBRIDGE_CONFIG.",
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
            f"{path}: the kernel spec cannot be written ({reason}).", "Check that you have permission to write there."
        )


class SecretMissing(KernelBridgeError, exit_code=15):
    """`secrets` names a variable that this machine's environment does not have."""

    def __init__(self, *, environment: str, name: str) -> None:
        super().__init__(
            f"{environment}: the secret {name} is not set on this machine.",
            f"Set {name} where JupyterLab or VS Code is started, or remove it from `secrets`.",
        )


class ConnectionFileInvalid(KernelBridgeError, exit_code=16):
    """The connection file that an editor or Jupyter wrote cannot be used."""

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(f"{path}: the connection file cannot be used ({reason}).", "Start the kernel again.")


class EndpointTaken(KernelBridgeError, exit_code=17):
    """A port that the front-end chose is in use by another program."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(f"This machine: the kernel's ports are already in use ({reason}).", "Start the kernel again.")


class SetupFailed(KernelBridgeError, exit_code=18):
    """A command of the environment's `setup` failed, so the kernel was not started."""

    def __init__(self, *, environment: str, host: str, command: str, how: str) -> None:
        shown = command.strip().partition("\n")[0][:200]
        super().__init__(
            f"The setup of {environment} on {host} failed: `{shown}` ended with {how}.",
            "Fix `setup` of the environment, or what the command needs.",
        )
        self.own_words = f"The setup of {environment} on {host} failed."


class FileFailed(KernelBridgeError, exit_code=19):
    """A file of this machine cannot be read or written: its disk is full, read-only or broken, or it is not yours."""

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(
            f"This machine: {path} cannot be read or written ({reason}).",
            "Make room there, or give yourself the right to it, and try again; what was there is as it was.",
        )


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
            f"{host}: the name {address} cannot be resolved.",
            f"Fix `ssh` of [hosts.{host}] or HostName in ~/.ssh/config; are you on the right network?",
        )


class HostUnreachable(KernelBridgeError, exit_code=22):
    """No answer from the host: timeout, no route, connection reset before login."""

    def __init__(self, *, host: str, address: str, reason: str, remedy: str = "") -> None:
        self.reason = reason
        super().__init__(
            f"{host}: {address} cannot be reached ({reason}).",
            remedy or "Is the machine on, and are you on the right network or VPN?",
        )


@dataclass(frozen=True, kw_only=True)
class LoginAttempt:
    """What was tried at a login, and what the host made of it."""

    # The names of the keys that were offered, and of those that were not, each with its reason.
    offered: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    # The key that the host took, and what it wanted after that.
    accepted: str = ""
    wanted: tuple[str, ...] = ()
    # What a person has answered, by its prompts; and the prompt that nobody answered.
    answered: tuple[str, ...] = ()
    unanswered: str = ""
    # What the host said after a key was accepted or an answer given.
    said: str = ""
    # The ssh config says that nobody is to be asked.
    is_batch: bool = False
    # The host hung up after too many keys.
    is_flooded: bool = False
    # The config has a ControlPath, over which `ssh` may come in.
    has_control_path: bool = False

    @property
    def keys(self) -> str:
        """Which keys were tried and which were not."""
        tried = f"offered: {', '.join(self.offered)}" if self.offered else "no key was offered"
        return tried + (f"; skipped: {', '.join(self.skipped)}" if self.skipped else "")


class LoginRefused(KernelBridgeError, exit_code=23):
    """sshd accepts none of our keys for this user, or what it asked for was not given."""

    def __init__(self, *, host: str, user: str, attempt: LoginAttempt | None = None) -> None:
        # The key that the host took all the same, and whether it then wanted a second factor.
        self.accepted_key = attempt.accepted if attempt else ""
        more = attempt is not None and (attempt.wanted or attempt.answered or attempt.unanswered)
        self.wants_more = bool(self.accepted_key and more)
        # Whether it needs a person who can be asked, and was not there.
        self.needs_person = bool(attempt and attempt.unanswered)
        sentence = f"{host}: the login as {user} was refused."
        remedy = "Try it with `ssh`; load your key into the ssh agent, or name it as IdentityFile in ~/.ssh/config."
        if attempt is not None:
            sentence, remedy = self._explained(host, user, attempt, remedy)
        super().__init__(sentence, remedy)

    @staticmethod
    def _explained(host: str, user: str, attempt: LoginAttempt, remedy: str) -> tuple[str, str]:
        """Return the sentence and the remedy for what was tried."""
        said = f': "{attempt.said}"' if attempt.said else ""
        if attempt.unanswered:
            shared = " An open connection of `ssh` (ControlPath) cannot be used." if attempt.has_control_path else ""
            what = f"the login as {user} asks a person"
            if attempt.accepted:
                what = f"the key {attempt.accepted} was accepted for {user}, but the host asks a person too:"
            return (
                f"{host}: {what} `{attempt.unanswered}`, and nobody was there to answer.",
                "Run a cell, or a command in a terminal, and answer there. Where nobody sits, use a key from the ssh "
                f"agent that is enough by itself, or name a program in SSH_ASKPASS.{shared}",
            )
        if attempt.answered:
            asked = ", ".join(f"`{prompt}`" for prompt in dict.fromkeys(attempt.answered))
            if said:
                return (
                    f"{host}: the login as {user} was refused after an answer to {asked}, and the host said{said}.",
                    "Do what it says, in a terminal with `ssh`, or ask the host's owner about the account.",
                )
            return (
                f"{host}: the login as {user} was refused: the host did not accept the answer to {asked}.",
                "Try again in a moment with the right one; hosts lock those out who fail often.",
            )
        if attempt.accepted and attempt.wanted:
            wanted = " or ".join(attempt.wanted)
            remedy = "Ask the host's owner which logins it takes."
            if attempt.is_batch:
                remedy = "Nobody is asked for it, because the ssh config has `BatchMode yes` for this host."
            if attempt.has_control_path:
                remedy += " kernelbridge cannot share an open connection of `ssh` (ControlPath)."
            return (
                f"{host}: the key {attempt.accepted} was accepted for {user}, but the host wants {wanted} too{said}.",
                remedy,
            )
        if attempt.accepted and attempt.said:
            return (
                f"{host}: the key {attempt.accepted} was accepted for {user}, then the host refused{said}.",
                "Ask the host's owner about the account.",
            )
        if attempt.is_flooded:
            return (
                f"{host}: the login as {user} was refused after too many keys ({attempt.keys}).",
                "Set the right IdentityFile and `IdentitiesOnly yes` for this host in ~/.ssh/config.",
            )
        return f"{host}: the login as {user} was refused ({attempt.keys}).", remedy


class HostKeyUnknown(KernelBridgeError, exit_code=24):
    """The host's key is not in known_hosts yet. `is_kept`: the ssh config names a file that could keep it."""

    def __init__(self, *, host: str, algorithm: str, fingerprint: str, is_kept: bool = True) -> None:
        first = "" if is_kept else "Let UserKnownHostsFile of this host name a file that keeps keys; "
        compare = "compare" if first else "Compare"
        super().__init__(
            f"{host}: its host key is not known yet ({algorithm} {fingerprint}).",
            f"{first}{compare} the fingerprint with the one its owner gives you, then run `kernelbridge trust {host}`.",
        )


class HostKeyChanged(KernelBridgeError, exit_code=25):
    """The host shows another key than known_hosts has, or a revoked one: a new machine, or somebody in between."""

    def __init__(
        self, *, host: str, algorithm: str, fingerprint: str, known_hosts_name: str, is_revoked: bool = False
    ) -> None:
        key = f"{algorithm} {fingerprint}"
        what = f"is REVOKED ({key})" if is_revoked else f"has CHANGED (now {key})"
        renew = f"run `ssh-keygen -R '{known_hosts_name}'`, then `kernelbridge trust {host}`."
        super().__init__(
            f"{host}: its host key {what}; somebody may be intercepting the connection.",
            "Ask its owner for a new key." if is_revoked else f"Ask its owner. If the change is genuine, {renew}",
        )


class ForwardingForbidden(KernelBridgeError, exit_code=26):
    """sshd forbids forwarding, and there is no docker command on the host to go round it."""

    def __init__(self, *, host: str) -> None:
        super().__init__(
            f"{host}: its sshd forbids forwarding, and there is no docker command on the host to use instead.",
            "Ask for `AllowStreamLocalForwarding yes` in its sshd_config, or for the docker command to be installed.",
        )


class LinkLost(KernelBridgeError, exit_code=27):
    """The link to the host is down at this moment."""

    def __init__(self, *, host: str, since: str = "") -> None:
        when = f" (since {since})" if since else ""
        self.host = host
        super().__init__(f"{host}: the link is lost{when}.", "It is being reopened; what runs there keeps running.")


class SshConfigInvalid(KernelBridgeError, exit_code=28):
    """~/.ssh/config, or a key that it names, cannot be used."""

    def __init__(self, *, host: str, reason: str, remedy: str = "") -> None:
        super().__init__(f"{host}: the ssh configuration cannot be used ({reason}).", remedy or "Fix ~/.ssh/config.")


class SshFailed(KernelBridgeError, exit_code=29):
    """SSH failed in another way than those above."""

    def __init__(self, *, host: str, reason: str, remedy: str = "") -> None:
        super().__init__(f"{host}: SSH failed ({reason}).", remedy or "Try `ssh -v` to the same host; it says more.")

    @classmethod
    def no_command(cls, *, host: str, user: str, words: str) -> SshFailed:
        """Return the error for a host that lets us in and runs nothing; `words` are its own, told whole."""
        said = f': "{words}"' if words else ", and it says nothing"
        return cls(
            host=host,
            reason=f"the login as {user} was accepted, but the host runs no command for it{said}",
            remedy="Log in there once with `ssh` and do what it asks, or ask its administrator for a login that may "
            "run commands.",
        )

    @classmethod
    def reads_all(cls, *, host: str) -> SshFailed:
        """Return the error for a host on which nothing runs that we talk to: its shell waits for the end of stdin."""
        return cls(
            host=host,
            reason="a start-up file of the login, such as ~/.bashrc, starts another shell or reads its input, and "
            "waits for the end of what a command is still to be sent",
            remedy="Let that file do so in terminals only: `[ -t 0 ] && exec fish` instead of `exec fish`.",
        )


class EngineMissing(KernelBridgeError, exit_code=30):
    """No engine socket was found on the host."""

    def __init__(self, *, host: str, looked: Sequence[str], elsewhere: str = "") -> None:
        leads = f" Its docker command uses {elsewhere}, which is not a socket of this machine." if elsewhere else ""
        super().__init__(
            f"{host}: no Docker engine was found (looked at {', '.join(looked)}).{leads}",
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
            f"{host}: its Docker engine is too old (API {api}; {needed} is needed).",
            "Update Docker there to 19.03 or newer.",
        )


class EngineFailed(KernelBridgeError, exit_code=34):
    """The engine answered with an error of another kind."""

    def __init__(self, *, host: str, action: str, reason: str, remedy: str = "") -> None:
        super().__init__(
            f"{host}: Docker could not {action} ({reason}).", remedy or "The engine's log on the host may say more."
        )


class ImageMissing(KernelBridgeError, exit_code=40):
    """The image is neither on the host nor in its registry."""

    def __init__(self, *, host: str, image: str, reason: str, remedy: str = "") -> None:
        super().__init__(
            f"{host}: there is no image {image} ({reason}).",
            remedy or f"Check the name; if it is private, run `docker login` on {host}.",
        )


class ImagePullFailed(KernelBridgeError, exit_code=41):
    """A pull began and broke off."""

    def __init__(self, *, host: str, image: str, reason: str, remedy: str = "") -> None:
        super().__init__(
            f"{host}: the image {image} could not be pulled ({reason}).",
            remedy or f"Try again; `docker pull {image}` on {host} may say more.",
        )


class BuildFailed(KernelBridgeError, exit_code=92):
    """The engine could not build an environment's image, or what it is built of is not to be had."""

    def __init__(
        self, *, host: str, environment: str, reason: str, lines: Sequence[str] = (), remedy: str = ""
    ) -> None:
        """`lines` are the last that the build printed, for people."""
        super().__init__(
            f"{host}: the image of {environment} could not be built ({reason}).",
            remedy or "Correct its Dockerfile or `build` of the environment, and try again.",
        )
        self.own_words = f"{host}: the image of {environment} could not be built."
        if lines:
            self.add_note("\n".join(["The build's last lines:", *(f"  {printable(line)}" for line in lines)]))


class ImageUnusable(KernelBridgeError, exit_code=42):
    """The image lacks what a kernel needs, or cannot be run: `lacks` is what, or `fault` the whole predicate.

    `of_python`: another Python of the image may do.
    """

    def __init__(
        self, *, image: str, lacks: str = "", fault: str = "", remedy: str = "", of_python: bool = False
    ) -> None:
        self.lacks = lacks
        self.of_python = of_python or bool(lacks)
        super().__init__(
            f"The image {image} {fault or f'has no {lacks}'}.",
            remedy or "Add `RUN pip install ipykernel` to the image, or set `python` of the environment.",
        )


class MountMissing(KernelBridgeError, exit_code=43):
    """The source of a mount is not on the host."""

    def __init__(self, *, host: str, path: str) -> None:
        super().__init__(
            f"{host}: the mount source {path} does not exist.",
            f"Create it on {host}, or remove it from `mounts`.",
        )


class GpuUnavailable(KernelBridgeError, exit_code=44):
    """The host has fewer GPUs than asked for, or not those."""

    def __init__(self, *, host: str, wanted: str, found: str) -> None:
        super().__init__(
            f"{host}: {wanted} requested, found {found}.", "Set `gpus` of the environment, or name another host."
        )


class GpuToolkitMissing(KernelBridgeError, exit_code=45):
    """The engine cannot hand GPUs to containers."""

    def __init__(self, *, host: str, reason: str = "") -> None:
        words = f" ({reason})" if reason else ""
        super().__init__(
            f"{host}: its Docker engine cannot hand GPUs to containers{words}.",
            f"Install the NVIDIA Container Toolkit on {host} and restart Docker, or set `gpus = 0`.",
        )


class ContainerFailed(KernelBridgeError, exit_code=46):
    """The engine could not create or start the container, or it ended at once."""

    def __init__(self, *, host: str, image: str, reason: str, remedy: str = "") -> None:
        super().__init__(
            f"{host}: the container of {image} did not start ({reason}).",
            remedy or "Fix the environment and try again.",
        )


class UlimitRefused(KernelBridgeError, exit_code=47):
    """The engine may not raise a limit that the environment asks for."""

    def __init__(self, *, host: str, reason: str) -> None:
        super().__init__(
            f"{host}: the engine is not allowed to set the requested limits ({reason}).",
            "Lower `ulimits`, or remove them.",
        )


class KernelDied(KernelBridgeError, exit_code=50):
    """The kernel process, or a command in its place, ended by itself."""

    def __init__(
        self,
        *,
        environment: str,
        host: str,
        how: str,
        last_words: str = "",
        remedy: str = "Restart the kernel to continue.",
        what: str = "kernel",
    ) -> None:
        tail = f" Its last output: {last_words}" if last_words else ""
        super().__init__(f"The {what} of {environment} on {host} ended: {how}.{tail}", remedy)
        self.own_words = f"The {what} of {environment} on {host} ended: {how}."


class KernelOutOfMemory(KernelBridgeError, exit_code=51):
    """The host's kernel ended the process because its memory limit was reached."""

    def __init__(self, *, environment: str, host: str, limit: str, what: str = "kernel") -> None:
        again = "restart the kernel to continue" if what == "kernel" else "then start it again"
        super().__init__(
            f"The {what} of {environment} on {host} ran out of memory ({limit}) and was killed.",
            f"Raise `memory` of the environment or use less; {again}.",
        )


class KernelNotFound(KernelBridgeError, exit_code=52):
    """No kernel of this id or notebook on the hosts of the config, or several."""

    def __init__(
        self, *, kernel: str, hosts: Sequence[str], found: Sequence[str] = (), renamed: tuple[str, str] | None = None
    ) -> None:
        """`found` are those that may be meant; `renamed` the names that its container had and has."""
        sentence, remedy = f"No kernel `{kernel}` on {', '.join(hosts)}", "`kernelbridge ps` lists the kernels."
        if found:
            sentence = f"`{kernel}` may be any of {len(found)} kernels: {', '.join(found)}"
            remedy = "Name it by more of its id."
        if renamed is not None:
            sentence += f": its container was renamed, and is {renamed[1]} now"
            remedy = f"Remove it with `docker rm -f {renamed[1]}` on the host, or name it {renamed[0]} again."
        super().__init__(f"{sentence}.", remedy)


class StartTimeout(KernelBridgeError, exit_code=53):
    """Something that a start waited for did not come in time."""

    def __init__(self, *, host: str, what: str, seconds: float, remedy: str = "") -> None:
        super().__init__(
            f"{host}: {what} took longer than {seconds:g} s.", remedy or "Raise `start_seconds` of the environment."
        )


class StartCancelled(KernelBridgeError, exit_code=54):
    """The user cancelled the start."""

    def __init__(self, *, environment: str) -> None:
        super().__init__(f"The start of {environment} was cancelled.")


class KernelEnded(KernelBridgeError, exit_code=55):
    """The container is gone or was stopped from elsewhere."""

    def __init__(self, *, environment: str, host: str, how: str, what: str = "kernel", remedy: str = "") -> None:
        super().__init__(f"The container of {environment} on {host} {how}.", remedy or f"{_start_again(what)}.")


class KernelHeld(KernelBridgeError, exit_code=56):
    """Another process, here or on another machine, is joined to the kernel."""

    def __init__(self, *, kernel: str, host: str, who: str, since: str) -> None:
        self.who = who
        super().__init__(
            f"{kernel} on {host} has been held by {who or 'someone else'} since {since}.",
            f"`kernelbridge attach --take {kernel}` takes it over; the other one then loses it.",
        )


class KernelTaken(KernelBridgeError, exit_code=57):
    """Somebody else has taken over the kernel, which lives on."""

    def __init__(self, *, environment: str, host: str, who: str) -> None:
        super().__init__(
            f"The kernel of {environment} on {host} was taken over by {who or 'someone else'}.",
            "It keeps running there; `kernelbridge ps` shows it, `kernelbridge attach --take` takes it back.",
        )


class PackagesFailed(KernelBridgeError, exit_code=91):
    """What a kernel needs, or an environment asks for, could not be added to its image."""

    def __init__(self, *, host: str, image: str, what: str, reason: str, remedy: str = "") -> None:
        super().__init__(
            f"{host}: {what} could not be added to the image {image} ({reason}).",
            remedy or "Add `RUN pip install ipykernel` to the image, or let `pip` on this machine reach its index.",
        )


class KernelOfOtherVersion(KernelBridgeError, exit_code=90):
    """Another release made the kernel, and its relay and this release do not understand each other."""

    def __init__(self, *, kernel: str, host: str, release: str, is_newer: bool, own_release: str) -> None:
        which = f"kernelbridge {release}" if release else f"a{' newer' if is_newer else 'n older'} kernelbridge"
        install = f"install kernelbridge=={release}" if release else "install --upgrade kernelbridge"
        super().__init__(
            f"{kernel} on {host} was made by {which}; this is {own_release}, which cannot join it.",
            f"`pip {install}`, here, joins it again; until then `kernelbridge logs {kernel}` shows its log and "
            f"`kernelbridge stop {kernel}` ends it.",
        )


class CommandNotRun(KernelBridgeError, exit_code=93):
    """A command could not be run, beside a kernel or in a container of its own."""

    def __init__(self, *, host: str, reason: str, remedy: str = "") -> None:
        super().__init__(
            f"{host}: the command could not be run: {reason}.",
            remedy or "Check the command's name and the folder; `kernelbridge shell` shows what the container has.",
        )
        self.own_words = f"{host}: the command could not be run."

    @classmethod
    def of_old_relay(cls, *, host: str) -> CommandNotRun:
        """Make the error for a container that was started by a release that runs no commands."""
        reason = "its container was started by an older kernelbridge, or has just ended"
        return cls(host=host, reason=reason, remedy="Start it anew, and try again.")

    @classmethod
    def in_its_place(cls, *, host: str, environment: str, reason: str) -> CommandNotRun:
        """Make the error for a command with a container of its own, which is gone with it."""
        look = f"`kernelbridge up {environment}` and then `kernelbridge shell` show what the container has."
        return cls(host=host, reason=reason, remedy=f"Check the command's name and the folder; {look}")


class ForwardFailed(KernelBridgeError, exit_code=94):
    """The ports of a kernel's container cannot be reached, or have no place on this machine."""

    def __init__(self, *, kernel: str, reason: str, remedy: str = "") -> None:
        super().__init__(
            f"The ports of the kernel {kernel} cannot be reached ({reason}).",
            remedy or "Try again; `kernelbridge ps` says whether the kernel runs and its host answers.",
        )


class BoardFailed(KernelBridgeError, exit_code=95):
    """TensorBoard did not start in a kernel's container, or ended."""

    def __init__(self, *, kernel: str, reason: str) -> None:
        super().__init__(
            f"TensorBoard in the container of the kernel {kernel} ended ({reason}).",
            'If it is missing, write `packages = ["tensorboard"]` in the environment and restart the kernel.',
        )


class KernelExpired(KernelBridgeError, exit_code=58):
    """A time limit of the environment ended the kernel."""

    def __init__(self, *, environment: str, host: str, key: str, what: str = "kernel") -> None:
        super().__init__(
            f"The {what} of {environment} on {host} was ended by `{key}` of its environment.",
            f"{_start_again(what)}; raise `{key}` if it came too soon.",
        )


class OutputUndelivered(KernelBridgeError, exit_code=59):
    """`clean` leaves a kernel alone whose output nobody has taken yet."""

    def __init__(self, *, kernel: str, host: str, megabytes: float) -> None:
        super().__init__(
            f"The kernel {kernel} on {host} has output that nobody has fetched yet ({megabytes:.1f} MB), so it is "
            "kept.",
            f"`kernelbridge attach {kernel}` fetches it, `kernelbridge clean --discard` throws it away.",
        )


class SlurmMissing(KernelBridgeError, exit_code=35):
    """The host is no login node of a Slurm cluster, or its controller refuses this login."""

    def __init__(self, *, host: str, reason: str) -> None:
        super().__init__(
            f"{host}: Slurm does not answer ({reason}).",
            "Is it a login node? If not, remove `scheduler` from the host; if its commands are elsewhere, name their "
            "folder in `path` of the host.",
        )


class JobRefused(KernelBridgeError, exit_code=36):
    """sbatch would not take the job."""

    def __init__(self, *, host: str, reason: str) -> None:
        super().__init__(
            f"{host}: Slurm refused the job ({reason}).",
            "Fix `partition`, `account` and `sbatch_args` of the host, or `gpus`, `gres`, `time_limit`, `memory` and "
            "`cpus` of the environment.",
        )


class JobEnded(KernelBridgeError, exit_code=37):
    """Slurm ended the job: its time limit, preemption, a node that failed, a cancel."""

    def __init__(self, *, environment: str, host: str, job: str, how: str, remedy: str = "") -> None:
        super().__init__(
            f"The job {job} of {environment} on {host} {how}.", remedy or "Start it again to get another job."
        )


class RuntimeMissing(KernelBridgeError, exit_code=38):
    """The job's node cannot run the image: the runtime is not installed there, or refused it."""

    def __init__(self, *, host: str, node: str, runtime: str, reason: str) -> None:
        super().__init__(
            f"{host}: {runtime} could not run the image on node {node} ({reason}).",
            "Set `runtime` of the host to one that its nodes have, or ask its administrators.",
        )


class SchedulerSilent(KernelBridgeError, exit_code=39):
    """Slurm's controller did not answer; what became of the job is not known."""

    def __init__(self, *, host: str, reason: str) -> None:
        super().__init__(
            f"{host}: Slurm's controller is not answering ({reason}).",
            "The job may still be running; Slurm will be asked again.",
        )


class GpuWayMissing(KernelBridgeError, exit_code=48):
    """The engine has no way, or not the one asked for, to hand GPUs to containers."""

    def __init__(self, *, host: str, reason: str, remedy: str) -> None:
        super().__init__(f"{host}: {reason}.", remedy)


class GpuTaken(KernelBridgeError, exit_code=49):
    """Another kernel had the lock on a GPU first."""

    def __init__(self, *, host: str) -> None:
        super().__init__(
            f"{host}: another kernel took the GPU first.",
            "Try again, or set `wait` of the environment to queue for it.",
        )


class GpusBusy(KernelBridgeError, exit_code=60):
    """The host has what is asked for, and others use it."""

    def __init__(self, *, host: str, wanted: str, holders: Sequence[str], waited: str = "") -> None:
        self.host, self.wanted, self.waited = host, wanted, waited
        self.holders = tuple(holders)
        after = f" after {waited} in the queue" if waited else ""
        remedy = "Start it again, or raise `wait`" if waited else "Wait, or set `wait` of the environment to queue"
        super().__init__(
            f"{host}: {wanted} requested, but not free{after}: {'; '.join(self.holders)}.",
            f"{remedy}; `kernelbridge gpus` shows who has what.",
        )

    @classmethod
    def on_all(cls, busy: Sequence[GpusBusy]) -> GpusBusy:
        """Return one error for hosts that are all full: who has what on each."""
        if len(busy) == 1:
            return busy[0]
        return cls(
            host=", ".join(one.host for one in busy),
            wanted=busy[0].wanted,
            holders=[f"on {one.host} {holder}" for one in busy for holder in one.holders],
            waited=busy[0].waited,
        )


class DriverTooOld(KernelBridgeError, exit_code=61):
    """The image's CUDA needs a newer driver than the host's."""

    def __init__(self, *, host: str, image: str, needs: str, driver: str) -> None:
        super().__init__(
            f"{host}: the image {image} needs {needs}, but the host has {driver}.",
            f"Update the NVIDIA driver on {host}, or use an image with an older CUDA.",
        )


class GpuMismatch(KernelBridgeError, exit_code=62):
    """The container sees other GPUs than it should."""

    def __init__(self, *, host: str, wanted: str, seen: str, remedy: str = "") -> None:
        super().__init__(
            f"{host}: the container should see {wanted} but sees {seen}, so it was stopped.",
            remedy or "Set `gpu_access` of the host, or have its container toolkit repaired.",
        )


class GpuLost(KernelBridgeError, exit_code=63):
    """A container that had its GPUs can reach them no more; a `systemctl daemon-reload` of the host does that."""

    def __init__(self, *, environment: str, host: str, what: str = "kernel") -> None:
        again = "restart the kernel" if what == "kernel" else "start it again"
        super().__init__(
            f"The {what} of {environment} on {host} can no longer reach its GPUs, as happens after `systemctl "
            "daemon-reload` there.",
            f"Save what you need and {again}: it gets a new container.",
        )


class CacheFailed(KernelBridgeError, exit_code=80):
    """The folder for `cache` cannot be made on the host."""

    def __init__(self, *, host: str, path: str, reason: str) -> None:
        super().__init__(
            f"{host}: {path} cannot be made ({reason}).",
            "Make room for it in your home there, or set `cache = false`.",
        )


class WorkspaceRefused(KernelBridgeError, exit_code=81):
    """`workspace` names a folder of this machine that cannot be one."""

    def __init__(self, *, path: str, reason: str, remedy: str = "") -> None:
        super().__init__(
            f"This machine: {path} cannot be the workspace, {reason}.",
            remedy or "Set `local` of `workspace` to your project's folder.",
        )


class WorkspaceBig(KernelBridgeError, exit_code=82):
    """A copy of the workspace would have files beyond `big_files`, and nobody has said what becomes of them."""

    def __init__(self, *, host: str, files: Sequence[str], limit: str) -> None:
        """`files` are names with sizes, the biggest first; `limit` is the value of `big_files` that lets them all."""
        super().__init__(
            f"{host}: the workspace has big files that are not there yet: {', '.join(files)}.",
            f'To copy them set `big_files = "{limit}"` of `workspace`; to leave them out name them in its `ignore`, or '
            "in .gitignore.",
        )


class WorkspaceFailed(KernelBridgeError, exit_code=83):
    """The workspace, or a file of it, cannot be brought to the host or back."""

    def __init__(self, *, host: str, reason: str, remedy: str = "") -> None:
        self.reason = reason
        super().__init__(
            f"{host}: the workspace cannot be copied ({reason}).",
            remedy or "What was copied stays; the next try goes on from there.",
        )
