"""Answer over REST: kernels with their states, GPUs; and 503 to the server's pages while it stops.

Kernels themselves are Jupyter's own (api/kernels, api/sessions).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet import gpu_listing
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.kernel_listing import KernelListing, KernelRow
from kernelbridge.fleet.loop import LIST_SECONDS
from kernelbridge.jupyter import shared_fleets
from kernelbridge.kernel.state import KernelState

Rows = TypeVar("Rows")

# A page asks again after this.
PAGE_RETRY_SECONDS = 5


def merged(held: Iterable[KernelRow], found: Iterable[KernelRow]) -> list[KernelRow]:
    """Return the rows of all kernels; of those that this server holds it knows more than a host that is silent."""
    rows = {row.kernel_id: row for row in found}
    for row in held:
        seen = rows.get(row.kernel_id)
        if seen is None or seen.state == KernelState.UNKNOWN or row.link != KernelState.HELD:
            rows[row.kernel_id] = row
    return sorted(rows.values(), key=lambda row: (row.host, row.created))


class Kernels(APIHandler):
    """GET: the `kernels` that this server holds, without asking any host; with `?all=1` those of all hosts too."""

    auth_resource = "kernelbridge"

    def initialize(self, config_path: Path, held: Callable[[], list[KernelRow]]) -> None:
        """Called by tornado; `held` are the rows of this server's own kernels."""
        self._config_path = config_path
        self._held = held

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Called by tornado."""
        listing = KernelListing(kernels=(), problems=())
        if self.get_query_argument("all", "") not in ("", "0"):
            listing = await _asked(self._config_path, Fleet.list_kernels)
        problems = [error.to_json() for error in listing.problems]
        kernels = [row.to_json() for row in merged(self._held(), listing.kernels)]
        self.finish(json.dumps({"kernels": kernels, "problems": problems}))


class Gpus(APIHandler):
    """GET: what `kernelbridge gpus --json` prints.

    The GPUs of all hosts and who has them (`gpus`), the nodes of clusters (`nodes`), who waits for a GPU (`waiting`),
    and the names of hosts without any (`bare`).
    """

    auth_resource = "kernelbridge"

    def initialize(self, config_path: Path) -> None:
        """Called by tornado."""
        self._config_path = config_path

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Called by tornado."""
        listing = await _asked(self._config_path, Fleet.list_gpus)
        self.finish(json.dumps(gpu_listing.as_json(listing)))


# What the extension adds to the server; the documentation lists them.
ROUTES: Mapping[str, type[APIHandler]] = {"/kernelbridge/kernels": Kernels, "/kernelbridge/gpus": Gpus}


async def _asked(config_path: Path, question: Callable[[Fleet], Coroutine[Any, Any, Rows]]) -> Rows:
    """Ask all hosts of the config. Raises tornado's HTTPError."""
    try:
        fleet = shared_fleets.fleet_of(config_path)
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
        self.set_header("Retry-After", str(PAGE_RETRY_SECONDS))
        self.finish({"message": "The server stops; its kernels run on."})
