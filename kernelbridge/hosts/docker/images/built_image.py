"""Build the image of an environment on its host, unless what it is built of has not changed.

BuildKit is had through the docker command on the host: over the Engine's API it needs a session that speaks gRPC. A
host without that command, or without BuildKit in it, gets the archive by the API, for the classic builder.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import posixpath
import re
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from kernelbridge.config.schema import Build, Environment
from kernelbridge.errors import BuildFailed, ImageMissing, KernelBridgeError, StartTimeout
from kernelbridge.hosts.docker.images import build_context
from kernelbridge.hosts.docker.images.build_context import ContextFailed
from kernelbridge.hosts.docker.responses import ImageFacts
from kernelbridge.hosts.labels import BUILD_LABEL
from kernelbridge.hosts.mounts import host_path
from kernelbridge.hosts.progress import Meter, Say, Unit, WorkProgress
from kernelbridge.hosts.transport.stream import CommandError, Completed

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py

# What the label says where only a build can tell what an image is built of.
_UNKNOWN: Final = "unknown"
BUILD_SECONDS: Final = 4 * 3600.0
GIT_SECONDS: Final = 600.0
_COMMAND_SECONDS: Final = 60.0
# The largest folder of a host that comes to this machine: only where that host's docker command has no BuildKit.
RECEIVED_BYTES: Final = 8 << 30
# A build that the engine's cache answers is over by then, and says no more than that it is one.
_QUIET_SECONDS: Final = 1.5
_PROGRESS_SECONDS: Final = 0.25
_LAST_LINES: Final = 12
_PIECE_BYTES: Final = 256 << 10
_LINE_LENGTH: Final = 100
# Run with a command: what it says of errors is a part of what it prints.
_JOINED_SCRIPT: Final = 'exec "$@" 2>&1'
# Run with arguments of git, which has nobody to ask; nor has ssh, unless the login has a command of its own for it.
_GIT_SCRIPT: Final = """
export GIT_TERMINAL_PROMPT=0 GIT_ASKPASS= SSH_ASKPASS=
if [ -z "${GIT_SSH_COMMAND-}${GIT_SSH-}" ] && ! git config --get core.sshCommand >/dev/null 2>&1; then
  export GIT_SSH_COMMAND='ssh -o BatchMode=yes'
fi
exec git "$@" </dev/null
"""
# Run without arguments. It makes a folder, and removes those that killed processes have left: no build lasts a day.
_FOLDER_SCRIPT: Final = """
find "${TMPDIR:-/tmp}" -maxdepth 1 -name 'kernelbridge-build.*' -user "$(id -u)" -mmin +1440 \\
  -exec rm -rf {} + 2>/dev/null
