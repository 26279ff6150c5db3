"""A real jupyter_server, alone or under JupyterLab, on loopback with a token and folders of its own."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.clients.ports import free_port
from tests.rig.daemon import SLOW

# Lab calls nobody: no news, no update check, no list of extensions.
QUIET = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": False}
# Its theme is the browser's.
ADAPTIVE = {"adaptive-theme": True}
# Alone it is what a server is where no Lab is installed; language servers, for which npm is asked, nobody here wants.
WITHOUT_LAB = {"jupyterlab": False, "notebook_shim": False}
WITHOUT_LANGUAGES = {"jupyter_lsp": False}


class JupyterServer:
    """Runs from construction to `close`. `folder` is fresh and gets the server's config, data, runtime and root."""

    def __init__(
        self,
        folder: Path,
        *,
        lab: bool,
        env: dict[str, str] | None = None,
        args: list[str] | None = None,
        python: str = sys.executable,
        root: Path | None = None,
        machine: Sequence[str] = (),
    ) -> None:
        """`machine` are the words that run a command on another machine: see machines.py."""
        self.folder = folder
        self.root = root or folder / "root"
        self.token = secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{free_port()}/"
        self.log_path = folder / "server.log"
        self.root.mkdir(parents=True, exist_ok=root is not None)
        settings = folder / "lab" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(QUIET))
        (settings / "themes.jupyterlab-settings").write_text(json.dumps(ADAPTIVE))
        command = [*machine, python, "-m", "jupyterlab" if lab else "jupyter_server", "--no-browser", "--allow-root"]
        command += [
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={self.url.rsplit(':', 1)[1].strip('/')}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={self.root}",
        ]
        left_out = WITHOUT_LANGUAGES if lab else WITHOUT_LANGUAGES | WITHOUT_LAB
        command.append(f"--ServerApp.jpserver_extensions={left_out}")
        if lab:
            command += [
                "--LabApp.extension_manager=readonly",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ]
        self._log = self.log_path.open("w")
        self.process = subprocess.Popen(
            [*command, *(args or [])], env=self._environment(env or {}), stdout=self._log, stderr=subprocess.STDOUT
        )

    def _environment(self, env: dict[str, str]) -> dict[str, str]:
        own = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "lab",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
        }
        return {
            **os.environ,
            **{key: str(self.folder / name) for key, name in own.items()},
            "JUPYTER_TOKEN": self.token,
            **env,
        }

    @property
    def log(self) -> str:
        """The last lines that the server wrote."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-60:])

    def get(self, path: str, *, timeout: float = 30) -> Any:
        """The JSON that the server's REST answers."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)

    def wait_ready(self, *, timeout: float = 40) -> None:
        """Return once the REST API answers."""
        limit = time.monotonic() + timeout * SLOW
        while True:
            try:
                self.get("api/status", timeout=5)
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
                if self.process.poll() is not None or time.monotonic() > limit:
                    raise AssertionError(
                        f"jupyter_server did not answer within {timeout * SLOW} s: {error}\n{self.log}"
                    ) from error
                time.sleep(0.2)

    def close(self, *, timeout: float = 30) -> None:
        """Stop the server, and with it the kernels that are its own. Safe to call twice."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout * SLOW)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self._log.close()

    def __enter__(self) -> Self:
        self.wait_ready()
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self.close()
        if kind is not None:
            print(f"-- {self.log_path}\n{self.log}")

    def __repr__(self) -> str:
        return f"<JupyterServer {self.url} exit={self.process.poll()}>"
