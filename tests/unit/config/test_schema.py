"""config/schema.py: the model of what the user wrote."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kernelbridge.config import load
from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.errors import UnknownHost
from tests.unit.config.test_load import PATH, with_environment


def test_without_a_host_this_machine_is_the_only_one() -> None:
    loaded = load.parse('[environments.a]\nimage = "x"\n', PATH)
    assert list(loaded.hosts) == ["local"]
    assert loaded.host("local").is_local
    assert loaded.hosts_of(loaded.environment("a")) == (Host(name="local", ssh="local"),)


def test_this_machine_needs_no_entry_and_a_host_of_the_config_that_is_named_local_is_that_one() -> None:
    mine = Host(name="local", ssh="lab")
    loaded = Config(path=PATH, hosts={"local": mine}, environments={})
    assert loaded.with_local().host("local") is mine
    with pytest.raises(UnknownHost):
        loaded.with_local().host("lab")
    other = Config(path=PATH, hosts={"lab": Host(name="lab", ssh="lab")}, environments={})
    assert other.with_local().host("local") == Host(name="local", ssh="local")
    assert list(other.hosts) == ["lab"]


def test_an_environment_without_hosts_may_run_on_all_in_their_order() -> None:
    loaded = load.parse(
        '[hosts.two]\nssh = "b"\n[hosts.one]\nssh = "a"\n[environments.a]\nimage = "x"\n'
        '[environments.b]\nimage = "x"\nhosts = ["one"]\n',
        PATH,
    )
    assert [host.name for host in loaded.hosts_of(loaded.environment("a"))] == ["two", "one"]
    assert [host.name for host in loaded.hosts_of(loaded.environment("b"))] == ["one"]
    assert not loaded.host("two").is_local


def test_what_the_user_wrote_cannot_be_changed() -> None:
    environment = Environment(name="a", image="x")
    with pytest.raises(ValidationError, match="frozen"):
        environment.image = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("network", "asked_for", "has_debugger"),
    [("bridge", False, True), ("none", False, True), ("host", False, False), ("host", True, True)],
)
def test_the_debugger_is_off_on_the_hosts_network_unless_asked_for(
    network: str, asked_for: bool, has_debugger: bool
) -> None:
    environment = Environment(name="a", image="x", network=network, debug_on_host_network=asked_for)
    assert environment.has_debugger is has_debugger


def test_how_long_a_kernel_lives_without_its_owner_is_written_as_people_say_times() -> None:
    given = 'persist = true\nlost_grace = "36h"\nmax_lifetime = "7d"\nidle_timeout = "90m"\nkeep_exited = 60\n'
    environment = with_environment(given + 'journal_size = "1g"')
    assert environment.persist
    assert (environment.lost_grace, environment.max_lifetime) == (129600, 604800)
    assert (environment.idle_timeout, environment.keep_exited) == (5400, 60)
    assert environment.journal_size == 1 << 30
    untold = with_environment("")
    assert (untold.persist, untold.lost_grace, untold.keep_exited) == (False, 86400, 259200)
    assert (untold.max_lifetime, untold.idle_timeout, untold.journal_size) == (None, None, 256 << 20)


def test_a_forward_is_kept_in_parts_and_written_as_the_user_does() -> None:
    environment = with_environment('forwards = [6006, "8080:80", "raw:5555"]')
    assert [(one.here, one.there, one.is_raw) for one in environment.forwards] == [
        (6006, 6006, False),
        (8080, 80, False),
        (5555, 5555, True),
    ]
    assert [one.written for one in environment.forwards] == [6006, "8080:80", "raw:5555"]


def test_every_key_says_what_it_is() -> None:
    for model in (Host, Environment):
        for name, field in model.model_fields.items():
            if name != "name":
                assert field.title, name
                assert field.description, name
                assert field.description.endswith("."), name
