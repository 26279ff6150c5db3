"""cli/commands/images.py: a snapshot is made and said how to use; the images of all hosts in a table."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from kernelbridge.fleet.images import ImageRow
from tests.fakes import FakeFleet, row
from tests.unit.cli.commands.test_kernels import FIRST, REFUSED
from tests.unit.cli.conftest import Call, Ended


def image_row(name: str, **facts: Any) -> ImageRow:
    made_up: dict[str, Any] = {
        "host": "lab",
        "kind": "derived",
        "base": "pytorch/pytorch:2",
        "size_bytes": 7_340_000_000,
        "created": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "last_used": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "environments": (),
        "is_in_use": False,
        "is_ours": False,
        "image_id": f"sha256:{name}",
    }
    return ImageRow(name=name, **{**made_up, **facts})


def test_a_snapshot_is_made_of_one_kernel_and_says_how_it_is_used(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST)]
    made = call("snapshot", "aabb", "team/model:2")
    assert made == Ended(
        code=0, out=f'Made team/model:2 of {FIRST} on lab: `image = "team/model:2"` starts it there.\n', err=""
    )
    assert fleet.snapshots == [(FIRST, "team/model:2")]
    assert call("snapshot", "zz", "team/model:2").code == 52


def test_images_lists_size_use_and_need(call: Call, fleet: FakeFleet) -> None:
    assert call("images") == Ended(code=0, out="No images.\n", err="")
    fleet.images = [
        image_row("made:1", environments=("pytorch", "train"), is_in_use=True),
        image_row("team/model:2", kind="snapshot", is_ours=True),
    ]
    head, first, second = call("images").out.splitlines()
    assert head.split() == ["IMAGE", "HOST", "KIND", "SIZE", "LAST", "USED", "NEEDED", "BY", "MADE", "OF"]
    assert first.split() == ["made:1", "lab", "derived", "7.34", "GB", "now", "pytorch,", "train", "pytorch/pytorch:2"]
    assert second.split()[:3] == ["team/model:2", "lab", "snapshot"]
    listed = json.loads(call("images", "--json").out)
    assert listed["images"][0]["environments"] == ["pytorch", "train"]
    assert listed["images"][1]["created"] == "2026-01-02T03:04:00+00:00"


def test_images_tells_of_a_host_that_does_not_answer(call: Call, fleet: FakeFleet) -> None:
    fleet.problems = (REFUSED,)
    assert (call("images").out, call("images").code) == ("", 20)
    fleet.images = [image_row("made:1")]
    assert call("images").code == 0
