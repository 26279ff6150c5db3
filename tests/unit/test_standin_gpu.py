"""The stand-in nvidia-smi of the real tests speaks as the real one does, as far as nvidia_smi.py reads it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from kernelbridge.hosts.gpus import nvidia_smi
from tests.rig.standin_gpu import UUIDS, StandInGpus


def facts_of(standin: StandInGpus, **environ: str) -> nvidia_smi.GpuFacts:
    environ = {"PATH": f"{standin.folder}:/usr/bin:/bin", **environ}
    ended = subprocess.run(
        ["/bin/sh", "-c", nvidia_smi.SCRIPT], capture_output=True, text=True, env=environ, check=True
    )
    return nvidia_smi.parse(ended.stdout, ended.stderr)


def test_the_stand_in_has_four_cards_and_a_driver(tmp_path: Path) -> None:
    facts = facts_of(StandInGpus(tmp_path / "standin"))
    assert (facts.driver, facts.cuda, facts.trouble) == ("550.00.00", "12.4", "")
    assert [(gpu.index, gpu.uuid, gpu.name) for gpu in facts.gpus] == [
        (str(number), uuid, "Stand-in GPU") for number, uuid in enumerate(UUIDS)
    ]
    assert {(gpu.memory_mib, gpu.used_mib, gpu.utilization, gpu.processes) for gpu in facts.gpus} == {(81920, 1, 0, ())}
    assert len(UUIDS) == 4


def test_somebody_elses_process_is_seen_with_its_user_and_age(tmp_path: Path) -> None:
    standin = StandInGpus(tmp_path / "standin")
    standin.occupy(UUIDS[1], UUIDS[3], pid=os.getpid())
    standin.set_driver("535.129.03", "12.2")
    facts = facts_of(standin)
    assert (facts.driver, facts.cuda) == ("535.129.03", "12.2")
    assert [(gpu.used_mib, [one.pid for one in gpu.processes]) for gpu in facts.gpus] == [
        (1, []),
        (4096, [os.getpid()]),
        (1, []),
        (4096, [os.getpid()]),
    ]
    (process,) = facts.gpus[1].processes
    assert (process.name, process.kind, process.memory_mib) == ("stand-in", "C", 4095)
    assert process.user
    assert process.seconds is not None
    standin.occupy()
    assert [gpu.processes for gpu in facts_of(standin).gpus] == [()] * 4


def test_a_container_sees_the_cards_it_was_given_and_no_others(tmp_path: Path) -> None:
    standin = StandInGpus(tmp_path / "standin")
    facts = facts_of(standin, NVIDIA_VISIBLE_DEVICES=f"{UUIDS[2]},{UUIDS[0]}")
    assert [gpu.uuid for gpu in facts.gpus] == [UUIDS[0], UUIDS[2]]
    assert facts_of(standin, NVIDIA_VISIBLE_DEVICES="void").gpus == ()


def test_a_container_that_lost_its_cards_says_so_and_fails(tmp_path: Path) -> None:
    standin = StandInGpus(tmp_path / "standin")
    program = standin.folder / "nvidia-smi"
    mark = tmp_path / "lost"
    # The mark of a container stands in its own /run, which this machine's is not.
    program.write_text(program.read_text().replace("/run/standin-gpu-lost", str(mark)))
    assert subprocess.run([program, "-L"], capture_output=True).returncode == 0
    mark.touch()
    ended = subprocess.run([program, "-L"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (255, "Failed to initialize NVML: Unknown Error\n")
    assert facts_of(standin).trouble == "Failed to initialize NVML: Unknown Error"


def test_a_machine_without_them_has_no_gpus(tmp_path: Path) -> None:
    standin = StandInGpus(tmp_path / "standin")
    standin.remove()
    assert facts_of(standin) == nvidia_smi.GpuFacts()
