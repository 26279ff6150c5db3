"""Keep the last lines of a container or job whose start failed: it is removed, and nobody could read them any more.

They lie beside the records, can be read by this login alone, and are thrown away after a week, or when there are many.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from kernelbridge.atomic_files import write_whole
from kernelbridge.errors import KernelBridgeError
from kernelbridge.hosts.backend import Running, Workload
from kernelbridge.hosts.relay_query import RelayAddress, ask_log
from kernelbridge.plain_text import last_lines

_LOG = logging.getLogger(__name__)
# Of one start. Nothing has run by then but what image and setup do.
KEPT_LOG_LINES: Final = 200
KEPT_LOG_BYTES: Final = 64 << 10
MOST_KEPT_LOGS: Final = 20
KEPT_LOG_SECONDS: Final = 7 * 86_400.0
# How long a start that has failed is asked what it wrote, before it is removed.
LOG_FETCH_SECONDS: Final = 5.0
# In the folder of the records.
KEPT_LOGS_FOLDER: Final = "failed-starts"
_SUFFIX: Final = ".log"


@dataclass(frozen=True, kw_only=True)
class KeptLog:
    """What was kept of one start."""

    kernel_id: str
    kept: datetime
    text: str


class KeptLogs:
    """The files in one folder, which is ours and closed to others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        return f"<KeptLogs in {self._folder}>"

    def keep(self, kernel_id: str, text: str, *, hidden: Sequence[str] = ()) -> bool:
        """Keep the last lines of a text, without what is `hidden`; whether there were any.

        That they cannot be written is no error.
        """
        for value in hidden:
            text = text.replace(value, "***")
        kept = last_lines(text, KEPT_LOG_LINES).encode("utf-8", "replace")[-KEPT_LOG_BYTES:]
        if not kept.strip():
            return False
        path = self._folder / f"{_plain(kernel_id)}{_SUFFIX}"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, kept + b"\n" * (not kept.endswith(b"\n")), is_private=True)
        except OSError as exc:
            _LOG.warning("%s cannot be written: %s", path, exc)
            return False
        self.sweep()
        return True

    def find(self, prefix: str) -> KeptLog | None:
        """Return the one log of a kernel whose id begins so; None if there is none, or are several."""
        found = [path for path in self._paths() if path.name.startswith(_plain(prefix))] if _plain(prefix) else []
        with contextlib.suppress(OSError):
            if len(found) == 1:
                kept = datetime.fromtimestamp(found[0].stat().st_mtime, UTC)
                text = found[0].read_bytes().decode("utf-8", "replace")
                return KeptLog(kernel_id=found[0].name.removesuffix(_SUFFIX), kept=kept, text=text)
        return None

    def forget(self, kernel_id: str) -> None:
        """Keep nothing of a kernel any more: it runs. Safe to call twice."""
        with contextlib.suppress(OSError):
            (self._folder / f"{_plain(kernel_id)}{_SUFFIX}").unlink(missing_ok=True)

    def sweep(self, now: float | None = None) -> None:
        """Throw away what is old, and the oldest of what is too much."""
        now = time.time() if now is None else now
        ages: list[tuple[float, Path]] = []
        for path in self._paths():
            with contextlib.suppress(OSError):
                ages.append((now - path.stat().st_mtime, path))
        for number, (age, path) in enumerate(sorted(ages)):
            if number >= MOST_KEPT_LOGS or age > KEPT_LOG_SECONDS:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _paths(self) -> list[Path]:
        try:
            # What begins with a dot is being written.
            return [path for path in self._folder.glob(f"*{_SUFFIX}") if not path.name.startswith(".")]
        except OSError as exc:
            _LOG.warning("%s cannot be read: %s", self._folder, exc)
            return []


def _plain(kernel_id: str) -> str:
    """Return an id as a file's name: it may come from a client, and leads nowhere else."""
    return "".join(mark for mark in kernel_id if mark.isalnum() or mark in "-_")


async def fetched(address: RelayAddress, get_workload: Callable[[], Awaitable[Workload]]) -> str:
    """Return what a start that failed has written; empty where that is nothing, or nobody knows it in time."""
    try:
        async with asyncio.timeout(LOG_FETCH_SECONDS):
            workload = await get_workload()
            text = await _asked(address) if isinstance(await workload.state(), Running) else ""
            return text if text.strip() else await workload.logs(KEPT_LOG_LINES)
    except (KernelBridgeError, TimeoutError):
        return ""
    except Exception:
        # An edge: why the start failed is what matters, and is to be told.
        _LOG.exception("[%s k=%s] its log was not read", address.host, address.kernel[:4])
        return ""


async def _asked(address: RelayAddress) -> str:
    """Return what the kernel process wrote, from its relay; empty where that does not answer."""
    with contextlib.suppress(KernelBridgeError, TimeoutError):
        async with asyncio.timeout(LOG_FETCH_SECONDS / 2):
            return await ask_log(address)
    return ""
