"""Ask a host's Docker engine: images, containers, streams into them.

Calls are docker-py's, each in a thread of its own; a slow one delays nobody. Every error that leaves here is ours.
It is one file because all of it goes through the same few ways to make a call.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import EngineFailed, ImagePullFailed, KernelBridgeError
from kernelbridge.hosts import bootstrap, hardening
from kernelbridge.hosts.backend import (
    ContainerFacts,
    ContainerState,
    Created,
    Exited,
    Missing,
    Running,
    Workload,
)
from kernelbridge.hosts.docker import users
from kernelbridge.hosts.docker.cli_config import proxy_variables, read_config
from kernelbridge.hosts.docker.client import (
    FAILURES,
    Client,
    Refusal,
    Sockets,
    as_refusal,
    in_thread,
    is_timeout,
    make_client,
)
from kernelbridge.hosts.docker.connect import (
    Answered,
    Route,
    ask_version,
    command_reason,
    find_route,
    not_understood,
    reason_of,
    user_error,
)
from kernelbridge.hosts.docker.error_map import container_error, foreign_image, is_foreign, pull_error
from kernelbridge.hosts.docker.gpu_access import GpuWay, gpu_way
from kernelbridge.hosts.docker.hijack import UpgradeError, open_upgraded
from kernelbridge.hosts.docker.images.image_store import ImageStore
from kernelbridge.hosts.docker.images.workshop import Workshop
from kernelbridge.hosts.docker.reasons import told
from kernelbridge.hosts.docker.registry_auth import Credentials, RegistryLogin, find_login, registry_of
from kernelbridge.hosts.docker.responses import (
    EngineFacts,
    ImageFacts,
    PullProgress,
    PullTally,
    engine_facts,
    is_version_refusal,
    parse_containers,
    parse_image,
    parse_image_name,
    parse_info,
    parse_state,
    read_id,
    read_object,
    read_warnings,
)
from kernelbridge.hosts.docker.volumes import Volumes, folder_archive
from kernelbridge.hosts.gpus.nvidia_smi import Inventory
from kernelbridge.hosts.labels import KERNEL_LABEL, NAME_PREFIX
from kernelbridge.hosts.short_way import ShortWays
from kernelbridge.hosts.transport.facts import HostFacts
from kernelbridge.hosts.transport.single_flight import SingleFlight
from kernelbridge.hosts.transport.stream import AnyLink, Collector, CommandError, Receiver, Stream
from kernelbridge.mailbox import LoopMailbox

__all__ = [
    "ContainerFacts",
    "ContainerState",
    "Created",
    "Engine",
    "Exited",
    "ImageFacts",
    "Missing",
    "PullProgress",
    "Running",
    "open_engine",
]

_LOG = logging.getLogger(__name__)

_T = TypeVar("_T")
# Takes the next piece of what a build prints.
Receives = Callable[[str], None]
# Takes how many bytes have come across.
Counts = Callable[[int], None]

# The engine's words for a container whose processes are there.
_RUNS = ("running", "paused", "restarting")
# How often a pull tells how far it is.
PROGRESS_SECONDS = 0.25


class _Refused(Exception):
    """The engine said no; each method knows what that means for it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.status = refusal.status
        self.message = refusal.message


