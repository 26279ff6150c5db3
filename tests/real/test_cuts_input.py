"""Does input() outlive a lost line: asked before it and answered during or after, asked during it?

What is printed across a cut: test_cuts.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import Empty

import pytest

from tests.clients.blocking import Client, started
from tests.clients.notebook import fleet_closed_after, write_specs
from tests.rig.daemon import SLOW
from tests.rig.faults import FAULTS
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

HALF_SECONDS = 1.0 * SLOW
LOST = ("listener closed", "packets lost, then a reset")


@pytest.fixture(scope="module")
def client(rig: Rig, module_env: Laptop) -> Iterator[Client]:
    """One kernel behind the proxy."""
    module_env.write_environment(rig.image, host={"ssh": "lab-proxied"})
    write_specs(module_env)
    with fleet_closed_after(module_env), started() as (_, made):
        yield made


def prompt(client: Client, seconds: float) -> str:
    """What input() asks for. Raises Empty."""
    message = client.kernel.get_stdin_msg(timeout=seconds * SLOW)
    assert message["msg_type"] == "input_request"
    return str(message["content"]["prompt"])


def expect_answered_once(client: Client, cell: str, result: str) -> None:
    done = client.finish(cell, seconds=15)
    assert (done.reply["status"], done.result) == ("ok", result)
    with pytest.raises(Empty):
        prompt(client, 0.2)
    assert client.run("6 * 7").result == "42"


@pytest.mark.parametrize("fault", LOST)
def test_an_answer_given_during_a_cut_reaches_the_cell_that_asked_before(rig: Rig, client: Client, fault: str) -> None:
    cell = client.send("input('who? ')")
    assert prompt(client, 10) == "who? "
    with FAULTS[fault].strike(rig):
        time.sleep(HALF_SECONDS)
        client.kernel.input("ada")
        time.sleep(HALF_SECONDS)
        assert not client.has_answer(cell)
    expect_answered_once(client, cell, "'ada'")


@pytest.mark.parametrize("fault", LOST)
def test_an_answer_given_after_a_cut_reaches_the_cell_that_asked_before(rig: Rig, client: Client, fault: str) -> None:
    cell = client.send("input('who? ')")
    assert prompt(client, 10) == "who? "
    with FAULTS[fault].strike(rig):
        time.sleep(2 * HALF_SECONDS)
    client.kernel.input("ada")
    expect_answered_once(client, cell, "'ada'")


@pytest.mark.parametrize("fault", LOST)
def test_a_question_asked_during_a_cut_comes_after_it_and_once(rig: Rig, client: Client, fault: str) -> None:
    cell = client.send(f"import time; print('the cell runs', flush=True); time.sleep({HALF_SECONDS}); input('who? ')")
    client.wait_for_words("the cell runs")
    with FAULTS[fault].strike(rig), pytest.raises(Empty):
        prompt(client, 2.5 * HALF_SECONDS / SLOW)
    assert prompt(client, 10) == "who? "
    client.kernel.input("ada")
    expect_answered_once(client, cell, "'ada'")
