"""jupyter/kernelspecs.py: kernel.json folders written, renewed and removed, and never a foreign one."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.errors import SpecsUnwritable
from kernelbridge.jupyter import kernelspecs
from kernelbridge.jupyter.kernelspecs import Changes

LAUNCHER = Path("/venv/bin/kernelbridge-launch").absolute()
CONFIG_PATH = Path("/home/ada/kernelbridge.toml").absolute()


def config_of(*names: str, path: Path = CONFIG_PATH, **written: Any) -> Config:
    return Config(path=path, environments={name: Environment(name=name, image="x", **written) for name in names})


def spec_in(root: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"kernelbridge-{name}" / "kernel.json").read_text("utf-8"))
    return found


def times(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}


def test_one_kernel_json_serves_vs_code_and_jupyter(tmp_path: Path) -> None:
    assert kernelspecs.write(config_of("pytorch"), tmp_path, LAUNCHER) == Changes(written=("kernelbridge-pytorch",))
    assert spec_in(tmp_path, "pytorch") == {
        "argv": [str(LAUNCHER), "-f", "{connection_file}"],
        "display_name": "Docker-GPU (remote)",
        "language": "python",
        "interrupt_mode": "message",
        "env": {"KERNELBRIDGE_ENVIRONMENT": "pytorch", "KERNELBRIDGE_CONFIG": str(CONFIG_PATH)},
        "metadata": {
            "debugger": True,
            "kernel_provisioner": {
                "provisioner_name": "kernelbridge",
                "config": {"environment": "pytorch", "config_path": str(CONFIG_PATH)},
            },
            "kernelbridge": {"config": str(CONFIG_PATH), "gpus": "no GPU"},
        },
    }


def test_jupyter_itself_reads_what_we_wrote(tmp_path: Path) -> None:
    kernelspecs.write(config_of("pytorch"), tmp_path, LAUNCHER)
    folders = KernelSpecManager(kernel_dirs=[str(tmp_path)]).find_kernel_specs()
    assert folders["kernelbridge-pytorch"] == str(tmp_path / "kernelbridge-pytorch")
    spec = KernelSpec.from_resource_dir(folders["kernelbridge-pytorch"])
    assert spec.display_name == "Docker-GPU (remote)"
    assert spec.interrupt_mode == "message"
    assert sorted(path.name for path in Path(spec.resource_dir).glob("logo-*")) == sorted(kernelspecs.LOGO_FILES)


@pytest.mark.parametrize(("idle_seconds", "metadata"), [(0, None), (3600, 3600)])
def test_an_idle_limit_is_written_only_when_it_is_one(tmp_path: Path, idle_seconds: int, metadata: int | None) -> None:
    kernelspecs.write(config_of("a", cull_idle_timeout=idle_seconds), tmp_path, LAUNCHER)
    assert spec_in(tmp_path, "a")["metadata"].get("cull_idle_timeout") == metadata


@pytest.mark.parametrize(
    ("written", "debugger"),
    [({}, True), ({"network": "host"}, False), ({"network": "host", "debug_on_host_network": True}, True)],
)
def test_the_debugger_is_offered_where_it_is_safe_or_asked_for(
    tmp_path: Path, written: dict[str, Any], debugger: bool
) -> None:
    kernelspecs.write(config_of("a", **written), tmp_path, LAUNCHER)
    assert spec_in(tmp_path, "a")["metadata"]["debugger"] is debugger


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ({}, "no GPU"),
        ({"gpus": 1}, "1 free GPU of lab or hpc"),
        ({"gpus": 2, "hosts": ("lab",)}, "2 free GPUs of lab"),
        ({"gpus": {"wanted": 2, "min": 0}, "hosts": ("lab",)}, "0 to 2 free GPUs of lab"),
        ({"gpus": {"wanted": 1, "min": 1}, "hosts": ("lab",)}, "1 free GPU of lab"),
        ({"gpus": {"wanted": 2, "min": 2}, "gpu_model": "H200", "hosts": ("lab",)}, "2 free GPUs (H200) of lab"),
        ({"gpus": "all", "hosts": ("lab",)}, "all GPUs of lab"),
        ({"gpus": ("0", "GPU-1234"), "hosts": ("lab",)}, "GPU 0, GPU GPU-1234 of lab"),
        ({"gpus": 1, "gpu_model": "H200", "hosts": ("lab",)}, "1 free GPU (H200) of lab"),
        (
            {"gpus": 1, "gpu_model": "H200", "gpu_memory": "20g", "wait": "30m", "hosts": ("lab",)},
            "1 free GPU (H200, 20g free) of lab, waits up to 30m",
        ),
        ({"gres": "gpu:h200:2", "hosts": ("hpc",)}, "gpu:h200:2 of hpc"),
        ({"gres": "gpu:h200:2", "gpus": 1, "hosts": ("lab", "hpc")}, "1 free GPU of lab, gpu:h200:2 of hpc"),
        ({"gres": "gpu:h200:2", "hosts": ("lab", "hpc")}, "no GPU of lab, gpu:h200:2 of hpc"),
    ],
)
def test_the_metadata_says_in_words_which_gpus_a_kernel_gets(
    tmp_path: Path, written: dict[str, Any], text: str
) -> None:
    hosts = {"lab": Host(name="lab", ssh="lab"), "hpc": Host(name="hpc", ssh="hpc", scheduler="slurm")}
    environment = Environment(name="a", image="x", **written)
    kernelspecs.write(Config(path=CONFIG_PATH, hosts=hosts, environments={"a": environment}), tmp_path, LAUNCHER)
    assert spec_in(tmp_path, "a")["metadata"]["kernelbridge"]["gpus"] == text


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    kernelspecs.write(config_of("a", "b"), tmp_path, LAUNCHER)
    before = times(tmp_path)
    changes = kernelspecs.write(config_of("a", "b"), tmp_path, LAUNCHER)
    assert changes == Changes(unchanged=("kernelbridge-a", "kernelbridge-b"))
    assert times(tmp_path) == before


def test_only_what_differs_is_renewed(tmp_path: Path) -> None:
    kernelspecs.write(config_of("a"), tmp_path, LAUNCHER)
    folder = tmp_path / "kernelbridge-a"
    before = times(tmp_path)
    (folder / "logo-32x32.png").write_bytes(b"half")
    assert kernelspecs.write(config_of("a"), tmp_path, LAUNCHER).written == ("kernelbridge-a",)
    assert (folder / "logo-32x32.png").read_bytes().startswith(b"\x89PNG")
    assert times(tmp_path)[str(folder / "kernel.json")] == before[str(folder / "kernel.json")]
    moved = Path("/new/bin/kernelbridge-launch").absolute()
    assert kernelspecs.write(config_of("a"), tmp_path, moved).written == ("kernelbridge-a",)
    assert spec_in(tmp_path, "a")["argv"][0] == str(moved)


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    kernelspecs.write(config_of("a"), tmp_path, LAUNCHER)
    names = sorted(path.name for path in (tmp_path / "kernelbridge-a").iterdir())
    assert names == sorted(("kernel.json", *kernelspecs.LOGO_FILES))


def test_specs_of_environments_that_are_gone_are_removed(tmp_path: Path) -> None:
    kernelspecs.write(config_of("a", "b"), tmp_path, LAUNCHER)
    changes = kernelspecs.write(config_of("b"), tmp_path, LAUNCHER)
    # The display name of b is another one now that it is alone.
    assert changes == Changes(written=("kernelbridge-b",), removed=("kernelbridge-a",))
    assert [path.name for path in tmp_path.iterdir()] == ["kernelbridge-b"]


@pytest.mark.parametrize(
    "text",
    [None, "{", "[]", "{}", '{"metadata": {"kernelbridge": {"config": "/other.toml"}}}', '{"metadata": 1}', "\xff"],
)
def test_a_folder_without_our_mark_is_never_touched(tmp_path: Path, text: str | None) -> None:
    folder = tmp_path / "kernelbridge-a"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    if text is not None:
        (folder / "kernel.json").write_text(text, "latin-1")
    before = times(tmp_path)
    assert kernelspecs.write(config_of("a"), tmp_path, LAUNCHER) == Changes(foreign=("kernelbridge-a",))
    assert kernelspecs.write(config_of(), tmp_path, LAUNCHER) == Changes()
    assert kernelspecs.remove(tmp_path, CONFIG_PATH) == Changes()
    assert times(tmp_path) == before


def test_another_configs_specs_stay_when_ours_are_removed(tmp_path: Path) -> None:
    other_path = Path("/other.toml").absolute()
    kernelspecs.write(config_of("a"), tmp_path, LAUNCHER)
    kernelspecs.write(config_of("b", path=other_path), tmp_path, LAUNCHER)
    assert kernelspecs.remove(tmp_path, CONFIG_PATH) == Changes(removed=("kernelbridge-a",))
    assert kernelspecs.remove(tmp_path, CONFIG_PATH) == Changes()
    assert [path.name for path in tmp_path.iterdir()] == ["kernelbridge-b"]


def test_what_somebody_put_into_our_folder_stays(tmp_path: Path) -> None:
    kernelspecs.write(config_of("a"), tmp_path, LAUNCHER)
    (tmp_path / "kernelbridge-a" / "notes.txt").write_text("mine")
    assert kernelspecs.remove(tmp_path, CONFIG_PATH).removed == ("kernelbridge-a",)
    assert [path.name for path in (tmp_path / "kernelbridge-a").iterdir()] == ["notes.txt"]


def test_a_missing_root_has_nothing_to_remove(tmp_path: Path) -> None:
    assert kernelspecs.remove(tmp_path / "missing", CONFIG_PATH) == Changes()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    root = tmp_path / "kernels"
    root.write_text("a file, where a folder is wanted")
    with pytest.raises(SpecsUnwritable, match="the kernel spec cannot be written") as caught:
        kernelspecs.write(config_of("a"), root, LAUNCHER)
    assert isinstance(caught.value.__cause__, OSError)


def test_the_launcher_is_looked_for_beside_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "kernelbridge-launch.exe" if os.name == "nt" else "kernelbridge-launch"
    (tmp_path / name).touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert kernelspecs.launcher_path() == tmp_path / name


def test_a_launcher_that_is_nowhere_is_expected_beside_this_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path / "scripts"))
    assert kernelspecs.launcher_path().parent == tmp_path
    assert kernelspecs.launcher_path().is_absolute()


def test_specs_go_where_vs_code_always_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    assert kernelspecs.default_root() == tmp_path / "kernels"


@pytest.mark.parametrize("pixels", [32, 64])
def test_logos_have_the_size_in_their_name(tmp_path: Path, pixels: int) -> None:
    kernelspecs.write(config_of("a"), tmp_path, LAUNCHER)
    png = (tmp_path / "kernelbridge-a" / f"logo-{pixels}x{pixels}.png").read_bytes()
    assert struct.unpack(">II", png[16:24]) == (pixels, pixels)
