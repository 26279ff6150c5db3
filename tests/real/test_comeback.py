"""A Jupyter server that stops, is killed or finds no host: its kernels and sessions are there when it is back.

The same on JupyterLab's screen: test_comeback_lab.py.
"""

from __future__ import annotations

import http.client
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients import gate
from tests.clients.page import Page, ReturningServer, call
from tests.rig.daemon import SLOW, run, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

NAME = "kernelbridge-test"
LINES = """\
import time
for n in range({count}):
    print(f"line {{n}}", flush=True)
    time.sleep({seconds})
"the end"
"""
# What the relay has sent but our process had not handed on when it was killed comes again (protocol.md).
TWICE_SECONDS = 2.0

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def server(rig: Rig, bridge_env: Laptop) -> Iterator[ReturningServer]:
    """A server whose kernels persist. At the end its kernels are shut down over REST, and no container is left."""
    bridge_env.write_environment(rig.image, persist=True)
    with ReturningServer(bridge_env.home / "server", env=bridge_env.variables) as running:
        yield running
        if running.process.poll() is not None:
            running.again()
        for model in running.get("api/kernels"):
            call(running, "DELETE", f"api/kernels/{model['id']}")
    expect_no_container(rig)


def expect_no_container(rig: Rig) -> None:
    wait_until(lambda: not rig.engine.kernels(), "the container to be gone", 20)


def test_a_server_stopped_in_good_order_has_its_kernel_and_session_again(rig: Rig, server: ReturningServer) -> None:
    page = Page(server, NAME, "folder/work.ipynb")
    assert page.run("kept = 41; print(kept)") == "41\n"
    (container,) = rig.engine.kernels()
    wait_until(lambda: bool(page.session), "the session", 5)
    server.close()
    assert [one.id for one in rig.engine.kernels()] == [container.id]
    server.again()
    assert page.model["id"] == page.kernel_id
    assert page.session["path"] == "folder/work.ipynb"
    assert page.session["kernel"]["id"] == page.kernel_id
    assert page.connect() < 5 * SLOW
    assert page.run("print(kept + 1)") == "42\n"
    assert [one.id for one in rig.engine.kernels()] == [container.id]


def test_a_server_killed_in_the_middle_of_a_cell_brings_the_rest_of_it_and_its_reply(
    rig: Rig, server: ReturningServer
) -> None:
    page = Page(server, NAME)
    # It does not end before it was seen to run.
    lines, _, _ = LINES.format(count=60, seconds=0.2).rpartition('"the end"')
    request = page.send(gate.held(lines, '"the end"'))
    wait_until(lambda: "line 15\n" in page.cell(request).text, "output before the kill", 30)
    server.kill()
    time.sleep(2)
    before = numbers(page.cell(request).text)
    server.again()
    assert page.model["id"] == page.kernel_id
    assert page.session["kernel"]["id"] == page.kernel_id
    # The cell runs: who waited for the kernel's own word would be let in after its end.
    assert page.connect() < 5 * SLOW
    wait_until(lambda: page.model["execution_state"] == "busy", "the kernel to be seen busy", 20)
    gate.open_gates(rig)
    cell = page.finish(request)
    expect_lines(numbers(cell.text), before=before, count=60, seconds=0.2)
    assert (cell.reply["status"], cell.result) == ("ok", "'the end'")
    wait_until(lambda: page.model["execution_state"] == "idle", "the kernel to be seen idle", 5)


def test_a_stop_in_good_order_in_the_middle_of_a_cell_shows_each_line_once(server: ReturningServer) -> None:
    page = Page(server, NAME)
    request = page.send(LINES.format(count=40, seconds=0.2))
    wait_until(lambda: "line 10\n" in page.cell(request).text, "output before the stop", 30)
    server.close()
    server.again()
    assert page.connect() < 5 * SLOW
    cell = page.finish(request)
    assert numbers(cell.text) == list(range(40))
    assert (cell.reply["status"], cell.result) == ("ok", "'the end'")


def numbers(text: str) -> list[int]:
    """The lines that were printed, in order."""
    return [int(found) for found in re.findall(r"line (\d+)\n", text)]


