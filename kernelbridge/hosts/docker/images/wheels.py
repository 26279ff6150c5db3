"""Fetch wheels for another machine's Python with this machine's pip, and pack them as that Python finds them."""

from __future__ import annotations

import asyncio
import contextlib
import email.parser
import io
import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from kernelbridge.hosts.docker.images import derived_image
from kernelbridge.hosts.docker.images.derived_image import WheelsFailed, last_words
from kernelbridge.hosts.docker.images.python_probe import FoundPython
from kernelbridge.hosts.transport.openssh.process import end_group

# The oldest C library that wheels are made for.
_OLDEST_GLIBC = 5
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
PIP_SECONDS = 600.0
# What was fetched and is not used for so long goes when something else is fetched.
CACHE_SECONDS = 30 * 86400.0
# How often what was fetched may ask for more: each round goes one step further into requirements of requirements.
_MOST_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel that was fetched: what it is called, what it needs, which modules it brings."""

    path: Path
    name: str
    version: str
    requires: tuple[Requirement, ...]
    modules: tuple[str, ...]


def platforms(libc: str, machine: str) -> list[str]:
    """Return the platforms of wheels that run with this C library (`glibc 2.36`, `musl 1.2.4`), the newest first."""
    kind, _, version = libc.partition(" ")
    parts = [int(part) for part in version.split(".")[:2] if part.isdecimal()]
    minor = parts[1] if len(parts) > 1 else 0
    if kind == "musl":
        return [f"musllinux_1_{one}_{machine}" for one in range(minor, -1, -1)]
    names = []
    for one in range(minor, _OLDEST_GLIBC - 1, -1):
        names.append(f"manylinux_2_{one}_{machine}")
        if one in _LEGACY:
            names.append(f"{_LEGACY[one]}_{machine}")
    return [*names, f"linux_{machine}"]


def pip_argv(python: FoundPython, requirements: Iterable[str], folder: Path) -> list[str]:
    """Return the command by which this machine's pip fetches wheels for that Python."""
    major, minor = python.number[:2]
    is_pypy = python.markers.get("implementation_name") == "pypy"
    # cpython-311-x86_64-linux-gnu: cp311; pypy310-pp73-x86_64-linux-gnu: pypy310_pp73.
    words = python.soabi.split("-")
    abi = "_".join(words[:2]) if is_pypy else f"cp{words[1]}" if len(words) > 1 else f"cp{major}{minor}"
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    argv += ["--only-binary=:all:", f"--dest={folder}", f"--python-version={major}.{minor}"]
    argv += [f"--implementation={'pp' if is_pypy else 'cp'}", f"--abi={abi}"]
    argv += [f"--platform={name}" for name in platforms(python.libc, python.markers.get("platform_machine", "x86_64"))]
    return [*argv, "--", *requirements]


async def fetch_kernel(python: FoundPython, cache: Path) -> list[bytes | Path]:
    """Return tar archives of what a kernel needs in that Python, to be unpacked in `/`. Raises WheelsFailed.

    What was fetched is kept in the folder `cache`, for other images with such a Python, until it is not used for long.
    """
    try:
        return await _fetched_kernel(python, cache)
    except (OSError, zipfile.BadZipFile) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise WheelsFailed(f"{getattr(exc, 'filename', None) or cache}: {reason}") from exc


async def _fetched_kernel(python: FoundPython, cache: Path) -> list[bytes | Path]:
    roots = derived_image.kernel_requirements()
    kept = cache / derived_image.cache_name(python)
    if not await asyncio.to_thread(kept.is_dir):
        with tempfile.TemporaryDirectory(prefix="kernelbridge-wheels-", ignore_cleanup_errors=True) as work:
            await asyncio.to_thread(keep, await fetch(python, roots, Path(work)), kept)
        await asyncio.to_thread(forget_unused, cache, time.time())
    with contextlib.suppress(OSError):
        os.utime(kept)  # Its time is that of its last use.
    wheels = await asyncio.to_thread(read_wheels, kept)
    first = json.dumps(first_modules(roots, wheels, python.packages, python.markers)).encode()
    prefix = derived_image.packages_folder(python).lstrip("/")
    archive = await asyncio.to_thread(packed, wheels, prefix, kept)
    return [archive, pack_file(derived_image.first_file(python).lstrip("/"), first)]


