"""protocol/flow_control.py: how much may be under way."""

from __future__ import annotations

import pytest

from kernelbridge.protocol import flow_control
from kernelbridge.protocol.flow_control import KIB, SendWindow, Sent


def sent_at(seconds: float, delivered_bytes: int = 0) -> Sent:
    return Sent(1, 0, memoryview(b""), seconds, delivered_bytes)


@pytest.mark.parametrize(
    ("rate", "round_trip_seconds", "wanted"),
    [
        (1e6, 0.01, flow_control.LEAST_WINDOW_BYTES),
        (20e6, 0.01, 2_000_000),  # what the line delivers in QUEUE_SECONDS
        (20e6, 0.04, 3_200_000),  # or in four round trips
        (20e6, 0.2, 7_000_000),  # but in no more than BEYOND_SECONDS more than one
        (1e9, 0.2, flow_control.MOST_WINDOW_BYTES),
    ],
)
def test_as_much_is_under_way_as_the_line_delivers_soon(rate: float, round_trip_seconds: float, wanted: int) -> None:
    window = SendWindow()
    window.observe(sent_at(0), int(rate * round_trip_seconds), round_trip_seconds)
    assert window.limit_bytes == pytest.approx(wanted, rel=1e-6)
    assert repr(window) == f"<SendWindow {wanted // KIB} KiB>"


def test_the_best_rate_of_the_last_period_counts_for_one_more() -> None:
    window = SendWindow()
    window.observe(sent_at(10.0), 5_000_000, 10.1)
    before = window.limit_bytes
    window.observe(sent_at(16.0), 1000, 16.1)  # A period later, and hardly anything was sent.
    assert window.limit_bytes == before
    window.observe(sent_at(22.0), 1000, 22.1)
    assert window.limit_bytes == flow_control.LEAST_WINDOW_BYTES
    window.observe(sent_at(23.0), 10**9, 23.0)  # No time has passed: that says nothing.
    assert window.limit_bytes == flow_control.LEAST_WINDOW_BYTES


def test_a_line_that_is_full_all_the_time_makes_no_queue_that_grows() -> None:
    window, rate, now, delivered = SendWindow(), 1e6, 0.0, 0
    window.observe(sent_at(0), 128_000, 0.128)  # What one acknowledgement covers.
    for _ in range(1000):
        # All that is under way stands in front of what is sent now.
        took = window.limit_bytes / rate
        now += 0.1
        delivered += int(0.1 * rate)
        window.observe(Sent(1, 0, memoryview(b""), now, delivered), delivered + int(took * rate), now + took)
    assert window.limit_bytes <= 0.45 * rate


def test_a_round_trip_that_has_become_longer_is_seen_after_a_while() -> None:
    window = SendWindow()
    for tenth in range(10 * 60):
        round_trip = 0.05 if tenth < 100 else 0.5
        window.observe(sent_at(tenth / 10), int(1e7 * round_trip), tenth / 10 + round_trip)
    assert window.limit_bytes == pytest.approx(1e7 * 0.65)
