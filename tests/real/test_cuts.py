"""Is anything lost when the line is? Each fault under each client, with a cell that ends in the gap and one after it.

Beside them, under the same cuts and counted by the same code, a tunnel made by hand: there it can be seen to fail.
Longer and harder cases: test_cuts_hard.py, test_cuts_input.py, test_cuts_control.py, test_cuts_stopped.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.scene import AFTER_THE_GAP, CLIENTS, ENDS, IN_THE_GAP, SHORT_LINES, STRUCK_AT, TUNNEL, Scene, scene
from tests.rig.faults import FAULTS
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(180)

# Where the tunnel's connections end, so that what was printed meanwhile has nowhere to go.
ENDS_CONNECTIONS = ("listener closed", "packets lost, then a reset", "accepted, then closed")


@pytest.fixture(scope="module")
def everybody(rig: Rig, module_env: Laptop) -> Iterator[Scene]:
    """All clients, each with two kernels."""
    with scene(rig, module_env) as made:
        yield made


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_line_comes_once_and_in_order_then_reply_and_idle_and_the_next_cell_works(
    everybody: Scene, fault: str, client: str, ends: str
) -> None:
    record = everybody.record(fault)
    assert record.counts[client, ends].flaws == []
    assert record.next_results[client, ends] == "42"


@pytest.mark.parametrize("fault", FAULTS)
def test_rest_says_idle_after(everybody: Scene, fault: str) -> None:
    assert everybody.record(fault).states == {("jupyter_server", ends): "idle" for ends in ENDS}


# -- the proof that there was something to survive


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", [name for name, fault in FAULTS.items() if not fault.is_at_once_over])
def test_nothing_came_during(everybody: Scene, fault: str, client: str) -> None:
    silences = [everybody.record(fault).counts[client, ends].silence_seconds for ends in ENDS]
    assert min(silences) > FAULTS[fault].seconds - 1


@pytest.mark.parametrize("fault", [name for name, fault in FAULTS.items() if fault.is_at_once_over])
def test_every_kernel_behind_the_engine_was_joined_anew_after(everybody: Scene, fault: str) -> None:
    before, after = everybody.record(fault).bridges
    # The others have no bridge.
    assert (len(before), len(after)) == (3, 3)
    assert not before & after


@pytest.mark.parametrize("fault", ENDS_CONNECTIONS)
def test_a_tunnel_by_hand_loses_what_was_printed_during(everybody: Scene, fault: str) -> None:
    count = everybody.record(fault).counts[TUNNEL, AFTER_THE_GAP]
    # One piece, from the cut to a while after the line was whole again; then all comes, the reply too.
    assert len(count.lost) >= 10 * (FAULTS[fault].seconds - 1)
    assert count.lost == list(range(count.lost[0], count.lost[-1] + 1))
    assert (count.replies, count.idles, count.twice) == (("ok",), 1, [])


@pytest.mark.parametrize("fault", ENDS_CONNECTIONS)
def test_a_tunnel_by_hand_never_brings_reply_and_idle_of_a_cell_that_ended_during(everybody: Scene, fault: str) -> None:
    record = everybody.record(fault)
    count = record.counts[TUNNEL, IN_THE_GAP]
    assert 0 < len(count.lost) <= SHORT_LINES - STRUCK_AT
    assert (count.replies, count.idles) == ((), 0)
    # Though its kernel is there, and had answered a later cell by then.
    assert record.next_results[TUNNEL, IN_THE_GAP] == "42"
