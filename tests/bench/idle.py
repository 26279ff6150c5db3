"""What idle kernels cost: memory and processor time here, and processor time on their host."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.ways import Place

FEW, MANY, MOST = 1, 21, 50
# After the last start: until what a start leaves to be done is done.
SETTLE_SECONDS = 15.0
MEMORY_SETTLE_SECONDS = 5.0
WATCHED_SECONDS = 60.0
MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Idle:
    """What was seen. `percent` and `percent_there` are of one core, for MOST kernels; the latter by kind of process."""

    # Of this machine's memory: with few kernels, and for each one more.
    mib_with_few: float
    mib_per_kernel: float
    percent: float
    percent_there: dict[str, float]


@contextmanager
def _holder(place: Place) -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("idle_holder.py")
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, str(script), str(place.laptop.config)],
        env={**place.laptop.env, "PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(180)


def _hold(holder: subprocess.Popen[str], count: int) -> None:
    assert holder.stdin is not None
    assert holder.stdout is not None
    print(count, file=holder.stdin, flush=True)
    if holder.stdout.readline() != f"{count}\n":
        raise AssertionError(f"{count} kernels did not start")


def idle(place: Place) -> Idle:
    """Hold some kernels, then more of them, in one process of this machine; nobody uses them."""
    place.laptop.write_environment(place.rig.image)
    with _holder(place) as holder:
        process = psutil.Process(holder.pid)
        resident = []
        for count in (FEW, MANY):
            _hold(holder, count)
            time.sleep(MEMORY_SETTLE_SECONDS)
            resident.append(process.memory_info().rss)
        _hold(holder, MOST)
        time.sleep(SETTLE_SECONDS)
        kinds = _kinds(place)
        before, there_before, began = _seconds(process), _by_kind(kinds), time.monotonic()
        time.sleep(WATCHED_SECONDS)
        after, there_after, took = _seconds(process), _by_kind(kinds), time.monotonic() - began
        return Idle(
            mib_with_few=resident[0] / MIB,
            mib_per_kernel=(resident[1] - resident[0]) / (MANY - FEW) / MIB,
            percent=100 * (after - before) / took,
            percent_there={kind: 100 * (there_after[kind] - there_before[kind]) / took for kind in there_after},
        )


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _kinds(place: Place) -> dict[psutil.Process, str]:
    """The processes of the host: which are relays, which kernels, which its engine and its sshd."""
    found = {}
    for process in place.rig.lab.processes():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            name = process.name()
            if "ipykernel_launcher" in line:
                kind = "kernels"
            elif line.endswith("/relay.sock"):
                kind = "bridges"
            elif name.startswith("python"):
                kind = "relays"
            elif "shim" in name:
                kind = "shims"
            else:
                kind = name if name in ("dockerd", "containerd", "sshd") else "others"
            found[process] = kind
    return found


def _by_kind(kinds: dict[psutil.Process, str]) -> dict[str, float]:
    spent = dict.fromkeys(kinds.values(), 0.0)
    for process, kind in kinds.items():
        # In nanoseconds, where cpu_times() has ticks of 10 ms: a relay spends less than that in a minute.
        for task in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            with suppress(OSError):
                spent[kind] += int(task.read_text().split()[0]) / 1e9
    return spent
