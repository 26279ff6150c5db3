"""Start the launcher for VS Code: refuse all but `-f FILE` before anything of size is loaded.

VS Code's Python extension runs a kernel spec's first word as if it were an interpreter, twice at each of its starts;
that must cost nothing and say nothing (decisions.md, 22).
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Called by the script that pip makes."""
    if len(sys.argv) != 3 or sys.argv[1] != "-f" or not os.path.isfile(sys.argv[2]):  # noqa: PTH113 - pathlib costs 8 ms
        return 2
    # Here and not above: loading it takes some 0.3 s, which a probe must not pay.
    from kernelbridge.jupyter import vscode_launcher

    return vscode_launcher.run(sys.argv[2])


if __name__ == "__main__":
    sys.exit(main())
