"""files/results.py: which files of a commit's copy come into the project, under which name; what is never replaced."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kernelbridge.files.listing import FOLDER, Entry, Kind, Listing
from kernelbridge.files.plan import Action, Deed, Known
from kernelbridge.files.project import Checkout
from kernelbridge.files.results import ResultTerms, result_name, results

BESIDE = "runs/log.of-1a2b3c4d5e6f-on-lab.csv"
PATH = "runs/log.csv"


def file(size_bytes: int, mtime_ns: int = 1) -> Entry:
    return Entry(Kind.FILE, size_bytes, mtime_ns, False, "")


OLD, NEW, MINE = file(1), file(2), file(3)


def decided(
    there: Mapping[str, Entry],
    *,
    here: Mapping[str, Entry] | None = None,
    known: Mapping[str, Known] | None = None,
    same: Mapping[str, bool] | None = None,
) -> list[Action]:
    terms = ResultTerms(
        host="lab",
        checkout=Checkout(commit="1a2b3c4d5e6f7a8b", paths=frozenset({"runs/kept.py"})),
        pulls=lambda path: path.startswith("runs/"),
        here=(here or {}).get,
        same=same or {},
    )
    return results(Listing(entries=dict(there)), known or {}, terms)


def copied(*, here: Entry | None = None, beside: str = "") -> list[Action]:
    return [Action(deed=Deed.COPY_HERE, path=PATH, local=here, host=NEW, beside=beside)]


def test_what_is_new_there_comes_and_folders_come_with_their_files() -> None:
    assert decided({"runs": FOLDER, PATH: NEW}) == copied()


@pytest.mark.parametrize("path", ["runs/kept.py", "train.py"])
def test_files_of_the_commit_and_what_pull_does_not_name_stay_there(path: str) -> None:
    assert decided({path: NEW}) == []
    assert decided({path: NEW}, here={path: MINE}) == []


def test_what_came_comes_again_only_if_it_has_changed_there() -> None:
    known = {PATH: Known(OLD, OLD)}
    assert decided({PATH: OLD}, known=known, here={PATH: OLD}) == []
    assert decided({PATH: OLD}, known=known) == [], "it was deleted here"
    assert decided({PATH: NEW}, known=known, here={PATH: OLD}) == copied(here=OLD)
    assert decided({PATH: NEW}, known=known) == copied()


def test_nothing_is_deleted_on_either_side() -> None:
    assert decided({}, known={PATH: Known(OLD, OLD)}, here={PATH: OLD}) == []


def test_another_file_here_stays_and_the_result_comes_beside_it_each_time() -> None:
    assert decided({PATH: NEW}, here={PATH: MINE}) == copied(beside=BESIDE)
    assert decided({PATH: NEW}, here={PATH: MINE}, known={PATH: Known(OLD, OLD)}) == copied(beside=BESIDE)
    both = {PATH: MINE, BESIDE: OLD}
    assert decided({PATH: NEW}, here=both, known={PATH: Known(OLD, OLD)}) == copied(here=OLD, beside=BESIDE)


def test_where_both_names_are_taken_it_stays_there_and_that_is_told_once() -> None:
    both = {PATH: MINE, BESIDE: MINE}
    told, remembered = decided({PATH: NEW}, here=both)
    assert told.deed is Deed.TELL
    assert told.words == f"{PATH} stays on lab: there are other files {PATH} and {BESIDE} here"
    assert remembered == Action(deed=Deed.REMEMBER, path=PATH, local=NEW, host=NEW)
    known = {PATH: Known(NEW, NEW)}
    assert decided({PATH: NEW}, here=both, known=known) == []
    assert [action.deed for action in decided({PATH: file(9)}, here=both, known=known)] == [Deed.TELL, Deed.REMEMBER]


def test_what_looks_the_same_is_read_and_what_is_the_same_is_remembered() -> None:
    here = {PATH: file(2, mtime_ns=5)}
    assert [action.deed for action in decided({PATH: NEW}, here=here)] == [Deed.COMPARE]
    remembered = Action(deed=Deed.REMEMBER, path=PATH, local=here[PATH], host=NEW)
    assert decided({PATH: NEW}, here=here, same={PATH: True}) == [remembered]
    assert decided({PATH: NEW}, here=here, same={PATH: False}) == copied(beside=BESIDE)


def test_a_name_says_which_commit_and_host_a_result_is_of() -> None:
    assert result_name(PATH, host="lab", commit="1a2b3c4d5e6f7a8b") == BESIDE
