"""What Jupyter Server answers for us over REST: kernels with their states, GPUs; and 503 to its pages while it stops.

The same states as events: extension.py. Kernels over REST are Jupyter's own (api/kernels, api/sessions).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

from kernelbridge import inventory
from kernelbridge.census import KernelRow, Listing
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet import Fleet
from kernelbridge.jupyter import fleets

Found = TypeVar("Found")

# Hosts that do not answer are given up sooner by the fleet itself.
LIST_SECONDS = 60.0
# A page asks again after this.
RETRY_SECONDS = 5


def as_json(row: KernelRow) -> dict[str, Any]:
    """A kernel as `kernelbridge ps --json` has it."""
    plain = {key: one.isoformat() if isinstance(one, datetime) else one for key, one in asdict(row).items()}
    return {**plain, "gpus": row.gpus.split(",") if row.gpus else []}


def merged(held: Iterable[KernelRow], found: Iterable[KernelRow]) -> list[KernelRow]:
    """Return the rows of all kernels; of those that this server holds it knows more than a host that is silent."""
    rows = {row.kernel_id: row for row in found}
    for row in held:
        seen = rows.get(row.kernel_id)
        if seen is None or seen.state == "unknown" or row.link != "held":
            rows[row.kernel_id] = row
    return sorted(rows.values(), key=lambda row: (row.host, row.created))


class Kernels(APIHandler):
    """GET: the kernels that this server holds, without asking any host; with `all=1` all on all hosts."""

    auth_resource = "kernelbridge"

    def initialize(self, config_path: Path, held: Callable[[], list[KernelRow]]) -> None:
        """Called by tornado; `held` are the rows of this server's own kernels."""
        self._config_path = config_path
        self._held = held

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Called by tornado."""
        listing = Listing(kernels=(), problems=())
        if self.get_query_argument("all", "") not in ("", "0"):
            listing = await _asked(self._config_path, Fleet.list_kernels)
        problems = [
            {"sentence": one.sentence, "remedy": one.remedy, "exit_code": one.exit_code} for one in listing.problems
        ]
        kernels = [as_json(row) for row in merged(self._held(), listing.kernels)]
        self.finish(json.dumps({"kernels": kernels, "problems": problems}))


class Gpus(APIHandler):
    """GET: the GPUs of all hosts, who has them and who waits for one, as `kernelbridge gpus --json` has it."""

    auth_resource = "kernelbridge"

    def initialize(self, config_path: Path) -> None:
        """Called by tornado."""
        self._config_path = config_path

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Called by tornado."""
        listing = await _asked(self._config_path, Fleet.list_gpus)
        self.finish(json.dumps(inventory.as_json(listing)))


async def _asked(config_path: Path, question: Callable[[Fleet], Coroutine[Any, Any, Found]]) -> Found:
    """Ask all hosts of the config. Raises tornado's HTTPError."""
    try:
        fleet = fleets.fleet_of(config_path)
        return await asyncio.wait_for(asyncio.wrap_future(fleet.submit(question(fleet))), LIST_SECONDS)
    except KernelBridgeError as exc:
        raise web.HTTPError(500, str(exc), reason=exc.sentence) from exc
    except TimeoutError as exc:
        raise web.HTTPError(504, f"The hosts did not answer in {LIST_SECONDS:g} s.") from exc


class Stopping(web.RequestHandler):
    """Any request about kernels or sessions while the server stops.

    A 404 would make an open page give up its kernel for good; after 503 it asks again (seen in JupyterLab 4.6).
    """

    def prepare(self) -> None:
        """Called by tornado before the method."""
        self.set_status(503)
        self.set_header("Retry-After", str(RETRY_SECONDS))
        self.finish({"message": "The server stops; its kernels run on."})
