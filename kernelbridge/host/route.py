"""How the engine of a host is reached: which socket, and over a forwarded socket or a command's stdin and stdout."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kernelbridge.config import Host
from kernelbridge.errors import (
    EngineDenied,
    EngineDown,
    EngineFailed,
    EngineMissing,
    ForwardingForbidden,
    KernelBridgeError,
    LinkLost,
)
from kernelbridge.host.dockerpy import FAILURES, Sockets, in_thread, make_client
from kernelbridge.host.facts import HostFacts
from kernelbridge.host.stream import AnyLink, CommandError, Receiver, Stream

log = logging.getLogger(__name__)

# Where the docker command looks by itself.
USUAL_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")
# docker-py wants a version even for the one question that has none.
ANY_VERSION = "1.40"
# sshd's MaxSessions is 10: kernels hold one each, calls share the rest, one is left for commands of ours.
LONG_SESSIONS = 6
SHORT_SESSIONS = 3
SLOT_SECONDS = 30.0
SUDO_CHECK_SECONDS = 10.0


class Transport(enum.Enum):
    """The rungs of the ladder, the best first."""

    SOCKET = "socket"
    DOCKER = "docker system dial-stdio"
    SUDO = "sudo -n docker system dial-stdio"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One way to try."""

    transport: Transport
    socket: str
    # Whether the docker command is told the socket; sudo rules may name the bare command alone.
    names_socket: bool = True

    def argv(self) -> list[str]:
        """The command that joins its stdin and stdout to the engine."""
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

    def __init__(self, link: AnyLink, rung: Rung) -> None:
        self.link = link
        self.rung = rung
        self._long_slots = asyncio.Semaphore(LONG_SESSIONS)
        self._short_slots = asyncio.Semaphore(SHORT_SESSIONS)

    def __repr__(self) -> str:
        return f"<Route {self.link.name} {self.rung.socket} by {self.rung.transport.value}>"

    @property
    def keeps_connections(self) -> bool:
        """Whether idle connections cost nothing."""
        return self.rung.transport is Transport.SOCKET

    async def open(self, receiver: Receiver) -> Stream:
        """A connection for calls."""
        return await self._open(receiver, self._short_slots)

    async def open_long(self, receiver: Receiver) -> Stream:
        """A connection that stays, such as an exec stream."""
        return await self._open(receiver, self._long_slots)

    async def _open(self, receiver: Receiver, slots: asyncio.Semaphore) -> Stream:
        if self.rung.transport is Transport.SOCKET:
            return await self.link.open_socket(self.rung.socket, receiver)
        try:
            async with asyncio.timeout(SLOT_SECONDS):
                await slots.acquire()
        except TimeoutError as exc:
            reason = "all sessions that its sshd allows are in use"
            raise EngineFailed(host=self.link.name, action="be reached", reason=reason) from exc
        try:
            return await self.link.open_command(self.rung.argv(), _Slot(receiver, slots))
        except BaseException:
            slots.release()
            raise


def socket_rungs(facts: HostFacts, wanted_socket: str | None) -> list[Rung]:
    """The forwarded sockets to try, in order. A named one is tried whatever the facts say: they do not know it."""
    if wanted_socket is not None:
        return [Rung(transport=Transport.SOCKET, socket=wanted_socket)]
    return [Rung(transport=Transport.SOCKET, socket=socket.path) for socket in facts.usable_sockets]


def after_refusal(facts: HostFacts, rung: Rung, failure: Exception, *, may_sudo: bool) -> Rung | None:
    """The next rung for the same socket, after this one failed so; None: there is none."""
    if isinstance(failure, ForwardingForbidden) and facts.has_docker_command:
        return Rung(transport=Transport.DOCKER, socket=rung.socket)
    if isinstance(failure, PermissionError) and rung.transport is not Transport.SUDO and may_sudo:
        return Rung(transport=Transport.SUDO, socket=rung.socket, names_socket=rung.socket not in USUAL_SOCKETS)
    return None


def worst(failures: Sequence[tuple[Rung, Exception]]) -> tuple[Rung, Exception] | None:
    """The failure to tell of: the one that came nearest to an engine."""
    order = (ForwardingForbidden, PermissionError, ConnectionRefusedError, FileNotFoundError)
    for kind in order:
        for rung, failure in failures:
            if isinstance(failure, kind):
                return rung, failure
    return failures[0] if failures else None


async def find_route(link: AnyLink, host: Host) -> tuple[Route, dict[str, Any]]:
    """The first way that an engine answers on, and its answer to GET /version.

    Raises: EngineMissing, EngineDown, EngineDenied, ForwardingForbidden, EngineFailed, LinkLost.
    """
    known = link.facts.sockets
    failures: list[tuple[Rung, Exception]] = []
    found = await _climb(link, host, failures)
    if found is None and (await link.look_again()).sockets != known:
        # The engine was started or stopped, or the login got its right, since the facts were asked for.
        failures = []
        found = await _climb(link, host, failures)
    if found is None:
        raise _no_route(link, host, worst(failures))
    return found


