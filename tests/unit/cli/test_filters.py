"""cli/filters.py: `--host` and `--env` of the commands that list, or that touch many."""

from __future__ import annotations

import json

import pytest

from kernelbridge.errors import UnknownEnvironment, UnknownHost
from tests.fakes import FakeFleet, row
from tests.printed import docs_line
from tests.unit.cli.commands.test_images import image_row
from tests.unit.cli.commands.test_kernels import FIRST, REFUSED, SECOND
from tests.unit.cli.conftest import Call

THIRD = "eeff3333-0000-4000-8000-000000000003"


def shown(call: Call, *words: str) -> list[str]:
    """The ids that `ps` shows."""
    return [one["kernel_id"] for one in json.loads(call("ps", "--json", *words).out)["kernels"]]


def test_ps_shows_what_is_on_a_host_and_of_an_environment(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST), row(SECOND, host="two"), row(THIRD, host="two", environment="of-a-colleague")]
    assert shown(call, "--host", "two") == [SECOND, THIRD]
    assert fleet.asked_hosts == ("two",)
    assert shown(call, "--host", "two", "--host", "lab") == [FIRST, SECOND, THIRD]
    assert shown(call, "--env", "pytorch") == [FIRST, SECOND]
    assert shown(call, "--env", "of-a-colleague") == [THIRD]
    assert shown(call, "--env", "pytorch", "--host", "two") == [SECOND]


@pytest.mark.parametrize("words", [("ps",), ("gpus",), ("images",), ("stop", "--all"), ("clean",)])
def test_a_name_that_is_none_is_refused_with_the_nearest(call: Call, fleet: FakeFleet, words: tuple[str, ...]) -> None:
    fleet.rows = [row(FIRST)]
    for option, name, kind in (("--host", "labb", UnknownHost), ("--env", "pytorhc", UnknownEnvironment)):
        ended = call(*words, option, name)
        assert ended.code == kind.exit_code
        assert f"`{name}`. Did you mean `{'lab' if option == '--host' else 'pytorch'}`?" in ended.err
        assert docs_line(kind.exit_code) in ended.err
    assert len(fleet.rows) == 1


def test_a_host_that_was_asked_alone_and_does_not_answer_is_a_failure(call: Call, fleet: FakeFleet) -> None:
    fleet.problems = (REFUSED,)
    assert call("ps", "--host", "two").code == 20
    assert call("ps").code == 0


def test_stop_stops_what_the_filters_leave(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST), row(SECOND, host="two"), row(THIRD, host="two", environment="other")]
    assert call("stop", "--all", "--host", "two", "--env", "pytorch").code == 0
    assert [one.kernel_id for one in fleet.rows] == [FIRST, THIRD]
    ended = call("stop", FIRST, "--host", "lab")
    assert (ended.code, "--host and --env go with --all" in ended.err) == (2, True)


def test_clean_removes_what_the_filters_leave(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST, is_orphan=True), row(SECOND, host="two", is_orphan=True)]
    assert call("clean", "--host", "two", "--env", "pytorch").code == 0
    assert [one.kernel_id for one in fleet.rows] == [FIRST]
    assert call("clean", "--images", "--host", "two").code == 0
    assert fleet.asked_hosts == ("two",)
    assert call("clean", "--images", "--env", "pytorch").code == 2


def test_images_shows_those_of_a_host_and_of_an_environment(call: Call, fleet: FakeFleet) -> None:
    fleet.images = [image_row("a", environments=("pytorch",)), image_row("b"), image_row("c", host="two")]

    def names(*words: str) -> list[str]:
        return [one["name"] for one in json.loads(call("images", "--json", *words).out)["images"]]

    assert names("--host", "two") == ["c"]
    assert names("--env", "pytorch") == ["a"]


def test_gpus_asks_the_hosts_of_an_environment(call: Call, fleet: FakeFleet) -> None:
    assert call("gpus", "--env", "pytorch").code == 0
    first = fleet.asked_hosts
    assert call("gpus", "--host", "two").code == 0
    assert (first, fleet.asked_hosts) == (("lab",), ("two",))
