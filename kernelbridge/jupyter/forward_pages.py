"""Show a container's HTTP ports in the browser through Jupyter Server, under its login: pages, streams, web sockets.

A request goes to the kernel's own forward on this machine's loopback. What may pass: forwarded_http.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from contextlib import suppress
from inspect import isawaitable
from typing import Any, ClassVar

from jupyter_server.base.handlers import JupyterHandler
from tornado import web
from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient

from kernelbridge.hosts.forwards.port_forwards import LOOPBACK_ADDRESS
from kernelbridge.jupyter import forwarded_http
from kernelbridge.jupyter.forwarded_http import (
    NULL_ORIGIN,
    SANDBOX,
    STORAGE_PATH,
    STORAGE_SCRIPT,
    Headers,
    PageAddress,
    ScriptInsert,
    page_address,
    pass_of,
)

_CHUNK_BYTES = 64 * 1024
# Bodies are passed on piece by piece: none is too long.
_MOST_BODY_BYTES = 1 << 62

# The id of the one kernel of this server that begins so, and the port here of its port.
PortOf = Callable[[str, int], tuple[str, int] | None]


class _PageAnswer(HTTPMessageDelegate):
    """Takes the program's answer and passes it on as it comes."""

    def __init__(self, page: ForwardedPage, upstream: HTTP1Connection) -> None:
        self._page = page
        self._upstream = upstream
        # Whether its head came, and its end; the connection, where it has become another protocol's.
        self.has_begun = self.is_whole = False
        self.tunnel: IOStream | None = None
        # Whether it has said something that nobody asked for.
        self._is_refused = False

    async def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> None:
        """Called by tornado, for what comes before the answer too."""
        assert isinstance(start_line, ResponseStartLine)
        fields = [(name, str(value)) for name, value in headers.get_all()]
        if start_line.code == 101 and not self._page.is_upgrade:
            # What follows would reach the browser as it is, so without the sandbox.
            self._is_refused = True
            self._upstream.close()
        elif self._is_refused:
            return
        elif start_line.code == 101:
            self.tunnel = self._upstream.detach()
            await self._page.become_tunnel(fields)
        elif start_line.code >= 200:
            self.has_begun = True
            await self._page.begin_answer(start_line, fields)

    async def data_received(self, chunk: bytes) -> None:
        """Called by tornado; the program waits until the browser has taken it."""
        if self._is_refused:
            return
        try:
            await self._page.pass_on(chunk)
        except StreamClosedError:
            self._upstream.close()

    def finish(self) -> None:
        """Called by tornado."""
        self.is_whole = True

    def on_connection_close(self) -> None:
        """Called by tornado where the answer breaks off."""


