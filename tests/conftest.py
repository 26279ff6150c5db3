"""What holds for all tests: Ctrl-C, no terminal to ask in, their order, and which are quick."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

# A shell that runs the tests in the background has them ignore Ctrl-C, and all that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

if sys.platform != "win32":
    import fcntl
    import termios

    def _leave_terminal() -> None:
        """Have no terminal, nor have what the tests start: it would ask there, and wait."""
        try:
            terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        except OSError:
            return
        # Whoever leads a session with a terminal is told by a signal.
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            fcntl.ioctl(terminal, termios.TIOCNOTTY)
        finally:
            signal.signal(signal.SIGHUP, before)
            os.close(terminal)

    _leave_terminal()

UNIT = Path(__file__).parent / "unit"
# The files of tests/real that take longest. One of them that began late would at the end run alone. The first is begun
# first of all: it waits for the images to be made, and the unit tests are done meanwhile.
LONGEST = (
    "test_vscode_raw",
    "test_docs_walked",
    "test_attach",
    "test_cuts_hard",
    "test_gpu_leases",
    "test_doctor",
    "test_any_image",
    "test_packages",
    "test_login_asks",
    "test_comeback",
    "test_floods",
    "test_lifetimes",
    "test_cuts",
    "test_slurm_ways",
    "test_slurm_rig",
    "test_slurm_lasting",
    "test_services",
    "test_secrets",
    "test_lab_browser",
    "test_progress",
    "test_journal",
    "test_security",
    "test_cuts_stopped",
    "test_terminal",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Called by pytest: every unit test is quick, and each worker takes whole files in the order that it finds here."""
    for item in items:
        if item.path.is_relative_to(UNIT):
            item.add_marker("quick")
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    name = item.path.stem
    if item.path.is_relative_to(UNIT):
        return 1
    return 0 if name == LONGEST[0] else 2 + (LONGEST.index(name) if name in LONGEST else len(LONGEST))
