"""hosts/slurm/job_script.py: the batch script, run for real by sh.

Stand-ins for nvidia-smi and the runtimes write down what they were given.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config import fields
from kernelbridge.config.schema import Environment
from kernelbridge.hosts.slurm import job_script
from kernelbridge.hosts.slurm.commands import LOG_FOLDER
from kernelbridge.hosts.slurm.runtimes.spec import Spec

if sys.platform == "win32":
    pytest.skip("jobs run on Linux", allow_module_level=True)

SAMPLES = Path(__file__).parents[2] / "samples/slurm"
UUIDS = [f"GPU-00000000-0000-0000-0000-{number:012d}" for number in (1, 2, 3, 4)]

# Notes its words, its variables and what it reads, then ends as the test says.
_RUNTIME = f"""#!{sys.executable}
import json, os, signal, sys, time
folder = os.environ["NOTES"]
if sys.argv[1:2] in (["rm"], ["remove"]):
    with open(folder + "/removed", "a") as file:
        file.write(sys.argv[-1] + "\\n")
    sys.exit(0)
got = []
signal.signal(signal.SIGTERM, lambda *_: (got.append("term"), open(folder + "/term", "w").close()))
with open(folder + "/note.tmp", "w") as file:
    json.dump({{"argv": sys.argv, "env": dict(os.environ)}}, file)
os.rename(folder + "/note.tmp", folder + "/note.json")
if "END" not in os.environ:
    sys.stdin.buffer.read()
    open(folder + "/eof", "w").close()
