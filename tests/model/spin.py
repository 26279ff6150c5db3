"""Run SPIN on a model: build its verifier with some defines, search all that it can do, or replay a trace.

By hand: python -m tests.model.spin protocol -DTAKES=0
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
# Of all that one search may take.
MEMORY_MB = 1024
SEARCH_SECONDS = 300
_EVENT = re.compile(r"#define E_(\w+) (\d+)")


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search came to. Its seconds are the processor's."""

    # The model's line that does not hold; empty if all does. And the steps that lead there.
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


def _used_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def event_names(model: str) -> dict[int, str]:
    """The names of a model's events."""
    return {int(number): name for name, number in _EVENT.findall((HERE / f"{model}.pml").read_text())}


class Verifier:
    """A model with some defines, compiled in a folder."""

    def __init__(self, folder: Path, model: str, *defines: str, fair: bool = False, large: bool = False) -> None:
        """`large` if the search is worth a better compiled verifier.

        `fair` if it is to look for what never comes about, although each who can do something does so at some time.
        """
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
        self._call("cc", "-O1" if large else "-O0", "-w", *options, "-o", "pan", "pan.c")

    def _call(self, *words: str, **environment: str) -> str:
        done = subprocess.run(
            words, cwd=self._folder, env={**os.environ, **environment}, capture_output=True, text=True,
            timeout=SEARCH_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def search(self) -> Search:
        """Look at all that the model can do."""
        began = _used_seconds()
        said = self._call("./pan", "-m100000", "-w22", *(["-a", "-f"] if self._fair else []))
        seconds = _used_seconds() - began
        if "Search not completed" in said and "errors: 0" in said:
            raise AssertionError(f"the search was not completed: {said}")
        steps = () if "errors: 0" in said else self._steps()
        return Search(
            error=steps[-1] if steps else "",
            steps=steps,
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
        """What happens in the counterexample; the last is the line of the model that does not hold then."""
        names = event_names(self._model)
        lines = (HERE / f"{self._model}.pml").read_text().splitlines()
        done = subprocess.run(
            ["spin", *self._defines, "-t", f"{self._model}.pml"], cwd=self._folder, capture_output=True, text=True,
            timeout=SEARCH_SECONDS, check=False,
        )  # fmt: skip
        steps: list[str] = []
        for line in done.stdout.splitlines():
            word, *numbers = line.split() or [""]
            if word == "event":
                steps.append(" ".join([names[int(numbers[0])], *numbers[1:]]))
            elif violated := re.match(r"spin: \S+:(\d+), Error: assertion violated", line):
                return (*steps, lines[int(violated[1]) - 1].strip())
        return (*steps, "and so on for ever")

    def replay(self, events: Sequence[Sequence[int]]) -> int:
        """Follow a trace; return how many of its events the model can do in a row: all, where it accepts the trace."""
        trace = self._folder / "trace"
        trace.write_text("".join(" ".join(map(str, [*event, 0, 0, 0][:4])) + "\n" for event in events))
        said = self._call("./pan", "-m100000", "-w18", TRACE=str(trace))
        stopped = re.search(r"stopped at event (\d+) of (\d+)", said)
        assert stopped and int(stopped[2]) == len(events), said
        assert ("\naccepted" in "\n" + said) == (stopped[1] == stopped[2]), said
        return int(stopped[1])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        result = Verifier(Path(made), *sys.argv[1:], fair="-DPROGRESS" in sys.argv, large=True).search()
    print(*result.steps, result, sep="\n")