async def _climb(
    link: AnyLink, host: Host, failures: list[tuple[Rung, Exception]]
) -> tuple[Route, dict[str, Any]] | None:
    """Try one rung after the other; those that failed are added to `failures`."""
    for first in socket_rungs(link.facts, host.socket) or _sudo_rungs(link.facts):
        rung: Rung | None = first
        while rung is not None:
            route = Route(link, rung)
            try:
                return route, await ask_version(route)
            except (KernelBridgeError, OSError) as exc:
                if isinstance(exc, LinkLost) or not link.is_open:
                    raise
                log.debug("[%s] %r: %s", link.name, route, exc)
                failures.append((rung, exc))
                may_sudo = isinstance(exc, PermissionError) and await _may_sudo(link)
                rung = after_refusal(link.facts, rung, exc, may_sudo=may_sudo)
    return None


def _sudo_rungs(facts: HostFacts) -> list[Rung]:
    """Where no socket may be used: sudo's docker finds its own, if a rule allows it."""
    if not facts.may_sudo_docker:
        return []
    there = [socket.path for socket in facts.sockets if socket.exists]
    path = there[0] if there else USUAL_SOCKETS[0]
    return [Rung(transport=Transport.SUDO, socket=path, names_socket=False)]


async def _may_sudo(link: AnyLink) -> bool:
    answer = await link.run(["sudo", "-n", "-l", "docker", "system", "dial-stdio"], seconds=SUDO_CHECK_SECONDS)
    return answer.exit_code == 0


def _no_route(link: AnyLink, host: Host, told: tuple[Rung, Exception] | None) -> KernelBridgeError:
    """The error for a host on which no way led to an engine."""
    facts = link.facts
    if told is not None and not isinstance(told[1], FileNotFoundError):
        return user_error(link, *told)
    denied = [socket.path for socket in facts.sockets if socket.exists and not socket.is_writable]
    if denied and not host.socket:
        return EngineDenied(host=host.name, user=facts.user, socket=denied[0])
    if facts.has_docker_command and not host.socket:
        # Docker is installed; dockerd takes its socket away when it stops.
        return EngineDown(host=host.name, socket=USUAL_SOCKETS[0])
    looked = [host.socket] if host.socket else [socket.path for socket in facts.sockets]
    return EngineMissing(host=host.name, looked=looked)


def user_error(link: AnyLink, rung: Rung, failure: Exception) -> KernelBridgeError:
    """What a user hears of a failure to reach the engine."""
    match failure:
        case KernelBridgeError():
            return failure
        case PermissionError():
            return EngineDenied(host=link.name, user=link.facts.user, socket=rung.socket)
        case FileNotFoundError() | ConnectionRefusedError():
            # Once it was there, so it is not missing: dockerd takes its socket away when it stops.
            return EngineDown(host=link.name, socket=rung.socket)
        case _:
            return EngineFailed(host=link.name, action="be reached", reason=str(failure))


async def ask_version(route: Route) -> dict[str, Any]:
    """GET /version, without a version in the path: the one question that every engine answers.

    Raises: FileNotFoundError, PermissionError, ConnectionRefusedError, ForwardingForbidden, LinkLost, EngineFailed.
    """
    sockets = Sockets(route.open)

    def ask() -> dict[str, Any]:
        client = make_client(sockets, version=ANY_VERSION, keeps_connections=False)
        answer: dict[str, Any] = client.version(api_version=False)
        return answer

    try:
        answer = await in_thread(ask, name="engine version", abandon=sockets.close_all)
    except FAILURES as exc:
        raise reason_of(route, exc, sockets.take_failure(exc)) from exc
    finally:
        sockets.close_all()
    if not isinstance(answer, dict) or "ApiVersion" not in answer:
        raise EngineFailed(host=route.link.name, action="say its version", reason="no engine answers there")
    return answer


def reason_of(route: Route, exc: Exception, reason: Exception | None) -> Exception:
    """Why a call did not get through, with the wrappings of docker-py, requests and urllib3 taken off."""
    host = route.link.name
    if not route.link.is_open:
        return reason if isinstance(reason, LinkLost) else LinkLost(host=host)
    if isinstance(reason, CommandError):
        return command_reason(host, reason)
    if isinstance(reason, KernelBridgeError | FileNotFoundError | PermissionError | ConnectionRefusedError):
        return reason
    if reason is not None:
        return EngineFailed(host=host, action="be reached", reason=str(reason))
    if isinstance(exc, ValueError):
        return EngineFailed(host=host, action="be understood", reason="what it says is no JSON")
    # The connection came about and ended without an answer.
    return ConnectionRefusedError(str(exc))


def command_reason(host: str, failure: CommandError) -> Exception:
    """What the words of a failed `docker system dial-stdio` mean."""
    words = failure.stderr.lower()
    if "permission denied" in words or "password is required" in words or "not allowed to" in words:
        return PermissionError(failure.stderr.strip())
    if "no such file" in words and "docker" in words and "daemon" not in words:
        return FileNotFoundError(failure.stderr.strip())
    if "docker daemon" in words or "connection refused" in words or "no such file" in words:
        return ConnectionRefusedError(failure.stderr.strip())
    return EngineFailed(host=host, action="be reached", reason=str(failure))
