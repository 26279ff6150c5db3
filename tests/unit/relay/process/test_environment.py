"""relay/process/environment.py: a kernel has a home, a name, a temporary folder and its own Python first."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kernelbridge.relay.process import environment
from kernelbridge.relay.process.environment import kernel_environment, search_path


@pytest.fixture
def scratch(tmp_path: Path) -> str:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return str(folder)


def variables(inherited: dict[str, str], wanted: dict[str, str], scratch: str) -> dict[str, str]:
    return kernel_environment(inherited, wanted, scratch, sys.executable)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user whom the image does not know; its /etc/passwd."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(environment, "PASSWD", str(tmp_path / "passwd"))
    return tmp_path / "passwd"


def test_a_user_whom_the_image_knows_keeps_its_home_and_its_names(scratch: str, tmp_path: Path) -> None:
    got = variables({"HOME": str(tmp_path), "PATH": "/bin", "JPY_PARENT_PID": "7"}, {"A": "1"}, scratch)
    assert got["HOME"] == str(tmp_path)
    assert {"USER", "LOGNAME", "JPY_PARENT_PID"} & set(got) == set()
    assert (got["TMPDIR"], got["A"]) == (f"{scratch}/tmp", "1")


def test_what_the_user_wrote_wins(scratch: str) -> None:
    wanted = {"HOME": "/mine", "PATH": "/my/bin", "USER": "me"}
    got = variables({"HOME": "/", "PATH": "/bin"}, wanted, scratch)
    assert {key: got[key] for key in wanted} == wanted


@pytest.mark.parametrize("home", ["", "/nowhere", "relative", "/etc/hostname"])
def test_a_home_that_is_no_folder_to_write_to_is_replaced_by_one_that_stays(
    nobody: Path, home: str, scratch: str
) -> None:
    got = [variables({"HOME": home, "PATH": "/bin"}, {}, scratch)["HOME"] for _ in range(2)]
    assert got == [f"{scratch}/home"] * 2
    assert Path(got[0]).stat().st_mode & 0o777 == 0o700
    shutil.rmtree(scratch)  # `!rm -rf $TMPDIR/..` is no reason not to start.
    variables({"HOME": home, "PATH": "/bin"}, {}, scratch)
    assert Path(got[0]).is_dir()


def test_a_home_that_is_another_users_is_replaced_by_ones_own(
    scratch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    me = pwd.struct_passwd(("ada", "x", os.getuid(), 1, "", str(tmp_path / "own"), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: me)
    assert variables({"HOME": "/etc/hostname", "PATH": "/bin"}, {}, scratch)["HOME"] == str(tmp_path / "own")


def test_a_kernel_starts_where_its_user_may_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.enterable(str(tmp_path), "/home") == str(tmp_path)
    assert environment.enterable("", "/home") == ""
    assert environment.enterable(str(tmp_path / "gone"), "/home") == "/home"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert environment.enterable("", "/home") == "/home"


@pytest.mark.parametrize(
    ("has", "name"), [({}, "kernelbridge"), ({"USER": "ann"}, "ann"), ({"LOGNAME": "bob", "USER": "ann"}, "bob")]
)
def test_a_user_whom_the_image_does_not_know_has_a_name(
    nobody: Path, has: dict[str, str], name: str, scratch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = variables({"HOME": "/nowhere", "PATH": "/bin", **has}, {}, scratch)
    assert (got["USER"], got["LOGNAME"]) == (name, name)
    assert not nobody.exists()
    for key in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(key, raising=False)
    for key in ("LOGNAME", "USER"):
        monkeypatch.setenv(key, got[key])
    assert getpass.getuser() == name


def test_a_user_is_entered_where_the_image_lets_its_users_do_that_and_once(nobody: Path, scratch: str) -> None:
    nobody.write_text("root:x:0:0::/root:/bin/sh")
    for _ in range(2):
        variables({"HOME": "/nowhere", "PATH": "/bin"}, {}, scratch)
    line = f"kernelbridge:x:{os.getuid()}:{os.getgid()}:kernelbridge:{scratch}/home:/bin/sh"
    assert nobody.read_text() == f"root:x:0:0::/root:/bin/sh\n{line}\n"


def test_without_a_temporary_folder_the_scratch_folder_is_the_relays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    made = environment.scratch_folder(str(tmp_path))
    assert Path(made).parent == tmp_path
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    assert Path(environment.scratch_folder("/nowhere")).parent == tmp_path / "scratch"


# -- the kernel's own Python


def commands(folder: Path, *names: str, says: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\necho {says or folder}: $@\n")
        (folder / name).chmod(0o755)
    return folder


def test_an_environments_folder_comes_first_wherever_it_was(tmp_path: Path, scratch: str) -> None:
    venv = commands(tmp_path / "venv/bin", "python", "python3", "pip", "pip3")
    (tmp_path / "venv/pyvenv.cfg").touch()
    system = commands(tmp_path / "usr/bin", "python3", "pip", "ls")
    for path in (str(system), f"{system}:{venv}", f"{venv}:{system}"):
        assert search_path(path, f"{venv}/python3", scratch) == f"{venv}:{system}"
    assert not Path(scratch, "bin").exists()


def test_a_folder_that_is_not_on_the_path_comes_first(tmp_path: Path, scratch: str) -> None:
    conda = commands(tmp_path / "conda/bin", "python3", "python", "pip", "pip3")
    (tmp_path / "conda/conda-meta").mkdir()
    assert search_path("/nowhere", f"{conda}/python3", scratch) == f"{conda}:/nowhere"


def test_the_systems_folder_keeps_its_place_and_commands_of_another_python_are_the_kernels(
    tmp_path: Path, scratch: str
) -> None:
    local = commands(tmp_path / "local/bin", "python3", "pip", "cuda-tool", says="local")
    usr = commands(tmp_path / "usr it's/bin", "python3", says="usr")
    path = search_path(f"{local}:{usr}", f"{usr}/python3", scratch)
    assert path == f"{scratch}/bin:{local}:{usr}"
    said = {name: run(f"{name} a 'b c'", path) for name in ("python3", "pip", "cuda-tool")}
    assert said == {"python3": "usr: a b c\n", "pip": "usr: -m pip a b c\n", "cuda-tool": "local: a b c\n"}
    # What is not there at all stays so.
    assert sorted(one.name for one in Path(scratch, "bin").iterdir()) == ["pip", "python3"]


def test_an_environment_without_pip_of_its_own_does_not_use_anothers(tmp_path: Path, scratch: str) -> None:
    venv = commands(tmp_path / "venv/bin", "python", "python3", says="venv")
    (tmp_path / "venv/pyvenv.cfg").touch()
    system = commands(tmp_path / "usr/bin", "python3", "pip", "pip3")
    path = search_path(str(system), f"{venv}/python3", scratch)
    assert path == f"{scratch}/bin:{venv}:{system}"
    assert (run("pip3 install x", path), run("python3 x", path)) == ("venv: -m pip install x\n", "venv: x\n")


def run(command: str, path: str) -> str:
    return subprocess.run(["/bin/sh", "-c", command], env={"PATH": path}, capture_output=True, text=True).stdout


def test_one_folder_by_two_names_is_one_folder(tmp_path: Path, scratch: str) -> None:
    usr = commands(tmp_path / "usr/bin", "python3", "pip")
    (tmp_path / "bin").symlink_to(usr)
    path = f"{tmp_path}/bin:{usr}"
    assert search_path(path, f"{usr}/python3", scratch) == path


def test_a_folder_where_nothing_may_run_is_not_put_on_the_path(
    tmp_path: Path, scratch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = commands(tmp_path / "local/bin", "python3")
    usr = commands(tmp_path / "usr/bin", "python3")
    has_access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(scratch) and has_access(path, mode))
    assert search_path(f"{local}:{usr}", f"{usr}/python3", scratch) == f"{local}:{usr}"
    assert search_path("/usr/bin", "", scratch) == "/usr/bin"


@pytest.mark.parametrize(
    ("folders", "base", "expected"),
    [
        ([], "", {}),
        ([], "/usr", {"VIRTUAL_ENV": "PREFIX"}),
        (["conda-meta"], "", {"CONDA_PREFIX": "PREFIX", "CONDA_DEFAULT_ENV": "env"}),
        (["conda-meta", "condabin"], "", {"CONDA_PREFIX": "PREFIX", "CONDA_DEFAULT_ENV": "base"}),
    ],
)
def test_tools_find_the_environment_of_the_kernels_python(
    folders: list[str],
    base: str,
    expected: dict[str, str],
    scratch: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefix = tmp_path / "env"
    prefix.mkdir()
    for folder in folders:
        (prefix / folder).mkdir()
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "base_prefix", base or str(prefix))
    got = variables({"HOME": str(tmp_path), "PATH": "/bin"}, {}, scratch)
    names = ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV")
    assert {key: got[key] for key in names if key in got} == {
        key: text.replace("PREFIX", str(prefix)) for key, text in expected.items()
    }
