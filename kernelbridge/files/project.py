"""Find the folder that `workspace` means on this machine, and name its copy on a host and its place in a container."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Final

from kernelbridge.config import workspace_keys
from kernelbridge.config.schema import Environment, Host, Mount, Workspace
from kernelbridge.errors import WorkspaceRefused
from kernelbridge.files.path_map import PathMap, PathPair

# Where the copies are in the login's home on a host.
HOST_WORKSPACES: Final = ".local/share/kernelbridge/workspaces"
# In this machine's data folder: what is known of copies, and what containers of its own engine have of commits.
LOCAL_WORKSPACES: Final = "workspaces"
# What marks the root of a project.
_ROOT_MARKS: Final = (".git", "pyproject.toml")
_MOST_NAME: Final = 40
# Of a commit, in names.
_SHORT_COMMIT: Final = 12


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """The files of a commit, which a container has in the place of the project's own."""

    commit: str
    # The files that the commit has in the project.
    paths: frozenset[str] = field(repr=False)
    # Where they are on this machine; None where the host has them already.
    local_path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Project:
    """A workspace, resolved: which folder it is here, where the container has it, where the kernel starts."""

    workspace: Workspace
    local_root: Path
    container_root: str
    # The folder of the container in which the kernel starts.
    container_folder: str
    # The name of its copy on hosts: no other project and no other machine has the same.
    name: str
    # Whether nothing is deleted here that was deleted on a host.
    keeps_deleted: bool = False
    # What the container has in the place of the project's own files; only results come into `local_root` then.
    checkout: Checkout | None = None

    def is_copied(self, host: Host) -> bool:
        """Whether a host has a copy of ours; else it has the folder by itself."""
        return not host.is_local and self.workspace.host is None

    @property
    def is_watched(self) -> bool:
        """Whether there is something to copy while it is used: a commit does not change."""
        return self.checkout is None or self.workspace.sync == "both"

    def with_checkout(self, checkout: Checkout) -> Project:
        """Return it with the files of a commit. Each commit has a copy of its own on hosts."""
        return replace(self, name=f"{self.name}-{checkout.commit[:_SHORT_COMMIT]}", checkout=checkout)

    def brought(self) -> Project:
        """Return what is copied to hosts: itself, or the commit, into whose files nothing comes back."""
        if self.checkout is None or self.checkout.local_path is None:
            return self
        workspace = self.workspace.model_copy(update={"sync": "push"})
        return replace(self, workspace=workspace, local_root=self.checkout.local_path, checkout=None)

    def host_root(self, host: Host, host_home: str) -> str:
        """Return where the folder is on a host."""
        if host.is_local:
            return str(self.brought().local_root)
        if self.workspace.host is None:
            return posixpath.join(host_home, HOST_WORKSPACES, self.name)
        source = self.workspace.host
        return posixpath.join(host_home, source[2:]) if source.startswith("~/") else source

    def mount(self, host: Host, host_home: str) -> Mount:
        """Return the mount that brings the folder into a container on a host."""
        source = self.host_root(host, host_home)
        if host.is_local and sys.platform == "win32":
            # Not checked: the check is for paths of hosts, which begin with a slash.
            return Mount.model_construct(source=source, target=self.container_root, read_only=False, relabel="")
        return Mount(source=source, target=self.container_root)

    def path_map(self) -> PathMap:
        """Return how paths here and in the container go together."""
        pair = PathPair(local_path=str(self.local_root), container_path=self.container_root)
        return PathMap([pair], is_windows=sys.platform == "win32")


def find_project(environment: Environment, folder: Path, *, machine_id: str) -> Project | None:
    """Resolve an environment's workspace; `folder` is where the front-end starts the kernel. None: it has none.

    Raises: WorkspaceRefused.
    """
    workspace = environment.workspace
    if workspace is None:
        return None
    folder = Path(os.path.realpath(folder))
    root = _root_above(folder) if workspace.local == "." else Path(workspace.local).expanduser()
    # Of a link to the project the project is meant; a relative path begins at the kernel's folder.
    root = Path(os.path.realpath(folder / root))
    _check_root(root)
    container_root = _container_root(workspace, root)
    below = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    return Project(
        workspace=workspace,
        local_root=root,
        container_root=container_root,
        container_folder=posixpath.join(container_root, *below),
        name=_copy_name(root, machine_id),
    )


def _root_above(folder: Path) -> Path:
    """Return the project that a folder is in; itself where nothing above it below the home folder is marked as one."""
    home = Path(os.path.realpath(Path.home()))
    for candidate in (folder, *folder.parents):
        if candidate in (home, *home.parents) or candidate == candidate.parent:
            break
        if any((candidate / mark).exists() for mark in _ROOT_MARKS):
            return candidate
    return folder


def _check_root(root: Path) -> None:
    home = Path(os.path.realpath(Path.home()))
    if not root.is_dir():
        raise WorkspaceRefused(path=str(root), reason="there is no such folder")
    if root == root.parent:
        raise WorkspaceRefused(path=str(root), reason="it is a whole disk")
    if root == home:
        raise WorkspaceRefused(path=str(root), reason="it is your whole home folder")
    if root in home.parents:
        raise WorkspaceRefused(path=str(root), reason="your whole home folder is in it")


def _container_root(workspace: Workspace, root: Path) -> str:
    if workspace.container != workspace_keys.SAME_PATH:
        return workspace.container
    if isinstance(root, PureWindowsPath):
        remedy = "Set `container` of `workspace` to a path like /workspace."
        raise WorkspaceRefused(path=str(root), reason="a container has no such path", remedy=remedy)
    try:
        return workspace_keys.check_container(str(root))
    except ValueError as error:
        remedy = "Set `container` of `workspace` to another path."
        raise WorkspaceRefused(path=str(root), reason=str(error), remedy=remedy) from error


def _copy_name(root: Path, machine_id: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", root.name).strip(".-")[:_MOST_NAME] or "workspace"
    # Two machines may have other files under the same path, and share a login.
    made_of = f"{machine_id}\0{os.path.normcase(root)}".encode("utf-8", "surrogateescape")
    return f"{plain}-{hashlib.sha256(made_of).hexdigest()[:10]}"
