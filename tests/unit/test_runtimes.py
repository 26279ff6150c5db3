"""What each runtime is told: its whole command line for a plain kernel, and what the options of an environment add."""

from __future__ import annotations

from typing import Any

import pytest

from kernelbridge.environment import Environment, Mount
from kernelbridge.errors import ConfigInvalid
from kernelbridge.host.jobscript import RUNTIMES
from kernelbridge.host.runtime import apptainer, docker, podman, pyxis, spec
from kernelbridge.host.runtime.spec import Runtime, Spec


def made(**keys: Any) -> Spec:
    """A kernel whose environment has these keys."""
    environment = Environment(**{"name": "test", "image": "a/b:1", "gpus": 2, **keys})
    return Spec(
        kernel="k1",
        environment=environment,
        command=("python3", "-c", "boot"),
        wants_gpus=bool(environment.gpus or environment.gres),
        home="/home/ada",
        user_numbers=(1000, 1001),
        labels={"kernelbridge.kernel": "k1"},
    )


MOUNTS = (Mount(source="~/data", target="/data", read_only=True), Mount(source="/scratch", target="/s"))


def test_apptainer_is_a_contained_child_with_our_folder() -> None:
    assert apptainer.run_argv(made(mounts=MOUNTS, workdir="/w")) == [
        "apptainer",
        "--silent",
        "exec",
        "--containall",
        f"--bind={spec.FOLDER}/run:/run/kernelbridge",
        f"--bind={spec.FOLDER}/journal:/var/lib/kernelbridge",
        f"--workdir={spec.FOLDER}/work",
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
        f"--container-mounts={spec.FOLDER}/run:/run/kernelbridge,{spec.FOLDER}/journal:/var/lib/kernelbridge"
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


@pytest.mark.parametrize("runtime", [apptainer, pyxis])
def test_a_mount_that_a_list_of_mounts_cannot_hold_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ConfigInvalid, match="comma"):
        runtime.run_argv(made(mounts=(Mount(source="/a,b", target="/s"),)))


@pytest.mark.parametrize("runtime", RUNTIMES.values())
def test_a_mount_that_only_the_home_makes_forbidden_is_refused(runtime: Runtime) -> None:
    kernel = made(mounts=(Mount(source="~", target="/s"),))
    with pytest.raises(ConfigInvalid, match="whole host"):
        runtime.run_argv(Spec(**{**kernel.__dict__, "home": "/"}))


ENGINE = [
    "--interactive",
    "--name=kernelbridge-k1",
    "--pull=missing",
    "--cap-drop=ALL",
    "--cap-add=CHOWN",
    "--cap-add=DAC_OVERRIDE",
    "--cap-add=FOWNER",
    "--security-opt=no-new-privileges",
    "--network=bridge",
    "--ipc=private",
    "--shm-size=1073741824",
    "--ulimit=core=0:0",
    "--tmpfs=/run/kernelbridge:rw,nosuid,nodev,mode=1777,size=64m",
    "--volume=/var/lib/kernelbridge",
    "--label=kernelbridge.kernel=k1",
    f"--env=NVIDIA_VISIBLE_DEVICES={spec.CARDS}",
    "--entrypoint=python3",
]


def test_podman_stays_in_the_jobs_cgroup_and_with_the_logins_numbers() -> None:
    assert podman.run_argv(made()) == [
        "podman",
        "run",
        "--rm",
        "--cgroups=disabled",
        *ENGINE,
        "--userns=keep-id",
        "--log-driver=none",
        spec.CARD_OPTIONS,
        "a/b:1",
        "-c",
        "boot",
    ]
    assert podman.join_argv(made(), ["bridge"]) == ["podman", "exec", "--interactive", "kernelbridge-k1", "bridge"]


def test_docker_copies_the_jobs_limits_and_is_hardened_as_ever() -> None:
    assert docker.run_argv(made()) == [
        "docker",
        "run",
        "--rm",
        "--init",
        *ENGINE,
        "--pids-limit=4096",
        "--no-healthcheck",
        "--restart=no",
        "--log-driver=local",
        "--log-opt=max-size=4m",
        "--log-opt=max-file=2",
        spec.MEMORY_OPTIONS,
        spec.CPU_OPTIONS,
        f'--gpus="device={spec.CARDS}"',
        "a/b:1",
        "-c",
        "boot",
    ]
    assert docker.join_argv(made(), ["bridge"]) == ["docker", "exec", "--interactive", "kernelbridge-k1", "bridge"]
    assert docker.remove_argv() == ["docker", "rm", "--force", "--volumes", spec.NAME]


@pytest.mark.parametrize("runtime", [podman, docker])
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"ipc": "host"}, ["--ipc=host"]),
        ({"core_dumps": True, "ulimits": {"memlock": (-1, -1)}}, ["--ulimit=memlock=-1:-1"]),
        ({"user": "1:2"}, ["--user=1:2"]),
        ({"groups": ("render",)}, ["--group-add=render"]),
        ({"labels": {"team": "x"}}, ["--label=team=x"]),
        ({"workdir": "/w"}, ["--workdir=/w"]),
        ({"mounts": MOUNTS}, ["--mount=type=bind,source=/home/ada/data,target=/data,readonly"]),
        ({"mounts": (Mount(source='/a,"b', target="/s"),)}, ['--mount=type=bind,"source=/a,""b",target=/s']),
    ],
)
def test_engines_get_what_the_environment_says(runtime: Runtime, keys: dict[str, Any], words: list[str]) -> None:
    argv = runtime.run_argv(made(**keys))
    assert [word for word in words if word not in argv] == []
    if keys.get("core_dumps"):
        assert "--ulimit=core=0:0" not in argv
    if keys.get("ipc") == "host":
        assert not [word for word in argv if word.startswith("--shm-size")]


def test_docker_runs_as_the_login_where_the_environment_says_host() -> None:
    assert {"--user=1000:1001", "--env=HOME=/tmp"} <= set(docker.run_argv(made(user="host")))
    assert "--user=host" not in podman.run_argv(made(user="host"))


@pytest.mark.parametrize("runtime", [podman, docker])
def test_without_gpus_no_card_is_asked_for(runtime: Runtime) -> None:
    words = runtime.run_argv(made(gpus=0))
    assert not [word for word in words if spec.CARD_OPTIONS in word or word.startswith("--gpus")]
    assert f"--env=NVIDIA_VISIBLE_DEVICES={spec.CARDS}" in words


@pytest.mark.parametrize(
    ("name", "network", "expected"),
    [
        ("apptainer", "bridge", False),
        ("apptainer", "none", True),
        ("pyxis", "none", False),
        ("podman", "bridge", True),
        ("podman", "host", False),
        ("docker", "bridge", True),
        ("docker", "host", False),
    ],
)
def test_each_runtime_says_whether_others_can_reach_the_debugger(name: str, network: str, expected: bool) -> None:
    assert RUNTIMES[name].has_own_network(made(network=network).environment) is expected
