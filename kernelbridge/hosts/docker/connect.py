"""Find a way to a host's engine: which socket, forwarded or over the stdin and stdout of a command."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernelbridge.config.schema import Host
from kernelbridge.errors import (
    EngineDenied,
    EngineDown,
    EngineFailed,
    EngineMissing,
    ForwardingForbidden,
    KernelBridgeError,
    LinkLost,
)
from kernelbridge.hosts.docker.client import FAILURES, NOT_UNDERSTOOD, Sockets, as_refusal, in_thread, make_client
from kernelbridge.hosts.docker.responses import parse_version
from kernelbridge.hosts.transport.facts import HostFacts
from kernelbridge.hosts.transport.stream import AnyLink, CommandError, Receiver, Stream

_LOG = logging.getLogger(__name__)

# Where the docker command looks by itself.
USUAL_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")
# docker-py wants a version even for the one question that has none.
ANY_VERSION = "1.40"
# sshd's MaxSessions is 10: kernels hold one each, calls share the rest, one is left for commands of ours.
LONG_SESSIONS = 6
SHORT_SESSIONS = 3
SLOT_SECONDS = 30.0
# An engine that is being started accepts connections some time before it answers.
VERSION_SECONDS = 30.0
SUDO_CHECK_SECONDS = 10.0


class Transport(enum.Enum):
    """The transports to an engine, the best first."""

    SOCKET = "socket"
    DOCKER = "docker system dial-stdio"
    SUDO = "sudo -n docker system dial-stdio"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to try."""

    transport: Transport
    socket: str
    # Whether the docker command is told the socket; sudo rules may name the bare command alone.
    names_socket: bool = True

    def argv(self) -> list[str]:
        """Return the command that joins its stdin and stdout to the engine."""
        prefix = ["sudo", "-n"] if self.transport is Transport.SUDO else []
        place = ["-H", f"unix://{self.socket}"] if self.names_socket else []
        return [*prefix, "docker", *place, "system", "dial-stdio"]


class _Slot:
    """A Receiver that gives a session back when its stream has ended."""

    def __init__(self, receiver: Receiver, slots: asyncio.Semaphore) -> None:
        self._receiver = receiver
        self._slots = slots

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        self._receiver.data_received(data)

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        self._slots.release()
        self._receiver.closed(exc)


class Route:
    """One way to one engine, over one link."""

    def __init__(self, link: AnyLink, candidate: Candidate) -> None:
        self.link = link
        self.candidate = candidate
        # For short calls; closed by whoever has no use for this way.
        self.calls = Sockets(self.open)
        self._long_slots = asyncio.Semaphore(LONG_SESSIONS)
        self._short_slots = asyncio.Semaphore(SHORT_SESSIONS)

    def __repr__(self) -> str:
        return f"<Route {self.link.name} {self.candidate.socket} by {self.candidate.transport.value}>"

    @property
    def keeps_connections(self) -> bool:
        """Whether idle connections cost nothing."""
        return self.candidate.transport is Transport.SOCKET

    async def open(self, receiver: Receiver) -> Stream:
        """Open a connection for calls."""
        return await self._open(receiver, self._short_slots)

    async def open_long(self, receiver: Receiver) -> Stream:
        """Open a connection that stays, such as an exec stream."""
        return await self._open(receiver, self._long_slots)

    async def _open(self, receiver: Receiver, slots: asyncio.Semaphore) -> Stream:
        if self.candidate.transport is Transport.SOCKET:
            return await self.link.open_socket(self.candidate.socket, receiver)
        try:
            async with asyncio.timeout(SLOT_SECONDS):
                await slots.acquire()
        except TimeoutError as exc:
            reason = "all sessions that its sshd allows are in use"
            raise EngineFailed(host=self.link.name, action="be reached", reason=reason) from exc
        try:
            return await self.link.open_command(self.candidate.argv(), _Slot(receiver, slots))
        except BaseException:
            slots.release()
            raise


def socket_candidates(facts: HostFacts, wanted_socket: str | None) -> list[Candidate]:
    """List the forwarded sockets to try. A named one is tried whatever the facts say: they do not know it."""
    if wanted_socket is not None:
        return [Candidate(transport=Transport.SOCKET, socket=wanted_socket)]
    return [Candidate(transport=Transport.SOCKET, socket=socket.path) for socket in facts.usable_sockets]


