"""fleet/gpu_listing.py: the GPUs of all hosts with who has them, clusters' nodes, the queues, and hosts that do not
answer.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Config, Host
from kernelbridge.errors import HostRefused, LinkLost
from kernelbridge.fleet import gpu_listing
from kernelbridge.fleet.gpu_listing import GpuListing, GpuRow, GpuState, NodeRow, WaitRow
from kernelbridge.hosts.docker.gpu_queue import read
from kernelbridge.hosts.gpus.nvidia_smi import GpuFacts
from kernelbridge.hosts.slurm import commands
from kernelbridge.hosts.slurm.cluster import Cluster
from tests.made_gpus import KERNEL, NOON, SAMPLES, Engine, box, made_labels, sample, ticket
from tests.unit.hosts.slurm.test_cluster import cluster, said

LAB, TWO = Host(name="lab", ssh="lab"), Host(name="two", ssh="two")
HPC = Host(name="hpc", ssh="hpc", scheduler="slurm")
REFUSED = HostRefused(host="two", address="two:22")
OTHER = "ccdd2222-0000-4000-8000-000000000002"


async def look(**sites: Any) -> GpuListing:
    """What hosts with these engines and clusters have; an exception is what reaching the host brings."""
    known = {host.name: host for host in (LAB, TWO, HPC)}
    config = Config(path=Path("/k.toml"), hosts={name: known[name] for name in sites})

    async def reach(host: Host) -> Any:
        site = sites[host.name]
        if isinstance(site, BaseException):
            raise site
        return site

    return await gpu_listing.look(config, reach)


def states(listing: GpuListing) -> dict[str, str]:
    return {row.index: str(row.state) for row in listing.gpus}


async def test_each_gpu_says_who_has_it() -> None:
    facts = sample("four-h200")
    third = facts.gpus[2].uuid
    listing = await look(lab=Engine(facts=facts, boxes=[box(gpus=f"{third},GPU-gone")]))
    assert states(listing) == {"0": "free", "1": "busy", "2": "leased", "3": "busy"}
    assert listing.gpus[2] == GpuRow(
        host="lab",
        index="2",
        uuid=third,
        name="NVIDIA H200",
        memory_mib=143771,
        used_mib=facts.gpus[2].used_mib,
        utilization=0,
        driver="570.133.20",
        cuda="12.8",
        state=GpuState.LEASED,
        kernel_id=KERNEL,
        environment="pytorch",
        owner="ada@laptop",
        since=NOON,
    )
    assert [process.user for process in listing.gpus[1].processes] == ["bob", "root"]
    assert (listing.nodes, listing.waiting, listing.bare, listing.problems) == ((), (), (), ())


@pytest.mark.parametrize(
    ("state", "expected"),
    [("running", "leased"), ("paused", "leased"), ("created", "free"), ("exited", "free"), ("dead", "free")],
)
async def test_only_a_container_that_runs_has_its_gpus(state: str, expected: str) -> None:
    facts = sample("four-h200")
    listing = await look(lab=Engine(facts=facts, boxes=[box(state=state, gpus=facts.gpus[0].uuid)]))
    assert states(listing)["0"] == expected


async def test_a_kernel_that_has_given_its_gpu_back_has_none_while_its_container_is_kept() -> None:
    facts = sample("four-h200")
    free, busy, held, _ = facts.gpus
    boxes = [
        box(gpus=free.uuid),
        box("k2", gpus=busy.uuid),  # Somebody else computes there now.
        box("k3", gpus=held.uuid),
    ]
    listing = await look(lab=Engine(facts=facts, boxes=boxes, released=[KERNEL, "k2"]))
    assert states(listing) == {"0": "free", "1": "busy", "2": "leased", "3": "busy"}
    assert [row.kernel_id for row in listing.gpus] == ["", "", "k3", ""]


async def test_a_container_that_is_not_ours_or_has_no_gpu_has_none() -> None:
    facts = sample("four-h200")
    named_otherwise = replace(box(gpus=facts.gpus[0].uuid), name="copy-of-it")
    assert states(await look(lab=Engine(facts=facts, boxes=[named_otherwise, box(gpus="")])))["0"] == "free"


@pytest.mark.parametrize("gpus", ["x,", ",", ",,", " ", "x,,y"])
async def test_an_empty_id_among_a_containers_gpus_is_no_card(gpus: str) -> None:
    facts = sample("four-h200")
    assert not any(gpu.parent for gpu in facts.gpus), "a card that is no part of another has an empty parent"
    assert set(states(await look(lab=Engine(facts=facts, boxes=[box(gpus=gpus)]))).values()) <= {"free", "busy"}


async def test_a_split_card_is_nobodys_and_its_mig_devices_have_states_of_their_own() -> None:
    facts = sample("mig-a100")
    card, _, second, *_ = facts.gpus
    listing = await look(lab=Engine(facts=facts, boxes=[box(gpus=second.uuid)]))
    assert states(listing) == {"0": "split", "0:0": "busy", "0:1": "leased", "0:2": "free", "1": "free"}
    assert {row.parent for row in listing.gpus if ":" in row.index} == {card.uuid}
    # A label from before it was split.
    whole = await look(lab=Engine(facts=facts, boxes=[box(gpus=card.uuid)]))
    assert states(whole) == {"0": "split", "0:0": "leased", "0:1": "leased", "0:2": "leased", "1": "free"}
    assert (whole.gpus[0].kernel_id, whole.gpus[1].kernel_id) == ("", KERNEL)


async def test_who_waits_is_told_with_what_it_asks_for_and_whether_it_lives() -> None:
    young, old = NOON + timedelta(minutes=9, seconds=30), NOON + timedelta(minutes=5)
    dead = NOON - timedelta(hours=2)
    queue = [ticket("k3", young, wish='{"number":"all"}'), ticket("k2", old), ticket("k1", dead), ticket("k4", young)]
    queue[3] = replace(queue[3], labels={**queue[3].labels, "kernelbridge.wish": "strange"})
    engine = Engine(facts=sample("gb10"), queue=queue)
    listing = await look(lab=engine)
    assert listing.waiting == (
        WaitRow(host="lab", kernel_id="k2", who="bob@desk", since=old, awake=False, wanted="2 GPUs"),
        WaitRow(host="lab", kernel_id="k3", who="bob@desk", since=young, awake=True, wanted="all GPUs"),
        WaitRow(host="lab", kernel_id="k4", who="bob@desk", since=young, awake=True),
    )
    assert engine.clock_looks == 1
    assert len(read(queue)) == 4


async def test_without_a_queue_the_engines_clock_is_not_asked_for() -> None:
    engine = Engine(facts=sample("gb10"))
    await look(lab=engine)
    assert engine.clock_looks == 0


async def test_a_cluster_tells_its_nodes_and_the_jobs_that_wait() -> None:
    def line(job: str, state: str, submitted: str, kernel: str, comment: str) -> str:
        return f"{job}|kernelbridge-{kernel}|{state}||N/A|1:00:00|{submitted}|Resources|{comment}\n"

    second, first = commands.write_comment(made_labels(OTHER)), commands.write_comment(made_labels())
    queue = line("12", "PENDING", "1767355500", OTHER, second) + line("11", "PENDING", "1767355200", KERNEL, first)
    queue += line("13", "RUNNING", "1767355200", "k3", commands.write_comment(made_labels("k3")))
    queue += line("14", "PENDING", "1767355200", "k4", "somebody's own words")
    nodes = (SAMPLES / "slurm" / "sinfo.txt").read_text()
    site, _, _ = cluster(("squeue", said(queue)), ("sinfo", said(nodes)))
    assert isinstance(site, Cluster)
    listing = await look(hpc=site)
    assert listing.nodes == (
        NodeRow(
            host="hpc",
            node="lab",
            state="mixed",
            partitions=("main", "short", "spare"),
            gpus_total={"": 4},
            gpus_used={"": 4},
        ),
    )
    assert listing.waiting == (
        WaitRow(host="hpc", kernel_id=KERNEL, who="ada@lab", since=NOON, awake=True),
        WaitRow(host="hpc", kernel_id=OTHER, who="ada@lab", since=NOON + timedelta(minutes=5), awake=True),
    )
    assert (listing.gpus, listing.bare) == ((), ())


async def test_two_names_of_one_machine_show_each_card_and_each_wait_once() -> None:
    facts = sample("four-h200")
    waits = ticket("k9", NOON)
    held = box(gpus=facts.gpus[2].uuid)
    same = Engine(facts=facts, boxes=[held], queue=[waits])
    listing = await look(two=same, lab=same)
    assert [(row.host, row.index, row.also_on) for row in listing.gpus] == [
        ("two", str(index), ("lab",)) for index in range(4)
    ]
    assert [(row.host, row.kernel_id, row.also_on) for row in listing.waiting] == [("two", "k9", ("lab",))]
    # Another engine of the machine knows nothing of the lease, nor has it that ticket.
    listing = await look(two=Engine(facts=facts, queue=[ticket("k8", NOON)]), lab=same)
    assert [(row.host, row.state, row.also_on) for row in listing.gpus][1:3] == [
        ("two", "busy", ("lab",)),
        ("lab", "leased", ("two",)),
    ]
    assert [(row.host, row.kernel_id, row.also_on) for row in listing.waiting] == [("two", "k8", ()), ("lab", "k9", ())]
    # Given away twice: both are told.
    listing = await look(two=Engine(facts=facts, boxes=[box("k7", gpus=facts.gpus[2].uuid)]), lab=same)
    assert [(row.host, row.kernel_id) for row in listing.gpus if row.index == "2"] == [("two", "k7"), ("lab", KERNEL)]


async def test_a_kernel_may_wait_on_two_machines() -> None:
    waits = ticket("k9", NOON)
    first, second = (Engine(facts=sample(name), queue=[waits]) for name in ("four-h200", "gb10"))
    listing = await look(two=first, lab=second)
    assert [(row.host, row.also_on) for row in listing.waiting] == [("two", ()), ("lab", ())]


async def test_a_host_that_does_not_answer_takes_nothing_from_the_others() -> None:
    listing = await look(two=REFUSED, lab=Engine(facts=sample("four-h200")))
    assert listing.problems == (REFUSED,)
    assert {row.host for row in listing.gpus} == {"lab"}
    lost = LinkLost(host="lab")
    assert (await look(lab=Engine(failure=lost), two=REFUSED)).problems == (lost, REFUSED)


async def test_an_answer_that_nobody_foresaw_is_that_hosts_problem() -> None:
    listing = await look(lab=ZeroDivisionError("of a test"), two=Engine(facts=sample("four-h200")))
    assert [problem.sentence for problem in listing.problems] == [
        "lab: what it answers cannot be understood (ZeroDivisionError: of a test)."
    ]
    assert len(listing.gpus) == 4


async def test_a_host_without_gpus_is_told_from_one_whose_driver_fails() -> None:
    listing = await look(lab=Engine(), two=Engine(facts=GpuFacts(trouble="No devices were found")))
    assert (listing.gpus, listing.bare) == ((), ("lab",))
    (problem,) = listing.problems
    assert problem.sentence == "two: nvidia-smi does not answer (No devices were found)."
    assert problem.remedy == "Fix the NVIDIA driver of two."


async def test_the_listing_is_plain_json() -> None:
    facts = sample("four-h200")
    engine = Engine(facts=facts, boxes=[box(gpus=facts.gpus[1].uuid)], queue=[ticket("k2", NOON)])
    site, _, _ = cluster(("squeue", said()), ("sinfo", said("n1|idle|main*|gpu:h200:8(S:0-1)|gpu:h200:3(IDX:0-2)|\n")))
    whole = json.loads(json.dumps(gpu_listing.as_json(await look(lab=engine, hpc=site, two=REFUSED))))
    first, second, *_ = whole["gpus"]
    assert (first["state"], first["since"], first["kernel_id"]) == ("free", None, "")
    assert (second["state"], second["since"], second["owner"]) == ("leased", "2026-01-02T12:00:00+00:00", "ada@laptop")
    process = {"pid": 4242, "name": "python", "kind": "C", "memory_mib": 61420, "user": "bob", "seconds": 11111}
    assert second["processes"][0] == process
    (node,) = whole["nodes"]
    assert (node["gpus_total"], node["gpus_used"]) == ({"h200": 8}, {"h200": 3})
    assert [row["kernel_id"] for row in whole["waiting"]] == ["k2"]
    assert whole["problems"] == [{"sentence": REFUSED.sentence, "remedy": REFUSED.remedy, "exit_code": 20}]
    assert whole["bare"] == []