exec mktemp -d -t kernelbridge-build.XXXXXX
"""
_TAR_SCRIPT: Final = 'cd "$1" && exec tar -cf - .'
# What BuildKit puts before each line: the step's number, and the time.
_STEP: Final = re.compile(r"^#\d+ (\d+\.\d+ )?")
# "#7 [builder 2/5] RUN ..." of BuildKit, whose further lines of a step begin with "#7"; "Step 2/5 : RUN ..." of others.
_STEP_OF: Final = re.compile(
    r"(?:#(?P<work>[0-9]{1,6}) \[(?:[\w.-]{1,80} )?|Step )(?P<number>[0-9]{1,4})/(?P<count>[0-9]{1,4})(?:\]| :)"
)
_WORK: Final = re.compile(r"#([0-9]{1,6}) ")
_MOST_STEPS: Final = 10_000


async def is_up_to_date(engine: Engine, environment: Environment, image: ImageFacts) -> bool:
    """Whether a start would take the image as it is, as far as can be told without a build.

    Raises: BuildFailed, LinkLost, StartTimeout.
    """
    if environment.build is None or environment.pull == "never":
        return True
    made_of = await _ImageBuild(engine, environment, lambda text: None).version()
    return not made_of or image.labels.get(BUILD_LABEL) == made_of


async def built_image(engine: Engine, environment: Environment, say: Say) -> tuple[ImageFacts, bool]:
    """Return the image of an environment with `build`, and whether a build took place.

    Raises: BuildFailed, ImageMissing, LinkLost, EngineFailed, StartTimeout.
    """
    return await _ImageBuild(engine, environment, say).image()


class BuildStep(NamedTuple):
    """Which step of a Dockerfile, or of one of its stages, a line is of."""

    number: int
    total: int


class BuildSteps:
    """Finds in what a builder prints at which step it is."""

    def __init__(self) -> None:
        # By BuildKit's number of a piece of work; the classic builder has one after the other, without a number.
        self._steps: dict[str, BuildStep] = {}

    def of(self, line: str) -> BuildStep | None:
        """Return the step of the next line; None of what is no step of a Dockerfile."""
        found = _STEP_OF.match(line)
        if found is not None and len(self._steps) < _MOST_STEPS:
            step = BuildStep(int(found["number"]), int(found["count"]))
            self._steps[found["work"] or ""] = step
        work = _WORK.match(line)
        return self._steps.get(work[1] if work else "")


class _Output:
    """Takes what a build prints, as a Receiver: tells its lines now and then, and keeps the last ones."""

    def __init__(self, tell: Callable[[str, BuildStep | None], None]) -> None:
        self._tell = tell
        self._steps = BuildSteps()
        self._unfinished = ""
        self._told_at = time.monotonic() + _QUIET_SECONDS - _PROGRESS_SECONDS
        self.last: deque[str] = deque(maxlen=_LAST_LINES)
        # Why a command ended; set by closed().
        self.failure: Exception | None = None
        self.ended = asyncio.Event()

    def text_received(self, text: str) -> None:
        """Take the next piece."""
        *lines, self._unfinished = (self._unfinished + text).replace("\r", "\n").split("\n")
        self._unfinished = self._unfinished[-_PIECE_BYTES:]
        for line in lines:
            step = self._steps.of(line)
            words = _STEP.sub("", line).strip()
            if words and words.strip("-") and words not in self.last:
                self.last.append(words)
                if time.monotonic() - self._told_at >= _PROGRESS_SECONDS:
                    self._told_at = time.monotonic()
                    self._tell(words, step)

    def data_received(self, data: bytes) -> None:
        """Called by the stream of a command."""
        self.text_received(data.decode("utf-8", "replace"))

    def closed(self, exc: Exception | None) -> None:
        """Called by the stream of a command."""
        self.text_received("\n")
        self.failure = exc
        self.ended.set()


@dataclass(frozen=True)
class _ImageBuild:
    """One build, from what the config says to an image on the engine."""

    engine: Engine
    environment: Environment
    say: Say

    @property
    def _build(self) -> Build:
        assert self.environment.build is not None
        return self.environment.build

    async def image(self) -> tuple[ImageFacts, bool]:
        """See built_image()."""
        name, pull = self.environment.image, self.environment.pull
        known = await self.engine.image(name)
        if pull == "never":
            if known is None:
                reason, remedy = "`pull` is never", "Remove `pull` from the environment: then it is built."
                raise ImageMissing(host=self.engine.link.name, image=name, reason=reason, remedy=remedy)
            return known, False
        self.say("building the image")
        with tempfile.TemporaryDirectory(prefix="kernelbridge-build-", ignore_cleanup_errors=True) as temporary:
            archive = Path(temporary) / "context.tar"
            made_of = await self._version(archive)
            if known is not None and made_of and known.labels.get(BUILD_LABEL) == made_of and pull != "always":
                return known, False
            if self._build.local_folder is not None:
                await self._build_archive(archive, made_of)
            else:
                async with self._host_folder() as folder:
                    await self._build_folder(folder, made_of, archive)
        image = await self.engine.image(name)
        if image is None:
            raise self._failed("the engine has no such image afterwards")
        return image, True

    async def version(self) -> str:
        """Return a hash of what the image is built of; empty where only a build can tell."""
        with tempfile.TemporaryDirectory(prefix="kernelbridge-build-", ignore_cleanup_errors=True) as temporary:
            return await self._version(Path(temporary) / "context.tar")

    async def _version(self, archive: Path) -> str:
        """Return the hash; where the context is a folder of this machine, it is in the archive then."""
        build = self._build
        if build.local_folder is not None:
            try:
                content = await asyncio.to_thread(build_context.pack, build.local_folder, build.dockerfile, archive)
            except ContextFailed as exc:
                raise self._failed(str(exc)) from exc
        elif build.git is not None:
            content = await self._ask_git(build.git)
        else:
            return ""
        made_of = [content, build.model_dump(mode="json", exclude={"context"})]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]

    async def _ask_git(self, address: str) -> str:
        """Return what stands for the commit that a branch or tag leads to; a commit stands for itself."""
        url, ref, _ = _git_parts(address)
        if re.fullmatch(r"[0-9a-f]{40,64}", ref):
            return ref
        self.say(f"building the image: asking {_short(url)}")
        content = (await self._git("ls-remote", "--", url, ref)).stdout.decode("utf-8", "replace")
        if not content.strip():
            raise self._failed(f"there is no {ref} in {url}")
        return content

    # -- what it is built of

    @asynccontextmanager
    async def _host_folder(self) -> AsyncIterator[str]:
        """Have the context in a folder of the host; what git fetches there is removed in the end."""
        link, git = self.engine.link, self._build.git
        if git is None:
            yield host_path(self._build.host_folder, self.engine.facts.home)
            return
        url, ref, inner = _git_parts(git)
        made = await self._run("sh", "-c", _FOLDER_SCRIPT)
        folder = made.stdout.decode("utf-8", "replace").strip()
        if not folder.startswith("/"):
            raise self._failed(f"the host has no folder for a while: {_last_words(made)}")
        try:
            self.say(f"building the image: fetching {_short(url)}")
            await self._git("init", "-q", folder)
            await self._git("-C", folder, "fetch", "-q", "--depth", "1", "--", url, ref)
            await self._git("-C", folder, "checkout", "-q", "FETCH_HEAD")
            await self._git("-C", folder, "submodule", "--quiet", "update", "--init", "--recursive", "--depth", "1")
            yield posixpath.join(folder, inner) if inner else folder
        finally:
            if link.is_open:
                await asyncio.shield(self._run("rm", "-rf", "--", folder))

    async def _git(self, *words: str) -> Completed:
        done = await self.engine.link.run(["sh", "-c", _GIT_SCRIPT, "git", *words], seconds=GIT_SECONDS)
        if done.exit_code == 127:
            raise self._failed("there is no git", remedy=f"Install git on {self.engine.link.name}.")
        if done.exit_code:
            host = self.engine.link.name
            remedy = f"Check `git` of the environment; `git ls-remote` on {host} shows whether its login may read it."
            lines = done.stderr.decode("utf-8", "replace").splitlines()[-_LAST_LINES:]
            raise self._failed(_last_words(done), lines=lines, remedy=remedy)
        return done

    async def _run(self, *argv: str) -> Completed:
        return await self.engine.link.run(argv, seconds=_COMMAND_SECONDS)

    # -- the builders

    async def _build_archive(self, archive: Path, made_of: str) -> None:
        if await self._has_buildkit():
            await self._build_by_command("-", made_of, archive)
        else:
            await self._build_by_api(archive, made_of)

    async def _build_folder(self, folder: str, made_of: str, archive: Path) -> None:
        """Build a folder of the host, there if it can be; else by way of this machine."""
        if await self._has_buildkit():
            await self._build_by_command(folder, made_of)
            return
        received = archive.with_name("received.tar")
        await self._receive(folder, received)
        try:
            await asyncio.to_thread(build_context.filtered, received, self._build.dockerfile, archive)
        except ContextFailed as exc:
            raise self._failed(f"{folder}: {exc}") from exc
        await self._build_by_api(archive, made_of)

    async def _has_buildkit(self) -> bool:
        """Whether the host's docker command builds with BuildKit: by buildx, or by itself in releases before 23."""
        if self.engine.about.is_podman:
            return False
        if (await self._run("sh", "-c", 'exec docker "$@" 2>&1', "docker", "buildx", "version")).exit_code == 0:
            return True
        said = await self._run("sh", "-c", 'exec docker "$@" 2>&1', "docker", "--version")
        found = re.match(rb"Docker version (\d+)\.", said.stdout)
        return found is not None and 19 <= int(found[1]) < 23

    async def _build_by_command(self, context: str, made_of: str, archive: Path | None = None) -> None:
        """Have the docker command build a folder of the host, or the archive, which is "-" to it."""
        build, output = self._build, _Output(self._tell)
        dockerfile = build.dockerfile if archive is not None else posixpath.join(context, build.dockerfile)
        socket = self.engine.about.socket
        argv = ["env", "DOCKER_BUILDKIT=1", "BUILDKIT_PROGRESS=plain", "docker"]
        argv += [f"--host=unix://{socket}"] if socket else []
        argv += [
            "build",
            f"--tag={self.environment.image}",
            f"--file={dockerfile}",
            f"--label={BUILD_LABEL}={made_of or _UNKNOWN}",
        ]
        argv += [f"--target={build.target}"] if build.target is not None else []
        argv += [f"--build-arg={name}={value}" for name, value in build.args.items()]
        argv += ["--pull"] if self.environment.pull == "always" else []
        stream = await self.engine.link.open_command(
            ["sh", "-c", _JOINED_SCRIPT, "docker", *argv, "--", context], output
        )
        try:
            async with self._deadline():
                if archive is not None:
                    with archive.open("rb") as file:
                        sent = await self._counted("sending its folder", archive)
                        while not output.ended.is_set() and (piece := await asyncio.to_thread(file.read, _PIECE_BYTES)):
                            stream.write(piece)
                            await stream.drain()
                            sent(file.tell())
                stream.write_eof()
                await output.ended.wait()
        finally:
            stream.close()
        if isinstance(output.failure, CommandError):
            raise self._failed(_reason(output.last), lines=list(output.last))
        if output.failure is not None:
            raise output.failure

    async def _build_by_api(self, archive: Path, made_of: str) -> None:
        build, output = self._build, _Output(self._tell)
        args = {**await self.engine.proxies(), **build.args}
        options = {
            "t": self.environment.image,
            "dockerfile": build.dockerfile,
            "buildargs": json.dumps(args),
            "labels": json.dumps({BUILD_LABEL: made_of or _UNKNOWN}),
            "rm": "1",
            "forcerm": "1",
            **({"target": build.target} if build.target is not None else {}),
            **({"pull": "1"} if self.environment.pull == "always" else {}),
        }
        bases = await asyncio.to_thread(build_context.base_images, archive, build.dockerfile)
        async with self._deadline():
            sent = await self._counted("sending its folder", archive)
            trouble = await self.engine.build(archive, options, bases=bases, heard=output.text_received, sent=sent)
        if trouble:
            output.closed(None)
            remedy = ""
            if "requires BuildKit" in trouble:
                host = self.engine.link.name
                remedy = f"Install Docker's buildx on {host}: without it the engine's classic builder is used."
            raise self._failed(trouble, lines=list(output.last), remedy=remedy)

    async def _receive(self, folder: str, archive: Path) -> None:
        """Fetch a folder of the host as an archive."""
        with archive.open("wb") as file:
            receiver = FileReceiver(file, most_bytes=RECEIVED_BYTES)
            stream = await self.engine.link.open_command(["sh", "-c", _TAR_SCRIPT, "tar", folder], receiver)
            try:
                async with self._deadline():
                    received = await self._counted("fetching its folder")
                    while not receiver.ended.is_set():
                        received(receiver.size_bytes)
                        with suppress(TimeoutError):
                            await asyncio.wait_for(receiver.ended.wait(), _PROGRESS_SECONDS)
            finally:
                stream.close()
        if receiver.is_too_long:
            host = self.engine.link.name
            raise self._failed(
                f"{folder} has more than {RECEIVED_BYTES >> 30} GiB",
                remedy=f"Install Docker's buildx on {host}, which builds it there, or build of a smaller folder.",
            )
        if receiver.unwritten is not None:
            trouble = receiver.unwritten.strerror or str(receiver.unwritten)
            raise self._failed(f"{folder} cannot be kept on this machine meanwhile: {trouble}")
        if isinstance(receiver.failure, CommandError):
            words = receiver.failure.stderr.strip().splitlines()
            raise self._failed(words[-1] if words else f"{folder} cannot be read")
        if receiver.failure is not None:
            raise receiver.failure

    # -- words

    def _tell(self, line: str, step: BuildStep | None) -> None:
        # What a builder prints is of the user's Dockerfile: it is shown, and not logged.
        made = WorkProgress(what="building the image", detail=_short(line))
        self.say(replace(made, done=step.number, total=step.total, unit=Unit.STEPS) if step else made)

    async def _counted(self, what: str, archive: Path | None = None) -> Callable[[int], None]:
        """Return what takes how many bytes of the context have come across, and says so after a moment."""
        total = (await asyncio.to_thread(archive.stat)).st_size if archive is not None else None
        meter = Meter(f"building the image, {what}", total)
        told_at = time.monotonic() + _QUIET_SECONDS - _PROGRESS_SECONDS

        def have(done: int) -> None:
            nonlocal told_at
            now = meter.at(done)
            if time.monotonic() - told_at >= _PROGRESS_SECONDS and done != total:
                told_at = time.monotonic()
                self.say(now)

        return have

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(BUILD_SECONDS):
                yield
        except TimeoutError as exc:
            raise StartTimeout(
                host=self.engine.link.name, what="the build of the image", seconds=BUILD_SECONDS
            ) from exc

    def _failed(self, reason: str, *, lines: Sequence[str] = (), remedy: str = "") -> KernelBridgeError:
        host, environment = self.engine.link.name, self.environment.name
        return BuildFailed(host=host, environment=environment, reason=reason, lines=lines, remedy=remedy)


