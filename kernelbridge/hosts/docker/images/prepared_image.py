"""Turn the image of an environment, once its engine has it, into the one that containers are made of."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import secrets
import tarfile
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kernelbridge.config.schema import Environment
from kernelbridge.errors import ImageUnusable, KernelBridgeError, PackagesFailed
from kernelbridge.hosts import hardening
from kernelbridge.hosts.backend import Exited
from kernelbridge.hosts.docker.images import additions, derived_image, python_probe
from kernelbridge.hosts.docker.images.additions import Additions, additions_recipe
from kernelbridge.hosts.docker.images.derived_image import WheelsFailed
from kernelbridge.hosts.docker.images.python_probe import ANY_PYTHON, FoundPython
from kernelbridge.hosts.docker.responses import ImageFacts
from kernelbridge.hosts.labels import WORK_LABEL, WORK_PREFIX
from kernelbridge.hosts.progress import Say, WorkProgress
from kernelbridge.hosts.transport.lazy import loaded

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py

_LOG = logging.getLogger(__name__)
_PROBE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.1
_REMOVE_SECONDS: Final = 30.0
# A line for each Python, each with all its packages: an engine counts its pieces of 16 KiB as lines.
_LOG_LINES: Final = 2000
_LAST_LINES: Final = 20
# A label of a container is one of its image too; one without a value says nothing.
_NO_WORKER: Final = {WORK_LABEL: ""}
_CARDS: Final = "NVIDIA_VISIBLE_DEVICES"
_ROOTS: Final = ("", "0", "root")
# How long pip and apt may take, and how often their last line is told.
_INSTALL_SECONDS: Final = 3600.0
_TELL_SECONDS: Final = 1.0


Fetch = Callable[[FoundPython, Path], Awaitable[list["bytes | Path"]]]


def _load_fetch_all() -> Callable[[FoundPython, Sequence[str], Path], Awaitable[Sequence[Path]]]:
    """Import what fetches any wheels."""
    from kernelbridge.hosts.docker.images.wheels import fetch_paths  # loads packaging

    return fetch_paths


def _load_fetch() -> Fetch:
    """Import what fetches wheels."""
    from kernelbridge.hosts.docker.images.wheels import fetch_kernel  # loads packaging

    return fetch_kernel


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """What a container is made of, and what runs in it first."""

    # As the engine is asked for it: the environment's own, or one that was made of it.
    name: str
    facts: ImageFacts
    # A command or a path in it.
    python: str
    # What its Python is to have, by version, before anything is started there; see derived_image.FLOORS.
    floors: Mapping[str, str] = field(default_factory=dict)
    # Whether somebody has looked into it already: then nothing more can be done about what it lacks.
    is_examined: bool = False
    # Whether it had to be made just now.
    is_new: bool = False


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The way from an image to the one that is started."""

    engine: Engine
    environment: Environment
    # The environment's image, which the engine has.
    base: ImageFacts
    # The mark of the process that does it; see unfinished_image.py.
    worker: str
    # What was found in an image before, by its id and the wanted Python; and what keeps it.
    recall: Callable[[str], object]
    keep: Callable[[str, Mapping[str, Any]], None]
    # What the environment adds to it.
    additions: Additions
    # Where wheels are kept on this machine.
    cache: Path
    # Takes progress, for whoever waits.
    say: Say
    # What was found now, by the id of the image, with all packages; filled by _examine().
    examined: dict[str, FoundPython] = field(default_factory=dict)

    async def prepare(self, *, examine: bool) -> PreparedImage:
        """Return the image to start.

        Without `examine` one of which nothing is known is taken as it is: its relay tells what it lacks. Raises:
        ImageUnusable, PackagesFailed, EngineFailed, LinkLost.
        """
        floors = derived_image.FLOORS if self.environment.add_ipykernel else {}
        image = PreparedImage(
            name=self.environment.image, facts=self.base, python=self.environment.python, floors=floors
        )
        if self.additions:
            image = await self._with_additions(image)
        found = None if examine else self._remembered(image.facts.id)
        if found is None and not examine:
            return image
        found = found or await self._examined(image.facts)
        image = replace(image, python=found.path, is_examined=examine)
        return await self._with_kernel(image, found) if floors and derived_image.lacking(found) else image

    async def python(self, *, examine: bool) -> FoundPython | None:
        """Return the Python of the image as it is; None: nobody has looked into it, nor does this without `examine`.

        Raises: ImageUnusable, EngineFailed, LinkLost.
        """
        found = self._remembered(self.base.id)
        return await self._examined(self.base) if found is None and examine else found

    async def _with_additions(self, image: PreparedImage) -> PreparedImage:
        """Return the image that has what the environment adds. Raises ImageUnusable, PackagesFailed, others."""
        base = image.facts
        python = self._remembered(base.id) or await self._examined(base)
        recipe = additions_recipe(base.id, python, self.additions)
        found = await self.engine.image(recipe.tag)
        made = found or await self._add(replace(recipe, python=await self._examined(base)))
        return replace(image, name=recipe.tag, facts=made, python=python.path, is_new=found is None)

    async def _with_kernel(self, image: PreparedImage, python: FoundPython) -> PreparedImage:
        """Return the image that has what a kernel needs. Raises PackagesFailed, others."""
        recipe = derived_image.kernel_recipe(image.facts.id, python)
        found = await self.engine.image(recipe.tag)
        if found is None:
            python = await self._examined(image.facts)
        missing = derived_image.lacking(python)
        try:
            made = found or await self._add_kernel(replace(recipe, python=python), missing)
        except PackagesFailed as exc:
            if {"ipykernel", "pyzmq"} & set(missing) - set(python.packages):
                raise
            # As good as it was without us.
            _LOG.warning("[%s] %s", self.engine.link.name, exc)
            self.say(f"{exc.sentence} It starts without {' and '.join(missing)}")
            return replace(image, floors={}, is_examined=True)
        return replace(image, name=recipe.tag, facts=made, is_examined=True, is_new=image.is_new or found is None)

    # -- what is in it

    def _key(self, image_id: str) -> str:
        return f"{image_id} {self.environment.python}"

    def _remembered(self, image_id: str) -> FoundPython | None:
        with contextlib.suppress(ValueError):
            told = self.recall(self._key(image_id))
            return python_probe.parse_python(told) if told is not None else None
        return None

    async def _examined(self, base: ImageFacts) -> FoundPython:
        if base.id not in self.examined:
            self.examined[base.id] = await self._examine(base)
        return self.examined[base.id]

    async def _examine(self, base: ImageFacts) -> FoundPython:
        """Find the image's Python, and keep of what it has what the next start asks. Raises ImageUnusable."""
        image, wanted = self.environment.image, self.environment.python
        self.say(f"looking for Python in {image}")
        if wanted != ANY_PYTHON:
            found = await self._ask(base, wanted)
        else:
            found = []
            with contextlib.suppress(ImageUnusable):
                found = await self._ask(base, ANY_PYTHON)
            found = found or await self._ask_unknown(base)
        python, why = python_probe.choose(found, image=image)
        if why:
            self.say(f"taking {why}")
        asked = {name: version for name, version in python.packages.items() if name in (*derived_image.FLOORS, "pip")}
        self.keep(self._key(base.id), replace(python, packages=asked, markers={}).to_dict())
        return python

    async def _ask_unknown(self, base: ImageFacts) -> list[FoundPython]:
        """Ask the first Python that is there, where none is on PATH. Raises ImageUnusable."""
        async with self._container({"Image": base.id, "Cmd": ["none"]}) as name:
            there = await self.engine.workshop.present(name, python_probe.possible_paths(base.env))
        for path in there:
            with contextlib.suppress(ImageUnusable):
                found = await self._ask(base, path)
                if found:
                    return found
        raise python_probe.no_python(self.environment.image)

    async def _ask(self, base: ImageFacts, python: str) -> list[FoundPython]:
        """Run one Python of the image, which asks all of them. Raises ImageUnusable where it cannot be run."""
        argv = python_probe.probe_argv(python, is_only=self.environment.python != ANY_PYTHON)
        log = await self._run(base, argv, seconds=_PROBE_SECONDS)
        return python_probe.parse_probe(log)

    # -- what is done to it

    @contextlib.asynccontextmanager
    async def _container(self, spec: Mapping[str, Any]) -> AsyncIterator[str]:
        """Make a container for a piece of work; it is removed whatever happens."""
        name = f"{WORK_PREFIX}{secrets.token_hex(6)}"
        # Nothing of the user's is in reach of it: no card, no mount, no secret.
        config = {"HostConfig": {"NetworkMode": "none"}, **spec}
        config["Labels"] = {**spec.get("Labels", {}), WORK_LABEL: self.worker}
        # Before the engine has made it there is nothing to remove, and afterwards nobody would.
        creation = asyncio.create_task(self.engine.create(name, config))
        try:
            await asyncio.shield(creation)
            yield name
        finally:
            await asyncio.shield(self._remove(name, creation))

    async def _remove(self, name: str, creation: asyncio.Task[str]) -> None:
        await asyncio.wait([creation])
        with contextlib.suppress(KernelBridgeError, TimeoutError):
            async with asyncio.timeout(_REMOVE_SECONDS):
                await self.engine.remove(name)

    async def _run(self, base: ImageFacts, argv: Sequence[str], *, seconds: float) -> str:
        """Run a command in a container of the image to its end; return what it wrote."""
        host_config = {
            "NetworkMode": "none",
            "CapDrop": [hardening.DROPPED_CAPABILITIES],
            "SecurityOpt": [hardening.SECURITY_OPTION],
            "PidsLimit": self.environment.pids_limit,
            "LogConfig": hardening.log_config(),
        }
        env = [f"{_CARDS}=void"]
        spec = {"Image": base.id, "Entrypoint": argv[:1], "Cmd": argv[1:], "Env": env, "HostConfig": host_config}
        async with self._container(spec) as name:
            await self.engine.start(name)
            await self._ended(name, seconds)
            return await self.engine.logs(name, _LOG_LINES)

    async def _ended(self, name: str, seconds: float, *, tell: bool = False) -> int | None:
        """Wait for the end of a container; return its exit code, None where it did not come in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    state = await self.engine.state(name)
                    if isinstance(state, Exited):
                        return state.code
                    if tell and (line := (await self.engine.logs(name, 1)).strip()):
                        self.say(WorkProgress(what=f"adding {self.additions.words}", detail=line[:200]))
                    await asyncio.sleep(_TELL_SECONDS if tell else _LOOK_SECONDS)
        return None

    async def _add(self, recipe: derived_image.Recipe) -> ImageFacts:
        """Make the image that has what the environment adds. Raises PackagesFailed, ImageUnusable, others."""
        python, added = recipe.python, self.additions
        self.say(f"adding {added.words} to {self.environment.image}")
        failure: KernelBridgeError | None = None
        if "pip" in python.packages or not added.packages:
            try:
                return await self._install(recipe, None)
            except PackagesFailed as exc:
                if not added.packages:
                    raise
                failure = exc
        # Its pip is missing, or reaches no index: this machine's may.
        self.say(f"fetching `packages` for Python {python.version} on this machine")
        fetch = await loaded(_load_fetch_all)
        with tempfile.TemporaryDirectory(prefix="kernelbridge-wheels-", ignore_cleanup_errors=True) as work:
            try:
                wheels = await fetch(python, [*added.packages, "pip"], Path(work))
            except WheelsFailed as exc:
                raise failure or self._failed(str(exc)) from exc
            return await self._install(recipe, wheels)

    def _failed(self, reason: str) -> PackagesFailed:
        return PackagesFailed(
            host=self.engine.link.name,
            image=self.environment.image,
            what=self.additions.words,
            reason=reason,
            remedy="Fix these keys of the environment, and try again.",
        )

    async def _install(self, recipe: derived_image.Recipe, wheels: Sequence[Path] | None) -> ImageFacts:
        """Install it, from wheels of this machine or from the index of the image's pip. Raises PackagesFailed, more."""
        python, base = recipe.python, self.base
        network = self.environment.network
        spec: dict[str, Any] = {
            "Image": recipe.base,
            # All of it, so that the image has no command of ours where the base has none.
            "Entrypoint": additions.program_argv(python),
            # An image that names no user names none afterwards.
            **({} if base.user in _ROOTS else {"User": "0"}),
            # With nvidia as default runtime it would get cards, and the image files of their driver.
            **({"Env": [f"{_CARDS}=void"]} if _CARDS in base.env else {}),
            "OpenStdin": True,
            "StdinOnce": True,
            "AttachStdin": True,
            "Labels": recipe.labels(datetime.now(UTC).isoformat(timespec="seconds")),
            "HostConfig": {"NetworkMode": network, "LogConfig": hardening.log_config()},
        }
        async with self._container(spec) as name:
            for path in wheels or ():
                archive = await asyncio.to_thread(_in_folder, path)
                await self.engine.workshop.put(name, "/tmp", archive)  # noqa: S108 - in the container
            stdin = await self.engine.open_stdin(name)
            names = None if wheels is None else [path.name for path in wheels]
            stdin.write(additions.program_line(self.additions, python, await self.engine.proxies(), wheels=names))
            stdin.write_eof()
            await self.engine.start(name)
            code = await self._ended(name, _INSTALL_SECONDS, tell=True)
            if code == additions.EXIT_NO_APT:
                raise ImageUnusable(
                    image=self.environment.image,
                    fault="has no apt-get for `apt`",
                    remedy="Use an image of Debian or Ubuntu, or remove `apt` from the environment.",
                )
            if code != 0:
                log = await self.engine.logs(name, _LAST_LINES)
                raise self._failed(derived_image.last_words(log) if code else "it does not end")
            # All that it says but its files is the image's own again.
            config = {
                "Entrypoint": list(base.entrypoint),
                "Cmd": list(base.command),
                "User": base.user,
                "Env": [f"{key}={text}" for key, text in base.env.items()],
                "Labels": _NO_WORKER,
            }
            return await self.engine.workshop.commit(name, recipe.tag, config)

    async def _add_kernel(self, recipe: derived_image.Recipe, missing: Sequence[str]) -> ImageFacts:
        """Make the image that has what a kernel needs beside its own. Raises PackagesFailed, EngineFailed, others."""
        image, python, host = self.environment.image, recipe.python, self.engine.link.name
        derived_image.check_architecture(python, image)
        what, them = derived_image.in_words(missing), "them" if len(missing) > 1 else "it"
        self.say(f"{image} lacks {what}: fetching {them} for Python {python.version} on this machine")
        fetch = await loaded(_load_fetch)
        try:
            archives = await fetch(python, self.cache)
        except WheelsFailed as exc:
            raise PackagesFailed(host=host, image=image, what=what, reason=str(exc)) from exc
        self.say(f"adding {what} to {image}")
        # Nothing runs in it: what its image says of command, user and variables stays as it is.
        spec: dict[str, Any] = {"Image": recipe.base}
        spec["Labels"] = recipe.labels(datetime.now(UTC).isoformat(timespec="seconds"))
        if not (self.base.entrypoint or self.base.command):
            # An engine makes no container that could do nothing.
            spec["Cmd"] = [python.path]
        async with self._container(spec) as name:
            for archive in archives:
                await self.engine.workshop.put(name, "/", archive)
            return await self.engine.workshop.commit(name, recipe.tag, {"Labels": _NO_WORKER})


def _in_folder(path: Path) -> bytes:
    """Return the tar archive of a wheel as it lies in additions.WHEELS_FOLDER, to be unpacked in the folder above."""
    out = io.BytesIO()
    content = path.read_bytes()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo(f"{additions.WHEELS_FOLDER.rpartition('/')[2]}/{path.name}")
        entry.size, entry.mode = len(content), 0o644
        tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()