def expect_lines(shown: list[int], *, before: list[int], count: int, seconds: float) -> None:
    """All lines are there in order; only what came in the last moments before the kill may be there twice."""
    after = shown[len(before) :]
    assert before == list(range(len(before)))
    assert after == list(range(after[0], count))
    assert len(before) - TWICE_SECONDS / seconds - 2 <= after[0] <= len(before), f"{before[-1]}, then {after[0]}"


def test_a_cell_that_ended_while_no_server_was_there_is_complete_on_the_page(server: ReturningServer) -> None:
    page = Page(server, NAME)
    request = page.send(LINES.format(count=30, seconds=0.1))
    wait_until(lambda: "line 5\n" in page.cell(request).text, "output before the kill", 30)
    server.kill()
    time.sleep(4)
    before = numbers(page.cell(request).text)
    server.again()
    time.sleep(2)
    # No page has come yet: the output waits for one.
    assert page.model["connections"] == 0
    page.connect()
    cell = page.finish(request)
    expect_lines(numbers(cell.text), before=before, count=30, seconds=0.1)
    assert (cell.reply["status"], cell.result) == ("ok", "'the end'")


def test_a_kernel_whose_host_is_away_waits_for_it_under_its_old_id(
    rig: Rig, server: ReturningServer, bridge_env: Laptop
) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "lab-proxied"}, persist=True)
    page = Page(server, NAME)
    page.run("kept = 41")
    server.close()
    with rig.proxy.cut():
        began = time.monotonic()
        server.again()
        assert time.monotonic() - began < 20 * SLOW
        assert page.session["kernel"]["id"] == page.kernel_id
        assert page.connect() < 5 * SLOW
        (row,) = call(server, "GET", "kernelbridge/kernels")["kernels"]
        assert (row["kernel_id"], row["host"], row["link"]) == (page.kernel_id, "lab", "link lost")
        request = page.send("print(kept + 1)")
        away = re.compile("lab.*(cannot be reached|refused the connection)")
        wait_until(lambda: bool(away.search(page.cell(request).text)), "the reason in the waiting cell", 10)
        assert page.model["execution_state"] in ("starting", "busy", "idle")
    assert page.finish(request, seconds=30).text == "42\n"
    wait_until(lambda: held(server)[0]["state"] == "idle", "the kernel to be seen idle", 5)
    assert held(server)[0]["link"] == "held"


def test_without_persist_a_stop_ends_kernels_and_only_a_kill_leaves_them(
    rig: Rig, server: ReturningServer, bridge_env: Laptop
) -> None:
    bridge_env.write_environment(rig.image)
    page = Page(server, NAME)
    page.run("kept = 41")
    server.kill()
    server.again()
    page.connect()
    assert page.run("print(kept + 1)") == "42\n"
    server.close()
    expect_no_container(rig)
    server.again()
    assert server.get("api/kernels") == []
    assert server.get("api/sessions") == []


def test_a_renamed_notebook_has_its_kernel_again_under_its_new_name(server: ReturningServer) -> None:
    page = Page(server, NAME, "before.ipynb")
    page.run("kept = 41")
    wait_until(lambda: held(server)[0]["title"] == "before.ipynb", "the first name to be kept", 10)
    call(server, "PATCH", f"api/sessions/{page.session_id}", {"path": "after.ipynb", "name": "after.ipynb"})
    wait_until(lambda: held(server)[0]["title"] == "after.ipynb", "the new name to be kept", 10)
    server.kill()
    server.again()
    assert page.session["path"] == "after.ipynb"
    wait_until(lambda: held(server)[0]["title"] == "after.ipynb", "the title", 5)


def held(server: ReturningServer) -> list[dict[str, Any]]:
    """What our own REST says of the server's kernels."""
    rows: list[dict[str, Any]] = call(server, "GET", "kernelbridge/kernels")["kernels"]
    return rows


