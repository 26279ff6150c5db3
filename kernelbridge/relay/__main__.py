"""Run the relay as the container's main process, under init."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from typing import Any, Dict

from ..protocol.exit_codes import EXIT_BY_SIGNAL, EXIT_LACKS, LACKS_SAYS
from .gpus import gpu_lock
from .ipykernel_launcher import add_packages
from .process import installed, tree
from .supervisor import Supervisor

_PR_SET_DUMPABLE = 4


def main(order: Dict[str, Any]) -> None:
    """Run the relay until the container is stopped. `order` is the first line of stdin: kernel id and first launch."""
    try:
        # Nobody of our own login may read the memory that a secret passed through.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (OSError, AttributeError):
        pass
    # What the host adds to the container's own: each launch inherits it, and it is shown nowhere else.
    os.environ.update(order.pop("environ", {}))
    finder = add_packages()
    lacking = installed.lacking(order["spawn"].pop("floors", {}), sys.path, first=finder)
    if lacking:
        # Before anything is locked or started: it is added, and the start tried again.
        sys.stderr.write("%s%s\n" % (LACKS_SAYS, ", ".join(lacking)))
        sys.exit(EXIT_LACKS)
    cards = order.setdefault("gpus", {})
    if cards.get("ids", ()) is None:
        # In a job it is its script that knows them.
        cards["ids"] = gpu_lock.granted(os.environ)
    supervisor = Supervisor(order, gpu_lock.taken(cards), adopts=tree.adopt_orphans())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_BY_SIGNAL))
    # A handler of any kind, so that the end of a child rings.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(supervisor.ringer.fileno(), warn_on_full_buffer=False)
    supervisor.spawn(order["spawn"])
    order.clear()
    supervisor.load()
    try:
        while supervisor.exit_code is None:
            supervisor.step()
        supervisor.server.close()
        sys.exit(supervisor.exit_code)
    finally:
        if supervisor.process is not None:
            supervisor.process.stop()
        tree.end_descendants(keep=())
        shutil.rmtree(supervisor.scratch, ignore_errors=True)
        supervisor.monitor.close()
        supervisor.spool.close()
