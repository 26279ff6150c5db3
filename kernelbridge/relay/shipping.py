"""How the relay gets into a container: the argv of its first process, and the line that this process reads.

Runs on this machine. The argv is constant: nothing of the user's stands in it. Code, launch and secrets go in the line.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, Dict, List, Sequence

from . import wire

FOLDER = "/run/kernelbridge/relay"
# The journal's folder, in the volume that is made for it.
JOURNAL_NAME = "journal"
_FILES = (
    "__init__.py",
    "__main__.py",
    "bridge.py",
    "child.py",
    "door.py",
    "gathering.py",
    "ipykernel_launcher.py",
    "journal.py",
    "lifetime.py",
    "line.py",
    "outbox.py",
    "replay.py",
    "spool.py",
    "talk.py",
    "trimming.py",
    "wire.py",
)

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


def order_line(kernel: str, spawn: Dict[str, Any], terms: Dict[str, Any], journal: Dict[str, Any]) -> bytes:
    """Return the line for the container's stdin: the relay's own code, the kernel's id, its first launch, its terms.

    `terms` are lifetime.Terms by name; `journal` has the folder of its file and its bound in bytes.
    """
    here = resources.files(__package__)
    files = {name: here.joinpath(name).read_text("utf-8") for name in _FILES}
    order = {"kernel": kernel, "folder": FOLDER, "spawn": spawn, "files": files, "terms": terms, "journal": journal}
    return json.dumps(order).encode() + b"\n"


def spawn_order(
    *, launch: int, session: str, env: Dict[str, str], cwd: str, arguments: Sequence[str] = ()
) -> Dict[str, Any]:
    """Return the order to start a Python kernel; `env` holds what the kernel process alone may see, secrets too."""
    starter = f"{FOLDER}/kernelbridge_relay/ipykernel_launcher.py"
    argv = ["{python}", "-Xfrozen_modules=off", starter, "-f", "{connection_file}"]
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
    *, kernel: str, owner: str = "", who: str = "", stream: str = "", received: Sequence[int] = (), **wish: Any
) -> bytes:
    """Return a HELLO frame; `wish` is ask (logs or status; else the kernel itself), take, claim."""
    said = dict(wish, kernel=kernel, owner=owner, who=who, stream=stream, received=received, version=wire.VERSION)
    return wire.frame(wire.HELLO, json.dumps(said).encode())


def goodbye(*, end: bool, claim: str = "") -> bytes:
    """Return a GOODBYE frame; `end` unless the kernel is to run on without its owner."""
    return wire.frame(wire.GOODBYE, json.dumps({"end": end, "claim": claim}).encode())
