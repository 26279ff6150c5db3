"""What is measured on a kernel: an execute round trip, and output in large messages. All in one unit each."""

from __future__ import annotations

import contextlib
import queue
import statistics
import time

from jupyter_client.blocking.client import BlockingKernelClient

ROUND_TRIPS = 100
LARGE_MESSAGES = 200
LARGE_BYTES = 1_000_000
ANSWER_SECONDS = 120.0


def _reply(client: BlockingKernelClient, code: str) -> None:
    wanted = client.execute(code)
    while client.get_shell_msg(timeout=ANSWER_SECONDS)["parent_header"].get("msg_id") != wanted:
        pass


def _idle(client: BlockingKernelClient, wanted: str, seconds: float = ANSWER_SECONDS) -> int:
    """Read iopub until the request is done; return the characters of display data seen."""
    seen = 0
    while True:
        message = client.get_iopub_msg(timeout=seconds)
        if message["parent_header"].get("msg_id") != wanted:
            continue
        if message["msg_type"] == "display_data":
            seen += len(message["content"]["data"]["text/plain"])
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return seen


def _settle(client: BlockingKernelClient) -> None:
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
    _settle(client)
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
    _settle(client)
    _reply(client, f"text = {{'text/plain': 'x' * {LARGE_BYTES}}}")
    _idle(client, client.execute("display(text, raw=True)"))
    began = time.perf_counter()
    seen = _idle(client, client.execute(f"for _ in range({count}): display(text, raw=True)"))
    took = time.perf_counter() - began
    if seen != count * LARGE_BYTES:
        raise AssertionError(f"{seen} of {count * LARGE_BYTES} characters came")
    return seen / took / 1e6
