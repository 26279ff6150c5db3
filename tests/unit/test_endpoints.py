"""channels/endpoints.py: where this machine's endpoints are, and which ones are refused."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.channels import endpoints
from kernelbridge.channels.endpoints import EndpointInvalid, Endpoints


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
    assert (found.transport, found.ip, found.ports, found.folder) == ("tcp", "127.0.0.1", (0,) * 5, None)
    assert found.address("iopub") == "tcp://127.0.0.1:*"
    assert found.bound(dict(zip(endpoints.NAMES, range(1, 6), strict=True))).ports == (1, 2, 3, 4, 5)


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / f"kernelbridge-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    made: Endpoints = endpoints.made(runtime_folder=None)
    assert made.transport == "tcp"
