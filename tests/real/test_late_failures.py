"""Starts that fail after Jupyter was told that they began: what is shown, what does not happen then, what is left.

VS Code's own path: test_vscode_raw.py. Failures before that: test_engine.py. Long starts: test_waiting.py.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.clients.blocking import started
from tests.clients.notebook import fleet_closed_after, write_specs
from tests.clients.rest import ServerKernel, started_by
from tests.clients.server import JupyterServer
from tests.printed import unwrapped
from tests.rig.daemon import wait_until
from tests.rig.laptop import Laptop
from tests.rig.slow_engine import SlowEngine
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(120)

DYING = "kernelbridge-test/dying:1"
ABSENT = "kernelbridge-test/absent:1"
# The engine's answer to a pull is a stream of lines; what goes wrong after it began is one of them.
BROKEN_PULL = 'pulling", "error": "write /layer.tar: no space left on device'


def is_dead(kernel: ServerKernel) -> bool:
    return kernel.state in ("dead", "gone")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What the image is, and words of what the user must read; how many containers it takes to find out."""

    image: str
    name: str
    sentence: str
    remedy: str
    containers: int = 1


FAILURES = {
    "pull": Failure(
        image=ABSENT,
        name="ImagePullFailed",
        sentence=f"lab: the image {ABSENT} could not be pulled (write /layer.tar: no space left on device).",
        remedy="Free disk space on lab",
        containers=0,
    ),
    "dying": Failure(
        image=DYING,
        name="KernelDied",
        sentence="on lab ended: exit code 7. Its last output: no licence for this machine",
        remedy="Restart the kernel",
    ),
    "bare": Failure(
        image=Rig.bare_image,
        name="ImageUnusable",
        sentence=f"The image {Rig.bare_image} has no ipykernel.",
        remedy="Add `RUN pip install ipykernel` to the image",
    ),
    "nopython": Failure(
        image=Rig.nopython_image,
        name="ImageUnusable",
        sentence=f"The image {Rig.nopython_image} has no Python: there is none on its PATH",
        remedy="set `python` of the environment",
        # Its own, and two that look for another Python.
        containers=3,
    ),
}


@pytest.fixture(scope="module")
def slow(rig: Rig, module_env: Laptop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowEngine]:
    """An environment for each failure; the engine stands behind a stand-in that counts what it is asked for."""
    build_dying_image(rig, tmp_path_factory.mktemp("dying"))
    with rig.slow_engine() as engine, fleet_closed_after(module_env):
        images = {**{key: one.image for key, one in FAILURES.items()}, "good": rig.image}
        environments = [
            f'[environments.{key}]\nimage = "{image}"\nadd_ipykernel = false\n' for key, image in images.items()
        ]
        module_env.write_config(f'[hosts.lab]\nssh = "lab"\nsocket = "{engine.path}"\n\n' + "\n".join(environments))
        write_specs(module_env)
        with (
            engine.answers(200, r"GET /distribution/"),
            engine.delays(r"POST /images/create", 1),
            engine.answers(200, r"POST /images/create", BROKEN_PULL),
        ):
            yield engine


def build_dying_image(rig: Rig, folder: Path) -> None:
    """An image whose ipykernel says a word and ends."""
    says = "import sys; sys.stderr.write('no licence for this machine'); sys.exit(7)"
    recipe = (
        f'FROM {rig.image}\nRUN echo "{says}" > "$(python3 -c \'import ipykernel.kernelapp as i; print(i.__file__)\')"'
    )
    (folder / "Dockerfile").write_text(recipe)
    rig.engine.cli("build", "-q", "-t", DYING, folder)


@pytest.fixture(scope="module")
def server(slow: SlowEngine, module_env: Laptop) -> Iterator[JupyterServer]:
    with JupyterServer(module_env.home / "server", lab=False, env=module_env.variables) as running:
        yield running


def creations(requests: list[str]) -> int:
    return len([one for one in requests if one.startswith("POST /containers/create")])


@pytest.mark.parametrize("key", FAILURES)
def test_nbclient_reports_a_late_failure_in_its_first_cell_and_leaves_nothing(
    rig: Rig, slow: SlowEngine, key: str
) -> None:
    failure, before = FAILURES[key], len(slow.requests)
    cells = [nbformat.v4.new_code_cell(code) for code in ("print('never')", "print('nor this')")]
    written = nbformat.v4.new_notebook(cells=cells)
    with pytest.raises(CellExecutionError) as caught:
        NotebookClient(written, kernel_name=f"kernelbridge-{key}", timeout=60).execute()
    assert failure.sentence in unwrapped(str(caught.value))
    [shown] = [output for output in written.cells[0].outputs if output.output_type == "error"]
    assert shown.ename == failure.name
    assert failure.sentence in shown.evalue
    assert failure.remedy in shown.evalue
    assert written.cells[1].outputs == []
    wait_until(lambda: not rig.engine.kernels(), "the container to be gone", 5)
    assert creations(slow.requests[before:]) == failure.containers


