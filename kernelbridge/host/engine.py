"""Docker on a host: images, containers, streams into them. The way there: route.py; what its answers mean: answers.py.

Calls are docker-py's, each in a thread of its own; a slow one delays nobody. Every error that leaves here is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from kernelbridge.config import Environment, Host
from kernelbridge.errors import EngineFailed, EngineTooOld, KernelBridgeError
from kernelbridge.host.answers import (
    ContainerFacts,
    ContainerState,
    Created,
    EngineFacts,
    Exited,
    ImageFacts,
    Missing,
    PullProgress,
    PullTally,
    Running,
    api_number,
    is_podman,
    parse_container,
    parse_image,
    parse_state,
)
from kernelbridge.host.dockerpy import (
    FAILURES,
    Client,
    Refusal,
    Sockets,
    as_refusal,
    in_thread,
    is_timeout,
    make_client,
    open_folder,
)
from kernelbridge.host.facts import HostFacts
from kernelbridge.host.gpus import Inventory
from kernelbridge.host.hijack import open_upgraded
from kernelbridge.host.local import LocalLink
from kernelbridge.host.refusals import container_error, pull_error, shortened
from kernelbridge.host.registry import Credentials, credentials
from kernelbridge.host.requirements import Way, gpu_way
from kernelbridge.host.route import Route, command_reason, find_route, reason_of, user_error
from kernelbridge.host.site import InContainer, Runtime
from kernelbridge.host.stream import AnyLink, Collector, CommandError, Receiver, Stream
from kernelbridge.host.upgrade import UpgradeError
from kernelbridge.host.volumes import Volumes
from kernelbridge.kernel_errors import ImageMissing, ImagePullFailed

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

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# DeviceRequests (GPUs) came with it: Docker 19.03.
OLDEST_API = "1.40"
# How often a pull tells how far it is.
PROGRESS_SECONDS = 0.25


class _Refused(Exception):
    """The engine said no; each method knows what that means for it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.status = refusal.status
        self.message = refusal.message


