"""protocol/json_object.py: which values are taken from a foreign JSON object; whole voices: test_handshake.py."""

from __future__ import annotations

from typing import Any

import pytest

from kernelbridge.protocol.frames import WireError
from kernelbridge.protocol.json_object import TABLE_BYTES, JsonObject

SAID = JsonObject({"text": "a", "none": None, "flag": True, "number": 3, "time": 1.5, "list": ["a"], "table": {"a": 1}})


def test_values_of_the_right_type_are_taken() -> None:
    assert (SAID.text("text"), SAID.text("other", "b"), SAID.text_or_none("none")) == ("a", "b", None)
    assert (SAID.flag("flag"), SAID.flag("other", False)) == (True, False)
    assert (SAID.count("number"), SAID.seconds("time"), SAID.seconds("number")) == (3, 1.5, 3.0)
    assert (SAID.texts("list"), SAID.table("table"), SAID.table_or_none("none")) == (["a"], {"a": 1}, None)
    assert SAID.seconds_or_none("none") is None
    assert SAID.object_or_none("none") is None
    inner = SAID.object_or_none("table")
    assert inner is not None and inner.count("a") == 1


@pytest.mark.parametrize("method", ["text", "flag", "count", "seconds", "texts", "table"])
def test_a_value_that_is_missing_or_none_is_an_error(method: str) -> None:
    for key in ("other", "none"):
        with pytest.raises(WireError, match=key):
            getattr(SAID, method)(key)


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("text", ["number", "flag", "list", "table"]),
        ("flag", ["number", "text"]),
        ("count", ["flag", "time", "text"]),
        ("seconds", ["flag", "text", "list"]),
        ("texts", ["text", "table"]),
        ("table", ["list", "text"]),
    ],
)
def test_a_value_of_another_type_is_an_error(method: str, wrong: list[str]) -> None:
    for key in wrong:
        with pytest.raises(WireError, match=key):
            getattr(SAID, method)(key)


def test_a_large_table_and_a_deep_one_are_errors() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    for table in ({"a": "x" * TABLE_BYTES}, deep):
        with pytest.raises(WireError):
            JsonObject({"table": table}).table("table")


def test_numbers_come_as_many_as_wanted() -> None:
    assert JsonObject({"a": [1, 2]}).counts("a", 2) == [1, 2]
    for wrong in ([1], [1, 2, 3], [1, "2"], [1, -2], [1, True], "12", None):
        with pytest.raises(WireError):
            JsonObject({"a": wrong}).counts("a", 2)
