"""jupyter/checks/installation.py: what this machine has, and what of it is broken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelbridge.config import load
from kernelbridge.fleet.doctor.finding import Finding, LinkName, LinkState
from kernelbridge.jupyter import kernelspecs
from kernelbridge.jupyter.checks import installation
from kernelbridge.jupyter.checks.installation import examine, vscode_roots
from kernelbridge.kernel.records import Records

CONFIG = '[hosts.lab]\nssh = "lab"\n[environments.torch]\nimage = "x"\n'


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Finding]]:
    """What is found on a machine that is whole; the test breaks something before."""
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("JUPYTER_NO_CONFIG", "")
    monkeypatch.delenv("JUPYTER_PATH", raising=False)
    # Else what the virtual environment says goes before what its user says.
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    path, launcher = tmp_path / "k.toml", tmp_path / "launcher"
    path.write_text(CONFIG)
    launcher.write_text("#!/bin/sh\nexit 2\n")
    launcher.chmod(0o755)
    config_d = tmp_path / "JUPYTER_CONFIG_DIR/jupyter_server_config.d"
    config_d.mkdir(parents=True)
    (config_d / "k.json").write_text(json.dumps({"ServerApp": {"jpserver_extensions": {"kernelbridge": True}}}))
    kernelspecs.write(load.load(path), kernelspecs.default_root(), launcher)

    def run() -> list[Finding]:
        found: list[Finding] = []
        config = examine(
            path,
            found.append,
            root=kernelspecs.default_root(),
            launcher=launcher,
            records=Records(tmp_path / "records"),
            environ=os.environ,
        )
        assert (config is None) == any(one.link == "config" and one.state is LinkState.BROKEN for one in found)
        return found

    return run


def states(found: list[Finding]) -> dict[str, str]:
    return {one.link.value: one.state.value for one in found if one.state is not LinkState.OK}


def of(found: list[Finding], link: LinkName) -> Finding:
    return next(one for one in found if one.link is link)


BEHIND_CONFIG = dict.fromkeys(["kernel specs", "seen by Jupyter", "seen by VS Code"], "skipped")
BEHIND_SPECS = dict.fromkeys(["seen by Jupyter", "seen by VS Code"], "skipped")


def test_all_that_is_there_is_told_in_order(look: Callable[[], list[Finding]], tmp_path: Path) -> None:
    found = look()
    assert [one.link.value for one in found] == [
        *("Python", "config", "cache", "kernel specs", "seen by Jupyter", "seen by VS Code", "launcher"),
        "server extension",
    ]
    assert states(found) == {}
    assert found[1].found == f"{tmp_path / 'k.toml'}: 1 hosts, 1 environments"
    assert of(found, LinkName.SPECS).found.startswith("1 in ")


def test_a_config_with_a_mistake_is_told_and_the_rest_is_looked_at(
    look: Callable[[], list[Finding]], tmp_path: Path
) -> None:
    (tmp_path / "k.toml").write_text(CONFIG + "gpu = 1\n")
    found = look()
    assert states(found) == {"config": "broken", **BEHIND_CONFIG}
    assert "did you mean `gpus`" in found[1].found
    assert found[1].exit_code == 10


def test_what_is_unwise_in_a_config_and_one_without_environments_are_warnings(
    look: Callable[[], list[Finding]], tmp_path: Path
) -> None:
    (tmp_path / "k.toml").write_text('[hosts.lab]\nssh = "lab"\n')
    found = look()
    assert states(found) == {"config": "warning"}
    assert "[environments.NAME]" in found[1].remedy
    (tmp_path / "k.toml").write_text(CONFIG + 'forwards = ["raw:5555"]\n')
    assert "can connect to raw:5555" in look()[1].found


def test_a_cache_that_cannot_be_read_says_what_throws_it_away(
    look: Callable[[], list[Finding]], tmp_path: Path
) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records/images.json").write_text("{")
    found = look()
    assert states(found) == {"cache": "warning"}
    assert of(found, LinkName.CACHE).found == f"in {tmp_path / 'records'} cannot be read: images.json"
    assert "--fix" in of(found, LinkName.CACHE).remedy


def test_specs_that_are_gone_or_old_say_to_install(look: Callable[[], list[Finding]], tmp_path: Path) -> None:
    (kernelspecs.default_root() / "kernelbridge-torch/kernel.json").unlink()
    found = look()
    assert states(found) == {"kernel specs": "broken", **BEHIND_SPECS}
    finding = of(found, LinkName.SPECS)
    assert (finding.remedy, finding.exit_code) == ("Run `kernelbridge install`.", 1)
    assert "kernelbridge-torch" in finding.found


def test_specs_where_no_jupyter_looks_say_so(
    look: Callable[[], list[Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = kernelspecs.default_root()
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(kernelspecs, "default_root", lambda: root)
    found = look()
    assert states(found) == {"seen by Jupyter": "broken", "seen by VS Code": "warning"}
    assert "is not where Jupyter looks: kernelbridge-torch" in of(found, LinkName.IN_JUPYTER).found


def test_a_spec_of_the_same_name_elsewhere_goes_before_ours(
    look: Callable[[], list[Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "other/kernels/kernelbridge-torch"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps({"argv": ["x"], "display_name": "X", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "other"))
    found = look()
    assert states(found) == {"seen by Jupyter": "broken"}
    assert str(folder) in of(found, LinkName.IN_JUPYTER).found


def test_vs_code_shows_one_of_two_that_look_the_same(look: Callable[[], list[Finding]], tmp_path: Path) -> None:
    folder = kernelspecs.default_root() / "kernelbridge-of-another-config"
    folder.mkdir()
    spec = {"argv": [str(tmp_path / "launcher")], "display_name": "Docker-GPU (remote)"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    (kernelspecs.default_root() / "odd").mkdir()
    (kernelspecs.default_root() / "odd/kernel.json").write_text("[")
    found = look()
    assert states(found) == {"seen by VS Code": "warning"}
    assert str(folder) in of(found, LinkName.IN_VSCODE).found
    (folder / "kernel.json").write_text(json.dumps({**spec, "argv": ["another"]}))
    assert states(look()) == {}


def test_vs_code_looks_in_these_folders() -> None:
    home = Path("/home/ada")
    shared = [Path("/usr/local/share/jupyter/kernels"), Path("/usr/share/jupyter/kernels")]
    assert vscode_roots({}, system="linux", home=home) == [home / ".local/share/jupyter/kernels", *shared]
    assert vscode_roots({}, system="darwin", home=home)[0] == home / "Library/Jupyter/kernels"
    assert vscode_roots({"APPDATA": "/a"}, system="win32", home=home)[0] == Path("/a/jupyter/kernels")
    named = {"JUPYTER_PATH": os.pathsep.join(["/a", "/b"]), "JUPYTER_DATA_DIR": "/c", "XDG_DATA_HOME": "/d"}
    assert vscode_roots(named, system="linux", home=home)[:3] == [Path(f"/{one}/kernels") for one in "abc"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "is not there: VS Code cannot start kernels"),
        ("#!/none/such/python\n", "cannot be run (No such file or directory)"),
        ("#!/bin/sh\necho 'No module named kernelbridge' >&2; exit 1\n", "fails (No module named kernelbridge)"),
        ("#!/bin/sh\nexit 0\n", "fails (exit code 0)"),
        ("#!/bin/sh\nexec sleep 60\n", "does not end within 0.5 s"),
    ],
)
def test_a_launcher_that_does_not_run_is_told(
    look: Callable[[], list[Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, said: str
) -> None:
    monkeypatch.setattr(installation, "_LAUNCHER_SECONDS", 0.5 if "sleep" in (script or "") else 20)
    if script is None:
        (tmp_path / "launcher").unlink()
    else:
        (tmp_path / "launcher").write_text(script)
    found = look()
    assert states(found) == {"launcher": "broken"}
    assert said in of(found, LinkName.LAUNCHER).found
    assert of(found, LinkName.LAUNCHER).exit_code == 1


def test_an_extension_that_is_off_is_told(look: Callable[[], list[Finding]], tmp_path: Path) -> None:
    (tmp_path / "JUPYTER_CONFIG_DIR/jupyter_server_config.d/k.json").write_text(
        json.dumps({"ServerApp": {"jpserver_extensions": {"kernelbridge": False}}})
    )
    found = look()
    assert states(found) == {"server extension": "warning"}
    assert found[-1].remedy == "Run `jupyter server extension enable kernelbridge`."
