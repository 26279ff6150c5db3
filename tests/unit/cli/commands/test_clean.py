"""cli/commands/clean.py: what nobody uses is removed, or only told; kernels, or images."""

from __future__ import annotations

import json

from tests.fakes import FakeFleet, row
from tests.printed import lines_of
from tests.unit.cli.commands.test_images import image_row
from tests.unit.cli.commands.test_kernels import FIRST, REFUSED, SECOND
from tests.unit.cli.conftest import Call, Ended


def test_clean_removes_what_nobody_uses(call: Call, fleet: FakeFleet) -> None:
    orphan = row(FIRST, is_orphan=True)
    fleet.rows = [orphan, row(SECOND)]
    ended = call("clean", "--dry-run")
    assert "aabb1111-000" in ended.out
    assert ended.out.endswith("These would be removed.\n")
    assert len(fleet.rows) == 2
    assert json.loads(call("clean", "--dry-run", "--json").out)["kernels"][0]["kernel_id"] == FIRST
    assert call("clean").out.endswith("These were removed.\n")
    assert [kernel.kernel_id for kernel in fleet.rows] == [SECOND]
    assert call("clean") == Ended(code=0, out="Nothing to remove.\n", err="")


def test_clean_leaves_output_that_nobody_took_and_discards_it_only_if_told_so(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST, is_orphan=True, undelivered_bytes=1_000_000)]
    ended = call("clean")
    assert ended.code == 59
    assert "has output that nobody has fetched yet" in ended.err
    assert len(fleet.rows) == 1
    assert call("clean", "--discard").code == 0
    assert fleet.rows == []


def test_clean_tells_of_a_host_that_does_not_answer_and_fails(call: Call, fleet: FakeFleet) -> None:
    fleet.problems = (REFUSED,)
    assert call("clean") == Ended(code=20, out="", err="\n".join([*lines_of(REFUSED), ""]))
    fleet.rows = [row(FIRST, is_orphan=True)]
    told = call("clean", "--json")
    assert told.code == 20
    assert [kernel["kernel_id"] for kernel in json.loads(told.out)["kernels"]] == [FIRST]
    assert json.loads(told.out)["problems"][0]["sentence"] == REFUSED.sentence


def test_clean_tells_what_was_left_by_images_that_were_never_finished(call: Call, fleet: FakeFleet) -> None:
    fleet.unfinished = ("kernelbridge-work-1 on lab",)
    said = "left by images that were never finished: kernelbridge-work-1 on lab.\n"
    assert call("clean").out == f"No kernel to remove.\nRemoved too, {said}"
    assert call("clean", "--dry-run").out.endswith(f"Would be removed too, {said}")
    assert json.loads(call("clean", "--json").out)["unfinished"] == ["kernelbridge-work-1 on lab"]


def test_clean_of_images_removes_no_kernel_and_no_snapshot_unless_told_so(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST, is_orphan=True)]
    fleet.images = [image_row("made:1"), image_row("team/model:2", kind="snapshot", is_ours=True)]
    ended = call("clean", "--images", "--dry-run")
    assert "made:1" in ended.out
    assert "These would be removed.\n" in ended.out
    assert ended.out.endswith("Snapshots that no environment is made of: team/model:2. `--discard` removes them too.\n")
    assert len(fleet.images) == 2
    told = json.loads(call("clean", "--images", "--json").out)
    assert ([one["name"] for one in told["images"]], [one["name"] for one in told["kept"]]) == (
        ["made:1"],
        ["team/model:2"],
    )
    assert call("clean", "--images", "--discard").code == 0
    assert (fleet.images, len(fleet.rows)) == ([], 1)
    assert call("clean", "--images") == Ended(code=0, out="Nothing to remove.\n", err="")
    fleet.problems = (REFUSED,)
    assert call("clean", "--images").code == 20