def test_a_server_shows_late_failures_in_the_first_cell_and_the_kernels_stay_dead(
    rig: Rig, slow: SlowEngine, server: JupyterServer
) -> None:
    before = len(slow.requests)
    with contextlib.ExitStack() as pages:
        kernels = {key: pages.enter_context(started_by(server, f"kernelbridge-{key}")) for key in FAILURES}
        sent = {key: [kernel.send(f"print({n})") for n in range(3)] for key, kernel in kernels.items()}
        for key, failure in FAILURES.items():
            first, *later = [kernels[key].finish(request) for request in sent[key]]
            assert failure.sentence in first.error
            assert failure.remedy in first.error
            assert (first.reply["status"], first.reply["ename"]) == ("error", failure.name)
            assert failure.sentence in first.reply["evalue"]
            assert [(one.reply["status"], one.error) for one in later] == [("aborted", "")] * 2
        for kernel in kernels.values():
            wait_until(partial(is_dead, kernel), f"{kernel} to be dead", 15)
        time.sleep(3.5)  # Jupyter's restarter looks every 3 s.
        for kernel in kernels.values():
            assert not {"restarting", "autorestarting"} & set(kernel.states())
        assert not rig.engine.kernels()
    assert creations(slow.requests[before:]) == sum(failure.containers for failure in FAILURES.values())


def test_a_failed_start_says_why_for_three_seconds_before_it_is_seen_as_dead(slow: SlowEngine) -> None:
    with started("kernelbridge-bare", ready=False) as (manager, client):
        cell = client.run("1")
        told_at = time.monotonic()
        assert cell.reply["ename"] == "ImageUnusable"
        assert manager.is_alive()
        wait_until(lambda: not manager.is_alive(), "the kernel to be dead", 6)
        assert time.monotonic() - told_at > 2
        # Also to those who come later.
        assert client.run("2").reply["ename"] == "ImageUnusable"


def test_containers_that_others_end_or_remove_are_explained_and_not_started_again(
    rig: Rig, slow: SlowEngine, server: JupyterServer
) -> None:
    with started_by(server, "kernelbridge-good") as killed, started_by(server, "kernelbridge-good") as removed:
        kernels = (killed, removed)
        for kernel in kernels:
            assert kernel.finish(kernel.send("6 * 7")).result == "42"
        before = len(slow.requests)
        cells = [(kernel.send("import time; time.sleep(60)"), kernel.send("1")) for kernel in kernels]
        time.sleep(0.5)
        with rig.engine.client() as docker:
            docker.containers.get(f"kernelbridge-{killed.id}").kill()
            docker.containers.get(f"kernelbridge-{removed.id}").remove(force=True)
        errors = [kernel.finish(running, seconds=20).error for kernel, (running, _) in zip(kernels, cells, strict=True)]
        assert "good on lab was ended (exit code 137). Start the kernel again." in errors[0]
        # A removal kills first: which of the two is seen is chance.
        assert "good on lab was removed by another program." in errors[1] or "was ended (exit code 137)." in errors[1]
        for kernel, (_, waiting) in zip(kernels, cells, strict=True):
            assert kernel.finish(waiting).reply["status"] == "aborted"
            wait_until(partial(is_dead, kernel), f"{kernel} to be dead", 15)
        time.sleep(3.5)  # Jupyter's restarter looks every 3 s.
        assert creations(slow.requests[before:]) == 0
    # Jupyter forgets a dead kernel without a word; what is left of it goes a minute later.
    rig.engine.sweep()


def test_a_container_that_others_removed_while_nobody_looked_is_explained_in_the_next_cell(
    rig: Rig, slow: SlowEngine, server: JupyterServer
) -> None:
    with started_by(server, "kernelbridge-good") as kernel:
        assert kernel.finish(kernel.send("6 * 7")).result == "42"
        with rig.engine.client() as docker:
            docker.containers.get(f"kernelbridge-{kernel.id}").remove(force=True)
        time.sleep(10)  # Jupyter's restarter looks every 3 s.
        assert not is_dead(kernel)
        assert re.search(r"good on lab was (removed by another program|ended)", kernel.finish(kernel.send("1")).error)
        wait_until(partial(is_dead, kernel), f"{kernel} to be dead", 15)
    rig.engine.sweep()


def test_a_restart_after_a_failure_tries_again_and_works_once_it_is_mended(
    rig: Rig, slow: SlowEngine, module_env: Laptop
) -> None:
    with started("kernelbridge-bare", ready=False) as (manager, client):
        assert client.run("1").reply["ename"] == "ImageUnusable"
        rig.engine.cli("tag", rig.bare_image, "kernelbridge-test/kept:1")
        try:
            rig.engine.cli("tag", rig.image, rig.bare_image)
            manager.restart_kernel(now=True)
            assert client.run("6 * 7").result == "42"
        finally:
            rig.engine.cli("tag", "kernelbridge-test/kept:1", rig.bare_image)
            rig.engine.cli("rmi", "kernelbridge-test/kept:1")