@web.stream_request_body
class ForwardedPage(JupyterHandler):
    """Any request below /kernelbridge/forward/KERNEL/PORT/."""

    auth_resource: ClassVar[str] = "kernelbridge"

    def initialize(self, port_of: PortOf, key: bytes) -> None:
        """Called by tornado; `key` makes the passes."""
        self._port_of = port_of
        self._key = key
        # Set by prepare, for what passes the checks.
        self._address: PageAddress
        self._authority = ""
        self._upstream: HTTP1Connection | None = None
        # Of a page: what stands in for the storage that a sandbox has not.
        self._insert: ScriptInsert | None = None
        # The browser's own connection, once it is a web socket's.
        self._browser: IOStream | None = None

    def set_default_headers(self) -> None:
        """Called by tornado; whatever is said here is said in the sandbox."""
        self.set_header("Content-Security-Policy", SANDBOX)
        self.set_header("Referrer-Policy", "no-referrer")

    def compute_etag(self) -> None:
        """Called by tornado: the program's own stands."""

    # -- who may

    async def prepare(self) -> None:  # type: ignore[override]
        """Called by tornado when the head of the request is there, and before its body."""
        address = page_address(self.request.path, self.base_url)
        found = self._port_of(address.kernel, address.port) if address is not None else None
        wanted = pass_of(self._key, found[0], address.port) if address is not None and found is not None else ""
        if address is not None and wanted and hmac.compare_digest(address.given_pass, wanted):
            self._admit_page()
        elif not await self._is_logged_in():
            return
        if address is None or found is None:
            raise web.HTTPError(404, "No kernel of this server has such a port in `forwards` of its environment.")
        self._address, self._authority = address, f"{LOOPBACK_ADDRESS}:{found[1]}"
        if address.given_pass != wanted and not self._is_for_program(address):
            self._lead_to_page(address, wanted)
        elif self._is_preflight:
            self._answer_preflight()
        elif address.path == STORAGE_PATH:
            self.set_header("Content-Type", "text/javascript")
            self.finish(STORAGE_SCRIPT)
        else:
            await self._send_head(found[1])

    def _admit_page(self) -> None:
        """Let a request with the right pass in, unless another origin's page has got hold of it."""
        # Jupyter asks for it in its log; nobody's name is needed.
        self.current_user = self._jupyter_current_user = None
        if not self.check_host():
            raise web.HTTPError(403)
        if not self._is_null_origin and not self.check_origin():
            raise web.HTTPError(403, "Pages of other origins may not use a forwarded port.")

    async def _is_logged_in(self) -> bool:
        """Whether the user may; else the answer is given: the login page, or 403."""
        # It checks the origin of whatever changes something, as for all of Jupyter's own.
        waits: Any = JupyterHandler.prepare(self)
        waits = await waits
        if isawaitable(waits):
            await waits
        if self._finished:
            return False
        if self.current_user is None:
            web.authenticated(lambda handler: None)(self)
            return False
        allowed: bool | Awaitable[bool] = self.authorizer.is_authorized(
            self, self.current_user, "execute", self.auth_resource
        )
        if not (await allowed if isawaitable(allowed) else allowed):
            raise web.HTTPError(403)
        is_others = forwarded_http.is_of_another_page(self.request.headers)
        if is_others or (self.is_upgrade and not self.check_origin()):
            raise web.HTTPError(403, "Pages of other origins may not use a forwarded port.")
        return True

    @property
    def _is_null_origin(self) -> bool:
        return self.request.headers.get("Origin") == NULL_ORIGIN

    @property
    def is_upgrade(self) -> bool:
        """Whether the browser asks for a web socket."""
        return self.request.headers.get("Upgrade", "").lower() == "websocket"

    def _is_for_program(self, address: PageAddress) -> bool:
        """Whether a request without a pass goes on: a program's own, as pages are led to their address first."""
        return bool(address.path) and (self.request.method not in ("GET", "HEAD") or self.is_upgrade)

    def _lead_to_page(self, address: PageAddress, right_pass: str) -> None:
        query = forwarded_http.without_token(self.request.query)
        path = f"{address.base}{address.route}/~{right_pass}{address.path or '/'}"
        self.set_header("Cache-Control", "no-store")
        self.redirect(path + (f"?{query}" if query else ""))

    @property
    def _is_preflight(self) -> bool:
        is_asked = "Access-Control-Request-Method" in self.request.headers
        return self.request.method == "OPTIONS" and is_asked and self._is_null_origin

    def _answer_preflight(self) -> None:
        """Let a page in the sandbox send what it likes to its own port."""
        asked = self.request.headers
        self.set_status(204)
        for name, value in forwarded_http.cors(True):
            self.set_header(name, value)
        self.set_header("Access-Control-Allow-Methods", asked["Access-Control-Request-Method"])
        self.set_header("Access-Control-Allow-Headers", asked.get("Access-Control-Request-Headers", ""))
        self.finish()

    # -- to the program

    async def _send_head(self, port: int) -> None:
        try:
            stream = await TCPClient().connect(LOOPBACK_ADDRESS, port)
        except OSError as exc:
            raise web.HTTPError(502, f"The forward is gone: {exc}") from exc
        set_limit: Any = getattr(self.request.connection, "set_max_body_size", None)
        if set_limit is not None:
            set_limit(_MOST_BODY_BYTES)
        limits = HTTP1ConnectionParameters(no_keep_alive=True, max_body_size=_MOST_BODY_BYTES)
        self._upstream = HTTP1Connection(stream, True, limits)
        request = self.request
        headers = HTTPHeaders()
        given = [(name, str(value)) for name, value in request.headers.get_all()]
        if forwarded_http.is_for_page(request.headers):
            # A script is put into it.
            given = [(name, value) for name, value in given if name.lower() != "accept-encoding"]
        for name, value in forwarded_http.to_container(
            given, self._address, authority=self._authority, host=request.host, protocol=request.protocol
        ):
            headers.add(name, value)
        if self.is_upgrade:
            headers["Connection"], headers["Upgrade"] = "Upgrade", "websocket"
        else:
            headers["Connection"] = "close"
        query = forwarded_http.without_token(request.query)
        uri = (self._address.path or "/") + (f"?{query}" if query else "")
        with suppress(StreamClosedError):
            await self._upstream.write_headers(RequestStartLine(str(request.method), uri, ""), headers)

    async def data_received(self, chunk: bytes) -> None:
        """Called by tornado with the body, piece by piece; the browser waits until the program has taken it."""
        if self._upstream is not None:
            with suppress(StreamClosedError):  # It may have answered without reading all.
                await self._upstream.write(chunk)

    async def _pass(self, *_: str) -> None:
        """Called by tornado when the request is there as a whole."""
        assert self._upstream is not None
        answer = _PageAnswer(self, self._upstream)
        with suppress(StreamClosedError):
            self._upstream.finish()
        await self._upstream.read_response(answer)
        if answer.tunnel is not None and self._browser is not None:
            await _join(self._browser, answer.tunnel)
        elif not answer.has_begun:
            raise web.HTTPError(502, "The program in the container ended the connection without an answer.")
        elif answer.is_whole:
            self.finish(self._insert.rest() if self._insert is not None else None)
        else:
            # The browser must not take what it has for the whole.
            self.detach().close()

    get = head = post = put = patch = delete = options = _pass

    def on_connection_close(self) -> None:
        """Called by tornado when the browser has gone."""
        if self._upstream is not None:
            self._upstream.close()

    # -- to the browser

    def _for_browser(self, fields: Headers) -> Headers:
        return forwarded_http.to_browser(
            fields, self._address, authority=self._authority, is_null_origin=self._is_null_origin
        )

    async def begin_answer(self, start_line: ResponseStartLine, fields: Headers) -> None:
        """Pass on the head of the answer."""
        self.set_status(start_line.code, start_line.reason or None)
        for name in ("Server", "Content-Type", "Date", "Content-Security-Policy", "Referrer-Policy"):
            self.clear_header(name)
        told = self._for_browser(fields)
        if self._is_insertable(start_line, {name.lower(): value for name, value in told}):
            self._insert = ScriptInsert(self._address)
            told = [(name, value) for name, value in told if name.lower() != "content-length"]
        for name, value in told:
            self.add_header(name, value)
        with suppress(StreamClosedError):
            await self.flush()

    def _is_insertable(self, start_line: ResponseStartLine, told: dict[str, str]) -> bool:
        """Whether an answer is a page, as a whole and not packed."""
        is_packed = told.get("content-encoding", "identity") != "identity"
        is_page = told.get("content-type", "").lower().startswith("text/html") and not is_packed
        is_whole = start_line.code not in (204, 206, 304) and self.request.method != "HEAD"
        return is_page and is_whole and forwarded_http.is_for_page(self.request.headers)

    async def pass_on(self, chunk: bytes) -> None:
        """Pass on a piece of the answer. Raises StreamClosedError."""
        self.write(chunk if self._insert is None else self._insert.feed(chunk))
        await self.flush()

    async def become_tunnel(self, fields: Headers) -> None:
        """Pass on that the connection is a web socket's from now on."""
        self._browser = self.detach()
        lines = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket"]
        lines += [f"{name}: {value}" for name, value in fields if name.lower().startswith("sec-websocket-")]
        with suppress(StreamClosedError):
            await self._browser.write("\r\n".join([*lines, "", ""]).encode("latin-1"))


async def _join(first: IOStream, second: IOStream) -> None:
    """Move bytes both ways until one of both ends."""
    both = [asyncio.create_task(_move(first, second)), asyncio.create_task(_move(second, first))]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        first.close()
        second.close()
        await asyncio.wait(both)


async def _move(source: IOStream, sink: IOStream) -> None:
    with suppress(StreamClosedError):
        while True:
            await sink.write(await source.read_bytes(_CHUNK_BYTES, partial=True))
