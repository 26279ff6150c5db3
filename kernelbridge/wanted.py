"""What a front-end asked for, and how long something of it may take."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from kernelbridge.config import Environment, Host
from kernelbridge.kernel_errors import StartTimeout


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a front-end asked for."""

    kernel_id: str
    environment: Environment
    display_name: str
    hosts: tuple[Host, ...]
    # Variables of this machine; only those that the environment names are read.
    environ: Mapping[str, str] = field(repr=False)
    # More arguments for the kernel process, as Jupyter's clients may give them.
    arguments: tuple[str, ...] = ()
    # The root folder of the Jupyter server that asks, and what people call the kernel; see records.KernelRecord.
    server: str = ""
    title: str = ""
    # Under which it may be taken up again after a goodbye; see jupyter/launcher.py.
    claim: str = ""
    # The kernel's header.session, of one that runs already; empty: a new one.
    session: str = ""
    # The file that says where its endpoints are here, for other programs of this machine; empty: none is written.
    connection_file: str = ""


@contextlib.asynccontextmanager
async def deadline(seconds: float, host: str, what: str) -> AsyncIterator[None]:
    """Give the block so many seconds. Raises StartTimeout with what was waited for."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        raise StartTimeout(host=host, what=what, seconds=seconds) from exc
