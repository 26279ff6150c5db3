"""Say which headers and addresses pass between a browser and a forwarded port, and what admits a page. Pure.

What comes from a container is a stranger's page. Under Jupyter's own origin it could use Jupyter's REST in its user's
name; so each answer carries a sandbox, in which it has an origin of its own that nobody shares ("null"). Such a page's
further requests carry no login: a browser takes them for another site's. So the address of each page has a pass in it,
which is given only to who is logged in, and which opens this one port of this one kernel.
"""

from __future__ import annotations

import base64
import hmac
import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_plus, urlsplit

SANDBOX = "sandbox allow-scripts allow-forms allow-popups"
NULL_ORIGIN = "null"

# Where the pages are, below the server's base_url; the pass is the part after `~`.
ROUTE = r"/kernelbridge/forward/[0-9a-f-]{1,36}/[0-9]{1,5}(?:/.*)?"
_ADDRESS = re.compile(r"(/kernelbridge/forward/([0-9a-f-]{1,36})/([0-9]{1,5}))(/~[A-Za-z0-9_-]{43}(?=/|$))?(/.*)?")

# Of one connection alone, by RFC 9110 and RFC 9112.
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)
# Jupyter's own, or what this end says itself; the browser's word on where a page is would be false over there.
_NOT_TO_CONTAINER = frozenset(
    {"cookie", "authorization", "x-xsrftoken", "host", "origin", "referer", "expect", "forwarded", "x-forwarded-host"}
    | {"x-forwarded-proto", "x-forwarded-prefix", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"}
    | {"sec-fetch-user"}
)
# What would change the browser's view of Jupyter's own origin.
_NOT_TO_BROWSER = frozenset(
    {"set-cookie", "set-cookie2", "service-worker-allowed", "clear-site-data", "strict-transport-security", "alt-svc"}
    | {"refresh", "nel", "report-to", "reporting-endpoints", "referrer-policy"}
)

Headers = list[tuple[str, str]]

# Below a page's prefix: stands in for what the sandbox takes away, and many programs cannot do without.
STORAGE_PATH = "/.kernelbridge/storage.js"
STORAGE_SCRIPT = """\
(() => {
  const made = () => {
    const kept = new Map();
    const methods = {
      getItem: (key) => kept.get(String(key)) ?? null,
      setItem: (key, value) => void kept.set(String(key), String(value)),
      removeItem: (key) => void kept.delete(String(key)),
      clear: () => kept.clear(),
      key: (index) => [...kept.keys()][index] ?? null,
    };
    return new Proxy(methods, {
      get: (target, name) => (name === "length" ? kept.size : name in target ? target[name] : kept.get(name)),
      set: (target, name, value) => (kept.set(String(name), String(value)), true),
      deleteProperty: (target, name) => (kept.delete(name), true),
      ownKeys: () => [...kept.keys()],
      getOwnPropertyDescriptor: (target, name) =>
        kept.has(name) ? { value: kept.get(name), enumerable: true, configurable: true, writable: true } : undefined,
    });
  };
  for (const name of ["localStorage", "sessionStorage"]) {
    try {
      window[name];
    } catch {
      Object.defineProperty(window, name, { value: made(), configurable: true });
    }
  }
  try {
    document.cookie;
  } catch {
    Object.defineProperty(document, "cookie", { get: () => "", set: () => {}, configurable: true });
  }
})();
"""
_HEAD_TAG = re.compile(rb"<head(?:\s[^>]*)?>", re.IGNORECASE)
_DOCTYPE = re.compile(rb"<!doctype[^>]*>", re.IGNORECASE)
# A page that has no head until then has none.
_MOST_BEFORE_HEAD = 16 * 1024
_PAGE_DESTINATIONS = ("document", "iframe", "frame")


@dataclass(frozen=True, kw_only=True)
class PageAddress:
    """The address of a forwarded page, taken apart."""

    # The server's base_url without its last slash, and up to the port.
    base: str
    route: str
    # The kernel's id or its beginning, and the container's port.
    kernel: str
    port: int
    # Empty: none.
    given_pass: str
    # The path for the program in the container; empty: not even a slash.
    path: str

    @property
    def prefix(self) -> str:
        """What stands before the program's own paths."""
        return f"{self.base}{self.route}" + (f"/~{self.given_pass}" if self.given_pass else "")


def page_address(path: str, base_url: str) -> PageAddress | None:
    """Take the path of a request apart, as it was sent; None if it is no page's."""
    base = base_url.rstrip("/")
    found = _ADDRESS.fullmatch(path.removeprefix(base))
    if found is None or not path.startswith(base):
        return None
    return PageAddress(
        base=base,
        route=found[1],
        kernel=found[2],
        port=int(found[3]),
        given_pass=(found[4] or "")[2:],
        path=found[5] or "",
    )


def pass_of(key: bytes, kernel_id: str, port: int) -> str:
    """Return what opens a port of a kernel, for as long as the server has this key."""
    digest = hmac.digest(key, f"{kernel_id} {port}".encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def without_token(query: str) -> str:
    """Return a query without Jupyter's token."""
    return "&".join(one for one in query.split("&") if one and unquote_plus(one.partition("=")[0]) != "token")


def _named(headers: Iterable[tuple[str, str]]) -> set[str]:
    """Return the names of headers that are of one connection alone, because it says so."""
    values = [value for name, value in headers if name.lower() == "connection"]
    return {name.strip().lower() for value in values for name in value.split(",")}


def to_container(headers: Headers, address: PageAddress, *, authority: str, host: str, protocol: str) -> Headers:
    """Return a request's headers for the program at `authority`; `host` and `protocol` are the browser's."""
    left_out = _HOP_BY_HOP | _NOT_TO_CONTAINER | _named(headers)
    kept = [(name, value) for name, value in headers if name.lower() not in left_out]
    own = [("Host", authority), ("X-Forwarded-Host", host), ("X-Forwarded-Proto", protocol)]
    own.append(("X-Forwarded-Prefix", address.prefix))
    if any(name.lower() == "origin" for name, _ in headers):
        # Who asks was checked here; there programs compare it with Host.
        own.append(("Origin", f"http://{authority}"))
    return [*own, *kept]


def to_browser(headers: Headers, address: PageAddress, *, authority: str, is_null_origin: bool) -> Headers:
    """Return an answer's headers, with the sandbox; `is_null_origin` is whether a page in it asks."""
    left_out = _HOP_BY_HOP | _NOT_TO_BROWSER | _named(headers)
    kept = [
        (name, rewritten_location(value, address, authority) if name.lower() == "location" else value)
        for name, value in headers
        if name.lower() not in left_out and not name.lower().startswith("access-control-")
    ]
    return [("Content-Security-Policy", SANDBOX), ("Referrer-Policy", "no-referrer"), *kept, *cors(is_null_origin)]


def cors(is_null_origin: bool) -> Headers:
    """Return what lets a page in the sandbox read an answer; it knows the pass, so that it is one of this port's."""
    if not is_null_origin:
        return []
    return [
        ("Access-Control-Allow-Origin", NULL_ORIGIN),
        ("Access-Control-Allow-Credentials", "true"),
        ("Access-Control-Expose-Headers", "*"),
    ]


def rewritten_location(location: str, address: PageAddress, authority: str) -> str:
    """Return where a redirect leads: what is the program's own stays below its prefix."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return address.prefix + "/"
    if parts.netloc not in ("", authority):
        return location
    if parts.scheme not in ("", "http", "https") or not (parts.netloc or location.startswith("/")):
        return location
    below = parts._replace(scheme="", netloc="").geturl()
    return address.prefix + (below if below.startswith("/") else f"/{below}")


def is_of_another_page(headers: Mapping[str, str]) -> bool:
    """Whether a page of another origin has this sent, other than by a link that the user follows."""
    is_other = headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
    return is_other and headers.get("Sec-Fetch-Mode") != "navigate"


def is_for_page(headers: Mapping[str, str]) -> bool:
    """Whether a request is for a page that a browser shows, as far as it says."""
    destination = headers.get("Sec-Fetch-Dest")
    return destination in _PAGE_DESTINATIONS if destination else "text/html" in headers.get("Accept", "")


class ScriptInsert:
    """Puts the storage's script before all others of a page, as that passes by."""

    def __init__(self, address: PageAddress) -> None:
        self._tag = f'<script src="{html.escape(address.prefix + STORAGE_PATH)}"></script>'.encode()
        # The page's beginning; None once the script is in.
        self._held: bytes | None = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return what of the page may go on."""
        if self._held is None:
            return chunk
        self._held += chunk
        if _HEAD_TAG.search(self._held) is None and len(self._held) < _MOST_BEFORE_HEAD:
            return b""
        return self.rest()

    def rest(self) -> bytes:
        """Return what is held still, at the page's end; a page with neither head nor doctype stays as it is."""
        held, self._held = self._held or b"", None
        found = _HEAD_TAG.search(held) or _DOCTYPE.search(held)
        return held if found is None else held[: found.end()] + self._tag + held[found.end() :]
