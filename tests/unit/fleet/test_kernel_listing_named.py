"""fleet/kernel_listing.py: which kernel or container a name means, and a log that is followed to its kernel's end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.errors import ContainerFailed, HostRefused, KernelBridgeError, KernelEnded, KernelNotFound, LinkLost
from kernelbridge.fleet import kernel_listing
from kernelbridge.fleet.kernel_listing import KernelFinder
from kernelbridge.hosts.backend import Missing, Over
from kernelbridge.kernel.records import SessionRecord
from tests.made_hosts import FIRST, Engine, Hosts
from tests.unit.fleet.test_kernel_listing import SECOND, STATUS, ended


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


# -- names


async def test_a_kernel_that_runs_is_reached_by_the_beginning_of_its_id(hosts: Hosts) -> None:
    box = hosts.add(status=STATUS)
    address = await hosts.census.running(hosts.config, "aabb")
    assert (address.kernel, address.host, address.image) == (FIRST, "lab", "x")
    assert (await hosts.census.named(hosts.config, "aabb")).kernel == FIRST
    box.state, box.ended = "exited", ended(3)
    with pytest.raises(KernelEnded, match="aabb1111-000"):
        await hosts.census.running(hosts.config, "aabb")
    for name in ("zz", ""):
        with pytest.raises(KernelNotFound):
            await hosts.census.named(hosts.config, name)


async def test_what_runs_of_an_environment_is_reached_by_its_name(hosts: Hosts) -> None:
    hosts.add(status=STATUS)
    hosts.add(SECOND, state="exited", ended=ended(3))
    hosts.add("eeff", owner="of another", status=STATUS)
    assert (await hosts.census.named(hosts.config, "torch")).kernel == FIRST


async def test_what_waits_for_commands_is_meant_before_a_kernel(hosts: Hosts) -> None:
    hosts.add(status=STATUS)
    hosts.add(SECOND, status=STATUS).labels["kernelbridge.kind"] = "up"
    assert (await hosts.census.named(hosts.config, "torch")).kernel == SECOND


async def test_of_several_one_is_to_be_named_and_none_can_be_started(hosts: Hosts) -> None:
    with pytest.raises(KernelBridgeError, match="No container of torch runs") as caught:
        await hosts.census.named(hosts.config, "torch")
    assert "kernelbridge up torch" in caught.value.remedy
    hosts.add(status=STATUS)
    hosts.add(SECOND, status=STATUS)
    with pytest.raises(KernelBridgeError, match="2 containers of torch run: aabb1111-000, ccdd2222-000"):
        await hosts.census.named(hosts.config, "torch")


async def test_what_may_be_on_a_host_that_is_away_is_not_said_to_be_gone(hosts: Hosts) -> None:
    hosts.two = None
    with pytest.raises(HostRefused):
        await hosts.census.named(hosts.config, "torch")
    hosts.add(status=STATUS)
    assert (await hosts.census.named(hosts.config, "torch")).kernel == FIRST


NOTEBOOK = {"title": "train.ipynb", "notebook": "/home/ada/work/train.ipynb"}


@pytest.mark.parametrize("name", ["train", "train.ipynb", "work/train", "./work/train.ipynb", NOTEBOOK["notebook"]])
async def test_a_kernel_is_reached_by_its_notebook(hosts: Hosts, name: str) -> None:
    hosts.add(status=STATUS)
    hosts.add(SECOND, status=STATUS)
    hosts.remember(**NOTEBOOK)
    hosts.remember(SECOND, title="pretrain.ipynb", notebook="/home/ada/pretrain.ipynb")
    assert (await hosts.census.find(hosts.config, name)).kernel_id == FIRST
    assert (await hosts.census.named(hosts.config, name)).kernel == FIRST


@pytest.mark.parametrize("name", ["rain", "play/train", "train.py", ".ipynb", "/"])
async def test_another_name_is_not_taken_for_a_notebooks(hosts: Hosts, name: str) -> None:
    hosts.add(status=STATUS)
    hosts.remember(**NOTEBOOK)
    with pytest.raises(KernelNotFound, match="No kernel"):
        await hosts.census.find(hosts.config, name)


async def test_a_notebook_of_a_jupyter_server_is_known_by_its_session(hosts: Hosts) -> None:
    hosts.add(status=STATUS)
    session = SessionRecord(session_id="s", path="deep/in/it.ipynb", name="it.ipynb", type="notebook")
    hosts.remember(sessions=(session,))
    assert (await hosts.census.find(hosts.config, "in/it")).kernel_id == FIRST


async def test_of_two_that_may_be_meant_both_are_listed(hosts: Hosts) -> None:
    hosts.add(status=STATUS)
    hosts.add(SECOND, status=STATUS)
    hosts.remember(**NOTEBOOK)
    hosts.remember(SECOND, title="train.ipynb", notebook="/home/ada/other/train.ipynb")
    meant = "`train` may be any of 2 kernels: aabb1111-000 .train.ipynb, torch., ccdd2222-000 .train.ipynb, torch.."
    with pytest.raises(KernelNotFound, match=meant):
        await hosts.census.find(hosts.config, "train")
    assert (await hosts.census.find(hosts.config, "other/train")).kernel_id == SECOND


# -- logs


class Following:
    """Follows the log of the first kernel; what happens while nothing is asked is a list of steps."""

    def __init__(self, hosts: Hosts, *steps: Callable[[], None]) -> None:
        self.hosts = hosts
        self.steps = list(steps)
        self.heard: list[str] = []

    async def _rest(self, seconds: float) -> None:
        assert seconds == kernel_listing.FOLLOW_SECONDS
        self.steps.pop(0)()

    async def follow(self) -> str:
        hosts = self.hosts
        census = KernelFinder(hosts.records, hosts._reach, self._rest)  # type: ignore[arg-type]
        await census.follow_log(hosts.config, "aabb", self.heard.append)
        assert self.steps == []
        return "".join(self.heard)


async def test_a_log_is_told_piece_by_piece_to_the_kernels_end(hosts: Hosts) -> None:
    box = hosts.add(status=STATUS, log="one\n")

    def write() -> None:
        box.log += "two\n"

    def end() -> None:
        box.log += "three\n"
        box.status = {**STATUS, "state": "exited"}

    following = Following(hosts, write, lambda: None, end)
    assert await following.follow() == "one\ntwo\nthree\n"
    assert [piece for piece in following.heard if piece] == ["one\n", "two\n", "three\n"]


async def test_a_host_that_is_away_for_a_while_ends_no_log(hosts: Hosts) -> None:
    box = hosts.add(status=STATUS, log="one\n")
    engine = hosts.lab
    away: Any = Engine()

    async def refuse(*words: Any) -> Any:
        raise LinkLost(host="lab")

    away.exec_stream = refuse

    def leave() -> None:
        hosts.lab = away

    def come_back() -> None:
        hosts.lab = engine
        box.log += "two\n"
        box.status = {**STATUS, "state": "exited"}

    assert await Following(hosts, leave, lambda: None, come_back).follow() == "one\ntwo\n"


async def test_the_last_words_come_also_where_the_host_is_away_between_the_end_and_them(hosts: Hosts) -> None:
    box = hosts.add(status=STATUS, log="one\n")
    open_stream = hosts.lab.exec_stream
    answers = ["status", "lost"]

    async def refuse_the_second(*words: Any) -> Any:
        if answers and answers.pop(0) == "lost":
            raise LinkLost(host="lab")
        return await open_stream(*words)

    def end() -> None:
        box.log += "two\n"
        box.status = {**STATUS, "state": "exited"}
        hosts.lab.exec_stream = refuse_the_second  # type: ignore[method-assign, assignment]

    assert await Following(hosts, end, lambda: None).follow() == "one\ntwo\n"


async def test_a_host_that_is_away_just_after_a_relay_gave_no_answer_ends_no_log(hosts: Hosts) -> None:
    box = hosts.add(status=STATUS, log="one\n")
    state = hosts.lab.state

    async def refuse(name: str) -> Any:
        raise LinkLost(host="lab")

    def go() -> None:
        box.status = None
        hosts.lab.state = refuse  # type: ignore[method-assign]

    def come_back() -> None:
        box.status = {**STATUS, "state": "exited"}
        hosts.lab.state = state  # type: ignore[method-assign]
        box.log += "two\n"

    assert await Following(hosts, go, come_back).follow() == "one\ntwo\n"


async def test_the_log_of_what_has_ended_is_told_at_once(hosts: Hosts) -> None:
    hosts.add(state="exited", ended=ended(3), log="one\ntwo")
    assert await Following(hosts).follow() == "one\ntwo"


async def test_a_relay_that_is_no_more_ends_the_following_with_its_reason(hosts: Hosts) -> None:
    box = hosts.add(status=STATUS, log="one\n")

    def go() -> None:
        box.status = None

    with pytest.raises(ContainerFailed):
        await Following(hosts, go, lambda: None).follow()


@pytest.mark.parametrize("state", [Missing(), ended(0), Over(explain=lambda name: LinkLost(host=name))])
@pytest.mark.parametrize("seems_to_run", [False, True])
async def test_a_run_that_is_removed_meanwhile_ends_its_log_without_an_error(
    hosts: Hosts, state: Any, seems_to_run: bool
) -> None:
    box = hosts.add(status=STATUS, log="one\n")

    def end() -> None:
        box.ended = state

    def remove() -> None:
        box.status = None
        if not seems_to_run:
            end()

    steps = [remove, end] if seems_to_run else [remove]
    assert await Following(hosts, *steps).follow() == "one\n"
