"""hosts/transport/openssh/settings.py: what `ssh -G` prints becomes names, paths, times and switches."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.hosts.transport.openssh.settings import Settings, look_around, read_settings
from tests.unit.hosts.transport.openssh.around import around, settings


def printed(home: Path, **values: list[str]) -> Settings:
    return Settings(name="lab", values=values, defaults={"ciphers": ["a,b"]}, around=around(home))


def test_none_and_what_is_missing_are_the_same(tmp_path: Path) -> None:
    made = printed(tmp_path, proxycommand=["none"], connecttimeout=["none"], port=["2222"])
    assert (made.one("proxycommand"), made.one("bindaddress"), made.seconds("connecttimeout")) == (None, None, None)
    assert (made.host, made.port, made.user) == ("lab", 2222, "ada")


@pytest.mark.parametrize(("text", "expected"), [("yes", True), ("true", True), ("no", False), ("false", False)])
def test_a_switch_is_read_in_both_of_ssh_s_spellings(tmp_path: Path, text: str, expected: bool) -> None:
    assert printed(tmp_path, compression=[text]).is_on("compression") is expected


def test_only_what_the_config_has_changed_counts_as_changed(tmp_path: Path) -> None:
    assert printed(tmp_path, ciphers=["a,b"]).changed("ciphers") is None
    assert printed(tmp_path, ciphers=["a"]).changed("ciphers") == "a"


def test_the_name_in_known_hosts_is_the_alias_in_lower_case(tmp_path: Path) -> None:
    assert printed(tmp_path, hostname=["LAB.example"]).alias == "lab.example"
    assert printed(tmp_path, hostname=["LAB.example"], hostkeyalias=["Other"]).alias == "other"


def test_paths_are_expanded(tmp_path: Path) -> None:
    made = settings(tmp_path, "IdentityFile ~/a-%r", "IdentityFile none", "IdentityFile ${K}/b", environ={"K": "/k"})
    assert made.paths("identityfile") == [tmp_path / "a-ada", Path("/k/b")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a /b", ["/a", "/b"]),
        ("/my files/a /b", ["/my files/a", "/b"]),
        ("/dev/null", ["/dev/null"]),
        ("none", []),
    ],
)
def test_several_paths_stand_in_one_line_without_their_quotes(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = printed(tmp_path, userknownhostsfile=[text]).known_hosts_paths("userknownhostsfile")
    assert [str(path) for path in found] == expected


def test_the_home_is_the_one_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert look_around().home == tmp_path


async def test_without_ssh_the_files_are_read_by_ourselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host lab\n  HostName %h.example\n")
    made = await read_settings("lab", user="eve", port=7)
    assert (made.host, made.user, made.port) == ("lab.example", "eve", 7)
