"""Kernels in Slurm's jobs by other ways: rootless Podman, ssh to the node; and what others see of them all.

With Docker and as a step of the job: test_slurm_kernels.py.
"""

from __future__ import annotations

import getpass
import platform
import secrets
from contextlib import suppress

import psutil
import pytest

from tests.clients.cluster import seconds_until_clean, write_cluster
from tests.clients.notebook import CellFailed, notebook
from tests.rig.daemon import RigError, wait_until
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig, missing_podman
from tests.rig.whole import Rig, nothing_may_skip

pytestmark = pytest.mark.timeout(240)
TOKEN = f"token-{secrets.token_hex(8)}"


def command_lines(cluster: SlurmRig) -> list[list[str]]:
    """The words of every process of the machine."""
    found = []
    for process in cluster.lab.processes():
        with suppress(psutil.Error):
            found.append(process.cmdline())
    return found


def streams(cluster: SlurmRig) -> set[str]:
    """By which commands the login node reaches relays."""
    return {words[0] for words in command_lines(cluster) if words and words[0] in ("ssh", "srun")}


def test_the_stream_goes_by_the_first_way_that_is_open(rig: Rig, cluster: SlurmRig, bridge_env: Laptop) -> None:
    # The node has the login node's name, so that this laptop knows its key too.
    write_cluster(bridge_env, rig, {"test": {"host": {"node_login": "auto"}}})
    lasts_until_cancelled(cluster, bridge_env, way=set())
    # It does not any more: what it knows of `lab` is known of the login node alone.
    ssh_config = bridge_env.ssh_folder / "config"
    ssh_config.write_text(ssh_config.read_text().replace("Host lab\n", "Host login\n"))
    write_cluster(bridge_env, rig, {"test": {"host": {"ssh": "login", "node_login": "auto"}}})
    lasts_until_cancelled(cluster, bridge_env, way={"srun"})
    # Two login shells in a row then, of another syntax, and both say something.
    greeting = rig.lab.home_files("kbtest", {".cshrc": "echo '/quota: 3 of 5 GB used'\n"})
    with greeting, rig.lab.shell("kbtest", "/bin/tcsh"), cluster.node_open(rig.keys.private, rig.sshd):
        lasts_until_cancelled(cluster, bridge_env, way={"ssh"})
    write_cluster(bridge_env, rig, {"test": {"host": {"ssh": "login", "node_login": "jump"}}})
    with notebook(bridge_env) as kernel:
        with pytest.raises(CellFailed, match=r"SshFailed: lab: .*host key is not known here"):
            kernel.value("6 * 7")
        print(f"nothing left after {seconds_until_clean(rig, cluster):.1f} s")


def lasts_until_cancelled(cluster: SlurmRig, laptop: Laptop, *, way: set[str]) -> None:
    """A kernel whose stream goes this way gives and takes much, and says that its job was cancelled."""
    with notebook(laptop) as kernel:
        assert kernel.value("len('x' * 10_000_000)") == 10_000_000
        assert kernel.value("'x' * 3_000_000") == "x" * 3_000_000
        assert streams(cluster) == way
        cluster.as_user("kbtest", ["scancel", *cluster.jobs()])
        with pytest.raises(CellFailed, match=r"JobEnded: .* was cancelled\."):
            kernel.run("import time; time.sleep(60)")


def test_podman_without_root_runs_cells_in_a_job_and_leaves_nothing_however_it_ends(
    rig: Rig, cluster: SlurmRig, bridge_env: Laptop
) -> None:
    if reason := missing_podman():
        if nothing_may_skip():
            pytest.fail(f"nothing may skip here, and {reason}")
        pytest.skip(reason)
    archive = rig.lab.path / "podman.tar"
    rig.engine.cli("save", "--output", archive, rig.image)
    cluster.give_podman(archive)
    archive.unlink()
    # Without a network of its own: the rig's Podman has no slirp4netns.
    write_cluster(bridge_env, rig, {"test": {"network": "none", "host": {"runtime": "podman"}}})
    with notebook(bridge_env) as kernel:
        assert kernel.value("__import__('os').environ['NVIDIA_VISIBLE_DEVICES']") == "void"
        assert kernel.debug("initialize", clientID="test", adapterID="")["success"]
        assert "kernelbridge-" in containers(cluster)
    assert containers(cluster) == ""
    for end in ("scancel", "kill", "kill all"):
        with notebook(bridge_env) as kernel:
            assert kernel.value("6 * 7") == 42
            (job,) = cluster.jobs()
            if end == "scancel":
                cluster.as_user("kbtest", ["scancel", job])
            else:
                kill_job(cluster, all_of_it=end == "kill all")
            how = "was cancelled" if end == "scancel" else r"failed on node lab \(signal 9\)"
            with pytest.raises(CellFailed, match=rf"JobEnded: The job {job} of .* {how}"):
                kernel.run("import time; time.sleep(60)")
        # Podman removes the container a moment after its end, unless it was killed itself.
        if end != "kill all":
            wait_until(lambda: containers(cluster) == "", "the container to be gone", 15)
        if end != "scancel":
            # A folder, or all that Podman had when it was killed: the next job on the node removes it.
            assert bool(containers(cluster)) is (end == "kill all")
            with notebook(bridge_env) as kernel:
                assert kernel.value("6 * 7") == 42
                assert len(containers(cluster).split()) == 1
        assert containers(cluster) == ""
        print(f"{end}: nothing left after {seconds_until_clean(rig, cluster):.1f} s")


