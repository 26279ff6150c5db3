"""What is measured on a kernel: an execute round trip, output in large and in small messages. All in one unit each."""

from __future__ import annotations

import contextlib
import queue
import statistics
import time

from jupyter_client.blocking.client import BlockingKernelClient

from tests.clients.numbered import displaying

ROUND_TRIPS = 100
LARGE_MESSAGES = 200
LARGE_BYTES = 1_000_000
SMALL_MESSAGES = 20_000
SMALL_BYTES = 200
ANSWER_SECONDS = 120.0
# After such a pause nothing more of a flood comes.
FLOOD_SILENCE_SECONDS = 5.0


def _reply(client: BlockingKernelClient, code: str) -> None:
    wanted = client.execute(code)
    while client.get_shell_msg(timeout=ANSWER_SECONDS)["parent_header"].get("msg_id") != wanted:
        pass


def _idle(client: BlockingKernelClient, wanted: str, seconds: float = ANSWER_SECONDS) -> int:
    """Read iopub until the request is done; return the characters of display data seen."""
    return sum(len(text) for text in shown(client, wanted, seconds))


def shown(client: BlockingKernelClient, wanted: str, seconds: float = ANSWER_SECONDS) -> list[str]:
    """Read iopub until the request is done; return the display data seen."""
    seen: list[str] = []
    while True:
        message = client.get_iopub_msg(timeout=seconds)
        if message["parent_header"].get("msg_id") != wanted:
            continue
        if message["msg_type"] == "display_data":
            seen.append(message["content"]["data"]["text/plain"])
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return seen


def settle(client: BlockingKernelClient) -> None:
    """Return when output comes too: a subscription takes longer to arrive than a request."""
    for _ in range(50):
        wanted = client.execute("1")
        with contextlib.suppress(queue.Empty):
            _idle(client, wanted, seconds=0.5)
            break
    while True:
        with contextlib.suppress(queue.Empty):
            client.get_shell_msg(timeout=0.5)
            continue
        return


def round_trip_ms(client: BlockingKernelClient) -> float:
    """The median time from an execute request to its reply, in milliseconds; iopub is read meanwhile, as clients do."""
    settle(client)
    times = []
    for _ in range(ROUND_TRIPS + 10):
        began = time.perf_counter()
        wanted = client.execute("1")
        while client.get_shell_msg(timeout=ANSWER_SECONDS)["parent_header"].get("msg_id") != wanted:
            pass
        times.append(time.perf_counter() - began)
        _idle(client, wanted)
    return statistics.median(times[10:]) * 1000


def output_mb_per_second(client: BlockingKernelClient, count: int = LARGE_MESSAGES) -> float:
    """How fast iopub messages of 1 MB come, in MB/s."""
    settle(client)
    _reply(client, f"text = {{'text/plain': 'x' * {LARGE_BYTES}}}")
    _idle(client, client.execute("display(text, raw=True)"))
    began = time.perf_counter()
    seen = _idle(client, client.execute(f"for _ in range({count}): display(text, raw=True)"))
    took = time.perf_counter() - began
    if seen != count * LARGE_BYTES:
        raise AssertionError(f"{seen} of {count * LARGE_BYTES} characters came")
    return seen / took / 1e6


def small_messages_per_second(client: BlockingKernelClient, count: int = SMALL_MESSAGES) -> float:
    """How many display_data messages of 200 bytes come in a second; those that a plain kernel loses do not count."""
    settle(client)
    _reply(client, f"text = {{'text/plain': 'x' * {SMALL_BYTES}}}")
    _idle(client, client.execute("for _ in range(500): display(text, raw=True)"))
    seen, seconds = _flood(client, f"for _ in range({count}): display(text, raw=True)")
    return seen / seconds


def delivery_seconds(client: BlockingKernelClient, count: int) -> float:
    """How long so many small displays take from the request to the last that comes; a plain kernel may lose some."""
    settle(client)
    _, seconds = _flood(client, displaying(count))
    return seconds


def _flood(client: BlockingKernelClient, code: str) -> tuple[int, float]:
    """Run a cell that displays much; return how many displays came and how long that took.

    A client that gets no processor for a moment loses messages of a plain kernel, the idle among them.
    """
    seen, began = 0, time.perf_counter()
    wanted = client.execute(code)
    last = began
    with contextlib.suppress(queue.Empty):
        while True:
            message = client.get_iopub_msg(timeout=FLOOD_SILENCE_SECONDS)
            if message["parent_header"].get("msg_id") != wanted:
                continue
            last = time.perf_counter()
            seen += message["msg_type"] == "display_data"
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
    return seen, last - began