class FileReceiver:
    """A Receiver that writes what comes to a file, for what is too long for memory; up to a bound."""

    def __init__(self, file: IO[bytes], *, most_bytes: int) -> None:
        self._file = file
        self._most_bytes = most_bytes
        # How much came; changed by data_received().
        self.size_bytes = 0
        # Why it ended; set by closed().
        self.failure: Exception | None = None
        # Why the file takes no more, as when this machine's disk is full.
        self.unwritten: OSError | None = None
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        self.size_bytes += len(data)
        if self.is_too_long:
            self.ended.set()
        elif not self.ended.is_set():
            try:
                self._file.write(data)
            except OSError as exc:
                self.unwritten = exc
                self.ended.set()

    @property
    def is_too_long(self) -> bool:
        """Whether more came than there may be; what came beyond it is dropped."""
        return self.size_bytes > self._most_bytes

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        self.failure = exc
        self.ended.set()


def _git_parts(address: str) -> tuple[str, str, str]:
    """Take URL#REF:SUBFOLDER apart."""
    url, _, rest = address.partition("#")
    ref, _, folder = rest.partition(":")
    return url, ref or "HEAD", folder


def _short(text: str) -> str:
    return text if len(text) <= _LINE_LENGTH else f"{text[:_LINE_LENGTH]} …"


def _last_words(done: Completed) -> str:
    lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    # git ends some of its errors with advice.
    fatal = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:"))]
    return (fatal or lines or [f"exit code {done.exit_code}"])[-1][:300]


def _reason(lines: Sequence[str]) -> str:
    return lines[-1][:300] if lines else "it says nothing"
