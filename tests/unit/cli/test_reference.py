"""cli/reference.py: the tables of keys and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernelbridge.cli import reference
from kernelbridge.config import load
from tests.unit.cli.conftest import Call


def test_the_schema_and_the_tables_need_no_config(call: Call, config_path: Path) -> None:
    config_path.write_text("this is no TOML")
    assert json.loads(call("config", "--schema").out) == load.schema()
    assert call("config", "--table").out == reference.of_keys() + "\n"
    assert call("config", "--errors").out == reference.of_errors() + "\n"


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
    assert reference.toml(key, value) == text
