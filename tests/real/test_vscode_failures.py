"""Starts that fail, as VS Code shows them: in the cell, as long as the launcher lives; and what a restart does then.

The client is tests/clients/vscode_raw.mjs, which reads no stderr once kernel_info was answered, and freezes where a
hidden cell gets no answer. Other managers: test_late_failures.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from kernelbridge.errors import TRACEBACK_COLUMNS
from tests.clients.confirming_agent import confirming_agent
from tests.clients.driver import Answer, NodeClient
from tests.clients.goodbyes import expect_left
from tests.clients.specs import Spec, installed_spec
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def spec(bridge_env: Laptop) -> Spec:
    return installed_spec(bridge_env)


@contextmanager
def host_key_unknown(laptop: Laptop) -> Iterator[None]:
    path = laptop.ssh_folder / "known_hosts"
    known = path.read_text()
    path.write_text("")
    try:
        yield
    finally:
        path.write_text(known)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What is wrong: keys of the host and of the environment, or a fault; and words of the sentence for it."""

    words: str
    image: str = Rig.image
    host: dict[str, object] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    fault: Callable[[Rig, Laptop], AbstractContextManager[object]] = lambda rig, laptop: nullcontext()


FAILURES = {
    "the host refuses": Failure(host={"ssh": "kbtest@127.0.0.1:9"}, words="127.0.0.1:9 refused the connection"),
    "the host is silent": Failure(
        host={"ssh": "lab-proxied", "login_seconds": 4},
        fault=lambda rig, _: rig.proxy.blackhole(),
        words="no login in 4 s",
    ),
    "the name is unknown": Failure(host={"ssh": "kbtest@no-such-host.invalid"}, words="no-such-host.invalid cannot be"),
    "the key is unknown": Failure(fault=lambda _, laptop: host_key_unknown(laptop), words="host key is not known"),
    "the login is refused": Failure(fault=lambda rig, _: rig.sshd.login_refused(), words="login as kbtest was refused"),
    "no right to Docker": Failure(host={"ssh": "lab-other"}, words="may not use Docker"),
    "no such image": Failure(image="kernelbridge-test/none:1", words="no image kernelbridge-test/none:1"),
    "a mount is missing": Failure(keys={"mounts": ["/no/such/folder:/data"]}, words="/no/such/folder"),
    "a secret is missing": Failure(keys={"secrets": ["KB_NO_SUCH"]}, words="the secret KB_NO_SUCH is not set"),
    # Seen only once its container runs.
    "no ipykernel": Failure(image=Rig.bare_image, keys={"add_ipykernel": False}, words="has no ipykernel"),
}


def expect_shown(cell: Answer, words: str) -> None:
    """It ends with the sentence, told once, in lines that VS Code does not cut off; and with what to do."""
    lines = cell["screen"].splitlines()
    assert words in " ".join(lines), cell
    assert " ".join(lines).count(words) == 1
    assert lines[-1] == "Restart the kernel to try again."
    assert max(len(line) for line in lines) <= TRACEBACK_COLUMNS, lines
    assert "Traceback" not in cell["screen"]


# What the waiting cell has shown before that, where a check takes longer than the 2 s in which nothing is shown.
SAID = {"the host is silent": "Docker-GPU (remote) on lab: waiting for 127.0.0.1:"}


def test_whatever_is_wrong_is_told_in_the_users_cells_and_a_restart_tries_again(
    rig: Rig, spec: Spec, bridge_env: Laptop
) -> None:
    with NodeClient("vscode_raw.mjs", spec.settings(startup_commands="%autoreload 0")) as code:
        for number, (name, failure) in enumerate(FAILURES.items()):
            bridge_env.write_environment(failure.image, host=failure.host, **failure.keys)
            with failure.fault(rig, bridge_env):
                code.ask("restart" if number else "start")
                cell = code.execute("print('never')")
                expect_shown(cell, failure.words)
                assert any(text.startswith(SAID.get(name, "")) for text in ["", *texts_of(cell)][name in SAID :]), cell
                # Also later, and after an interrupt; nothing of it depends on stderr.
                interrupted = code.ask("interrupt")
                assert (interrupted["reply"]["status"], interrupted["took"] < 2 * SLOW) == ("ok", True), name
                expect_shown(code.execute("print('nor now')"), failure.words)
            assert code.ask("status")["exit"] is None, name
        # One is enough: all the same way.
        bridge_env.write_environment(rig.image)
        code.ask("restart")
        assert code.execute("6 * 7")["screen"] == "42"
        ended = code.ask("stop")
        assert (ended["code"], ended["stderr"]) == (0, "")
    expect_left(rig, bridge_env)