def test_a_kernel_that_a_program_left_is_taken_up_by_a_running_server(
    rig: Rig, server: ReturningServer, bridge_env: Laptop
) -> None:
    program = (
        "from jupyter_client.manager import start_new_kernel\n"
        f"manager, client = start_new_kernel(kernel_name={NAME!r}, startup_timeout=60)\n"
        "client.execute_interactive('kept = 41', timeout=60)\n"
        "print(manager.provisioner.kernel_id)\n"
    )
    wait_until(lambda: NAME in server.get("api/kernelspecs")["kernelspecs"], "the kernel spec", 10)
    kernel_id = run([sys.executable, "-c", program], env=bridge_env.env).split()[-1]
    wait_until(lambda: [one["id"] for one in server.get("api/kernels")] == [kernel_id], "the kernel to be listed", 10)
    page = Page(server, NAME, kernel_id=kernel_id)
    assert page.run("print(kept + 1)") == "42\n"


def test_our_rest_asks_for_a_token_and_lists_all_hosts_on_demand(rig: Rig, server: ReturningServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server.url + "kernelbridge/kernels", timeout=10)
    assert refused.value.code == 403
    refused.value.close()
    page = Page(server, NAME)
    page.run("1")
    wait_until(lambda: held(server)[0]["state"] == "idle", "the kernel to be seen idle", 5)
    everywhere = call(server, "GET", "kernelbridge/kernels?all=1")
    assert everywhere["problems"] == []
    (row,) = everywhere["kernels"]
    assert (row["kernel_id"], row["state"], row["link"], row["title"]) == (page.kernel_id, "idle", "held", "work.ipynb")
    request = page.send("import time; time.sleep(5)")
    wait_until(lambda: held(server)[0]["state"] == "busy", "the kernel to be busy", 5)
    page.finish(request)
    with rig.sshd.stopped():
        assert [one["kernel_id"] for one in held(server)] == [page.kernel_id]


# urllib leaves a socket to the collector when a server goes away in the midst of its answer.
def test_a_page_that_asks_while_its_server_stops_never_hears_that_its_kernel_is_gone(server: ReturningServer) -> None:
    page = Page(server, NAME)
    page.run("1")
    connection = http.client.HTTPConnection(server.url.removeprefix("http://").strip("/"), timeout=10)
    heard: set[tuple[int, bool]] = set()

    def asks() -> bool:
        for path in (f"api/kernels/{page.kernel_id}", "api/sessions"):
            try:
                connection.request("GET", f"/{path}", headers={"Authorization": f"token {server.token}"})
                answer = connection.getresponse()
                heard.add((answer.status, page.kernel_id in answer.read().decode()))
            except (OSError, http.client.HTTPException):
                connection.close()
                return False
        return True

    assert asks()
    server.process.terminate()
    connection.auto_open = 0
    while asks():
        time.sleep(0.01)
    connection.close()
    server.process.wait(30)
    assert (200, True) in heard
    assert heard <= {(200, True), (503, False)}


def test_the_culler_spares_a_kernel_that_works_and_one_whose_host_is_away(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "lab-proxied"}, persist=True)
    culler = ["--MappingKernelManager.cull_idle_timeout=10", "--MappingKernelManager.cull_interval=1"]
    with ReturningServer(bridge_env.home / "server", env=bridge_env.variables, args=culler) as server:
        page = Page(server, NAME)
        # Its own words: a cell that still waits for its kernel is busy too, and dies with the server.
        request = page.send("import time; print('it runs', flush=True); time.sleep(900)")
        wait_until(lambda: "it runs" in page.cell(request).text, "the cell to run", 30)
        server.kill()
        with rig.proxy.cut():
            server.again()
            time.sleep(14)
            assert page.model["connections"] == 0
        # Its host is there again, no page is: it works, and is culled only some time after that.
        wait_until(lambda: page.model["execution_state"] == "busy", "the kernel to be seen busy", 20)
        time.sleep(14)
        assert page.model["execution_state"] == "busy"
        call(server, "POST", f"api/kernels/{page.kernel_id}/interrupt", {})
        wait_until(lambda: not page.model, "the kernel to be culled", 60)
        expect_no_container(rig)
