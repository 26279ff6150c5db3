"""The secrets and keys that host/ reads and writes: a registry's credentials, known_hosts."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from docker import auth

from kernelbridge.config import Host
from kernelbridge.errors import HostKeyChanged
from kernelbridge.host import registry, trust

LAB = Host(name="lab", ssh="lab")

# -- credentials


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
    assert registry.registry_of(image) == expected


def test_stored_credentials_may_be_a_password_a_token_or_none() -> None:
    config = {
        "auths": {
            "a": {"auth": base64.b64encode(b"ada:x:y").decode()},
            "b": {"identitytoken": "t"},
            "c": {},
            "d": {"auth": "%%%"},
            "https://e": {"auth": base64.b64encode(b"eve:z").decode()},
        }
    }
    assert registry.stored(config, "a") == {"username": "ada", "password": "x:y", "serveraddress": "a"}
    assert registry.stored(config, "b") == {"identitytoken": "t", "serveraddress": "b"}
    assert [registry.stored(config, name) for name in ("c", "d", "none")] == [{}, {}, {}]
    assert registry.stored(config, "e")["username"] == "eve"
    assert registry.parse_config("<html>") == registry.parse_config("[]") == {}


def test_a_credential_helper_is_a_plain_word() -> None:
    assert registry.helper_for({"credsStore": "pass"}, "a") == "pass"
    assert registry.helper_for({"credsStore": "pass", "credHelpers": {"a": "gcloud"}}, "a") == "gcloud"
    assert registry.helper_for({"credsStore": "../evil; x"}, "a") is None
    assert registry.helper_for({}, "a") is None


def test_a_credential_helper_tells_a_password_or_a_token() -> None:
    assert registry.told_by_helper('{"Username": "ada", "Secret": "x"}', "a")["password"] == "x"
    assert registry.told_by_helper('{"Username": "<token>", "Secret": "x"}', "a")["identitytoken"] == "x"
    assert registry.told_by_helper("credentials not found", "a") == {}


# -- known_hosts


def key(path: Path, **facts: Any) -> trust.HostKey:
    made_up: dict[str, Any] = {
        "name": "[lab]:2222",
        "algorithm": "ssh-ed25519",
        "fingerprint": "SHA256:x",
        "line": "[lab]:2222 ssh-ed25519 AAAA\n",
        "is_known": False,
        "is_changed": False,
        "known_hosts_path": path,
    }
    return trust.HostKey(**{**made_up, **facts})


def test_a_key_is_remembered_in_a_file_for_the_user_alone(tmp_path: Path) -> None:
    path = tmp_path / ".ssh" / "known_hosts"
    trust.remember(LAB, key(path))
    assert path.read_text() == "[lab]:2222 ssh-ed25519 AAAA\n"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_key_is_remembered_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text("other ssh-rsa BBBB")
    trust.remember(LAB, key(path))
    assert path.read_text() == "other ssh-rsa BBBB\n[lab]:2222 ssh-ed25519 AAAA\n"


def test_a_key_is_hashed_where_the_others_are(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text("|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= ssh-rsa BBBB\n")
    trust.remember(LAB, key(path))
    added = path.read_text().splitlines()[1]
    assert added.startswith("|1|")
    assert added.endswith(" ssh-ed25519 AAAA")
    assert "lab" not in added


def test_a_key_that_is_known_is_not_written_twice_and_a_changed_one_never(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    trust.remember(LAB, key(path, is_known=True))
    with pytest.raises(HostKeyChanged, match=r"ssh-keygen -R '\[lab\]:2222'"):
        trust.remember(LAB, key(path, is_changed=True))
    assert not path.exists()
