"""Run SPIN on a model: build its verifier with some defines, search all that it can do, or replay a trace.

By hand: python -m tests.model.spin protocol -DCUTS=1 -DKILLS=0 (without defines: all that tests/real/test_model.py runs).
"""

from __future__ import annotations

import functools
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
# Of all that one search may take.
MEMORY_MB = 1024
SEARCH_SECONDS = 100
_EVENT = re.compile(r"#define E_(\w+) (\d+)")


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search came to."""

    # What does not hold; empty if all does. And the steps that lead there, one a line.
    error: str
    steps: tuple[str, ...] = ()
    states: int
    depth: int
    megabytes: float
    seconds: float

    def __str__(self) -> str:
        found = f"{self.error} after {len(self.steps)} steps" if self.error else "holds"
        size = f"{self.states:,} states, depth {self.depth}, {self.megabytes:.0f} MB, {self.seconds:.1f} s"
        return f"{found}: {size}"


def event_names(model: str) -> dict[int, str]:
    """The names of a model's events."""
    return {int(number): name for name, number in _EVENT.findall((HERE / f"{model}.pml").read_text())}


class Verifier:
    """A model with some defines, compiled in a folder."""

    def __init__(self, folder: Path, model: str, *defines: str, fair: bool = False) -> None:
        """`fair` if it is to look for what never comes about, although each who can do something does so at some time."""
        self._folder = folder
        self._model = model
        self._defines = defines
        self._fair = fair
        for name in (f"{model}.pml", "replay.h"):
            shutil.copy(HERE / name, folder)
        self._call("spin", *defines, "-a", f"{model}.pml")
        options = ["-DNFAIR=4"] if fair else ["-DSAFETY"]
        # The model's processes share all they have, so that reduction only costs time.
        options += ["-DNOREDUCE", f"-DMEMLIM={MEMORY_MB}", "-DVECTORSZ=16384"]
        self._call("cc", "-O2", "-w", *options, "-o", "pan", "pan.c")

    def _call(self, *words: str, **environment: str) -> str:
        done = subprocess.run(
            words, cwd=self._folder, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True,
            timeout=SEARCH_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def search(self) -> Search:
        """Look at all that the model can do."""
        began = time.monotonic()
        said = self._call("./pan", "-m100000", "-w22", *(["-a", "-f"] if self._fair else []))
        seconds = time.monotonic() - began
        if "Search not completed" in said and "errors: 0" in said:
            raise AssertionError(f"the search was not completed: {said}")
        errors = re.findall(r"^pan:1: (.*)", said, re.MULTILINE)
        return Search(
            error=errors[0].rpartition(" (at depth")[0] if errors else "",
            steps=self._steps() if errors else (),
            states=int(self._number(r"(\d+) states, stored", said)),
            depth=int(self._number(r"depth reached (\d+)", said)),
            megabytes=self._number(r"([\d.]+)\s+total actual memory usage", said),
            seconds=seconds,
        )

    def _number(self, pattern: str, said: str) -> float:
        found = re.search(pattern, said)
        assert found, said
        return float(found[1])

    def _steps(self) -> tuple[str, ...]:
        """What happens in the counterexample, and what is wrong then."""
        names = event_names(self._model)
        done = subprocess.run(
            ["spin", *self._defines, "-t", f"{self._model}.pml"], cwd=self._folder, capture_output=True, text=True,
            timeout=SEARCH_SECONDS, check=False,
        )  # fmt: skip
        steps: list[str] = []
        for line in done.stdout.splitlines():
            word, *numbers = line.split() or [""]
            if word == "event":
                steps.append(" ".join([names[int(numbers[0])], *numbers[1:]]))
            elif word == "spin:" and "line" not in line:
                steps.append(line)
        return tuple(steps)

    def replay(self, events: Sequence[Sequence[int]]) -> int:
        """Follow a trace; return how many of its events the model can do in a row: all, where it accepts the trace."""
        trace = self._folder / "trace"
        trace.write_text("".join(" ".join(map(str, [*event, 0, 0, 0][:4])) + "\n" for event in events))
        said = self._call("./pan", "-m100000", "-w18", TRACE=str(trace))
        stopped = re.search(r"stopped at event (\d+) of (\d+)", said)
        assert stopped and int(stopped[2]) == len(events), said
        assert ("\naccepted" in "\n" + said) == (stopped[1] == stopped[2]), said
        return int(stopped[1])
