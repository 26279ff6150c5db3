"""What of a project stays where it is, and what wins where several rules are about one path."""

from __future__ import annotations

import pytest

from kernelbridge.files.ignore import PARTS_FOLDER, Ignore


def left_out(ignore: Ignore, *paths: str) -> list[str]:
    """Which of the paths are not copied; one with a slash at its end is a folder."""
    return [path for path in paths if ignore.covers(path.rstrip("/"), is_folder=path.endswith("/"))]


def test_some_folders_are_left_out_by_themselves() -> None:
    paths = (".git/", ".git/config", "sub/__pycache__/a.pyc", ".venv/", "node_modules/", ".DS_Store", "a.py", "git/")
    assert left_out(Ignore(), *paths) == list(paths[:-2])
    assert left_out(Ignore(own=["!.git"]), *paths) == list(paths[2:-2])


def test_gitignore_is_read_as_git_does() -> None:
    ignore = Ignore()
    ignore.learn("", "*.log\n!keep.log\n/build/\ndata/*.csv\n# a comment\n")
    ignore.learn("sub", "!*.log\n/only.txt\n")
    assert left_out(
        ignore, "a.log", "keep.log", "build/", "build/x", "sub/build/x", "data/a.csv", "data/deep/a.csv"
    ) == [
        *("a.log", "build/", "build/x", "data/a.csv"),
    ]
    assert left_out(ignore, "sub/a.log", "sub/only.txt", "sub/deep/only.txt", "only.txt") == ["sub/only.txt"]


def test_a_file_in_a_folder_that_is_left_out_is_too() -> None:
    ignore = Ignore()
    ignore.learn("", "build/\n!build/keep.txt\n")
    assert left_out(ignore, "build/keep.txt") == ["build/keep.txt"]
    assert not ignore.enters("build")


def test_the_users_own_lines_win() -> None:
    ignore = Ignore(own=["!a.log", "*.h5", "!data/cache/keep.bin"])
    ignore.learn("", "*.log\n!x.h5\ndata/\n")
    assert left_out(ignore, "a.log", "b.log", "x.h5") == ["b.log", "x.h5"]
    assert left_out(ignore, "data/cache/keep.bin", "data/cache/other.bin", "data/x") == [
        "data/cache/other.bin",
        "data/x",
    ]


def test_dockerignore_counts_too() -> None:
    ignore = Ignore(docker="*\n!src\n")
    assert left_out(ignore, "README.md", "src/a.py", "src/", "other/a.py") == ["README.md", "other/a.py"]


def test_what_is_pulled_is_never_ignored_and_nothing_else_is_walked_for_it() -> None:
    ignore = Ignore(pull=["runs/**", "*.ckpt"])
    ignore.learn("", "runs/\nwandb/\n")
    assert left_out(ignore, "runs/1/loss.json", "wandb/x", "a.ckpt") == ["wandb/x"]
    assert ignore.enters("runs")
    assert not ignore.enters("wandb")
    assert not ignore.enters("node_modules")
    assert ignore.pulls("runs/1/loss.json")
    assert ignore.pulls("deep/a.ckpt")
    assert not ignore.pulls("a.py")


def test_our_own_folder_is_left_out_whatever_the_lines_say() -> None:
    ignore = Ignore(own=[f"!{PARTS_FOLDER}", "!*"])
    assert left_out(ignore, f"{PARTS_FOLDER}/", f"sub/{PARTS_FOLDER}/x") == [
        f"{PARTS_FOLDER}/",
        f"sub/{PARTS_FOLDER}/x",
    ]


@pytest.mark.parametrize(
    ("ignore", "names"),
    [
        (Ignore(), {".git", ".venv", "node_modules", PARTS_FOLDER}),
        (Ignore(own=["!.venv"]), {".git", "node_modules", PARTS_FOLDER}),
        (Ignore(own=["!sub/.venv/x"]), {PARTS_FOLDER}),
    ],
)
def test_a_listing_elsewhere_is_told_where_nobody_looks(ignore: Ignore, names: set[str]) -> None:
    assert set(ignore.unentered_names()) >= names
    assert ".venv" in ignore.unentered_names() or ".venv" not in names
    assert repr(ignore).endswith("0 .gitignore>")
