"""VS Code's local kernels: its raw path, with the npm libraries that it uses, against a real sshd and dockerd.

What VS Code starts for each kernel is jupyter/vscode_launcher.py, in a process of its own.
The client is tests/clients/vscode_raw.mjs. What comes through a Jupyter server: test_services.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kernelbridge.channels.vscode import GUESSED_WIDGETS
from tests.clients.driver import NodeClient
from tests.clients.goodbyes import expect_gone, expect_left, kernel_processes
from tests.clients.launched import launched
from tests.clients.specs import Spec, installed_spec, stock_spec
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

FUNCTION = "def twice(value):\n    result = value * 2\n    return result\n\nanswer = twice(21)\nprint(answer)"
WHERE = "import platform, pathlib; print(platform.node(), pathlib.Path('/.dockerenv').exists())"
# Requests of VS Code from "Debug Cell" to the stop, as logged by the real one; two cells in the notebook.
TO_THE_STOP = [
    *("initialize", "debugInfo", "attach", "setFunctionBreakpoints", "setExceptionBreakpoints", "dumpCell"),
    *("setBreakpoints", "threads", "dumpCell", "dumpCell", "configurationDone"),
    *("threads", "stackTrace", "scopes", "variables"),
]
# How the Python extension looks at argv[0] of any Python kernel spec, and two other ways to ask an interpreter.
PROBES = [
    ["-I", "/opt/ext/pythonFiles/get_output_via_markers.py", "/opt/ext/pythonFiles/interpreterInfo.py"],
    ["-c", "import sys;print(sys.executable)"],
    ["-m", "pip", "list"],
    ["--version"],
    [],
]


@pytest.fixture
def spec(bridge_env: Laptop) -> Spec:
    return installed_spec(bridge_env)


@pytest.fixture
def code(rig: Rig, spec: Spec, bridge_env: Laptop, tmp_path: Path) -> Iterator[NodeClient]:
    """VS Code with a notebook open; nothing is started yet. When it has closed, its kernel was left in good order."""
    with NodeClient("vscode_raw.mjs", spec.settings(cwd=str(tmp_path))) as client:
        yield client
    expect_left(rig, bridge_env)


def expect_no_container(rig: Rig, seconds: float = 20) -> None:
    wait_until(lambda: not rig.engine.kernels(), "the container to be gone", seconds)


def expect_one_container(rig: Rig) -> None:
    wait_until(lambda: len(rig.engine.kernels()) == 1, "one container of ours", 20)


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_vscode_starts_a_kernel_runs_cells_and_leaves_nothing_after_sigterm(
    rig: Rig, code: NodeClient, bridge_env: Laptop
) -> None:
    started = code.ask("start")
    assert started["bound"] < 1.5 * SLOW  # Within a second, seen by polling every 200 ms.
    assert started["info"]["language_info"]["name"] == "python"
    expect_one_container(rig)
    name, in_docker = code.execute(WHERE)["screen"].split()
    assert in_docker == "True"
    assert name != rig.lab.run(["hostname"]).strip()
    assert code.execute("print('to stdout'); 6 * 7")["screen"] == "to stdout\n42"
    asked = code.execute("who = input('who? '); who[::-1]", replies=["ada"])
    assert (asked["prompts"], asked["screen"]) == (["who? "], "'ada'"[::-1])
    assert code.execute("1/0")["ename"] == "ZeroDivisionError"
    stopped = code.ask("stop")
    assert (stopped["code"], stopped["stderr"]) == (0, "")
    assert stopped["seconds"] < 1.5 * SLOW
    # Long before its container, which stays 15 s for a restart.
    wait_until(lambda: kernel_processes(rig) == [], "the kernel process to end", 3)
    expect_gone(rig, bridge_env)


@pytest.mark.quick
def test_vscode_debug_cell_stops_at_the_breakpoint_steps_and_goes_on(code: NodeClient) -> None:
    code.ask("start")
    code.execute("x = 1")
    hit = code.ask("debug", cells=["x = 1", FUNCTION], debug=1, lines=[5])
    assert hit["commands"] == TO_THE_STOP
    assert (hit["reason"], hit["line"], hit["function"]) == ("breakpoint", 5, "<module>")
    # The frame is found in the notebook's cell again, and not fetched as a foreign source.
    assert hit["cell_uri"].endswith("#cell-1")
    assert not hit["source"].get("sourceReference")
    assert hit["variables"]["x"] == "1"
    stepped = code.ask("next")
    assert (stepped["reason"], stepped["line"]) == ("step", 6)
    assert stepped["variables"]["answer"] == "42"
    assert code.ask("evaluate", expression="answer + 1")["result"] == "43"
    finished = code.ask("continue")
    assert finished["finished"]
    assert finished["cell"]["screen"] == "42\n"
    assert "terminated" in code.ask("disconnect")["events"]
    # A second session on the same kernel, into the function this time.
    assert code.ask("debug", cells=["x = 1", FUNCTION], debug=1, lines=[2])["variables"]["value"] == "21"
    assert code.ask("stepOut")["function"] == "<module>"
    assert code.ask("continue")["finished"]
    code.ask("disconnect")


def test_vscode_interrupts_a_sleep_by_message(code: NodeClient) -> None:
    code.ask("start")
    job = code.begin("execute", code="import time; time.sleep(60)")
    wait_until(lambda: code.ask("status")["status"] == "busy", "the kernel to be busy", 10)
    interrupted = code.ask("interrupt")
    assert interrupted["took"] < 2 * SLOW
    cell = code.finish(job)
    assert cell["ename"] == "KeyboardInterrupt"
    assert cell["seconds"] < 5 * SLOW
    assert code.execute("'still here'")["screen"] == "'still here'"


def test_vscode_restart_gives_a_fresh_kernel_and_ends_the_old_one(rig: Rig, code: NodeClient) -> None:
    first = code.ask("start")
    code.execute("kept = 1; open('/tmp/kept', 'w').write('here')")
    before = [one.id for one in rig.engine.kernels()]
    again = code.ask("restart", timeout=90)
    assert not set(first["ports"]) & set(again["ports"])
    assert again["old_exit"]["seconds"] < 1.5 * SLOW
    assert not is_running(first["pid"])
    assert code.execute("'kept' in globals(), open('/tmp/kept').read()")["screen"] == "(False, 'here')"
    # In place: same container, new kernel.
    assert [one.id for one in rig.engine.kernels()] == before
    assert len(kernel_processes(rig)) == 1
    code.ask("debug", cells=[FUNCTION], lines=[5])
    assert code.ask("continue")["finished"]


def test_vscode_restart_over_a_slow_line_keeps_the_container_too(
    rig: Rig, code: NodeClient, bridge_env: Laptop
) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "lab-proxied"})
    code.ask("start")
    code.execute("open('/tmp/kept', 'w').write('here')")
    before = [one.id for one in rig.engine.kernels()]
    # The new launcher is there before the old one's goodbye has arrived.
    with rig.proxy.delay(0.6):
        code.ask("restart", timeout=90)
        assert code.execute("open('/tmp/kept').read()")["screen"] == "'here'"
    assert [one.id for one in rig.engine.kernels()] == before


def test_a_restart_while_another_is_under_way_keeps_the_container_too(rig: Rig, spec: Spec, bridge_env: Laptop) -> None:
    with launched(bridge_env) as first, first.client() as client:
        client.run("open('/tmp/kept', 'w').write('here')")
        before = [one.id for one in rig.engine.kernels()]
        first.end()
    with launched(bridge_env) as second:
        wait_until(lambda: kernel_processes(rig) != [], "the second kernel process, which has not answered yet", 20)
        assert second.end() < 1.5 * SLOW
    with launched(bridge_env) as third, third.client() as client:
        assert client.run("open('/tmp/kept').read()").result == "'here'"
        assert [one.id for one in rig.engine.kernels()] == before
    expect_left(rig, bridge_env)


@pytest.mark.timeout(240)
def test_vscode_waits_for_a_start_longer_than_its_limit_and_shows_what_goes_on_in_the_users_cell(
    rig: Rig, spec: Spec, bridge_env: Laptop
) -> None:
    # Of this image nothing is known yet; VS Code's limit is lowered, to save time.
    settings = spec.settings(launch_timeout_ms=8000 * SLOW, startup_commands="import os; os.environ['SET'] = 'yes'")
    with rig.slow_engine() as engine:
        bridge_env.write_environment(rig.image, host={"socket": str(engine.path)})
        with engine.delays(r"POST /containers/create", 12 * SLOW), NodeClient("vscode_raw.mjs", settings) as code:
            started = code.ask("start")
            assert started["bound"] < 1.5 * SLOW
            # Its own cells got an answer before the kernel could give one: else the user's would not be sent.
            assert started["prepared"] < 8 * SLOW
            began = time.monotonic()
            cell = code.execute("import os; os.environ['SET']", timeout=60 * SLOW)
            assert time.monotonic() - began > 2
            code.ask("stop")
            expect_left(rig, bridge_env)
    # Then only its result; and its own cells were run for real before it.
    assert cell["screen"] == "'yes'"
    streams = [output["text"] for output in cell["outputs"] if output["type"] == "stream"]
    assert streams[0].startswith("Docker-GPU (remote) on lab: starting the container (")
    kinds = [output["type"] for output in cell["outputs"]]
    assert kinds[-2:] == ["clear_output", "execute_result"]
    assert cell["statuses"].count("idle") == 1


def test_vscode_is_told_the_images_own_widgets_and_interrupts_and_restarts_a_slow_start(
    rig: Rig, code: NodeClient, spec: Spec, bridge_env: Laptop
) -> None:
    code.ask("start")
    code.execute("1")  # From now on this image's answers to VS Code's hidden cells are known here.
    code.ask("stop")
    expect_left(rig, bridge_env)
    with rig.slow_engine() as engine:
        bridge_env.write_environment(rig.image, host={"socket": str(engine.path)})
        with NodeClient("vscode_raw.mjs", spec.settings()) as new:
            with engine.delays(r"POST /containers/create", 5 * SLOW):
                started = new.ask("start")
                assert started["prepared"] < 5 * SLOW
                assert started["widgets"] not in ("", GUESSED_WIDGETS)
                cell = new.begin("execute", code="'never'")
                wait_until(lambda: any("/containers/create" in one for one in engine.requests), "the request", 20)
                assert new.ask("interrupt")["took"] < 2 * SLOW
                assert new.finish(cell)["ename"] == "KeyboardInterrupt"
                new.ask("restart", timeout=90)
            assert new.execute("6 * 7")["screen"] == "42"
            # What the first start had asked for was made all the same, and is removed: its launcher stays for that.
            made = [one for one in engine.requests if "/containers/create" in one]
            assert len(made) == 2
            wait_until(lambda: any(one.startswith("DELETE") for one in engine.requests), "the first's removal", 30)
            wait_until(lambda: len(rig.engine.kernels()) == 1, "one container", 20)
            new.ask("stop")
            expect_left(rig, bridge_env)


@pytest.mark.parametrize("words", PROBES, ids=lambda words: " ".join(words[:1]) or "nothing")
def test_the_launcher_refuses_what_it_is_not_asked_for_at_once_and_silently(
    rig: Rig, code: NodeClient, words: list[str]
) -> None:
    before = rig.sshd.arrivals
    answers = [code.ask("probe", args=words) for _ in range(3)]
    assert all(answer["code"] not in (0, None) for answer in answers)
    assert {answer["stdout"] + answer["stderr"] for answer in answers} == {""}
    assert min(answer["seconds"] for answer in answers) < 0.5 * SLOW
    assert rig.sshd.arrivals == before
    assert not rig.engine.kernels()


def test_the_launcher_ends_and_its_container_is_gone_when_vscode_is_killed(
    rig: Rig, code: NodeClient, bridge_env: Laptop
) -> None:
    launcher = code.ask("start")["pid"]
    expect_one_container(rig)
    code.kill()
    wait_until(lambda: not is_running(launcher), "the launcher to end", 5)
    # Long before its container, which stays 15 s for a restart.
    wait_until(lambda: kernel_processes(rig) == [], "the kernel process to end", 3)
    expect_gone(rig, bridge_env)


def test_the_launcher_ends_when_vscode_is_killed_during_the_start(rig: Rig, spec: Spec, bridge_env: Laptop) -> None:
    with rig.slow_engine() as engine:
        bridge_env.write_environment(rig.image, host={"socket": str(engine.path)})
        with engine.delays(r"POST /containers/create", 10), NodeClient("vscode_raw.mjs", spec.settings()) as code:
            code.begin("start")
            wait_until(lambda: any("/containers/create" in one for one in engine.requests), "the create request", 20)
            launcher = psutil.Process(code.process.pid).children()[0].pid
            code.kill()
            wait_until(lambda: not is_running(launcher), "the launcher to end", 15)
        # The engine may still carry out what it was asked for before.
        expect_no_container(rig, 30)


def test_a_thousand_comm_messages_reach_vscode_and_none_is_dropped(code: NodeClient) -> None:
    code.ask("start")
    flood = code.ask("flood", n=1000)
    assert (flood["count"], flood["inOrder"], flood["closed"]) == (1000, True, 1)
    assert flood["dropped"] == {}
    assert len(flood["sessions"]) == 1


def test_ten_megabytes_in_a_buffer_come_back_to_vscode_unchanged(code: NodeClient) -> None:
    code.ask("start")
    assert code.ask("echo", bytes=10_000_000)["intact"]


def test_the_count_of_dropped_messages_can_see_a_drop(tmp_path: Path) -> None:
    settings = stock_spec().settings(env={"JUPYTER_RUNTIME_DIR": str(tmp_path)})
    with NodeClient("vscode_raw.mjs", settings) as code:
        code.ask("start")
        own = code.ask("flood", planted="same")
        assert own["dropped"] == {}
        assert own["received"]["stream"] > 100
        foreign = code.ask("flood", planted="another-session")
        assert foreign["dropped"]
        assert len(foreign["sessions"]) == 2


def test_a_kernel_that_dies_takes_the_launcher_with_it_says_why_and_a_restart_finds_its_files(
    rig: Rig, code: NodeClient
) -> None:
    code.ask("start")
    before = [one.id for one in rig.engine.kernels()]
    dying = "import os; open('/tmp/kept', 'w').write('here'); os._exit(3)"
    dead = code.begin("execute", code=dying, timeout_ms=20_000)
    ended = code.ask("exit", timeout_ms=20_000)
    assert ended["code"] not in (0, None)
    assert "3" in ended["shown"]
    # ipykernel's banner is nobody's last words.
    assert "last output" not in ended["stderr"]
    assert "Restart the kernel to continue." in ended["stderr"]
    code.finish(dead, check=False)
    code.ask("start")
    assert code.execute("open('/tmp/kept').read()")["screen"] == "'here'"
    assert [one.id for one in rig.engine.kernels()] == before
