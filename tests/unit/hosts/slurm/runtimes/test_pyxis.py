"""hosts/slurm/runtimes/pyxis.py: its command lines."""

from __future__ import annotations

import pytest

from kernelbridge.hosts.slurm.runtimes import pyxis, spec
from tests.unit.hosts.slurm.runtimes.test_spec import MOUNTS, made


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("pytorch/pytorch:2", "pytorch/pytorch:2"),
        ("nvcr.io/nvidia/pytorch:25.09-py3", "nvcr.io#nvidia/pytorch:25.09-py3"),
        ("docker://nvcr.io/a:1", "nvcr.io#a:1"),
        ("nvcr.io#a:1", "nvcr.io#a:1"),
        ("localhost:5000/a", "localhost:5000#a"),
        ("ubuntu", "ubuntu"),
        ("/shared/a.sqsh", "/shared/a.sqsh"),
    ],
)
def test_pyxis_wants_a_hash_behind_the_registry(image: str, expected: str) -> None:
    assert pyxis.image_word(image) == expected


def test_pyxis_is_a_step_of_the_job() -> None:
    assert pyxis.run_argv(made(mounts=MOUNTS, workdir="/w")) == [
        "srun",
        "--overlap",
        "--nodes=1",
        "--ntasks=1",
        "--mpi=none",
        "--quiet",
        "--unbuffered",
        "--container-image=a/b:1",
        "--container-name=kernelbridge-k1",
        f"--container-mounts={spec.NODE_FOLDER}/run:/run/kernelbridge,{spec.NODE_FOLDER}/journal:/var/lib/kernelbridge"
        ",/home/ada/data:/data:ro,/scratch:/s",
        "--no-container-mount-home",
        "--container-writable",
        "--no-container-entrypoint",
        "--container-env=NVIDIA_VISIBLE_DEVICES,CUDA_VISIBLE_DEVICES",
        "--container-workdir=/w",
        "python3",
        "-c",
        "boot",
    ]
    assert pyxis.join_argv(made(), ["bridge"])[1] == f"--jobid={spec.JOB}"
    assert pyxis.remove_argv() == ["enroot", "remove", "--force", f"pyxis_{spec.NAME}"]
