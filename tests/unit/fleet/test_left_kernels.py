"""fleet/left_kernels.py: which kernel a start takes up, and what the user reads of its container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.fleet import left_kernels
from kernelbridge.fleet.left_kernels import left_running, of_notebook
from kernelbridge.kernel.process_mark import liveness, own_mark
from kernelbridge.kernel.recipe import recipe
from kernelbridge.kernel.records import KernelRecord

PATH = Path("/home/ada/kernelbridge.toml").absolute()
NOTEBOOK = str(Path("/work/train.ipynb").absolute())


def config_of(**written: Any) -> Config:
    environment = Environment(name="torch", **{"image": "x", **written})
    return Config(path=PATH, hosts={"lab": Host(name="lab", ssh="lab")}, environments={"torch": environment})


def record(kernel_id: str = "aabb1111-0000-4000-8000-000000000001", **facts: Any) -> KernelRecord:
    made_up: dict[str, Any] = {
        "environment": "torch",
        "config": str(PATH),
        "host": "lab",
        "image": "x",
        "python": "python3",
        "session": "s",
        "started": 0.0,
        "left": 10.0,
        "title": "train.ipynb",
        "notebook": NOTEBOOK,
        "persist": True,
        "recipe": recipe(config_of().environment("torch"), config_of().host("lab")),
    }
    return KernelRecord(kernel_id=kernel_id, **{**made_up, **facts})


@pytest.mark.parametrize(
    ("facts", "is_listed"),
    [
        ({}, True),
        ({"left": None, "process": "1@0.00"}, True),
        ({"process": own_mark().process}, False),
        ({"persist": False}, False),
        ({"server": "/home/ada"}, False),
        ({"stop_wanted": True}, False),
        ({"is_ending": True}, False),
        ({"kind": "run"}, False),
        ({"kind": "up"}, False),
        ({"environment": "gone"}, False),
        ({"host": "gone"}, False),
        ({"config": "/other.toml"}, False),
    ],
)
def test_only_what_vs_code_may_join_is_listed(facts: dict[str, Any], is_listed: bool) -> None:
    found = [record(**facts)]
    listed = left_running(found, config_of(), lambda one: liveness(one.holder))
    assert listed == (found if is_listed else [], [])


@pytest.mark.parametrize(
    ("facts", "environment", "notebook", "is_its"),
    [
        ({}, "torch", NOTEBOOK, True),
        ({}, "torch", str(Path("/work/../work/train.ipynb").absolute()), True),
        ({}, "jax", NOTEBOOK, False),
        ({}, "torch", str(Path("/work/other.ipynb").absolute()), False),
        ({}, "torch", str(Path("/elsewhere/train.ipynb").absolute()), False),
        # Not saved yet, or not told.
        ({"notebook": "Untitled-1.ipynb"}, "torch", "Untitled-1.ipynb", False),
        ({"notebook": ""}, "torch", "", False),
        ({"notebook": ""}, "torch", NOTEBOOK, False),
    ],
)
def test_a_kernel_is_a_notebooks_by_its_path_and_environment(
    facts: dict[str, Any], environment: str, notebook: str, is_its: bool
) -> None:
    found = [record(**facts)]
    assert of_notebook(found, environment, notebook) == (found if is_its else [])


@pytest.mark.parametrize(
    ("written", "with_process", "changed"),
    [
        ({}, True, []),
        ({"image": "y"}, False, ["image"]),
        ({"gpus": 1, "mounts": ["~/data:/data"]}, False, ["gpus", "mounts"]),
        ({"env": {"A": "1"}}, False, []),
        ({"env": {"A": "1"}}, True, ["env"]),
        ({"display_name": "New", "start_seconds": 5.0, "wait": "1h"}, True, []),
    ],
)
def test_a_changed_config_is_seen(written: dict[str, Any], with_process: bool, changed: list[str]) -> None:
    assert left_kernels.changes(record(), config_of(**written), with_process=with_process) == changed


@pytest.mark.parametrize(
    ("persist", "seconds_later", "is_one"),
    [(True, -1.0, True), (True, 1.5, True), (True, 5.0, False), (False, 5.0, True)],
)
def test_a_kernel_that_persists_is_restarted_only_in_the_moment_in_which_it_was_left(
    persist: bool, seconds_later: float, is_one: bool
) -> None:
    assert left_kernels.is_restart(record(persist=persist, left=100.0), 100.0 + seconds_later) is is_one


def test_of_a_record_of_an_older_version_no_change_is_known() -> None:
    assert left_kernels.changes(record(recipe={}), config_of(image="y"), with_process=True) == []


def test_a_container_is_reached_and_kept_as_it_was_made() -> None:
    made = left_kernels.as_made(record(python="/opt/python"), Environment(name="torch", image="y", shm_size=2 << 30))
    assert (made.image, made.python, made.persist, made.shm_size) == ("x", "/opt/python", True, 2 << 30)


def test_the_user_reads_what_became_of_the_container() -> None:
    one = record()
    assert left_kernels.new_text(one, ["gpus", "image"]) == (
        "this is a new container, because `gpus` and `image` changed in kernelbridge.toml; "
        "files in the old one are gone, unless they were in a mount"
    )
    assert "because lab has a newer x now;" in left_kernels.new_text(one, [], image="x")
    built = "kernelbridge/build:0123456789ab"
    assert "because what its image is built of has changed;" in left_kernels.new_text(one, [], image=built)
    assert left_kernels.old_text(one, ["gpus"]) == (
        "this is still the old container, although `gpus` changed in kernelbridge.toml, because the kernel persists; "
        "`kernelbridge stop aabb1111-000` ends it, and the next start makes a new one"
    )
    assert "although lab has a newer x now," in left_kernels.old_text(one, [], image="x")
    assert "that train.ipynb left running on lab" in left_kernels.joined_text(one)
    both = left_kernels.several_text([one, record("ccdd2222-0000-4000-8000-000000000002")])
    assert "aabb1111-000 and ccdd2222-000 run for this notebook too" in both
