"""Holds idle kernels in one fleet. Each line of stdin is how many it should hold; it answers when all of them run.

python idle_holder.py CONFIG
"""

from __future__ import annotations

import gc
import os
import sys
import time
import uuid
from pathlib import Path

from kernelbridge.channels import endpoints
from kernelbridge.config import load as configs
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.kernel.kernel import Kernel
from kernelbridge.kernel.state import KernelState

# So many start at once.
BATCH = 5
START_SECONDS = 120.0


def _started(fleet: Fleet) -> Kernel:
    wanted = fleet.launch_request("test", kernel_id=str(uuid.uuid4()), environ=dict(os.environ))
    made = endpoints.made(runtime_folder=os.environ.get("XDG_RUNTIME_DIR"))
    return fleet.run(fleet.start(wanted, made), START_SECONDS)


def _wait_running(kernels: list[Kernel]) -> None:
    limit = time.monotonic() + START_SECONDS
    while any(kernel.state is not KernelState.RUNNING for kernel in kernels):
        failed = next((kernel.failure for kernel in kernels if kernel.failure is not None), None)
        if failed is not None or time.monotonic() > limit:
            raise SystemExit(f"not all kernels started: {failed or kernels}")
        time.sleep(0.05)


def main() -> None:
    """Hold, and leave nothing behind at the end of stdin."""
    fleet = Fleet(configs.load(Path(sys.argv[1])))
    kernels: list[Kernel] = []
    for line in sys.stdin:
        while len(kernels) < int(line):
            batch = [_started(fleet) for _ in range(min(BATCH, int(line) - len(kernels)))]
            _wait_running(batch)
            kernels += batch
        gc.collect()
        print(len(kernels), flush=True)
    fleet.detach_or_stop_all(120)
    fleet.close()


if __name__ == "__main__":
    main()