async def fetch_paths(python: FoundPython, requirements: Sequence[str], folder: Path) -> Sequence[Path]:
    """Fetch wheels as fetch() does, and return their files. Raises WheelsFailed."""
    return [wheel.path for wheel in await fetch(python, requirements, folder)]


async def fetch(python: FoundPython, requirements: Sequence[str], folder: Path) -> list[Wheel]:
    """Fetch wheels of these requirements, and of all that they need, into a folder. Raises WheelsFailed.

    pip asks the markers of requirements of this machine's Python, not of that one; so what it has left out is asked
    for in further rounds.
    """
    wanted = list(requirements)
    for _ in range(_MOST_ROUNDS):
        await _pip(pip_argv(python, wanted, folder))
        wheels = await asyncio.to_thread(read_wheels, folder)
        missing = left_out(wanted, wheels, python.markers)
        if not missing:
            return wheels
        wanted += missing
    raise WheelsFailed("what is needed needs more each time")


async def _pip(argv: Sequence[str]) -> None:
    # A thread and no asyncio subprocess: see process.ask().
    process = await asyncio.to_thread(_started, argv)
    try:
        async with asyncio.timeout(PIP_SECONDS):
            said, _ = await asyncio.to_thread(process.communicate)
    except TimeoutError as exc:
        raise WheelsFailed(f"pip did not end within {PIP_SECONDS:.0f} s") from exc
    finally:
        if process.returncode is None:
            end_group(process)
    if process.returncode:
        raise WheelsFailed(last_words(said.decode("utf-8", "replace")))


