"""The planner, by tables: what each side has, what was known, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.files.listing import FOLDER, Entry, Kind, Listing, to_bytes
from kernelbridge.files.plan import Action, Deed, Known, PlanTerms, beside_name, big_copies, plan

STAMP = "20260131T235959"
# A file as it was, with other content, with other content of another size, touched, made executable.
OLD = Entry(Kind.FILE, 3, 10)
NEW = Entry(Kind.FILE, 3, 20)
NEWER = Entry(Kind.FILE, 3, 30)
LONG = Entry(Kind.FILE, 9, 20)
RUN = Entry(Kind.FILE, 3, 10, True)
LINK = Entry(Kind.LINK, target="x")
LINK_2 = Entry(Kind.LINK, target="y")
BIG, BIG_TOUCHED = Entry(Kind.FILE, 5 << 20, 10), Entry(Kind.FILE, 5 << 20, 20)
Side = Mapping[str, Entry]


def planned(
    local: Side, host: Side, known: Mapping[str, Known], *, is_whole: bool = True, **terms: object
) -> list[Action]:
    here, there = Listing(entries=dict(local)), Listing(entries=dict(host), is_whole=is_whole)
    return plan(here, there, known, PlanTerms(host="lab", stamp=STAMP, **terms))  # type: ignore[arg-type]


def deeds(actions: list[Action]) -> list[str]:
    return [
        f"{action.deed.value} {action.path}" + (f" > {action.beside}" if action.beside else "") for action in actions
    ]


KEPT = f"a.changed-on-lab-{STAMP}"
REPLACED = ["delete there a", "copy there a"]
CONFLICT = [f"keep beside a > {KEPT}", "copy there a"]
# What is here, what is there, what was known of both (a pair, or one for both), what push does, what both does.
ONE_PATH = [
    ("nothing changed", OLD, OLD, OLD, [], []),
    ("new here", OLD, None, None, ["copy there a"], ["copy there a"]),
    ("new there", None, OLD, None, [], []),
    ("the same on both sides by chance", OLD, NEW, None, ["compare a"], ["compare a"]),
    ("new on both sides, of two sizes", OLD, LONG, None, CONFLICT, [*CONFLICT, f"copy here {KEPT}"]),
    ("changed here", NEW, OLD, OLD, ["copy there a"], ["copy there a"]),
    ("changed there", OLD, NEW, OLD, [], ["copy here a"]),
    ("changed on both sides", NEW, NEWER, OLD, ["compare a"], ["compare a"]),
    ("changed on both sides, of two sizes", NEW, LONG, OLD, CONFLICT, [*CONFLICT, f"copy here {KEPT}"]),
    ("deleted here", None, OLD, OLD, ["delete there a"], ["delete there a"]),
    ("deleted here, changed there", None, NEW, OLD, ["tell a", "forget a"], ["tell a", "forget a"]),
    ("deleted there", OLD, None, OLD, [], []),
    ("deleted there, changed here", NEW, None, OLD, ["copy there a"], ["copy there a"]),
    ("deleted on both sides", None, None, OLD, ["forget a"], ["forget a"]),
    ("executable from now on", RUN, OLD, OLD, ["mode there a"], ["mode there a"]),
    ("executable there from now on", OLD, RUN, OLD, [], ["copy here a"]),
    ("a link turned", LINK_2, LINK, LINK, ["copy there a"], ["copy there a"]),
    ("a link turned there", LINK, LINK_2, LINK, [], ["copy here a"]),
    ("both have the same link", LINK, LINK, None, ["remember a"], ["remember a"]),
    ("both have other links", LINK, LINK_2, None, CONFLICT, [*CONFLICT, f"copy here {KEPT}"]),
    ("both have the folder", FOLDER, FOLDER, None, ["remember a"], ["remember a"]),
    ("a new folder", FOLDER, None, None, ["copy there a"], ["copy there a"]),
    ("a folder deleted here", None, FOLDER, FOLDER, ["delete there a"], ["delete there a"]),
    ("a folder deleted there", FOLDER, None, FOLDER, [], []),
    ("a big file touched", BIG_TOUCHED, BIG, BIG, ["compare a"], ["compare a"]),
    ("a file became a link", LINK, OLD, OLD, REPLACED, REPLACED),
    ("a file became a folder", FOLDER, OLD, OLD, REPLACED, REPLACED),
    ("a folder became a file", OLD, FOLDER, FOLDER, REPLACED, REPLACED),
    ("a file became a link there", OLD, LINK, OLD, [], ["delete here a", "copy here a"]),
    ("a file changed here and became a link there", NEW, LINK, OLD, CONFLICT, [*CONFLICT, f"copy here {KEPT}"]),
    ("an unknown folder is where a file comes", OLD, FOLDER, None, CONFLICT, CONFLICT),
]  # fmt: skip


@pytest.mark.parametrize(
    ("local", "host", "known", "push", "both"), [row[1:] for row in ONE_PATH], ids=[row[0] for row in ONE_PATH]
)
def test_one_path(
    local: Entry | None, host: Entry | None, known: Entry | None, push: list[str], both: list[str]
) -> None:
    here, there = ({"a": entry} if entry else {} for entry in (local, host))
    before = {"a": Known(known, known)} if known else {}
    found = planned(here, there, before), planned(here, there, before, is_both=True)
    assert (deeds(found[0]), deeds(found[1])) == (push, both)


@pytest.mark.parametrize(
    ("local", "host", "known", "same", "expected"),
    [
        (NEW, NEWER, OLD, True, ["remember a"]),
        (NEW, NEWER, OLD, False, CONFLICT),
        (NEW, NEWER, None, True, ["remember a"]),
        (RUN, NEWER, OLD, True, ["mode there a"]),
        (BIG_TOUCHED, BIG, BIG, True, ["remember a"]),
        (BIG_TOUCHED, BIG, BIG, False, ["copy there a"]),
    ],
)
def test_what_was_compared_is_no_conflict_if_it_is_the_same(
    local: Entry, host: Entry, known: Entry | None, same: bool, expected: list[str]
) -> None:
    before = {"a": Known(known, known)} if known else {}
    assert deeds(planned({"a": local}, {"a": host}, before, same={"a": same})) == expected


def test_two_clocks_are_never_compared() -> None:
    """Each side is compared with itself: whatever the times are, only that they differ from before counts."""
    before = {"a": Known(Entry(Kind.FILE, 3, 10), Entry(Kind.FILE, 3, 99_000))}
    assert planned({"a": Entry(Kind.FILE, 3, 10)}, {"a": Entry(Kind.FILE, 3, 99_000)}, before) == []
    older_here = planned({"a": Entry(Kind.FILE, 3, 5)}, {"a": Entry(Kind.FILE, 3, 99_000)}, before)
    assert deeds(older_here) == ["copy there a"]
    older_there = planned({"a": Entry(Kind.FILE, 3, 10)}, {"a": Entry(Kind.FILE, 3, 1)}, before, is_both=True)
    assert deeds(older_there) == ["copy here a"]


def test_results_come_back_and_nothing_else() -> None:
    host = {"runs": FOLDER, "runs/1": FOLDER, "runs/1/loss": OLD, "cache.bin": OLD}

    def pulls(path: str) -> bool:
        return path.startswith("runs/")

    assert planned({}, host, {}, pulls=pulls) == []
    assert deeds(planned({}, host, {}, pulls=pulls, is_both=True)) == ["copy here runs/1", "copy here runs/1/loss"]


def test_folders_are_made_before_their_files_and_emptied_before_they_go() -> None:
    tree = {"d": FOLDER, "d-e": OLD, "d/x": FOLDER, "d/x/a": OLD}
    assert deeds(planned(tree, {}, {})) == ["copy there d", "copy there d-e", "copy there d/x", "copy there d/x/a"]
    known = {path: Known(entry, entry) for path, entry in tree.items()}
    assert deeds(planned({}, tree, known)) == [
        "delete there d/x/a",
        "delete there d/x",
        "delete there d-e",
        "delete there d",
    ]
    back = planned(tree, {}, known, is_both=True, pulls=lambda path: True)
    assert deeds(back)[0] == "delete here d/x/a"


def test_nothing_is_deleted_here_but_results_that_were_deleted_there() -> None:
    """And not by a copy that is asked for by hand, where the config does not say that both sides are one."""
    here = {"a": OLD, "runs": FOLDER, "runs/1": OLD}
    known = {path: Known(entry, entry) for path, entry in here.items()}

    def pulls(path: str) -> bool:
        return path.startswith("runs/")

    assert planned(here, {}, known, pulls=pulls) == []
    assert deeds(planned(here, {}, known, is_both=True, pulls=pulls)) == ["delete here runs/1"]
    assert planned(here, {}, known, is_both=True, pulls=pulls, keeps_deleted=True) == []


def test_a_rename_is_a_deletion_and_a_copy_and_the_old_name_goes_first() -> None:
    known = {"Readme": Known(OLD, OLD)}
    assert deeds(planned({"README": OLD}, {"Readme": OLD}, known)) == ["delete there Readme", "copy there README"]


def test_a_folder_in_which_something_changed_is_kept_whole_where_a_file_comes() -> None:
    known = {"a": Known(FOLDER, FOLDER), "a/x": Known(OLD, OLD)}
    found = planned({"a": OLD}, {"a": FOLDER, "a/x": NEW, "a/y": OLD}, known)
    assert deeds(found) == [*CONFLICT, "forget a/x"]
    assert found[1].host is None
    unchanged = planned({"a": OLD}, {"a": FOLDER, "a/x": OLD}, known)
    assert deeds(unchanged) == ["delete there a/x", "delete there a", "copy there a"]


def test_a_folder_here_that_is_a_file_there_comes_back_whole_once_it_changes() -> None:
    known = {"a": Known(FOLDER, FOLDER), "a/x": Known(OLD, OLD), "a/y": Known(OLD, OLD)}
    assert planned({"a": FOLDER, "a/x": OLD, "a/y": OLD}, {"a": OLD}, known) == []
    changed = planned({"a": FOLDER, "a/x": NEW, "a/y": OLD}, {"a": OLD}, known)
    assert deeds(changed) == [*CONFLICT, "copy there a/x", "copy there a/y"]


def test_what_could_not_be_seen_is_left_alone() -> None:
    known = {path: Known(OLD, OLD) for path in ("d/a", "e/a", "x")}
    local = Listing(entries={}, unknown={"d": "Permission denied"}, left_out={"x": "it is a socket"})
    host = Listing(entries={"d/a": OLD, "x": OLD}, unknown={"e": "Permission denied"})
    assert plan(local, host, known, PlanTerms(host="lab", stamp=STAMP)) == []
    nothing_here = Listing(unknown={"": "no such folder"})
    assert plan(nothing_here, host, known, PlanTerms(host="lab", stamp=STAMP)) == []


def test_a_listing_that_is_not_whole_deletes_nothing() -> None:
    known = {"a": Known(OLD, OLD), "b": Known(OLD, OLD)}
    assert planned({"a": OLD}, {}, known, is_whole=False, is_both=True, pulls=lambda path: True) == []


def test_a_lost_memory_deletes_nothing() -> None:
    assert planned({}, {"a": OLD}, {}) == []
    assert deeds(planned({"b": OLD}, {"a": OLD}, {}, is_both=True)) == ["copy there b"]


def test_two_names_that_are_one_here_stay_two_there() -> None:
    found = planned(
        {"readme": OLD}, {"README": OLD, "readme": OLD}, {"readme": Known(OLD, OLD)}, is_both=True,
        pulls=lambda path: True, folds_case=True,
    )  # fmt: skip
    assert deeds(found) == ["tell README"]
    assert found[0].words == "README stays on lab: this machine takes its name for that of readme"


def test_a_machine_without_the_bit_leaves_it_as_it_is_there() -> None:
    assert deeds(planned({"a": NEW}, {"a": RUN}, {}, same={"a": True}, has_modes=False)) == ["remember a"]


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("model.py", f"model.changed-on-lab-{STAMP}.py"),
        ("a/b.tar.gz", f"a/b.tar.changed-on-lab-{STAMP}.gz"),
        (".env", f".env.changed-on-lab-{STAMP}"),
        ("Makefile", f"Makefile.changed-on-lab-{STAMP}"),
    ],
)
def test_a_name_says_what_was_kept(path: str, kept: str) -> None:
    assert beside_name(path, host="lab", stamp=STAMP) == kept


def test_a_name_that_is_taken_gets_a_number() -> None:
    host = {"a": LONG, KEPT: OLD}
    assert deeds(planned({"a": OLD}, host, {}))[0] == f"keep beside a > a.changed-on-lab-{STAMP}-2"


@given(st.text(min_size=1, max_size=255).filter(lambda name: "/" not in name and "\0" not in name))
def test_a_name_fits_into_a_folder(name: str) -> None:
    kept = beside_name(name, host="lab", stamp=STAMP)
    assert len(to_bytes(kept.encode("utf-8", "ignore").decode())) <= 255
    assert f".changed-on-lab-{STAMP}" in kept


def test_big_files_are_named_the_biggest_first_and_only_what_is_new() -> None:
    sizes = {"a": 5, "b": 50, "c": 30, "d": 11}
    local = {name: Entry(Kind.FILE, size, 1) for name, size in sizes.items()}
    actions = planned(local, {}, {})
    assert [action.path for action in big_copies(actions, 10, known={})] == ["b", "c", "d"]
    assert [action.path for action in big_copies(actions, 100, known={})] == []
    # None is big alone, and all are together.
    many = planned({str(n): Entry(Kind.FILE, 10, 1) for n in range(11)}, {}, {})
    assert len(big_copies(many, 10, known={})) == 11
    before = Entry(Kind.FILE, 49, 0)
    assert [action.path for action in big_copies(actions, 10, known={"b": Known(before, before)})] == ["c", "d"]


PATHS = st.sampled_from(["a", "b", "a/x", "a/x/y", "b/z"])
ENTRIES = st.sampled_from([OLD, NEW, NEWER, LONG, RUN, LINK, FOLDER])


@given(
    st.dictionaries(PATHS, ENTRIES),
    st.dictionaries(PATHS, ENTRIES),
    st.dictionaries(PATHS, ENTRIES),
    st.booleans(),
    st.booleans(),
)
def test_whatever_comes_nothing_is_lost_that_was_not_known(
    local: Side, host: Side, known: Side, is_both: bool, same: bool
) -> None:
    before = {path: Known(entry, entry) for path, entry in known.items()}
    actions = planned(
        local, host, before, is_both=is_both, pulls=lambda path: True, same=dict.fromkeys({*local, *host}, same)
    )
    kept = {action.path for action in actions if action.deed is Deed.KEEP_BESIDE}
    for action in actions:
        entry = host.get(action.path)
        if action.deed is Deed.DELETE_THERE:
            assert entry == known.get(action.path) or entry == FOLDER
        if action.deed is Deed.COPY_THERE and entry is not None and entry != FOLDER:
            is_room = any(f"{action.path}/".startswith(f"{path}/") for path in kept)
            assert is_room or entry == known.get(action.path)
        if action.deed is Deed.DELETE_HERE:
            assert local[action.path] in (known.get(action.path), FOLDER)
        if action.deed is Deed.COPY_HERE and action.path in local:
            assert local[action.path] in (known.get(action.path), FOLDER)
