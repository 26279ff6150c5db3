"""hosts/forwards/peer_login.py: whose the other end of a loopback connection is."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from kernelbridge.hosts.forwards import peer_login

OWN, PEER = ("127.0.0.1", 6006), ("127.0.0.1", 40000)
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LITTLE = pytest.mark.skipif(sys.byteorder != "little", reason="the lines below are those of a little-endian machine")


def line(here: str, there: str, *, state: str = "01", uid: int = 1000, inode: int = 77) -> str:
    return f"   1: {here} {there} {state} 00000000:00000000 00:00000000 00000000  {uid:4}        0 {inode} 1 x 20 4\n"


CLIENT = ("0100007F:9C40", "0100007F:1776")
SERVER = ("0100007F:1776", "0100007F:9C40")
MAPPED = ("0000000000000000FFFF00000100007F:9C40", "0000000000000000FFFF00000100007F:1776")


@LITTLE
@pytest.mark.parametrize(
    ("lines", "uid"),
    [
        ([line(*SERVER, uid=5), line(*CLIENT)], 1000),
        ([line(*SERVER, uid=5)], None),
        ([line(*MAPPED, uid=7)], 7),
        ([line(*CLIENT, uid=0)], 0),
        # Closed: what waits for its end is root's for the table, whoever's it was.
        ([line(*CLIENT, state="06", uid=0, inode=0)], None),
        ([line("0100007F:9C41", CLIENT[1])], None),
        ([line(CLIENT[0], "0200007F:1776")], None),
        (["garbage\n", "1 2 3 4 5 6 7 8 9 10\n"], None),
        ([], None),
    ],
)
def test_the_owner_is_who_has_the_clients_socket(lines: list[str], uid: int | None) -> None:
    assert peer_login.owner(HEAD + "".join(lines), OWN, PEER) == uid


def decided(*looks: str | None, wsl: bool = False) -> bool:
    told = list(looks)
    return peer_login.may_connect(
        OWN, PEER, tables=lambda: told.pop(0), from_outside=lambda: wsl, sleep=lambda seconds: None
    )


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's tables")
@LITTLE
def test_this_login_and_root_may_connect_and_no_other() -> None:
    assert decided(line(*CLIENT, uid=os.getuid()))
    assert decided(line(*CLIENT, uid=0))
    assert not decided(line(*CLIENT, uid=os.getuid() + 1))
    # One look may lack a line.
    assert decided("", line(*CLIENT, uid=os.getuid()))
    # Who has left already may have been anybody.
    assert not decided("", "", "")
    assert decided("", "", "", wsl=True)
    # Where the system tells nothing nobody can be refused.
    assert decided(None)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's tables")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_real_connection_of_ours_is_found(family: socket.AddressFamily) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            client = socket.socket(family)
            client.connect((("::ffff:" if family == socket.AF_INET6 else "") + "127.0.0.1", listener.getsockname()[1]))
        except OSError:
            pytest.skip("no IPv6 here")
        with client, listener.accept()[0] as server:
            tables = peer_login.read_tables()
            assert tables is not None
            assert peer_login.owner(tables, server.getsockname(), server.getpeername()) == os.getuid()
            assert peer_login.may_connect(server.getsockname(), server.getpeername())
            own, peer = server.getsockname(), server.getpeername()
        assert not peer_login.may_connect(own, peer) or peer_login.is_wsl()
