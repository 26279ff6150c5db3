"""files/path_map.py: nested folders, drives of Windows, and the debugger's order."""

from __future__ import annotations

import pytest

from kernelbridge.files.path_map import PathMap, PathPair

HERE = PathMap(
    [
        PathPair(local_path="/home/ada/proj/", container_path="/workspace"),
        PathPair(local_path="/home/ada/proj/data", container_path="/data/"),
        PathPair(local_path="/home/ada/logs", container_path="/workspace/logs"),
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
        ("/home/ada/logs/1", "/workspace/logs/1"),
        ("/home/ada/proj/a.py", "/workspace/src/../a.py"),
    ],
)
def test_a_path_of_the_container_has_one_name_here(local_path: str, container_path: str) -> None:
    assert HERE.to_local(container_path) == local_path


@pytest.mark.parametrize("path", ["/usr/lib/python3/os.py", "/workspaces/a.py", "/", "/workspace/../b.py", "a.py"])
def test_what_is_elsewhere_has_no_name_here(path: str) -> None:
    assert HERE.to_local(path) is None


def test_a_path_of_the_container_becomes_one_of_windows() -> None:
    assert WINDOWS.to_local("/workspace/sub/a.py") == "C:\\Users\\Ada\\proj\\sub\\a.py"
    assert WINDOWS.to_local("/workspace") == "C:\\Users\\Ada\\proj"
    # The container's names are not the same in either case.
    assert WINDOWS.to_local("/Workspace/a.py") is None


def test_a_whole_disk_can_be_mapped() -> None:
    disk = PathMap([PathPair(local_path="P:\\", container_path="/p")], is_windows=True)
    assert disk.to_local("/p/x/y.py") == "P:\\x\\y.py"
    root = PathMap([PathPair(local_path="/proj", container_path="/")], is_windows=False)
    assert root.to_local("/x/y.py") == "/proj/x/y.py"


def test_the_debugger_gets_the_longest_first() -> None:
    assert HERE.path_mappings() == [
        {"localRoot": "/home/ada/proj/data", "remoteRoot": "/data"},
        {"localRoot": "/home/ada/proj", "remoteRoot": "/workspace"},
        {"localRoot": "/home/ada/logs", "remoteRoot": "/workspace/logs"},
    ]
    shown = "/home/ada/proj=/workspace, /home/ada/proj/data=/data, /home/ada/logs=/workspace/logs"
    assert repr(HERE) == f"<PathMap {shown}>"
