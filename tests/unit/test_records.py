"""records.py: what this machine remembers, and that a hint which is broken or cannot be written does no harm."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.records import ImageRecord, KernelRecord, Records, SessionRecord

INFO = {"status": "ok", "implementation": "ipython"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kernelbridge"


def test_the_machine_id_is_made_once_and_kept(folder: Path) -> None:
    made = Records(folder).machine_id()
    assert len(made) == 16
    assert Records(folder).machine_id() == made
    assert Records(folder.with_name("another")).machine_id() != made


def test_the_folder_is_closed_to_others(folder: Path) -> None:
    Records(folder).machine_id()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_image_is_known_by_its_id_and_by_the_name_it_last_had(folder: Path) -> None:
    records = Records(folder)
    assert records.image("torch:2") is None
    records.remember(name="torch:2", image_id="sha256:a", record=ImageRecord(kernel_info=INFO, widgets="8.1"))
    assert Records(folder).image("torch:2") == ImageRecord(kernel_info=INFO, widgets="8.1")
    assert Records(folder).image("sha256:a") == ImageRecord(kernel_info=INFO, widgets="8.1")
    newer = ImageRecord(kernel_info={**INFO, "banner": "new"})
    records.remember(name="torch:2", image_id="sha256:b", record=newer)
    assert records.image("torch:2") == newer
    assert records.image("sha256:a") == ImageRecord(kernel_info=INFO, widgets="8.1")


def test_the_oldest_images_are_forgotten(folder: Path) -> None:
    records = Records(folder)
    for number in range(70):
        records.remember(name=f"image:{number}", image_id=f"sha256:{number}", record=ImageRecord(kernel_info=INFO))
    assert records.image("sha256:5") is None
    assert records.image("sha256:6") is not None
    assert records.image("image:69") is not None


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"names": 1, "images": {}}', '{"names": {}}'])
def test_a_broken_file_is_no_hint_and_no_error(folder: Path, broken: str) -> None:
    folder.mkdir()
    (folder / "images.json").write_text(broken)
    records = Records(folder)
    assert records.image("torch:2") is None
    records.remember(name="torch:2", image_id="sha256:a", record=ImageRecord(kernel_info=INFO))
    assert records.image("torch:2") == ImageRecord(kernel_info=INFO)
    assert json.loads((folder / "images.json").read_text())["names"] == {"torch:2": "sha256:a"}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    records = Records(tmp_path / "file")
    assert len(records.machine_id()) == 16
    assert "cannot be written" in caplog.text


# -- kernels


def record(kernel_id: str = "k-1", **facts: Any) -> KernelRecord:
    made_up: dict[str, Any] = {"environment": "torch", "config": "/k.toml", "host": "lab", "image": "x"}
    made_up |= {"python": "python3", "session": "s", "started": 5.0}
    return KernelRecord(kernel_id=kernel_id, **{**made_up, **facts})


def test_a_kernel_is_remembered_with_all_its_facts(folder: Path) -> None:
    sessions = (SessionRecord(session_id="1", path="a/train.ipynb", name="train.ipynb", type="notebook"),)
    kept = record(left=7.0, process="1@2.00", server="/home/ada", sessions=sessions, title="train.ipynb", persist=True)
    kept = replace(kept, claim="c", stop_wanted=True, connection_file="/run/k.json", gpus=("GPU-1", "MIG-2"))
    Records(folder).keep(kept)
    assert Records(folder).kernel("k-1") == kept
    assert Records(folder).kernel("k-2") is None
    assert stat.S_IMODE((folder / "kernels" / "k-1.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "kernels").stat().st_mode) == 0o700


def test_kernels_come_the_oldest_first(folder: Path) -> None:
    records = Records(folder)
    assert records.kernels() == []
    records.keep(record("young", started=9.0))
    records.keep(record("old", started=1.0))
    assert [one.kernel_id for one in records.kernels()] == ["old", "young"]


def test_what_is_remembered_can_change_and_be_forgotten(folder: Path) -> None:
    records = Records(folder)
    records.change("k-1", title="nobody remembers it")
    assert records.kernels() == []
    records.keep(record())
    records.change("k-1", left=7.0, stop_wanted=True)
    assert records.kernel("k-1") == record(left=7.0, stop_wanted=True)
    records.forget("k-1")
    records.forget("k-1")
    assert records.kernel("k-1") is None


def test_a_kernels_id_cannot_leave_the_folder(folder: Path) -> None:
    records = Records(folder)
    records.keep(record("../../outside/x"))
    assert [path.name for path in (folder / "kernels").iterdir()] == ["outsidex.json"]
    assert [path.name for path in folder.iterdir()] == ["kernels"]


@pytest.mark.parametrize(
    "broken", ["", "{", "[]", "{}", '{"kernel_id": "k-1"}', '{"sessions": [1]}', '{"sessions": 3}', '{"gpus": 3}']
)
def test_a_record_that_cannot_be_read_is_none(folder: Path, broken: str) -> None:
    records = Records(folder)
    records.keep(record())
    (folder / "kernels" / "k-1.json").write_text(broken)
    assert records.kernel("k-1") is None
    assert records.kernels() == []


def test_a_record_of_a_newer_version_is_read_as_far_as_it_is_known(folder: Path) -> None:
    records = Records(folder)
    records.keep(record())
    path = folder / "kernels" / "k-1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "green"}))
    assert records.kernel("k-1") == record()
