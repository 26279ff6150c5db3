"""Run other projects' suites with our kernel as `python3`, and print what became of their tests.

A test that fails is run once more, and then with a kernel of this machine: what fails there too is not ours.
Exits with 1 where a failure is not explained, or a suite could not run to its end.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kernelbridge import __version__
from tests.foreign.browser import compare_cells, run_playwright
from tests.foreign.environments import MissingTests, Places, run_pytest
from tests.foreign.report import page, printed
from tests.foreign.results import Row, UnreadableResults, after_second_try, beside_local, failed, load
from tests.foreign.suites import SUITES, Suite
from tests.rig.daemon import RigError
from tests.rig.whole import Rig, missing, open_rig


def run_suite(suite: Suite, places: Places, rig: Rig) -> Row:
    """Run it as often as its failures need."""
    began = time.monotonic()
    runner = run_playwright if suite.server == "lab" else run_pytest
    results = runner(suite, places, rig)
    if failed(results):
        results = after_second_try(results, runner(suite, places, rig, only=failed(results)))
    if failed(results):
        results = beside_local(results, runner(suite, places, rig, only=failed(results), is_local=True))
    if suite.notebook:
        results += compare_cells(suite, places, rig)
    return Row(
        suite=suite.name,
        version=suite.version,
        results=tuple(results),
        misses=suite.misses,
        seconds=time.monotonic() - began,
        date=datetime.date.today().isoformat(),
    )


def main() -> int:
    """Called by scripts/foreign."""
    parser = argparse.ArgumentParser(prog="scripts/foreign", description=__doc__)
    names = [suite.name for suite in SUITES]
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(names)}; none: all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="make a page of the table")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="keep environments, logs and results for the next run; --write also has what ran before",
    )
    chosen = parser.parse_args()
    unknown = set(chosen.suites) - set(names)
    if unknown:
        parser.error(f"there is no suite {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    reason = missing()
    if reason:
        print(f"It cannot run: {reason}.")
        return 1
    suites = [suite for suite in SUITES if not chosen.suites or suite.name in chosen.suites]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (chosen.keep or Path(temporary)).absolute()
        rows, apart, broken = run_all(suites, scratch)
        print(printed(rows, apart))
        if chosen.write:
            kept = kept_rows(scratch)
            known = {row.suite for row in kept} | {name for name, _ in apart}
            apart += [(name, "not run for this page.") for name in names if name not in known]
            chosen.write.write_text(page(kept, apart, release=__version__))
    return 1 if broken or any(row.unexplained for row in rows) else 0


def kept_rows(scratch: Path) -> list[Row]:
    """The newest row of each suite that ran."""
    places = [(suite, _row_path(scratch, suite)) for suite in SUITES]
    return [load(path, suite=suite.name, misses=suite.misses) for suite, path in places if path.exists()]


def _row_path(scratch: Path, suite: Suite) -> Path:
    return scratch / suite.folder / "row.json"


def run_all(suites: Sequence[Suite], scratch: Path) -> tuple[list[Row], list[tuple[str, str]], list[str]]:
    """Run each; also those whose tests are not there, with why, and those that broke."""
    rows: list[Row] = []
    apart: list[tuple[str, str]] = []
    broken: list[str] = []
    with open_rig() as rig:
        # A short name: sockets lie below it.
        shared = rig.lab.path / "f"
        shared.mkdir()
        places = Places(scratch=scratch, shared=shared)
        for suite in suites:
            (scratch / suite.folder).mkdir(exist_ok=True, parents=True)
            print(f"-- {suite.name} {suite.version}", flush=True)
            try:
                row = run_suite(suite, places, rig)
            except MissingTests as error:
                apart.append((suite.name, str(error)))
                continue
            except (RigError, UnreadableResults, subprocess.TimeoutExpired) as error:
                # The others took an hour.
                broken.append(suite.name)
                print(f"{suite.name} did not run: {error}", flush=True)
                continue
            row.save(_row_path(scratch, suite))
            rows.append(row)
    return rows, apart, broken


if __name__ == "__main__":
    sys.exit(main())
