"""Which folder `workspace` means, its names on hosts and in containers, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import WorkspaceRefused
from kernelbridge.files.project import Checkout, Project, find_project

LAB = Host(name="lab", ssh="lab")
HERE = Host(name="here", ssh="local")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    made = tmp_path / "home"
    made.mkdir()
    return made


def found(folder: Path, workspace: object = ".", machine_id: str = "m") -> Project:
    environment = Environment.model_validate({"name": "test", "image": "x", "workspace": workspace})
    project = find_project(environment, folder, machine_id=machine_id)
    assert project is not None
    return project


def test_without_the_key_there_is_none(home: Path) -> None:
    assert find_project(Environment(name="test", image="x"), home, machine_id="m") is None


@pytest.mark.parametrize("mark", [".git", "pyproject.toml"])
def test_the_nearest_project_above_is_taken_and_the_kernel_starts_in_its_subfolder(home: Path, mark: str) -> None:
    folder = home / "proj/notebooks/deep"
    folder.mkdir(parents=True)
    (home / "proj" / mark).mkdir()
    project = found(folder)
    assert project.local_root == (home / "proj").resolve()
    assert project.container_root == "/workspace"
    assert project.container_folder == "/workspace/notebooks/deep"
    assert project.path_map().to_local("/workspace/notebooks/deep/a.ipynb") == str(folder.resolve() / "a.ipynb")


def test_without_a_mark_it_is_the_folder_itself(home: Path) -> None:
    (home / "pyproject.toml").touch()  # The home folder is nobody's project.
    folder = home / "plain/notebooks"
    folder.mkdir(parents=True)
    project = found(folder)
    assert project.local_root == folder.resolve()
    assert project.container_folder == "/workspace"


def test_a_named_folder_is_taken_as_it_is(home: Path) -> None:
    (home / "proj/sub").mkdir(parents=True)
    (home / "other").mkdir()
    project = found(home / "proj/sub", {"local": "~/proj", "container": "/src"})
    assert (project.local_root, project.container_folder) == ((home / "proj").resolve(), "/src/sub")
    assert found(home / "other", "~/proj").container_folder == "/workspace"
    assert found(home / "proj/sub", "..").local_root == (home / "proj").resolve()


def test_its_copy_is_in_the_logins_own_folder_and_has_a_name_of_its_own(home: Path) -> None:
    (home / "my proj").mkdir()
    project = found(home / "my proj")
    root = project.host_root(LAB, "/home/ada")
    assert root.startswith("/home/ada/.local/share/kernelbridge/workspaces/my-proj-")
    mount = project.mount(LAB, "/home/ada")
    assert (mount.source, mount.target) == (root, "/workspace")
    assert project.is_copied(LAB)
    assert found(home / "my proj", machine_id="other").name != project.name


def test_a_local_engine_and_a_folder_that_is_there_already_need_no_copy(home: Path) -> None:
    (home / "proj").mkdir()
    project = found(home / "proj")
    assert not project.is_copied(HERE)
    assert project.host_root(HERE, "/home/ada") == str((home / "proj").resolve())
    shared = found(home, {"host": "~/nfs/proj", "local": "~/proj"})
    assert not shared.is_copied(LAB)
    assert shared.host_root(LAB, "/home/ada") == "/home/ada/nfs/proj"
    assert found(home, {"host": "/srv/proj", "local": "~/proj"}).host_root(LAB, "/home/ada") == "/srv/proj"


def test_the_same_path_as_here(home: Path) -> None:
    (home / "proj").mkdir()
    project = found(home / "proj", {"container": "same"})
    assert project.container_root == str((home / "proj").resolve())


@pytest.mark.parametrize(
    ("workspace", "sentence"),
    [
        (".", "it is your whole home folder"),
        ("..", "your whole home folder is in it"),
        ("~/none", "there is no such folder"),
        ("../../../../../../../../../../../..", "it is a whole disk"),
    ],
)
def test_what_is_no_project_is_refused(home: Path, workspace: str, sentence: str) -> None:
    with pytest.raises(WorkspaceRefused) as caught:
        found(home, workspace)
    assert sentence in caught.value.sentence


def test_a_commit_has_a_copy_of_its_own_and_nothing_comes_back_into_its_files(home: Path) -> None:
    (home / "proj").mkdir()
    project = found(home / "proj", {"local": ".", "sync": "both", "pull": ["runs/**"]})
    assert project.brought() is project
    checkout = Checkout(commit="1a2b3c4d5e6f7a8b", paths=frozenset(), local_path=home / "copy")
    made = project.with_checkout(checkout)
    assert (made.name, made.local_root) == (f"{project.name}-1a2b3c4d5e6f", project.local_root)
    assert made.host_root(LAB, "/home/ada").endswith(f"/workspaces/{project.name}-1a2b3c4d5e6f")
    assert made.host_root(HERE, "/home/ada") == str(home / "copy")
    brought = made.brought()
    assert (brought.local_root, brought.workspace.sync, brought.name) == (home / "copy", "push", made.name)
    assert brought.checkout is None


def test_a_commit_is_watched_for_results_alone(home: Path) -> None:
    (home / "proj").mkdir()
    checkout = Checkout(commit="1a2b", paths=frozenset())
    for workspace, is_watched in ((".", False), ({"local": ".", "sync": "both"}, True)):
        project = found(home / "proj", workspace)
        assert project.is_watched
        assert project.with_checkout(checkout).is_watched is is_watched
