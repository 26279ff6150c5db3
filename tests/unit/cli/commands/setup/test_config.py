"""cli/commands/setup/config.py: what is in force, with its defaults and its warnings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernelbridge.cli import app
from kernelbridge.config import load
from tests.fakes import FakeFleet
from tests.unit.cli.conftest import Call

# -- config


def test_what_config_prints_is_a_config_that_means_the_same(call: Call, config_path: Path) -> None:
    ended = call("config")
    assert ended.code == 0
    assert f"# {config_path}" in ended.out
    assert 'shm_size = "8g"\n' in ended.out
    assert "pids_limit = 4096  # default" in ended.out
    again = load.parse(ended.out, config_path)
    written = load.load(config_path)
    assert again.hosts == written.hosts
    assert again.environment("pytorch") == written.environment("pytorch").model_copy(
        update={"display_name": "Docker-GPU (remote)"}
    )


@pytest.mark.parametrize(
    "written",
    [
        'image = "x"\nworkspace = "."',
        'image = "x"\nworkspace = { local = "~/proj", ignore = ["data/"], big_files = "2g" }',
        'image = "x"\ngpus = { wanted = 2, min = 0 }',
        'build = "~/project"',
        'build = { git = "git@example.org:team/project.git#main", args = { CUDA = "12.8" } }',
    ],
)
def test_tables_in_an_environment_are_printed_as_they_can_be_written(
    call: Call, config_path: Path, written: str
) -> None:
    config_path.write_text(f"[environments.a]\n{written}\n")
    ended = call("config")
    assert ended.code == 0
    again, before = load.parse(ended.out, config_path), load.load(config_path)
    for key in ("workspace", "gpus", "build"):
        assert getattr(again.environment("a"), key) == getattr(before.environment("a"), key)
    assert json.loads(call("config", "--json").out)["environments"]["a"]["image"] == before.environment("a").image


def test_config_as_json_has_defaults_and_display_names(call: Call) -> None:
    whole = json.loads(call("config", "--json").out)
    facts = {"ssh": "lab", "socket": None, "gpu_access": "auto", "scheduler": None}
    assert {key: whole["hosts"]["lab"][key] for key in facts} == facts
    environment = whole["environments"]["pytorch"]
    assert environment["display_name"] == "Docker-GPU (remote)"
    assert environment["hosts"] == ["lab"]
    assert environment["shm_size"] == 8 << 30
    assert environment["mounts"] == ["/data:/data:ro"]
    assert environment["ulimits"] == {"nofile": "3:4"}
    assert whole["warnings"] == []


@pytest.mark.parametrize("arguments", [("config",), ("config", "--json"), ("install",)])
def test_a_token_in_env_is_warned_of_and_never_printed(call: Call, config_path: Path, arguments: tuple[str]) -> None:
    config_path.write_text('[environments.a]\nimage = "x"\nenv = { HF_TOKEN = "hf_abcdefghijkl" }\n')
    ended = call(*arguments)
    assert ended.code == 0
    assert "environments.a.env.HF_TOKEN looks like a secret" in ended.out + ended.err
    assert "hf_abcdefghijkl" not in ended.out + ended.err


def test_a_bad_file_of_requirements_is_told_with_its_key_below_the_config(call: Call, config_path: Path) -> None:
    config_path.write_text('[environments.a]\nimage = "x"\nrequirements = "none.txt"\n')
    ended = call("config")
    assert ended.code == 10
    assert "[environments.a]" in ended.out
    assert "environments.a.requirements:" in ended.err
    assert "none.txt cannot be read" in " ".join(ended.err.split())


def test_an_empty_config_says_what_to_write(call: Call, config_path: Path) -> None:
    config_path.write_text("")
    for command in ("config", "install"):
        assert "write [environments.NAME] with an image" in call(command).out


def test_the_default_config_need_not_be_there(
    fleet: FakeFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    assert app.run(["config"], open_fleet=fleet.open, environ={}, version="1") == 0  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert "(not there: defaults only)" in out
    assert 'ssh = "local"' in out


# -- install, uninstall
