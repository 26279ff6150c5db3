"""Kernel specs as VS Code finds them: the one that `kernelbridge install` wrote, and the stock one of this Python."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rig.daemon import run
from tests.rig.laptop import Laptop


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a client reads from one kernel.json."""

    name: str
    display_name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    interrupt_mode: str = "message"

    def settings(self, **more: Any) -> dict[str, Any]:
        """For vscode_raw.mjs; `env` in `more` is added to the spec's own."""
        env = {**self.env, **more.pop("env", {})}
        return {
            "argv": list(self.argv),
            "env": env,
            "kernel_name": self.name,
            "interrupt_mode": self.interrupt_mode,
            # VS Code begins at 9000; two of them that look at the same moment find the same ports free.
            "first_port": 9000 + 10 * random.randrange(2000),
            **more,
        }


def stock_spec() -> Spec:
    """ipykernel of this Python, no container: proves the clients, not us."""
    return Spec(
        name="python3",
        display_name="Python 3 (ipykernel)",
        argv=(sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        env={"PYDEVD_IPYTHON_COMPATIBLE_DEBUGGING": "1"},
    )


def installed_spec(laptop: Laptop, environment: str = "test") -> Spec:
    """The spec of one environment, after `kernelbridge install` wrote it into the user's own folder."""
    run([sys.executable, "-m", "kernelbridge", "install"], env=laptop.env, seconds=60)
    name = f"kernelbridge-{environment}"
    path = Path(laptop.data_dir) / "kernels" / name / "kernel.json"
    written = json.loads(path.read_text())
    return Spec(
        name=name,
        display_name=written["display_name"],
        argv=tuple(written["argv"]),
        env=written.get("env", {}),
        interrupt_mode=written["interrupt_mode"],
    )
