"""kernel/start/gpu_holders.py: who holds which GPUs by labels. Relays that hold none any more: test_gpu_listing.py."""

from __future__ import annotations

import pytest

from kernelbridge.hosts.backend import ContainerFacts
from kernelbridge.hosts.labels import Labels, container_name
from kernelbridge.kernel.start.gpu_holders import holdings

KERNEL = "0d0c9d3e-0000-4000-8000-000000000001"


def container(state: str, gpus: str = "GPU-1,GPU-2") -> ContainerFacts:
    labels = Labels(kernel=KERNEL, environment="torch", owner="m", user="ada@laptop", image="x", gpus=gpus)
    return ContainerFacts(
        id="c", name=container_name(KERNEL), image="x", labels=labels.to_dict(), state=state, created=0.0
    )


@pytest.mark.parametrize(
    ("state", "held", "claimed"),
    [
        ("running", ["GPU-1", "GPU-2"], set()),
        ("paused", ["GPU-1", "GPU-2"], set()),
        ("created", [], {"GPU-1", "GPU-2"}),
        ("exited", [], set()),
    ],
)
def test_what_runs_holds_and_what_is_only_made_is_about_to(state: str, held: list[str], claimed: set[str]) -> None:
    found, about = holdings([container(state)])
    assert [gpu for one in found for gpu in one.gpus] == held
    assert about == claimed


def test_what_was_given_back_is_held_by_nobody() -> None:
    assert holdings([container("running"), container("running", gpus="")], but=[KERNEL]) == ([], set())
