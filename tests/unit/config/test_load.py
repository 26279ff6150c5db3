"""config/load.py: which file is read and as what, how environments are shown, and what the schema for editors takes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kernelbridge.config import load
from kernelbridge.config.schema import Config, Environment, Host, Mount
from kernelbridge.errors import ConfigInvalid, ConfigMissing

PATH = Path("/home/ada/kernelbridge.toml")
README_EXAMPLE = """
[hosts.lab]
ssh = "lab"                      # an alias of ~/.ssh/config

[environments.pytorch]
display_name = "Docker-GPU (remote)"
hosts = ["lab"]
image = "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"
gpus = 1
shm_size = "8g"
mounts = ["/data:/data:ro", "~/.cache/huggingface:/cache/hf"]
env = { HF_HOME = "/cache/hf" }
"""


def problems_of(text: str) -> dict[str, str]:
    with pytest.raises(ConfigInvalid) as caught:
        load.parse(text, PATH)
    found = {problem.key: problem.sentence for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "each key is complained about once"
    assert caught.value.exit_code == 10
    return found


def environment_problems(line: str) -> dict[str, str]:
    return problems_of(f'[hosts.lab]\nssh = "lab"\n[environments.a]\nimage = "x"\n{line}\n')


def with_environment(line: str) -> Environment:
    return load.parse(f'[hosts.lab]\nssh = "lab"\n[environments.a]\nimage = "x"\n{line}\n', PATH).environment("a")


def test_the_example_of_the_design_is_read_as_meant() -> None:
    loaded = load.parse(README_EXAMPLE, PATH)
    assert loaded.path == PATH
    assert loaded.hosts == {"lab": Host(name="lab", ssh="lab")}
    environment = loaded.environment("pytorch")
    assert environment.gpus == 1
    assert environment.shm_size == 8 << 30
    assert environment.mounts == (
        Mount(source="/data", target="/data", read_only=True),
        Mount(source="~/.cache/huggingface", target="/cache/hf"),
    )
    assert environment.env == {"HF_HOME": "/cache/hf"}
    assert loaded.hosts_of(environment) == (Host(name="lab", ssh="lab"),)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ({"a": None}, {"a": "Docker-GPU (remote)"}),
        ({"a": "Mine"}, {"a": "Mine"}),
        ({"a": None, "b": None}, {"a": "Docker-GPU (remote), a", "b": "Docker-GPU (remote), b"}),
        ({"a": None, "b": "Mine"}, {"a": "Docker-GPU (remote)", "b": "Mine"}),
        ({"a": None, "b": "Docker-GPU (remote)"}, {"a": "Docker-GPU (remote), a", "b": "Docker-GPU (remote)"}),
    ],
)
def test_display_names_are_short_where_they_can_be_and_never_the_same(
    written: dict[str, str | None], shown: dict[str, str]
) -> None:
    environments = {
        name: Environment(name=name, image="x", display_name=display_name) for name, display_name in written.items()
    }
    assert load.display_names(Config(path=PATH, environments=environments)) == shown


def test_a_written_display_name_may_not_be_what_another_gets_by_default() -> None:
    found = problems_of(
        '[environments.a]\nimage = "x"\n[environments.b]\nimage = "x"\n'
        '[environments.c]\nimage = "x"\ndisplay_name = "Docker-GPU (remote), a"\n'
    )
    assert list(found) == ["environments.a.display_name", "environments.c.display_name"]
    assert "is also the name of c" in found["environments.a.display_name"]


def test_the_config_is_looked_for_where_it_is_named_then_in_the_variable_then_at_jupyter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    environ = {"KERNELBRIDGE_CONFIG": str(tmp_path / "other.toml")}
    assert load.find_path(environ, tmp_path / "named.toml") == tmp_path / "named.toml"
    assert load.find_path(environ) == tmp_path / "other.toml"
    assert load.find_path({}) == tmp_path / "kernelbridge.toml"
    assert load.find_path({"KERNELBRIDGE_CONFIG": ""}) == tmp_path / "kernelbridge.toml"
    assert load.find_path({}, Path("near.toml")).is_absolute()
    assert load.find_path({}, Path("~/x.toml")) == Path.home() / "x.toml"


def test_a_missing_default_file_is_an_empty_config_and_a_missing_named_one_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    empty = load.load(load.find_path({}))
    assert empty.environments == {}
    assert list(empty.hosts) == ["local"]
    with pytest.raises(ConfigMissing, match=r"named\.toml.*there is no such file"):
        load.load(tmp_path / "named.toml")
    with pytest.raises(ConfigMissing, match="directory"):
        load.load(tmp_path)


def test_a_file_that_is_not_utf8_is_a_problem_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "kernelbridge.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigInvalid, match="file: is not UTF-8 text"):
        load.load(path)
    path.write_text(README_EXAMPLE, "utf-8")
    assert list(load.load(path).environments) == ["pytorch"]


def test_the_schema_accepts_the_example_and_refuses_unknown_keys() -> None:

    schema = json.loads(json.dumps(load.schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    good = tomllib.loads(README_EXAMPLE)
    jsonschema.validate(good, schema)
    mistakes: list[dict[str, Any]] = [
        {"hots": {}},
        {"hosts": {"lab": {}}},
        {"environments": {"a": {"image": "x", "gpu": 1}}},
    ]
    for wrong in mistakes:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    jsonschema.validate({}, schema)


@pytest.mark.parametrize(("value", "is_right"), [("24h", True), (90, True), (0.5, True), ("24x", False), (0, False)])
def test_the_schema_knows_what_a_time_is(value: object, is_right: bool) -> None:
    written = {"environments": {"a": {"image": "x", "lost_grace": value}}}
    found = list(jsonschema.Draft202012Validator(load.schema()).iter_errors(written))
    assert (found == []) is is_right


def test_nothing_is_added_to_an_image_in_a_job_of_a_cluster() -> None:
    text = """
