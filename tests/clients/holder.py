"""A process of its own that holds kernels for clients in other processes: what it needs can be measured there.

`python -m tests.clients.holder COUNT`: says their connection files in a line of JSON, and ends them at the end of
stdin.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.clients.notebook import NAME, write_specs
from tests.rig.daemon import SLOW
from tests.rig.laptop import Laptop

MB = 1_000_000
_LOOK_SECONDS = 0.02


def _main(count: int) -> None:
    # Here, so that a test that imports Holder does not read this user's folders.
    from jupyter_client.manager import KernelManager

    managers = [KernelManager(kernel_name=NAME) for _ in range(count)]
    with ExitStack() as undo:
        for manager in managers:
            manager.start_kernel()
            undo.callback(manager.shutdown_kernel, now=True)
        print(json.dumps([manager.connection_file for manager in managers]), flush=True)
        sys.stdin.read()


class Holder:
    """One such process."""

    def __init__(self, laptop: Laptop, count: int) -> None:
        write_specs(laptop)
        self.log = laptop.home / f"holder-{time.monotonic_ns()}.stderr"
        with self.log.open("w") as complained:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.clients.holder", str(count)],
                env=laptop.env,
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complained,
                text=True,
            )
        assert self.process.stdout is not None
        self.connection_files: list[str] = json.loads(self.process.stdout.readline() or "[]")
        assert len(self.connection_files) == count, self.log.read_text()

    def __repr__(self) -> str:
        return f"<Holder {self.process.pid} {self.process.poll()}>"

    def resident_mb(self) -> float:
        """How much memory it has at this moment."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / MB

    def close(self) -> None:
        """End it, and its kernels."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60 * SLOW)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def holding(laptop: Laptop, count: int) -> Iterator[Holder]:
    """A holder that is gone in the end."""
    one = Holder(laptop, count)
    try:
        yield one
    finally:
        one.close()


class Peak:
    """The most memory that a holder has within a `with`, beyond what it had at its begin."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self.mb = 0.0

    def __enter__(self) -> Peak:
        self._before_mb = self._holder.resident_mb()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            self.mb = max(self.mb, self._holder.resident_mb() - self._before_mb)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
