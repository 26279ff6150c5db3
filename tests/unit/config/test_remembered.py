"""config/remembered.py: what is remembered is of the config as it is, for the login that it was made for."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from kernelbridge.config import load
from kernelbridge.config.remembered import Memory, RememberedConfig, RememberedHost, digest_of
from kernelbridge.config.schema import Environment

TEXT = """
[hosts.lab]
ssh = "lab"
[hosts.other]
ssh = "ada@other:2222"
[environments.torch]
image = "torch:2"
[environments.old]
image = "old:1"
python = "/opt/python"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A config."""
    path = tmp_path / "kernelbridge.toml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A login."""
    return {"HOME": str(tmp_path), "JUPYTER_DATA_DIR": "/data", "LANG": "C"}


def host(name: str) -> RememberedHost:
    return RememberedHost(
        name=name, ssh_words=("--", name), path=("/opt/bin",), socket=None, engine_socket="/d.sock", api_version="1.47"
    )


def of(path: Path) -> RememberedConfig:
    config = load.load(path)
    return RememberedConfig(
        path=str(path),
        hosts={name: host(name) for name in config.hosts},
        pythons={name: environment.python for name, environment in config.environments.items()},
        usual_python=Environment.model_fields["python"].default,
        records_folder="/data/kernelbridge",
        offers_folder="/data/kernels",
    )


def remember(path: Path, environ: dict[str, str]) -> Memory:
    memory = Memory(environ)
    memory.remember(of(path), digest=digest_of(path.read_bytes()))
    return memory


def test_what_is_remembered_comes_back_as_it_was_and_nobody_else_can_read_it(
    path: Path, environ: dict[str, str]
) -> None:
    memory = remember(path, environ)
    assert Memory({**environ, "LANG": "de_DE"}).recall() == of(path)
    assert Path(memory.path).stat().st_mode & 0o777 == 0o600


def test_a_config_that_is_another_or_gone_is_not_remembered(path: Path, environ: dict[str, str]) -> None:
    memory = remember(path, environ)
    path.write_text(TEXT + "\n")
    assert memory.recall() is None
    path.write_text(TEXT)
    assert memory.recall() == of(path)
    path.unlink()
    assert memory.recall() is None


@pytest.mark.parametrize("name", ["KERNELBRIDGE_CONFIG", "JUPYTER_CONFIG_DIR", "XDG_CONFIG_HOME"])
def test_a_login_that_may_have_another_config_has_another_memory(
    path: Path, environ: dict[str, str], name: str
) -> None:
    remember(path, environ)
    assert Memory({**environ, name: "/elsewhere"}).recall() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 1}', '{"config": {"path": "PATH"}, "digest": "DIGEST"}'])
def test_a_file_that_holds_anything_else_is_as_good_as_none(path: Path, environ: dict[str, str], text: str) -> None:
    memory = remember(path, environ)
    Path(memory.path).write_text(text.replace("PATH", str(path)).replace("DIGEST", digest_of(path.read_bytes())))
    assert memory.recall() is None
    memory.remember(of(path), digest=digest_of(path.read_bytes()))
    memory.note_failure()
    memory.note_success()


def test_after_a_failure_nothing_is_remembered_for_a_while_and_each_time_for_longer(
    path: Path, environ: dict[str, str]
) -> None:
    memory = remember(path, environ)
    memory.note_failure()
    assert memory.recall() is None
    remember(path, environ)
    assert memory.recall() is None
    first = json.loads(Path(memory.path).read_text())["again"] - time.time()
    memory.note_failure()
    assert json.loads(Path(memory.path).read_text())["again"] - time.time() > 2 * first
    # That time is over.
    Path(memory.path).write_text(json.dumps({"times": 2, "again": time.time() - 1}))
    remember(path, environ)
    assert memory.recall() == of(path)
    memory.note_success()
    assert "times" not in json.loads(Path(memory.path).read_text())
    assert memory.recall() == of(path)


@pytest.mark.parametrize("name", ["torch", "old", "of another machine"])
@pytest.mark.parametrize("python", ["", "/usr/bin/python3.12"])
def test_a_listing_is_told_the_same_of_environments_and_hosts_as_by_the_config(
    path: Path, name: str, python: str
) -> None:
    config, remembered = load.load(path), of(path)
    whole = config.environment_as(name, image="made:1", python=python)
    assert remembered.environment_as(name, image="made:1", python=python) == (whole.name, whole.image, whole.python)
    for names in ([], ["lab"], ["other", "lab"]):
        assert [one.name for one in remembered.hosts_named(names)] == [one.name for one in config.hosts_named(names)]
    assert {one.scheduler for one in remembered.hosts.values()} == {one.scheduler for one in config.hosts.values()}
    assert {one.is_local for one in remembered.hosts.values()} == {one.is_local for one in config.hosts.values()}


def test_where_nobody_has_a_home_nothing_is_kept() -> None:
    Memory({}).note_failure()
    assert Memory({}).recall() is None
