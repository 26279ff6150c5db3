"""census.py: what is said of the kernels of all hosts, what is swept away, and what is kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kernelbridge import census
from kernelbridge.container import Labels
from kernelbridge.errors import HostRefused
from kernelbridge.host.answers import Exited
from kernelbridge.kernel_errors import KernelNotFound
from kernelbridge.processes import process_mark
from tests.made_hosts import DEAD, FIRST, LAB, Engine, Hosts

SECOND = "ccdd2222-0000-4000-8000-000000000002"
REFUSED = "two: two:22 refused the connection."
STATUS: dict[str, Any] = {
    "lacks": "",
    "outcome": None,
    "state": "idle",
    "alone_seconds": None,
    "undelivered_bytes": 0,
    "deadline": None,
    "persist": False,
    "claim": False,
    "owner": None,
    "who": "",
    "held_seconds": 0.0,
}


def ended(code: int, *, hours_ago: float = 1, oom_killed: bool = False) -> Exited:
    at = datetime.now(UTC) - timedelta(hours=hours_ago)
    # As the engine writes it.
    return Exited(code=code, oom_killed=oom_killed, error="", finished_at=f"{at:%Y-%m-%dT%H:%M:%S}.123456789Z")


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


# -- what is said of one


async def test_a_kernel_that_somebody_holds(hosts: Hosts) -> None:
    status = {**STATUS, "state": "busy", "owner": "other:1@1.00:x", "who": "bob@desk", "held_seconds": 60.0}
    hosts.add(status=status)
    row = await hosts.row()
    assert (row.state, row.link, row.held_by, row.is_orphan, row.is_ours) == ("busy", "held", "bob@desk", False, True)
    assert row.since is not None
    assert timedelta(seconds=55) < datetime.now(UTC) - row.since < timedelta(seconds=70)
    assert (row.deadline, row.why, row.undelivered_bytes) == (None, "", 0)


async def test_a_kernel_whose_owner_here_was_killed_a_moment_ago(hosts: Hosts) -> None:
    mark = f"{hosts.records.machine_id()}:{DEAD}:x"
    hosts.add(status={**STATUS, "owner": mark, "who": "ada@laptop", "held_seconds": 60.0})
    row = await hosts.row()
    assert (row.link, row.held_by, row.is_orphan) == ("link lost", "", True)
    living = f"{hosts.records.machine_id()}:{process_mark()}:x"
    hosts.add(status={**STATUS, "owner": living, "who": "ada@laptop"})
    assert (await hosts.row()).link == "held"


@pytest.mark.parametrize(
    ("claim", "left", "link"), [(False, None, "link lost"), (True, None, "detached"), (False, 5.0, "detached")]
)
async def test_a_kernel_that_nobody_holds_was_left_or_lost(
    hosts: Hosts, claim: bool, left: float | None, link: str
) -> None:
    deadline = {"seconds": 3600.0, "why": "lost_grace"}
    status = {**STATUS, "alone_seconds": 60.0, "claim": claim, "deadline": deadline, "undelivered_bytes": 7}
    hosts.add(status=status)
    hosts.remember(left=left, title="train.ipynb")
    row = await hosts.row()
    assert (row.link, row.deadline_key, row.undelivered_bytes, row.title) == (link, "lost_grace", 7, "train.ipynb")
    assert row.deadline is not None and row.deadline > datetime.now(UTC) + timedelta(minutes=59)
    assert row.is_orphan


@pytest.mark.parametrize(
    ("status", "record"), [({"persist": True}, {}), ({}, {"persist": True}), ({}, {"process": process_mark()})]
)
async def test_who_is_to_persist_or_is_held_is_no_orphan(
    hosts: Hosts, status: dict[str, Any], record: dict[str, Any]
) -> None:
    hosts.add(status={**STATUS, "alone_seconds": 60.0, **status})
    hosts.remember(**record)
    assert not (await hosts.row()).is_orphan


async def test_another_installations_kernel_is_nobodys_orphan(hosts: Hosts) -> None:
    hosts.add(owner="another", status=STATUS)
    row = await hosts.row()
    assert (row.is_ours, row.is_orphan, row.owner) == (False, False, "ada@laptop")


async def test_a_relay_that_does_not_answer_is_unknown(hosts: Hosts) -> None:
    hosts.add(status=None)
    row = await hosts.row()
    assert (row.state, row.link, row.since) == ("unknown", "", None)


@pytest.mark.parametrize(
    ("engines_word", "state"),
    [("created", "starting"), ("removing", "stopping"), ("paused", "paused"), ("dead", "exited")],
)
async def test_what_does_not_run_is_said_in_the_engines_place(hosts: Hosts, engines_word: str, state: str) -> None:
    hosts.add(state=engines_word)
    assert (await hosts.row()).state == state


async def test_a_container_that_has_ended_says_how(hosts: Hosts) -> None:
    hosts.add(state="exited", ended=ended(85))
    row = await hosts.row()
    assert (row.state, row.why, row.is_orphan) == ("exited", "nobody joined it", True)


EVENT = {"code": 0, "why": "", "wanted": False, "out_of_memory": False, "last_words": ""}


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({}, ""),
        ({"lacks": "ipykernel"}, "the image has no ipykernel"),
        ({"outcome": {**EVENT, "why": "idle_timeout"}}, "ended by `idle_timeout`"),
        ({"outcome": {**EVENT, "why": "goodbye"}}, "its owner left"),
        ({"outcome": {**EVENT, "why": "delivered"}}, "all its output was delivered"),
        ({"outcome": {**EVENT, "wanted": True, "code": -9}}, "ended on request"),
        ({"outcome": {**EVENT, "out_of_memory": True, "code": -9}}, "out of memory"),
        ({"outcome": {**EVENT, "code": -11}}, "signal SIGSEGV"),
        ({"outcome": {**EVENT, "code": 3}}, "exit code 3"),
    ],
)
def test_why_a_kernel_process_ended_is_said_in_words(status: dict[str, Any], why: str) -> None:
    assert census.why_ended({**STATUS, **status}) == why


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (ended(0), "its owner left"),
        (ended(75), "another kernel had its GPU"),
        (ended(85), "nobody joined it"),
        (ended(137), "killed"),
        (ended(137, oom_killed=True), "out of memory"),
        (ended(143), "stopped"),
        (ended(5), "exit code 5"),
    ],
)
def test_why_a_container_ended_is_said_in_words(how: Exited, why: str) -> None:
    assert census.why_container_ended(how) == why


# -- what is swept away, and what is kept


@pytest.mark.parametrize(
    ("facts", "record", "is_swept"),
    [
        ({"state": "exited", "ended": ended(0)}, {}, True),
        ({"state": "exited", "ended": ended(3)}, {}, False),
        ({"state": "exited", "ended": ended(3, hours_ago=3)}, {}, True),
        ({"state": "exited", "ended": ended(0), "owner": "another"}, {}, False),
        ({"state": "exited", "ended": ended(0)}, {"process": process_mark()}, False),
        ({"state": "running", "status": STATUS}, {"stop_wanted": True}, True),
        # Whoever holds it could not be told: the stop was wanted while its host was away.
        ({"state": "running", "status": STATUS}, {"stop_wanted": True, "process": process_mark()}, True),
        ({"state": "running", "status": STATUS}, {}, False),
    ],
)
@pytest.mark.parametrize("how", ["look", "tidy"])
async def test_what_is_done_with_is_swept_away(
    hosts: Hosts, facts: dict[str, Any], record: dict[str, Any], is_swept: bool, how: str
) -> None:
    hosts.add(**facts)
    hosts.remember(**record)
    if how == "look":
        assert bool(await hosts.rows()) is not is_swept
    else:
        await hosts.census.tidy(hosts.config, LAB)
    assert hosts.lab.removed == ([FIRST] if is_swept else [])
    assert (hosts.records.kernel(FIRST) is None) is is_swept


def test_a_time_that_cannot_be_read_keeps_a_container() -> None:
    labels = Labels(kernel=FIRST, environment="torch", owner="x", keep_exited="")
    assert not census.is_over(ended(3, hours_ago=1000), labels, datetime.now(UTC))


async def test_a_container_that_is_not_ours_by_its_name_is_left_alone(hosts: Hosts) -> None:
    box = hosts.add(state="exited", ended=ended(0))
    hosts.lab.boxes = {"another-name": box}
    assert await hosts.rows() == []
    await hosts.census.tidy(hosts.config, LAB)
    assert hosts.lab.removed == []


async def test_what_was_removed_from_elsewhere_is_forgotten_unless_somebody_makes_it_just_now(hosts: Hosts) -> None:
    hosts.remember(FIRST)
    hosts.remember(SECOND, process=process_mark())
    hosts.remember("away", host="two")
    hosts.remember("other", config="/other.toml")
    hosts.two = None
    assert [row.kernel_id for row in await hosts.rows()] == ["away"]
    assert {record.kernel_id for record in hosts.records.kernels()} == {SECOND, "away", "other"}


# -- hosts that are away


async def test_a_kernel_on_a_host_that_is_away_is_known_still(hosts: Hosts) -> None:
    hosts.two = None
    hosts.remember(host="two", title="train.ipynb")
    listing = await hosts.census.look(hosts.config)
    (row,) = listing.kernels
    assert (row.state, row.host, row.why, row.title, row.is_orphan) == ("unknown", "two", REFUSED, "train.ipynb", False)
    assert [problem.sentence for problem in listing.problems] == [REFUSED]


async def test_a_stop_on_a_host_that_is_away_is_noted_and_carried_out_when_it_is_back(hosts: Hosts) -> None:
    two, hosts.two = Engine(), None
    hosts.add(engine=two, status=STATUS)
    hosts.remember(host="two")
    with pytest.raises(HostRefused) as caught:
        await hosts.census.stop(hosts.config, "aabb")
    assert caught.value.__notes__ == [f"{FIRST} will be stopped when two can be reached again."]
    row = await hosts.row()
    assert (row.state, row.why) == ("stopping", REFUSED)
    hosts.two = two
    assert await hosts.rows() == []
    assert two.removed == [FIRST]


async def test_a_stop_of_what_this_machine_does_not_know_is_not_promised(hosts: Hosts) -> None:
    hosts.add(owner="another", status=STATUS)
    hosts.lab.failure = HostRefused(host="lab", address="lab:22")
    with pytest.raises(HostRefused) as caught:
        await hosts.census.stop(hosts.config, "aabb")
    assert not hasattr(caught.value, "__notes__")


async def test_a_kernel_is_found_by_the_beginning_of_its_id(hosts: Hosts) -> None:
    hosts.add(FIRST, status=STATUS)
    hosts.add("aabb9999", status=STATUS)
    assert (await hosts.census.find(hosts.config, "aabb1")).kernel_id == FIRST
    for prefix in ("aabb", "zz", ""):
        with pytest.raises(KernelNotFound):
            await hosts.census.find(hosts.config, prefix)
    hosts.two = None
    # Not seen is not gone.
    with pytest.raises(HostRefused):
        await hosts.census.find(hosts.config, "zz")
    assert (await hosts.census.stop(hosts.config, "aabb1")).kernel_id == FIRST
    assert hosts.lab.removed == [FIRST]


# -- logs and clean


async def test_logs_come_from_the_relay_and_from_the_engine_when_it_has_ended(hosts: Hosts) -> None:
    box = hosts.add(status=STATUS, log="one\ntwo\nthree\n")
    assert await hosts.census.logs(hosts.config, "aabb", tail_lines=2) == "two\nthree"
    box.state, box.ended = "exited", ended(3)
    assert await hosts.census.logs(hosts.config, "aabb", tail_lines=1) == "three"


async def test_clean_removes_orphans_and_keeps_what_would_be_lost(hosts: Hosts) -> None:
    hosts.add(FIRST, status=STATUS)
    hosts.add(SECOND, status={**STATUS, "undelivered_bytes": 2_000_000})
    hosts.add("eeff", status=None)
    hosts.add("held", status={**STATUS, "owner": "other:1@1.00:x"})
    tried = await hosts.census.clean(hosts.config, dry_run=True, discard=False)
    assert ([row.kernel_id for row in tried.kernels], hosts.lab.removed) == ([FIRST], [])
    done = await hosts.census.clean(hosts.config, dry_run=False, discard=False)
    assert ([row.kernel_id for row in done.kernels], hosts.lab.removed) == ([FIRST], [FIRST])
    assert [problem.sentence for problem in done.problems] == [
        "The kernel ccdd2222-000 on lab has output that nobody took yet (2.0 MB): it stays.",
        "The kernel eeff on lab does not say whether it has output that nobody took: it stays.",
    ]
    rest = await hosts.census.clean(hosts.config, dry_run=False, discard=True)
    assert [row.kernel_id for row in rest.kernels] == [SECOND, "eeff"]
    assert set(hosts.lab.boxes) == {"held"}


async def test_clean_tells_of_what_it_could_not_remove(hosts: Hosts) -> None:
    hosts.add(status=STATUS)
    hosts.lab.failure = HostRefused(host="lab", address="lab:22")
    done = await hosts.census.clean(hosts.config, dry_run=False, discard=False)
    assert (done.kernels, done.problems) == ((), (hosts.lab.failure,))


async def test_a_bug_of_ours_is_not_taken_for_a_host_that_is_away(hosts: Hosts) -> None:
    hosts.add(status={"state": "idle"})
    with pytest.raises(KeyError):
        await hosts.rows()


def test_a_census_says_whose_it_is(hosts: Hosts) -> None:
    assert repr(hosts.census) == f"<Census of {hosts.records.machine_id()}>"
