"""hosts/transport/host_keys.py: how a host's key gets into known_hosts, and that a changed one never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Host
from kernelbridge.errors import HostKeyChanged
from kernelbridge.hosts.transport import host_keys

LAB = Host(name="lab", ssh="lab")

# -- credentials


# -- known_hosts


def key(path: Path, **facts: Any) -> host_keys.HostKey:
    made_up: dict[str, Any] = {
        "name": "[lab]:2222",
        "algorithm": "ssh-ed25519",
        "fingerprint": "SHA256:x",
        "line": "[lab]:2222 ssh-ed25519 AAAA\n",
        "is_known": False,
        "is_changed": False,
        "known_hosts_path": path,
    }
    return host_keys.HostKey(**{**made_up, **facts})


def test_a_key_is_remembered_in_a_file_for_the_user_alone(tmp_path: Path) -> None:
    path = tmp_path / ".ssh" / "known_hosts"
    host_keys.remember(LAB, key(path))
    assert path.read_text() == "[lab]:2222 ssh-ed25519 AAAA\n"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_key_is_remembered_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text("other ssh-rsa BBBB")
    host_keys.remember(LAB, key(path))
    assert path.read_text() == "other ssh-rsa BBBB\n[lab]:2222 ssh-ed25519 AAAA\n"


def test_a_key_that_was_remembered_is_taken_away_whatever_came_after_it(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text("|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= ssh-rsa BBBB\n")
    before = path.read_text()
    line = host_keys.remember(LAB, key(path))
    path.write_text(path.read_text() + "later ssh-rsa CCCC\n")
    host_keys.forget(path, line)
    assert path.read_text() == before + "later ssh-rsa CCCC\n"
    host_keys.forget(path, line)
    host_keys.forget(tmp_path / "none", line)


def test_a_key_is_hashed_where_the_others_are(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text("|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= ssh-rsa BBBB\n")
    host_keys.remember(LAB, key(path))
    added = path.read_text().splitlines()[1]
    assert added.startswith("|1|")
    assert added.endswith(" ssh-ed25519 AAAA")
    assert "lab" not in added


def test_a_key_that_is_known_is_not_written_twice_and_a_changed_one_never(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    host_keys.remember(LAB, key(path, is_known=True))
    with pytest.raises(HostKeyChanged, match=r"ssh-keygen -R '\[lab\]:2222'"):
        host_keys.remember(LAB, key(path, is_changed=True))
    assert not path.exists()