# What is found before the ports are bound: VS Code shows stderr, and starts again when a cell is run again.
REFUSED: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "no such environment": ("", {"KERNELBRIDGE_ENVIRONMENT": "nope"}, ["`nope`", "Add it to"]),
    "a wrong config": (
        '[hosts.lab]\nssh = "lab"\nspeed = 1\ncolour = 2\n',
        {},
        ["hosts.lab.speed:", "hosts.lab.colour:", "Fix the file;"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_before_the_ports_are_bound_is_shown_line_by_line(
    spec: Spec, bridge_env: Laptop, case: str
) -> None:
    text, env, words = REFUSED[case]
    if text:
        bridge_env.write_config(text)
    with NodeClient("vscode_raw.mjs", spec.settings(env=env)) as code:
        failed = code.ask("start", check=False)
        assert (failed["ok"], failed["kind"], failed["code"]) == (False, "exited", 1)
        lines = failed["shown"].splitlines()
        starts = [line for line in lines for word in words if word in line]
        assert len(starts) == len(words), lines
        assert all(len(line) <= TRACEBACK_COLUMNS or " " not in line for line in lines[:-1])
        assert lines[-1].startswith("docs: https://")


def test_a_start_that_fails_in_its_container_leaves_none_while_the_cell_says_why(
    rig: Rig, spec: Spec, bridge_env: Laptop
) -> None:
    with rig.slow_engine() as engine:
        bridge_env.write_environment(rig.bare_image, add_ipykernel=False, host={"socket": str(engine.path)})
        with engine.delays(r"DELETE /containers/", 4), NodeClient("vscode_raw.mjs", spec.settings()) as code:
            code.ask("start")
            expect_shown(code.execute("1"), "has no ipykernel")
            wait_until(lambda: not rig.engine.kernels(), "the container to be gone", 20)
            expect_shown(code.execute("1"), "has no ipykernel")
            assert code.ask("stop")["code"] == 1


def texts_of(cell: Answer) -> list[str]:
    return [output["text"] for output in cell["outputs"] if output["type"] == "stream"]


def test_a_login_that_waits_for_its_user_is_told_in_the_cell_at_the_start_and_after_a_cut(
    rig: Rig, spec: Spec, bridge_env: Laptop
) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "lab-proxied", "login_seconds": 60})
    with confirming_agent(bridge_env) as agent, NodeClient("vscode_raw.mjs", spec.settings()) as code:
        code.ask("start")
        job = code.begin("execute", code="6 * 7")
        wait_until(agent.asked.exists, "the agent to ask", 20)
        time.sleep(2)  # The progress of a waiting cell is renewed 4 times in a second.
        agent.allow()
        cell = code.finish(job)
        assert cell["screen"] == "42"
        waits = "waiting for the key "
        assert any(waits in text and "touch it, or confirm" in text for text in texts_of(cell)), cell

        agent.forbid()
        job = code.begin("execute", code="import time; time.sleep(3); 'gone on'")
        with rig.proxy.cut():
            pass
        wait_until(agent.asked.exists, "the agent to ask again", 20)
        time.sleep(2)
        agent.allow()
        cell = code.finish(job)
        # Once, and the cell has gone on meanwhile.
        assert [waits in text for text in texts_of(cell)] == [True], cell
        assert cell["screen"].endswith("'gone on'")
        code.ask("stop")
        expect_left(rig, bridge_env)
