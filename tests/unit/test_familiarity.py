"""familiarity.py: what an image is known for, by its id and by the name that it last had."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.channels.waiting import DEFAULT_INFO
from kernelbridge.config import Environment
from kernelbridge.familiarity import Familiarity
from kernelbridge.records import Records

INFO = {"status": "ok", "banner": "first"}


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


def image(records: Records, *, python: str = "python3") -> Familiarity:
    return Familiarity(records, Environment(name="torch", image="torch:2", python=python))


def test_an_image_that_nobody_knows_has_a_kernel_info_of_its_own_making(records: Records) -> None:
    fresh = image(records)
    assert (fresh.record.kernel_info, fresh.record.widgets) == (DEFAULT_INFO, None)
    assert not fresh.has_id
    assert fresh.know("") is None
    assert repr(fresh) == "<Familiarity torch:2 python3 by name>"


def test_what_a_kernel_said_is_known_the_next_time(records: Records) -> None:
    first = image(records)
    assert first.know("sha256:a") is None
    assert first.has_id
    first.learn(info=INFO)
    first.learn(widgets="8.1")
    second = image(records)
    assert (second.record.kernel_info, second.record.widgets) == (INFO, "8.1")
    found = second.know("sha256:a")
    assert found is not None
    assert (found.kernel_info, found.widgets) == (INFO, "8.1")


def test_the_name_may_stand_for_another_image_now(records: Records) -> None:
    first = image(records)
    first.know("sha256:a")
    first.learn(info=INFO, widgets="8.1")
    second = image(records)
    assert second.know("sha256:b") is None
    # Its ipywidgets decide what is answered early: those of another image do not count.
    assert (second.record.kernel_info, second.record.widgets) == (INFO, None)


def test_another_python_of_the_same_image_is_another_kernel(records: Records) -> None:
    first = image(records)
    first.know("sha256:a")
    first.learn(info=INFO)
    assert image(records, python="/opt/bin/python").record.kernel_info == DEFAULT_INFO
    assert image(records, python="/opt/bin/python").know("sha256:a") is None


def test_an_image_without_an_id_is_not_written_down(records: Records) -> None:
    first = image(records)
    first.learn(info=INFO)
    assert image(records).record.kernel_info == DEFAULT_INFO
