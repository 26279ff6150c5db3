"""hosts/docker/images/unfinished_image.py: the containers in which nobody works any more are found and removed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kernelbridge.hosts.backend import ContainerFacts
from kernelbridge.hosts.docker.images import unfinished_image
from kernelbridge.hosts.labels import KERNEL_LABEL, WORK_LABEL, Labels, parse_labels

NOW = 1_800_000_000.0
MINE, DEAD, FOREIGN = "mine", "dead", "foreign"


def work(name: str, worker: str, *, seconds: float = 60.0) -> ContainerFacts:
    labels = {WORK_LABEL: worker}
    return ContainerFacts(id="1", name=name, image="x", labels=labels, state="created", created=NOW - seconds)


FOUND = [
    work("kernelbridge-work-mine", MINE),
    work("kernelbridge-work-dead", DEAD),
    work("kernelbridge-work-foreign", FOREIGN),
    # As old as its process may live on, and nobody makes an image for so long.
    work("kernelbridge-work-old", MINE, seconds=7300),
    work("kernelbridge-work-old-foreign", FOREIGN, seconds=7300),
    # Kernels, also one with an odd id, of images that were made; and a container of somebody else.
    work("kernelbridge-aaaa", "", seconds=7300),
    work("kernelbridge-work-aaaa", "", seconds=7300),
    replace(
        work("kernelbridge-work-k1", DEAD),
        labels={**Labels(kernel="work-k1", environment="torch", owner="m1").to_dict(), WORK_LABEL: DEAD},
    ),
    work("other", DEAD, seconds=7300),
]
LEFT = ["kernelbridge-work-dead", "kernelbridge-work-old", "kernelbridge-work-old-foreign"]


class Bench:
    """An engine with those containers."""

    name = "lab"

    def __init__(self) -> None:
        self.removed: list[str] = []

    @property
    def link(self) -> Bench:
        return self

    async def list(self, label: str) -> list[ContainerFacts]:
        assert label == "kernelbridge.work"
        return FOUND

    async def info(self) -> dict[str, str]:
        return {"SystemTime": "2027-01-15T08:00:00.000000001Z"}

    async def remove(self, name: str) -> None:
        self.removed.append(name)


def test_what_is_left_is_that_of_processes_that_are_gone_and_what_is_too_old() -> None:
    assert unfinished_image.left(FOUND, NOW, DEAD.__eq__) == LEFT


async def test_what_is_left_is_removed_unless_it_is_only_to_be_told() -> None:
    bench = Bench()
    engine: Any = bench
    assert await unfinished_image.sweep(engine, DEAD.__eq__, dry_run=True) == LEFT
    assert bench.removed == []
    assert await unfinished_image.sweep(engine, DEAD.__eq__) == LEFT
    assert bench.removed == LEFT


def test_it_is_no_kernel_whatever_its_image_says() -> None:
    of_image = Labels(kernel="aaaa", environment="torch", owner="m1").to_dict()
    assert parse_labels("kernelbridge-work-1", {**of_image, WORK_LABEL: MINE}) is None
    assert KERNEL_LABEL not in FOUND[0].labels
