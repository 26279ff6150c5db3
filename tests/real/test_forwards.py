"""Ports of a container on this machine and under Jupyter Server: who reaches them, and what they cannot reach.

The web program in the container is tests/clients/webapp.py. Under Jupyter: jupyter/forward_pages.py.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import websocket
from playwright.sync_api import expect, sync_playwright

from kernelbridge.hosts.forwards.port_forwards import bound
from kernelbridge.jupyter import forwarded_http
from tests.clients import webapp
from tests.clients.lab import CHROMIUM, FLAGS
from tests.clients.page import Page, call
from tests.clients.ports import free_port
from tests.clients.server import JupyterServer
from tests.clients.terminal import begin
from tests.rig.daemon import SLOW, wait_until
from tests.rig.lab import USERS
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)

NAME = "kernelbridge-test"
PORT, RAW_PORT = 6006, 7007
OTHER_UID = next(user.uid for user in USERS if user.name == "kbother")
SANDBOX = "sandbox allow-scripts allow-forms allow-popups"


@dataclass(frozen=True)
class Answer:
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes


def ask(
    port: int,
    path: str = "/",
    *,
    method: str = "GET",
    body: bytes | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
    **headers: str,
) -> Answer:
    """One request of a connection of its own; `_` in a header's name is `-`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30 * SLOW)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers={"Host": f"127.0.0.1:{port}", **more, **named})
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()


@dataclass
class Scene:
    """A Jupyter server with one kernel without a network, whose web program is at `here` on this machine."""

    server: JupyterServer
    page: Page
    here: int
    # Of no HTTP; and what the first cell said before its own output.
    raw: int
    told: str

    @property
    def port(self) -> int:
        """Jupyter's own."""
        return int(self.server.url.rsplit(":", 1)[1].strip("/"))

    @property
    def path(self) -> str:
        return f"/kernelbridge/forward/{self.page.kernel_id[:8]}/{PORT}/"

    def login(self) -> dict[str, str]:
        return {"Authorization": f"token {self.server.token}"}

    def page_path(self) -> str:
        """The path that the browser is led to, with its pass."""
        led = ask(self.port, self.path, more=self.login())
        assert led.status == 302
        return led.headers["Location"]

    def heard(self) -> list[tuple[str, str, dict[str, str]]]:
        """What the program was sent since the last time: method, path, headers."""
        text = self.page.run("import json; print(json.dumps(seen)); seen.clear()")
        return [(method, uri, headers) for method, uri, headers in json.loads(text)]


@pytest.fixture(scope="module")
def scene(rig: Rig, module_env: Laptop) -> Iterator[Scene]:
    raw = free_port()
    with bound(free_port()) as taken:
        asked = taken.getsockname()[1]
        forwards = [f"{asked}:{PORT}", f"raw:{raw}:{RAW_PORT}"]
        module_env.write_environment(rig.image, host={"ssh": "lab-proxied"}, network="none", forwards=forwards)
        with JupyterServer(module_env.home / "server", lab=False, env=module_env.variables) as server:
            page = Page(server, NAME)
            told = page.run(webapp.cell(PORT, base=server.url))
            found = re.search(rf"port {PORT} is at http://127.0.0.1:(\d+)/, because {asked} is taken", told)
            assert found, told
            yield Scene(server, page, int(found[1]), raw, told)
            call(server, "DELETE", f"api/kernels/{page.kernel_id}")
            wait_until(lambda: not rig.engine.kernels(), "the container to be gone", 20)
            for port in (int(found[1]), raw):
                with pytest.raises(ConnectionRefusedError):
                    ask(port)


# -- on this machine's loopback


def test_a_port_is_reached_by_this_machines_names_and_jupyters_cookies_stay_here(scene: Scene) -> None:
    cookies = "_xsrf=1; username-127-0-0-1-8888=2; mine=3"
    answer = ask(scene.here, "/echo?a=b", Cookie=cookies, Authorization="token secret", X_XSRFToken="1")
    assert (answer.status, answer.body) == (200, b"asked /echo?a=b")
    assert ask(scene.here, Host=f"localhost:{scene.here}").status == 200
    ((_, _, headers), _) = scene.heard()
    assert headers["Cookie"] == "mine=3"
    assert not {"Authorization", "X-Xsrftoken"} & headers.keys()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_a_foreign_page_gets_nothing_from_a_port(scene: Scene, headers: dict[str, str]) -> None:
    scene.heard()
    assert ask(scene.here, more=headers).status == 403
    assert scene.heard() == []


def test_streams_uploads_and_web_sockets_go_through_a_port(scene: Scene) -> None:
    assert ask(scene.here, "/upload", method="POST", body=b"x" * 5_000_000).body == b"5000000"
    assert len(ask(scene.here, "/download").body) == 5_000_000
    assert event_seconds(scene.here, "/events") > 0.5
    opened = websocket.create_connection(f"ws://127.0.0.1:{scene.here}/socket", timeout=30 * SLOW)
    opened.send("hello")
    assert opened.recv() == "echo hello"
    opened.close()
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        websocket.create_connection(f"ws://127.0.0.1:{scene.here}/socket", origin="http://evil.example", timeout=30)
    assert refused.value.status_code == 403


