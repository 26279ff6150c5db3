"""Run `kernelbridge ...` and `python -m kernelbridge`: here the environment's variables and the fleet come in."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from kernelbridge import __version__
from kernelbridge.cli import app

if TYPE_CHECKING:
    from kernelbridge.config.schema import Config  # loads pydantic
    from kernelbridge.fleet.fleet import Fleet  # loads pydantic


def _open_fleet(config: Config) -> Fleet:
    # Here and not above: only some commands ask a host.
    from kernelbridge.cli import login_prompt
    from kernelbridge.fleet.fleet import Fleet

    return Fleet(config, askers=login_prompt.askers(os.environ))


def main() -> int:
    """Called by the script that pip makes, which ends with what this returns."""
    return app.run(sys.argv[1:], open_fleet=_open_fleet, environ=os.environ, version=__version__)


if __name__ == "__main__":
    sys.exit(main())
