"""hosts/transport/openssh/tokens.py: tokens, variables and homes are what OpenSSH takes them for."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.hosts.transport.openssh.tokens import all_tokens, expand, target_tokens
from tests.unit.hosts.transport.openssh.around import around

TARGET = target_tokens(name="lab", host="lab.example", port=2222, user="grace")
HOME = Path("/home/ada")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nc %h %p", "nc lab.example 2222"),
        ("%n as %r, 100%%", "lab as grace, 100%"),
        ("echo ${X:-%h} $HOME ${Y}", "echo ${X:-lab.example} $HOME ${Y}"),
        ("%%h", "%h"),
        ("a % at the end %", None),
        ("%d", None),
    ],
)
def test_a_line_for_a_shell_has_tokens_and_keeps_its_variables(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="is not a token there"):
            expand(text, TARGET)
    else:
        assert expand(text, TARGET) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%d/.ssh/%u-%i", "/home/ada/.ssh/ada-1000"),
        ("%L %l %k %j", "box box.example alias jump"),
        ("${KEYS}/%r", "/keys/grace"),
        ("/a b/$KEYS", "/a b/$KEYS"),
    ],
)
def test_a_file_name_has_all_tokens_and_variables(text: str, expected: str) -> None:
    place = around(HOME, environ={"KEYS": "/keys"})
    assert expand(text, all_tokens(place, TARGET, alias="alias", jump="jump"), place.environ) == expected


def test_the_hash_of_a_connection_is_openssh_s() -> None:
    # `printf box.examplelab.example2222grace | sha1sum`
    place = around(HOME)
    assert all_tokens(place, TARGET, alias="x", jump="")["C"] == "03517c1a8b3ca1e371d8a457c3f354a1d87cd332"


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(ValueError, match="KEYS is not set"):
        expand("${KEYS}/x", TARGET, {})


def test_a_home_that_only_the_user_database_has_is_ours() -> None:
    place = around(HOME, database_home=Path("/root"))
    assert place.moved(Path("/root/.ssh/known_hosts")) == HOME / ".ssh/known_hosts"
    assert place.moved(Path("/rooted/x")) == Path("/rooted/x")
    assert place.path("~/x") == HOME / "x"
    assert place.path("~grace/x") == Path("~grace/x")
    assert around(HOME).moved(Path("/root/x")) == Path("/root/x")
