"""hosts/transport/lazy.py: what is heavy is loaded beside the loop, once, and only where a host needs it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kernelbridge.config.schema import Host
from kernelbridge.hosts.transport import lazy

HERE, LAB = Host(name="here", ssh="local"), Host(name="lab", ssh="lab")


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_LOADED", {})


def giving(answer: object) -> Callable[[], Any]:
    """What loads a function that comes to this answer, followed by the host's name."""

    async def function(host: Host, *more: object) -> object:
        await asyncio.sleep(0)
        return answer, host.name

    return lambda: function


async def test_what_is_loaded_comes_from_a_thread_once_and_then_costs_nothing() -> None:
    threads: list[threading.Thread] = []

    def load() -> str:
        threads.append(threading.current_thread())
        return "a module"

    assert [await lazy.loaded(load) for _ in range(3)] == ["a module"] * 3
    (thread,) = threads
    assert thread is not threading.current_thread()


async def test_a_load_that_failed_is_tried_again() -> None:
    failures = [ImportError("not yet")]

    def load() -> str:
        if failures:
            raise failures.pop()
        return "a module"

    with pytest.raises(ImportError):
        await lazy.loaded(load)
    assert await lazy.loaded(load) == "a module"


async def test_a_host_of_this_machine_is_opened_without_what_logs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async def open_local(name: str, *, folders: tuple[str, ...]) -> object:
        return "local", name, folders

    def load_ssh() -> Any:
        raise AssertionError("asyncssh is not needed here")

    monkeypatch.setattr(lazy, "open_local", open_local)
    monkeypatch.setattr(lazy, "load_ssh", load_ssh)
    opened: object = await lazy.open_any(HERE.model_copy(update={"path": ("/opt/x",)}))
    assert opened == ("local", "here", ("/opt/x",))


class MadeHeadStart:
    """Stands where HeadStart stands, which asks this machine's ssh."""

    made: list[MadeHeadStart] = []

    def __init__(self, host: Host) -> None:
        self.host, self.is_closed = host, False
        self.made.append(self)

    async def aclose(self) -> None:
        self.is_closed = True


async def test_any_other_host_is_logged_in_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "HeadStart", MadeHeadStart)
    monkeypatch.setattr(lazy, "load_ssh", giving("a link"))
    opened: object = await lazy.open_any(LAB)
    assert opened == ("a link", "lab")


async def test_a_login_has_a_head_start_only_while_asyncssh_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MadeHeadStart, "made", [])
    monkeypatch.setattr(lazy, "HeadStart", MadeHeadStart)
    monkeypatch.setattr(lazy, "load_ssh", giving("a link"))
    await lazy.open_any(LAB)
    (made,) = MadeHeadStart.made
    assert (made.host, made.is_closed) == (LAB, True)
    await lazy.open_any(LAB)
    assert MadeHeadStart.made == [made]


async def test_a_hosts_key_is_asked_for_by_what_dials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_load_dial", giving("a key"))
    key: object = await lazy.fetch_host_key(LAB)
    assert key == ("a key", "lab")
