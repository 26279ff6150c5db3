"""Find out what `kernelbridge open` means by a word, and which JupyterLab of this user can show it."""

from __future__ import annotations

import html
import json
import os
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelbridge.atomic_files import write_whole
from kernelbridge.config.schema import Config
from kernelbridge.errors import KernelBridgeError, KernelNotFound
from kernelbridge.fleet.kernel_listing import is_of_notebook
from kernelbridge.hosts.labels import short_id
from kernelbridge.jupyter.kernelspecs import FOLDER_PREFIX
from kernelbridge.kernel.records import KernelRecord

# A server of this machine answers in milliseconds, unless it is busy.
LAB_ANSWER_SECONDS = 3.0
_NOTEBOOK = ".ipynb"


@dataclass(frozen=True, kw_only=True)
class LabPage:
    """What is to be shown: a notebook or nothing yet, in the folder that a JupyterLab shows."""

    root: Path
    # Of the notebook, below the folder, with slashes; empty: none.
    notebook: str = ""
    # The kernel spec of new notebooks; empty: Jupyter's own choice.
    spec: str = ""
    # Whether the notebook's kernel runs, and Jupyter does not know that it is this notebook's.
    is_to_be_picked: bool = False

    def arguments(self, *, browser: bool) -> list[str]:
        """Return what `jupyter lab` is started with, in the folder."""
        spec = [f"--MultiKernelManager.default_kernel_name={self.spec}"] if self.spec else []
        silent = [] if browser else ["--no-browser"]
        return [*silent, *spec, *([f"./{self.notebook}"] if self.notebook else [])]


def page_of(word: str | None, config: Config, records: Iterable[KernelRecord], folder: Path) -> LabPage:
    """Return what a word means, called in this folder: a notebook or a folder here, an environment, or a kernel.

    Raises KernelNotFound, KernelBridgeError.
    """
    if not word:
        return LabPage(root=folder)
    path = Path(os.path.normpath(folder / word))
    known = [record for record in records if record.config == str(config.path)]
    if path.is_dir() and word not in config.environments:
        return LabPage(root=path)
    if path.suffix == _NOTEBOOK and path.is_file():
        return _of_file(path, known, folder)
    if word in config.environments:
        return LabPage(root=folder, spec=FOLDER_PREFIX + word)
    found = [one for one in known if one.kernel_id.startswith(word) or is_of_notebook(one, word)]
    if len(found) > 1:
        names = [
            f"{short_id(one.kernel_id)} ({', '.join(filter(None, [one.title, one.environment]))})" for one in found
        ]
        raise KernelNotFound(kernel=word, hosts=[], found=names)
    if not found:
        raise KernelBridgeError(
            f"`{word}` is neither a notebook here, nor an environment, nor a kernel that this machine started.",
            "`kernelbridge config` lists the environments, `kernelbridge ps` the kernels.",
        )
    return _of_kernel(found[0])


def _of_file(path: Path, records: Iterable[KernelRecord], folder: Path) -> LabPage:
    """Show a notebook where the server that had it showed it, so that it has its kernel again."""
    for record in records:
        for session in record.sessions:
            if record.server and Path(record.server, session.path) == path:
                return LabPage(root=Path(record.server), notebook=session.path)
    root = folder if path.is_relative_to(folder) else path.parent
    is_left = any(record.notebook and Path(record.notebook) == path for record in records)
    return LabPage(root=root, notebook=path.relative_to(root).as_posix(), is_to_be_picked=is_left)


def _of_kernel(record: KernelRecord) -> LabPage:
    if record.server and record.sessions:
        return LabPage(root=Path(record.server), notebook=record.sessions[0].path)
    path = Path(record.notebook)
    if record.notebook and path.is_file():
        return LabPage(root=path.parent, notebook=path.name, is_to_be_picked=True)
    kernel = short_id(record.kernel_id)
    raise KernelBridgeError(
        f"No notebook of {kernel} is known here.", f"`kernelbridge attach {kernel}` joins a console to it."
    )


@dataclass(frozen=True, kw_only=True)
class LabServer:
    """One Jupyter server of this user that runs."""

    url: str
    token: str
    root: Path

    def address(self, page: LabPage) -> str:
        """Return the page's address, with what lets its reader in."""
        query = f"?{urllib.parse.urlencode({'token': self.token})}" if self.token else ""
        return f"{self.url}lab{self._below(page)}{query}"

    def _below(self, page: LabPage) -> str:
        path = (page.root / page.notebook).relative_to(self.root).as_posix()
        return f"/tree/{urllib.parse.quote(path)}" if path != "." else ""

    def shows(self, page: LabPage) -> bool:
        """Whether what is to be shown lies in its folder."""
        return page.root.is_relative_to(self.root)

    def has_lab(self) -> bool:
        """Whether it answers, and has a JupyterLab."""
        request = urllib.request.Request(f"{self.url}lab", headers={"Authorization": f"token {self.token}"})  # noqa: S310
        # No proxy has a part in what stays on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=LAB_ANSWER_SECONDS) as answer:
                return urllib.parse.urlsplit(str(answer.url)).path.rstrip("/").endswith("/lab")
        except (OSError, ValueError):
            return False


def servers(runtime_folder: Path) -> Iterator[LabServer]:
    """Yield the Jupyter servers that have said here that they run; one that was killed says so still."""
    for file in sorted(runtime_folder.glob("jpserver-*.json")):
        try:
            told: Mapping[str, Any] = json.loads(file.read_bytes())
            url, token, root = str(told["url"]), str(told.get("token") or ""), Path(told["root_dir"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # It is being written, or no server's.
        if url.startswith(("http://", "https://")):
            yield LabServer(url=url if url.endswith("/") else f"{url}/", token=token, root=root)


def server_for(page: LabPage, runtime_folder: Path) -> LabServer | None:
    """Return the server that can show a page, the one whose folder is nearest; None: one is to be started."""
    fitting = [server for server in servers(runtime_folder) if server.shows(page)]
    fitting.sort(key=lambda server: -len(server.root.parts))
    return next((server for server in fitting if server.has_lab()), None)


def write_way(address: str, runtime_folder: Path) -> Path:
    """Write a file, closed to others, that leads a browser to an address: with its token it belongs into no argv."""
    file = runtime_folder / "kernelbridge-open.html"
    where = html.escape(address, quote=True)
    link = f'<a href="{where}">JupyterLab</a>'
    text = f'<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={where}">{link}'
    write_whole(file, text.encode(), is_private=True)
    return file