def test_a_port_that_was_taken_is_told_in_the_next_cell_and_a_raw_one_carries_anything(scene: Scene) -> None:
    assert scene.told.startswith(f"[kernelbridge: port {PORT} is at http://127.0.0.1:{scene.here}/, because ")
    scene.page.run(
        f"import socket\nserver = socket.create_server(('127.0.0.1', {RAW_PORT}))\n"
        "def answer():\n    sock = server.accept()[0]\n    sock.sendall(sock.recv(100)[::-1])\n    sock.close()\n"
        "threading.Thread(target=answer, daemon=True).start()"
    )
    with socket.create_connection(("127.0.0.1", scene.raw), 20) as client:
        client.sendall(b"\0\1raw")
        assert client.makefile("rb").read() == b"war\1\0"


def event_seconds(port: int, path: str, **headers: str) -> float:
    """How long after the first event of three the last one came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30 * SLOW)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    assert answer.readline() == b"data: 0\n"
    began = time.monotonic()
    assert answer.read() == b"\ndata: 1\n\ndata: 2\n\n"
    connection.close()
    return time.monotonic() - began


CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10) as client:
    client.sendall(b"GET /echo HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n")
    try:
        print(client.makefile("rb").read())
    except ConnectionResetError:
        print(b"")
"""


def test_another_login_of_this_machine_gets_nothing(scene: Scene) -> None:
    def asked(*words: str) -> bytes:
        python = [*words, "/usr/bin/python3", "-c", CLIENT, str(scene.here)]
        ended = subprocess.run(python, capture_output=True, text=True, timeout=30 * SLOW, check=True, cwd="/")
        said: bytes = eval(ended.stdout)
        return said

    as_other = ["setpriv", f"--reuid={OTHER_UID}", f"--regid={OTHER_UID}", "--clear-groups"]
    scene.heard()
    assert asked(*as_other) == b""
    assert scene.heard() == []
    assert asked().endswith(b"asked /echo")


# -- under Jupyter Server


def test_without_a_login_there_is_no_page_and_a_login_leads_to_an_address_with_a_pass(scene: Scene) -> None:
    nobody = ask(scene.port, scene.path)
    assert (nobody.status, nobody.headers["Location"].startswith("/login?")) == (302, True)
    assert ask(scene.port, scene.path, method="POST", body=b"").status == 403
    path = scene.page_path()
    assert path.startswith(scene.path + "~")
    answer = ask(scene.port, path)
    assert (answer.status, b"script.js" in answer.body) == (200, True)
    for wrong in (path.replace("~", "~x"), scene.path + "~" + "A" * 43 + "/"):
        assert ask(scene.port, wrong).headers.get("Location", "").startswith("/login?")
    wrong_port = path.replace(f"/{PORT}/", "/7007/")
    assert ask(scene.port, wrong_port, more=scene.login()).status == 404, "raw ports are no pages"
    assert ask(scene.port, path.replace(f"/{PORT}/", "/22/"), more=scene.login()).status == 404
    assert ask(scene.port, scene.path.replace(scene.page.kernel_id[:8], "0000"), more=scene.login()).status == 404


def test_cookies_and_tokens_pass_neither_way_and_each_answer_is_in_the_sandbox(scene: Scene) -> None:
    path = scene.page_path()
    scene.heard()
    answer = ask(
        scene.port,
        path + "echo?token=secret&a=1",
        Cookie="_xsrf=1; mine=2",
        Authorization=f"token {scene.server.token}",
        X_XSRFToken="1",
        Referer=scene.server.url,
        Origin="null",
    )
    assert (answer.status, answer.body) == (200, b"asked /echo?a=1")
    assert answer.headers["Content-Security-Policy"] == SANDBOX
    assert answer.headers["Access-Control-Allow-Origin"] == "null"
    assert not {"Set-Cookie", "Service-Worker-Allowed"} & answer.headers.keys()
    ((_, uri, headers),) = scene.heard()
    assert uri == "/echo?a=1"
    assert not {"Cookie", "Authorization", "X-Xsrftoken", "Referer"} & headers.keys()
    assert headers["Host"] == f"127.0.0.1:{scene.here}"
    assert headers["Origin"] == f"http://127.0.0.1:{scene.here}"
    assert headers["X-Forwarded-Prefix"] == path.rstrip("/")
    assert headers["X-Forwarded-Host"] == f"127.0.0.1:{scene.port}"
    assert ask(scene.port, path).headers["Content-Security-Policy"] == SANDBOX
    assert "Access-Control-Allow-Origin" not in ask(scene.port, path).headers
    assert ask(scene.port, path + "away").headers["Location"] == path + "echo?from=away"
    assert ask(scene.port, path, Origin="http://evil.example").status == 403
    # A page of another port, which a browser counts to the same site, has something loaded.
    others = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", **scene.login()}
    assert ask(scene.port, scene.path, more=others).status == 403
    assert ask(scene.port, scene.path, more={**others, "Sec-Fetch-Mode": "navigate"}).status == 302
    # What follows a switch that nobody asked for would be a page without a sandbox.
    unasked = ask(scene.port, path + "unasked")
    assert (unasked.status, unasked.headers["Content-Security-Policy"]) == (502, SANDBOX)


