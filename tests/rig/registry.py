"""A registry in the made machine, with one small image that is no kernel's; Docker takes HTTP on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rig.daemon import RigError
from tests.rig.lab import Lab
from tests.rig.registry_process import NAME

PORT = 5055


@contextmanager
def registry(lab: Lab, *, login: str = "") -> Iterator[str]:
    """The registry runs; yields its image's name. `login` is `user:password`, without which it tells nothing."""
    # As text: what lies in this machine's /tmp is not seen from inside.
    script = Path(__file__).with_name("registry_process.py").read_text()
    daemon = lab.start("registry", ["python3", "-I", "-c", script, str(PORT), login])
    try:
        daemon.wait_until(lambda: _answers(lab), "the registry's first answer", 20)
        yield f"127.0.0.1:{PORT}/{NAME}:1"
    finally:
        daemon.stop(seconds=5)


def _answers(lab: Lab) -> bool:
    code = f"import socket; socket.create_connection(('127.0.0.1', {PORT}), 1).close()"
    try:
        lab.run(["python3", "-I", "-c", code])
    except RigError:
        return False
    return True
