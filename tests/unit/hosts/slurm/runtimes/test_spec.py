"""hosts/slurm/runtimes/spec.py: what all runtimes have in common."""

from __future__ import annotations

from typing import Any

import pytest

from kernelbridge.config.schema import Environment, Mount
from kernelbridge.errors import ConfigInvalid
from kernelbridge.hosts.slurm.job_script import RUNTIMES
from kernelbridge.hosts.slurm.runtimes import docker, podman, spec
from kernelbridge.hosts.slurm.runtimes.spec import JobRuntime, Spec


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


@pytest.mark.parametrize("runtime", RUNTIMES.values())
def test_a_mount_that_only_the_home_makes_forbidden_is_refused(runtime: JobRuntime) -> None:
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
        ({"mounts": ("models:/m:ro",)}, ["--mount=type=volume,source=models,target=/m,readonly"]),
        ({"mounts": ("./a:/a:ro,z", "/b:/b:Z")}, ["--volume=/home/ada/a:/a:ro,z", "--volume=/b:/b:rw,Z"]),
        ({"tmpfs": ("/s:1g",)}, ["--tmpfs=/s:rw,exec,nosuid,nodev,mode=1777,size=1073741824"]),
        ({"mounts": (Mount(source='/a,"b', target="/s"),)}, ['--mount=type=bind,"source=/a,""b",target=/s']),
    ],
)
def test_engines_get_what_the_environment_says(runtime: JobRuntime, keys: dict[str, Any], words: list[str]) -> None:
    argv = runtime.run_argv(made(**keys))
    assert [word for word in words if word not in argv] == []
    if keys.get("core_dumps"):
        assert "--ulimit=core=0:0" not in argv
    if keys.get("ipc") == "host":
        assert not [word for word in argv if word.startswith("--shm-size")]


@pytest.mark.parametrize(
    ("user", "by_docker", "by_podman"),
    [
        ("host", ["--user=1000:1001"], ["--userns=keep-id"]),
        ("image", [], []),
        ("7:8", ["--user=7:8"], ["--userns=keep-id", "--user=7:8"]),
    ],
)
def test_the_kernel_is_the_login_unless_the_environment_names_another(
    user: str, by_docker: list[str], by_podman: list[str]
) -> None:
    for runtime, expected in ((docker, by_docker), (podman, by_podman)):
        words = runtime.run_argv(made(user=user))
        assert [word for word in words if word.startswith(("--user=", "--userns="))] == expected


@pytest.mark.parametrize("runtime", [podman, docker])
def test_without_gpus_no_card_is_asked_for(runtime: JobRuntime) -> None:
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