def _started(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - words, no shell
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def read_wheels(folder: Path) -> list[Wheel]:
    """Read all wheels in a folder. Raises WheelsFailed."""
    return [read_wheel(path) for path in sorted(folder.glob("*.whl"))]


def read_wheel(path: Path) -> Wheel:
    """Read a wheel. Raises WheelsFailed."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
            info = next(name for name in names if name.endswith(".dist-info/METADATA") and name.count("/") == 1)
            told = email.parser.Parser().parsestr(file.read(info).decode("utf-8", "replace"))
    except (OSError, zipfile.BadZipFile, StopIteration, KeyError) as exc:
        raise WheelsFailed(f"{path.name} is no wheel") from exc
    requires = []
    for text in told.get_all("Requires-Dist") or []:
        try:
            requires.append(Requirement(text))
        except InvalidRequirement:
            continue
    tops = {PurePosixPath(name).parts[0] for name in names}
    modules = {top.partition(".")[0] for top in tops if not top.endswith((".dist-info", ".data", ".libs"))}
    return Wheel(
        path=path,
        name=canonicalize_name(told["Name"] or ""),
        version=told["Version"] or "",
        requires=tuple(requires),
        modules=tuple(sorted(modules)),
    )


def needed(requirement: Requirement, markers: Mapping[str, str], extras: Iterable[str] = ()) -> bool:
    """Whether a requirement holds where these markers hold."""
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**markers, "extra": extra}) for extra in (*extras, ""))


def left_out(wanted: Iterable[str], wheels: Sequence[Wheel], markers: Mapping[str, str]) -> list[str]:
    """Return what is needed of what was fetched, or of what was wanted, and was not fetched."""
    by_name = {wheel.name: wheel for wheel in wheels}
    missing: dict[str, None] = {}
    queue: list[tuple[str, frozenset[str]]] = []
    for text in wanted:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # An address: pip knows what it is.
        queue.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    seen: set[tuple[str, frozenset[str]]] = set()
    while queue:
        name, extras = one = queue.pop()
        if one in seen or name not in by_name:
            continue
        seen.add(one)
        for requirement in by_name[name].requires:
            if not needed(requirement, markers, extras):
                continue
            key = canonicalize_name(requirement.name)
            if key not in by_name:
                missing[f"{requirement.name}{requirement.specifier}"] = None
            queue.append((key, frozenset(requirement.extras)))
    return list(missing)


def first_modules(
    roots: Sequence[str], wheels: Sequence[Wheel], installed: Mapping[str, str], markers: Mapping[str, str]
) -> list[str]:
    """Return the modules of which an image's own are too old for what is added, so that the added ones come first.

    All others come behind the image's own: what it has and is new enough stays as it is.
    """
    by_name = {wheel.name: wheel for wheel in wheels}
    ours: set[str] = set()
    queue = [Requirement(text) for text in roots]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in ours or name not in by_name or _is_met(requirement, installed.get(name)):
            continue
        ours.add(name)
        queue += [one for one in by_name[name].requires if needed(one, markers)]
    return sorted({module for name in ours if name in installed for module in by_name[name].modules})


def _is_met(requirement: Requirement, version: str | None) -> bool:
    try:
        return version is not None and requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True  # Whoever made it knows.


def keep(wheels: Sequence[Wheel], folder: Path) -> None:
    """Keep wheels in a folder that is whole or not there; who comes second keeps what the first has kept."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    try:
        unfinished.mkdir(mode=0o700)
        for wheel in wheels:
            shutil.move(wheel.path, unfinished)
        unfinished.rename(folder)
    except BaseException as exc:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not (isinstance(exc, OSError) and folder.is_dir()):
            raise


def forget_unused(cache: Path, now: float) -> None:
    """Remove what is kept in a folder and was not used for long, and what was never finished."""
    for folder in cache.iterdir():
        with contextlib.suppress(OSError):  # Another process removes it, too.
            if now - folder.stat().st_mtime > CACHE_SECONDS:
                shutil.rmtree(folder)


def packed(wheels: Sequence[Wheel], prefix: str, folder: Path) -> Path:
    """Return the archive of what wheels bring, kept beside them."""
    archive = folder / "packages.tar.gz"
    if not archive.exists():
        unfinished = archive.with_name(f"{archive.name}.{secrets.token_hex(4)}")
        try:
            pack(wheels, prefix, unfinished)
            unfinished.replace(archive)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
    return archive


def pack(wheels: Sequence[Wheel], prefix: str, path: Path) -> None:
    """Write a tar archive with what the wheels bring, as it lies in a folder on a Python's path."""
    with tarfile.open(path, "w:gz", compresslevel=6) as tar:
        made: set[str] = set()
        for wheel in wheels:
            with zipfile.ZipFile(wheel.path) as file:
                for entry in file.infolist():
                    name = _place(entry.filename)
                    if entry.is_dir() or name is None:
                        continue
                    _add(tar, made, f"{prefix}/{name}", file.read(entry), mode=0o644)


def _place(name: str) -> str | None:
    """Return where a wheel's file goes; None: commands and data, which nobody needs there."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        return None
    if parts[0].endswith(".data"):
        return "/".join(parts[2:]) if len(parts) > 2 and parts[1] in ("purelib", "platlib") else None
    return name


def _add(tar: tarfile.TarFile, made: set[str], name: str, content: bytes, *, mode: int) -> None:
    """Add a file and the folders above it, readable for everybody whatever this machine's umask is."""
    for folder in reversed(PurePosixPath(name).parents[:-1]):
        if str(folder) not in made:
            made.add(str(folder))
            entry = tarfile.TarInfo(f"{folder}/")
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def pack_file(name: str, content: bytes) -> bytes:
    """Return the tar archive of one file, with the folders above it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        _add(tar, set(), name, content, mode=0o644)
    return out.getvalue()
