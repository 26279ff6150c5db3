"""A workspace beside rsync over ssh: the first copy of many files and of large ones, and one changed file."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kernelbridge.config.schema import Environment, Host
from kernelbridge.files.one_pass import WorkspaceVoice
from kernelbridge.files.project import Project, find_project
from kernelbridge.files.sync import WorkspaceSync
from kernelbridge.hosts.transport.ssh import open_link
from kernelbridge.hosts.transport.stream import AnyLink
from tests.bench.ways import Place
from tests.rig.laptop import Laptop

MANY_FILES = 5000
LARGE_FILES, LARGE_BYTES = 30, 10_000_000
SETTLE_SECONDS = 0.5
LOOK_SECONDS = 0.002
MOST_SECONDS = 60.0
_SILENT = WorkspaceVoice(say=lambda words: None, tell=lambda words: None)


def _fill_many(root: Path) -> None:
    for number in range(MANY_FILES):
        folder = root / f"package_{number % 100}"
        folder.mkdir(exist_ok=True)
        (folder / f"module_{number}.py").write_text(f"value = {number}\n" * 100)


def _fill_large(root: Path) -> None:
    for number in range(LARGE_FILES):
        (root / f"data_{number}.bin").write_bytes(os.urandom(LARGE_BYTES))


@contextmanager
def _project(place: Place, fill: Callable[[Path], None]) -> Iterator[Project]:
    """A new project, whose copy nobody has yet; both folders are gone at the end."""
    folder = place.laptop.home / f"project-{secrets.token_hex(4)}"
    folder.mkdir()
    fill(folder)
    workspace = {"local": str(folder), "big_files": "1t"}
    environment = Environment.model_validate({"name": "bench", "image": "x", "workspace": workspace})
    project = find_project(environment, folder, machine_id="bench")
    assert project is not None
    try:
        yield project
    finally:
        subprocess.run(["rm", "-rf", folder, _there(place, project)], check=True)


def _there(place: Place, project: Project) -> Path:
    return Path(project.host_root(_host(place), str(place.rig.lab.home("kbtest"))))


def _host(place: Place) -> Host:
    return Host(name="lab", ssh=place.alias)


def _in_our_home(laptop: Laptop) -> None:
    # The link reads the ssh config of this user, as an editor's process does.
    os.environ.update(laptop.variables)


async def _ours(place: Place, project: Project, *, is_change: bool) -> float:
    host = _host(place)
    async with await open_link(host) as link:

        async def of_now() -> AnyLink:
            return link

        async with WorkspaceSync(
            project,
            host,
            data_folder=place.laptop.data_dir,
            link=of_now,
            voice=_SILENT,
        ) as sync:
            began = time.perf_counter()
            await sync.bring()
            return time.perf_counter() - began if not is_change else await _change(place, project, sync)


async def _change(place: Place, project: Project, sync: WorkspaceSync) -> float:
    watching = asyncio.create_task(sync.watch())
    await asyncio.sleep(SETTLE_SECONDS)
    name = "package_1/module_1.py"
    there, text = _there(place, project) / name, "changed = True\n"
    began = time.perf_counter()
    (project.local_root / name).write_text(text)
    while there.read_text() != text:
        assert time.perf_counter() - began < MOST_SECONDS, "the change does not come"
        await asyncio.sleep(LOOK_SECONDS)
    took = time.perf_counter() - began
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return took


def first_copy(fill: Callable[[Path], None]) -> Callable[[Place], float]:
    """Our first copy of a project over an open link, in seconds."""

    def measured(place: Place) -> float:
        _in_our_home(place.laptop)
        with _project(place, fill) as project:
            return asyncio.run(_ours(place, project, is_change=False))

    return measured


def one_change(place: Place) -> float:
    """From a changed file to its copy on the host, in seconds."""
    _in_our_home(place.laptop)
    with _project(place, _fill_many) as project:
        return asyncio.run(_ours(place, project, is_change=True))


def _rsync(place: Place, project: Project) -> float:
    there = _there(place, project)
    shell = f"ssh -F {place.laptop.ssh_folder / 'config'} -o BatchMode=yes"
    words = ["rsync", "-a", "--mkpath", "-e", shell, f"{project.local_root}/", f"{place.alias}:{there}/"]
    began = time.perf_counter()
    subprocess.run(words, check=True, env=place.laptop.env)
    return time.perf_counter() - began


def rsync_copy(fill: Callable[[Path], None]) -> Callable[[Place], float]:
    """The same by `rsync -a` over ssh, which logs in first, in seconds."""

    def measured(place: Place) -> float:
        with _project(place, fill) as project:
            return _rsync(place, project)

    return measured


def rsync_change(place: Place) -> float:
    """`rsync -a` over ssh after one file has changed, in seconds; nobody has to notice the change."""
    with _project(place, _fill_many) as project:
        _rsync(place, project)
        (project.local_root / "package_1/module_1.py").write_text("changed = True\n")
        return _rsync(place, project)


MANY, LARGE = _fill_many, _fill_large