class Engine:
    """One Docker engine over one link; of no use after the link is lost. Made by open_engine()."""

    def __init__(self, link: AnyLink, route: Route, about: EngineFacts) -> None:
        self.link = link
        self.about = about
        self._route = route
        self._sockets = Sockets(route.open)
        self._client = self._make_client(self._sockets)
        self.gpus = Inventory(link)
        self.volumes = Volumes(self._answered)

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
    def facts(self) -> HostFacts:
        """What the host said of itself."""
        return self.link.facts

    async def aclose(self) -> None:
        """Close the connections to the engine; streams that were opened live on. Safe to call twice."""
        self._sockets.close_all()

    def _make_client(self, sockets: Sockets) -> Client:
        return make_client(sockets, version=self.api_version, keeps_connections=self._route.keeps_connections)

    # -- calls

    async def _call(self, action: str, work: Callable[[Client], Result]) -> Result:
        """Let docker-py do one short piece of work on the connections that are kept.

        Raises: _Refused, LinkLost, EngineDown, EngineFailed and their like.
        """
        return await self._work(action, self._sockets, self._client, work)

    async def _call_apart(self, action: str, work: Callable[[Client], Result]) -> Result:
        """The same for long work, on a connection of its own that is closed when this is cancelled."""
        sockets = Sockets(self._route.open)
        try:
            return await self._work(action, sockets, self._make_client(sockets), work)
        finally:
            sockets.close_all()

    async def _work(self, action: str, sockets: Sockets, client: Client, work: Callable[[Client], Result]) -> Result:
        try:
            return await in_thread(lambda: work(client), name=action)
        except FAILURES as exc:
            refusal = as_refusal(exc)
            if refusal is not None:
                raise _Refused(refusal) from exc
            if is_timeout(exc) and self.link.is_open:
                raise EngineFailed(host=self.link.name, action=action, reason="no answer in time") from exc
            failure = reason_of(self._route, exc, sockets.take_failure(exc))
            raise user_error(self.link, self._route.rung, failure) from exc

    async def _answered(self, action: str, work: Callable[[Client], Result]) -> Result:
        """The same as _call, where a refusal means nothing more. Raises EngineFailed for it."""
        try:
            return await self._call(action, work)
        except _Refused as exc:
            raise self._failed(action, exc) from exc

    def _failed(self, action: str, refused: _Refused) -> EngineFailed:
        return EngineFailed(host=self.link.name, action=action, reason=shortened(refused.message))

    async def info(self) -> Mapping[str, Any]:
        """The engine's GET /info, as it is."""
        answer: Mapping[str, Any] = await self._answered("say what it is", lambda client: client.info())
        return answer

    async def gpu_way(self, access: str) -> Way:
        """How to ask for GPUs here; `access` is the host's `gpu_access`. Raises GpuWayMissing."""
        about = self.about
        return gpu_way(
            await self.info(), is_podman=about.is_podman, version=about.version, access=access, host=self.link.name
        )

    # -- images

    async def image(self, name: str) -> ImageFacts | None:
        """The image, or None where the engine itself says that it does not have it."""
        action = f"look at the image {name}"
        try:
            return parse_image(await self._call(action, lambda client: client.inspect_image(name)))
        except _Refused as exc:
            if exc.status == 404:
                return None
            raise self._failed(action, exc) from exc

    async def check_pullable(self, name: str, *, seconds: float) -> None:
        """Return if the registry has the image, and also if it does not answer in time: then the pull will tell.

        Raises: ImageMissing.
        """
        if self.about.is_podman:
            return  # It does not know this question.
        try:
            async with asyncio.timeout(seconds):
                auth = await self._registry_auth(name)
                await self._call_apart(f"ask for {name}", lambda client: client.inspect_distribution(name, auth))
        except TimeoutError:
            return
        except _Refused as exc:
            raise ImageMissing(host=self.link.name, image=name, reason=shortened(exc.message)) from exc

    async def pull(self, name: str, progress: Callable[[PullProgress], None]) -> None:
        """Pull the image; afterwards it is on the host. `progress` is called on the loop, a few times a second.

        Raises: ImageMissing, ImagePullFailed, LinkLost.
        """
        loop = asyncio.get_running_loop()
        auth = await self._registry_auth(name)

        def tell(now: PullProgress) -> None:
            with contextlib.suppress(RuntimeError):  # The loop has ended: nobody listens any more.
                loop.call_soon_threadsafe(progress, now)

        try:
            await self._call_apart(f"pull {name}", lambda client: _pull(client, name, auth, tell))
            arrived = await self.image(name)
        except _Refused as exc:
            raise pull_error(host=self.link.name, image=name, message=exc.message) from exc
        if arrived is None:
            # docker-py ends silently when the engine closes the connection halfway.
            raise ImagePullFailed(host=self.link.name, image=name, reason="the engine ended it halfway")

    async def _registry_auth(self, image: str) -> Credentials | None:
        """What `docker login` stored on the host; None: on this machine, where docker-py itself looks."""
        return None if isinstance(self.link, LocalLink) else await credentials(self.link, image)

    # -- containers

    async def create(self, name: str, spec: Mapping[str, object]) -> str:
        """Create a container from the body of POST /containers/create; give its id.

        Raises: ImageMissing, MountMissing, GpuToolkitMissing, ContainerFailed.
        """
        config = dict(spec)
        try:
            answer = await self._call(
                f"create {name}", lambda client: client.create_container_from_config(config, name)
            )
        except _Refused as exc:
            image = str(spec.get("Image", name))
            raise container_error(host=self.link.name, image=image, message=exc.message) from exc
        return str(answer["Id"])

    async def make_folder(self, name: str, parent: str, folder: str) -> None:
        """Make a folder that every user of the container may write to, as /tmp; the container need not run."""
        action = f"make {parent}/{folder} in {name}"
        await self._answered(action, lambda client: client.put_archive(name, parent, open_folder(folder)))

    async def start(self, name: str) -> None:
        """Start a container; one that runs already is success.

        Raises: GpuToolkitMissing, UlimitRefused, MountMissing, ImageUnusable, ContainerFailed.
        """
        try:
            await self._call(f"start {name}", lambda client: client.start(name))
        except _Refused as exc:
            image = await self._image_of(name)
            raise container_error(host=self.link.name, image=image, message=exc.message) from exc

    async def _image_of(self, name: str) -> str:
        """The image a container was made from, for error messages; its own name where that is not to be had."""
        try:
            answer = await self._call(f"look at {name}", lambda client: client.inspect_container(name))
        except (_Refused, KernelBridgeError):
            return name
        return str(answer["Config"]["Image"])

    async def state(self, name: str) -> ContainerState:
        """How the container is now. Missing only when the engine itself says so; everything else unknown raises."""
        action = f"look at {name}"
        try:
            return parse_state(await self._call(action, lambda client: client.inspect_container(name)))
        except _Refused as exc:
            if exc.status == 404:
                return Missing()
            raise self._failed(action, exc) from exc

    async def list(self, label: str) -> list[ContainerFacts]:
        """All containers, running or not, with this label (`key` or `key=value`)."""
        rows = await self._answered(
            "list containers", lambda client: client.containers(all=True, filters={"label": label})
        )
        return [parse_container(row) for row in rows]

    async def stop(self, name: str, *, seconds: int) -> None:
        """End the main process: SIGTERM, after `seconds` SIGKILL. Already ended or gone is success."""
        action = f"stop {name}"
        try:
            await self._call_apart(action, lambda client: client.stop(name, timeout=seconds))
        except _Refused as exc:
            if exc.status != 404:
                raise self._failed(action, exc) from exc

    async def remove(self, name: str) -> None:
        """Remove the container, running or not, and its anonymous volumes. Already gone is success."""
        action = f"remove {name}"
        try:
            await self._call_apart(action, lambda client: client.remove_container(name, v=True, force=True))
        except _Refused as exc:
            is_under_way = exc.status == 409 and "already in progress" in exc.message
            if exc.status != 404 and not is_under_way:
                raise self._failed(action, exc) from exc

    async def logs(self, name: str, tail: int) -> str:
        """The last lines that the main process wrote to stdout and stderr."""
        written = await self._answered(f"read the log of {name}", lambda client: client.logs(name, tail=tail))
        return bytes(written).decode("utf-8", "replace")

    def runtime(self, name: str, environment: Environment) -> Runtime:
        """The container of this name as what a relay runs in."""
        return InContainer(self, name, environment.python)

    # -- streams

    async def open_stdin(self, name: str) -> Stream:
        """The stdin of a container made with OpenStdin and StdinOnce; to be opened before start().

        Write, then write_eof(); the engine closes the stream when the process has it all.
        """
        path = f"/v{self.api_version}/containers/{quote(name)}/attach?stream=1&stdin=1"
        return await self._upgraded(f"attach to {name}", path, None, Collector())

    async def exec_stream(self, name: str, argv: Sequence[str], receiver: Receiver) -> Stream:
        """Run a command in a running container, joined to its stdin and stdout; its stderr goes to our debug log.

        The words of argv can be seen in `docker events` and `ps`: no secret and no user text may be among them.
        """
        action = f"run {argv[0]} in {name}"
        words = list(argv)
        made = await self._answered(action, lambda client: client.exec_create(name, words, stdin=True))
        path = f"/v{self.api_version}/exec/{quote(str(made['Id']))}/start"
        return await self._upgraded(action, path, {"Detach": False, "Tty": False}, receiver)

    async def _upgraded(self, action: str, path: str, body: Mapping[str, object] | None, receiver: Receiver) -> Stream:
        def explain(words: str) -> Exception:
            return EngineFailed(host=self.link.name, action=action, reason=shortened(words))

        try:
            return await open_upgraded(self._route.open_long, path, body=body, receiver=receiver, explain=explain)
        except KernelBridgeError:
            raise
        except UpgradeError as exc:
            raise EngineFailed(host=self.link.name, action=action, reason=shortened(exc.message)) from exc
        except (OSError, CommandError) as exc:
            failure = command_reason(self.link.name, exc) if isinstance(exc, CommandError) else exc
            raise user_error(self.link, self._route.rung, failure) from exc


