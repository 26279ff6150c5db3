"""`kernelbridge open`: a real JupyterLab with the environment as its default kernel; a second call opens that one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop

PROGRAM = Path(sys.executable).with_name("kernelbridge")
START_SECONDS = 30


@pytest.fixture(scope="module")
def lab(module_env: Laptop) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """JupyterLab as `open` starts it, and what it says of itself."""
    module_env.write_config('[hosts.here]\nssh = "local"\n[environments.test]\nimage = "x"\n')
    folder = module_env.home / "work"
    folder.mkdir()
    (folder / "train.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    # The tests run as root.
    (module_env.config_dir / "jupyter_server_config.json").write_text('{"ServerApp": {"allow_root": true}}')
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(PROGRAM), "open", "test", "--no-browser"], cwd=folder, env=module_env.env, stdout=log, stderr=log
        )
    try:
        file = module_env.runtime_dir / f"jpserver-{process.pid}.json"
        wait_until(file.exists, f"the server's file; its log: {(folder / 'log').read_text()}", START_SECONDS * SLOW)
        yield process, json.loads(file.read_bytes())
    finally:
        process.kill()
        process.wait(30)


def get(told: dict[str, Any], path: str) -> Any:
    request = urllib.request.Request(told["url"] + path, headers={"Authorization": f"token {told['token']}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_new_notebooks_have_the_environment_as_their_kernel(lab: tuple[Any, dict[str, Any]]) -> None:
    _, told = lab
    wait_until(lambda: "kernelbridge-test" in get(told, "api/kernelspecs")["kernelspecs"], "the kernel spec", 10)
    assert get(told, "api/kernelspecs")["default"] == "kernelbridge-test"
    assert Path(told["root_dir"]).name == "work"


def test_another_call_opens_the_one_that_runs(module_env: Laptop, lab: tuple[Any, dict[str, Any]]) -> None:
    _, told = lab
    folder = module_env.home / "work"
    words = [str(PROGRAM), "open", "train.ipynb", "--no-browser"]
    ended = subprocess.run(words, cwd=folder, env=module_env.env, capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.returncode) == (f"{told['url']}lab/tree/train.ipynb?token={told['token']}\n", 0)


def test_a_signal_is_jupyters(lab: tuple[subprocess.Popen[bytes], dict[str, Any]]) -> None:
    process, _ = lab
    process.send_signal(signal.SIGTERM)
    assert process.wait(30 * SLOW) == 0
