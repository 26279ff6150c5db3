"""hosts/transport/login/stage.py: what a login reports reaches those who wait for it, and nobody else."""

from __future__ import annotations

import asyncio

from kernelbridge.hosts.transport.login.stage import LoginStage, LoginStages, report, waits_for_user


def test_what_is_reported_outside_of_a_login_is_heard_by_nobody() -> None:
    stages, heard = LoginStages(), list[LoginStage]()
    with stages.heard_by(heard.append):
        report("connecting")
    assert heard == []


def test_who_comes_later_hears_where_the_login_is_and_who_has_left_hears_no_more() -> None:
    stages, first, second = LoginStages(), list[LoginStage](), list[LoginStage]()
    with stages.reported():
        with stages.heard_by(first.append):
            report("connecting")
        report("logging in")
        with stages.heard_by(second.append):
            report("touch it", needs_user=True)
    assert first == [LoginStage(text="connecting")]
    assert second == [LoginStage(text="logging in"), LoginStage(text="touch it", needs_user=True)]
    with stages.heard_by(first.append):  # It is over.
        assert len(first) == 1
    assert repr(stages) == "<LoginStages None, 0 hear it>"


async def test_each_login_reports_to_its_own_host_also_from_what_it_starts() -> None:
    hosts = {name: LoginStages() for name in ("lab", "two")}
    heard: dict[str, list[str]] = {name: [] for name in hosts}

    async def log_in(name: str) -> None:
        with hosts[name].reported():
            await asyncio.create_task(asyncio.sleep(0))
            asyncio.get_running_loop().call_soon(report, f"at {name}")
            await asyncio.sleep(0.01)

    with (
        hosts["lab"].heard_by(lambda stage: heard["lab"].append(stage.text)),
        hosts["two"].heard_by(lambda stage: heard["two"].append(stage.text)),
    ):
        await asyncio.gather(log_in("lab"), log_in("two"))
    assert heard == {"lab": ["at lab"], "two": ["at two"]}


async def test_a_user_is_said_to_be_waited_for_only_after_a_moment() -> None:
    stages, heard = LoginStages(), list[LoginStage]()
    with stages.reported(), stages.heard_by(heard.append):
        with waits_for_user("touch it", after_seconds=0.02):
            await asyncio.sleep(0)
        await asyncio.sleep(0.04)
        assert heard == []
        with waits_for_user("touch it", after_seconds=0.02):
            await asyncio.sleep(0.1)
    assert heard == [LoginStage(text="touch it", needs_user=True)]
    assert stages.has_needed_user
    with stages.reported():
        report("connecting")
    assert not stages.has_needed_user
