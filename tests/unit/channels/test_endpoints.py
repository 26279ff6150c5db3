"""channels/endpoints.py: where this machine's endpoints are, and which ones are refused."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.channels import endpoints
from kernelbridge.channels.endpoints import EndpointInvalid


def asked_for(**changes: Any) -> dict[str, Any]:
    ports = {f"{name}_port": 9000 + number for number, name in enumerate(endpoints.NAMES)}
    return {**ports, "ip": "127.0.0.1", "transport": "tcp", "key": "k", "signature_scheme": "hmac-sha256", **changes}


def test_a_connection_file_says_where_each_channel_is() -> None:
    found = endpoints.given(asked_for())
    assert [found.address(name) for name in endpoints.NAMES] == [
        f"tcp://127.0.0.1:{port}" for port in range(9000, 9005)
    ]
    assert found.connection_info() == {**asked_for(), "key": b"k"}
    assert endpoints.given(asked_for(ip="localhost")).ip == "localhost"
    assert endpoints.given(asked_for(transport="ipc", ip="/run/k")).address("hb") == "ipc:///run/k-9004"
    found.publish()  # Nothing to do where the front-end chose the names,
    found.remove()  # and nothing to remove.


@pytest.mark.parametrize(
    ("connection", "why"),
    [
        (asked_for(ip="0.0.0.0"), "the address 0.0.0.0 is not this machine's loopback"),
        (asked_for(transport="udp", ip="0.0.0.0"), "there is no transport udp"),
        (asked_for(signature_scheme="hmac-md5"), "the signature scheme is not hmac-sha256"),
        (asked_for(key=""), "without a key"),
        (asked_for(key=None), "without a key"),
        (asked_for(shell_port="x"), "lacks ports"),
        (asked_for(shell_port=float("inf")), "lacks ports"),
        (asked_for(shell_port=[1]), "lacks ports"),
        (asked_for(shell_port=70000), "between 0 and 65535"),
        (asked_for(hb_port=-4), "between 0 and 65535"),
        (asked_for(transport="ipc", ip="/run/k\0x"), "is no address"),
        (asked_for(transport="ipc", ip="/run/k\nx"), "is no address"),
        (asked_for(transport="ipc", ip="@k"), "is no address"),
        (asked_for(transport="ipc", ip="*"), "is no address"),
        ({"key": "k"}, "lacks ports"),
        ([1], "it is no table"),
    ],
)
def test_a_connection_file_that_asks_for_something_else_is_refused(connection: object, why: str) -> None:
    with pytest.raises(EndpointInvalid, match=why):
        endpoints.given(connection)


def test_endpoints_of_our_own_are_in_a_folder_that_others_cannot_enter(tmp_path: Path) -> None:
    found = endpoints.made(runtime_folder=str(tmp_path))
    assert found.folder is not None
    assert found.folder.parent == tmp_path / "kernelbridge"
    assert found.folder.stat().st_mode & 0o777 == 0o700
    assert found.address("shell") == f"ipc://{found.folder}/s-1"
    assert len(found.key) == 64
    assert endpoints.made(runtime_folder=str(tmp_path)).key != found.key
    found.publish()
    found.publish()  # Jupyter calls for it after each restart.
    assert Path(f"{found.ip}-3").readlink() == found.folder / "s-3"
    found.remove()
    found.remove()
    assert not found.folder.exists()


def test_a_folder_that_others_can_enter_or_whose_path_is_too_long_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = tmp_path / f"kernelbridge-{os.getuid()}"
    (tmp_path / "kernelbridge").mkdir(mode=0o755)
    found = endpoints.made(runtime_folder=str(tmp_path))
    assert found.folder is not None
    assert found.folder.parent == ours
    assert endpoints.made(runtime_folder=str(tmp_path / ("x" * 100))).folder is not None
    ours.chmod(0o755)
    found = endpoints.made(runtime_folder=None)
    assert found.folder is not None
    assert found.folder.parent.parent in (tmp_path, Path("/tmp"))
    assert found.folder.parent.name.startswith(f"kernelbridge-{os.getuid()}-")
    assert found.folder.parent.stat().st_mode & 0o777 == 0o700
    again = endpoints.made(runtime_folder=None)
    assert again.folder is not None
    assert again.folder.parent == found.folder.parent, "one such folder is enough"
    found.remove()
    again.remove()
    assert not found.folder.parent.exists()


def test_where_no_folder_can_be_had_others_may_read_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endpoints, "_private_folder", lambda runtime_folder: None)
    found = endpoints.made(runtime_folder=None)
    assert (found.transport, found.ip, found.ports, found.folder) == ("tcp", "127.0.0.1", (0,) * 5, None)
    assert found.address("iopub") == "tcp://127.0.0.1:*"
    assert found.bound(dict(zip(endpoints.NAMES, range(1, 6), strict=True))).ports == (1, 2, 3, 4, 5)
    assert "other logins of this machine can read the kernel's output" in caplog.text


@pytest.mark.parametrize("planted", ["a link", "a file", "an open folder", "somebody's folder"])
def test_what_another_login_makes_first_is_not_used(
    planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place, elsewhere = tmp_path / f"kernelbridge-{os.getuid()}", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if planted == "a link":
        place.symlink_to(elsewhere)
    elif planted == "a file":
        place.touch()
    else:
        place.mkdir(mode=0o777 if planted == "an open folder" else 0o700)
    if planted == "somebody's folder":
        if os.getuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(place, 12345, 12345)
    elif planted == "an open folder":
        place.chmod(0o777)
    made = endpoints.made(runtime_folder=None)
    assert made.transport == "ipc"
    assert made.folder is not None
    assert made.folder.parent not in (place, elsewhere)
    assert made.folder.parent.stat().st_mode & 0o777 == 0o700
    assert list(elsewhere.iterdir()) == []
    made.remove()


def test_folders_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    base = tmp_path / "kernelbridge"
    living, starting, dead, old = (endpoints.made(runtime_folder=str(tmp_path)).folder for _ in range(4))
    assert living and starting and dead and old
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as gone:
        listener.bind(str(living / "s-1"))
        listener.listen(1)
        gone.bind(str(dead / "s-1"))
        gone.listen(1)
        gone.close()
        os.utime(old, (1.0, 1.0))
        new = endpoints.made(runtime_folder=str(tmp_path)).folder
        assert new is not None
        assert set(base.iterdir()) == {living, starting, new}
