"""Suites that run in a browser: by Playwright, with JupyterLab's Galata, against a JupyterLab of their environment."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from tests.clients.lab import CHROMIUM, FLAGS
from tests.foreign.environments import Places, run_logged, user_of
from tests.foreign.results import Result, read_playwright, same_cells
from tests.foreign.servers import server
from tests.foreign.suites import Suite
from tests.rig.daemon import RigError, run, tail
from tests.rig.whole import Rig

HERE = Path(__file__).parent
GALATA = ("@jupyterlab/galata@5.6.4", "@playwright/test@1.60.0", "@lumino/coreutils@^2")


def libraries(places: Places) -> Path:
    """The folder that has Galata's node_modules; made once."""
    folder = places.scratch / "npm"
    done = folder / "done"
    if not done.exists():
        folder.mkdir(exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        environ = {**os.environ, "PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD": "1"}
        words: list[str | Path] = [
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
            "--prefix",
            folder,
            *GALATA,
        ]
        run(words, env=environ, seconds=1200)
        done.touch()
    return folder / "node_modules"


def run_playwright(
    suite: Suite, places: Places, rig: Rig, *, only: list[str] | None = None, is_local: bool = False
) -> list[Result]:
    """Run the suite, or some of its tests, with our kernel or with one of this machine.

    Raises: RigError where Playwright itself fails, UnreadableResults.
    """
    python, source = places.environment(suite), places.source(suite)
    laptop, folder = user_of(suite, places, rig), places.shared / suite.folder
    modules = folder / "node_modules"
    if not modules.exists():
        modules.symlink_to(libraries(places))
    config = folder / "playwright.config.js"
    shutil.copy(HERE / config.name, config)
    tests = source / suite.start
    if suite.notebook:
        shutil.copy(HERE / "cells.spec.js", tests)
    results = folder / "results.json"
    results.unlink(missing_ok=True)
    environ = {**laptop.env, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    if not is_local:
        environ["JUPYTER_PATH"] = str(laptop.home / "specs")
    with server(folder, python, env=environ, has_lab=True) as address:
        environ |= {
            "TARGET_URL": f"http://{address}",
            "KERNELBRIDGE_FOREIGN_TESTS": str(tests),
            "KERNELBRIDGE_FOREIGN_OUTPUT": str(folder / "output"),
            "KERNELBRIDGE_FOREIGN_RESULTS": str(results),
            "KERNELBRIDGE_FOREIGN_CHROMIUM": CHROMIUM,
            "KERNELBRIDGE_FOREIGN_FLAGS": " ".join(FLAGS),
            "KERNELBRIDGE_FOREIGN_SHOWN": str(_shown(folder, is_local=is_local)),
            "KERNELBRIDGE_FOREIGN_NOTEBOOK": str(tests / suite.notebook),
        }
        files = [f"/{name}\\.test\\.ts$" for name in suite.tests]
        files += ["/cells\\.spec\\.js$"] if suite.notebook else []
        titles = ["-g", "|".join(re.escape(test.rpartition(": ")[2]) for test in only)] if only else []
        words = ["node", modules / "@playwright/test/cli.js", "test", "-c", config, *titles, *files]
        log = places.log(suite, is_local=is_local, is_again=bool(only))
        ended = run_logged(words, log, cwd=folder, env=environ)
    # Beyond 1, `some tests failed`, it was interrupted: what has not run would look skipped.
    if ended not in (0, 1) or not results.exists():
        raise RigError(f"Playwright ended with {ended}:\n{tail(log)}")
    return read_playwright(results.read_text(), left_out=suite.left_out)


def _shown(folder: Path, *, is_local: bool) -> Path:
    return folder / ("shown-local.json" if is_local else "shown.json")


def compare_cells(suite: Suite, places: Places, rig: Rig) -> list[Result]:
    """Each cell of the suite's notebook: whether it shows with our kernel what it shows with one of this machine.

    The suite itself has run with ours.
    """
    folder = places.shared / suite.folder
    run_playwright(suite, places, rig, only=["cells.spec.js: each cell"], is_local=True)
    ours, local = (json.loads(_shown(folder, is_local=one).read_text()) for one in (False, True))
    return same_cells(suite.notebook, ours, local)
