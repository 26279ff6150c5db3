"""jupyter/installation.py: what this machine has, and what of it is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from kernelbridge.jupyter.installation import examine

from kernelbridge.config import load
from kernelbridge.fleet.doctor import Finding, LinkState
from kernelbridge.jupyter import kernelspecs

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
    launcher.touch(mode=0o755)
    config_d = tmp_path / "JUPYTER_CONFIG_DIR/jupyter_server_config.d"
    config_d.mkdir(parents=True)
    (config_d / "k.json").write_text(json.dumps({"ServerApp": {"jpserver_extensions": {"kernelbridge": True}}}))
    kernelspecs.write(load.load(path), kernelspecs.default_root(), launcher)

    def run() -> list[Finding]:
        found: list[Finding] = []
        config = examine(path, found.append, root=kernelspecs.default_root(), launcher=launcher)
        assert (config is None) == any(one.link == "config" and one.state is LinkState.BROKEN for one in found)
        return found

    return run


def states(found: list[Finding]) -> dict[str, str]:
    return {one.link: one.state.value for one in found if one.state is not LinkState.OK}


def test_all_that_is_there_is_told_in_order(look: Callable[[], list[Finding]], tmp_path: Path) -> None:
    found = look()
    assert [one.link for one in found] == ["Python", "config", "kernel specs", "launcher", "server extension"]
    assert states(found) == {}
    assert found[1].found == f"{tmp_path / 'k.toml'}: 1 hosts, 1 environments"
    assert found[2].found.startswith("1 in ")


def test_a_config_with_a_mistake_is_told_and_the_rest_is_looked_at(
    look: Callable[[], list[Finding]], tmp_path: Path
) -> None:
    (tmp_path / "k.toml").write_text(CONFIG + "gpu = 1\n")
    found = look()
    assert states(found) == {"config": "broken", "kernel specs": "skipped"}
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


def test_specs_that_are_gone_or_old_say_to_install(look: Callable[[], list[Finding]], tmp_path: Path) -> None:
    (kernelspecs.default_root() / "kernelbridge-torch/kernel.json").unlink()
    found = look()
    assert states(found) == {"kernel specs": "broken"}
    assert (found[2].remedy, found[2].exit_code) == ("Run `kernelbridge install`.", 1)
    assert "kernelbridge-torch" in found[2].found


def test_specs_where_no_jupyter_looks_say_so(
    look: Callable[[], list[Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = kernelspecs.default_root()
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(kernelspecs, "default_root", lambda: root)
    found = look()
    assert states(found) == {"kernel specs": "broken"}
    assert "is not where Jupyter looks: kernelbridge-torch" in found[2].found


def test_a_launcher_that_is_gone_and_an_extension_that_is_off_are_told(
    look: Callable[[], list[Finding]], tmp_path: Path
) -> None:
    (tmp_path / "launcher").unlink()
    (tmp_path / "JUPYTER_CONFIG_DIR/jupyter_server_config.d/k.json").write_text(
        json.dumps({"ServerApp": {"jpserver_extensions": {"kernelbridge": False}}})
    )
    found = look()
    assert states(found) == {"launcher": "broken", "server extension": "warning"}
    assert found[4].remedy == "Run `jupyter server extension enable kernelbridge`."