class Engine:
    """One Docker engine over one link; of no use after the link is lost. Made by open_engine().

    What answers may become another under the same link: a newer Docker while its containers run on, an older one,
    Podman. So it is asked what it is after a connection to it broke, and when it refuses our version.
    """

    def __init__(self, link: AnyLink, route: Route, about: EngineFacts, *, has_short_way: bool = True) -> None:
        self.link = link
        # What answers now, as far as we know; replaced by _negotiate().
        self.about = about
        # Whether what answers may be another by now; set when a connection breaks, cleared by _negotiate().
        self._may_have_changed = False
        self._negotiation: SingleFlight[None] = SingleFlight()
        # The ids of the containers that were made here, by name: another program may rename them. Cleared by remove().
        self._ids: dict[str, str] = {}
        self._route = route
        trouble = "" if self.is_forwarded else "its sshd forwards no sockets"
        if not has_short_way:
            trouble = "`short_way` is off"
        self._sockets = route.calls
        self._client = self._make_client(self._sockets)
        self.gpus = Inventory(link)
        self.volumes = Volumes(self._read)
        self.images = ImageStore(self._read)
        self.workshop = Workshop(self._read_apart)
        self.short_ways = ShortWays(link, trouble=trouble)

    def __repr__(self) -> str:
        state = "open" if self.link.is_open else "lost"
        return (
            f"<Engine {self.link.name} {state}, {self.about.version} API {self.api_version} by {self.about.transport}>"
        )

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def api_version(self) -> str:
        """The version of the API that we speak: the engine's own newest."""
        return self.about.api_version

    @property
    def is_forwarded(self) -> bool:
        """Whether its socket itself is connected to, not a command."""
        return self._route.keeps_connections

    @property
    def facts(self) -> HostFacts:
        """What the host said of itself."""
        return self.link.facts

    async def aclose(self) -> None:
        """Close the connections to the engine; streams that were opened live on. Safe to call twice."""
        self._sockets.close_all()
        await self._negotiation.aclose()

    def _make_client(self, sockets: Sockets) -> Client:
        return make_client(sockets, version=self.api_version, keeps_connections=self._route.keeps_connections)

    # -- calls

    async def _call(self, action: str, work: Callable[[Client], _T]) -> _T:
        """Let docker-py do one short piece of work on the connections that are kept.

        Raises: _Refused, LinkLost, EngineDown, EngineFailed and their like.
        """
        return await self._in_its_version(lambda: self._work(action, self._sockets, self._client, work))

    async def _call_apart(self, action: str, work: Callable[[Client], _T]) -> _T:
        """Do the same for long work, on a connection of its own that is closed when this is cancelled."""

        async def attempt() -> _T:
            sockets = Sockets(self._route.open)
            try:
                return await self._work(action, sockets, self._make_client(sockets), work)
            finally:
                sockets.close_all()

        return await self._in_its_version(attempt)

    async def _in_its_version(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Make a call in the version that the engine speaks, and anew where it was another one's."""
        # An engine ends the connections that are kept when it ends itself.
        if self._may_have_changed or (self._route.keeps_connections and self._sockets.has_lost_one):
            await self._negotiation.join(self._negotiate)
        version = self.api_version
        try:
            return await attempt()
        except _Refused as exc:
            # The engine has done nothing of what it refused so.
            if not is_version_refusal(exc.status, exc.message):
                raise
            if self.api_version == version:
                await self._negotiation.join(self._negotiate)
            if self.api_version == version:
                raise
            return await attempt()

    async def _negotiate(self) -> None:
        """Ask what answers now, and speak its version from here on. Raises as open_engine()."""
        self._sockets.has_lost_one = False
        self._may_have_changed = True
        try:
            about = _facts(self._route, await ask_version(self._route))
        except OSError as exc:
            raise user_error(self.link, self._route.candidate, exc) from exc
        self._may_have_changed = False
        if about != self.about:
            _LOG.info("[%s] the engine is %s now, was %s", self.link.name, about, self.about)
            self.about = about
            self._client = self._make_client(self._sockets)

    async def _work(self, action: str, sockets: Sockets, client: Client, work: Callable[[Client], _T]) -> _T:
        try:
            return await in_thread(lambda: work(client), name=action)
        except FAILURES as exc:
            refusal = as_refusal(exc)
            if refusal is not None:
                raise _Refused(refusal) from exc
            if is_timeout(exc) and self.link.is_open:
                raise EngineFailed(host=self.link.name, action=action, reason="no answer in time") from exc
            self._may_have_changed = True
            failure = reason_of(self._route, exc, sockets.take_failure(exc))
            raise user_error(self.link, self._route.candidate, failure) from exc

    async def _answered(self, action: str, work: Callable[[Client], _T]) -> _T:
        """Do the same as _call, where a refusal means nothing more. Raises EngineFailed for it."""
        try:
            return await self._call(action, work)
        except _Refused as exc:
            raise self._failed(action, exc) from exc

    async def _read_apart(self, action: str, work: Callable[[Client], Any], read: Callable[[Any], _T]) -> _T:
        """Do the same as _read for long work."""
        try:
            answer = await self._call_apart(action, work)
        except _Refused as exc:
            raise self._failed(action, exc) from exc
        return self._understood(action, answer, read)

    async def _read(self, action: str, work: Callable[[Client], Any], read: Callable[[Any], _T]) -> _T:
        """Do the same as _answered, and read the answer. Raises EngineFailed where it cannot be understood."""
        return self._understood(action, await self._answered(action, work), read)

    def _understood(self, action: str, answer: object, read: Callable[[Any], _T]) -> _T:
        try:
            return read(answer)
        except ValueError as exc:
            raise EngineFailed(host=self.link.name, action=action, reason=not_understood(exc)) from exc

    def _failed(self, action: str, refused: _Refused) -> EngineFailed:
        return EngineFailed(host=self.link.name, action=action, reason=told(refused.message))

    async def info(self) -> Mapping[str, Any]:
        """Return the engine's GET /info, as it is."""
        return await self._read("say what it is", lambda client: client.info(), parse_info)

    async def gpu_way(self, access: str) -> GpuWay:
        """Decide how to ask for GPUs here; `access` is the host's `gpu_access`. Raises GpuWayMissing."""
        about = self.about
        return gpu_way(
            await self.info(), is_podman=about.is_podman, version=about.version, access=access, host=self.link.name
        )

    # -- images

    async def image(self, name: str) -> ImageFacts | None:
        """Return the image, or None where the engine itself says that it does not have it."""
        action = f"look at the image {name}"
        try:
            answer = await self._call(action, lambda client: client.inspect_image(name))
        except _Refused as exc:
            if exc.status == 404:
                return None
            raise self._failed(action, exc) from exc
        return self._understood(action, answer, parse_image)

    async def check_pullable(self, name: str, *, seconds: float) -> None:
        """Return if the image can be pulled, as far as that is known in time: then the pull will tell.

        What the registry itself says to the question is no more than a hint: a mirror may have what it refuses. Where
        it says no the pull is begun, and ended at its first good word.

        Raises: as pull().
        """
        if self.about.is_podman:
            return  # It does not know this question.
        try:
            async with asyncio.timeout(seconds):
                login = await find_login(self.link, name)
            async with asyncio.timeout(seconds):
                try:
                    await self._call_apart(
                        f"ask for {name}", lambda client: client.inspect_distribution(name, login.credentials)
                    )
                except _Refused as exc:
                    _LOG.info("[%s] the registry says of %s: %s", self.link.name, name, exc.message)
                    await self._pulled(name, login, lambda client: _begin_pull(client, name, login))
        except TimeoutError:
            return

    async def pull(self, name: str, progress: Callable[[PullProgress], None]) -> ImageFacts:
        """Pull the image, and return it. `progress` is called on the loop, a few times a second.

        Raises: ImageMissing, ImagePullFailed, ImageUnusable, LinkLost.
        """
        login = await find_login(self.link, name)
        mailbox = LoopMailbox()
        await self._pulled(
            name, login, lambda client: _pull(client, name, login, lambda now: mailbox.post(progress, now))
        )
        found = await self.image(name)
        if found is None:
            # docker-py ends silently when the engine closes the connection halfway.
            raise ImagePullFailed(host=self.link.name, image=name, reason="the engine ended it halfway")
        return found

    async def _pulled(self, name: str, login: RegistryLogin, work: Callable[[Client], None]) -> None:
        try:
            await self._call_apart(f"pull {name}", work)
        except _Refused as exc:
            # Without the password that a helper keeps, the registry's answer is that of an anonymous pull.
            words = f"{exc.message}; {login.trouble}" if login.trouble else exc.message
            raise pull_error(host=self.link.name, image=name, message=words) from exc

    async def build(
        self, archive: Path, options: Mapping[str, str], *, bases: Sequence[str], heard: Receives, sent: Counts
    ) -> str:
        """Build an image by the classic builder of a tar archive of this machine; return why it failed, else "".

        `options` are those of POST /build, `bases` the images that it may have to pull; `heard` gets on the loop what
        the build prints, `sent` how much of the archive was sent. Raises: LinkLost, EngineFailed.
        """
        mailbox = LoopMailbox()
        logins = {registry_of(image): await find_login(self.link, image) for image in bases}
        known = {registry: login.credentials for registry, login in logins.items() if login.credentials}
        try:
            await self._call_apart(
                "build an image",
                lambda client: _build(
                    client,
                    archive,
                    options,
                    known,
                    tell=lambda text: mailbox.post(heard, text),
                    sent=lambda size: mailbox.post(sent, size),
                ),
            )
        except _Refused as exc:
            return told(exc.message)
        return ""

    async def proxies(self) -> dict[str, str]:
        """Return the variables for proxies that `docker run` of the login on the host sets. Raises: LinkLost."""
        return proxy_variables(await read_config(self.link), self.about.socket)

    # -- containers

    async def create(self, name: str, spec: Mapping[str, Any]) -> str:
        """Create a container from the body of POST /containers/create; give its id.

        Raises: ImageMissing, MountMissing, GpuToolkitMissing, ContainerFailed.
        """
        config = dict(spec)
        if self.about.is_podman:
            config["HostConfig"] = {**spec.get("HostConfig", {}), "LogConfig": hardening.log_config(is_podman=True)}
        try:
            answer = await self._call(
                f"create {name}", lambda client: client.create_container_from_config(config, name)
            )
        except _Refused as exc:
            image = str(spec.get("Image", name))
            raise container_error(host=self.link.name, image=image, message=exc.message) from exc
        for warning in self._understood(f"create {name}", answer, read_warnings):
            # Such as that it cannot limit swap.
            _LOG.info("[%s] %s of %s: %s", self.link.name, self.about, name, warning)
        self._ids[name] = self._understood(f"create {name}", answer, read_id)
        return self._ids[name]

    async def make_folder(self, name: str, parent: str, folder: str) -> None:
        """Make a folder that every user of the container may write to, as /tmp; the container need not run."""
        action = f"make {parent}/{folder} in {name}"
        archive = folder_archive([folder], mode=0o1777)
        await self._answered(action, lambda client: client.put_archive(name, parent, archive))

    async def enter_user(self, name: str, user: str, wanted_name: str) -> None:
        """Give a user whom the image does not know a name and a home; the container need not run. Raises EngineFailed.

        It has `wanted_name` where that is free.
        """
        path = f"{users.PASSWD_FOLDER}/{users.PASSWD_NAME}"
        archive = await self._answered(f"read {path} in {name}", lambda client: _archived(client, name, path))
        added = users.enter(archive, user, wanted_name)
        if added is not None:
            await self._answered(f"write {path} in {name}", lambda client: client.put_archive(name, "/", added))

    async def start(self, name: str) -> None:
        """Start a container; one that runs already is success.

        Raises: GpuToolkitMissing, UlimitRefused, MountMissing, ImageUnusable, ContainerFailed.
        """
        try:
            await self._call(f"start {name}", lambda client: client.start(name))
        except _Refused as exc:
            image = await self._image_of(name)
            message = exc.message
            if is_foreign(message):
                raise foreign_image(image, self.link.name, await self.architectures(image)) from exc
            raise container_error(host=self.link.name, image=image, message=message) from exc

    async def architectures(self, image: str) -> tuple[str, str]:
        """Return for which processor the image is made, and which the host has; empty where that is not known."""
        with contextlib.suppress(KernelBridgeError):
            found, info = await asyncio.gather(self.image(image), self.info())
            return (found.architecture if found else "", str(info.get("Architecture") or ""))
        return "", ""

    async def _image_of(self, name: str) -> str:
        """Return the image a container was made from, for error messages; its own name where that is not to be had."""
        try:
            answer = await self._call(f"look at {name}", lambda client: client.inspect_container(name))
            return parse_image_name(answer)
        except (_Refused, KernelBridgeError, ValueError):
            return name

    async def state(self, name: str) -> ContainerState:
        """Look at the container. Missing only when the engine itself says so; everything else unknown raises."""
        action = f"look at {name}"
        try:
            answer = await self._call(action, lambda client: client.inspect_container(name))
        except _Refused as exc:
            if exc.status == 404:
                return Missing()
            raise self._failed(action, exc) from exc
        return self._understood(action, answer, parse_state)

    async def list(self, label: str) -> list[ContainerFacts]:
        """Return all containers, running or not, with this label (`key` or `key=value`)."""
        return await self._read(
            "list containers", lambda client: client.containers(all=True, filters={"label": label}), parse_containers
        )

    async def stop(self, name: str, *, seconds: int) -> None:
        """End the main process: SIGTERM, after `seconds` SIGKILL. Already ended or gone is success."""
        action = f"stop {name}"
        try:
            await self._call_apart(action, lambda client: client.stop(name, timeout=seconds))
        except _Refused as exc:
            if exc.status != 404:
                raise self._failed(action, exc) from exc

    async def remove(self, name: str) -> None:
        """Remove the container, running or not, and its anonymous volumes. Already gone is success.

        Raises: EngineFailed: also where it runs on under another name, as far as labels tell: a copy has the same.
        """
        if not await self._remove(name) and not (name in self._ids and await self._remove(self._ids[name])):
            await self._refuse_renamed(name)
        self._ids.pop(name, None)

    async def _remove(self, name: str) -> bool:
        """Remove a container by its name or id; whether it was there."""
        action = f"remove {name}"
        try:
            await self._call_apart(action, lambda client: client.remove_container(name, v=True, force=True))
        except _Refused as exc:
            is_under_way = exc.status == 409 and "already in progress" in exc.message
            if exc.status != 404 and not is_under_way:
                raise self._failed(action, exc) from exc
            return is_under_way
        return True

    async def _refuse_renamed(self, name: str) -> None:
        if not name.startswith(NAME_PREFIX):
            return
        found = await self.list(f"{KERNEL_LABEL}={name.removeprefix(NAME_PREFIX)}")
        runs = [facts.name for facts in found if facts.state in _RUNS and facts.name != name]
        if runs:
            raise EngineFailed(
                host=self.link.name,
                action=f"remove {name}",
                reason=f"it was renamed, and runs on as {' and '.join(runs)}",
                remedy=f"Remove it with `docker rm -f {' '.join(runs)}` on the host, or name it {name} again.",
            )

    async def logs(self, name: str, tail: int) -> str:
        """Return the last lines that the main process wrote to stdout and stderr."""
        written = await self._answered(f"read the log of {name}", lambda client: client.logs(name, tail=tail))
        return bytes(written).decode("utf-8", "replace")

    def workload(self, name: str, environment: Environment) -> Workload:
        """Return the container of this name as what a relay runs in."""
        return ContainerWorkload(self, name, environment.python)

    # -- streams

    async def open_stdin(self, name: str) -> Stream:
        """Open the stdin of a container made with OpenStdin and StdinOnce; to be called before start().

        Write, then write_eof(); the engine closes the stream when the process has it all.
        """
        path = f"/containers/{quote(name)}/attach?stream=1&stdin=1"
        return await self._upgraded(f"attach to {name}", path, None, Collector())

    async def exec_stream(self, name: str, argv: Sequence[str], receiver: Receiver) -> Stream:
        """Run a command in a running container, joined to its stdin and stdout; its stderr goes to our debug log.

        The words of argv can be seen in `docker events` and `ps`: no secret and no user text may be among them.
        """
        action = f"run {argv[0]} in {name}"
        words = list(argv)
        made = await self._read(action, lambda client: client.exec_create(name, words, stdin=True), read_id)
        path = f"/exec/{quote(made, safe='')}/start"
        return await self._upgraded(action, path, {"Detach": False, "Tty": False}, receiver)

    async def _upgraded(self, action: str, path: str, body: Mapping[str, object] | None, receiver: Receiver) -> Stream:
        try:
            return await self._in_its_version(lambda: self._upgrade(action, path, body, receiver))
        except _Refused as exc:
            raise self._failed(action, exc) from exc

    async def _upgrade(self, action: str, path: str, body: Mapping[str, object] | None, receiver: Receiver) -> Stream:
        def explain(words: str) -> Exception:
            return EngineFailed(host=self.link.name, action=action, reason=told(words))

        path = f"/v{self.api_version}{path}"
        try:
            return await open_upgraded(self._route.open_long, path, body=body, receiver=receiver, explain=explain)
        except KernelBridgeError:
            raise
        except UpgradeError as exc:
            if exc.status:
                raise _Refused(Refusal(status=exc.status, message=exc.message)) from exc
            self._may_have_changed = True
            raise EngineFailed(host=self.link.name, action=action, reason=told(exc.message)) from exc
        except (OSError, CommandError) as exc:
            self._may_have_changed = True
            failure = command_reason(self.link.name, exc) if isinstance(exc, CommandError) else exc
            raise user_error(self.link, self._route.candidate, failure) from exc


def _archived(client: Client, name: str, path: str) -> bytes:
    """Return the tar archive of a small file; of a larger one its beginning, which is none."""
    archive = b""
    for piece in client.get_archive(name, path)[0]:
        archive += piece
        if len(archive) > users.PASSWD_BYTES:
            break
    return archive


def _pull(client: Client, name: str, login: RegistryLogin, tell: Callable[[PullProgress], None]) -> None:
    """Pull to the end; runs in a thread."""
    tally = PullTally(image=name)
    told_at = 0.0
    for line in _pull_lines(client, name, login):
        tally.add(line)
        if time.monotonic() - told_at >= PROGRESS_SECONDS:
            told_at = time.monotonic()
            tell(tally.progress)


def _begin_pull(client: Client, name: str, login: RegistryLogin) -> None:
    """Pull to the first line, which comes when the image was found; runs in a thread."""
    next(_pull_lines(client, name, login), None)


def _pull_lines(client: Client, name: str, login: RegistryLogin) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of a pull. What goes wrong after it began comes as one of them."""
    for line in client.pull(name, stream=True, decode=True, auth_config=login.credentials):
        if "error" in read_object(line, "a line"):
            raise _Refused(Refusal(status=500, message=str(line["error"])))
        yield line


class _Counted:
    """A file that says how much of it was read, at most PROGRESS_SECONDS ago; as requests wants a body to be."""

    def __init__(self, file: IO[bytes], tell: Counts) -> None:
        self._file, self._tell = file, tell
        self._told_at = time.monotonic()
        self.len = os.fstat(file.fileno()).st_size

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)

    def read(self, size: int = -1) -> bytes:
        """Return the next piece."""
        piece = self._file.read(size)
        if time.monotonic() - self._told_at >= PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            self._tell(self._file.tell())
        return piece


def _build(
    client: Client,
    archive: Path,
    options: Mapping[str, str],
    logins: Mapping[str, Credentials],
    *,
    tell: Receives,
    sent: Counts,
) -> None:
    """Build to the end; runs in a thread."""
    # Not docker-py's build(): that sends the logins of this machine, where those of the host are meant.
    known = base64.urlsafe_b64encode(json.dumps(logins).encode()).decode()
    headers = {"Content-Type": "application/x-tar", "X-Registry-Config": known}
    with archive.open("rb") as file:
        body = _Counted(file, sent)
        answer = client._post(client._url("/build"), data=body, params=dict(options), headers=headers, stream=True)
        with contextlib.closing(answer):
            client._raise_for_status(answer)
            for line in client._stream_helper(answer, decode=True):
                told_by_it = read_object(line, "a line")
                if "error" in told_by_it:
                    raise _Refused(Refusal(status=500, message=str(told_by_it["error"])))
                tell(str(told_by_it.get("stream") or told_by_it.get("status") or ""))


def _facts(route: Route, version: Mapping[str, Any]) -> EngineFacts:
    """Read GET /version as it came by a route. Raises: EngineTooOld, EngineFailed."""
    candidate = route.candidate
    return engine_facts(version, host=route.link.name, socket=candidate.socket, transport=candidate.transport.value)


async def open_engine(link: AnyLink, host: Host, ahead: Answered | None = None) -> Engine:
    """Find the engine of a host and speak its version; `ahead` is what ask_ahead() has found.

    Raises: EngineMissing, EngineDown, EngineDenied, EngineTooOld, EngineFailed, ForwardingForbidden, LinkLost.
    """
    route, version = await find_route(link, host, ahead)
    about = _facts(route, version)
    _LOG.info("[%s] %s at %s", host.name, about, about.socket)
    return Engine(link, route, about, has_short_way=host.short_way)


@dataclass(frozen=True)
class ContainerWorkload:
    """A relay in a container of an engine."""

    engine: Engine
    name: str
    python: str

    async def attach(self, receiver: Receiver) -> Stream:
        """See Workload."""
        stream = await self.engine.short_ways.open(self.name, receiver)
        return stream or await self.open_command(bootstrap.bridge_argv(self.python), receiver)

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        """See Workload."""
        return await self.engine.exec_stream(self.name, argv, receiver)

    async def state(self) -> ContainerState:
        """See Workload."""
        return await self.engine.state(self.name)

    async def logs(self, tail: int) -> str:
        """See Workload."""
        return await self.engine.logs(self.name, tail)

    async def architectures(self, image: str) -> tuple[str, str]:
        """See Workload."""
        return await self.engine.architectures(image)

    async def stop(self) -> None:
        """See Workload."""
        await asyncio.gather(self.engine.remove(self.name), self._remove_door())

    async def _remove_door(self) -> None:
        # What is left of it harms nobody.
        with contextlib.suppress(KernelBridgeError):
            await self.engine.short_ways.remove(self.name)
