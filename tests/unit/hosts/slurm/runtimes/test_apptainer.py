"""hosts/slurm/runtimes/apptainer.py: its command lines."""

from __future__ import annotations

import pytest

from kernelbridge.config.schema import Mount
from kernelbridge.errors import ConfigInvalid
from kernelbridge.hosts.slurm.runtimes import apptainer, pyxis, spec
from kernelbridge.hosts.slurm.runtimes.spec import JobRuntime
from tests.unit.hosts.slurm.runtimes.test_spec import MOUNTS, made


def test_apptainer_is_a_contained_child_with_our_folder() -> None:
    assert apptainer.run_argv(made(mounts=MOUNTS, workdir="/w")) == [
        "apptainer",
        "--silent",
        "exec",
        "--containall",
        f"--bind={spec.NODE_FOLDER}/run:/run/kernelbridge",
        f"--bind={spec.NODE_FOLDER}/journal:/var/lib/kernelbridge",
        f"--workdir={spec.NODE_FOLDER}/work",
        "--nv",
        "--bind=/home/ada/data:/data:ro",
        "--bind=/scratch:/s:rw",
        "--pwd=/w",
        "docker://a/b:1",
        "python3",
        "-c",
        "boot",
    ]


def test_apptainer_without_gpus_or_network() -> None:
    words = apptainer.run_argv(made(gpus=0, network="none"))
    assert "--nv" not in words
    assert words[words.index("--net") + 1] == "--network=none"


def test_apptainer_joins_with_the_same_folder_and_no_mount_of_the_users() -> None:
    words = apptainer.join_argv(made(mounts=MOUNTS), ["bridge"])
    assert words[-3:] == ["--pwd=/", "docker://a/b:1", "bridge"]
    assert not [word for word in words if "scratch" in word]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("pytorch/pytorch:2", "docker://pytorch/pytorch:2"),
        ("/shared/a.sif", "/shared/a.sif"),
        ("oras://ghcr.io/a/b:1", "oras://ghcr.io/a/b:1"),
    ],
)
def test_apptainer_takes_paths_and_uris_as_they_are(image: str, expected: str) -> None:
    assert apptainer.image_word(image) == expected


@pytest.mark.parametrize("runtime", [apptainer, pyxis])
def test_a_volume_is_refused_where_there_are_none(runtime: JobRuntime) -> None:
    with pytest.raises(ConfigInvalid, match="has no volumes; mount a folder of the host"):
        runtime.run_argv(made(mounts=(Mount(source="models", target="/m"),)))


@pytest.mark.parametrize("runtime", [apptainer, pyxis])
def test_a_mount_that_a_list_of_mounts_cannot_hold_is_refused(runtime: JobRuntime) -> None:
    with pytest.raises(ConfigInvalid, match="comma"):
        runtime.run_argv(made(mounts=(Mount(source="/a,b", target="/s"),)))
