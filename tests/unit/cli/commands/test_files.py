"""cli/commands/files.py: which workspace is meant, what a pass would do in words, and what it has done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kernelbridge.config.schema import Host
from kernelbridge.files.listing import Entry, Kind
from kernelbridge.files.plan import Action, Deed
from kernelbridge.files.project import Project
from kernelbridge.hosts.progress import Say
from tests.fakes import FakeFleet
from tests.unit.cli.conftest import CONFIG, Call

FILE = Entry(Kind.FILE, 1, 2, False)


@dataclass
class FilesFleet(FakeFleet):
    """A fleet with one copy of a workspace, of which it is said what is due."""

    due: list[Action] = field(default_factory=list)
    # Whether a kernel's process of this machine keeps it in step already.
    is_held: bool = False
    synced: list[tuple[Project, str]] = field(default_factory=list)

    async def workspace_status(self, project: Project, host: Host, *, say: Say) -> list[Action]:
        self.synced.append((project, host.name))
        return self.due

    async def sync_workspace(self, project: Project, host: Host, *, say: Say, tell: Callable[[str], None]) -> bool:
        self.synced.append((project, host.name))
        tell("results/model is left as it is.")
        return not self.is_held


@pytest.fixture
def fleet() -> FilesFleet:
    return FilesFleet()


@pytest.fixture
def project(config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    config_path.write_text(f'{CONFIG}workspace = "."\n', "utf-8")
    return folder


def test_what_is_due_is_said_in_words(call: Call, fleet: FilesFleet, project: Path) -> None:
    fleet.due = [
        Action(deed=Deed.COPY_HERE, path="results/z", host=FILE),
        Action(deed=Deed.COPY_THERE, path="b.py", local=FILE),
        Action(deed=Deed.KEEP_BESIDE, path="both.py", local=FILE, host=FILE, beside="both.changed.py"),
        Action(deed=Deed.DELETE_THERE, path="old.py", host=FILE),
        Action(deed=Deed.TELL, path="x", words="A.py and a.py are one file here"),
        Action(deed=Deed.FORGET, path="gone.py"),
    ]
    ended = call("files", "status")
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "A.py and a.py are one file here: x",
        "changed on both sides: both.py",
        "to delete there: old.py",
        "to pull: results/z",
        "to push: b.py",
    ]


def test_a_copy_that_is_in_step_is_said_to_be(call: Call, fleet: FilesFleet, project: Path) -> None:
    said = f"{project} and its copy on lab are in step.\n"
    assert call("files", "status").out == said
    ended = call("files", "push")
    assert (ended.code, ended.out) == (0, said)
    assert ended.err == "results/model is left as it is.\n"


def test_push_copies_there_alone_and_pull_brings_results(call: Call, fleet: FilesFleet, project: Path) -> None:
    for direction in ("push", "pull", "status"):
        assert call("files", direction).code == 0
    pushed, pulled, status = (project.workspace for project, _ in fleet.synced)
    assert pushed.sync != "both"
    assert (pulled.sync, pulled.pull) == (status.sync, status.pull) == ("both", ("**",))


def test_a_pull_brings_what_the_config_names(call: Call, fleet: FilesFleet, config_path: Path, project: Path) -> None:
    text = config_path.read_text("utf-8").replace(
        'workspace = "."', 'workspace = { local = ".", sync = "both", pull = ["results/**"] }'
    )
    config_path.write_text(text, "utf-8")
    assert call("files", "pull").code == 0
    assert fleet.synced[0][0].workspace.pull == ("results/**",)


def test_who_keeps_it_in_step_is_told_instead_of_a_pull(call: Call, fleet: FilesFleet, project: Path) -> None:
    fleet.is_held = True
    ended = call("files", "pull")
    assert ended.code == 1
    assert "A kernel of this machine keeps the workspace on lab in step." in ended.err
    assert call("files", "push").code == 0, "its holder pushes what changes"


def test_another_host_is_named(call: Call, fleet: FilesFleet, project: Path) -> None:
    assert call("files", "status", "pytorch", "--host", "two").code == 0
    assert [host for _, host in fleet.synced] == ["two"]


def test_this_machine_itself_needs_no_copy(call: Call, fleet: FilesFleet, project: Path) -> None:
    ended = call("files", "push", "--host", "here")
    assert (ended.code, fleet.synced) == (0, [])
    assert ended.out == f"here has {project} by itself: nothing is copied.\n"


def test_an_environment_without_a_workspace_is_told(call: Call, fleet: FilesFleet) -> None:
    for words in ((), ("pytorch",)):
        ended = call("files", "push", *words)
        assert ended.code == 1
        assert 'workspace = "."' in ended.err
        assert fleet.synced == []


def test_of_two_workspaces_one_is_to_be_named(call: Call, fleet: FilesFleet, config_path: Path, project: Path) -> None:
    more = '[environments.other]\nimage = "x"\nhosts = ["lab"]\nworkspace = "."\n'
    config_path.write_text(config_path.read_text("utf-8") + more, "utf-8")
    ended = call("files", "status")
    assert ended.code == 1
    assert "2 environments have a workspace" in ended.err
    assert call("files", "status", "other").code == 0
