"""The path map: both directions, nested folders, drives of Windows."""

from __future__ import annotations

import pytest

from kernelbridge.files.path_map import PathMap, PathPair

HERE = PathMap(
    [
        PathPair(local_path="/home/ada/proj/", container_path="/workspace"),
        PathPair(local_path="/home/ada/proj/data", container_path="/data/"),
    ],
    is_windows=False,
)
WINDOWS = PathMap([PathPair(local_path="c:\\Users\\Ada\\proj", container_path="/workspace")], is_windows=True)


@pytest.mark.parametrize(
    ("local_path", "container_path"),
    [
        ("/home/ada/proj", "/workspace"),
        ("/home/ada/proj/a.py", "/workspace/a.py"),
        ("/home/ada/proj/src/b c.py", "/workspace/src/b c.py"),
        ("/home/ada/proj/data/x", "/data/x"),
        ("/home/ada/proj/database", "/workspace/database"),
    ],
)
def test_a_path_has_one_name_on_each_side(local_path: str, container_path: str) -> None:
    assert HERE.to_container(local_path) == container_path
    assert HERE.to_local(container_path) == local_path


@pytest.mark.parametrize("path", ["/home/ada/project/a.py", "/home/ada", "/", "relative.py"])
def test_what_is_elsewhere_has_no_name_there(path: str) -> None:
    assert HERE.to_container(path) is None
    assert HERE.to_local("/usr/lib/python3/os.py") is None
    assert HERE.to_local("/workspaces/a.py") is None


def test_dots_are_resolved() -> None:
    assert HERE.to_container("/home/ada/proj/src/../a.py") == "/workspace/a.py"
    assert HERE.to_container("/home/ada/proj/../b.py") is None


@pytest.mark.parametrize(
    "local_path",
    ["C:\\Users\\Ada\\proj\\sub\\a.py", "c:\\users\\ada\\proj\\sub\\a.py", "C:/Users/Ada/proj/sub/a.py"],
)
def test_a_path_of_windows_may_be_written_in_either_case_and_with_either_slash(local_path: str) -> None:
    assert WINDOWS.to_container(local_path) == "/workspace/sub/a.py"


def test_a_path_of_the_container_becomes_one_of_windows() -> None:
    assert WINDOWS.to_local("/workspace/sub/a.py") == "C:\\Users\\Ada\\proj\\sub\\a.py"
    assert WINDOWS.to_local("/workspace") == "C:\\Users\\Ada\\proj"
    assert WINDOWS.to_container("D:\\proj\\a.py") is None
    # The container's names are not the same in either case.
    assert WINDOWS.to_local("/Workspace/a.py") is None


def test_a_whole_disk_can_be_mapped() -> None:
    disk = PathMap([PathPair(local_path="P:\\", container_path="/p")], is_windows=True)
    assert disk.to_container("p:\\x\\y.py") == "/p/x/y.py"
    assert disk.to_local("/p/x/y.py") == "P:\\x\\y.py"


def test_the_debugger_gets_the_longest_first() -> None:
    assert HERE.path_mappings() == [
        {"localRoot": "/home/ada/proj/data", "remoteRoot": "/data"},
        {"localRoot": "/home/ada/proj", "remoteRoot": "/workspace"},
    ]
    assert repr(HERE) == "<PathMap /home/ada/proj=/workspace, /home/ada/proj/data=/data>"
