"""Do debugger and interrupt answer soon while much output waits for a slow line?

What becomes of an interrupt while the line is lost: test_many.py.
"""

from __future__ import annotations

import time

from tests.clients.blocking import Client, started
from tests.clients.notebook import fleet_closed_after, write_specs
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

BYTES_PER_SECOND = 1_000_000
PIECES = 50
# 50 MB that no compression makes small, then a wait that can be interrupted. The files tell of it past the line.
PIECE_BYTES = 1_000_000
MAKE = f"""\
import base64, os
pieces = [base64.b85encode(os.urandom({PIECE_BYTES * 4 // 5})).decode() for _ in range({PIECES})]"""
OUTPUT = """\
import os, pathlib, time
for piece in pieces:
    print(piece, flush=True)
pathlib.Path('/tmp/printed').touch()
try:
    time.sleep(600)
except KeyboardInterrupt:
    pathlib.Path('/tmp/interrupted').touch()
    raise"""
INFO = {"type": "request", "seq": 1, "command": "debugInfo"}


def answer_seconds(client: Client, kind: str, content: dict[str, object]) -> float:
    """How long a request on control takes; its answer says ok."""
    began = time.monotonic()
    answer = client.answer(client.ask("control", kind, content))["content"]
    took = time.monotonic() - began
    assert answer.get("success", answer.get("status") == "ok"), answer
    return took


def test_control_is_answered_within_a_second_while_fifty_megabytes_wait_for_a_slow_line(
    rig: Rig, module_env: Laptop
) -> None:
    module_env.write_environment(rig.image, host={"ssh": "lab-proxied"})
    write_specs(module_env)
    with fleet_closed_after(module_env), started() as (_, client):
        answer_seconds(client, "debug_request", INFO)
        client.run(MAKE)
        (container,) = rig.engine.kernels()
        folder = rig.engine.root_of(container) / "tmp"
        with rig.proxy.rate(BYTES_PER_SECOND):
            cell = client.send(OUTPUT)
            wait_until(lambda: (folder / "printed").exists(), "all output to be printed", 20)
            debugging = answer_seconds(client, "debug_request", INFO)
            interrupting = answer_seconds(client, "interrupt_request", {})
            wait_until(lambda: (folder / "interrupted").exists(), "the cell to be interrupted", 3)
            came = sum(len(one["content"]["text"]) for one in client.seen() if one["msg_type"] == "stream")
            assert came < PIECES * PIECE_BYTES / 2
        assert (debugging < 1 * SLOW, interrupting < 1 * SLOW) == (True, True), (debugging, interrupting)
        done = client.finish(cell)
    assert (done.reply["status"], done.reply["ename"]) == ("error", "KeyboardInterrupt")
    assert len(done.text) == PIECES * (PIECE_BYTES + 1)
