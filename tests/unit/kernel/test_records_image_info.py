"""kernel/records.py: what an image is known for, by its id and by the name that it last had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernelbridge.channels.waiting import DEFAULT_INFO
from kernelbridge.config.schema import Environment
from kernelbridge.kernel.records import ImageInfo, ImageRecord, Records

INFO = {"status": "ok", "banner": "first"}


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


def image(records: Records, *, python: str = "python3") -> ImageInfo:
    return ImageInfo(records, Environment(name="torch", image="torch:2", python=python))


def test_an_image_that_nobody_knows_has_a_kernel_info_of_its_own_making(records: Records) -> None:
    fresh = image(records)
    assert (fresh.record.kernel_info, fresh.record.widgets) == (DEFAULT_INFO, None)
    assert not fresh.has_id
    assert fresh.set_id("") is None
    assert repr(fresh) == "<ImageInfo torch:2 python3 by name>"


def test_what_a_kernel_said_is_known_the_next_time(records: Records) -> None:
    first = image(records)
    assert first.set_id("sha256:a") is None
    assert first.has_id
    first.learn(info=INFO)
    first.learn(widgets="8.1")
    second = image(records)
    assert (second.record.kernel_info, second.record.widgets) == (INFO, "8.1")
    found = second.set_id("sha256:a")
    assert found is not None
    assert (found.kernel_info, found.widgets) == (INFO, "8.1")


def test_the_name_may_stand_for_another_image_now(records: Records) -> None:
    first = image(records)
    first.set_id("sha256:a")
    first.learn(info=INFO, widgets="8.1")
    second = image(records)
    assert second.set_id("sha256:b") is None
    # Its ipywidgets decide what is answered early: those of another image do not count.
    assert (second.record.kernel_info, second.record.widgets) == (INFO, None)


def test_another_python_of_the_same_image_is_another_kernel(records: Records) -> None:
    first = image(records)
    first.set_id("sha256:a")
    first.learn(info=INFO)
    assert image(records, python="/opt/bin/python").record.kernel_info == DEFAULT_INFO
    assert image(records, python="/opt/bin/python").set_id("sha256:a") is None


def test_an_image_without_an_id_is_not_written_down(records: Records) -> None:
    first = image(records)
    first.learn(info=INFO)
    assert image(records).record.kernel_info == DEFAULT_INFO


@pytest.mark.parametrize(
    ("kept", "info"),
    [
        ({"supported_features": None, "banner": "x"}, {"banner": "x"}),
        ({"supported_features": "x"}, {}),
        ({"banner": "x" * 1_000_000}, {"banner": "x" * 4096}),
        (7, None),
        (None, None),
        ([], None),
    ],
)
def test_what_an_older_version_kept_of_an_image_is_checked_when_it_is_read(
    tmp_path: Path, kept: object, info: object
) -> None:
    others: list[object] = [None, "8.1", 5, []]
    for widgets in others:
        whole = {"names": {"torch": "id"}, "images": {"id": {"kernel_info": kept, "widgets": widgets}}}
        (tmp_path / "images.json").write_text(json.dumps(whole))
        record = Records(tmp_path).image("torch")
        assert (record.kernel_info if record else None) == info
        assert record is None or record.widgets in (None, "8.1")


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "[" * 100_000, '{"names": [], "images": {}}', '{"names": {"torch": []}, "images": {}}']
)
def test_a_broken_file_of_images_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "images.json").write_text(text)
    records = Records(tmp_path)
    assert records.image("torch") is None
    records.keep_image(name="torch", image_id="id", record=ImageRecord(kernel_info={"banner": "x"}))
    assert records.image("torch") == ImageRecord(kernel_info={"banner": "x"})
