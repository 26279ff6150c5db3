"""A workspace over a real sshd: first copy, changes, cuts, edits on both sides, and what files can be like.

Each pass (one_pass.py) goes both ways: by rsync, whose remote shell is rsync_shell.py, and by sftp_copy.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import LinkLost, WorkspaceBig, WorkspaceFailed
from kernelbridge.files.one_pass import WorkspaceVoice
from kernelbridge.files.project import Project, find_project
from kernelbridge.files.sync import WorkspaceSync
from kernelbridge.files.transfer import rsync
from kernelbridge.hosts.transport.ssh import Link, open_link
from tests.real.conftest import require
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

# Each test has a workspace of its own, below the home of one login.
WAYS = ("rsync", "sftp")
ODD_NAMES = [
    b"new\nline",
    b" -rf",
    b"-dash",
    b"it's",
    b'a"b',
    b"tab\t",
    b"*",
    "ü".encode(),
    b"\xff\xfe",
    b"$HOME",
    b"a\\b",
]
LAB, PROXIED = Host(name="lab", ssh="lab"), Host(name="lab", ssh="lab-proxied")


@dataclass
class Place:
    """A project here, its copy on the lab as this machine sees it, and what the user is told."""

    rig: Rig
    laptop: Laptop
    project: Project
    host: Host = LAB
    told: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    # The link of now; made by link().
    links: list[Link] = field(default_factory=list)

    @property
    def here(self) -> Path:
        return self.project.local_root

    @property
    def there(self) -> Path:
        return Path(self.project.host_root(self.host, str(self.rig.lab.home("kbtest"))))

    async def link(self) -> Link:
        if not self.links or not self.links[-1].is_open:
            self.links.append(await open_link(self.host))
        return self.links[-1]

    def sync(self, **workspace: object) -> WorkspaceSync:
        return WorkspaceSync(
            self.project_with(**workspace),
            self.host,
            data_folder=self.laptop.data_dir,
            link=self.link,
            voice=WorkspaceVoice(say=lambda news: self.said.append(str(news)), tell=self.told.append),
        )

    def project_with(self, **workspace: object) -> Project:
        environment = Environment.model_validate(
            {"name": "test", "image": "x", "workspace": {"local": str(self.here), **workspace}}
        )
        project = find_project(environment, self.here, machine_id="m")
        assert project is not None
        return project

    async def once(self, **workspace: object) -> None:
        """Bring both sides into step, as a new process does."""
        async with self.sync(**workspace) as sync:
            await sync.bring()

    def edit_there(self, path: str, text: str) -> None:
        """A program on the lab, as the login, writes a file."""
        self.rig.lab.run(["su", "kbtest", "-s", "/bin/sh", "-c", 'mkdir -p "${1%/*}"; printf %s "$2" >"$1"', "sh",
                          str(self.there / path), text])  # fmt: skip

    def tree(self, root: Path) -> dict[bytes, object]:
        """All of a folder: content, whether it can be executed, where links lead."""
        found: dict[bytes, object] = {}
        for path in root.rglob("*"):
            inner = os.fsencode(path.relative_to(root))
            if path.is_symlink():
                found[inner] = os.fsencode(path.readlink())
            else:
                found[inner] = None if path.is_dir() else (path.read_bytes(), bool(path.stat().st_mode & 0o100))
        return found

    def is_in_step(self) -> bool:
        with suppress(FileNotFoundError):  # of what is deleted while it is looked at
            return self.tree(self.here) == self.tree(self.there)
        return False


@pytest.fixture
async def place(rig: Rig, bridge_env: Laptop) -> AsyncIterator[Place]:
    require(None if shutil.which("rsync") else "rsync is missing; scripts/test installs it")
    (bridge_env.home / "proj").mkdir()
    environment = Environment.model_validate({"name": "test", "image": "x", "workspace": "~/proj"})
    project = find_project(environment, bridge_env.home, machine_id="m")
    assert project is not None
    made = Place(rig=rig, laptop=bridge_env, project=project)
    yield made
    for link in made.links:
        await link.aclose()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, rig: Rig) -> Iterator[str]:
    """Whether the lab has rsync; without it all goes by SFTP."""
    if request.param == "rsync":
        yield request.param
        return
    with rig.lab.without_command("rsync"):
        yield request.param


@asynccontextmanager
async def watching(sync: WorkspaceSync) -> AsyncIterator[None]:
    task = asyncio.create_task(sync.watch())
    await asyncio.sleep(0.3)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(is_so: Callable[[], bool], what: str, *, seconds: float = 10, step_seconds: float = 0.01) -> float:
    """Wait for something to be so; return how long that took."""
    began_at = time.monotonic()
    while not is_so():
        assert time.monotonic() - began_at < seconds, f"not in time: {what}"
        await asyncio.sleep(step_seconds)
    return time.monotonic() - began_at


def reads(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def fill(root: Path, count: int) -> None:
    for number in range(count):
        folder = root / f"pkg{number % 40}"
        folder.mkdir(exist_ok=True)
        (folder / f"module_{number}.py").write_text(f"x = {number}\n" * (1 + number % 7))


async def test_a_project_of_thousands_of_files_comes_whole_and_changes_follow(place: Place, way: str) -> None:
    fill(place.here, 1000)
    (place.here / ".gitignore").write_text("*.log\n/build/\n")
    (place.here / "build").mkdir()
    (place.here / "build/x").touch()
    (place.here / "a.log").touch()
    async with place.sync() as sync:
        began_at = time.monotonic()
        await sync.bring()
        first_seconds = time.monotonic() - began_at
        assert not (place.there / "build").exists()
        assert not (place.there / "a.log").exists()
        shutil.rmtree(place.here / "build")
        (place.here / "a.log").unlink()
        assert place.is_in_step()
        async with watching(sync):
            (place.here / "pkg1/module_1.py").write_text("changed")
            one_seconds = await until(lambda: reads(place.there / "pkg1/module_1.py") == "changed", "one file")
            for number in range(500):
                (place.here / f"pkg{number % 40}/new_{number}.py").write_text(str(number))
            many_seconds = await until(lambda: (place.there / "pkg19/new_499.py").exists(), "500 files")
            await until(place.is_in_step, "all of them", step_seconds=0.3)
            shutil.rmtree(place.here / "pkg3")
            (place.here / "pkg4").rename(place.here / "renamed")
            await until(place.is_in_step, "a deletion and a rename", step_seconds=0.3)
    assert one_seconds < 1
    assert place.told == []
    print(f"{way}: first copy {first_seconds:.2f} s, one file {one_seconds:.2f} s, 500 files {many_seconds:.2f} s")


async def test_names_links_bits_and_times_come_as_they_are(place: Place, way: str) -> None:
    for name in ODD_NAMES:
        (place.here / os.fsdecode(name)).write_bytes(name)
    (place.here / "sub/empty").mkdir(parents=True)
    (place.here / "run.sh").write_text("#!/bin/sh\n")
    (place.here / "run.sh").chmod(0o700)
    (place.here / "relative").symlink_to("sub")
    (place.here / "sub/up\n").symlink_to("../run.sh")
    (place.here / "whole").symlink_to(place.here / "sub/empty")
    (place.here / "out").symlink_to("/etc/passwd")
    os.utime(place.here / "run.sh", (1_000_000_000, 1_000_000_000))
    await place.once()
    there = place.tree(place.there)
    assert there.pop(b"whole") == b"sub/empty"
    here = place.tree(place.here)
    here.pop(b"whole")
    assert there == here
    assert (place.there / "run.sh").stat().st_mtime == 1_000_000_000
    assert place.told == [
        "out is a link to /etc/passwd, which is not in the workspace: it leads nowhere on lab, unless that is there "
        "too."
    ]
    # Nothing is copied twice.
    before = {path: path.lstat().st_ctime_ns for path in place.there.rglob("*")}
    await place.once()
    assert {path: path.lstat().st_ctime_ns for path in place.there.rglob("*")} == before
    (place.here / "run.sh").chmod(0o600)
    (place.here / "relative").unlink()
    (place.here / "relative").symlink_to("sub/empty")
    (place.here / os.fsdecode(ODD_NAMES[0])).unlink()
    await place.once()
    assert not (place.there / "run.sh").stat().st_mode & 0o111
    assert (place.there / "relative").readlink() == Path("sub/empty")
    assert not (place.there / os.fsdecode(ODD_NAMES[0])).exists()


async def test_two_edits_of_one_size_in_one_second_are_both_copied(place: Place, way: str) -> None:
    """SFTP keeps whole seconds: the new copy looks as the one before."""
    for text, nanoseconds in (("old", 1_800_000_000_200_000_000), ("new", 1_800_000_000_700_000_000)):
        (place.here / "a.py").write_text(text)
        os.utime(place.here / "a.py", ns=(nanoseconds, nanoseconds))
        await place.once()
        assert reads(place.there / "a.py") == text
    assert place.told == []


async def test_what_both_sides_changed_is_kept_twice(place: Place, way: str) -> None:
    for name in ("a.py", "b.py", "c.py", "d.py"):
        (place.here / name).write_text("old")
    await place.once()
    place.edit_there("a.py", "theirs!")
    place.edit_there("b.py", "theirs")
    place.edit_there("c.py", "same")
    place.edit_there("d.py", "theirs")
    place.edit_there("new.txt", "theirs")
    (place.here / "a.py").write_text("ours")
    (place.here / "c.py").write_text("same")
    (place.here / "d.py").unlink()
    await place.once()
    kept = [path for path in place.there.iterdir() if ".changed-on-lab-" in path.name]
    assert [path.read_text() for path in kept] == ["theirs!"]
    assert kept[0].suffix == ".py"
    contents = {name: reads(place.there / name) for name in ("a.py", "b.py", "c.py", "d.py", "new.txt")}
    assert contents == {"a.py": "ours", "b.py": "theirs", "c.py": "same", "d.py": "theirs", "new.txt": "theirs"}
    assert sorted(path.name for path in place.here.iterdir()) == ["a.py", "b.py", "c.py"]
    assert place.told == [
        "d.py was deleted here and changed on lab: it is kept there.",
        f"a.py was changed here and on lab: lab's version is now {kept[0].name}.",
    ]


async def test_results_come_back(place: Place, way: str) -> None:
    both = {"sync": "both", "pull": ["runs/**"]}
    (place.here / ".gitignore").write_text("runs/\n")
    (place.here / "a.py").write_text("old")
    async with place.sync(**both) as sync:
        await sync.bring()
        place.edit_there("runs/1/part-0.txt", "0")
        script = 'cd "$1" && for n in $(seq 39); do echo $n >part-$n.txt; done'
        place.rig.lab.run(["su", "kbtest", "-s", "/bin/sh", "-c", script, "sh", str(place.there / "runs/1")])
        place.edit_there("cache.bin", "no result")
        place.edit_there("a.py", "edited there")
        await sync.finish()
        assert sorted(path.name for path in place.here.iterdir()) == [".gitignore", "a.py", "runs"]
        assert len(list((place.here / "runs/1").iterdir())) == 40
        assert reads(place.here / "a.py") == "edited there"
        place.edit_there("a.py", "theirs")
        (place.here / "a.py").write_text("ours!")
        (place.there / "runs/1/part-0.txt").unlink()
        await sync.finish()
        assert reads(place.here / "a.py") == reads(place.there / "a.py") == "ours!"
        assert [path.read_text() for path in place.here.glob("a.changed-on-lab-*.py")] == ["theirs"]
        assert not (place.here / "runs/1/part-0.txt").exists()
        async with watching(sync):
            place.edit_there("runs/2/loss.json", "0.1")
            await until(lambda: reads(place.here / "runs/2/loss.json") == "0.1", "a result")


async def test_a_wrong_clock_does_not_matter(place: Place) -> None:
    (place.here / "future.py").write_text("old")
    (place.here / "past.py").write_text("old")
    await place.once()
    place.edit_there("past.py", "new there")
    place.rig.lab.run(["touch", "-d", "1999-01-01", str(place.there / "past.py")])
    (place.here / "future.py").write_text("new")
    os.utime(place.here / "future.py", (1, 1))
    await place.once()
    assert reads(place.there / "future.py") == "new"
    assert reads(place.there / "past.py") == "new there"
    (place.here / "past.py").write_text("new here")
    await place.once()
    assert reads(place.there / "past.py") == "new here"
    assert len(list(place.there.glob("past.changed-on-lab-*.py"))) == 1


async def test_a_lost_memory_loses_nothing(place: Place, way: str) -> None:
    fill(place.here, 60)
    await place.once()
    place.edit_there("pkg1/module_1.py", "theirs")
    place.edit_there("only-there.txt", "theirs")
    for path in place.laptop.data_dir.glob("workspaces/*.jsonl"):
        path.write_bytes(b"damaged")
    (place.here / "pkg2/module_2.py").unlink()
    await place.once()
    assert reads(place.there / "only-there.txt") == "theirs"
    assert (place.there / "pkg2/module_2.py").exists()
    assert [path.read_text() for path in place.there.glob("pkg1/module_1.changed-on-lab-*.py")] == ["theirs"]
    assert reads(place.there / "pkg1/module_1.py") == reads(place.here / "pkg1/module_1.py")


async def test_a_copy_that_was_removed_is_made_anew(place: Place) -> None:
    fill(place.here, 10)
    await place.once(sync="both")
    place.rig.lab.run(["rm", "-rf", str(place.there)])
    await place.once(sync="both")
    assert len(list(place.here.rglob("*.py"))) == 10
    assert place.is_in_step()


async def test_a_cut_costs_no_more_than_what_was_under_way(place: Place, way: str) -> None:
    place.host = PROXIED
    content = os.urandom(24 << 20)
    (place.here / "big.bin").write_bytes(content)
    async with place.sync() as sync:
        with place.rig.proxy.rate(8 << 20):
            bringing = asyncio.create_task(sync.bring())
            await asyncio.sleep(2.2)
            with place.rig.proxy.cut(), pytest.raises(LinkLost):
                await bringing
        carried = place.rig.proxy.carried_bytes
        await sync.bring()
        sent = place.rig.proxy.carried_bytes - carried
    assert (place.there / "big.bin").read_bytes() == content
    assert sent < 18 << 20


async def test_a_watch_survives_a_cut(place: Place) -> None:
    place.host = PROXIED
    (place.here / "a.py").write_text("old")
    async with place.sync() as sync:
        await sync.bring()
        async with watching(sync):
            with place.rig.proxy.cut():
                (place.here / "a.py").write_text("new")
                await asyncio.sleep(0.5)
            await until(lambda: reads(place.there / "a.py") == "new", "the change after the cut")
    assert place.told == []


async def test_a_full_disk_is_one_sentence(place: Place, way: str) -> None:
    (place.here / "a.bin").write_bytes(os.urandom(9 << 20))
    workspaces = place.there.parent
    place.rig.lab.run(["mkdir", "-p", str(workspaces)])
    place.rig.lab.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=777", "tmpfs", str(workspaces)])
    try:
        with pytest.raises(WorkspaceFailed) as caught:
            await place.once()
    finally:
        place.rig.lab.run(["umount", str(workspaces)])
    assert "No space left on device" in caught.value.sentence
    assert caught.value.sentence.startswith("lab: the workspace cannot be copied (")


async def test_a_folder_that_cannot_be_written_is_told_and_the_rest_comes(place: Place, way: str) -> None:
    (place.here / "shut").mkdir()
    (place.here / "shut/a").write_text("old")
    await place.once()
    (place.there / "shut").chmod(0o555)
    (place.here / "shut/a").write_text("newer")
    (place.here / "b").write_text("new")
    for number in range(20):
        (place.here / f"c{number}").write_text("new")
    await place.once()
    assert reads(place.there / "b") == "new"
    assert reads(place.there / "shut/a") == "old"
    assert len(place.told) == 1
    assert place.told[0].startswith("shut/a could not be brought into step (")
    (place.there / "shut").chmod(0o755)


async def test_big_files_are_asked_about_before_anything_is_copied(place: Place) -> None:
    (place.here / "small").write_text("x")
    (place.here / "train.bin").write_bytes(bytes(3 << 20))
    with pytest.raises(WorkspaceBig) as caught:
        await place.once(big_files="2m")
    assert str(caught.value) == (
        "lab: the workspace has big files that are not there yet: train.bin (3.1 MB). To copy them set `big_files = "
        '"3m"` of `workspace`; to leave them out name them in its `ignore`, or in .gitignore.'
    )
    assert not (place.there / "small").exists()
    await place.once(big_files="2m", ignore=["*.bin"])
    assert sorted(path.name for path in place.there.iterdir()) == ["small"]
    await place.once(big_files="3m")
    async with place.sync(big_files="2m") as sync:
        await sync.bring()
        async with watching(sync):
            (place.here / "other.bin").write_bytes(bytes(4 << 20))
            await until(lambda: bool(place.told), "the question")
            (place.here / "small").write_text("changed")
            await until(lambda: reads(place.there / "small") == "changed", "the rest")
    assert len(place.told) == 1
    assert "other.bin (4.2 MB)" in place.told[0]


async def test_a_host_without_sftp_has_rsync_and_without_both_there_is_a_sentence(place: Place) -> None:
    fill(place.here, 30)
    with place.rig.sshd.configured("Subsystem sftp /bin/false"):
        await place.once()
        assert place.is_in_step()
        (place.here / "one.py").write_text("1")
        await place.once()
        assert place.is_in_step()
        with place.rig.lab.without_command("rsync"):
            (place.here / "two.py").write_text("2")
            with pytest.raises(WorkspaceFailed, match="it has no SFTP, and rsync is not on both ends"):
                await place.once()


async def test_a_host_without_gnu_find_is_listed_by_sftp(place: Place) -> None:
    fill(place.here, 30)
    (place.here / "link").symlink_to("pkg1")
    with place.rig.lab.without_command("find"):
        await place.once()
        assert place.is_in_step()
        place.edit_there("pkg1/module_1.py", "theirs")
        (place.here / "pkg1/module_1.py").write_text("ours!!")
        (place.here / "pkg2/module_2.py").unlink()
        await place.once()
    assert reads(place.there / "pkg1/module_1.py") == "ours!!"
    assert [path.read_text() for path in place.there.glob("pkg1/*.changed-on-lab-*")] == ["theirs"]
    assert not (place.there / "pkg2/module_2.py").exists()


async def test_kernels_share_one_copy_and_one_takes_over_from_the_other(place: Place) -> None:
    fill(place.here, 30)
    async with place.sync() as second, place.sync() as first:
        await asyncio.gather(first.bring(), second.bring())
        assert first.is_holder != second.is_holder
        holder, other = (first, second) if first.is_holder else (second, first)
        assert place.is_in_step()
        async with watching(other):
            await holder.aclose()
            (place.here / "a.py").write_text("new")
            await until(lambda: reads(place.there / "a.py") == "new", "the other one's pass")
        assert other.is_holder
    assert await rsync.local_rsync() is not None
