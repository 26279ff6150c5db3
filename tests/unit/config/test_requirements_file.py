"""config/requirements_file.py: which lines of a file of requirements are taken, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.config import requirements_file
from kernelbridge.config.schema import Config, Environment
from kernelbridge.errors import ConfigInvalid


def read(folder: Path, file: str) -> tuple[str, ...]:
    environment = Environment(name="torch", image="torch:2", requirements=file)
    return requirements_file.read(environment, folder / "kernelbridge.toml")


@pytest.mark.parametrize("line", ["-r other.txt", "-e .", "--index-url x", "six==1 --hash=sha256:1", "six==1 \\"])
def test_options_of_pip_in_it_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "r").write_text(f"einops\n{line}\n")
    with pytest.raises(ConfigInvalid, match="is an option of pip; only requirements are taken"):
        read(tmp_path, "r")


@pytest.mark.parametrize(
    "line",
    [
        *("six", "six==1.*", "a.b-c[d, e] >= 1 , < 2", "six (>=1)", "six~=1.0; python_version < '4'", "six ; x == 'y'"),
        *("six @ https://index.test/six.whl", "git+https://host.test/six.git@v1#egg=six", "six\t# of two"),
    ],
)
def test_a_requirement_of_any_kind_is_taken(tmp_path: Path, line: str) -> None:
    (tmp_path / "r").write_bytes(b"\xef\xbb\xbf" + f"{line}\n".encode())
    assert read(tmp_path, "r") == (line.partition("\t#")[0],)


@pytest.mark.parametrize(
    "line", ["six einops", f"six{' ' * 300}1", "six=1", "./six.whl", "six>=", "[six]", "six == 1 2", "six,"]
)
def test_a_line_that_is_none_is_refused_with_the_key(tmp_path: Path, line: str) -> None:
    (tmp_path / "r").write_text(f"einops\n{line}\n")
    with pytest.raises(ConfigInvalid) as caught:
        read(tmp_path, "r")
    (problem,) = caught.value.problems
    assert problem.key == "environments.torch.requirements"
    assert f"`{line[:80]}` is no requirement; only requirements are taken, one on each line" in problem.sentence


def test_the_files_of_all_environments_are_checked_at_once(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("six\n")
    files = {"one": "none.txt", "two": "good", "three": "gone.txt"}
    environments = {name: Environment(name=name, image="x", requirements=file) for name, file in files.items()}
    with pytest.raises(ConfigInvalid) as caught:
        requirements_file.check(Config(path=tmp_path / "kernelbridge.toml", environments=environments))
    keys = [problem.key for problem in caught.value.problems]
    assert keys == ["environments.one.requirements", "environments.three.requirements"]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"none\.txt cannot be read \(No such file or directory\)"):
        read(tmp_path, "none.txt")
    with pytest.raises(ConfigInvalid, match=r"~nobody-here/none\.txt cannot be read"):
        read(tmp_path, "~nobody-here/none.txt")
