"""fleet/doctor/finding.py: what is told of steps that hold, that break, that take too long or that nobody foresaw."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kernelbridge.errors import HostUnreachable
from kernelbridge.fleet.doctor.finding import Examiner, Finding, LinkName, LinkState, Said

UNREACHABLE = HostUnreachable(host="lab", address="lab:22", reason="timed out")


def looked(step: Callable[[], Awaitable[tuple[int, Said]]], *, seconds: float = 5) -> tuple[int | None, Finding]:
    found: list[Finding] = []
    examiner = Examiner(found.append, host="lab").of_environment("torch")
    brought = asyncio.run(examiner.look(LinkName.IMAGE, step, seconds=seconds))
    (finding,) = found
    assert (finding.host, finding.environment, finding.link) == ("lab", "torch", LinkName.IMAGE)
    return brought, finding


def test_a_link_that_holds_brings_what_the_next_ones_need() -> None:
    async def step() -> tuple[int, Said]:
        await asyncio.sleep(0.02)
        return 7, "there"

    brought, finding = looked(step)
    assert (brought, finding.found, finding.state, finding.exit_code) == (7, "there", LinkState.OK, 0)
    assert 0.02 <= finding.seconds < 5


def test_a_warning_brings_it_too() -> None:
    async def step() -> tuple[int, Said]:
        return 7, Finding.warning(LinkName.IMAGE, "old", "Pull it.")

    brought, finding = looked(step)
    assert (brought, finding.state, finding.remedy) == (7, LinkState.WARNING, "Pull it.")


def test_an_error_breaks_the_link_with_its_own_remedy_and_exit_code() -> None:
    async def step() -> tuple[int, Said]:
        raise UNREACHABLE

    brought, finding = looked(step)
    assert brought is None
    assert {**finding.to_json(), "seconds": 0} == {
        "host": "lab",
        "environment": "torch",
        "link": "image",
        "state": "broken",
        "found": UNREACHABLE.sentence,
        "remedy": UNREACHABLE.remedy,
        "exit_code": UNREACHABLE.exit_code,
        "seconds": 0,
    }


def test_what_nobody_foresaw_and_what_takes_too_long_is_that_links() -> None:
    async def odd() -> tuple[int, Said]:
        raise ValueError("odd")

    async def stuck() -> tuple[int, Said]:
        await asyncio.sleep(60)
        return 7, ""

    assert "what it answers cannot be understood (ValueError: odd)" in looked(odd)[1].found
    late = looked(stuck, seconds=0.05)[1]
    assert (late.state, late.found) == (LinkState.BROKEN, "lab: image took longer than 0.05 s.")
    assert late.remedy == "Try again."


def test_what_is_behind_a_broken_link_and_what_is_left_alone_say_so() -> None:
    found: list[Finding] = []
    examiner = Examiner(found.append, host="lab")
    examiner.skip(LinkName.LOGIN, LinkName.SHELL, LinkName.ENGINE)
    examiner.tell(Finding.not_tried(LinkName.KERNEL, "it would be a job"))
    assert [one.found for one in found] == ["behind login", "behind login", "not tried: it would be a job"]
    assert {one.state for one in found} == {LinkState.SKIPPED}
    assert found[0].where == "lab"
