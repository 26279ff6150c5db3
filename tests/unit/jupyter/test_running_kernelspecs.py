"""jupyter/running_kernelspecs.py: VS Code's picker has the kernels that run and nobody holds; Jupyter's has not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.errors import SpecsUnwritable
from kernelbridge.jupyter import kernelspecs, running_kernelspecs
from kernelbridge.jupyter.kernelspecs import Changes
from kernelbridge.kernel.process_mark import own_mark
from kernelbridge.kernel.records import KernelRecord, Records

PATH = Path("/home/ada/kernelbridge.toml").absolute()
LAUNCHER = Path("/venv/bin/kernelbridge-launch").absolute()
ID = "aabb1111-0000-4000-8000-000000000001"
NAME = "kernelbridge-running-aabb1111"
HOUR = 3600.0


def config_of(path: Path = PATH, **written: Any) -> Config:
    environment = Environment(name="torch", image="x", **written)
    return Config(path=path, hosts={"lab": Host(name="lab", ssh="lab")}, environments={"torch": environment})


def record(kernel_id: str = ID, **facts: Any) -> KernelRecord:
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
        "persist": True,
    }
    return KernelRecord(kernel_id=kernel_id, **{**made_up, **facts})


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "records")


def renew(records: Records, root: Path, *, now: float = 2.5 * HOUR, config: Config | None = None) -> Changes:
    return running_kernelspecs.renew(records, config or config_of(), root, LAUNCHER, now)


def test_an_offer_goes_where_vs_code_looks(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    records.keep(record())
    assert running_kernelspecs.offer(records, config_of()) == Changes(written=(NAME,))
    spec = json.loads((tmp_path / "data" / "kernels" / "kernelbridge.running" / NAME / "kernel.json").read_text())
    assert spec["argv"][0] == str(kernelspecs.launcher_path())


def test_a_kernel_that_was_left_has_a_spec_with_which_the_launcher_joins_it(records: Records, tmp_path: Path) -> None:
    records.keep(record())
    assert renew(records, tmp_path) == Changes(written=(NAME,))
    assert renew(records, tmp_path) == Changes(unchanged=(NAME,))
    folder = tmp_path / "kernelbridge.running" / NAME
    assert json.loads((folder / "kernel.json").read_text()) == {
        "argv": [str(LAUNCHER), "-f", "{connection_file}"],
        "display_name": "Docker-GPU (remote) running on lab, train.ipynb, 2 h",
        "language": "python",
        "interrupt_mode": "message",
        "env": {
            "KERNELBRIDGE_ENVIRONMENT": "torch",
            "KERNELBRIDGE_CONFIG": str(PATH),
            "KERNELBRIDGE_KERNEL": ID,
        },
        "metadata": {"debugger": True, "kernelbridge": {"config": str(PATH), "kernel": ID}},
    }
    assert sorted(path.name for path in folder.iterdir()) == sorted(("kernel.json", *kernelspecs.LOGO_FILES))


def test_vs_code_finds_the_spec_and_jupyter_neither_lists_it_nor_complains(
    records: Records, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records.keep(record())
    renew(records, tmp_path)
    # VS Code: localKernelSpecFinderBase.node.ts.
    assert [path.parent.name for path in tmp_path.glob("**/kernel.json")] == [NAME]
    manager = KernelSpecManager(kernel_dirs=[str(tmp_path)], ensure_native_kernel=False)
    assert manager.get_all_specs() == {}
    assert caplog.text == ""


def test_what_another_machine_has_written_stays_and_is_not_written_here(records: Records, tmp_path: Path) -> None:
    records.keep(record(left=None, process="1@0.00"))
    renew(records, tmp_path)
    records.change(ID, birth="a.b.c.d.1")
    assert renew(records, tmp_path) == Changes()
    assert (tmp_path / "kernelbridge.running" / NAME).exists()
    running_kernelspecs.remove(tmp_path, PATH)
    assert renew(records, tmp_path) == Changes()
    assert not (tmp_path / "kernelbridge.running").exists()


def test_a_spec_goes_when_its_kernel_is_gone_taken_or_held(records: Records, tmp_path: Path) -> None:
    records.keep(record())
    renew(records, tmp_path)
    records.change(ID, process=own_mark().process)
    assert renew(records, tmp_path) == Changes(removed=(NAME,))
    assert not (tmp_path / "kernelbridge.running").exists()
    records.change(ID, process="")
    assert renew(records, tmp_path) == Changes(written=(NAME,))
    records.forget(ID)
    assert renew(records, tmp_path) == Changes(removed=(NAME,))
    assert renew(records, tmp_path) == Changes()


def test_each_config_sees_to_its_own_specs(records: Records, tmp_path: Path) -> None:
    other_path = Path("/other.toml").absolute()
    other = record("ccdd2222-0000-4000-8000-000000000002", config=str(other_path))
    records.keep(record())
    records.keep(other)
    renew(records, tmp_path)
    assert renew(records, tmp_path, config=config_of(other_path)).written == ("kernelbridge-running-ccdd2222",)
    assert kernelspecs.write(config_of(), tmp_path, LAUNCHER).removed == ()
    assert running_kernelspecs.remove(tmp_path, PATH) == Changes(removed=(NAME,))
    assert running_kernelspecs.remove(tmp_path, PATH) == Changes()
    assert [path.name for path in (tmp_path / "kernelbridge.running").iterdir()] == ["kernelbridge-running-ccdd2222"]


def test_no_two_have_the_same_name() -> None:
    first, second = record(), record("ccdd2222-0000-4000-8000-000000000002")
    third = replace(second, kernel_id="eeff3333-0000-4000-8000-000000000003", title="")
    assert list(running_kernelspecs.picker_names([first, second, third], config_of(), 60).values()) == [
        "Docker-GPU (remote) running on lab, train.ipynb, less than 1 h",
        "Docker-GPU (remote) running on lab, train.ipynb, less than 1 h, ccdd2222",
        "Docker-GPU (remote) running on lab, less than 1 h",
    ]


@pytest.mark.parametrize(
    ("gpus", "text"),
    [
        (("GPU-11111111-aaaa-4000-8000-000000000001",), "GPU-11111111, 2 h"),
        (("MIG-11111111-aaaa-4000-8000-000000000001",), "MIG-11111111, 2 h"),
        (("GPU-1", "GPU-2", "GPU-3"), "3 GPUs, 2 h"),
    ],
)
def test_a_name_has_the_gpus_where_they_are_known(
    records: Records, tmp_path: Path, gpus: tuple[str, ...], text: str
) -> None:
    records.keep(record(gpus=gpus))
    renew(records, tmp_path)
    spec = json.loads((tmp_path / "kernelbridge.running" / NAME / "kernel.json").read_text())
    assert spec["display_name"] == f"Docker-GPU (remote) running on lab, train.ipynb, {text}"
    assert spec["metadata"]["kernelbridge"]["gpus"] == ", ".join(gpus)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "less than 1 h"),
        (HOUR - 1, "less than 1 h"),
        (HOUR, "1 h"),
        (47.9 * HOUR, "47 h"),
        (48 * HOUR, "2 d"),
        (80 * HOUR, "3 d"),
    ],
)
def test_an_age_is_whole_hours_or_days(seconds: float, text: str) -> None:
    assert running_kernelspecs.age_text(seconds) == text


def test_debugging_is_off_where_the_environment_says_so(records: Records, tmp_path: Path) -> None:
    records.keep(record())
    renew(records, tmp_path, config=config_of(network="host"))
    spec = json.loads((tmp_path / "kernelbridge.running" / NAME / "kernel.json").read_text())
    assert spec["metadata"]["debugger"] is False


def test_a_folder_that_cannot_be_written_is_a_sentence(records: Records, tmp_path: Path) -> None:
    records.keep(record())
    (tmp_path / "kernelbridge.running").write_text("a file, where a folder is wanted")
    with pytest.raises(SpecsUnwritable):
        renew(records, tmp_path)
