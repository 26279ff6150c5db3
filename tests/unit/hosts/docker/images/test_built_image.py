"""hosts/docker/images/built_image.py: what a host sends of a folder is bounded. Builds themselves: test_build.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.hosts.docker.images.built_image import BuildStep, BuildSteps, FileReceiver


def test_a_folder_of_a_host_fills_no_more_of_this_disk_than_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "received.tar"
    with path.open("wb") as file:
        receiver = FileReceiver(file, most_bytes=10)
        receiver.data_received(b"x" * 10)
        assert not receiver.is_too_long
        assert not receiver.ended.is_set()
        for _ in range(3):
            receiver.data_received(b"x")
        assert receiver.is_too_long
        assert receiver.ended.is_set()
        receiver.closed(None)
    assert path.stat().st_size == 10
    assert receiver.failure is None


def test_a_disk_of_this_machine_that_is_full_ends_what_comes_from_a_host() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        receiver = FileReceiver(file, most_bytes=10)
        receiver.data_received(b"x")
        receiver.data_received(b"x")
    assert receiver.ended.is_set()
    assert receiver.unwritten is not None


@pytest.mark.parametrize(
    ("lines", "steps"),
    [
        (
            ["Step 2/5 : RUN pip install", " ---> Running in 0123", "Collecting numpy", "Step 3/5 : COPY . ."],
            [(2, 5), (2, 5), (2, 5), (3, 5)],
        ),
        # BuildKit works at several at once, and says of each line which it is of.
        (
            ["#1 [internal] load build definition", "#7 [builder 2/4] RUN make", "#8 [2/3] COPY . .", "#7 1.2 cc x.c"],
            [None, (2, 4), (2, 3), (2, 4)],
        ),
        (["#9 exporting to image", "", "#x", "Step x/y : z", "#10 [linux/amd64 1/2] FROM a"], [None] * 5),
    ],
)
def test_a_line_of_a_build_is_of_a_step(lines: list[str], steps: list[tuple[int, int] | None]) -> None:
    found = BuildSteps()
    wanted = [BuildStep(*step) if step else None for step in steps]
    assert [found.of(line) for line in lines] == wanted
