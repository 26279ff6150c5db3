"""protocol/exit_codes.py: each end of a container has a code of its own."""

from __future__ import annotations

import pytest

from kernelbridge.protocol import exit_codes
from kernelbridge.protocol.exit_codes import (
    EXIT_CODES,
    EXIT_NO_LOCK,
    EXIT_NO_ORDER,
    EXIT_TAKEN,
    Terms,
    key_of,
    terms_of,
)


def test_each_exit_has_a_code_of_its_own_and_only_keys_of_the_config_are_found_by_it() -> None:
    codes = [*EXIT_CODES.values(), EXIT_TAKEN, EXIT_NO_LOCK, EXIT_NO_ORDER]
    assert len(set(codes)) == len(codes)
    assert [key_of(EXIT_CODES[why]) for why in ("lost_grace", "unjoined", "delivered")] == ["lost_grace", "", ""]
    assert key_of(EXIT_TAKEN) == ""


def test_terms_come_from_the_order_and_unknown_ones_are_left_out() -> None:
    assert terms_of({"persist": True, "max_lifetime": None, "later": 1}) == Terms(persist=True)


@pytest.mark.parametrize(
    ("code", "text"),
    [(0, "exit code 0"), (3, "exit code 3"), (-9, "signal SIGKILL"), (-7, "signal SIGBUS"), (-200, "signal 200")],
)
def test_an_exit_code_is_said_as_people_know_it(code: int, text: str) -> None:
    assert exit_codes.how_ended(code) == text
