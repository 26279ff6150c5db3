"""Soak: `python -m tests.soak --minutes 30 --kernels 20 --seed 1`, or `--starts 300`. Exits with 1 where it fails."""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
import time
from contextlib import ExitStack, closing

from tests.rig.slurm import SlurmRig, missing_slurm
from tests.rig.whole import missing, open_rig
from tests.soak import soak, starts


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="for how long faults happen (default: 30)")
    parser.add_argument("--kernels", type=int, default=20, help="how many kernels at a time (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is chosen (default: from the clock)")
    parser.add_argument("--starts", type=int, default=0, help="start and stop so many kernels instead, with no faults")
    parser.add_argument("--no-slurm", action="store_true", help="without kernels in Slurm's jobs")
    given = parser.parse_args()
    if reason := missing() or (None if given.no_slurm else missing_slurm()):
        print(f"The soak cannot run here: {reason}", file=sys.stderr)
        return 2
    # What is ended by a signal ends as by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What a soak waits for that does not end: kill -USR1.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    seed = given.seed or int(time.time()) % 100_000
    try:
        with ExitStack() as undo:
            _say(f"seed {seed}")
            rig = undo.enter_context(open_rig())
            outcome: soak.Outcome | starts.StartsOutcome
            if given.starts:
                outcome = starts.run(rig, None, starts=given.starts, say=_say)
            else:
                slurm = None if given.no_slurm else undo.enter_context(closing(SlurmRig(rig.lab)))
                facts = {"minutes": given.minutes, "kernels": given.kernels, "seed": seed}
                outcome = soak.run(rig, slurm, say=_say, **facts)
            _say("\n".join(outcome.report()))
    except KeyboardInterrupt:
        _say("ended before its time; nothing is left")
        return 130
    return 0 if outcome.holds else 1


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
