"""What `pip install` of the wheel brings: the server extension on, kernel specs kept, events told, a working launcher.

The commands themselves: test_terminal.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import websocket

from kernelbridge import __version__
from kernelbridge.jupyter.extension import PROGRESS_SCHEMA
from tests.clients.rest import started_by
from tests.clients.server import JupyterServer
from tests.rig.daemon import SLOW, run, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

ROOT = Path(__file__).parents[2]
NAME = "kernelbridge-test"
# The extension looks at the config every 2 s.
RENEWED_SECONDS = 6


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A Python environment of its own with our wheel; what the wheel needs is this environment's."""

    folder: Path
    wheel: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def run(self, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run `python WORDS` to its end, far away from the source tree."""
        command = [self.python, *words]
        return subprocess.run(
            command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=60 * SLOW, check=False
        )


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    # Away from the tree: a build must not leave anything in it, nor need anything that is not there.
    for name in ("kernelbridge", "jupyter_config", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source])
    (wheel,) = folder.glob("*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"])
    run([*pip, "--python", folder / "venv" / "bin" / "python", "install", "-q", "--no-deps", wheel])
    # Behind the wheel's own folder on sys.path; an editable install of ours there adds nothing this way.
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installation(folder=folder / "venv", wheel=wheel)


@pytest.fixture(scope="module")
def server(module_env: Laptop, installation: Installation) -> Iterator[JupyterServer]:
    """A server of that environment; nobody told it of kernelbridge but the wheel."""
    with JupyterServer(
        module_env.home / "server", lab=False, env=module_env.variables, python=installation.python
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def _config_as_it_was(rig: Rig, module_env: Laptop) -> Iterator[None]:
    module_env.write_environment(rig.image)
    yield


def specs(server: JupyterServer) -> dict[str, Any]:
    """Our kernel specs as the server lists them."""
    listed = server.get("api/kernelspecs")["kernelspecs"]
    return {name: one["spec"] for name, one in listed.items() if name.startswith("kernelbridge-")}


def wait_for_specs(server: JupyterServer, shown: dict[str, str]) -> None:
    """Our specs and their display names become these."""
    wait_until(
        lambda: {name: one["display_name"] for name, one in specs(server).items()} == shown,
        f"the kernel specs {shown}",
        RENEWED_SECONDS,
    )


def test_the_wheel_holds_all_that_runs_and_nothing_of_the_tests(installation: Installation) -> None:
    listed = run([sys.executable, "-m", "zipfile", "-l", installation.wheel])
    for part in ("relay/bridge.py", "relay/__main__.py", "jupyter/logos/logo-svg.svg", "jupyter/kernel_progress.yaml"):
        assert f"kernelbridge/{part}" in listed
    assert "etc/jupyter/jupyter_server_config.d/kernelbridge.json" in listed
    assert "LICENSE" in listed
    assert "tests/" not in listed


def test_the_wheel_turns_the_extension_on_and_brings_both_commands(
    module_env: Laptop, installation: Installation
) -> None:
    listed = installation.run("-m", "jupyter_server", "extension", "list", env=module_env.env)
    words = " ".join(re.sub(r"\x1b\[\d+m", "", listed.stdout + listed.stderr).split())
    assert f"kernelbridge enabled - Validating kernelbridge... kernelbridge {__version__} OK" in words
    version = installation.run(str(installation.folder / "bin" / "kernelbridge"), "--version", env=module_env.env)
    assert version.stdout == f"kernelbridge {__version__}\n"
    place = installation.run("-c", "import kernelbridge; print(kernelbridge.__file__)", env=module_env.env)
    assert place.stdout.startswith(str(installation.folder))
    probed = installation.run(str(installation.folder / "bin" / "kernelbridge-launch"), "-I", "x", env=module_env.env)
    assert (probed.returncode, probed.stdout, probed.stderr) == (2, "", "")


def test_the_server_lists_the_kernel_with_its_logos_and_its_own_launcher(
    server: JupyterServer, installation: Installation
) -> None:
    wait_for_specs(server, {NAME: "Docker-GPU (remote)"})
    listed = server.get("api/kernelspecs")["kernelspecs"][NAME]
    spec = listed["spec"]
    assert spec["argv"] == [str(installation.folder / "bin" / "kernelbridge-launch"), "-f", "{connection_file}"]
    assert os.access(spec["argv"][0], os.X_OK)
    assert (spec["language"], spec["interrupt_mode"], spec["metadata"]["debugger"]) == ("python", "message", True)
    assert set(listed["resources"]) == {"logo-32x32", "logo-64x64", "logo-svg"}
    begins = {"logo-32x32": b"\x89PNG", "logo-64x64": b"\x89PNG", "logo-svg": b"<"}
    for name, path in listed["resources"].items():
        request = urllib.request.Request(
            server.url + path.removeprefix("/"), headers={"Authorization": f"token {server.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.read().startswith(begins[name])


def test_the_list_comes_in_milliseconds_and_never_asks_the_host(rig: Rig, server: JupyterServer) -> None:
    wait_for_specs(server, {NAME: "Docker-GPU (remote)"})
    before = rig.sshd.arrivals
    with rig.lab.unplugged():
        seconds = []
        for _ in range(10):
            began = time.monotonic()
            server.get("api/kernelspecs")
            seconds.append(time.monotonic() - began)
    # With the cable out, one that asks the host is never quick.
    assert min(seconds) < 0.05 * SLOW
    assert rig.sshd.arrivals == before


def test_specs_follow_the_config_within_seconds_and_survive_a_broken_one(
    rig: Rig, module_env: Laptop, server: JupyterServer
) -> None:
    wait_for_specs(server, {NAME: "Docker-GPU (remote)"})
    one = module_env.config.read_text()
    module_env.write_config(f'{one}\n[environments.big]\nimage = "{rig.image}"\ndisplay_name = "The big one"\n')
    both = {NAME: "Docker-GPU (remote)", "kernelbridge-big": "The big one"}
    wait_for_specs(server, both)
    module_env.write_config(one + '\n[environments.big]\nimage = "half writ')
    wait_until(lambda: "kernelbridge: " + str(module_env.config) in server.log, "the complaint", RENEWED_SECONDS)
    assert "Traceback" not in server.log
    assert set(specs(server)) == set(both)
    module_env.write_config(one.replace('image = "', 'display_name = "Mended"\nimage = "'))
    wait_for_specs(server, {NAME: "Mended"})
    module_env.config.unlink()
    wait_for_specs(server, {})
    assert server.get("api/status")["kernels"] == 0


def test_a_start_and_its_end_are_told_as_jupyter_events(rig: Rig, module_env: Laptop, server: JupyterServer) -> None:
    wait_for_specs(server, {NAME: "Docker-GPU (remote)"})
    address = server.url.replace("http", "ws", 1) + "api/events/subscribe"
    listener = websocket.create_connection(address, header=[f"Authorization: token {server.token}"], timeout=20 * SLOW)
    told: list[dict[str, Any]] = []

    def hear(state: str) -> None:
        """Listen until a kernel is in this state."""
        while True:
            event = json.loads(listener.recv())
            if event["schema_id"] == PROGRESS_SCHEMA:
                told.append(event)
                if event["state"] == state:
                    return

    try:
        with started_by(server, NAME) as kernel:
            assert kernel.finish(kernel.send("print('from the wheel')")).text == "from the wheel\n"
            container = rig.engine.kernels()[0]
            assert container.labels["kernelbridge.version"] == __version__
            hear("idle")
            # A cell that is over at once is not told of.
            request = kernel.send("import time; time.sleep(2)")
            hear("busy")
            kernel.finish(request)
            hear("idle")
        hear("stopped")
    finally:
        listener.close()
    assert {event["kernel_id"] for event in told} == {kernel.id}
    states = [event["state"] for event in told]
    # The first cell may be told of too, where it lasts.
    assert re.fullmatch("starting (idle busy )+idle stopped", " ".join(state for state, _ in groupby(states))), states
    assert all(event["since"] <= later["since"] for event, later in pairwise(told))
    assert {event["host"] for event in told if event["state"] in ("idle", "busy")} == {"lab"}
    texts = [event["text"] for event in told]
    assert "starting the container" in texts
    assert "starting the kernel" in texts
    assert rig.engine.kernels() == []


def test_a_start_that_fails_is_told_as_an_event_with_its_sentence(
    rig: Rig, module_env: Laptop, server: JupyterServer
) -> None:
    module_env.write_environment(rig.bare_image, add_ipykernel=False)
    address = server.url.replace("http", "ws", 1) + "api/events/subscribe"
    listener = websocket.create_connection(address, header=[f"Authorization: token {server.token}"], timeout=20 * SLOW)
    try:
        with started_by(server, NAME) as kernel:
            kernel.finish(kernel.send("1"))
            while True:
                event = json.loads(listener.recv())
                if event["schema_id"] == PROGRESS_SCHEMA and event["state"] == "failed":
                    break
    finally:
        listener.close()
    assert event["text"].startswith(f"The image {rig.bare_image} has no ")
    assert "RUN pip install ipykernel" in event["text"]
    wait_until(lambda: not rig.engine.kernels(), "the container to be gone", 20)


def test_a_server_whose_config_is_broken_at_its_start_starts_all_the_same(
    module_env: Laptop, installation: Installation
) -> None:
    module_env.write_config("[environments.test\nimage")
    env = {**module_env.variables, "JUPYTER_DATA_DIR": str(module_env.home / "other-data")}
    with JupyterServer(module_env.home / "other", lab=False, env=env, python=installation.python) as server:
        assert specs(server) == {}
        assert "kernelbridge: " + str(module_env.config) in server.log_path.read_text()
        assert "Traceback" not in server.log_path.read_text()
        module_env.write_config('[environments.test]\nimage = "x"\n')
        wait_for_specs(server, {NAME: "Docker-GPU (remote)"})
