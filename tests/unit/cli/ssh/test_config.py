"""cli/ssh/config.py: what ssh reads of containers, beside whatever the user's own config has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.cli.ssh import config

ENTRIES = "# made up\nHost kb-*\n"
INCLUDE = "Include kernelbridge.conf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / ".ssh"
    made.mkdir()
    return made


def entries(*names: str, folder: str = "/home/ada/data", path: str = "/home/ada/k.toml", python: str = "/py") -> str:
    return config.entries(names, folder=Path(folder), config=Path(path), python=python)


def value(text: str, key: str) -> str:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{key} ")]
    return line.strip().removeprefix(f"{key} ")


# -- the entries


def test_each_environment_has_a_name_and_one_entry_is_for_all_kernels() -> None:
    text = entries("torch", "jax")
    assert value(text, "Host") == "kb-torch kb-jax kb-*"
    assert value(entries(), "Host") == "kb-*"
    assert value(text, "ProxyCommand") == "/py -m kernelbridge --config /home/ada/k.toml ssh-proxy %n"
    assert value(text, "UserKnownHostsFile") == "/home/ada/data/ssh/known_hosts"
    assert value(text, "StrictHostKeyChecking") == "yes"
    assert value(text, "PubkeyAuthentication") == "no"
    assert value(text, "HostKeyAlias") == config.known_hosts_line("kind key").split()[0]
    assert text.endswith("\n")


def test_what_the_shell_or_ssh_would_read_in_a_path_is_quoted() -> None:
    text = entries(folder="/da ta/100%h", path="/my files/50%n/$(x).toml", python="/opt/my py/python")
    proxy = value(text, "ProxyCommand")
    assert proxy == "'/opt/my py/python' -m kernelbridge --config '/my files/50%%n/$(x).toml' ssh-proxy %n"
    assert value(text, "UserKnownHostsFile") == '"/da ta/100%%h/ssh/known_hosts"'


@pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh")
def test_openssh_reads_it_as_it_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(entries("torch", folder="/da ta/100%h", path="/my files/50%n.toml"), "utf-8")
    argv = ["ssh", "-G", "-F", str(path), "kb-torch"]
    read = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout
    said = dict(line.partition(" ")[::2] for line in read.splitlines())
    assert said["user"] == "kernelbridge"
    assert said["hostkeyalias"] == "kernelbridge"
    # Tokens are put in later.
    assert said["proxycommand"] == "/py -m kernelbridge --config '/my files/50%%n.toml' ssh-proxy %n"
    assert said["stricthostkeychecking"] in ("true", "yes")
    assert said["pubkeyauthentication"] in ("false", "no")


# -- the user's config


def test_the_entries_are_a_file_of_their_own_and_are_included_first(folder: Path) -> None:
    (folder / "config").write_text("Host lab\n  User ada\n", "utf-8")
    own = config.write(ENTRIES, folder)
    assert (own.parent, own.read_text("utf-8"), own.stat().st_mode & 0o777) == (folder, ENTRIES, 0o600)
    lines = (folder / "config").read_text("utf-8").splitlines()
    assert lines[1] == INCLUDE
    assert lines[-2:] == ["Host lab", "  User ada"]


def test_who_has_no_config_gets_one_for_this_login_alone(tmp_path: Path) -> None:
    folder = tmp_path / "home" / ".ssh"
    folder.parent.mkdir()
    config.write(ENTRIES, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "config").stat().st_mode & 0o777 == 0o600
    assert config.includes((folder / "config").read_text("utf-8"))


def test_the_second_time_the_entries_alone_are_written_anew(folder: Path) -> None:
    config.write(ENTRIES, folder)
    before = (folder / "config").read_bytes(), (folder / "config").stat().st_ino
    config.write("other\n", folder)
    assert ((folder / "config").read_bytes(), (folder / "config").stat().st_ino) == before
    assert (folder / "kernelbridge.conf").read_text("utf-8") == "other\n"
    assert sorted(path.name for path in folder.iterdir()) == ["config", "kernelbridge.conf"]


@pytest.mark.parametrize(
    "content",
    [b"", b"Host lab\n", b"Host lab\r\n  User ada\r\n", b"# caf\xe9\nHost lab", b"\xef\xbb\xbfHost x\n", b"\n\n\x0b\n"],
)
def test_what_was_written_is_taken_out_again_byte_for_byte(folder: Path, content: bytes) -> None:
    path = folder / "config"
    path.write_bytes(content)
    path.chmod(0o644)
    config.write(ENTRIES, folder)
    assert path.read_bytes().endswith(content)
    assert path.read_bytes() != content
    assert config.remove(folder)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (content, 0o644)
    assert not (folder / "kernelbridge.conf").exists()
    assert not config.remove(folder)


@given(st.binary(max_size=200))
def test_any_config_is_as_before_once_it_is_taken_out(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("ssh")
    (folder / "config").write_bytes(content)
    config.write(ENTRIES, folder)
    config.remove(folder)
    assert (folder / "config").read_bytes() == content


def test_a_config_that_is_a_link_stays_one_and_keeps_its_mode(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "dotfiles" / "ssh config"
    kept.parent.mkdir()
    kept.write_text("Host lab\n", "utf-8")
    kept.chmod(0o640)
    (folder / "config").symlink_to("../dotfiles/ssh config")
    config.write(ENTRIES, folder)
    assert (folder / "config").is_symlink()
    assert INCLUDE in kept.read_text("utf-8")
    config.remove(folder)
    assert (folder / "config").is_symlink()
    assert (kept.read_text("utf-8"), kept.stat().st_mode & 0o777) == ("Host lab\n", 0o640)
    assert [path.name for path in kept.parent.iterdir()] == ["ssh config"]


def test_what_a_user_wrote_around_it_stays(folder: Path) -> None:
    config.write(ENTRIES, folder)
    path = folder / "config"
    path.write_text(f"Host before\n{path.read_text('utf-8')}Host after\n", "utf-8")
    assert config.remove(folder)
    assert path.read_text("utf-8") == "Host before\nHost after\n"


def test_where_there_is_nothing_nothing_is_removed_or_made(tmp_path: Path) -> None:
    assert not config.remove(tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "is_included"),
    [
        (INCLUDE, True),
        ("  include\tkernelbridge.conf", True),
        ("Include=kernelbridge.conf", True),
        ("Include = kernelbridge.conf", True),
        ('Include "/home/a b/.ssh/kernelbridge.conf"', True),
        ("Include ~/.ssh/other.conf ~/.ssh/kernelbridge.conf", True),
        ("# Include kernelbridge.conf", False),
        ("Include kernelbridge.conf.old", False),
        ("Include my-kernelbridge.conf", False),
        ("Include kernelbridge.conf/other", False),
        ("IncludeX kernelbridge.conf", False),
        ("IdentityFile kernelbridge.conf", False),
        ("Include", False),
        ("", False),
    ],
)
def test_a_config_that_includes_the_entries_is_known(line: str, is_included: bool) -> None:
    assert config.includes(line) == is_included
    assert config.includes(f"Host x\n{line}\r\nHost y\n") == is_included