[hosts.lab]
ssh = "lab"
[hosts.hpc]
ssh = "hpc"
scheduler = "slurm"
[environments.torch]
image = "torch:2"
apt = ["git"]
[environments.here]
image = "torch:2"
hosts = ["lab"]
packages = ["six"]
"""
    with pytest.raises(ConfigInvalid) as caught:
        load.parse(text, Path("/k.toml"))
    assert [str(problem) for problem in caught.value.problems] == [
        "environments.torch.apt: nothing can be added to an image on hpc, where Slurm runs it: add it to the image"
    ]


# -- this machine's own engine


def test_this_machine_is_a_host_where_an_environment_names_it() -> None:
    loaded = load.parse('[environments.a]\nimage = "x"\nhosts = ["local"]\n', PATH)
    assert loaded.hosts == {"local": Host(name="local", ssh="local")}
    assert [host.is_local for host in loaded.hosts_of(loaded.environment("a"))] == [True]


def test_it_stands_beside_the_hosts_that_are_named() -> None:
    text = '[hosts.lab]\nssh = "lab"\n[environments.a]\nimage = "x"\nhosts = ["local", "lab"]\n'
    loaded = load.parse(text, PATH)
    assert [host.name for host in loaded.hosts_of(loaded.environment("a"))] == ["local", "lab"]


def test_it_is_no_host_where_nobody_names_it() -> None:
    loaded = load.parse('[hosts.lab]\nssh = "lab"\n[environments.a]\nimage = "x"\nhosts = ["lab"]\n', PATH)
    assert list(loaded.hosts) == ["lab"]
    assert list(load.parse('[hosts.lab]\nssh = "lab"\n[environments.a]\nimage = "x"\n', PATH).hosts) == ["lab"]


def test_a_host_of_that_name_stays_as_it_is_written() -> None:
    text = '[hosts.local]\nssh = "lab"\n[environments.a]\nimage = "x"\nhosts = ["local"]\n'
    assert load.parse(text, PATH).hosts["local"].ssh == "lab"


def test_by_the_defaults_it_is_named_too() -> None:
    text = '[defaults]\nhosts = ["local"]\n[environments.a]\nimage = "x"\n'
    assert list(load.parse(text, PATH).hosts) == ["local"]


@pytest.mark.parametrize(
    "text",
    [
        'hosts = 1\n[environments.a]\nimage = "x"\nhosts = ["local"]\n',
        'environments = ["local"]\n',
        '[environments]\na = "local"\n',
        '[environments.a]\nimage = "x"\nhosts = [["local"]]\n',
    ],
)
def test_what_is_no_table_is_told_all_the_same(text: str) -> None:
    assert problems_of(text)
