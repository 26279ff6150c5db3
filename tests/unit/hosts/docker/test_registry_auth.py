"""hosts/docker/registry_auth.py: credentials for a registry, as docker itself finds them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import pytest
from docker import auth

from kernelbridge.errors import StartTimeout
from kernelbridge.hosts.docker import cli_config, registry_auth
from kernelbridge.hosts.transport.stream import Completed


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("python:3.12", auth.INDEX_URL),
        ("pytorch/pytorch:2", auth.INDEX_URL),
        (f"{auth.INDEX_NAME}/library/python", auth.INDEX_URL),
        ("registry.example/a/b@sha256:1", "registry.example"),
        ("localhost/a", "localhost"),
        ("lab:5000/a/b", "lab:5000"),
    ],
)
def test_the_registry_is_read_off_the_images_name(image: str, expected: str) -> None:
    assert registry_auth.registry_of(image) == expected


def test_stored_credentials_may_be_a_password_a_token_or_none() -> None:
    config = {
        "auths": {
            "a": {"auth": base64.b64encode(b"ada:x:y").decode()},
            "b": {"identitytoken": "t"},
            "c": {},
            "d": {"auth": "%%%"},
            "https://e": {"auth": base64.b64encode(b"eve:z").decode()},
            "https://f/v2/": {"username": "flo", "password": "p"},
            "g": {"registrytoken": "r"},
        }
    }
    assert registry_auth.stored(config, "a") == {"username": "ada", "password": "x:y", "serveraddress": "a"}
    assert registry_auth.stored(config, "b") == {"identitytoken": "t", "serveraddress": "b"}
    assert [registry_auth.stored(config, name) for name in ("c", "d", "none")] == [{}, {}, {}]
    assert registry_auth.stored(config, "e")["username"] == "eve"
    assert registry_auth.stored(config, "f") == {"username": "flo", "password": "p", "serveraddress": "f"}
    assert registry_auth.stored(config, "g") == {"registrytoken": "r", "serveraddress": "g"}
    assert registry_auth.stored({"auths": ["a"]}, "a") == registry_auth.stored({"auths": {"a": "x"}}, "a") == {}


def test_a_credential_helper_is_a_plain_word() -> None:
    assert registry_auth.helper_for({"credsStore": "pass"}, "a") == "pass"
    assert registry_auth.helper_for({"credsStore": "pass", "credHelpers": {"a": "gcloud"}}, "a") == "gcloud"
    assert registry_auth.helper_for({"credsStore": "../evil; x"}, "a") is None
    assert registry_auth.helper_for({}, "a") is None


def test_a_credential_helper_tells_a_password_or_a_token() -> None:
    assert registry_auth.told_by_helper('{"Username": "ada", "Secret": "x"}', "a")["password"] == "x"
    assert registry_auth.told_by_helper('{"Username": "<token>", "Secret": "x"}', "a")["identitytoken"] == "x"
    assert registry_auth.told_by_helper("credentials not found", "a") == {}


@pytest.mark.parametrize("wrong", [None, True, 7, "x", [], [1], {"a": 1}, "[" * 5000])
def test_a_config_of_any_shape_has_no_credentials(wrong: object) -> None:
    for config in (
        {"auths": wrong},
        {"auths": {"r": wrong}},
        {"auths": {"r": {"auth": wrong}}},
        {"credHelpers": wrong},
        {"credHelpers": {"r": wrong}},
        {"credsStore": wrong},
    ):
        registry_auth.stored(config, "r")
        registry_auth.helper_for(config, "r")
    assert cli_config.parse_config("[" * 100_000) == {}


def test_docker_hub_has_several_names() -> None:
    for name in (auth.INDEX_URL, "index.docker.io", "docker.io"):
        assert registry_auth.helper_for({"credHelpers": {name: "hub"}}, auth.INDEX_URL) == "hub"
    hub = {"auths": {auth.INDEX_URL: {"auth": base64.b64encode(b"ada:x").decode()}}}
    assert registry_auth.stored(hub, auth.INDEX_URL)["username"] == "ada"


class Host:
    """A link whose commands answer as told, by the number of their words; an exception is raised."""

    name = "lab"

    def __init__(self, config: str, helper: Completed | Exception) -> None:
        self.config = config
        self.helper = helper
        self.asked: list[Sequence[str]] = []
        # What the helper does once the login shell's PATH is known; None where that has no other.
        self.helper_by_login_shell: Completed | None = None

    async def ask_login_shell(self) -> bool:
        if self.helper_by_login_shell is None:
            return False
        self.helper = self.helper_by_login_shell
        return True

    async def run(self, argv: Sequence[str], *, seconds: float) -> Completed:
        self.asked.append(argv)
        if len(argv) == 4:
            return Completed(exit_code=0, stdout=self.config.encode(), stderr=b"")
        if isinstance(self.helper, Exception):
            raise self.helper
        return self.helper


def ended(code: int, stdout: str = "", stderr: str = "") -> Completed:
    return Completed(exit_code=code, stdout=stdout.encode(), stderr=stderr.encode())


SLOW = StartTimeout(host="lab", what="`sh`", seconds=10)


@pytest.mark.parametrize(
    ("helper", "user", "trouble"),
    [
        (ended(0, '{"Username": "ada", "Secret": "x"}'), "ada", ""),
        (ended(1, "credentials not found in native keychain"), None, ""),
        (ended(127, stderr="not found"), None, "docker-credential-pass: not found"),
        (ended(1, "gpg: no pinentry"), None, "docker-credential-pass: gpg: no pinentry"),
        (ended(2), None, "docker-credential-pass: exit code 2"),
        (SLOW, None, "docker-credential-pass did not answer (lab: `sh` took longer than 10 s.)"),
    ],
)
async def test_what_a_helper_comes_to_is_a_login_or_a_trouble(
    helper: Completed | Exception, user: str | None, trouble: str
) -> None:
    host: Any = Host('{"credsStore": "pass"}', helper)
    found = await registry_auth.find_login(host, "r.example/a:1")
    assert (found.credentials.get("username"), found.trouble) == (user, trouble)
    assert list(host.asked[1][3:]) == ["docker-credential-pass", "pass", "r.example"]
    assert "credentials" not in repr(found)


async def test_a_helper_is_looked_for_where_a_login_shell_finds_it() -> None:
    host: Any = Host('{"credsStore": "desktop"}', ended(127, stderr="not found"))
    host.helper_by_login_shell = ended(0, '{"Username": "ada", "Secret": "x"}')
    found = await registry_auth.find_login(host, "r.example/a:1")
    assert (found.credentials.get("username"), found.trouble) == ("ada", "")