def after_refusal(facts: HostFacts, candidate: Candidate, failure: Exception, *, may_sudo: bool) -> Candidate | None:
    """Return the next candidate for the same socket, after this one failed so; None: there is none."""
    if isinstance(failure, ForwardingForbidden) and facts.has_docker_command:
        return Candidate(transport=Transport.DOCKER, socket=candidate.socket)
    if isinstance(failure, PermissionError) and candidate.transport is not Transport.SUDO and may_sudo:
        return Candidate(
            transport=Transport.SUDO, socket=candidate.socket, names_socket=candidate.socket not in USUAL_SOCKETS
        )
    return None


def worst(failures: Sequence[tuple[Candidate, Exception]]) -> tuple[Candidate, Exception] | None:
    """Choose the failure to tell of: the one that came nearest to an engine."""
    order = (ForwardingForbidden, PermissionError, ConnectionRefusedError, FileNotFoundError)
    for kind in order:
        for candidate, failure in failures:
            if isinstance(failure, kind):
                return candidate, failure
    return failures[0] if failures else None


# A way to an engine, and its answer to GET /version.
Answered = tuple[Route, Mapping[str, Any]]


async def ask_ahead(link: AnyLink, host: Host) -> Answered | None:
    """Try the likeliest way before the host has told its facts. Nothing is said of a failure: find_route() will."""
    route = Route(link, Candidate(transport=Transport.SOCKET, socket=host.socket or USUAL_SOCKETS[0]))
    try:
        return route, await ask_version(route, route.calls)
    except (KernelBridgeError, OSError) as exc:
        _LOG.debug("[%s] asked ahead: %s", link.name, exc)
        return None


async def find_route(link: AnyLink, host: Host, ahead: Answered | None = None) -> Answered:
    """Return the first way that an engine answers on; `ahead` is what ask_ahead() has found.

    Raises: EngineMissing, EngineDown, EngineDenied, ForwardingForbidden, EngineFailed, LinkLost.
    """
    known = link.facts
    if ahead is not None:
        if link.is_open and ahead[0].candidate in socket_candidates(known, host.socket)[:1]:
            return ahead
        ahead[0].calls.close_all()
    failures: list[tuple[Candidate, Exception]] = []
    found = await _try_each(link, host, failures)
    if found is None:
        await link.ask_login_shell()
    if found is None and await link.look_again() != known:
        # The engine was started or stopped, or the login got its right, since the facts were asked for; or the login
        # shell knows more.
        failures = []
        found = await _try_each(link, host, failures)
    if found is None:
        raise _no_route(link, host, worst(failures))
    return found


async def _try_each(
    link: AnyLink, host: Host, failures: list[tuple[Candidate, Exception]]
) -> tuple[Route, Mapping[str, Any]] | None:
    """Try one candidate after the other; those that failed are added to `failures`."""
    for first in socket_candidates(link.facts, host.socket) or _sudo_candidates(link.facts):
        candidate: Candidate | None = first
        while candidate is not None:
            route = Route(link, candidate)
            try:
                return route, await ask_version(route, route.calls)
            except (KernelBridgeError, OSError) as exc:
                if isinstance(exc, LinkLost) or not link.is_open:
                    raise
                _LOG.debug("[%s] %r: %s", link.name, route, exc)
                failures.append((candidate, exc))
                may_sudo = isinstance(exc, PermissionError) and await _may_sudo(link)
                candidate = after_refusal(link.facts, candidate, exc, may_sudo=may_sudo)
    return None


def _sudo_candidates(facts: HostFacts) -> list[Candidate]:
    """Let sudo's docker find its own socket, where none may be used and a rule allows it."""
    if not facts.may_sudo_docker:
        return []
    there = [socket.path for socket in facts.sockets if socket.exists]
    path = there[0] if there else USUAL_SOCKETS[0]
    return [Candidate(transport=Transport.SUDO, socket=path, names_socket=False)]


async def _may_sudo(link: AnyLink) -> bool:
    answer = await link.run(["sudo", "-n", "-l", "docker", "system", "dial-stdio"], seconds=SUDO_CHECK_SECONDS)
    return answer.exit_code == 0


