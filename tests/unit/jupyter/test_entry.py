"""jupyter/entry.py: all but `-f FILE` is refused, fast and without a word; a kernel's file goes to the launcher."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernelbridge.jupyter import entry

LAUNCHER = "kernelbridge.jupyter.vscode_launcher"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((), id="nothing"),
        pytest.param(("-f",), id="no file"),
        pytest.param(("-f", "{file}", "more"), id="more than a file"),
        pytest.param(("-f", "{folder}/missing.json"), id="a file that is not there"),
        pytest.param(("-f", "{folder}"), id="a folder"),
        pytest.param(("{file}", "-f"), id="the other way round"),
        pytest.param(("--f", "{file}"), id="another option"),
        # What VS Code's Python extension asks of an interpreter.
        pytest.param(("-I", "{folder}/printEnvVariables.py"), id="a script"),
        pytest.param(("-c", "import sys; print(sys.version)"), id="code"),
    ],
)
def test_all_but_a_kernels_file_is_refused_without_a_word_and_before_the_launcher_is_loaded(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kernel.json"
    file.write_text("{}")
    # Whoever imports it now fails.
    monkeypatch.setitem(sys.modules, LAUNCHER, None)
    filled = [word.replace("{file}", str(file)).replace("{folder}", str(tmp_path)) for word in words]
    monkeypatch.setattr(sys, "argv", ["kernelbridge-launch", *filled])
    assert entry.main() == 2
    assert capfd.readouterr() == ("", "")


def test_a_kernels_file_goes_to_the_launcher_which_says_what_it_ends_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernelbridge import jupyter

    file = tmp_path / "kernel.json"
    file.write_text("{}")
    given: list[str] = []

    def run(connection_file: str) -> int:
        given.append(connection_file)
        return 7

    made = SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, LAUNCHER, made)
    monkeypatch.setattr(jupyter, "vscode_launcher", made, raising=False)
    monkeypatch.setattr(sys, "argv", ["kernelbridge-launch", "-f", str(file)])
    assert entry.main() == 7
    assert given == [str(file)]


def test_a_probe_of_the_program_itself_costs_little_and_says_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); sys.argv[1:] = ['-c', 'print(1)'];"
        "from kernelbridge.jupyter.entry import main; code = main();"
        "loaded = sorted(set(sys.modules) - before); assert len(loaded) <= 4, loaded; sys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, b"", b"")
