"""A Jupyter server's kernel through @jupyterlab/services: VS Code with an existing server, JupyterLab below its screen.

The client is tests/clients/services.mjs. JupyterLab's screen: test_lab_browser.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.driver import NodeClient
from tests.clients.server import JupyterServer
from tests.clients.specs import stock_spec
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

NAME = "kernelbridge-test"
FUNCTION = "def twice(value):\n    result = value * 2\n    return result\n\nanswer = twice(21)\nprint(answer)"


@pytest.fixture
def server(rig: Rig, bridge_env: Laptop) -> Iterator[JupyterServer]:
    """A server of the user's own. When it has stopped, no container is left."""
    with JupyterServer(bridge_env.home / "server", lab=False, env=bridge_env.variables) as running:
        yield running
    expect_no_container(rig)


@pytest.fixture
def code(server: JupyterServer) -> Iterator[NodeClient]:
    """VS Code, connected to the server; nothing is started yet."""
    with client(server) as vscode:
        yield vscode


def client(server: JupyterServer, name: str = NAME, *, hidden: bool = True) -> NodeClient:
    """VS Code, or JupyterLab, which runs no cells of its own."""
    settings = {"url": server.url, "token": server.token, "kernel_name": name}
    return NodeClient("services.mjs", settings if hidden else {**settings, "hidden_cells": []})


def expect_no_container(rig: Rig) -> None:
    wait_until(lambda: not rig.engine.kernels(), "the container to be gone", 20)


def test_a_session_runs_cells_is_interrupted_restarted_and_shut_down(rig: Rig, code: NodeClient) -> None:
    started = code.ask("start")
    assert started["idle"]
    assert started["info"]["language_info"]["name"] == "python"
    assert code.execute("print('to stdout'); 6 * 7")["screen"] == "to stdout\n42"
    assert code.execute("who = input('who? '); who[::-1]", replies=["ada"])["screen"] == "'ada'"[::-1]
    job = code.begin("execute", code="import time; print('asleep'); time.sleep(60)")
    wait_until(lambda: code.ask("status")["kernel"]["status"] == "busy", "the kernel to be busy", 10)
    assert code.ask("interrupt")["took"] < 2 * SLOW
    cell = code.finish(job)
    assert (cell["ename"], cell["seconds"] < 10 * SLOW) == ("KeyboardInterrupt", True)
    container = rig.engine.kernels()[0].id
    code.execute("kept = 1")
    assert code.ask("restart")["kernel"]["status"] == "idle"
    assert code.execute("'kept' in globals()")["screen"] == "False"
    assert [one.id for one in rig.engine.kernels()] == [container]  # In place: same container, new kernel.
    code.ask("stop")
    assert code.ask("running")["kernels"] == []
    expect_no_container(rig)


def test_the_debugger_stops_steps_and_goes_on_through_a_server(code: NodeClient) -> None:
    code.ask("start")
    hit = code.ask("debug", cells=["x = 1", FUNCTION], debug=1, lines=[5])
    assert (hit["reason"], hit["line"]) == ("breakpoint", 5)
    assert hit["cell_uri"].endswith("#cell-1")
    stepped = code.ask("next")
    assert (stepped["line"], stepped["variables"]["answer"]) == (6, "42")
    assert code.ask("continue")["cell"]["screen"] == "42\n"
    code.ask("disconnect")
    code.ask("stop")


def test_a_window_opened_again_finds_its_kernel_and_its_variables(server: JupyterServer, code: NodeClient) -> None:
    code.ask("start")
    code.execute("kept = 41")
    code.kill()
    with client(server) as second:
        assert second.ask("connect")["kernel"]["connection"] == "connected"
        assert second.execute("kept + 1")["screen"] == "42"
        second.ask("stop")


