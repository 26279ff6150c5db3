"""kernel/recipe.py: what a container was made of, and which changes of the config another one is needed for."""

from __future__ import annotations

from typing import Any

import pytest

from kernelbridge.config.schema import Environment, Host
from kernelbridge.kernel.recipe import changed_keys, recipe, words

LAB = Host(name="lab", ssh="lab")


def environment(**written: Any) -> Environment:
    return Environment(name="torch", **{"image": "torch:2", **written})


@pytest.mark.parametrize(
    "written",
    [
        {"image": "torch:3"},
        {"python": "python3.12"},
        {"gpus": 1},
        {"gpus": ["0"]},
        {"mounts": ["/data:/data:ro"]},
        {"user": "image"},
        {"memory": "8g"},
        {"shm_size": "2g"},
        {"network": "none"},
        {"ulimits": {"memlock": -1}},
        {"labels": {"team": "a"}},
        {"persist": True},
        {"idle_timeout": "1h"},
        {"journal_size": "1g"},
    ],
)
def test_a_container_is_made_of_these_keys(written: dict[str, Any]) -> None:
    before, now = recipe(environment(), LAB), recipe(environment(**written), LAB)
    assert changed_keys(before, now, with_process=False) == list(written)
    assert changed_keys(now, before, with_process=False) == list(written)


@pytest.mark.parametrize(
    "written", [{"env": {"A": "1"}}, {"pass_env": ["A"]}, {"secrets": ["HF_TOKEN"]}, {"workdir": "/data"}]
)
def test_each_kernel_process_reads_these_keys_anew(written: dict[str, Any]) -> None:
    before, now = recipe(environment(), LAB), recipe(environment(**written), LAB)
    assert changed_keys(before, now, with_process=False) == []
    assert changed_keys(before, now, with_process=True) == list(written)


@pytest.mark.parametrize(
    "written",
    [
        {"display_name": "New"},
        {"hosts": ["lab"]},
        {"pull": "always"},
        {"wait": "1h"},
        {"start_seconds": 9.0},
        {"forwards": [6006]},
    ],
)
def test_no_container_is_made_of_these_keys(written: dict[str, Any]) -> None:
    assert recipe(environment(**written), LAB) == recipe(environment(), LAB)


def test_another_machine_under_the_same_name_is_a_change() -> None:
    now = recipe(environment(), Host(name="lab", ssh="lab2", socket="/run/docker.sock"))
    assert changed_keys(recipe(environment(), LAB), now, with_process=False) == ["hosts.lab.socket", "hosts.lab.ssh"]
    assert recipe(environment(), Host(name="lab", ssh="lab", node_login="ssh")) == recipe(environment(), LAB)


def test_no_value_of_the_config_is_in_it() -> None:
    made_of = recipe(environment(env={"HF_TOKEN": "hf_secret"}), LAB)
    assert "hf_secret" not in str(made_of)
    assert {len(value) for value in made_of.values()} == {12}


@pytest.mark.parametrize(
    ("keys", "said"), [(["a"], "`a`"), (["a", "b"], "`a` and `b`"), (["a", "b", "c"], "`a`, `b` and `c`")]
)
def test_keys_are_words_of_a_sentence(keys: list[str], said: str) -> None:
    assert words(keys) == said
