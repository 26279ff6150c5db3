"""A page of docs/ as its reader goes through it: each block is done as it is printed, in the page's order.

`sh` is typed line by line in the project's folder, `toml` becomes the config, `python` is a cell. Under a line
`<!-- not run: WHY -->` a block is passed by. `3f2a91c0` is what `kernelbridge ps` calls the reader's own kernel.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pexpect
from jupyter_client.manager import KernelManager

from tests.clients.notebook import CellFailed, Notebook, fleet_closed_after, write_specs
from tests.rig.daemon import SLOW
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

DOCS = Path(__file__).parents[2] / "docs"
# The kernel that pages name, and what a page may call it.
KERNEL_ID = "3f2a91c0"
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n)?"
    r"(?:^<!-- fragment of \[(?P<section>\w+)\.NAME\] -->\n)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# What a reader does something with; `text` is what there is to see.
DONE = ("sh", "toml", "python", "json")
FIRST_KERNEL = "kernelbridge-pytorch"


@dataclass(frozen=True, kw_only=True)
class Block:
    """What stands between two fences."""

    language: str
    text: str
    # Of the config, where it is no whole one.
    section: str
    # The reason where it is not to be done.
    why: str


def blocks(page: str) -> list[Block]:
    """The blocks of a page that its reader does something with."""
    text = (DOCS / page).read_text("utf-8")
    found = [
        Block(language=one["language"], text=one["text"], section=one["section"] or "", why=one["why"] or "")
        for one in BLOCK.finditer(text)
    ]
    assert len(found) == len(re.findall(r"^```\w", text, re.MULTILINE)), f"a block of {page} cannot be read"
    return [one for one in found if one.language in DONE]


class Walk:
    """One reader on one page. At the end nothing of the page may be left to do: see `end`."""

    def __init__(self, page: str, rig: Rig, laptop: Laptop) -> None:
        self.page = page
        self.rig = rig
        self.laptop = laptop
        self.folder = laptop.home / "project"
        self.folder.mkdir(exist_ok=True)
        # What is not done yet; take() takes the first.
        self._blocks = [one for one in blocks(page) if not one.why]
        # Lines of a block of commands that are not typed yet.
        self._lines: list[str] = []
        # What the page calls the kernel, and its name here.
        self._ids = {KERNEL_ID: KERNEL_ID}

    def __repr__(self) -> str:
        return f"<Walk {self.page}, {len(self._blocks)} blocks and {len(self._lines)} lines left>"

    @property
    def env(self) -> dict[str, str]:
        """The reader's: `kernelbridge` is on the PATH."""
        programs = str(Path(sys.executable).parent)
        return self.laptop.env | {"PATH": f"{programs}:{os.environ['PATH']}"}

    def take(self, language: str) -> Block:
        """The page's next block, which is in this language."""
        assert not self._lines, f"{self.page}: not typed yet: {self._lines}"
        assert self._blocks, f"{self.page} has no more blocks, and a {language} one was expected"
        block = self._blocks.pop(0)
        assert block.language == language, f"{self.page}: expected {language}, found {block}"
        return block

    def end(self) -> None:
        """The page is at its end."""
        left = [*self._lines, *(one.text for one in self._blocks)]
        assert not left, f"{self.page}: nobody did this, nor does the page say why not (<!-- not run: WHY -->): {left}"

    # -- the config

    def start_config(self) -> str:
        """What a reader has after the page on getting started, which is the config now."""
        (text,) = (one.text for one in blocks("getting-started.md") if one.language == "toml")
        self.laptop.write_config(text)
        return text

    def config(self) -> str:
        """The next block is the config, or, a fragment, part of the one that a reader begins with."""
        block = self.take("toml")
        text = block.text
        if block.section:
            # A key that it has already gets the new value.
            own = tomllib.loads(text).keys()
            kept = [line for line in self.start_config().splitlines() if line.partition(" = ")[0] not in own]
            text = "\n".join([*kept, text])
        elif "[hosts." not in text:
            text = self.start_config().partition("[environments.")[0] + text
        self.laptop.write_config(text)
        return text

    # -- a terminal

    def typed(self, beginning: str) -> str:
        """The next line of commands, which begins so."""
        if not self._lines:
            self._lines = self.take("sh").text.splitlines()
        line = self._lines.pop(0)
        assert line.startswith(beginning), f"{self.page}: expected `{beginning} ...`, found `{line}`"
        for name, meant in self._ids.items():
            line = line.replace(name, meant)
        return line

    def type(self, beginning: str, *, keys: str = "", code: int = 0) -> str:
        """Type the next line and wait for its end; what it printed."""
        return self.run(self.typed(beginning), keys=keys, code=code)

    def run(self, line: str, *, keys: str = "", code: int = 0) -> str:
        """A line of the reader's own."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.env,
            input=keys,
            capture_output=True,
            text=True,
            timeout=120 * SLOW,
            check=False,
        )
        assert done.returncode == code, f"{self.page}: {line}\n{done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def type_on_host(self, beginning: str, *, keys: str = "") -> str:
        """Type the next line on the host, as its owner; what it printed."""
        words = self.rig.lab.inside(["bash", "-c", self.typed(beginning)])
        done = subprocess.run(words, input=keys, capture_output=True, text=True, timeout=60 * SLOW, check=False)
        assert done.returncode == 0, f"{self.page}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def terminal(self, beginning: str) -> Iterator[pexpect.spawn[str]]:
        """Type the next line on a terminal and go on there; it has ended in the end."""
        line = self.typed(beginning)
        screen = pexpect.spawn(
            "bash", ["-c", line], cwd=str(self.folder), env=self.env, encoding="utf-8", timeout=60 * SLOW,
            dimensions=(40, 120),
        )  # fmt: skip
        try:
            yield screen
            screen.expect(pexpect.EOF)
        finally:
            screen.close()
        assert screen.exitstatus == 0, f"{self.page}: {line}\n{screen.before}"

    @contextmanager
    def until_ctrl_c(self, beginning: str) -> Iterator[str]:
        """Type the next line, which stays; its first line. Ctrl-C ends it."""
        words = ["bash", "-c", f"exec {self.typed(beginning)}"]
        with subprocess.Popen(
            words, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as running:
            assert running.stdout is not None and running.stderr is not None
            try:
                first = running.stdout.readline()
                assert first, running.stderr.read()
                yield first
            finally:
                running.send_signal(signal.SIGINT)
                running.wait(30 * SLOW)

    def call(self, kernel_id: str) -> None:
        """What the page calls the kernel is this one from now on."""
        self._ids[KERNEL_ID] = kernel_id

    # -- a notebook

    @contextmanager
    def notebook(self, name: str = FIRST_KERNEL, *, env: dict[str, str] | None = None) -> Iterator[Notebook]:
        """A kernel of the reader's, who ran a cell; its id begins as the page's. It is shut down in the end."""
        with self._opened(name, env or {}) as kernel:
            # A kernel that only waits is asked for and may have no container yet.
            kernel.run("None")
            yield kernel

    @contextmanager
    def _opened(self, name: str, env: dict[str, str]) -> Iterator[Notebook]:
        write_specs(self.laptop)
        whole = KERNEL_ID + str(uuid.uuid4())[8:]
        self.call(KERNEL_ID)
        with fleet_closed_after(self.laptop):
            manager = KernelManager(kernel_name=name, connection_file=str(self.laptop.runtime_dir / f"{whole}.json"))
            manager.start_kernel(kernel_id=whole, cwd=str(self.folder), env={**self.env, **env})
            client = manager.client()
            client.start_channels()
            try:
                client.wait_for_ready(timeout=60 * SLOW)
                yield Notebook(manager, client)
            finally:
                client.stop_channels()
                manager.shutdown_kernel(now=True)

    def failed_start(self, name: str = FIRST_KERNEL) -> str:
        """What the first cell says of a start that failed."""
        with self._opened(name, {}) as kernel:
            try:
                kernel.run("1")
            except CellFailed as error:
                return error.text
        raise AssertionError(f"{self.page}: the kernel started")
