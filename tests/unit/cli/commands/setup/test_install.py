"""cli/commands/setup/install.py: `kernelbridge install` and `uninstall`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kernelbridge.kernel.records import KernelRecord, Records
from tests.unit.cli.conftest import Call


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
    (folder / "kernel.json").write_text("{}")
    ended = call("install")
    assert ended.code == 0
    assert f"{folder} belongs to another config and was left alone" in ended.err
    assert [path.name for path in folder.iterdir()] == ["kernel.json"]


def test_install_warns_where_the_launcher_is_missing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    assert "is not there: VS Code cannot start kernels" in call("install").err
    (tmp_path / ("kernelbridge-launch.exe" if os.name == "nt" else "kernelbridge-launch")).touch()
    assert call("install").err == ""
