"""relay/process/installed.py: what a Python has is read from its folders, and nothing of it is loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kernelbridge.relay.ipykernel_launcher import FirstFinder
from kernelbridge.relay.process import installed

FLOORS = {"ipykernel": "6.0", "pyzmq": "17"}


def made(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).mkdir(parents=True)
    return str(folder)


def test_versions_are_those_of_the_first_folder_on_the_path(tmp_path: Path) -> None:
    one = made(tmp_path / "1", "ipykernel-5.5.6.dist-info", "Py_Zmq-24.0.1-py3.11.egg-info", "x-y.dist-info", "zmq")
    two = made(tmp_path / "2", "ipykernel-6.29.5.dist-info", "torch-2.8.0+cu128.dist-info")
    found = installed.versions([one, "/no/such/folder", two])
    assert found == {"ipykernel": "5.5.6", "py-zmq": "24.0.1", "torch": "2.8.0+cu128"}


def test_what_is_missing_or_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = made(tmp_path / "old", "ipykernel", "ipykernel-5.5.6.dist-info", "zmq")
    monkeypatch.setattr(sys, "path", [old])
    for name in ("ipykernel", "zmq"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    # Whoever keeps no list of what is installed knows what he does.
    assert installed.lacking(FLOORS, [old]) == ["ipykernel"]
    assert installed.lacking({**FLOORS, "debugpy_of_nobody": "1"}, [old]) == ["ipykernel", "debugpy_of_nobody"]
    assert installed.lacking({}, [old]) == []
    added = made(tmp_path / "added", "ipykernel", "ipykernel-7.0.dist-info")
    assert installed.lacking(FLOORS, [old, added], FirstFinder(added, frozenset({"ipykernel"}))) == []
    assert installed.lacking(FLOORS, [old, added], FirstFinder(added, frozenset())) == ["ipykernel"]
