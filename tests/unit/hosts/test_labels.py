"""hosts/labels.py: labels are written and read back, and nobody else's are taken for ours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernelbridge.hosts.labels import container_name, parse_labels, short_id
from tests.unit.hosts.docker.test_container_spec import KERNEL_ID, LABELS


def test_a_short_id_is_the_beginning_of_the_id() -> None:
    assert short_id("aabb1111-0000-4000-8000-000000000001") == "aabb1111-000"


def test_all_our_label_keys_are_written_the_empty_ones_too() -> None:
    assert LABELS.to_dict() == {
        "kernelbridge.kernel": KERNEL_ID,
        "kernelbridge.environment": "pytorch",
        "kernelbridge.owner": "machine-1",
        "kernelbridge.process": "",
        "kernelbridge.birth": "",
        "kernelbridge.user": "ada@laptop",
        "kernelbridge.image": "",
        "kernelbridge.python": "",
        "kernelbridge.version": "",
        "kernelbridge.config": "",
        "kernelbridge.gpus": "",
        "kernelbridge.keep_exited": "",
        "kernelbridge.unsafe": "",
        "kernelbridge.kind": "",
    }


def test_labels_are_read_back_as_they_were_written() -> None:
    whole = replace(
        LABELS, process="12@99", image="sha256:1", version="0.1", config="ab", gpus="GPU-1,GPU-2", kind="run"
    )
    for name in (container_name(KERNEL_ID), f"/{container_name(KERNEL_ID)}"):
        assert parse_labels(name, {"team": "vision", **whole.to_dict()}) == whole


def test_a_container_of_the_first_release_is_ours_without_what_came_later() -> None:
    name, labels = container_name(KERNEL_ID), LABELS.to_dict()
    for later in ("birth", "python", "unsafe", "kind"):
        del labels[f"kernelbridge.{later}"]
    assert parse_labels(name, labels) == LABELS
    for key in set(labels) - {"kernelbridge.kernel"}:
        assert parse_labels(name, {other: value for other, value in labels.items() if other != key}) is None


@pytest.mark.parametrize(
    "kernel_id",
    [
        "3f2a91c0-77d0/../../../../../tmp/victim",
        "..",
        "a..b",
        ".a",
        "-a",
        "a/b",
        "a\\b",
        "a b",
        "a\n",
        "a\0",
        "é",
        "a" * 129,
    ],
)
def test_an_id_that_a_path_could_be_made_of_is_no_kernels(kernel_id: str) -> None:
    labels = replace(LABELS, kernel=kernel_id).to_dict()
    assert parse_labels(container_name(kernel_id), labels) is None