def _pull(client: Client, name: str, auth: Credentials | None, tell: Callable[[PullProgress], None]) -> None:
    """Pull to the end; runs in a thread. What goes wrong after the pull began comes as a line of its answer."""
    tally = PullTally(image=name)
    told_at = 0.0
    for line in client.pull(name, stream=True, decode=True, auth_config=auth):
        if "error" in line:
            raise _Refused(Refusal(status=500, message=str(line["error"])))
        now = tally.add(line)
        if time.monotonic() - told_at >= PROGRESS_SECONDS:
            told_at = time.monotonic()
            tell(now)


async def open_engine(link: AnyLink, host: Host) -> Engine:
    """Find the engine of a host and speak its version.

    Raises: EngineMissing, EngineDown, EngineDenied, EngineTooOld, EngineFailed, ForwardingForbidden, LinkLost.
    """
    route, version = await find_route(link, host)
    api_version = str(version["ApiVersion"])
    if api_number(api_version) < api_number(OLDEST_API):
        raise EngineTooOld(host=host.name, api=api_version, needed=OLDEST_API)
    about = EngineFacts(
        version=str(version.get("Version", "")),
        api_version=api_version,
        is_podman=is_podman(version),
        socket=route.rung.socket,
        transport=route.rung.transport.value,
    )
    log.info("[%s] Docker %s (API %s) at %s", host.name, about.version, api_version, about.socket)
    return Engine(link, route, about)