def test_a_thousand_comm_messages_and_status_changes_are_all_handled(code: NodeClient) -> None:
    code.ask("start")
    for flood in (code.ask("flood", n=1000), code.ask("flood", n=1000, chained=True)):
        assert (flood["count"], flood["inOrder"], flood["closed"]) == (1000, True, 1)
        assert flood["dropped"] == {}
        assert flood["handled"]["status"] >= 40
        assert len(flood["sessions"]) == 1
    code.ask("stop")


def test_a_notice_of_ours_before_a_flood_makes_no_client_drop_a_message(
    rig: Rig, server: JupyterServer, bridge_env: Laptop
) -> None:
    with rig.slow_engine() as engine:
        bridge_env.write_environment(rig.image, host={"socket": str(engine.path)})
        with engine.delays(r"POST /containers/create", 6 * SLOW), client(server, hidden=False) as lab:
            lab.ask("start")
            flood = lab.ask("flood", n=1000)
            lab.ask("stop")
            expect_no_container(rig)
    # Ours: progress in the waiting cell, and its removal.
    assert flood["received"]["clear_output"] >= 1
    assert flood["received"]["stream"] > 100
    assert (flood["count"], flood["inOrder"], flood["bad"]) == (1000, True, [])
    assert flood["dropped"] == {}
    assert len(flood["sessions"]) == 1


def test_the_count_of_dropped_messages_can_see_a_drop_through_a_server(tmp_path: Path) -> None:
    with JupyterServer(tmp_path / "server", lab=False) as server, client(server, stock_spec().name) as code:
        code.ask("start")
        own = code.ask("flood", planted="same")
        assert own["dropped"] == {}
        assert own["received"]["stream"] > 100
        foreign = code.ask("flood", planted="another-session")
        assert foreign["dropped"]
        code.ask("stop")


def test_ten_megabytes_in_a_buffer_come_back_through_a_server_unchanged(code: NodeClient) -> None:
    code.ask("start")
    assert code.ask("echo", bytes=10_000_000)["intact"]
    code.ask("stop")


def test_the_list_of_kernel_specs_comes_in_milliseconds_while_the_host_is_away(rig: Rig, code: NodeClient) -> None:
    with rig.sshd.stopped():
        asked = [code.ask("specs") for _ in range(5)]
    spec = asked[0]["specs"][NAME]
    assert (spec["display_name"], spec["language"]) == ("Docker-GPU (remote)", "python")
    assert spec["metadata"]["debugger"] is True
    assert min(one["seconds"] for one in asked) < 0.1 * SLOW


def test_a_start_that_fails_at_once_is_the_servers_answer(rig: Rig, code: NodeClient) -> None:
    with rig.sshd.stopped():
        failed = code.ask("start", check=False)
    assert (failed["ok"], failed["http"]) == (False, 500)
    # VS Code puts it between brackets: "Verify the server is running and reachable. (<this>)."
    assert "lab: " in failed["message"]
    assert "refused the connection. Is sshd running there" in failed["message"]
    assert "Traceback" not in failed["message"]
    assert code.ask("running")["kernels"] == []


def test_a_late_failure_is_told_in_the_first_cell_and_nothing_restarts(
    rig: Rig, server: JupyterServer, bridge_env: Laptop
) -> None:
    bridge_env.write_environment(rig.bare_image, add_ipykernel=False)
    with client(server, hidden=False) as lab:
        lab.ask("start")
        lab.ask("tally")
        jobs = [lab.begin("execute", code=f"{n}") for n in range(3)]
        first, *later = [lab.finish(job, check=False) for job in jobs]
        assert first["status"] == "error"
        assert "ipykernel" in first["evalue"]
        assert {one["status"] for one in later} <= {"aborted", "error"}
        wait_until(lambda: lab.ask("running")["kernels"] == [] or _is_dead(lab), "the kernel to be seen dead", 20)
        assert "autorestarting" not in lab.ask("counts")["statuses"]
    expect_no_container(rig)


def _is_dead(lab: NodeClient) -> bool:
    return all(one["execution_state"] == "dead" for one in lab.ask("running")["kernels"])
