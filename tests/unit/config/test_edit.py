"""config/edit.py: what is added to a config's text, and that the rest of it stays as it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from kernelbridge.config import edit, load

KEYS = {"image": "pytorch:2", "hosts": ["lab"], "gpus": 1}


def both(text: str) -> tuple[str, str, str]:
    text, host = edit.with_host(text, "lab", "ada@lab:22")
    text, environment = edit.with_environment(text, "pytorch", {**KEYS, "hosts": [host]})
    return text, host, environment


def test_a_new_config_has_both_and_offers_more_keys_that_are_right() -> None:
    text, host, environment = both("")
    assert (host, environment) == ("lab", "pytorch")
    assert text.startswith("# Every key: https://")
    config = load.parse(text, Path("k.toml"))
    assert (config.hosts["lab"].ssh, config.environments["pytorch"].gpus) == ("ada@lab:22", 1)
    offered = "\n".join(line.removeprefix("# ") for line in text.splitlines() if not line.startswith("# Every"))
    assert load.parse(offered, Path("k.toml")).environments["pytorch"].wait == 4 * 3600


def test_what_is_there_already_is_not_added_again() -> None:
    text, *_ = both("")
    assert both(text) == (text, "lab", "pytorch")
    assert both(text.replace("[hosts.lab]", "[hosts.mine]").replace('["lab"]', '["mine"]'))[1:] == ("mine", "pytorch")


@pytest.mark.parametrize(
    "text",
    [
        "# mine\n[defaults]\ngpus = 1 # why\n\n[environments.a]\nimage = 'q'",
        "[hosts]\n[hosts.x]\nssh = 'x'\n\n\n",
        "hosts.x.ssh = 'x'\n",
        "[hosts.lab]\nssh = 'other'\n[environments.pytorch]\nimage = 'other'\n",
    ],
)
def test_the_rest_stays_as_it_is(text: str) -> None:
    made, host, environment = both(text)
    assert made.startswith(text.rstrip())
    tables = tomllib.loads(made)
    assert tables["hosts"][host] == {"ssh": "ada@lab:22"}
    assert tables["environments"][environment]["hosts"] == [host]
    assert (host == "lab-2") == ("other" in text)


def test_tables_on_one_line_stay_on_it_and_names_are_written_as_toml_needs_them() -> None:
    made, host, _ = both('hosts = { x = { ssh = "x" } } # mine\n')
    assert tomllib.loads(made)["hosts"] == {"x": {"ssh": "x"}, host: {"ssh": "ada@lab:22"}}
    assert made.splitlines()[0].endswith("# mine")
    text, _ = edit.with_host("", 'a"b.c', "s")
    assert tomllib.loads(text)["hosts"] == {'a"b.c': {"ssh": "s"}}


def test_keys_of_a_host_that_is_there_are_set_and_its_comments_stay() -> None:
    text, *_ = both("# mine\n[hosts.lab] # why\nssh = 'ada@lab:22' # how\n")
    changed = edit.with_host_keys(text, "lab", {"scheduler": "slurm", "partition": "gpu"})
    assert "[hosts.lab] # why\nssh = 'ada@lab:22' # how\n" in changed
    assert changed.index('partition = "gpu"') < changed.index("[environments.pytorch]")
    host = load.parse(changed, Path("k.toml")).hosts["lab"]
    assert (host.scheduler, host.partition) == ("slurm", "gpu")
    inline = edit.with_host_keys('hosts = { lab = { ssh = "lab" } }\n', "lab", {"scheduler": "slurm"})
    assert load.parse(inline, Path("k.toml")).hosts["lab"].scheduler == "slurm"
