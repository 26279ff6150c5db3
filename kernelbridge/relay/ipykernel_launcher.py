"""Starts ipykernel with room for all its output; run by its path, in the place of ipykernel's module of this name.

ipykernel lets 1000 messages wait for the relay and drops the rest, `idle` among them, when the relay gets no processor
time for a moment (seen with 60,000 displays beside a second busy kernel).
"""

from __future__ import annotations

import os
import sys
from typing import Any


def main() -> None:
    """Run the kernel; the arguments are those of ipykernel_launcher."""
    # Our own folder, in which nothing is for the kernel; with PYTHONSAFEPATH it is not there.
    if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]
    from ipykernel import kernelapp

    app: Any = kernelapp.IPKernelApp
    bind = app.init_iopub

    def init_iopub(self: Any, context: Any) -> None:
        context.sndhwm = 0
        bind(self, context)

    app.init_iopub = init_iopub
    app.launch_instance()


if __name__ == "__main__":
    main()
