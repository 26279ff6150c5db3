"""What became of the tests of one suite, and the table of all."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, get_args

# `left out` never ran; `alike` fails with a kernel of this machine too.
Outcome = Literal["passed", "failed", "skipped", "left out", "alike"]
NO_KERNEL = "starts no kernel of ours"
AIM = 95.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """One test. `reason`: why it failed, was skipped or left out."""

    test: str
    outcome: Outcome
    reason: str = ""
    is_second_try: bool = False


class UnreadableResults(ValueError):
    """What the suite's run has left cannot be its results."""


def read_lines(text: str, *, counts_kernels: bool, uncounted: Sequence[str] = ()) -> list[Result]:
    """The results that plugin.py wrote. Where kernels are counted, a test that passed without one does not apply.

    Except those whose kernels nobody can count.

    Raises: UnreadableResults.
    """
    found: dict[str, Result] = {}
    for line in text.splitlines():
        try:
            row = json.loads(line)
            result = Result(test=row["test"], outcome=_outcome(row["outcome"]), reason=str(row.get("reason") or ""))
            kernels = int(row.get("kernels", 0))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnreadableResults(f"no result: {line[:200]!r} ({error!r})") from error
        has_kernel = kernels > 0 or any(fnmatchcase(result.test, one) for one in uncounted)
        if counts_kernels and result.outcome == "passed" and not has_kernel:
            result = replace(result, outcome="left out", reason=NO_KERNEL)
        # The plugin `flaky` runs a test again under the same name: the last run counts.
        found[result.test] = result
    if not found:
        raise UnreadableResults("no test ran")
    return list(found.values())


def _outcome(text: str) -> Outcome:
    if text not in get_args(Outcome):
        raise ValueError(f"unknown outcome {text}")
    outcome: Outcome = text  # type: ignore[assignment]
    return outcome


def read_playwright(text: str, *, left_out: Mapping[str, str]) -> list[Result]:
    """The results of Playwright's JSON reporter, named `FILE: TITLE`.

    Raises: UnreadableResults.
    """
    found: list[Result] = []
    try:
        for suite in json.loads(text)["suites"]:
            found += _read_suite(suite, Path(suite["file"]).name, left_out)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UnreadableResults(f"not what Playwright writes: {error!r}") from error
    if not found:
        raise UnreadableResults("no test ran")
    return found


def _read_suite(suite: Mapping[str, Any], title: str, left_out: Mapping[str, str]) -> list[Result]:
    found = []
    for spec in suite.get("specs", []):
        name = f"{title}: {spec['title']}"
        (test,) = spec["tests"]
        reason = next((why for pattern, why in left_out.items() if fnmatchcase(name, pattern)), None)
        if reason:
            found.append(Result(test=name, outcome="left out", reason=reason))
            continue
        outcome = _PLAYWRIGHT[test["status"]]
        errors = [error["message"] for run in test["results"] for error in run.get("errors", [])]
        skipped = [note.get("description") or note["type"] for note in test.get("annotations", [])]
        said = errors if outcome == "failed" else skipped if outcome == "skipped" else []
        found.append(Result(test=name, outcome=outcome, reason=_first_line(said[0]) if said else ""))
    for inner in suite.get("suites", []):
        found += _read_suite(inner, f"{title} > {inner['title']}", left_out)
    return found


_PLAYWRIGHT: dict[str, Outcome] = {
    "expected": "passed",
    "unexpected": "failed",
    "flaky": "passed",
    "skipped": "skipped",
}


def _first_line(text: str) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    return plain.splitlines()[0] if plain else ""


def same_cells(notebook: str, ours: Sequence[str], local: Sequence[str]) -> list[Result]:
    """One result for each cell that shows something: what it shows here and there must be the same.

    Raises: UnreadableResults.
    """
    if len(ours) != len(local) or not any(local):
        raise UnreadableResults(f"{len(ours)} cells with our kernel, {len(local)} with a local one, of {notebook}")
    found = []
    for index, (one, other) in enumerate(zip(ours, local, strict=True)):
        if one or other:
            first = next((pair for pair in zip_longest(one.split("\n"), other.split("\n")) if len({*pair}) > 1), None)
            reason = f"shows {first[0]!r} where a local kernel shows {first[1]!r}" if first else ""
            outcome: Outcome = "failed" if first else "passed"
            found.append(Result(test=f"{notebook}: cell {index}", outcome=outcome, reason=reason))
    return found


def failed(results: Iterable[Result]) -> list[str]:
    """The names of those that failed."""
    return [result.test for result in results if result.outcome == "failed"]


def after_second_try(results: Sequence[Result], again: Sequence[Result]) -> list[Result]:
    """What passed when its suite ran once more did pass; the table says so."""
    passed = {result.test for result in again if result.outcome == "passed"}
    return [
        replace(result, outcome="passed", is_second_try=True, reason="")
        if result.outcome == "failed" and result.test in passed
        else result
        for result in results
    ]


def beside_local(results: Sequence[Result], local: Sequence[Result]) -> list[Result]:
    """What fails with a kernel of this machine too says nothing of ours."""
    fails = set(failed(local))
    return [
        replace(result, outcome="alike") if result.outcome == "failed" and result.test in fails else result
        for result in results
    ]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A suite's line of the table."""

    suite: str
    version: str
    results: tuple[Result, ...]
    # {pattern: explanation} of the failures that are known.
    misses: Mapping[str, str]
    seconds: float = 0.0
    date: str = ""

    def count(self, outcome: Outcome) -> int:
        return sum(result.outcome == outcome for result in self.results)

    @property
    def share(self) -> float:
        """Per cent of what applies that passed."""
        passed = self.count("passed")
        return 100.0 * passed / max(1, passed + self.count("failed"))

    def explanation(self, result: Result) -> str | None:
        """Why it fails, where that is known."""
        return next((text for one, text in self.misses.items() if fnmatchcase(result.test, one)), None)

    @property
    def unexplained(self) -> list[Result]:
        return [one for one in self.results if one.outcome == "failed" and self.explanation(one) is None]

    @property
    def mended(self) -> list[str]:
        """Explanations of failures none of which happened."""
        missed = failed(self.results)
        return [one for one in self.misses if not any(fnmatchcase(test, one) for test in missed)]

    def reasons(self, outcome: Outcome) -> list[tuple[str, int]]:
        """Each reason with the number of tests that it stands for."""
        return Counter(result.reason for result in self.results if result.outcome == outcome).most_common()

    def save(self, path: Path) -> None:
        """Keep what was found; what is known of it is in suites.py."""
        found = [asdict(result) for result in self.results]
        path.write_text(
            json.dumps({"version": self.version, "seconds": self.seconds, "date": self.date, "results": found})
        )


def load(path: Path, *, suite: str, misses: Mapping[str, str]) -> Row:
    """What save() kept."""
    kept = json.loads(path.read_text())
    results = tuple(Result(**result) for result in kept.pop("results"))
    return Row(suite=suite, misses=misses, results=results, **kept)
