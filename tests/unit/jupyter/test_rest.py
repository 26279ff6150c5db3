"""jupyter/rest.py: what a server's pages are told of kernels and GPUs over HTTP, and by whom they may be asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.auth.authorizer import AllowAllAuthorizer, Authorizer
from jupyter_server.auth.identity import IdentityProvider
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, HTTPError

from kernelbridge.errors import ConfigMissing, HostRefused, KernelBridgeError
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.gpu_listing import GpuListing
from kernelbridge.fleet.kernel_listing import KernelListing, KernelRow
from kernelbridge.jupyter import rest, shared_fleets
from kernelbridge.jupyter.rest import PAGE_RETRY_SECONDS, ROUTES, Gpus, Kernels, Stopping, merged
from tests.fakes import row

CONFIG = Path("/config/kernelbridge.toml")
REFUSED = HostRefused(host="two", address="two:22")


class AskedFleet:
    """A fleet that answers as a test says; `never` is one that does not."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.kernels: KernelListing | KernelBridgeError = KernelListing(kernels=(), problems=())
        self.never = False

    def of(self, path: Path) -> AskedFleet:
        self.paths.append(path)
        return self

    def submit(self, coro: Coroutine[Any, Any, Any]) -> Future[Any]:
        done: Future[Any] = Future()
        if self.never:
            coro.close()
            return done
        try:
            coro.send(None)
        except StopIteration as answer:
            done.set_result(answer.value)
        except KernelBridgeError as exc:
            done.set_exception(exc)
        return done

    async def list_kernels(self) -> KernelListing:
        if isinstance(self.kernels, KernelBridgeError):
            raise self.kernels
        return self.kernels

    async def list_gpus(self) -> GpuListing:
        return GpuListing()


class Nobody(Authorizer):
    """Lets nobody do anything."""

    def is_authorized(self, *_: Any) -> bool:
        return False


class Page:
    """A server with our routes, and who asks it."""

    def __init__(self, authorizer: type[Authorizer] = AllowAllAuthorizer) -> None:
        self.held: list[KernelRow] = []
        settings: dict[type[Any], dict[str, Any]] = {
            Kernels: {"config_path": CONFIG, "held": lambda: self.held},
            Gpus: {"config_path": CONFIG},
        }
        provider = IdentityProvider(token="t0ken")
        routes: list[Any] = [(path, handler, settings[handler]) for path, handler in ROUTES.items()]
        server = Application(
            [*routes, ("/api/kernels.*", Stopping)],
            identity_provider=provider,
            authorizer=authorizer(identity_provider=provider),
            allow_remote_access=True,
            disable_check_xsrf=True,
            cookie_secret="s",
            base_url="/",
            login_url="/login",
            log_function=lambda handler: None,
        )
        socket, self._port = bind_unused_port()
        self._listening = HTTPServer(server)
        self._listening.add_socket(socket)

    async def get(self, path: str, *, token: str = "t0ken", method: str = "GET") -> HTTPResponse:
        return await AsyncHTTPClient().fetch(
            f"http://127.0.0.1:{self._port}{path}",
            method=method,
            headers={"Authorization": f"token {token}"},
            raise_error=False,
            allow_nonstandard_methods=True,
        )

    async def close(self) -> None:
        self._listening.stop()
        await self._listening.close_all_connections()


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> AskedFleet:
    made = AskedFleet()
    monkeypatch.setattr(shared_fleets, "fleet_of", made.of)
    monkeypatch.setattr(Fleet, "list_kernels", AskedFleet.list_kernels)
    monkeypatch.setattr(Fleet, "list_gpus", AskedFleet.list_gpus)
    return made


@pytest.fixture
async def page(fleet: AskedFleet) -> AsyncIterator[Page]:
    made = Page()
    yield made
    await made.close()


def told(answer: HTTPResponse) -> Any:
    return json.loads(answer.body)


# -- which rows


def test_the_server_knows_more_of_its_own_kernels_than_a_host_that_is_silent() -> None:
    held = [row("k1", link="link lost"), row("k2", link="held"), row("k3", link="held", title="mine")]
    found = [row("k2", link="held", gpus="GPU-1"), row("k3", state="unknown"), row("k4", host="other")]
    rows = {one.kernel_id: one for one in merged(held, found)}
    assert list(rows) == ["k2", "k3", "k1", "k4"]
    assert (rows["k1"].link, rows["k2"].gpus, rows["k3"].title) == ("link lost", "GPU-1", "mine")


