"""A workspace kept in step, with a folder of this machine as the host's: what is watched, what told, who holds it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from watchfiles import Change

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import LinkLost, WorkspaceBig, WorkspaceFailed
from kernelbridge.files.holder import Holder
from kernelbridge.files.one_pass import WorkspaceVoice
from kernelbridge.files.project import Checkout, find_project
from kernelbridge.files.sync import WorkspaceSync
from kernelbridge.hosts.transport.local import CommandStream, LocalLink, open_local
from kernelbridge.hosts.transport.stream import AnyLink, Receiver

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is missing; scripts/test installs it")
LAB = Host(name="lab", ssh="lab")


class MadeWatch:
    """Tells of what a test says has changed."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[set[str] | OSError] = asyncio.Queue()
        self.is_wanted: Callable[[Change, str], bool]

    async def __call__(
        self, root: Path, is_wanted: Callable[[Change, str], bool]
    ) -> AsyncIterator[set[tuple[Change, str]]]:
        self.is_wanted = is_wanted
        while True:
            told = await self.told.get()
            if isinstance(told, OSError):
                raise told
            names = [str(root / path) for path in told]
            yield {(Change.modified, name) for name in names if is_wanted(Change.modified, name)}


class Scene:
    """A project, the host's home, and what the user heard."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.here, self.home = folder, folder / "proj", folder / "home"
        self.told: list[str] = []
        self.said: list[str] = []
        self.watch = MadeWatch()
        # What link() raises, if anything.
        self.failure: Exception | None = None

    async def link(self) -> AnyLink:
        if self.failure is not None:
            raise self.failure
        return await open_local("lab")

    def sync(self, *, checkout: Checkout | None = None, brings: bool = True, **workspace: object) -> WorkspaceSync:
        environment = Environment.model_validate(
            {"name": "test", "image": "x", "workspace": {"local": str(self.here), **workspace}}
        )
        project = find_project(environment, self.here, machine_id="m")
        assert project is not None
        if checkout is not None:
            project = project.with_checkout(checkout)
            project = project.brought() if brings else project
        self.there = Path(project.host_root(LAB, str(self.home)))
        voice = WorkspaceVoice(say=lambda news: self.said.append(str(news)), tell=self.told.append)
        return WorkspaceSync(
            project, LAB, data_folder=self.folder / "data", link=self.link, voice=voice, watch=self.watch
        )


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    started: list[CommandStream] = []
    start = LocalLink._start

    async def noted(link: LocalLink, argv: Sequence[str], receiver: Receiver) -> CommandStream:
        started.append(await start(link, argv, receiver))
        return started[-1]

    monkeypatch.setattr(LocalLink, "_start", noted)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = Scene(tmp_path)
    made.here.mkdir()
    made.home.mkdir()
    (made.here / "a.py").write_text("old")
    yield made
    for stream in started:
        await stream.wait_gone()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_changes_follow_and_what_is_ignored_does_not_wake_anybody(scene: Scene) -> None:
    (scene.here / ".gitignore").write_text("build/\n")
    (scene.here / "build").mkdir()
    async with scene.sync() as sync:
        assert repr(sync).endswith(".lab.lock not here>>")
        await sync.bring()
        assert (scene.there / "a.py").read_text() == "old"
        task = asyncio.create_task(sync.watch())
        (scene.here / "a.py").write_text("new")
        await scene.watch.told.put({"a.py"})
        await until(lambda: (scene.there / "a.py").read_text() == "new")
        assert not scene.watch.is_wanted(Change.added, str(scene.here / "build/x"))
        assert not scene.watch.is_wanted(Change.added, str(scene.here / ".git"))
        assert scene.watch.is_wanted(Change.added, str(scene.here / "b.py"))
        (scene.here / "sub").mkdir()
        (scene.here / "sub/b.py").write_text("b")
        await scene.watch.told.put({"sub"})
        await until((scene.there / "sub/b.py").exists)
        (scene.here / "a.py").unlink()
        await scene.watch.told.put({"a.py"})
        await until(lambda: not (scene.there / "a.py").exists())
        await stopped(task)
    assert scene.told == []


async def test_a_lost_link_is_waited_for(scene: Scene) -> None:
    async with scene.sync() as sync:
        await sync.bring()
        task = asyncio.create_task(sync.watch())
        await asyncio.sleep(0.2)
        scene.failure = LinkLost(host="lab")
        (scene.here / "a.py").write_text("new")
        await scene.watch.told.put({"a.py"})
        await asyncio.sleep(0.3)
        assert (scene.there / "a.py").read_text() == "old"
        scene.failure = None
        await until(lambda: (scene.there / "a.py").read_text() == "new")
        await stopped(task)
    assert scene.told == []


async def test_a_folder_that_cannot_be_watched_is_told_once(scene: Scene) -> None:
    async with scene.sync() as sync:
        await sync.bring()
        task = asyncio.create_task(sync.watch())
        await scene.watch.told.put(OSError("OS file watch limit reached"))
        await until(lambda: bool(scene.told))
        await stopped(task)
    assert scene.told == [
        f"{scene.here} cannot be watched (OS file watch limit reached): changes are looked for every 3 s."
    ]


async def test_one_holds_it_and_the_others_rely_on_it(scene: Scene) -> None:
    async with scene.sync() as first, scene.sync() as second:
        await asyncio.gather(first.bring(), second.bring())
        assert (first.is_holder, second.is_holder) == (True, False)
        assert scene.said == ["waiting for another process that copies the workspace"]
        await first.aclose()
        await second.bring()
        assert second.is_holder


async def test_who_relies_on_a_holder_that_fails_hears_why(scene: Scene) -> None:
    async with scene.sync() as first:
        await first.bring()
    (path,) = (scene.folder / "data/workspaces").glob("*.lock")
    holder = Holder(path)
    assert holder.take()
    holder.tell_state(is_in_step=False, failure="No space left on device")
    async with scene.sync() as second:
        with pytest.raises(WorkspaceFailed, match=r"^lab: .*\(No space left on device\)"):
            await second.bring()
    holder.release()


@pytest.mark.parametrize("is_made_again", [False, True])
async def test_a_copy_that_was_removed_or_emptied_comes_anew_and_nothing_goes_here(
    scene: Scene, is_made_again: bool
) -> None:
    workspace: Any = {"sync": "both", "pull": ["**"]}
    async with scene.sync(**workspace) as sync:
        await sync.bring()
    shutil.rmtree(scene.there)
    if is_made_again:
        scene.there.mkdir()
    async with scene.sync(**workspace) as sync:
        await sync.bring()
    assert (scene.here / "a.py").read_text() == (scene.there / "a.py").read_text() == "old"


async def test_a_folder_that_has_become_a_link_there_is_not_followed(scene: Scene) -> None:
    (scene.here / "sub").mkdir()
    (scene.here / "sub/b.py").write_text("old")
    outside = scene.home / "outside"
    outside.mkdir()
    (outside / "b.py").write_text("another's")
    async with scene.sync() as sync:
        await sync.bring()
        task = asyncio.create_task(sync.watch())
        shutil.rmtree(scene.there / "sub")
        (scene.there / "sub").symlink_to(outside)
        (scene.here / "sub/b.py").write_text("new")
        await scene.watch.told.put({"sub/b.py"})
        await until(lambda: not (scene.there / "sub").is_symlink() and (scene.there / "sub/b.py").is_file())
        await stopped(task)
    assert (scene.there / "sub/b.py").read_text() == "new"
    assert (outside / "b.py").read_text() == "another's"
    assert [path.name for path in outside.iterdir()] == ["b.py"]


async def test_what_a_big_file_would_replace_stays_in_its_place(scene: Scene) -> None:
    async with scene.sync(big_files="1m") as sync:
        await sync.bring()
        (scene.there / "a.py").write_text("theirs")
        (scene.here / "a.py").write_bytes(bytes(2 << 20))
        task = asyncio.create_task(sync.watch())
        await until(lambda: bool(scene.told))
        await stopped(task)
    assert "big_files" in scene.told[0]
    assert [path.name for path in scene.there.iterdir()] == ["a.py"]
    assert (scene.there / "a.py").read_text() == "theirs"


async def test_big_files_are_a_question_and_who_failed_holds_nobody_up(scene: Scene) -> None:
    (scene.here / "big").write_bytes(bytes(2 << 20))
    async with scene.sync(big_files="1m") as first:
        with pytest.raises(WorkspaceBig, match=r'big \(2\.1 MB\).*`big_files = "2m"`'):
            await first.bring()
    async with scene.sync(big_files="2m") as second:
        await second.bring()
        assert (scene.there / "big").exists()


async def test_results_are_fetched_at_the_end(scene: Scene) -> None:
    async with scene.sync(sync="both", pull=["runs/**"]) as sync:
        await sync.bring()
        (scene.there / "runs").mkdir()
        (scene.there / "runs/loss").write_text("0.1")
        (scene.there / "other").write_text("no result")
        await sync.finish()
    assert (scene.here / "runs/loss").read_text() == "0.1"
    assert sorted(path.name for path in scene.here.iterdir()) == ["a.py", "runs"]


async def test_who_comes_when_all_is_over_fetches_the_last_results_too(scene: Scene) -> None:
    async with scene.sync(sync="both", pull=["runs/**"]) as first:
        await first.bring()
    (scene.there / "runs").mkdir()
    (scene.there / "runs/out").write_text("1")
    async with scene.sync(sync="both", pull=["runs/**"]) as second:
        await second.finish()
    assert (scene.here / "runs/out").read_text() == "1"


# -- a commit in the place of the project's files


def checkout_of(scene: Scene) -> Checkout:
    path = scene.folder / "checkout"
    (path / "runs").mkdir(parents=True, exist_ok=True)
    (path / "a.py").write_text("of the commit")
    (path / "runs/kept.csv").write_text("kept")
    return Checkout(commit="c" * 40, paths=frozenset({"a.py", "runs/kept.csv"}), local_path=path)


async def test_results_of_a_commit_come_into_the_project_whose_own_files_stay(scene: Scene) -> None:
    checkout = checkout_of(scene)
    both: Any = {"sync": "both", "pull": ["**"]}
    async with scene.sync(checkout=checkout, **both) as bringing:
        await bringing.bring()
    assert sorted(path.name for path in scene.there.iterdir()) == ["a.py", "runs"]
    shutil.rmtree(scene.folder / "checkout")  # It is not needed any more.
    (scene.here / "runs").mkdir()
    (scene.here / "runs/mine").write_text("mine")
    async with scene.sync(checkout=checkout, brings=False, **both) as fetching:
        task = asyncio.create_task(fetching.watch())
        (scene.there / "runs/out").write_text("1")
        await until((scene.here / "runs/out").exists)
        (scene.there / "a.py").write_text("changed by the command")
        (scene.there / "runs/mine").write_text("the command's")
        (scene.there / "runs/out").write_text("12")
        await stopped(task)
        await fetching.finish()
    beside = scene.here / "runs" / f"mine.of-{'c' * 12}-on-lab"
    assert (scene.here / "runs/out").read_text() == "12"
    assert (scene.here / "runs/mine").read_text() == "mine"
    assert beside.read_text() == "the command's"
    assert (scene.here / "a.py").read_text() == "old"
    assert not (scene.here / "runs/kept.csv").exists()
    assert scene.told == [f"runs/mine is another file here: the one of lab is runs/{beside.name}."]
    assert (scene.there / "a.py").read_text() == "changed by the command", "nothing is brought there"
    # Another time: what has come is known, and what has grown takes its place.
    (scene.there / "runs/mine").write_text("the command's, grown")
    async with scene.sync(checkout=checkout, brings=False, **both) as again:
        await again.finish()
    assert beside.read_text() == "the command's, grown"
    assert len(scene.told) == 1
    assert sorted(path.name for path in scene.here.iterdir()) == ["a.py", "runs"]


async def test_a_commit_that_is_brought_again_deletes_no_results_there(scene: Scene) -> None:
    both: Any = {"sync": "both", "pull": ["runs/**"]}
    for _ in range(2):
        async with scene.sync(checkout=checkout_of(scene), **both) as bringing:
            await bringing.bring()
        (scene.there / "runs/out").write_text("1")
        async with scene.sync(checkout=checkout_of(scene), brings=False, **both) as fetching:
            await fetching.finish()
        shutil.rmtree(scene.folder / "checkout")
    assert (scene.there / "runs/out").read_text() == "1"
    assert (scene.here / "runs/out").read_text() == "1"
