"""`kernelbridge init` on a machine without a config, against a real host: from nothing to a cell; cards: STAND-INS."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest

from kernelbridge.config import load
from tests.clients.notebook import notebook
from tests.clients.terminal import kernelbridge
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)


def begin(laptop: Laptop, *words: str) -> pexpect.spawn[str]:
    """`kernelbridge init` in a terminal."""
    line = ["-m", "kernelbridge", "init", *words]
    return pexpect.spawn(sys.executable, line, env=laptop.variables, encoding="utf-8", timeout=60, dimensions=(40, 250))


def ended(asked: pexpect.spawn[str]) -> int:
    asked.expect(pexpect.EOF)
    asked.close()
    assert isinstance(asked.exitstatus, int)
    return asked.exitstatus


@pytest.fixture
def fresh(bridge_env: Laptop) -> Laptop:
    """A user without a config."""
    bridge_env.config.unlink(missing_ok=True)
    return bridge_env


def test_flags_write_a_config_whose_kernel_runs_cells(rig: Rig, fresh: Laptop) -> None:
    words = ("init", "--yes", "--host", "lab", "--image", rig.image)
    first = kernelbridge(fresh, *words)
    assert (first.code, first.err) == (0, "")
    assert f"Wrote {fresh.config}: host lab, environment " in first.out
    assert "Wrote kernelbridge-" in first.out
    (name,) = [path.name.removeprefix("kernelbridge-") for path in (fresh.data_dir / "kernels").iterdir()]
    with notebook(fresh, name=f"kernelbridge-{name}") as kernel:
        assert kernel.value("1 + 1") == 2
    before = fresh.config.read_text()
    assert f"has them already: host lab, environment {name}" in kernelbridge(fresh, *words).out
    assert fresh.config.read_text() == before


def test_the_hosts_of_ssh_and_the_images_of_a_host_are_offered(rig: Rig, fresh: Laptop) -> None:
    """Its driver is too old for one of them, which is not; at the end the config has what was chosen, and a GPU."""
    with rig.engine.changed(rig.image, "ENV NVIDIA_REQUIRE_CUDA=cuda>=99.0") as too_new:
        asked = begin(fresh)
        asked.expect("Which machine runs the containers\\?\r\n")
        asked.expect("  1  lab\r\n")
        asked.expect("Number, or an alias, or user@name:port \\[1\\]: ")
        asked.sendline("lab")
        asked.expect("ok +login +[0-9.]+ m?s +kbtest at lab")
        asked.expect("ok +NVIDIA driver .* 4 x Stand-in GPU; driver 550.00.00, CUDA 12.4")
        asked.expect(f"Not offered: .*{too_new}.*cuda>=99")
        asked.expect("Which image do kernels run in\\?")
        asked.expect(f"{rig.image}  \\(0\\.[0-9] GB\\)")
        asked.expect("Number, or another name \\[1\\]: ")
        assert too_new not in (asked.before or "")
        asked.sendline(rig.image)
        asked.expect("JupyterLab: reload the page")
        assert ended(asked) == 0
    assert f'image = "{rig.image}"' in fresh.config.read_text()
    assert "gpus = 1" in fresh.config.read_text()


def files(laptop: Laptop) -> dict[Path, bytes]:
    """All files of a user, but for this installation's own number, which each command makes that asks a host."""
    found = (path for path in laptop.home.rglob("*") if path.is_file() and path.name != "machine-id")
    return {path: path.read_bytes() for path in found}


@contextmanager
def key_not_known(laptop: Laptop) -> Iterator[None]:
    known = laptop.ssh_folder / "known_hosts"
    before = known.read_text()
    known.write_text("")
    try:
        yield
    finally:
        known.write_text(before)


QUESTIONS = {
    "which machine": ("Which machine", ""),
    "whose key": ("Is this the fingerprint", ""),
    "which partition": ("Which partition", "y"),
    "which image": ("Which image", "y"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_ctrl_c_at_any_question_leaves_all_as_it_was(rig: Rig, slurm: SlurmRig, fresh: Laptop, question: str) -> None:
    pattern, answer = QUESTIONS[question]
    alias = "lab-other" if question == "which partition" else "lab"
    with key_not_known(fresh):
        before = files(fresh)
        asked = begin(fresh, *([] if question == "which machine" else ["--host", alias]))
        if answer:
            asked.expect("Is this the fingerprint")
            asked.sendline(answer)
        asked.expect(pattern)
        asked.expect("\\]: ")
        asked.sendintr()
        assert ended(asked) == 1
        assert files(fresh) == before


def test_a_login_node_of_slurm_is_asked_for_its_partition(slurm: SlurmRig, rig: Rig, fresh: Laptop) -> None:
    fresh.write_config('# mine\n[hosts.hpc] # ours\nssh = "lab-other" # how\n')
    asked = begin(fresh, "--host", "lab-other", "--image", rig.image)
    asked.expect("hpc has Slurm, and no Docker that this login may use: each kernel will be a job.")
    asked.expect("ok +scheduler .* Slurm, 1 nodes with 4 GPUs")
    asked.expect("  1  main  \\(the default, GPUs\\)\r\n")
    asked.expect("Number, or another name \\[1\\]: ")
    asked.sendline("short")
    asked.expect("JupyterLab: reload the page")
    assert ended(asked) == 0
    text = fresh.config.read_text()
    assert '# mine\n[hosts.hpc] # ours\nssh = "lab-other" # how\n' in text
    loaded = load.load(fresh.config)
    assert (loaded.hosts["hpc"].scheduler, loaded.hosts["hpc"].partition) == ("slurm", "short")
    (environment,) = loaded.environments.values()
    assert (environment.hosts, environment.gpus) == (("hpc",), 1)
    # The second time it is a host with Slurm already, and nothing is asked or changed.
    again = kernelbridge(fresh, "init", "--yes", "--host", "lab-other", "--image", rig.image)
    assert (again.code, again.err) == (0, "")
    assert fresh.config.read_text() == text
    assert slurm.jobs() == []


def test_little_room_on_the_host_is_told_with_what_the_image_needs(rig: Rig, fresh: Laptop) -> None:
    df = rig.engine.gpus.folder / "df"
    df.write_text("#!/bin/sh\necho File; echo /dev/sda 9 9 5000000 99% /\n")
    df.chmod(0o755)
    try:
        made = kernelbridge(fresh, "init", "--yes", "--host", "lab", "--image", "python:3.12")
    finally:
        df.unlink()
    assert made.code == 0
    assert "Warning: 5 GB free in " in made.err
    assert "python:3.12 may need some" in made.err
