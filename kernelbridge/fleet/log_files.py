"""Have each long-lived process of kernelbridge write a log file of its own, which others of this login cannot read.

The files lie below the records. They are bounded in size, and old ones go. They have no secret, no code and no output
of cells, at any level: what those libraries say that see them (asyncssh, docker-py, urllib3) is not written at all.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from kernelbridge import __version__
from kernelbridge.fleet.redaction import redacted
from kernelbridge.plain_text import printable_lines

_LOG = logging.getLogger(__name__)
# In the folder of the records.
LOGS_FOLDER: Final = "logs"
LEVEL_VARIABLE: Final = "KERNELBRIDGE_LOG"
LOG_LEVELS: Final = {
    "off": None,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
DEFAULT_LOG_LEVEL: Final = "info"
# Of one file, which has one older one beside it.
LOG_FILE_BYTES: Final = 512 << 10
# Of one kind of process; and of all together.
MOST_LOG_FILES: Final = 20
MOST_LOG_BYTES: Final = 20 << 20
MOST_LOG_SECONDS: Final = 14 * 86_400.0
_OUR_LOGGER: Final = "kernelbridge"
_NAME: Final = re.compile(r"(?P<kind>[a-z]+)-[0-9T]+-(?P<process>[0-9]+)\.log(?:\.1)?")
# What commands of the terminal say of their errors: all of them in one file, since each lives for a moment.
_COMMANDS_NAME: Final = "commands.log"


class _PrivateFile(logging.handlers.RotatingFileHandler):
    """A file that this login alone can read; where it cannot be written nothing is said of that."""

    def _open(self) -> Any:
        """Called by logging, at the first record and after each rotation."""
        return open(self.baseFilename, self.mode, encoding="utf-8", errors="replace", opener=_open_private)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Called by logging, as where the disk is full."""


class _Redacted(logging.Formatter):
    """Writes a record without what looks like a secret, and without orders to a terminal."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        """Called by logging: the hour of no place, as other machines' logs have theirs."""
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"

    def format(self, record: logging.LogRecord) -> str:
        """Called by logging."""
        return printable_lines(redacted(super().format(record)))


class _Upwards(logging.Handler):
    """Hands on to the process's other handlers what they would get if there were no log file."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        root = logging.getLogger()
        if record.levelno >= root.getEffectiveLevel():
            root.handle(record)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def begin(kind: str, environ: Mapping[str, str], folder: Path) -> Path | None:
    """Write what this process says from now on; return the file, None where there is none to be.

    `kind` is in its name, `folder` that of the records. Safe to call twice.
    """
    asked = environ.get(LEVEL_VARIABLE, "").strip().lower()
    level = LOG_LEVELS.get(asked, LOG_LEVELS[DEFAULT_LOG_LEVEL])
    logger = logging.getLogger(_OUR_LOGGER)
    if level is None or any(isinstance(handler, _PrivateFile) for handler in logger.handlers):
        return None
    path = folder / LOGS_FOLDER / f"{kind}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.log"
    try:
        _make_folder(folder)
        sweep(path.parent)
        file = _PrivateFile(path, maxBytes=LOG_FILE_BYTES, backupCount=1, delay=True)
    except OSError as exc:
        _LOG.warning("no log file: %s", exc)
        return None
    file.setFormatter(_Redacted("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(file)
    logger.addHandler(_Upwards())
    logger.propagate = False
    file.setLevel(level)
    logger.setLevel(min(level, logging.getLogger().getEffectiveLevel()))
    _LOG.info("kernelbridge %s begins, Python %s", __version__, platform.python_version())
    if asked and asked not in LOG_LEVELS:
        _LOG.warning(
            "%s=%s is not one of %s; taking %s", LEVEL_VARIABLE, asked, ", ".join(LOG_LEVELS), DEFAULT_LOG_LEVEL
        )
    return path


def end() -> None:
    """Write nothing more in this process, as tests do."""
    logger = logging.getLogger(_OUR_LOGGER)
    for handler in [one for one in logger.handlers if isinstance(one, _PrivateFile | _Upwards)]:
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def note_command(command: str, text: str, environ: Mapping[str, str], folder: Path) -> None:
    """Write down how a command of the terminal failed; that it cannot be written is no error."""
    if LOG_LEVELS.get(environ.get(LEVEL_VARIABLE, "").strip().lower(), logging.INFO) is None:
        return
    path = folder / LOGS_FOLDER / _COMMANDS_NAME
    record = logging.LogRecord("command", logging.ERROR, "", 0, "%s: %s", (command, text), None)
    line = _Redacted("%(asctime)s %(levelname)s %(name)s: %(message)s").format(record)
    with contextlib.suppress(OSError):
        _make_folder(folder)
        if path.is_file() and path.stat().st_size > LOG_FILE_BYTES:
            path.replace(f"{path}.1")
        # In one piece: several commands may write at once.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, f"{line}\n".encode("utf-8", "replace"))
        finally:
            os.close(descriptor)


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / LOGS_FOLDER).mkdir(mode=0o700, exist_ok=True)


def log_paths(folder: Path) -> list[Path]:
    """Return the log files, the newest first; `folder` is that of the records."""
    found: list[tuple[float, Path]] = []
    for path in (folder / LOGS_FOLDER).glob("*.log*"):
        with contextlib.suppress(OSError):
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


def sweep(folder: Path, now: float | None = None) -> None:
    """Throw away log files that are old or too many; those of processes that run stay as long as they are not old."""
    now = time.time() if now is None else now
    counts: dict[str, int] = {}
    total = 0
    for path in log_paths(folder.parent):
        found = _NAME.fullmatch(path.name)
        if found is None:
            continue
        with contextlib.suppress(OSError):
            about = path.stat()
            counts[found["kind"]] = counts.get(found["kind"], 0) + 1
            total += about.st_size
            is_old = now - about.st_mtime > MOST_LOG_SECONDS
            is_much = counts[found["kind"]] > MOST_LOG_FILES or total > MOST_LOG_BYTES
            if is_old or (is_much and not psutil.pid_exists(int(found["process"]))):
                path.unlink()
