"""The pieces of a start on the host: the image, the container, the order to its relay. When each is done: kernel.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernelbridge import container, outcome
from kernelbridge.config import Environment, Host
from kernelbridge.container import GpuAsk, Labels
from kernelbridge.host.site import Runtime, Site
from kernelbridge.records import KernelRecord
from kernelbridge.relay import shipping
from kernelbridge.relays import Place
from kernelbridge.surroundings import Surroundings
from kernelbridge.wanted import Wanted

if TYPE_CHECKING:
    from kernelbridge.host.engine import Engine  # loads docker-py: see fleet.py

# What Jupyter and the kernel's own clock need; all else by `pass_env`.
ALWAYS_PASSED = ("JPY_SESSION_NAME", "TZ")


async def pull(engine: Engine, image: str, say: Callable[[str], None]) -> str:
    """Pull an image and return its id. Raises ImagePullFailed and others."""
    say(f"pulling {image}")
    await engine.pull(image, lambda progress: say(outcome.pull_text(image, progress)))
    pulled = await engine.image(image)
    return pulled.id if pulled else ""


def order(wanted: Wanted, *, launch: int, session: str) -> dict[str, Any]:
    """Return what the relay needs to start the kernel process; what may be secret goes only here, over stdin."""
    environment = wanted.environment
    names = (*ALWAYS_PASSED, *environment.pass_env, *environment.secrets)
    passed = {name: wanted.environ[name] for name in names if name in wanted.environ}
    env = {**environment.env, **passed}
    return shipping.spawn_order(
        launch=launch, session=session, env=env, cwd=environment.workdir or "", arguments=wanted.arguments
    )


async def create_container(engine: Engine, wanted: Wanted, *, labels: Labels, gpus: GpuAsk) -> None:
    """Create the container. Raises KernelBridgeError."""
    facts = engine.facts
    host_user = (facts.uid, facts.gid)
    if wanted.environment.user == container.HOST_USER and _is_rootless(await engine.info()):
        # A rootless engine's root is the login itself; its other numbers are nobody's.
        host_user = (0, 0)
    spec = container.spec(
        environment=wanted.environment,
        labels=labels,
        command=shipping.boot_argv(wanted.environment.python),
        gpus=gpus,
        host_home=facts.home,
        host_user=host_user,
    )
    name = container.name(wanted.kernel_id)
    made = asyncio.create_task(engine.create(name, spec))
    try:
        user = str(spec.get("User") or await _image_user(engine, wanted.environment.image))
    finally:
        await made
    if user.partition(":")[0] not in ("", "0", "root"):
        # A volume is root's: without this the relay could not write its journal there.
        await engine.make_folder(name, container.JOURNAL_FOLDER, shipping.JOURNAL_NAME)


async def _image_user(engine: Engine, image: str) -> str:
    facts = await engine.image(image)
    return facts.user if facts else ""


async def start_container(engine: Engine, wanted: Wanted, spawn: dict[str, Any], *, gpus: Sequence[str]) -> None:
    """Feed the relay of a container that was created, and start it. Raises KernelBridgeError."""
    name = container.name(wanted.kernel_id)
    # Attached before the start: not even a crash at once loses the line.
    stdin = await engine.open_stdin(name)
    stdin.write(relay_line(wanted, spawn, gpus=gpus))
    stdin.write_eof()
    await engine.start(name)


def relay_line(
    wanted: Wanted, spawn: dict[str, Any], *, gpus: Sequence[str] | None, ends_with_stdin: bool = False
) -> bytes:
    """Return what a relay is told at its start: its code, the first launch, its terms, its cards.

    Without `gpus` its container's own variable names them.
    """
    environment = wanted.environment
    terms = {
        "persist": environment.persist,
        "lost_grace": environment.lost_grace,
        "max_lifetime": environment.max_lifetime,
        "idle_timeout": environment.idle_timeout,
        "keep_exited": environment.keep_exited,
    }
    journal = {"folder": f"{container.JOURNAL_FOLDER}/{shipping.JOURNAL_NAME}", "bytes": environment.journal_size}
    locks = container.LOCKS_FOLDER if gpus and environment.gpu_lock == "flock" else ""
    cards = {"ids": None if gpus is None else list(gpus), "locks": locks}
    return shipping.order_line(wanted.kernel_id, spawn, terms, journal, gpus=cards, ends_with_stdin=ends_with_stdin)


def record(
    wanted: Wanted,
    host: Host,
    around: Surroundings,
    known: KernelRecord | None,
    *,
    session: str,
    gpus: tuple[str, ...] = (),
) -> KernelRecord:
    """Return what is to be remembered of a kernel that this process has; `known` is what was."""
    return KernelRecord(
        kernel_id=wanted.kernel_id,
        environment=wanted.environment.name,
        config=around.config,
        host=host.name,
        image=wanted.environment.image,
        python=wanted.environment.python,
        session=session,
        started=known.started if known else time.time(),
        process=around.process,
        server=wanted.server,
        sessions=known.sessions if known else (),
        title=wanted.title or (known.title if known else ""),
        persist=wanted.environment.persist,
        claim=wanted.claim,
        connection_file=wanted.connection_file,
        gpus=gpus or (known.gpus if known else ()),
    )


def place(
    kernel_id: str,
    environment: Environment,
    host: Host,
    *,
    reach: Callable[[], Awaitable[Site]],
    rest: Callable[[float], Coroutine[Any, Any, None]],
) -> Place:
    """Return where the relay of a kernel is."""

    async def runtime() -> Runtime:
        return (await reach()).runtime(container.name(kernel_id), environment)

    return Place(
        kernel=kernel_id,
        host=host.name,
        image=environment.image,
        python=environment.python,
        runtime=runtime,
        rest=rest,
    )


def _is_rootless(info: Mapping[str, Any]) -> bool:
    return any("rootless" in str(option) for option in info.get("SecurityOptions") or ())
