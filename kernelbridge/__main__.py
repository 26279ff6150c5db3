"""`kernelbridge ...` and `python -m kernelbridge`: where the environment's variables and the fleet come in."""

from __future__ import annotations

import os
import sys

from kernelbridge.cli import app
from kernelbridge.fleet import Fleet
from kernelbridge.version import __version__


def main() -> int:
    """Called by the script that pip makes, which ends with what this returns."""
    return app.run(sys.argv[1:], open_fleet=Fleet, environ=os.environ, version=__version__)


if __name__ == "__main__":
    sys.exit(main())
