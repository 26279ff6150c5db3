"""Name what ended a container by its exit code, so that an engine's listing tells why; the terms of its life. Pure."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Optional

# After a goodbye, so that an editor's restart finds its container again.
CLAIM_SECONDS = 15.0
# Of a kernel that was never asked anything: whoever started it died on the way, and it may hold GPUs.
UNJOINED_SECONDS = 60.0
# Of a kernel in which nobody ran a cell, and whose owner went without a word: nothing is lost with it.
UNUSED_SECONDS = 600.0
# What the container exits with, by what ended it: so that an engine's listing tells why.
EXIT_CODES = {
    "goodbye": 0,
    "delivered": 80,
    "lost_grace": 81,
    "idle_timeout": 82,
    "max_lifetime": 83,
    "keep_exited": 84,
    "unjoined": 85,
    "unused": 86,
}
# Where the engine stops it.
EXIT_BY_SIGNAL = 143
# Where nothing was started: another kernel has one of the GPUs; there is no lock for one; no order came.
EXIT_TAKEN = 75
EXIT_NO_LOCK = 76
EXIT_NO_ORDER = 77
# Where the image's Python lacks packages that could be added, and what the relay says before their names.
EXIT_LACKS = 79
LACKS_SAYS = "kernelbridge finds no new enough "
# Where the image's Python is too old for a relay, and what it says before its version.
EXIT_OLD_PYTHON = 78
OLD_PYTHON_SAYS = "kernelbridge cannot run in Python "
_SIGNALS = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
    9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM",
    24: "SIGXCPU", 25: "SIGXFSZ", 31: "SIGSYS",
}  # fmt: skip


def key_of(exit_code: int) -> str:
    """Return the key of the config that ended a container with this exit code; empty if none did."""
    found = (key for key, code in EXIT_CODES.items() if code == exit_code and key in Terms._fields)
    return next(found, "")


def how_ended(code: int) -> str:
    """Return what an exit code says: negative ones are signals."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {_SIGNALS.get(-code, -code)}"


class Terms(NamedTuple):
    """The environment's limits on a kernel's life; None is never."""

    persist: bool = False
    lost_grace: float = 86400.0
    max_lifetime: Optional[float] = None
    idle_timeout: Optional[float] = None
    keep_exited: float = 259200.0


def terms_of(order: Mapping[str, Any]) -> Terms:
    """Return the terms in an order; keys of a newer version are left out."""
    return Terms(**{key: order[key] for key in Terms._fields if key in order})
