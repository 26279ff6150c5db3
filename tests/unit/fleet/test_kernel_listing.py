"""fleet/kernel_listing.py: what is said of the kernels of all hosts, what is swept away, and what is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.errors import EngineFailed, HostRefused, KernelBridgeError, KernelEnded, KernelNotFound
from kernelbridge.fleet import kernel_listing
from kernelbridge.hosts.backend import Exited
from kernelbridge.hosts.labels import Labels
from kernelbridge.kernel.process_mark import own_mark, owner_text
from kernelbridge.protocol.handshake import Status
from tests.made_hosts import DEAD, FIRST, LAB, Engine, Hosts

SECOND = "ccdd2222-0000-4000-8000-000000000002"
REFUSED = "two: two:22 refused the connection."
STATUS: dict[str, Any] = {
    "launch": 1,
    "ready": True,
    "info": {},
    "running": None,
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


# As another machine with this home writes it, and another container of this one.
ELSEWHERE = "a.b.c.d.1"


@pytest.mark.parametrize(
    ("owner", "is_elsewhere"),
    [
        pytest.param(owner_text("m", own_mark(), "x"), False, id="here"),
        # Killed a moment ago, as far as is known here: whether the line is there is for the relay to say.
        pytest.param(f"m:{DEAD}:x", False, id="by the first release"),
        pytest.param(f"m:{DEAD}:x~{own_mark().birth}1", False, id="by a process that has ended"),
        pytest.param(f"m:{DEAD}:x~{ELSEWHERE}", True, id="elsewhere"),
        pytest.param("of a newer kind", True, id="by who knows whom"),
    ],
)
@pytest.mark.parametrize("record", [{}, {"left": 5.0, "process": ""}, {"birth": ELSEWHERE}])
async def test_a_relay_that_hears_somebody_is_held_whatever_is_known_here(
    hosts: Hosts, owner: str, is_elsewhere: bool, record: dict[str, Any]
) -> None:
    hosts.add(status={**STATUS, "owner": owner, "who": "ada@laptop", "held_seconds": 60.0})
    hosts.remember(**record)
    row = await hosts.row()
    assert (row.link, row.held_by, row.is_orphan) == ("held", "ada@laptop", False)
    assert row.is_elsewhere is is_elsewhere
    cleaned = await hosts.census.clean(hosts.config, dry_run=False, discard=True)
    assert (cleaned.kernels, cleaned.problems, hosts.lab.removed) == ((), (), [])


@pytest.mark.parametrize("is_remembered", [True, False])
async def test_what_another_machine_held_is_left_to_it(hosts: Hosts, is_remembered: bool) -> None:
    hosts.add(status={**STATUS, "alone_seconds": 3600.0}, birth=ELSEWHERE)
    if is_remembered:
        hosts.remember(birth=ELSEWHERE)
    row = await hosts.row()
    assert (row.link, row.is_ours, row.is_orphan, row.is_elsewhere) == ("link lost", True, False, True)
    assert (await hosts.census.clean(hosts.config, dry_run=False, discard=True)).kernels == ()
    # It has left it in good order since.
    hosts.remember(birth=ELSEWHERE, process="", left=5.0)
    assert (await hosts.row()).is_orphan


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
    ("status", "record"), [({"persist": True}, {}), ({}, {"persist": True}), ({}, {"process": own_mark().process})]
)
async def test_who_is_to_persist_or_is_held_is_no_orphan(
    hosts: Hosts, status: dict[str, Any], record: dict[str, Any]
) -> None:
    hosts.add(status={**STATUS, "alone_seconds": 60.0, **status})
    hosts.remember(**record)
    assert not (await hosts.row()).is_orphan


async def test_who_was_started_without_protections_is_marked(hosts: Hosts) -> None:
    box = hosts.add(status=STATUS)
    assert not (await hosts.row()).is_unsafe
    box.labels["kernelbridge.unsafe"] = "true"
    assert (await hosts.row()).is_unsafe


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


EVENT = {"launch": 1, "code": 0, "why": "", "wanted": False, "out_of_memory": False, "last_words": ""}


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
    assert kernel_listing.why_ended(Status.from_dict({**STATUS, **status})) == why


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
    assert kernel_listing.why_container_ended(how) == why


# -- what is swept away, and what is kept


@pytest.mark.parametrize(
    ("facts", "record", "is_swept"),
    [
        ({"state": "exited", "ended": ended(0)}, {}, True),
        ({"state": "exited", "ended": ended(3)}, {}, False),
        ({"state": "exited", "ended": ended(3, hours_ago=3)}, {}, True),
        ({"state": "exited", "ended": ended(0), "owner": "another"}, {}, False),
        # Another machine's process sees to it, unless it has not for long.
        ({"state": "exited", "ended": ended(0)}, {"birth": ELSEWHERE}, False),
        ({"state": "exited", "ended": ended(3)}, {"birth": ELSEWHERE}, False),
        ({"state": "exited", "ended": ended(3, hours_ago=3)}, {"birth": ELSEWHERE}, True),
        ({"state": "exited", "ended": ended(0)}, {"process": own_mark().process}, False),
        ({"state": "running", "status": STATUS}, {"stop_wanted": True}, True),
        # Whoever holds it could not be told: the stop was wanted while its host was away.
        ({"state": "running", "status": STATUS}, {"stop_wanted": True, "process": own_mark().process}, True),
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
    assert not kernel_listing.is_over(ended(3, hours_ago=1000), labels, datetime.now(UTC))


async def test_a_container_that_is_not_ours_by_its_name_is_left_alone(hosts: Hosts) -> None:
    box = hosts.add(state="exited", ended=ended(0))
    hosts.lab.boxes = {"another-name": box}
    assert await hosts.rows() == []
    await hosts.census.tidy(hosts.config, LAB)
    assert hosts.lab.removed == []


async def test_a_container_that_was_renamed_is_named_to_who_looks_for_its_kernel(hosts: Hosts) -> None:
    box = hosts.add(status=STATUS)
    hosts.lab.boxes = {"other": box}
    with pytest.raises(KernelNotFound, match=r"on lab: its container was renamed, and is kernelbridge-other now\."):
        await hosts.census.stop(hosts.config, FIRST[:6])
    assert hosts.lab.removed == []
    box.state = "exited"
    with pytest.raises(KernelNotFound, match=r"on lab, two\."):
        await hosts.census.stop(hosts.config, FIRST[:6])


async def test_what_was_removed_from_elsewhere_is_forgotten_unless_somebody_makes_it_just_now(hosts: Hosts) -> None:
    hosts.remember(FIRST)
    hosts.remember(SECOND, process=own_mark().process)
    hosts.remember("away", host="two")
    hosts.remember("other", config="/other.toml")
    hosts.remember("elsewhere", birth=ELSEWHERE, started=time.time())
    hosts.remember("elsewhere-long-ago", birth=ELSEWHERE, started=time.time() - 40 * 86400)
    hosts.two = None
    assert [row.kernel_id for row in await hosts.rows()] == ["away"]
    assert {record.kernel_id for record in hosts.records.kernels()} == {SECOND, "away", "other", "elsewhere"}


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
    box.log = "one\n1%\r2%\r3%\x0b\ntwo\n"
    assert await hosts.census.logs(hosts.config, "aabb", tail_lines=2) == "1%\r2%\r3%\x0b\ntwo"
    box.log = "one\ntwo\nthree\n"
    box.state, box.ended = "exited", ended(3)
    assert await hosts.census.logs(hosts.config, "aabb", tail_lines=1) == "three"


async def test_the_relay_of_a_kernel_that_runs_is_found_and_one_that_has_ended_is_told(hosts: Hosts) -> None:
    box = hosts.add(status=STATUS)
    address = await hosts.census.running(hosts.config, "aabb")
    assert (address.kernel.startswith("aabb"), address.host) == (True, "lab")
    box.state, box.ended = "exited", ended(3)
    with pytest.raises(KernelEnded, match=r"does not run\. `kernelbridge ps` lists what runs"):
        await hosts.census.running(hosts.config, "aabb")


async def test_containers_that_have_ended_are_not_asked_for_all_at_once(hosts: Hosts) -> None:
    for number in range(100):
        hosts.add(f"aabb1111-0000-4000-8000-{number:012}", state="exited", ended=ended(3))
    under_way, most = 0, 0
    look = hosts.lab.state

    async def slow(name: str) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return await look(name)

    hosts.lab.state = slow  # type: ignore[method-assign]
    listing = await hosts.census.look(hosts.config)
    assert [row.why for row in listing.kernels] == ["exit code 3"] * 100
    assert most == kernel_listing.MOST_QUESTIONS


@pytest.mark.parametrize("way", ["logs", "stop", "find"])
async def test_what_is_done_with_is_found_by_nobody_and_swept_away(hosts: Hosts, way: str) -> None:
    hosts.add(state="exited", ended=ended(0), log="one\n")
    hosts.remember()
    ways: dict[str, Callable[[], Awaitable[object]]] = {
        "logs": lambda: hosts.census.logs(hosts.config, "aabb", tail_lines=1),
        "stop": lambda: hosts.census.stop(hosts.config, "aabb"),
        "find": lambda: hosts.census.find(hosts.config, "aabb"),
    }
    with pytest.raises(KernelNotFound):
        await ways[way]()
    assert (hosts.lab.removed, hosts.records.kernel(FIRST)) == ([FIRST], None)


async def test_a_stop_by_hand_of_what_was_to_be_stopped_is_a_stop(hosts: Hosts) -> None:
    hosts.add(status=STATUS)
    hosts.remember(stop_wanted=True)
    assert (await hosts.census.stop(hosts.config, "aabb")).kernel_id == FIRST
    assert hosts.lab.removed == [FIRST]


async def test_output_that_nobody_has_shown_comes_from_the_relay_alone(hosts: Hosts) -> None:
    box = hosts.add(status=STATUS, left_text="one\n")
    assert await hosts.census.left_output(hosts.config, "aabb") == "one\n"
    box.left_text = None
    with pytest.raises(KernelBridgeError, match="was started by an older kernelbridge") as old:
        await hosts.census.left_output(hosts.config, "aabb")
    assert "`kernelbridge attach aabb1111-000` fetches it." in str(old.value)
    box.state, box.ended = "exited", ended(3)
    with pytest.raises(KernelBridgeError, match="what nobody had fetched went with it"):
        await hosts.census.left_output(hosts.config, "aabb")


# -- several names of one machine


def one_machine(hosts: Hosts, **facts: Any) -> None:
    """Both hosts of the config are the same engine, with a kernel in it."""
    hosts.add(status=STATUS)
    hosts.two = hosts.lab
    hosts.remember(**facts)


@pytest.mark.parametrize(("known_by", "other"), [("lab", "two"), ("two", "lab")])
async def test_a_kernel_on_a_machine_of_two_names_is_listed_once(hosts: Hosts, known_by: str, other: str) -> None:
    one_machine(hosts, host=known_by)
    row = await hosts.row()
    assert (row.host, row.also_on, row.container) == (known_by, (other,), "1")
    assert (await hosts.census.stop(hosts.config, "aabb")).kernel_id == FIRST
    assert hosts.lab.removed == [FIRST]


async def test_it_is_listed_once_while_one_of_the_names_leads_nowhere(hosts: Hosts) -> None:
    one_machine(hosts, host="two")
    hosts.two = None
    listing = await hosts.census.look(hosts.config)
    assert [(row.host, row.also_on, row.state) for row in listing.kernels] == [("lab", ("two",), "idle")]
    assert len(listing.problems) == 1


async def test_clean_removes_it_once(hosts: Hosts) -> None:
    one_machine(hosts)
    done = await hosts.census.clean(hosts.config, dry_run=False, discard=False)
    assert ([row.kernel_id for row in done.kernels], done.problems) == ([FIRST], ())


async def test_two_containers_are_two_kernels_whatever_their_names(hosts: Hosts) -> None:
    hosts.add(status=STATUS)
    assert hosts.two is not None
    hosts.add(status=STATUS, engine=hosts.two, id="2")
    assert [(row.host, row.also_on) for row in await hosts.rows()] == [("lab", ()), ("two", ())]


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
        "The kernel ccdd2222-000 on lab has output that nobody has fetched yet (2.0 MB), so it is kept.",
        "The kernel eeff on lab does not say whether it has output that nobody has fetched yet, so it is kept.",
    ]
    rest = await hosts.census.clean(hosts.config, dry_run=False, discard=True)
    assert [row.kernel_id for row in rest.kernels] == [SECOND, "eeff"]
    assert set(hosts.lab.boxes) == {"held"}


async def test_clean_tells_of_what_it_could_not_remove(hosts: Hosts) -> None:
    hosts.add(status=STATUS)
    hosts.lab.failure = HostRefused(host="lab", address="lab:22")
    done = await hosts.census.clean(hosts.config, dry_run=False, discard=False)
    assert (done.kernels, done.problems) == ((), (hosts.lab.failure,))


GARBAGE: list[Any] = [
    *([], {}, "x", 7, [1], {"state": "idle"}),
    {**STATUS, "deadline": {"seconds": 1e300}},
    {**STATUS, "deadline": {"seconds": "1", "why": "x"}},
    {**STATUS, "undelivered_bytes": "x"},
    {**STATUS, "held_seconds": None},
    {**STATUS, "owner": 5},
    {**STATUS, "gpus": {"ids": [1]}},
    {**STATUS, "outcome": {"code": []}},
]


@pytest.mark.parametrize("said", GARBAGE, ids=str)
async def test_a_kernel_whose_answer_cannot_be_understood_is_unknown_and_the_others_are_listed(
    hosts: Hosts, said: Any
) -> None:
    hosts.add(FIRST, status=said)
    hosts.add(SECOND, status=STATUS)
    assert [(row.kernel_id, row.state) for row in await hosts.rows()] == [(FIRST, "unknown"), (SECOND, "idle")]
    assert (await hosts.census.stop(hosts.config, FIRST)).kernel_id == FIRST
    assert hosts.lab.removed == [FIRST]


@pytest.mark.parametrize("seconds", [1e300, -1e300, 10**12])
async def test_a_deadline_beyond_all_dates_is_shown_as_a_century(hosts: Hosts, seconds: float) -> None:
    hosts.add(status={**STATUS, "deadline": {"seconds": seconds, "why": "max_lifetime"}, "alone_seconds": seconds})
    row = await hosts.row()
    assert (row.state, row.deadline_key) == ("idle", "max_lifetime")


@pytest.mark.parametrize("keep", ["1e15", "1e400", "-1e400", "nan", "x", "", "99" * 500])
async def test_how_long_a_container_is_kept_may_be_any_text(hosts: Hosts, keep: str) -> None:
    box = hosts.add(state="exited", ended=ended(3, hours_ago=1000))
    box.labels["kernelbridge.keep_exited"] = keep
    assert (await hosts.row()).state == "exited"


async def test_no_kernel_is_asked_to_stop_another_or_to_tell_its_log(hosts: Hosts) -> None:
    hosts.add(FIRST, status=STATUS, log="one")
    hosts.add(SECOND, status=STATUS)
    asked: list[str] = []
    ask = hosts.lab.exec_stream

    async def watched(name: str, argv: Any, heard: Any) -> Any:
        asked.append(name)
        return await ask(name, argv, heard)

    hosts.lab.exec_stream = watched  # type: ignore[method-assign]
    assert await hosts.census.logs(hosts.config, FIRST, tail_lines=5) == "one"
    assert asked == [f"kernelbridge-{FIRST}"]
    await hosts.census.stop(hosts.config, FIRST)
    assert asked == [f"kernelbridge-{FIRST}"]


async def test_a_host_that_nobody_foresaw_is_that_hosts_problem(hosts: Hosts) -> None:
    hosts.add(FIRST, status=STATUS)

    class Broken(Engine):
        async def list(self, label: str) -> Any:
            raise RuntimeError("of a test")

    hosts.two = Broken()
    hosts.remember("away", host="two")
    listing = await hosts.census.look(hosts.config)
    assert [(row.kernel_id, row.state) for row in listing.kernels] == [(FIRST, "idle"), ("away", "unknown")]
    assert [problem.sentence for problem in listing.problems] == [
        "two: what it answers cannot be understood (RuntimeError: of a test)."
    ]


async def test_a_container_that_cannot_be_swept_away_is_listed(hosts: Hosts) -> None:
    hosts.add(state="exited", ended=ended(0))
    hosts.lab.failure = EngineFailed(host="lab", action="remove it", reason="it is busy")
    assert (await hosts.row()).state == "exited"


async def test_a_kernel_says_which_release_made_it(hosts: Hosts) -> None:
    hosts.add(status=STATUS).labels["kernelbridge.version"] = "0.0.9"
    assert (await hosts.row()).version == "0.0.9"


def test_a_census_says_whose_it_is(hosts: Hosts) -> None:
    assert repr(hosts.census) == f"<KernelFinder of {hosts.records.machine_id()}>"
