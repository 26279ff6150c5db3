"""The short form of the soak: seconds of what scripts/soak does for half an hour, with all of its oracles."""

from __future__ import annotations

import pytest

from tests.rig.whole import Rig
from tests.soak import soak, starts

pytestmark = pytest.mark.timeout(400)

SEED = 7


def test_a_short_soak_loses_nothing_brings_nothing_twice_and_leaves_nothing(rig: Rig) -> None:
    outcome = soak.run(rig, None, minutes=0.25, kernels=5, seed=SEED)
    print("\n".join(outcome.report()))
    assert outcome.flaws == []
    assert outcome.left == []
    assert [one for one in outcome.growths if not one.is_flat] == []
    # It was a soak.
    assert sum(outcome.happened.values()) - outcome.happened["skipped"] >= 3
    assert outcome.counts["cells"] >= 5


def test_some_starts_and_stops_in_a_row_leave_nothing(rig: Rig) -> None:
    outcome = starts.run(rig, None, starts=4)
    print("\n".join(outcome.report()))
    assert (outcome.flaws, outcome.left, outcome.not_flat) == ([], [], [])
    assert outcome.starts == 4