def _no_route(link: AnyLink, host: Host, told: tuple[Candidate, Exception] | None) -> KernelBridgeError:
    """Return the error for a host on which no way led to an engine."""
    facts = link.facts
    if told is not None and not isinstance(told[1], FileNotFoundError):
        return user_error(link, *told)
    denied = [socket.path for socket in facts.sockets if socket.exists and not socket.is_writable]
    if denied and not host.socket:
        return EngineDenied(host=host.name, user=facts.user, socket=denied[0])
    own = facts.engine.removeprefix("unix://")
    elsewhere = facts.engine if own == facts.engine and not host.socket else ""
    if facts.has_docker_command and not host.socket and not elsewhere:
        # Docker is installed; dockerd takes its socket away when it stops.
        return EngineDown(host=host.name, socket=own or USUAL_SOCKETS[0])
    looked = [host.socket] if host.socket else [socket.path for socket in facts.sockets]
    return EngineMissing(host=host.name, looked=looked, elsewhere=elsewhere)


def user_error(link: AnyLink, candidate: Candidate, failure: Exception) -> KernelBridgeError:
    """Turn a failure to reach the engine into an error of ours."""
    match failure:
        case KernelBridgeError():
            return failure
        case PermissionError():
            return EngineDenied(host=link.name, user=link.facts.user, socket=candidate.socket)
        case FileNotFoundError() | ConnectionRefusedError():
            # Once it was there, so it is not missing: dockerd takes its socket away when it stops.
            return EngineDown(host=link.name, socket=candidate.socket)
        case _:
            return EngineFailed(host=link.name, action="be reached", reason=str(failure))


async def ask_version(route: Route, kept: Sockets | None = None) -> Mapping[str, Any]:
    """Ask for GET /version, without a version in the path: the one question that every engine answers.

    On `kept` the connection may stay open for what is asked next, unless this fails.

    Raises: FileNotFoundError, PermissionError, ConnectionRefusedError, ForwardingForbidden, LinkLost, EngineFailed.
    """
    sockets = kept or Sockets(route.open)
    keeps = kept is not None and route.keeps_connections
    # Set at the end: what is kept is good.
    is_good = False

    def ask() -> dict[str, Any]:
        client = make_client(sockets, version=ANY_VERSION, keeps_connections=keeps)
        answer: dict[str, Any] = client.version(api_version=False)
        return answer

    action = "say its version"
    # By a command there is a login shell before it.
    seconds = VERSION_SECONDS + route.link.shell_seconds
    try:
        async with asyncio.timeout(seconds):
            answer = await in_thread(ask, name="engine version", abandon=sockets.close_all)
        is_good = True
    except FAILURES as exc:
        if isinstance(exc, TimeoutError):
            reason = f"no answer in {seconds:.0f} s"
            raise EngineFailed(host=route.link.name, action=action, reason=reason) from exc
        if refusal := as_refusal(exc):
            raise EngineFailed(host=route.link.name, action=action, reason=refusal.message) from exc
        raise reason_of(route, exc, sockets.take_failure(exc)) from exc
    finally:
        if kept is None or not is_good:
            sockets.close_all()
    try:
        return parse_version(answer)
    except ValueError as exc:
        raise EngineFailed(host=route.link.name, action=action, reason=not_understood(exc)) from exc


def not_understood(exc: Exception) -> str:
    """Say that an answer is not as the engine's API says."""
    return f"its answer cannot be understood: {exc}"


def reason_of(route: Route, exc: Exception, reason: Exception | None) -> Exception:
    """Say why a call did not get through, with the wrappings of docker-py, requests and urllib3 taken off."""
    host = route.link.name
    if not route.link.is_open:
        return reason if isinstance(reason, LinkLost) else LinkLost(host=host)
    if isinstance(reason, CommandError):
        return command_reason(host, reason)
    if isinstance(reason, KernelBridgeError | FileNotFoundError | PermissionError | ConnectionRefusedError):
        return reason
    if reason is not None:
        return EngineFailed(host=host, action="be reached", reason=str(reason))
    if isinstance(exc, NOT_UNDERSTOOD):
        return EngineFailed(host=host, action="be understood", reason=f"{type(exc).__name__}: {exc}"[:200])
    # The connection came about and ended without an answer.
    return ConnectionRefusedError(str(exc))


def command_reason(host: str, failure: CommandError) -> Exception:
    """Translate the words of a failed `docker system dial-stdio`."""
    words = failure.stderr.lower()
    if "permission denied" in words or "password is required" in words or "not allowed to" in words:
        return PermissionError(failure.stderr.strip())
    if "no such file" in words and "docker" in words and "daemon" not in words:
        return FileNotFoundError(failure.stderr.strip())
    if "docker daemon" in words or "connection refused" in words or "no such file" in words:
        return ConnectionRefusedError(failure.stderr.strip())
    return EngineFailed(host=host, action="be reached", reason=str(failure))
