"""Run `kernelbridge ...` and `python -m kernelbridge`: here the environment's variables and the fleet come in."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kernelbridge import __version__

if TYPE_CHECKING:
    from kernelbridge.config.schema import Config, Host  # loads pydantic
    from kernelbridge.fleet.fleet import Fleet  # loads pydantic


# How long no garbage is looked for: what a short call loads is none, and to find that out takes a tenth of its time.
LOADING_SECONDS = 2.0


def _open_fleet(config: Config, hosts: Sequence[Host]) -> Fleet:
    # Here and not above: only some commands ask a host.
    from kernelbridge.cli import login_prompt
    from kernelbridge.fleet.logins_ahead import log_in_ahead

    askers = login_prompt.askers(os.environ)
    logins = log_in_ahead(hosts, askers)
    try:
        # After that: it is loaded while the hosts answer.
        from kernelbridge.fleet.fleet import Fleet

        return Fleet(config, logins=logins, askers=askers)
    except BaseException:  # Such as: Ctrl-C at a question that is asked already.
        if logins is not None:
            logins.close()
        raise


def main() -> int:
    """Called by the script that pip makes, which ends with what this returns."""
    gc.disable()
    started = threading.Timer(LOADING_SECONDS, gc.enable)
    started.daemon = True
    started.start()
    arguments, open_fleet = sys.argv[1:], _open_fleet
    if arguments[:1] in (["ps"], ["gpus"]):
        try:
            code = _list_quickly(arguments)
        except KeyboardInterrupt:
            open_fleet = _interrupted
        else:
            if code is not None:
                return code
    from kernelbridge.cli import app

    return app.run(arguments, open_fleet=open_fleet, environ=os.environ, version=__version__)


def _list_quickly(arguments: Sequence[str]) -> int | None:
    """List in the time of an ssh command, where that can be; returns the exit code, or None where it cannot."""
    from kernelbridge.cli.listings import early

    begun = early.begin(arguments, os.environ)
    if begun is None:
        return None
    # After that: it is loaded while the hosts let us in.
    from kernelbridge.cli.listings import quick

    code = quick.finish(begun, os.environ)
    # At the end all that is left would be looked through for garbage, which takes longer than it is worth.
    gc.freeze()
    return code


def _interrupted(config: Config, hosts: Sequence[Host]) -> Fleet:
    """Take the place of what would ask the hosts: Ctrl-C has come already."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
