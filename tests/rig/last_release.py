"""Start a kernel as another release made it: its container and its relay, of what record_release.py wrote down."""

from __future__ import annotations

import json
import lzma
import socket
from pathlib import Path
from typing import Any

from tests.rig import record_release
from tests.rig.whole import Rig

LAST = "0.1.0"
_FOLDER = Path(__file__).parent / "releases"


def last_release() -> dict[str, Any]:
    """What the last release gave an engine."""
    found: dict[str, Any] = json.loads(lzma.decompress((_FOLDER / f"{LAST}.json.xz").read_bytes()))
    return found


def next_release(version: str) -> dict[str, Any]:
    """The same of a release to come, whose relay speaks a later version of the stream."""
    made: dict[str, Any] = json.loads(json.dumps(record_release.recorded()))
    made["container"]["Labels"]["kernelbridge.version"] = made["order"]["release"] = made["version"] = version
    files = made["order"]["files"]
    written = files["protocol/frames.py"].replace("\nVERSION = 2\n", "\nVERSION = 3\n")
    assert written != files["protocol/frames.py"]
    files["protocol/frames.py"] = written
    return made


def start(rig: Rig, release: dict[str, Any], *, kernel_id: str, owner: str) -> None:
    """Start the kernel; `owner` is the installation that made it."""
    text = json.dumps({"container": release["container"], "order": release["order"]})
    names = {record_release.KERNEL: kernel_id, record_release.IMAGE: rig.image, record_release.OWNER: owner}
    for name, value in names.items():
        text = text.replace(name, value)
    made = json.loads(text)
    with rig.engine.client() as client:
        api: Any = client.api
        container = api.create_container_from_config(made["container"], name=f"kernelbridge-{kernel_id}")["Id"]
        with socket.socket(socket.AF_UNIX) as stdin:
            # Attached before the start, as kernelbridge does it.
            stdin.connect(str(rig.engine.socket))
            ask = f"POST /containers/{container}/attach?stdin=1&stream=1 HTTP/1.1"
            stdin.sendall(f"{ask}\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode())
            assert b" 101 " in stdin.recv(4096)
            api.start(container)
            stdin.sendall(json.dumps(made["order"]).encode() + b"\n")