sys.exit(int(os.environ.get("END", "5")))
"""


class Node:
    """A job's node as the script sees it: a PATH, a TMPDIR, the variables of a recorded job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.bin = folder / "bin"
        for made in (self.temporary, self.bin):
            made.mkdir()
        self.jobs: list[subprocess.Popen[str]] = []
        self.env = {"PATH": f"{self.bin}:/usr/bin:/bin", "TMPDIR": str(self.temporary), "NOTES": str(folder)}

    def has(self, program: str, text: str = _RUNTIME) -> None:
        (self.bin / program).write_text(text)
        (self.bin / program).chmod(0o755)

    def shows(self, cards: list[tuple[int, str]], *, noise: str = "") -> None:
        lines = "".join(f"{index}, {uuid}\n" for index, uuid in cards)
        self.has("nvidia-smi", f"#!/bin/sh\ncat <<'END'\n{noise}{lines}END\n")

    def recorded(self, name: str) -> None:
        pairs = (line.split("=", 1) for line in (SAMPLES / name).read_text().splitlines())
        self.env |= {key: text for key, text in pairs if key != "TMPDIR"}

    def start(self, runtime: str, **keys: Any) -> subprocess.Popen[str]:
        script = job_script.script(runtime, made(**keys)).decode()
        path = self.folder / "slurm_script"
        # In one step: a shell reads its script as it goes, and another job's may still be at it.
        path.with_suffix(".new").write_text(script)
        path.with_suffix(".new").replace(path)
        job = subprocess.Popen(
            ["sh", str(path)], env=self.env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.jobs.append(job)
        return job

    def close(self) -> None:
        for job in self.jobs:
            job.kill()
            job.communicate(timeout=20)

    def run(self, runtime: str = "apptainer", **keys: Any) -> tuple[int, str]:
        """Run the script to its end, which the runtime brings about by itself."""
        self.env.setdefault("END", "0")
        job = self.start(runtime, **keys)
        _, stderr = job.communicate(timeout=30)
        return job.returncode, stderr

    def note(self) -> dict[str, Any]:
        wait_for(self.folder / "note.json")
        noted: dict[str, Any] = json.loads((self.folder / "note.json").read_text())
        return noted


def wait_for(path: Path) -> None:
    wait_until(path.exists)


def wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def made(**keys: Any) -> Spec:
    environment = Environment(**{"name": "test", "image": "a/b:1", "gpus": 2, **keys})
    return Spec(
        kernel="k1",
        environment=environment,
        command=("python3", "-c", "print('it''s')"),
        wants_gpus=bool(environment.gpus),
        home="/home/ada",
        user_numbers=(1000, 1000),
    )


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    prepared = Node(tmp_path)
    for program in ("apptainer", "podman", "docker", "srun", "enroot"):
        prepared.has(program)
    yield prepared
    prepared.close()


# -- which cards


def test_a_constrained_job_has_the_cards_that_it_sees(node: Node) -> None:
    node.recorded("constrained.env")
    node.shows([(0, UUIDS[2]), (1, UUIDS[3])])
    assert node.run() == (0, "")
    env = node.note()["env"]
    assert env["CUDA_VISIBLE_DEVICES"] == env["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == f"{UUIDS[2]},{UUIDS[3]}"
    assert env["APPTAINERENV_NVIDIA_VISIBLE_DEVICES"] == f"{UUIDS[2]},{UUIDS[3]}"


def test_an_unconstrained_job_has_the_cards_at_slurms_indices(node: Node) -> None:
    node.recorded("unconstrained.env")
    node.shows(list(enumerate(UUIDS)), noise="Warning: infoROM is corrupted\n")
    assert node.run() == (0, "")
    assert node.note()["env"]["CUDA_VISIBLE_DEVICES"] == f"{UUIDS[2]},{UUIDS[3]}"


@pytest.mark.parametrize(("indices", "expected"), [("0-1,3", [0, 1, 3]), ("1-3", [1, 2, 3]), ("3,0,1", [3, 0, 1])])
def test_ranges_of_indices_are_read(node: Node, indices: str, expected: list[int]) -> None:
    node.env |= {"SLURM_JOB_GPUS": indices, "SLURM_GPUS_ON_NODE": "3"}
    node.shows(list(enumerate(UUIDS)))
    assert node.run(gpus=3) == (0, "")
    assert node.note()["env"]["CUDA_VISIBLE_DEVICES"] == ",".join(UUIDS[number] for number in expected)


@pytest.mark.parametrize(
    ("variables", "shown", "reason"),
    [
        ({"SLURM_JOB_GPUS": "2,3", "SLURM_GPUS_ON_NODE": "2"}, [0], "1 GPUs are seen, 2 were given"),
        ({"SLURM_JOB_GPUS": "2,3", "SLURM_GPUS_ON_NODE": "2"}, [], "0 GPUs are seen, 2 were given"),
        ({"SLURM_JOB_GPUS": "2,7", "SLURM_GPUS_ON_NODE": "2"}, [0, 1, 2], "GPU 7 is not seen"),
        ({"SLURM_JOB_GPUS": "2,3", "SLURM_GPUS_ON_NODE": "1"}, [0, 1, 2, 3], "contradicts itself"),
        ({"SLURM_GPUS_ON_NODE": "1"}, [0, 1], "does not say which"),
        ({"SLURM_JOB_GPUS": "a"}, [0], "GPU a is no index"),
        ({"SLURM_JOB_GPUS": "0", "SLURM_GPUS_ON_NODE": "x"}, [0], "number of GPUs is not known"),
        ({}, [0], "the job has no GPU"),
    ],
)
def test_cards_that_cannot_be_told_refuse_the_start(
    node: Node, variables: dict[str, str], shown: list[int], reason: str
) -> None:
    node.env |= variables
    node.shows([(index, UUIDS[index]) for index in shown])
    code, stderr = node.run()
    assert (code, stderr.count("\n")) == (job_script.CARDS_EXIT, 1)
    assert stderr.startswith("kernelbridge: ")
    assert reason in stderr
    assert not (node.folder / "note.json").exists()


def test_a_kernel_without_gpus_gets_none_whatever_the_node_has(node: Node) -> None:
    node.shows(list(enumerate(UUIDS)))
    assert node.run(gpus=0) == (0, "")
    env = node.note()["env"]
    assert (env["NVIDIA_VISIBLE_DEVICES"], env["CUDA_VISIBLE_DEVICES"]) == ("void", "")


# -- what a mount may not be


@pytest.mark.parametrize("end", ["/", "/proc", "/proc/1", "/run"])
def test_a_mount_that_leads_on_the_node_to_what_is_forbidden_refuses_the_start(node: Node, end: str) -> None:
    (node.folder / "link").symlink_to(end)
    (node.folder / "it's over").symlink_to("link")
    source = node.folder / "it's over"
    code, stderr = node.run(gpus=0, mounts=[f"{node.folder}:/a", f"{source}:/data"])
    assert (code, stderr.count("\n")) == (job_script.MOUNT_EXIT, 1)
    assert stderr.startswith(f"kernelbridge: the mount source {source} leads to ")
    assert not (node.folder / "note.json").exists()


@pytest.mark.parametrize(
    ("end", "is_refused"),
    [
        *((end, True) for end in ("/proc/1/root", "/var/run", "/run/podman", "/run/user", "/run/user/1000")),
        *((end, True) for end in ("/x y/docker.sock", "/podman.sock", "/var/run/user/0", "/run/containerd")),
        *((end, False) for end in ("/procs", "/run/user/1000/mine", "/run/mine", "/docker.sock.d", "/var/run/user/a")),
    ],
)
def test_what_a_node_refuses_is_what_a_config_may_not_name(node: Node, end: str, is_refused: bool) -> None:
    node.has("readlink", '#!/bin/sh\n[ -n "$2" ] && printf "%s\\n" "$LEADS"\n')
    node.env["LEADS"] = end
    code, _ = node.run(gpus=0, mounts=["/data:/data"])
    assert (code == job_script.MOUNT_EXIT) is is_refused
    try:
        fields.check_mount_source(end)
    except ValueError:
        assert is_refused
    else:
        assert not is_refused


def test_a_folder_above_an_engines_own_socket_refuses_the_start_too(node: Node) -> None:
    (node.folder / "engine").mkdir()
    (node.folder / "engine" / "e.sock").touch()
    (node.folder / "named").symlink_to("engine/e.sock")
    node.env["DOCKER_HOST"] = f"unix://{node.folder}/named"
    for source in ("", "/engine", "/named"):
        code, stderr = node.run(gpus=0, mounts=[f"{node.folder}{source}:/data"])
        assert code == job_script.MOUNT_EXIT
        assert "where the engine's socket is" in stderr
    assert node.run(gpus=0, mounts=[f"{node.bin}:/data"]) == (0, "")


def test_other_mounts_are_made_also_of_what_is_not_there(node: Node) -> None:
    (node.folder / "link").symlink_to("tmp")
    mounts = [f"{node.folder}/{name}:/{number}" for number, name in enumerate(("link", "tmp", "none/at/all"))]
    assert node.run(gpus=0, mounts=[*mounts, "~/data:/data", "/run/user/1/x:/x"]) == (0, "")
    assert f"--bind={node.folder}/link:/0:rw" in node.note()["argv"]


# -- what the runtime is told


def test_docker_gets_cards_and_limits_of_the_job(node: Node) -> None:
    node.recorded("unconstrained.env")
    node.shows(list(enumerate(UUIDS)))
    assert node.run("docker") == (0, "")
    argv = node.note()["argv"]
    assert f'--gpus="device={UUIDS[2]},{UUIDS[3]}"' in argv
    assert f"--env=NVIDIA_VISIBLE_DEVICES={UUIDS[2]},{UUIDS[3]}" in argv
    assert {"--memory=64m", "--memory-swap=64m", "--cpus=1"} <= set(argv)
    assert argv[-3:] == ["a/b:1", "-c", "print('it''s')"]
    assert (node.folder / "removed").exists()


def test_the_memory_of_the_node_wins_over_that_of_a_processor(node: Node) -> None:
    node.env |= {"SLURM_MEM_PER_NODE": "2048", "SLURM_MEM_PER_CPU": "1", "SLURM_CPUS_ON_NODE": "4"}
    assert node.run("docker", gpus=0) == (0, "")
    assert "--memory=2048m" in node.note()["argv"]


def test_without_limits_of_slurm_docker_gets_none(node: Node) -> None:
    assert node.run("docker", gpus=0) == (0, "")
    assert not [word for word in node.note()["argv"] if word.startswith(("--memory", "--cpus=")) or not word]


def test_podman_gets_an_option_for_each_card(node: Node) -> None:
    node.recorded("unconstrained.env")
    node.shows(list(enumerate(UUIDS)))
    assert node.run("podman") == (0, "")
    devices = [word for word in node.note()["argv"] if word.startswith("--device")]
    assert devices == [f"--device=nvidia.com/gpu={UUIDS[2]}", f"--device=nvidia.com/gpu={UUIDS[3]}"]


def test_words_of_the_user_pass_the_shell_unharmed(node: Node) -> None:
    hostile = "/a $(touch x)`id`'\"; rm -rf"
    assert node.run(gpus=0, workdir=hostile) == (0, "")
    assert f"--pwd={hostile}" in node.note()["argv"]


def test_a_word_with_the_byte_0_is_no_word() -> None:
    spec = made()
    # The config refuses it before.
    with pytest.raises(ValueError, match="byte 0"):
        job_script.script(
            "apptainer", replace(spec, environment=spec.environment.model_copy(update={"workdir": "/a\0b"}))
        )


# -- life and death


def test_the_runtime_has_a_private_folder_that_is_gone_at_the_end(node: Node) -> None:
    job = node.start("apptainer", gpus=0)
    (bind,) = [word for word in node.note()["argv"] if word.endswith(":/run/kernelbridge")]
    folder = Path(bind.removeprefix("--bind=").partition(":")[0]).parent
    assert folder.parent == node.temporary
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not (node.folder / "eof").exists()
    job.terminate()
    wait_for(node.folder / "term")
    # The signal did not end the runtime; the script waits on.
    assert job.poll() is None
    job.kill()
    job.communicate(timeout=20)
    wait_for(node.folder / "eof")


@pytest.mark.parametrize("code", [0, 3, 69])
def test_the_script_ends_as_its_runtime_does_and_leaves_nothing(node: Node, code: int) -> None:
    node.env["END"] = str(code)
    assert node.run(gpus=0)[0] == code
    assert list(node.temporary.iterdir()) == []


@pytest.mark.parametrize(("code", "is_left"), [(0, False), (69, True)])
def test_the_log_goes_with_a_kernel_that_was_told_goodbye_and_stays_where_it_says_why(
    node: Node, code: int, is_left: bool
) -> None:
    node.env |= {"END": str(code), "HOME": str(node.folder)}
    logs = node.folder / LOG_FOLDER
    logs.mkdir(parents=True)
    for name in ("kernelbridge-k1.log", "kernelbridge-k2.log"):
        (logs / name).touch()
    node.run(gpus=0)
    left = {path.name for path in logs.iterdir()}
    assert left == {"kernelbridge-k2.log"} | ({"kernelbridge-k1.log"} if is_left else set())


def test_what_a_killed_job_left_is_removed_by_the_next_one_and_nothing_of_those_that_run(node: Node) -> None:
    # One after the other: both write the same note. When it is there the script is through with what others left.
    killed = node.start("podman", gpus=0)
    node.note()
    (node.folder / "note.json").unlink()
    node.start("podman", gpus=0)
    node.note()
    killed.kill()
    killed.communicate(timeout=20)
    assert node.run("podman", gpus=0)[0] == 0
    assert len(list(node.temporary.iterdir())) == 1
    # Each call of `rm` is noted: for the killed one, and for the new one itself.
    assert (node.folder / "removed").read_text() == "kernelbridge-k1\n" * 2


def test_docker_leaves_no_folder_even_if_the_script_is_killed(node: Node) -> None:
    job = node.start("docker", gpus=0)
    node.note()
    assert list(node.temporary.iterdir()) == []
    job.kill()
    job.communicate(timeout=20)
    wait_for(node.folder / "eof")


def test_a_node_without_the_runtime_says_so(node: Node) -> None:
    (node.bin / "apptainer").unlink()
    code, stderr = node.run(gpus=0)
    assert (code, stderr) == (job_script.RUNTIME_EXIT, "kernelbridge: apptainer is not installed\n")
    assert list(node.temporary.iterdir()) == []


def test_a_folder_that_is_not_there_is_replaced_by_tmp(node: Node) -> None:
    node.env["TMPDIR"] = "/nowhere"
    assert node.run(gpus=0) == (0, "")
    assert any(word.startswith("--bind=/tmp/kernelbridge-k1.") for word in node.note()["argv"])
    assert list(Path("/tmp").glob("kernelbridge-k1.*")) == []


# -- joining


def test_a_joiner_finds_the_folder_of_its_own_login(node: Node) -> None:
    node.start("apptainer", gpus=0)
    (bind,) = [word for word in node.note()["argv"] if word.endswith(":/run/kernelbridge")]
    (node.folder / "note.json").unlink()
    words = job_script.join_argv("apptainer", made(), ["bridge", "it's"], job="7")
    subprocess.run(words, env={**node.env, "END": "0"}, check=True, timeout=20, stdin=subprocess.DEVNULL)
    joined = node.note()["argv"]
    assert bind in joined
    assert joined[-3:] == ["docker://a/b:1", "bridge", "it's"]


def test_a_joiner_without_a_folder_says_so(node: Node) -> None:
    words = job_script.join_argv("apptainer", made(), ["bridge"], job="7")
    done = subprocess.run(words, env=node.env, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == job_script.RUNTIME_EXIT
    assert "folder is not found" in done.stderr


def test_only_pyxis_makes_the_step_itself() -> None:
    assert [name for name in job_script.RUNTIMES if job_script.joins_as_step(name)] == ["pyxis"]
