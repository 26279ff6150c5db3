"""A Jupyter server for the suites that want one: alone, or with JupyterLab as its own tests configure it."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.clients.ports import free_port
from tests.rig.daemon import RigError, tail, wait_until

_ALONE = """\
c.ServerApp.disable_check_xsrf = True
c.IdentityProvider.token = ""
c.ServerApp.jpserver_extensions = {"jupyterlab": False, "notebook_shim": False}
"""
_LAB = """\
from jupyterlab.galata import configure_jupyter_server
configure_jupyter_server(c)
c.LabApp.extension_manager = "readonly"
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.ServerApp.jpserver_extensions = {"jupyter_lsp": False}
"""
_BOTH = """\
c.ServerApp.ip = "127.0.0.1"
c.ServerApp.port = %d
c.ServerApp.port_retries = 0
c.ServerApp.open_browser = False
c.ServerApp.allow_root = True
c.ServerApp.root_dir = %r
"""


@contextmanager
def server(folder: Path, python: Path | str, *, env: Mapping[str, str], has_lab: bool) -> Iterator[str]:
    """Run it in `folder`; yields its address, `127.0.0.1:PORT`. Without a token, as these suites want it."""
    root, port = folder / "root", free_port()
    root.mkdir(exist_ok=True)
    config, log = folder / "server_config.py", folder / "server.log"
    config.write_text((_LAB if has_lab else _ALONE) + _BOTH % (port, str(root)))
    words = [str(python), "-m", "jupyterlab" if has_lab else "jupyter_server", "--config", str(config)]
    environ = {name: value for name, value in env.items() if name != "JUPYTER_TOKEN"}
    with log.open("a") as sink:
        process = subprocess.Popen(
            words, cwd=root, env=environ, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
        )
    address = f"127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(address, process, log), f"the server of {folder.name}", 120)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(address: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise RigError(f"the server ended with {process.returncode}:\n{tail(log)}")
    try:
        with urllib.request.urlopen(f"http://{address}/api/status", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
