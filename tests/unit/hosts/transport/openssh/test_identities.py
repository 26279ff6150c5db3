"""hosts/transport/openssh/identities.py: which keys are offered in which order, and why the others are not."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from kernelbridge.hosts.transport.openssh.identities import Identities, collect_identities
from tests.unit.hosts.transport.openssh.around import settings

KEYS = {name: asyncssh.generate_private_key("ssh-ed25519", comment=name) for name in ("one", "two", "three")}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the keys one and two, the public half of three, and files that are no keys."""
    folder = tmp_path / ".ssh"
    folder.mkdir()
    for name in ("one", "two"):
        KEYS[name].write_private_key(folder / name)
        KEYS[name].write_public_key(folder / f"{name}.pub")
    KEYS["three"].write_public_key(folder / "three.pub")
    (folder / "lab.ppk").write_text("PuTTY-User-Key-File-3: ssh-ed25519\n")
    (folder / "empty").touch()
    (folder / "locked").write_bytes(KEYS["three"].export_private_key("pkcs8-pem", "secret"))
    KEYS["three"].write_public_key(folder / "locked.pub")
    return tmp_path


@asynccontextmanager
async def agent(path: Path, *held: str) -> AsyncIterator[str]:
    """A stand-in for an agent: it names its keys and signs nothing."""

    def string(data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + data

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readexactly(struct.unpack(">I", await reader.readexactly(4))[0])
                keys = b"".join(string(KEYS[name].public_data) + string(name.encode()) for name in held)
                writer.write(string(b"\x0c" + struct.pack(">I", len(held)) + keys))
        except asyncio.IncompleteReadError:
            writer.close()

    async with await asyncio.start_unix_server(serve, path):
        yield str(path)


async def collect(home: Path, *lines: str, environ: dict[str, str] | None = None) -> Identities:
    async with collect_identities(settings(home, *lines, environ=environ)) as made:
        return made


async def test_files_are_offered_in_their_order_and_others_have_a_reason(home: Path) -> None:
    files = ("two", "lab.ppk", "empty", "none", "three.pub", "three", "locked", "one")
    made = await collect(home, *(f"IdentityFile ~/.ssh/{name}" for name in files), f"IdentityFile {home}/.ssh")
    assert [one.name for one in made.found] == ["~/.ssh/two", "~/.ssh/locked", "~/.ssh/one"]
    assert [one.unlock is not None for one in made.found] == [False, True, False]
    assert made.skipped == [
        "~/.ssh/lab.ppk (not a key that OpenSSH reads)",
        "~/.ssh/empty (not a key that OpenSSH reads)",
        "~/.ssh/none (not there)",
        "~/.ssh/three.pub (its private half is neither there nor in the agent)",
        "~/.ssh/three (its private half is neither there nor in the agent)",
        "~/.ssh (not a file)",
    ]


async def test_a_key_with_a_passphrase_is_passed_over_where_nobody_is_to_be_asked(home: Path) -> None:
    made = await collect(home, "IdentityFile ~/.ssh/locked", "BatchMode yes")
    assert made.found == []
    assert made.skipped == ["~/.ssh/locked (it has a passphrase, and the agent does not hold it)"]


async def test_the_agents_keys_come_first_and_those_that_are_named_before_its_others(
    home: Path, tmp_path: Path
) -> None:
    lines = ("IdentityFile ~/.ssh/one", "IdentityFile ~/.ssh/locked")
    async with agent(tmp_path / "agent", "two", "three") as path:
        made = await collect(home, *lines, environ={"SSH_AUTH_SOCK": path})
        assert [one.name for one in made.found] == ["~/.ssh/locked (agent)", "two (agent)", "~/.ssh/one"]
        made = await collect(home, *lines, "IdentitiesOnly yes", f"IdentityAgent {path}")
        assert [one.name for one in made.found] == ["~/.ssh/locked (agent)", "~/.ssh/one"]
        assert made.skipped == []


@pytest.mark.parametrize(
    ("written", "is_used"),
    [
        ("SSH_AUTH_SOCK", True),
        ("$OTHER", True),
        ("${OTHER}", True),
        ("~/agent", True),
        ("%d/agent", True),
        ("none", False),
        ("$UNSET", False),
    ],
)
async def test_an_agent_may_be_named_in_all_of_openssh_s_ways(
    home: Path, tmp_path: Path, written: str, is_used: bool
) -> None:
    async with agent(tmp_path / "agent", "three") as path:
        made = await collect(
            home, f"IdentityAgent {written}", "IdentityFile none", environ={"SSH_AUTH_SOCK": path, "OTHER": path}
        )
    assert [one.name for one in made.found] == (["three (agent)"] if is_used else [])


async def test_an_agent_that_is_gone_is_told_and_no_reason_to_fail(home: Path) -> None:
    made = await collect(home, "IdentityAgent ~/none", "IdentityFile ~/.ssh/one")
    assert [one.name for one in made.found] == ["~/.ssh/one"]
    assert made.skipped[0].startswith("the ssh agent (")


async def test_a_certificate_comes_first_with_whichever_key_it_is_for(home: Path, tmp_path: Path) -> None:
    authority = asyncssh.generate_private_key("ssh-ed25519")
    for name in ("one", "three"):
        made = authority.generate_user_certificate(KEYS[name], "x", principals=["ada"])
        made.write_certificate(home / ".ssh" / f"{name}-cert.pub")
    (home / ".ssh" / "odd-cert.pub").write_text("nothing")
    lines = ("IdentityFile ~/.ssh/one", "CertificateFile ~/.ssh/three-cert.pub", "IdentitiesOnly yes")
    more = ("CertificateFile ~/.ssh/gone-cert.pub", "CertificateFile ~/.ssh/odd-cert.pub")
    async with agent(tmp_path / "agent", "three") as path:
        found = await collect(home, *lines, *more, environ={"SSH_AUTH_SOCK": path})
    assert [one.name for one in found.found] == ["~/.ssh/three-cert.pub", "~/.ssh/one-cert.pub", "~/.ssh/one"]
    assert [one.pair is not None and one.pair.has_cert for one in found.found] == [True, True, False]
    assert found.skipped == ["~/.ssh/gone-cert.pub (not there)", "~/.ssh/odd-cert.pub (not a certificate)"]
    alone = await collect(home, *lines)
    assert "~/.ssh/three-cert.pub (its private key is not here)" in alone.skipped


async def test_default_files_are_named_only_where_they_are(home: Path) -> None:
    (home / ".ssh" / "id_rsa").write_text("junk")
    made = await collect(home)
    assert (made.found, made.skipped) == ([], ["~/.ssh/id_rsa (not a key that OpenSSH reads)"])


async def test_keys_that_are_switched_off_are_not_offered(home: Path) -> None:
    made = await collect(home, "PubkeyAuthentication no", "IdentityFile ~/.ssh/one")
    assert (made.found, made.skipped) == ([], ["all keys (PubkeyAuthentication is off)"])


@pytest.mark.parametrize(
    ("written", "terms"),
    [
        ("yes", {"confirm": False, "lifetime": None}),
        ("confirm", {"confirm": True, "lifetime": None}),
        ("confirm 3600", {"confirm": True, "lifetime": 3600}),
        ("90", {"confirm": False, "lifetime": 90}),
        ("no", None),
        ("ask", None),
        ("1h", None),  # ssh itself makes seconds of it.
    ],
)
async def test_a_key_that_was_opened_goes_to_the_agent_where_the_config_says_so(
    home: Path, tmp_path: Path, written: str, terms: dict[str, Any] | None
) -> None:
    async with agent(tmp_path / "agent") as path:
        made = await collect(home, f"AddKeysToAgent {written}", environ={"SSH_AUTH_SOCK": path})
    assert (made.keep.args[1] if isinstance(made.keep, partial) else None) == terms


async def test_without_an_agent_no_key_goes_there(home: Path) -> None:
    assert (await collect(home, "AddKeysToAgent yes")).keep is None
