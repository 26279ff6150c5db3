"""cli/commands/gpus.py, listings/gpu_rows.py: what `gpus` prints, once and again and again, and what it ends with."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from kernelbridge.cli.context import CliContext
from kernelbridge.cli.listings import gpu_view
from kernelbridge.errors import HostRefused, HostUnreachable
from kernelbridge.fleet.gpu_listing import GpuListing, GpuRow, GpuState, NodeRow, WaitRow
from kernelbridge.hosts.gpus.nvidia_smi import GpuProcess
from tests.fakes import FakeFleet
from tests.printed import lines_of
from tests.unit.cli.conftest import Call, Ended

KERNEL = "aabb1111-0000-4000-8000-000000000001"
REFUSED = HostRefused(host="two", address="two:22")
DOWN = HostUnreachable(host="lab", address="lab:22", reason="timed out")
LONG_AGO = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
THEN = f"{LONG_AGO.astimezone():%d %b %H:%M}"
FOREIGN = GpuProcess(pid=4242, name="python", kind="C", memory_mib=61420, user="bob", seconds=11111)
LEASE: dict[str, Any] = {"state": GpuState.LEASED, "kernel_id": KERNEL, "environment": "pytorch", "owner": "ada@laptop"}
LEASE |= {"since": LONG_AGO}


def gpu(index: str = "0", **facts: Any) -> GpuRow:
    made_up: dict[str, Any] = {"host": "lab", "uuid": f"GPU-{index}", "name": "NVIDIA H200", "memory_mib": 143771}
    made_up |= {"used_mib": 4, "utilization": 0, "driver": "570.133.20", "cuda": "12.8", "state": GpuState.FREE}
    return GpuRow(index=index, **{**made_up, **facts})


WAITS = WaitRow(host="lab", kernel_id=KERNEL, who="eve@lap", since=LONG_AGO, awake=True, wanted="2 GPUs")
NODE = NodeRow(
    host="hpc", node="n1", state="mixed", partitions=("main", "short"), gpus_total={"h200": 8}, gpus_used={"h200": 3}
)


def test_gpus_shows_each_gpu_on_a_line_with_who_has_it(call: Call, fleet: FakeFleet) -> None:
    busy = gpu("1", state=GpuState.BUSY, processes=(FOREIGN,), used_mib=61440, utilization=97)
    fleet.listings = [GpuListing(gpus=(gpu(), busy, gpu("2", **LEASE), gpu(host="two", driver="", utilization=None)))]
    ended = call("gpus")
    heading, *lines = ended.out.splitlines()
    assert heading.split() == ["HOST", "GPU", "NAME", "MEMORY", "LOAD", "USED", "BY", "SINCE", "DRIVER"]
    assert [" ".join(line.split()) for line in lines] == [
        "lab 0 NVIDIA H200 0.0 of 140.4 GiB 0 % free - 570.133.20, CUDA 12.8",
        "lab 1 NVIDIA H200 60.0 of 140.4 GiB 97 % process 4242 (python) of bob since 3 h -",
        f"lab 2 NVIDIA H200 0.0 of 140.4 GiB 0 % pytorch of ada@laptop (aabb1111-000) {THEN}",
        "two 0 NVIDIA H200 0.0 of 140.4 GiB - free -",
    ]
    assert (ended.code, ended.err) == (0, "")
    assert fleet.is_closed


def test_mig_devices_stand_below_their_card(call: Call, fleet: FakeFleet) -> None:
    device = gpu("0:1", name="NVIDIA A100 MIG 2g.20gb", parent="GPU-0", utilization=None, memory_mib=0)
    fleet.listings = [GpuListing(gpus=(gpu(name="NVIDIA A100", state=GpuState.SPLIT), device))]
    _, card, below = call("gpus").out.splitlines()
    assert "in MIG mode" in card
    assert below.index("MIG 2g.20gb") == card.index("NVIDIA A100") + 2
    assert "not told" in below


def test_clusters_and_queues_have_tables_of_their_own(call: Call, fleet: FakeFleet) -> None:
    asleep = WaitRow(host="lab", kernel_id="k2", who="", since=None, awake=False)
    nothing = NodeRow(host="hpc", node="n2", state="down", partitions=("main",), gpus_total={}, gpus_used={})
    plain = NodeRow(host="hpc", node="n3", state="idle", partitions=("main",), gpus_total={"": 4}, gpus_used={})
    fleet.listings = [GpuListing(nodes=(NODE, nothing, plain), waiting=(WAITS, asleep))]
    nodes, queue = ([" ".join(line.split()) for line in part.splitlines()] for part in call("gpus").out.split("\n\n"))
    assert nodes == [
        "HOST NODE STATE PARTITIONS GPUS IN USE",
        "hpc n1 mixed main,short 3 of 8 h200",
        "hpc n2 down main -",
        "hpc n3 idle main 0 of 4",
    ]
    assert queue == [
        "WAITS FOR KERNEL OWNER WANTS SINCE SIGN OF LIFE",
        f"lab aabb1111-000 eve@lap 2 GPUs {THEN} yes",
        "lab k2 - - - none: passed over",
    ]


def test_hosts_without_gpus_are_named(call: Call, fleet: FakeFleet) -> None:
    assert call("gpus") == Ended(code=0, out="No GPUs.\n", err="")
    fleet.listings = [GpuListing(bare=("lab", "here"), problems=(REFUSED,))]
    assert call("gpus") == Ended(code=0, out="No GPU: lab, here.\n", err="\n".join([*lines_of(REFUSED), ""]))


@pytest.mark.parametrize(
    ("problems", "code"),
    [((REFUSED,), 0), ((REFUSED, DOWN), 0), ((REFUSED, DOWN, REFUSED), 20), ((DOWN, REFUSED, REFUSED), 22)],
)
def test_gpus_fails_only_if_no_host_at_all_could_be_asked(
    call: Call, fleet: FakeFleet, problems: tuple[HostRefused, ...], code: int
) -> None:
    fleet.listings = [GpuListing(problems=problems)]
    ended = call("gpus")
    assert (ended.code, ended.out) == (code, "")
    assert call("gpus", "--json").code == code
    # A card was seen, though its driver has a word to say.
    fleet.listings = [GpuListing(gpus=(gpu(),), problems=problems)]
    assert call("gpus").code == 0


def test_gpus_as_json_has_every_fact(call: Call, fleet: FakeFleet) -> None:
    fleet.listings = [GpuListing(gpus=(gpu(**LEASE),), nodes=(NODE,), waiting=(WAITS,), bare=("here",))]
    whole = json.loads(call("gpus", "--json").out)
    assert whole["gpus"] == [
        {
            "host": "lab",
            "index": "0",
            "uuid": "GPU-0",
            "name": "NVIDIA H200",
            "memory_mib": 143771,
            "used_mib": 4,
            "utilization": 0,
            "driver": "570.133.20",
            "cuda": "12.8",
            "parent": "",
            "state": "leased",
            "kernel_id": KERNEL,
            "environment": "pytorch",
            "owner": "ada@laptop",
            "since": "2026-01-02T03:04:00+00:00",
            "processes": [],
            "also_on": [],
        }
    ]
    assert whole["nodes"][0]["gpus_used"] == {"h200": 3}
    assert whole["waiting"][0]["awake"] is True
    assert (whole["bare"], whole["problems"]) == (["here"], [])


def test_names_of_others_bring_no_control_characters_to_the_terminal(call: Call, fleet: FakeFleet) -> None:
    evil = "\x1b]0;evil\x07[bold]x[/bold]"
    process = GpuProcess(pid=1, name=evil, kind="C", memory_mib=1, user=evil)
    rows = (gpu(state=GpuState.BUSY, processes=(process,)), gpu("1", **{**LEASE, "owner": evil}))
    fleet.listings = [GpuListing(gpus=rows)]
    out = call("gpus").out
    assert "\x1b" not in out
    assert out.count("?]0;evil?[bold]x[/bold]") == 3


# -- again and again


def test_watch_goes_on_until_ctrl_c_and_past_a_question_that_nobody_answered(call: Call, fleet: FakeFleet) -> None:
    fleet.listings = [GpuListing(gpus=(gpu(),)), REFUSED, GpuListing(gpus=(gpu(**LEASE),)), KeyboardInterrupt()]
    ended = call("gpus", "--watch", "0.1")
    assert ended.code == 0
    assert [word in ended.out for word in ("free", "ada@laptop", "Traceback")] == [True, True, False]
    assert ended.out.count("HOST") == 2
    assert ended.err.splitlines() == lines_of(REFUSED)
    assert fleet.is_closed


def test_watch_as_json_is_a_document_on_each_line(call: Call, fleet: FakeFleet) -> None:
    fleet.listings = [GpuListing(), GpuListing(gpus=(gpu(),)), GpuListing(problems=(DOWN,)), KeyboardInterrupt()]
    ended = call("gpus", "--watch", "0.1", "--json")
    assert (ended.code, ended.err) == (0, "")
    first, second, third = (json.loads(line) for line in ended.out.splitlines())
    assert (first["gpus"], second["gpus"][0]["uuid"], third["problems"][0]["exit_code"]) == ([], "GPU-0", 22)


def test_seconds_without_watch_are_refused(call: Call) -> None:
    assert call("gpus", "2").code == 2
    assert call("gpus", "--watch", "0").code == 2


def test_watch_redraws_a_terminal_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    session = CliContext(open_fleet=FakeFleet().open, environ={})  # type: ignore[arg-type]
    drawn = StringIO()
    session.out = Console(file=drawn, force_terminal=True, width=160, height=50)
    fleet = FakeFleet(listings=[GpuListing(gpus=(gpu(),), bare=("here",)), GpuListing(problems=(REFUSED,))])
    fleet.listings += [GpuListing(), KeyboardInterrupt()]
    gpu_view.watch(session, lambda: fleet.run(fleet.list_gpus(), 1), 0.1, as_json=False)
    for text in ("NVIDIA H200", "No GPU: here.", REFUSED.sentence, "No GPUs.", "\x1b[2K"):
        assert text in drawn.getvalue()
