"""A process of its own that starts kernels as a script would, several at once, and says in lines of JSON what it sees.

`python -m tests.clients.starter COUNT HOLD_SECONDS [ASLEEP_SECONDS]`: each kernel says which GPUs it has, holds them so
long or until SIGUSR1, and is shut down. ASLEEP_SECONDS makes two clocks faster: who does not beat for so long is passed
over in the queue, and who does not join for so long loses its kernel.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop


def _main(count: int, hold_seconds: float, asleep_seconds: float | None) -> None:
    # Here, so that a test that imports Starter does not read this user's folders.
    from kernelbridge.config import load as configs
    from kernelbridge.hosts import bootstrap
    from kernelbridge.hosts.docker import gpu_queue
    from kernelbridge.jupyter import shared_fleets

    if asleep_seconds is not None:
        gpu_queue.ASLEEP_AFTER = timedelta(seconds=asleep_seconds)  # type: ignore[misc]
        gpu_queue.BEAT_SECONDS = asleep_seconds / 4  # type: ignore[misc]
        real = bootstrap.order_line
        sooner = f"UNJOINED_SECONDS = {asleep_seconds}".encode()

        def order_line(*words: Any, **more: Any) -> bytes:
            return real(*words, **more).replace(b"UNJOINED_SECONDS = 60.0", sooner)

        bootstrap.order_line = order_line
    signal.signal(signal.SIGUSR1, lambda *_: _RELEASED.set())
    path = configs.find_path(os.environ)
    shared_fleets.fleet_of(path).observe(
        lambda kernel, state, text: _say("step", kernel=kernel, state=state, text=str(text), at=time.time())
    )
    threads = [threading.Thread(target=_hold, args=(hold_seconds,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _hold(seconds: float) -> None:
    from jupyter_client.manager import KernelManager

    from tests.clients.notebook import NAME, Notebook

    manager = KernelManager(kernel_name=NAME)
    client = None
    try:
        manager.start_kernel()
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=600)
        kernel = Notebook(manager, client)
        kernel.run("import os", seconds=600)
        cards = kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']").split(",")
        _say("got", cards=cards, at=time.time())
        _RELEASED.wait(seconds)
        _say("freed", cards=cards, at=time.time())
    except Exception as exc:
        _say("failed", error=str(exc))
    finally:
        if client is not None:
            client.stop_channels()
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)


_LOCK = threading.Lock()
_RELEASED = threading.Event()


def _say(what: str, **facts: Any) -> None:
    with _LOCK:
        print(json.dumps({"what": what, **facts}), flush=True)


class Starter:
    """One such process, which a test reads, stops and kills."""

    def __init__(
        self, laptop: Laptop, *, count: int = 1, hold_seconds: float = 0.0, asleep_seconds: float | None = None
    ) -> None:
        words = [str(count), str(hold_seconds), *([str(asleep_seconds)] if asleep_seconds else [])]
        self._lines = laptop.home / f"starter-{time.monotonic_ns()}"
        with self._lines.open("w") as said, self._lines.with_suffix(".stderr").open("w") as complained:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.clients.starter", *words],
                env=laptop.env,
                cwd=Path(__file__).parents[2],
                stdout=said,
                stderr=complained,
            )

    def __repr__(self) -> str:
        return f"<Starter {self.process.pid} {self.process.poll()} {self.said()[-3:]}>"

    def said(self, what: str = "") -> list[dict[str, Any]]:
        """The lines so far: step (state, text), got, freed (cards, at), failed (error)."""
        lines = [json.loads(line) for line in self._lines.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if what in ("", line["what"])]

    def wait_said(self, what: str, text: str = "", *, seconds: float = 60) -> dict[str, Any]:
        """The first line of this kind, with this in its text."""
        found: list[dict[str, Any]] = []

        def is_said() -> bool:
            found[:] = [line for line in self.said(what) if text in line.get("text", "")]
            return bool(found)

        try:
            wait_until(is_said, f"{what} {text}", seconds)
        except Exception as exc:
            raise AssertionError(f"{exc}; it said {self.said()[-5:]}") from exc
        return found[0]

    def release(self) -> None:
        """What it holds is not needed any more; returns when it has shut down."""
        self.process.send_signal(signal.SIGUSR1)
        self.process.wait(60 * SLOW)

    def sleep(self) -> None:
        """It stands still, as on a laptop whose lid is closed."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """It goes on."""
        os.kill(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        """No process is left."""
        if self.process.poll() is None:
            self.wake()
            self.process.kill()
        self.process.wait(10 * SLOW)


@contextmanager
def starting(laptop: Laptop, **facts: Any) -> Iterator[Starter]:
    """A starter that is gone in the end, one way or another; its containers are the test's to look for."""
    one = Starter(laptop, **facts)
    try:
        yield one
    finally:
        one.close()


if __name__ == "__main__":
    _main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else None)
