"""Run targets for long: `python -m tests.fuzz --minutes 10 --target NAME`. Prints what fails; exits with 1 then."""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import traceback
import warnings

from tests.fuzz import runs
from tests.fuzz.targets import TARGETS

_MEMORY_BYTES = 3 << 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target")
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="all, where none is named")
    parser.add_argument("--seed", type=int, default=0, help="where to begin")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    failed = False
    for name in given.target or TARGETS:
        figures = runs.run_long(TARGETS[name], minutes=given.minutes, number=given.seed)
        print(f"{name}: {figures.examples:,} examples in {figures.seconds:.0f} s", flush=True)
        if figures.failure is not None:
            failed = True
            example, exc = figures.failure
            traceback.print_exception(exc)
            print(f"{name} fails with {example!r}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
