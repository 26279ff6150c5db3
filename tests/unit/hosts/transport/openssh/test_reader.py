"""hosts/transport/openssh/reader.py: config files are read as OpenSSH's client reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.hosts.transport.openssh.reader import (
    ConfigReader,
    Values,
    aliases,
    matches,
    seconds_of,
    split_line,
    words_of,
)
from tests.unit.hosts.transport.openssh.around import around


def read(home: Path, text: str, *, user: str | None = None, port: int | None = None, name: str = "lab") -> Values:
    config = home / ".ssh" / "config"
    config.parent.mkdir(exist_ok=True)
    config.write_bytes(text.encode("utf-8", "surrogateescape"))
    return ConfigReader(name, user=user, port=port, around=around(home)).read([config])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  User ada", ("user", "ada")),
        ("PORT=22", ("port", "22")),
        ("Port =  22  ", ("port", "22")),
        ('"Port" 22', ("port", "22")),
        ("ProxyCommand nc -X 5 %h %p # x", ("proxycommand", "nc -X 5 %h %p # x")),
        ("# User ada", ("", "")),
        ("", ("", "")),
        ("User", ("user", "")),
    ],
)
def test_a_line_is_a_keyword_and_the_rest(line: str, expected: tuple[str, str]) -> None:
    assert split_line(line) == expected


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("a b", ["a", "b"]),
        ('"a b" c', ["a b", "c"]),
        ("'a b'", ["a b"]),
        ('a" b"c', ["a bc"]),
        (r"a\ b", ["a b"]),
        (r'"a\"b"', ['a"b']),
        (r"C:\Users\ada", [r"C:\Users\ada"]),
        ("a # b", ["a"]),
        ("a#b", ["a#b"]),
        ('"#a"', ["#a"]),
        ("", []),
    ],
)
def test_the_rest_is_split_as_openssh_splits_it(rest: str, expected: list[str]) -> None:
    assert words_of(rest) == expected


@pytest.mark.parametrize("rest", ['"a', "'a b", 'a"b'])
def test_an_open_quote_is_refused(rest: str) -> None:
    with pytest.raises(ValueError, match="a quote is not closed"):
        words_of(rest)


@pytest.mark.parametrize(("text", "expected"), [("90", 90), ("10s", 10), ("1m30s", 90), ("2H", 7200), ("1w", 604800)])
def test_times_have_units(text: str, expected: int) -> None:
    assert seconds_of(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1x", "-1", "1.5"])
def test_what_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["lab"], True),
        (["l?b"], True),
        (["LAB"], False),
        (["l*", "!lab"], False),
        (["!lab"], False),
        (["!other"], False),
        (["other"], False),
        (["[l]ab"], False),
        (["*"], True),
    ],
)
def test_patterns_match_a_name_as_openssh_s_do(patterns: list[str], expected: bool) -> None:
    assert matches("lab", patterns) is expected


def test_the_first_value_counts_and_lists_grow(tmp_path: Path) -> None:
    values = read(
        tmp_path,
        "Host lab\n User grace\n IdentityFile ~/a\nHost other\n Port 1\nHost l*\n User x\n Port 2\n IdentityFile ~/b\n",
    )
    assert (values["user"], values["port"], values["identityfile"]) == (["grace"], ["2"], ["~/a", "~/b"])


def test_of_environment_variables_the_first_line_counts_and_in_it_the_first_of_each(tmp_path: Path) -> None:
    values = read(tmp_path, "Host other\n SetEnv A=0\nHost lab\n SetEnv A=1 B=2 A=3\nHost *\n SetEnv A=4 C=5\n")
    assert values["setenv"] == ["A=1", "B=2"]


def test_a_name_with_a_minus_takes_away_variables_that_are_sent(tmp_path: Path) -> None:
    assert read(tmp_path, "SendEnv LANG LC_*\nSendEnv -LC* FOO\n")["sendenv"] == ["LANG", "FOO"]


def test_what_stands_behind_a_jump_host_is_none(tmp_path: Path) -> None:
    assert read(tmp_path, "ProxyJump ada@jump:2,two # the door\n")["proxyjump"] == ["ada@jump:2,two"]


def test_a_host_name_is_in_small_letters_however_it_is_written(tmp_path: Path) -> None:
    assert read(tmp_path, "HostName BOX.%h\n", name="Lab")["hostname"] == ["box.lab"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Host Lab", True),
        ("Host lab", False),
        ("Match host lab", True),
        ("Match host LAB", True),
        ("Match originalhost lab", True),
        ("Match localuser ada", True),
        ("Match localuser ADA", False),
    ],
)
def test_hosts_of_a_match_fit_in_any_case_and_nothing_else_does(tmp_path: Path, line: str, expected: bool) -> None:
    assert (read(tmp_path, f"{line}\n Port 7\n", name="Lab")["port"] == ["7"]) is expected


def test_a_carriage_return_is_a_blank_and_ends_no_line(tmp_path: Path) -> None:
    values = read(tmp_path, "Host\rlab\r\n Port 7\r\n")
    assert values["port"] == ["7"]


def test_what_the_address_says_counts_most(tmp_path: Path) -> None:
    values = read(tmp_path, "User grace\nPort 1\nMatch user eve\n HostName found\n", user="eve", port=7)
    assert (values["user"], values["port"], values["hostname"]) == (["eve"], ["7"], ["found"])


def test_without_a_config_all_is_as_usual(tmp_path: Path) -> None:
    values = ConfigReader("lab", user=None, port=None, around=around(tmp_path)).read([tmp_path / "none"])
    assert (values["user"], values["port"], values["hostname"]) == (["ada"], ["22"], ["lab"])
    assert "~/.ssh/id_ed25519" in values["identityfile"]


def test_a_host_name_may_have_the_name_in_it(tmp_path: Path) -> None:
    assert read(tmp_path, "HostName %h.example.%%\n")["hostname"] == ["lab.example.%"]


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        ("all", True),
        ("host lab", True),
        ("host=lab", True),
        ("!host lab", False),
        ("originalhost l*,!lab", False),
        ("localuser ada", True),
        ("user ada host lab", True),
        ("user eve", False),
        ('exec "test %n = lab"', True),
        ('!exec "false"', True),
        ("canonical", False),
        ("final", False),
        ("sessiontype shell", False),
        ("tagged x", False),
        ("weather sunny", False),
        ("host", False),
    ],
)
def test_match_is_in_force_when_all_of_it_holds(tmp_path: Path, criteria: str, expected: bool) -> None:
    values = read(tmp_path, f"Match {criteria}\n Port 7\n")
    assert (values["port"] == ["7"]) is expected


def test_a_command_is_not_asked_where_the_rest_of_the_match_fails_already(tmp_path: Path) -> None:
    read(tmp_path, f'Match host other exec "touch {tmp_path}/asked"\n Port 7\n')
    assert not (tmp_path / "asked").exists()


def test_an_included_file_ends_no_block(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "a.conf").write_text("Host other\n Port 1\n")
    (tmp_path / ".ssh" / ".hidden.conf").write_bytes(b"\0\xff")
    values = read(tmp_path, "Host other\n Include *.conf\nHost lab\n Include *.conf\n Port 7\n")
    assert values["port"] == ["7"]


def test_files_that_include_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="include each other"):
        read(tmp_path, "Include ~/.ssh/config\n")


@pytest.mark.parametrize(
    "line", ["Port x", "Port 0", "ConnectTimeout soon", "Compression perhaps", "User", 'User "a', "AddressFamily seven"]
)
def test_a_bad_line_is_named_and_concerns_its_own_host_alone(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match=r"config line 2: "):
        read(tmp_path, f"Host lab\n {line}\n")
    assert read(tmp_path, f"Host other\n {line}\n", name="lab")["user"] == ["ada"]


def test_bytes_that_are_no_text_harm_nobody(tmp_path: Path) -> None:
    assert read(tmp_path, "# B\udcfcro\nPort 7\n")["port"] == ["7"]


def test_aliases_are_the_names_of_host_lines_in_order_those_of_included_files_too(tmp_path: Path) -> None:
    folder = tmp_path / ".ssh"
    (folder / "more").mkdir(parents=True)
    (folder / "config").write_text(
        "Host lab  gpu2 *.x\n  User ada\nHost !no b?\nInclude more/* none\nMatch host x\n"
        "Host lab last .host machine/.host\nHost 'open\n"
    )
    (folder / "more/1").write_text("Host=inner # Host no\nInclude config\n")
    paths = [folder / "config", tmp_path / "none"]
    assert aliases(around(tmp_path), paths) == ["lab", "gpu2", "inner", "last"]
