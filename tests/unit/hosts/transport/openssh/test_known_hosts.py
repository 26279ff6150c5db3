"""hosts/transport/openssh/known_hosts.py: which keys are trusted under which name, and which lines are passed over."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import asyncssh
import pytest

from kernelbridge.hosts.transport.openssh.known_hosts import KnownHosts, read_known_hosts
from tests.unit.hosts.transport.openssh.around import settings

KEYS = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(2)]
A, B = (key.export_public_key("openssh").decode().strip() for key in KEYS)


async def known(home: Path, lines: str | bytes, *config: str) -> KnownHosts:
    (home / ".ssh").mkdir(exist_ok=True)
    data = lines.encode() if isinstance(lines, str) else lines
    (home / ".ssh" / "known_hosts").write_bytes(data)
    return await read_known_hosts(settings(home, "GlobalKnownHostsFile none", *config))


def names(keys: object) -> list[str]:
    assert isinstance(keys, list | tuple)
    return [key.export_public_key("openssh").decode().strip() for key in keys]


@pytest.mark.parametrize(
    "line",
    [
        "lab {A}",
        "LAB,10.0.0.1 {A} a comment",
        "l*,!lob {A}",
        "  lab\t{A}  ",
        # Without a comment this is a line about `lab`, made by `ssh-keygen -H`.
        "|1|AAECAwQFBgcICQoLDA0ODxAREhM=|{hash} {A}",
    ],
)
async def test_a_name_is_found_in_all_the_forms_it_may_have(tmp_path: Path, line: str) -> None:
    digest = base64.b64encode(hmac.new(bytes(range(20)), b"lab", hashlib.sha1).digest()).decode()
    found = await known(tmp_path, line.format(A=A, hash=digest) + "\n")
    assert names(found.trusted.keys) == [" ".join(A.split()[:2])]


@pytest.mark.parametrize("line", ["lob {A}", "10.0.0.7 {A}", "l*,!lab {A}", "[lab]:2222 {A}", "# lab {A}"])
async def test_another_name_does_not_do(tmp_path: Path, line: str) -> None:
    found = await known(tmp_path, line.format(A=A) + "\n", "HostName lab")
    assert found.trusted.keys == []


async def test_an_address_does_not_vouch_for_a_name_that_leads_to_it(tmp_path: Path) -> None:
    """asyncssh would take the key; a name server that lies could then put any known machine in the host's place."""
    found = await known(tmp_path, f"127.0.0.1 {A}\n", "HostName localhost")
    assert found.trusted.for_asyncssh == ([], [], [])


async def test_the_port_counts_and_the_bare_name_does_where_nothing_stands_under_it(tmp_path: Path) -> None:
    found = await known(tmp_path, f"[lab]:2222 {A}\nlab {B}\n", "Port 2222")
    assert (found.name, names(found.trusted.keys)) == ("[lab]:2222", [A])
    found = await known(tmp_path, f"lab {B}\n", "Port 2222")
    assert names(found.trusted.keys) == [B]


async def test_an_alias_has_no_port(tmp_path: Path) -> None:
    found = await known(tmp_path, f"Alias {A}\n[alias]:2222 {B}\n", "Port 2222", "HostKeyAlias alias")
    assert (found.name, names(found.trusted.keys)) == ("alias", [A])


async def test_authorities_and_revoked_keys_are_told_apart(tmp_path: Path) -> None:
    found = await known(tmp_path, f"@cert-authority *.example {A}\n@revoked * {B}\n", "HostName lab.example")
    assert (names(found.trusted.authorities), names(found.trusted.revoked)) == ([A], [B])
    found = await known(tmp_path, f"[lab]:2222 {A}\n@revoked lab {B}\n", "Port 2222")
    assert names(found.trusted.revoked) == [B]


async def test_lines_that_cannot_be_read_are_nobodys(tmp_path: Path) -> None:
    lines = b"\xff\xfe lab\nlab\n@odd lab " + A.encode() + b"\n|1|x|y " + A.encode() + b"\nlab ssh-ed25519 AAAA\n"
    found = await known(tmp_path, lines + b"lab new-kind AAAA\nlab " + B.encode() + b"\n")
    assert names(found.trusted.keys) == [B]


async def test_new_keys_go_to_the_first_file_that_keeps_them(tmp_path: Path) -> None:
    found = await known(tmp_path, "", "UserKnownHostsFile /dev/null ~/keep ~/more", "HashKnownHosts yes")
    assert (found.path, found.is_hashed) == (tmp_path / "keep", True)
    assert (await known(tmp_path, "", "UserKnownHostsFile none")).path is None
    assert (await known(tmp_path, "", "UserKnownHostsFile /dev/null")).path is None
    assert (await known(tmp_path, "")).path == tmp_path / ".ssh" / "known_hosts"


async def test_a_command_may_know_hosts(tmp_path: Path) -> None:
    found = await known(tmp_path, "", f"KnownHostsCommand /bin/echo %H {A} %I-%t")
    assert names(found.trusted.keys) == [" ".join(A.split()[:2])]
    with pytest.raises(ValueError, match="KnownHostsCommand `/bin/false` ended with exit code 1"):
        await known(tmp_path, "", "KnownHostsCommand /bin/false")


async def test_a_list_of_revoked_keys_is_heeded_and_one_that_cannot_be_read_refused(tmp_path: Path) -> None:
    (tmp_path / "revoked").write_text(f"# old\n{A}\n")
    found = await known(tmp_path, f"lab {A}\n", "RevokedHostKeys ~/revoked")
    assert names(found.trusted.revoked) == [A]
    with pytest.raises(ValueError, match="gone: No such file"):
        await known(tmp_path, "", "RevokedHostKeys ~/gone")
    (tmp_path / "revoked").write_bytes(b"SSHKRL\n\0rest")
    with pytest.raises(ValueError, match=r"binary list \(KRL\)"):
        await known(tmp_path, "", "RevokedHostKeys ~/revoked")
