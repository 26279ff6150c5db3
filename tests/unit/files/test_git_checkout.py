"""files/git_checkout.py: a revision in a folder of its own, by the real git; the project stays as it is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kernelbridge.errors import KernelBridgeError
from kernelbridge.files.git_checkout import check_out, paths_of


def git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True
    ).stdout


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git as of somebody who never set it up."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "ada")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ada@example")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a commit on `old`, another on `main`, and changes that are in none."""
    made = tmp_path / "project"
    (made / "below").mkdir(parents=True)
    git(made, "init", "--quiet", "--initial-branch", "old")
    (made / "below" / "x y").write_text("old")
    (made / "run").write_text("#!/bin/sh\n")
    (made / "run").chmod(0o755)
    (made / "link").symlink_to("below/x y")
    git(made, "add", ".")
    git(made, "commit", "--quiet", "-m", "first")
    git(made, "tag", "v1")
    git(made, "checkout", "--quiet", "-b", "main")
    (made / "below" / "x y").write_text("new")
    (made / "more").write_text("more")
    git(made, "add", ".")
    git(made, "commit", "--quiet", "-m", "second")
    (made / "more").write_text("changed and added")
    git(made, "add", "more")
    (made / "more").write_text("changed")
    (made / "untracked").write_text("untracked")
    return made


def state(root: Path) -> tuple[str, str, bytes]:
    status = git(root, "status", "--porcelain=v2", "--branch")
    files = "".join(f"{path} {path.read_text()}" for path in sorted(root.iterdir()) if path.is_file())
    return status, files, (root / ".git" / "index").read_bytes()


@pytest.mark.parametrize("revision", ["old", "v1", "main~1", "HEAD^", ":/first"])
def test_a_revision_is_written_whatever_it_is_called(root: Path, tmp_path: Path, revision: str) -> None:
    into = tmp_path / "out" / "copy"
    before = state(root)
    commit = check_out(root, revision, into)
    assert commit == git(root, "rev-parse", "v1").strip()
    assert {path.name for path in into.iterdir()} == {"below", "run", "link"}
    assert (into / "below" / "x y").read_text() == "old"
    assert (into / "link").readlink() == Path("below/x y")
    assert os.access(into / "run", os.X_OK)
    assert into.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in into.parent.iterdir()] == ["copy"], "its index is gone"
    assert state(root) == before


def test_what_is_in_no_commit_is_not_written(root: Path, tmp_path: Path) -> None:
    commit = check_out(root, "HEAD", tmp_path / "copy")
    assert commit == git(root, "rev-parse", "HEAD").strip()
    assert (tmp_path / "copy" / "more").read_text() == "more"
    assert not (tmp_path / "copy" / "untracked").exists()


def test_a_commit_by_its_beginning_and_a_folder_that_is_there(root: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    commit = git(root, "rev-parse", "old").strip()
    assert check_out(root, commit[:10], tmp_path / "copy") == commit


def test_a_project_in_a_folder_of_the_repository_gets_its_own_files_alone(root: Path, tmp_path: Path) -> None:
    before = state(root)
    into = tmp_path / "out" / "copy"
    commit = check_out(root / "below", "old", into)
    assert commit == git(root, "rev-parse", "v1").strip()
    assert [path.name for path in into.iterdir()] == ["x y"]
    assert (into / "x y").read_text() == "old"
    assert [path.name for path in into.parent.iterdir()] == ["copy"]
    assert into.stat().st_mode & 0o777 == 0o700
    assert state(root) == before


@pytest.mark.parametrize(
    "name", ["with blank ", '"quoted"', "na\u00efve", "*", "end\n", "-x", "a:b", os.fsdecode(b"\xff")]
)
def test_a_folder_may_have_any_name(root: Path, tmp_path: Path, name: str) -> None:
    project = root / "deep" / name
    try:
        (project / "sub").mkdir(parents=True)
        (project / "sub" / name).write_text("odd")
    except OSError as exc:
        pytest.skip(f"this machine has no such names: {exc}")
    git(root, "add", "deep")
    git(root, "commit", "--quiet", "-m", "odd")
    check_out(project, "HEAD", tmp_path / "copy")
    assert (tmp_path / "copy" / "sub" / name).read_text() == "odd"
    assert paths_of(project, "HEAD") == {f"sub/{name}"}


def test_attributes_of_a_folder_above_count(root: Path, tmp_path: Path) -> None:
    (root / ".gitattributes").write_text("below/*.txt text eol=crlf\n")
    (root / "below" / "lines.txt").write_bytes(b"one\n")
    git(root, "add", ".gitattributes", "below")
    git(root, "commit", "--quiet", "-m", "attributes")
    check_out(root / "below", "HEAD", tmp_path / "copy")
    assert (tmp_path / "copy" / "lines.txt").read_bytes() == b"one\r\n"


@pytest.mark.parametrize("kind", ["no folder", "a file"])
def test_a_revision_without_the_projects_folder_is_told(root: Path, tmp_path: Path, kind: str) -> None:
    if kind == "a file":
        (root / "later").write_text("")
        git(root, "add", "later")
        git(root, "commit", "--quiet", "-m", "a file")
        (root / "later").unlink()
    (root / "later").mkdir()
    with pytest.raises(KernelBridgeError, match="The git revision 'main' has no folder later") as caught:
        check_out(root / "later", "main", tmp_path / "copy")
    assert "leave `--git` out" in caught.value.remedy
    assert not (tmp_path / "copy").exists()


def test_what_a_commit_has_is_known_by_its_paths_in_the_project(root: Path) -> None:
    assert paths_of(root, "old") == {"below/x y", "run", "link"}
    assert paths_of(root / "below", "main") == {"x y"}


@pytest.mark.parametrize("revision", ["missing", "v1:run", "", "--all", "--output=x", "-n1", "v1 v1", "old..main"])
def test_what_is_no_revision_is_told_and_nothing_written(root: Path, tmp_path: Path, revision: str) -> None:
    before = state(root)
    with pytest.raises(KernelBridgeError):
        check_out(root, revision, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert not (root / "x").exists()
    assert state(root) == before


def test_a_revision_that_is_not_there_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(KernelBridgeError, match="has no git revision 'missing'") as caught:
        check_out(root, "missing", tmp_path / "copy")
    assert "git branch" in caught.value.remedy


def test_a_folder_without_git_is_told(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(KernelBridgeError, match="not a git repository") as caught:
        check_out(tmp_path / "plain", "main", tmp_path / "copy")
    assert "without `--git`" in caught.value.remedy


def test_a_machine_without_git_is_told(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelBridgeError, match="There is no git"):
        check_out(root, "main", tmp_path / "copy")


def test_a_repository_that_lacks_a_part_is_told_and_the_index_is_gone(root: Path, tmp_path: Path) -> None:
    blob = git(root, "rev-parse", "old:run").strip()
    (root / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(KernelBridgeError, match="git in "):
        check_out(root, "old", tmp_path / "out" / "copy")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["copy"]
