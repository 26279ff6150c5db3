"""Run a case with its k-th call failing, for k = 1 and on until none fails, and look at what is left each time."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kernelbridge.atomic_files import is_unfinished
from tests.disk.faults import Fault, Faults, Killed

# No case makes so many calls.
_MOST_CALLS: Final = 3000
# By each part, such as a file or a record: what it holds; a part that is not there has none.
State = dict[str, Any]


class Lost(AssertionError):
    """Something that has to hold does not."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something that our code does in a folder."""

    # Makes the folder as it was before.
    prepare: Callable[[Path], None]
    # May raise `refusals`, and nothing else.
    act: Callable[[Path], Any]
    # What there is, in parts of which each is to be as before or as wanted. Reads with no fault.
    look: Callable[[Path], State]
    refusals: tuple[type[Exception], ...] = ()
    # Whether it may return without having written, since what it writes is a hint; a warning at most.
    is_hint: bool = False
    # Whether it may leave a file open that it had opened: a lock that is held until the process ends.
    keeps_open: bool = False
    # Forgets what the process remembers besides.
    reset: Callable[[], None] = lambda: None
    # Whether a name in the folder is none that should be there at the end.
    is_stray: Callable[[str], bool] = lambda name: is_unfinished(name.rpartition("/")[2])
    # Whether what was there before may be forgotten: it is found out anew.
    may_forget: bool = False
    faults: tuple[Fault, ...] = tuple(Fault)


@dataclass
class Figures:
    """What a run has seen."""

    runs: int = 0
    # How many calls of each kind failed.
    failed: Counter[str] = field(default_factory=Counter)
    # How runs ended: done, refused, interrupted, killed.
    ends: Counter[str] = field(default_factory=Counter)


def names(folder: Path) -> list[str]:
    """Return all that is in a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def files(folder: Path) -> State:
    """Return all files of a folder with their content."""
    found = ((path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file())
    return {name: path.read_bytes() for name, path in found if not is_unfinished(path.name)}


def run(case: Case, root: Path, *, faults: Iterable[Fault] | None = None) -> Figures:
    """Run a case with each fault at each call. Raises Lost."""
    figures = Figures()
    before, wanted = _expected(case, root / "clean")
    for fault in faults or case.faults:
        for at in range(1, _MOST_CALLS):
            if not _has_failed(case, root / "run", (fault, at), (before, wanted), figures):
                break
        else:
            raise Lost(f"{fault.value}: more than {_MOST_CALLS} calls")
    return figures


def _expected(case: Case, folder: Path) -> tuple[State, State]:
    """Return what there is before and after a run without any fault."""
    _fresh(case, folder)
    before = case.look(folder)
    with _no_last_resort():
        case.act(folder)
    case.reset()
    return before, case.look(folder)


def _fresh(case: Case, folder: Path) -> None:
    case.reset()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case.prepare(folder)


def _has_failed(
    case: Case, folder: Path, which: tuple[Fault, int], expected: tuple[State, State], figures: Figures
) -> bool:
    """Run once; whether any call failed."""
    fault, at = which
    _fresh(case, folder)
    faults = Faults(folder, at=at, fault=fault)
    end, told = _ended(case, folder, faults)
    if not faults.failed:
        case.reset()
        faults.leaked()
        return False
    figures.runs += 1
    figures.ends[end] += 1
    figures.failed.update(one.partition(" ")[0] for one in faults.failed)
    try:
        _check(case, folder, faults, fault, end, expected)
    except Lost as lost:
        raise Lost(f"{fault.value} at call {at} ({faults.failed[0]}), {end}: {lost}\n{told}") from lost
    return True


@contextlib.contextmanager
def _no_last_resort() -> Iterator[None]:
    """Print no warnings, as a process whose logs go elsewhere."""
    quiet = logging.NullHandler()
    logging.getLogger().addHandler(quiet)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(quiet)


def _ended(case: Case, folder: Path, faults: Faults) -> tuple[str, str]:
    """Run what the case does; return how it ended, and what was raised."""
    with contextlib.redirect_stderr(io.StringIO()), _no_last_resort():
        try:
            with faults.injected():
                case.act(folder)
        except Killed:
            return "killed", ""
        except KeyboardInterrupt:
            return "interrupted", ""
        except case.refusals as exc:
            return "refused", repr(exc)
        except Exception:
            return "crashed", traceback.format_exc()
    return "done", ""


def _check(case: Case, folder: Path, faults: Faults, fault: Fault, end: str, expected: tuple[State, State]) -> None:
    before, wanted = expected
    if case.keeps_open:
        case.reset()
    leaked = faults.leaked()
    if end == "crashed":
        raise Lost("it crashed")
    if end not in ("killed", "interrupted") and leaked and not case.keeps_open:
        raise Lost(f"still open: {', '.join(leaked)}")
    after = case.look(folder)
    for part in sorted({*before, *after, *wanted}):
        if case.may_forget and part not in after:
            continue
        if after.get(part) not in (before.get(part), wanted.get(part)):
            raise Lost(f"{part} is neither as before nor as wanted: {str(after.get(part))[:200]}")
    if end == "done" and after != wanted and not case.is_hint:
        raise Lost("it said nothing, and has not done it")
    if fault is Fault.SHORT and (end, after) != ("done", wanted):
        raise Lost("a write that takes a part is no fault")
    could_clean = end != "killed" and not any(
        one.startswith(("unlink", "rmdir", "list", "open")) for one in faults.failed
    )
    _check_strays(case, folder, before_next=could_clean and fault not in (Fault.STAYS_BROKEN,))
    # The next run finds all in order.
    case.reset()
    with _no_last_resort():
        case.act(folder)
    case.reset()
    found = case.look(folder)
    if found != wanted and not (case.may_forget and found.items() <= wanted.items()):
        raise Lost("the next run does not do it either")


def _check_strays(case: Case, folder: Path, *, before_next: bool) -> None:
    strays = [name for name in names(folder) if case.is_stray(name)]
    if strays and before_next:
        raise Lost(f"left behind: {', '.join(strays)}")
