"""relay/process/packages.py: pip has a place to write to, and what it puts there is what the kernel imports."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

from kernelbridge.relay.process import packages
from kernelbridge.relay.process.environment import kernel_environment


@pytest.fixture
def anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of packages is not this user's."""
    monkeypatch.setattr(packages, "is_own", lambda: False)


def test_whoever_may_write_to_the_images_packages_uses_its_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packages.is_own()
    assert packages.kernel_python(str(tmp_path)) == sys.executable
    assert packages.user_site({"HOME": str(tmp_path)}) is None
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not packages.is_own()


def test_a_user_site_is_there_before_the_first_package(
    anothers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    assert packages.kernel_python(str(tmp_path)) == sys.executable
    assert packages.user_site({"HOME": str(tmp_path)}) == f"{tmp_path}/.local/bin"
    version = "python{}.{}".format(*sys.version_info)
    assert (tmp_path / ".local/lib" / version / "site-packages").is_dir()
    assert packages.user_site({"HOME": "/", "PYTHONUSERBASE": str(tmp_path / "base")}) == f"{tmp_path}/base/bin"
    assert packages.user_site({"HOME": "/etc/hostname"}) is None


def test_without_a_user_site_an_environment_is_laid_over_the_images(
    anothers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.ENABLE_USER_SITE is False, "tests run in a virtual environment"
    python = packages.kernel_python(str(tmp_path))
    assert python == f"{tmp_path}/venv/bin/python3"
    assert packages.kernel_python(str(tmp_path)) == python, "it stays"
    say = "import json, sys, pytest; print(json.dumps([sys.prefix, sys.base_prefix, pytest.__file__]))"
    assert json.loads(_output(python, "-c", say)) == [f"{tmp_path}/venv", sys.base_prefix, pytest.__file__]
    # What is put there is found, and before what the image has; pip takes it for the place to write to.
    own = Path(_output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (own / "pytest.py").write_text("mine = True")
    assert _output(python, "-c", "import pytest; print(pytest.mine)") == "True\n"
    scratch = str(tmp_path)
    path = kernel_environment({"HOME": scratch, "PATH": "/usr/bin:/bin"}, {}, scratch, python)["PATH"].split(":")
    folders = [str(Path(one).parent) for one in (python, sys.executable)]
    assert [one for one in path if one in folders] == folders
    # A command of the image's environment runs with these packages too.
    (own / "idna").mkdir()
    (own / "idna/__init__.py").touch()
    (own / "idna/__main__.py").touch()
    (own / "idna/cli.py").write_text("def main(): print('mine')")
    assert "mine" in _output(f"{tmp_path}/venv/bin/idna", "--version")


def test_where_none_can_be_made_the_images_python_runs_the_kernel(anothers: None, tmp_path: Path) -> None:
    (tmp_path / "venv").touch()
    assert packages.kernel_python(str(tmp_path)) == sys.executable


def _output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout
