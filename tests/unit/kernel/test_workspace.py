"""kernel/workspace.py: which mount and which paths a workspace comes to, and a kernel that has none or no copy."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Host, Workspace
from kernelbridge.files.project import Checkout, Project
from kernelbridge.kernel.workspace import KernelWorkspace, debug_paths, with_workspace
from kernelbridge.protocol.frames import DELIMITER
from tests.made_engines import LAB, launch_request

HERE = Host(name="here", ssh="local")


def project(root: str = "/home/ada/thing", container: str = "/workspace", **keys: Any) -> Project:
    return Project(
        workspace=Workspace.model_validate({"local": ".", **keys}),
        local_root=Path(root),
        container_root=container,
        container_folder=f"{container}/notebooks",
        name="thing-0123456789",
    )


def mounts_of(asked: Project | None, host: Host, **keys: Any) -> list[tuple[str, str]]:
    request = replace(launch_request(**keys), project=asked)
    found = with_workspace(request, host, "/home/build").environment.mounts
    return [(mount.source, mount.target) for mount in found]


@pytest.mark.parametrize(
    ("keys", "host", "source"),
    [
        ({}, LAB, "/home/build/.local/share/kernelbridge/workspaces/thing-0123456789"),
        ({}, HERE, "/home/ada/thing"),
        ({"host": "/data/thing"}, LAB, "/data/thing"),
        ({"host": "~/thing"}, LAB, "/home/build/thing"),
    ],
)
def test_the_folder_is_mounted_from_where_the_host_has_it(keys: dict[str, str], host: Host, source: str) -> None:
    assert mounts_of(project(**keys), host) == [(source, "/workspace")]


def test_the_environments_own_mounts_stay_before_it() -> None:
    found = mounts_of(project(), HERE, mounts=["/data:/data:ro"])
    assert found == [("/data", "/data"), ("/home/ada/thing", "/workspace")]


def test_a_request_without_a_workspace_is_the_same_one() -> None:
    request = launch_request()
    assert with_workspace(request, LAB, "/home/build") is request


def test_a_request_keeps_what_it_was_before_it_is_on_a_host() -> None:
    request = replace(launch_request(), project=project())
    with_workspace(request, LAB, "/home/build")
    assert request.environment.mounts == ()


def test_an_editor_is_told_where_files_are_here() -> None:
    paths = debug_paths(project())
    assert paths is not None
    assert repr(paths) == "<DebugPaths of 1 folders>"
    error = {"traceback": ["File /workspace/a/b.py:3, in f()", "File /usr/lib/x.py:3, in g()"]}
    header = b'{"msg_type": "error"}'
    parts = [b"topic", DELIMITER, b"", header, b"{}", b"{}", json.dumps(error).encode()]
    told = str(bytes(paths.with_local_links(parts)[6]))
    assert "/home/ada/thing/a/b.py" in told
    assert "/usr/lib/x.py" in told


def test_an_editor_is_told_nothing_where_files_are_called_the_same_or_are_not_there() -> None:
    assert debug_paths(None) is None
    assert debug_paths(project(container="/home/ada/thing")) is None


async def no_link(host: Host) -> Any:
    raise AssertionError("no host is asked")


@pytest.mark.parametrize(
    ("asked", "host"),
    [(None, LAB), (project(), HERE), (project(host="/data/thing"), LAB)],
    ids=["none", "here", "there"],
)
async def test_where_nothing_is_copied_nothing_is_done(tmp_path: Path, asked: Project | None, host: Host) -> None:
    said: list[str] = []
    workspace = KernelWorkspace(
        data_folder=tmp_path, link_of=no_link, say=lambda news: said.append(str(news)), tell=said.append
    )
    assert not await workspace.bring(asked, host)
    await workspace.watch(asked, host)
    assert repr(workspace) == "<KernelWorkspace None>"
    await workspace.aclose(finishes=True)
    await workspace.aclose()
    assert said == []
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - pathlib's is for threads


async def test_a_commit_from_which_nothing_comes_back_is_not_watched(tmp_path: Path) -> None:
    checkout = Checkout(commit="1a2b", paths=frozenset(), local_path=tmp_path / "gone")
    workspace = KernelWorkspace(data_folder=tmp_path, link_of=no_link, say=print, tell=print)
    await workspace.watch(project().with_checkout(checkout), LAB)
    assert repr(workspace) == "<KernelWorkspace None>"
    await workspace.watch(project(sync="both").with_checkout(checkout), LAB)
    assert repr(workspace).endswith(".results.lock not here>>, watched>")
    await workspace.aclose()