def test_a_line_that_is_lost_is_known_to_the_server_before_the_relay_knows() -> None:
    (one,) = merged([row("k1", link="link lost")], [row("k1", link="held")])
    assert one.link == "link lost"


def test_rows_are_sorted_by_host_and_age() -> None:
    old, new = row("k1", created=datetime(2026, 1, 1)), row("k2", created=datetime(2026, 2, 1))
    assert merged([new], [old, row("k0", host="a")])[1:] == [old, new]
    assert merged([], []) == []


# -- what is answered


async def test_without_being_asked_for_all_a_server_tells_of_its_own_kernels_and_asks_no_host(
    page: Page, fleet: AskedFleet
) -> None:
    page.held = [row("k1")]
    for path in ("/kernelbridge/kernels", "/kernelbridge/kernels?all=0", "/kernelbridge/kernels?all="):
        answer = await page.get(path)
        assert (answer.code, told(answer)) == (200, {"kernels": [row("k1").to_json()], "problems": []})
    assert fleet.paths == []


async def test_asked_for_all_it_asks_the_hosts_of_its_config_and_says_which_failed(
    page: Page, fleet: AskedFleet
) -> None:
    page.held = [row("k1")]
    fleet.kernels = KernelListing(kernels=(row("k2"),), problems=(REFUSED,))
    answer = told(await page.get("/kernelbridge/kernels?all=1"))
    assert [one["kernel_id"] for one in answer["kernels"]] == ["k2", "k1"]
    assert answer["problems"] == [REFUSED.to_json()]
    assert fleet.paths == [CONFIG]


async def test_gpus_are_told_as_the_command_prints_them(page: Page, fleet: AskedFleet) -> None:
    answer = await page.get("/kernelbridge/gpus")
    assert answer.code == 200
    assert {"gpus", "nodes", "waiting", "bare"} <= set(told(answer))
    assert fleet.paths == [CONFIG]


async def test_a_question_that_fails_is_an_error_500_with_its_sentence(page: Page, fleet: AskedFleet) -> None:
    fleet.kernels = REFUSED
    answer = await page.get("/kernelbridge/kernels?all=1")
    assert (answer.code, answer.reason) == (500, REFUSED.sentence)


async def test_hosts_that_never_answer_are_an_error_504(
    page: Page, fleet: AskedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.never = True
    monkeypatch.setattr(rest, "LIST_SECONDS", 0.01)
    answer = await page.get("/kernelbridge/gpus")
    assert answer.code == 504
    assert "did not answer in 0.01 s" in told(answer)["message"]


async def test_a_config_that_cannot_be_read_is_an_error_500_with_its_sentence(tmp_path: Path) -> None:
    missing = tmp_path / "k.toml"
    with pytest.raises(HTTPError) as caught:
        await rest._asked(missing, Fleet.list_gpus)
    assert (caught.value.status_code, caught.value.reason) == (
        500,
        ConfigMissing(path=str(missing), reason="there is no such file").sentence,
    )


# -- who may ask


@pytest.mark.parametrize("path", sorted(ROUTES))
async def test_without_the_servers_token_nothing_is_told(page: Page, fleet: AskedFleet, path: str) -> None:
    page.held = [row("k1")]
    answer = await page.get(path, token="guessed")
    assert answer.code == 403
    assert b"k1" not in answer.body
    assert fleet.paths == []


@pytest.mark.parametrize("path", sorted(ROUTES))
async def test_who_is_not_authorized_is_told_nothing(fleet: AskedFleet, path: str) -> None:
    page = Page(Nobody)
    try:
        assert (await page.get(path)).code == 403
        assert fleet.paths == []
    finally:
        await page.close()


# -- while the server stops


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PATCH"])
async def test_while_a_server_stops_pages_are_asked_to_come_again_whatever_they_want(page: Page, method: str) -> None:
    answer = await page.get("/api/kernels/k1", method=method, token="")
    assert answer.code == 503
    assert answer.headers["Retry-After"] == str(PAGE_RETRY_SECONDS)
    assert "kernels run on" in told(answer)["message"]
