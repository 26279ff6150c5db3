"""cli/settings.py, specs.py and tables.py: the commands that need no host."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from kernelbridge import config
from kernelbridge.cli import app, tables
from kernelbridge.records import KernelRecord, Records
from tests.fakes import FakeFleet
from tests.unit.cli.conftest import Call

# -- config


def test_what_config_prints_is_a_config_that_means_the_same(call: Call, config_path: Path) -> None:
    ended = call("config")
    assert ended.code == 0
    assert f"# {config_path}" in ended.out
    assert 'shm_size = "8g"\n' in ended.out
    assert "pids_limit = 4096  # default" in ended.out
    again = config.parse(ended.out, config_path)
    written = config.load(config_path)
    assert again.hosts == written.hosts
    assert again.environment("pytorch") == written.environment("pytorch").model_copy(
        update={"display_name": "Docker-GPU (remote)"}
    )


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


def test_the_schema_and_the_tables_need_no_config(call: Call, config_path: Path) -> None:
    config_path.write_text("this is no TOML")
    assert json.loads(call("config", "--schema").out) == config.schema()
    assert call("config", "--table").out == tables.of_keys() + "\n"
    assert call("config", "--errors").out == tables.of_errors() + "\n"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("shm_size", 8 << 30, '"8g"'),
        ("memory", 1000, '"1000"'),
        ("gpus", 2, "2"),
        ("gpus", ("0", "1"), '["0", "1"]'),
        ("cpus", 1.5, "1.5"),
        ("start_seconds", 60.0, "60"),
        ("lost_grace", 86400.0, '"24h"'),
        ("max_lifetime", 5400.0, '"90m"'),
        ("journal_size", 256 << 20, '"256m"'),
        ("env", {"A": 'say "hi"'}, '{ A = "say \\"hi\\"" }'),
        ("labels", {"a.b": "x"}, '{ "a.b" = "x" }'),
        ("env", {}, "{}"),
        ("core_dumps", False, "false"),
    ],
)
def test_values_are_written_as_toml(key: str, value: object, text: str) -> None:
    assert tables.toml(key, value) == text


# -- install, uninstall


def test_install_writes_renews_and_removes_kernel_specs(call: Call, config_path: Path, tmp_path: Path) -> None:
    root = tmp_path / "data" / "kernels"
    assert 'Wrote kernelbridge-pytorch: "Docker-GPU (remote)"' in call("install").out
    assert 'kernelbridge-pytorch is up to date: "Docker-GPU (remote)"' in call("install").out
    config_path.write_text('[environments.jax]\nimage = "x"\n')
    out = call("install").out
    assert "Wrote kernelbridge-jax" in out
    assert "Removed kernelbridge-pytorch: its environment is gone." in out
    assert [path.name for path in root.iterdir()] == ["kernelbridge-jax"]
    config_path.write_text("no TOML")
    assert call("uninstall").out == "Removed kernelbridge-jax.\n"
    assert call("uninstall").out == "No kernel specs to remove.\n"
    assert list(root.iterdir()) == []


def test_install_writes_specs_of_kernels_that_run_and_uninstall_removes_them(
    call: Call, config_path: Path, tmp_path: Path
) -> None:
    record = KernelRecord(
        kernel_id="aabb1111-0000",
        environment="pytorch",
        config=str(config_path),
        host="lab",
        image="x",
        python="python3",
        session="s",
        started=0.0,
        persist=True,
    )
    Records(tmp_path / "data" / "kernelbridge").keep(record)
    name = "kernelbridge-running-aabb1111"
    assert f"Wrote {name}: a kernel that runs and that nobody holds, for VS Code." in call("install").out
    assert name not in call("install").out
    assert call("uninstall").out.splitlines() == ["Removed kernelbridge-pytorch.", f"Removed {name}."]
    assert list((tmp_path / "data" / "kernels").iterdir()) == []


def test_install_leaves_a_foreign_spec_alone_and_says_so(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "kernels" / "kernelbridge-pytorch"
    folder.mkdir(parents=True)
    ended = call("install")
    assert ended.code == 0
    assert f"{folder} belongs to another config and was left alone" in ended.err
    assert list(folder.iterdir()) == []


def test_install_warns_where_the_launcher_is_missing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    assert "is not there: VS Code cannot start kernels" in call("install").err
    (tmp_path / ("kernelbridge-launch.exe" if os.name == "nt" else "kernelbridge-launch")).touch()
    assert call("install").err == ""
