"""records.py: what this machine remembers, and that a hint which is broken or cannot be written does no harm."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from kernelbridge.records import ImageRecord, Records

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