def containers(cluster: SlurmRig) -> str:
    """The names of all that the login's Podman knows."""
    return cluster.as_user("kbtest", ["podman", "ps", "-a", "--format", "{{.Names}}"]).strip()


def kill_job(cluster: SlurmRig, *, all_of_it: bool) -> None:
    """SIGKILL to the batch script, or to all that belongs to the job, as a cgroup's end is."""
    doomed = []
    for process in cluster.lab.processes():
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if words.endswith("/slurm_script") or (all_of_it and is_of_job(words)):
                # At one moment, as there: none may see another end, and clean up after it.
                process.suspend()
                doomed.append(process)
    for process in doomed:
        with suppress(psutil.Error):
            process.kill()


def is_of_job(words: str) -> bool:
    is_stream = words.startswith(("srun", "slurmstepd"))
    return ("/run/kernelbridge" in words and not is_stream) or "conmon" in words or words.startswith("podman run")


def test_a_job_shows_no_secret_and_no_name_to_others_who_cannot_get_in(
    rig: Rig, cluster: SlurmRig, bridge_env: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cluster(bridge_env, rig, {"test": {"secrets": ["HF_TOKEN"]}})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with notebook(bridge_env) as kernel:
        kernel.run("import os; word = os.environ['HF_TOKEN'][::-1]")
        assert kernel.value("word") == TOKEN[::-1]
        (job,) = cluster.jobs()
        name = f"kernelbridge-{cluster.lab.run(['squeue', '-h', '-o', '%j']).strip().removeprefix('kernelbridge-')}"
        shown = cluster.as_user("kbother", ["scontrol", "show", "job", job])
        assert f"JobName={name}" in shown
        assert "environment=test" in shown
        assert f"{getpass.getuser()}@{platform.node()}" not in shown.replace("%40", "@")
        spool = [path for path in (cluster.folder / "spool").rglob("*") if path.is_file()]
        script = next(path for path in spool if path.name == "slurm_script").read_text()
        assert "docker run" in script
        log = cluster.lab.home("kbtest") / f".cache/kernelbridge/jobs/{name}.log"
        places = [shown, script, log.read_text(), *(path.read_text(errors="replace") for path in spool)]
        places += [" ".join(words) for words in command_lines(cluster)]
        assert [place[:80] for place in places if TOKEN in place] == []
        # The kernel's own process has it, and nobody else: not the script, the steps, the engine's command.
        holders = [process for process in cluster.lab.processes() if TOKEN in environment_of(process)]
        assert [one.name() for one in holders if "ipykernel_launcher" not in " ".join(one.cmdline())] == []
        assert len(holders) >= 1
        for words in (["srun", f"--jobid={job}", "--overlap", "true"], ["docker", "exec", name, "true"]):
            with pytest.raises(RigError):
                cluster.as_user("kbother", words)
        # The same commands open it to its own login.
        cluster.as_user("kbtest", ["srun", f"--jobid={job}", "--overlap", "true"])
        cluster.as_user("kbtest", ["docker", "exec", name, "true"])
        with pytest.raises(RigError):
            cluster.as_user("kbother", ["ls", f"/proc/{holders[0].pid}/root/run/kernelbridge/relay"])
        mode = cluster.lab.run(["docker", "exec", name, "stat", "-c", "%a", "/run/kernelbridge/relay"])
        assert mode.strip() == "700"


def environment_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return "\n".join(process.environ().values())
    return ""
