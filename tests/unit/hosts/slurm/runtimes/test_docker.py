"""hosts/slurm/runtimes/docker.py: its command lines."""

from __future__ import annotations

from kernelbridge.hosts.slurm.runtimes import docker, spec
from tests.unit.hosts.slurm.runtimes.test_spec import ENGINE, made


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
        "--user=1000:1001",
        f'--gpus="device={spec.CARDS}"',
        "a/b:1",
        "-c",
        "boot",
    ]
    assert docker.join_argv(made(), ["bridge"]) == ["docker", "exec", "--interactive", "kernelbridge-k1", "bridge"]
    assert docker.remove_argv() == ["docker", "rm", "--force", "--volumes", spec.NAME]
