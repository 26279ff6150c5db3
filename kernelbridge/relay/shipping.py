"""How the relay gets into a container: the argv of its first process, and the line that this process reads.

Runs on this machine. The argv is constant: nothing of the user's stands in it. Code, launch and secrets go in the line.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, Dict, List, Sequence

from . import wire

FOLDER = "/run/kernelbridge/relay"
_FILES = ("__init__.py", "__main__.py", "bridge.py", "child.py", "line.py", "replay.py", "talk.py", "wire.py")

# sys.path[0] is the working folder, and a json.py of the user's there would be imported.
_BOOT = f"""\
import sys
sys.path[:] = [p for p in sys.path if p]
import json, os
order = json.loads(sys.stdin.buffer.readline())
folder = {FOLDER!r}
os.umask(0o077)
os.makedirs(folder + "/kernelbridge_relay")
for name, text in order.pop("files").items():
    with open(folder + "/kernelbridge_relay/" + name, "w") as file:
        file.write(text)
sys.path.insert(0, folder)
os.umask(0o022)
from kernelbridge_relay.__main__ import main
main(order)
"""


# Waits for the relay, which is started at the same moment, and becomes the bridge.
_JOIN = f"""\
import os, time
until = time.monotonic() + 20
while not os.path.exists("{FOLDER}/relay.sock") and time.monotonic() < until:
    time.sleep(0.005)
exec(compile(open("{FOLDER}/kernelbridge_relay/bridge.py").read(), "bridge.py", "exec"))
"""


def boot_argv(python: str) -> List[str]:
    """Return the command of the container's main process."""
    return [python, "-c", _BOOT]


def bridge_argv(python: str) -> List[str]:
    """Return the command that joins an exec stream to the relay."""
    return [python, "-I", "-S", "-c", _JOIN, f"{FOLDER}/relay.sock"]


def order_line(kernel: str, spawn: Dict[str, Any]) -> bytes:
    """Return the line for the container's stdin: the relay's own code, the kernel's id, its first launch."""
    here = resources.files(__package__)
    files = {name: here.joinpath(name).read_text("utf-8") for name in _FILES}
    order = {"kernel": kernel, "folder": FOLDER, "spawn": spawn, "files": files}
    return json.dumps(order).encode() + b"\n"


def spawn_order(
    *, launch: int, session: str, env: Dict[str, str], cwd: str, arguments: Sequence[str] = ()
) -> Dict[str, Any]:
    """Return the order to start a Python kernel; `env` holds what the kernel process alone may see, secrets too."""
    argv = ["{python}", "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    return {
        "do": "spawn",
        "launch": launch,
        "session": session,
        # The history would write each cell to the container's disk, which is the host's.
        "argv": [*argv, "--Session.session={session}", "--HistoryManager.hist_file=:memory:", *arguments],
        "env": env,
        "cwd": cwd,
        "needs": ["ipykernel", "zmq"],
    }


def hello(
    *, kernel: str, owner: str, stream: str, received: List[int], ask: str = "attach", take: bool = False
) -> bytes:
    """Return a HELLO frame; `ask` is attach, logs or status."""
    said = dict(kernel=kernel, owner=owner, stream=stream, received=received, ask=ask, take=take, version=wire.VERSION)
    return wire.frame(wire.HELLO, json.dumps(said).encode())
