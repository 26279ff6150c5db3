"""What a front-end asked for, and which host can give it: found out before anything is started there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kernelbridge import container
from kernelbridge.config import Environment, Host
from kernelbridge.errors import KernelBridgeError, SecretMissing
from kernelbridge.host import gpus, leases
from kernelbridge.kernel_errors import ImageMissing, MountMissing, StartTimeout

if TYPE_CHECKING:
    from kernelbridge.host.engine import Engine  # loads docker-py: see fleet.py

# A registry that does not say so fast is asked by the pull itself.
REGISTRY_SECONDS = 5.0
CHECK_SECONDS = 30.0

# Prints for each of its arguments where it leads in the end; an empty line for one that is not there.
_SOURCES_SCRIPT = """
for path do
  if [ -e "$path" ]; then readlink -f "$path" || printf '%s\\n' "$path"; else echo; fi
done
"""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a front-end asked for."""

    kernel_id: str
    environment: Environment
    display_name: str
    hosts: tuple[Host, ...]
    # Variables of this machine; only those that the environment names are read.
    environ: Mapping[str, str] = field(repr=False)
    # More arguments for the kernel process, as Jupyter's clients may give them.
    arguments: tuple[str, ...] = ()
    # The root folder of the Jupyter server that asks, and what people call the kernel; see records.KernelRecord.
    server: str = ""
    title: str = ""
    # Under which it may be taken up again after a goodbye; see jupyter/launcher.py.
    claim: str = ""
    # The kernel's header.session, of one that runs already; empty: a new one.
    session: str = ""
    # The file that says where its endpoints are here, for other programs of this machine; empty: none is written.
    connection_file: str = ""


@contextlib.asynccontextmanager
async def deadline(seconds: float, host: str, what: str) -> AsyncIterator[None]:
    """Give the block so many seconds. Raises StartTimeout with what was waited for."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        raise StartTimeout(host=host, what=what, seconds=seconds) from exc


@dataclass(frozen=True, kw_only=True)
class Found:
    """A host that can give what is wanted: the UUIDs of its cards, and the image's id (empty: to be pulled)."""

    host: Host
    gpu_ids: tuple[str, ...]
    image_id: str


async def find_host(wanted: Wanted, reach: Callable[[Host], Awaitable[Engine]]) -> Found:
    """Return the first host that can give what is wanted.

    Raises KernelBridgeError: that of the first host, if none can.
    """
    environment = wanted.environment
    for name in environment.secrets:
        if name not in wanted.environ:
            raise SecretMissing(environment=environment.name, name=name)
    failure: KernelBridgeError | None = None
    for host in wanted.hosts:
        try:
            async with deadline(CHECK_SECONDS, host.name, "the check of the host"):
                return await _check(environment, host, await reach(host))
        except KernelBridgeError as exc:
            failure = failure or exc
    assert failure is not None  # The config gives each environment a host.
    raise failure


async def _check(environment: Environment, host: Host, engine: Engine) -> Found:
    cards: tuple[str, ...] = ()
    if environment.gpus != 0:
        facts = await gpus.Inventory(engine.link).look()
        cards = leases.pick(facts, leases.Wish.of_environment(environment), leases.Others(), host=host.name)
    image_id = await _check_image(environment, host, engine)
    if environment.mounts:
        await _check_mounts(environment, host, engine)
    return Found(host=host, gpu_ids=cards, image_id=image_id)


async def _check_mounts(environment: Environment, host: Host, engine: Engine) -> None:
    sources = [container.host_path(mount.source, engine.facts.home) for mount in environment.mounts]
    found = await engine.link.run(["sh", "-c", _SOURCES_SCRIPT, "sh", *sources], seconds=CHECK_SECONDS)
    ends = found.stdout.decode("utf-8", "replace").splitlines()
    for mount, source, end in zip(environment.mounts, sources, ends, strict=False):
        if not end:
            raise MountMissing(host=host.name, path=source)
        # A link of the host may lead to what we refuse.
        container.check_source(end, mount, environment)


async def _check_image(environment: Environment, host: Host, engine: Engine) -> str:
    """Return the image's id; empty if it is to be pulled, and can be as far as the registry says."""
    image = await engine.image(environment.image) if environment.pull != "always" else None
    if image is not None:
        return image.id
    if environment.pull == "never":
        raise ImageMissing(host=host.name, image=environment.image, reason="`pull` is never")
    await engine.check_pullable(environment.image, seconds=REGISTRY_SECONDS)
    return ""
