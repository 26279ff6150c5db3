"""fleet/logins_ahead.py: hosts are logged in to while the rest is loaded; a host of this machine needs none of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from kernelbridge.config.schema import Config, Host
from kernelbridge.errors import HostRefused
from kernelbridge.fleet import logins_ahead
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.logins_ahead import log_in_ahead
from kernelbridge.hosts.pool import BackendPool
from kernelbridge.hosts.transport.login.questions import Ask

HERE, LAB = Host(name="here", ssh="local"), Host(name="lab", ssh="lab")


class Begun(BackendPool):
    """A pool that logs in nowhere, and keeps who it was asked for."""

    def __init__(self, askers: Sequence[Ask]) -> None:
        super().__init__(open_link=self._refuse, askers=askers)
        self.asked: list[str] = []

    async def _refuse(self, host: Host, meanwhile: Any) -> Any:
        self.asked.append(host.name)
        raise HostRefused(host=host.name, address="lab:22")


def test_a_host_of_this_machine_needs_no_login() -> None:
    assert log_in_ahead([HERE]) is None
    assert log_in_ahead([]) is None


def test_a_login_that_was_begun_is_the_fleets_and_its_failure_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(logins_ahead, "BackendPool", Begun)
    logins = log_in_ahead([HERE, LAB])
    assert logins is not None
    pool = logins.backends
    assert isinstance(pool, Begun)
    fleet = Fleet(Config(path=tmp_path / "c", hosts={"lab": LAB}), folder=tmp_path, logins=logins)
    try:
        listing = fleet.run(fleet.list_kernels(), 20)
        assert [type(problem) for problem in listing.problems] == [HostRefused]
        assert pool.asked == ["lab"]
        # Who asks again is not told an old answer.
        fleet.run(fleet.list_kernels(), 20)
        assert pool.asked == ["lab", "lab"]
    finally:
        fleet.close()
    assert not logins.loop.is_running


class Waiting(Begun):
    """A pool whose login waits, as for a person."""

    has_ended = False

    async def _refuse(self, host: Host, meanwhile: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            Waiting.has_ended = True


def test_a_login_that_no_fleet_takes_over_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins_ahead, "BackendPool", Waiting)
    logins = log_in_ahead([LAB])
    assert logins is not None
    assert not Waiting.has_ended
    logins.close()
    assert Waiting.has_ended
    assert not logins.loop.is_running
    logins.close()