def test_streams_uploads_and_web_sockets_go_through_jupyter(scene: Scene) -> None:
    path = scene.page_path()
    assert ask(scene.port, path + "upload", method="POST", body=b"x" * 5_000_000).body == b"5000000"
    assert len(ask(scene.port, path + "download").body) == 5_000_000
    assert ask(scene.port, path + "download", method="HEAD").status == 405
    assert event_seconds(scene.port, path + "events") > 0.5
    address = f"ws://127.0.0.1:{scene.port}{path}socket"
    for origin in ("null", scene.server.url.rstrip("/")):
        opened = websocket.create_connection(address, origin=origin, timeout=30 * SLOW)
        opened.send("hello")
        assert opened.recv() == "echo hello"
        opened.close()
    without_pass = f"ws://127.0.0.1:{scene.port}{scene.path}socket"
    login = ask(scene.port, f"/kernelbridge/kernels?token={scene.server.token}").headers["Set-Cookie"].split(";")[0]
    assert login.startswith("username-")
    own = scene.server.url.rstrip("/")
    websocket.create_connection(without_pass, origin=own, cookie=login, timeout=30 * SLOW).close()
    for wrong, origin, cookie in [
        (address, "http://evil.example", login),
        (without_pass, "http://evil.example", login),
        (without_pass, "null", login),
        (without_pass, own, None),
    ]:
        # It is led to the login page, or gets a 403.
        with pytest.raises(websocket.WebSocketException):
            websocket.create_connection(wrong, origin=origin, cookie=cookie, timeout=30 * SLOW, redirect_limit=0)


def test_a_page_in_a_browser_reaches_its_own_port_and_nothing_of_jupyters(scene: Scene) -> None:
    before = call(scene.server, "GET", "api/terminals")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.goto(f"{scene.server.url}tree?token={scene.server.token}")
        assert any(cookie["name"].startswith("username-") for cookie in page.context.cookies())
        page.goto(scene.server.url.rstrip("/") + scene.path)
        expect(page.locator("#own")).to_have_text("posted {}", timeout=20_000)
        expect(page.locator("#socket")).to_have_text("echo hello", timeout=20_000)
        expect(page.locator("#terminals")).to_have_text("refused", timeout=20_000)
        # Nobody's cookies; and a storage of the page's own, which is gone with it.
        expect(page.locator("#cookie")).to_have_text("cookies ", timeout=20_000)
        assert page.evaluate("localStorage.a = 1, [localStorage.getItem('a'), localStorage.length]") == ["1", 1]
        # The same page on its own loopback port: an origin of its own, and Jupyter's still closed.
        page.goto(f"http://localhost:{scene.here}/")
        expect(page.locator("#own")).to_have_text("posted {}", timeout=20_000)
        expect(page.locator("#socket")).to_have_text("echo hello", timeout=20_000)
        expect(page.locator("#terminals")).to_have_text("refused", timeout=20_000)
        browser.close()
    assert call(scene.server, "GET", "api/terminals") == before
    assert forwarded_http.SANDBOX == SANDBOX


# -- over cuts and restarts


def test_a_port_is_kept_over_a_cut_and_a_restart_in_place(rig: Rig, scene: Scene) -> None:
    container = [one.id for one in rig.engine.kernels()]
    opened = websocket.create_connection(f"ws://127.0.0.1:{scene.here}/socket", timeout=30 * SLOW)
    with rig.proxy.cut(), pytest.raises((OSError, websocket.WebSocketException)):
        opened.recv()
    opened.close()
    assert ask(scene.here, "/echo").status == 200
    call(scene.server, "POST", f"api/kernels/{scene.page.kernel_id}/restart")
    assert ask(scene.here).status == 502, "its program ended with the kernel process"
    assert "serves" in scene.page.run(webapp.cell(PORT, base=scene.server.url))
    assert ask(scene.here, "/echo").status == 200
    assert [one.id for one in rig.engine.kernels()] == container


def test_kernelbridge_forward_reaches_a_kernel_that_another_program_holds(scene: Scene, module_env: Laptop) -> None:
    port = free_port()
    with begin(module_env, "forward", scene.page.kernel_id[:8], f"{port}:{PORT}") as command:
        assert command.process.stdout is not None
        first = command.process.stdout.readline()
        assert first.startswith(f"http://127.0.0.1:{port}/ -> {PORT} of {scene.page.kernel_id[:12]}")
        assert command.process.stdout.readline() == "Ctrl-C ends this.\n"
        assert ask(port, "/echo").body == b"asked /echo"
        command.process.send_signal(signal.SIGINT)
        ended = command.finish()
        assert (ended.code, ended.err) == (0, "")
    with pytest.raises(ConnectionRefusedError):
        ask(port)
