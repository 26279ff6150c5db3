"""hosts/slurm/runtimes/podman.py: its command lines."""

from __future__ import annotations

from kernelbridge.hosts.slurm.runtimes import podman, spec
from tests.unit.hosts.slurm.runtimes.test_spec import ENGINE, made


def test_podman_stays_in_the_jobs_cgroup_and_with_the_logins_numbers() -> None:
    assert podman.run_argv(made()) == [
        "podman",
        "run",
        "--rm",
        "--cgroups=disabled",
        *ENGINE,
        "--log-driver=none",
        "--userns=keep-id",
        spec.CARD_OPTIONS,
        "a/b:1",
        "-c",
        "boot",
    ]
    assert podman.join_argv(made(), ["bridge"]) == ["podman", "exec", "--interactive", "kernelbridge-k1", "bridge"]
