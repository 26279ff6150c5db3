"""How the relay gets into a container: the argv of its first process, and the line that this process reads.

Runs on this machine. The argv is constant: nothing of the user's stands in it. Code, launch and secrets go in the line.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, Dict, List, Mapping, Optional, Sequence

from . import wire
from .lifetime import EXIT_NO_ORDER

FOLDER = "/run/kernelbridge/relay"
# The journal's folder, in the volume that is made for it.
JOURNAL_NAME = "journal"
# How long a job's first process waits for its order.
ORDER_SECONDS = 600
_FILES = (
    "__init__.py",
    "__main__.py",
    "bridge.py",
    "child.py",
    "door.py",
    "fence.py",
    "gathering.py",
    "intake.py",
    "ipykernel_launcher.py",
    "journal.py",
    "lifetime.py",
    "line.py",
    "outbox.py",
    "replay.py",
    "sight.py",
    "spool.py",
    "talk.py",
    "trimming.py",
    "wire.py",
)

# sys.path[0] is the working folder, and a json.py of the user's there would be imported.
_OWN_PATH = """\
import sys
sys.path[:] = [p for p in sys.path if p]
"""
# Needs `order`.
_UNPACK = f"""\
import os
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
_BOOT = f"""\
{_OWN_PATH}\
import json
order = json.loads(sys.stdin.buffer.readline())
{_UNPACK}"""
# After intake.py. The folder is fresh: what another process left there is not ours to take up.
_JOB_BOOT = f"""
import json
os.umask(0o077)
os.makedirs({FOLDER!r})
order = take("{FOLDER}/order.sock", {ORDER_SECONDS})
if not order:
    print("no order came", file=sys.stderr)
    sys.exit({EXIT_NO_ORDER})
order = json.loads(order)
{_UNPACK}"""

# Waits for the relay, which is started at the same moment, and becomes the bridge.
_JOIN = f"""\
import os, time
until = time.monotonic() + 20
while not os.path.exists("{FOLDER}/relay.sock") and time.monotonic() < until:
    time.sleep(0.005)
exec(compile(open("{FOLDER}/kernelbridge_relay/bridge.py").read(), "bridge.py", "exec"))
"""
# Waits for a job's first process, which may start later than this one; bridge.py follows, which is not there yet.
_JOIN_ORDER = f"""\
import os, time
until = time.monotonic() + 20
names = ["{FOLDER}/order.sock", "{FOLDER}/kernelbridge_relay"]
while not any(map(os.path.exists, names)) and time.monotonic() < until:
    time.sleep(0.005)
"""


def boot_argv(python: str) -> List[str]:
    """Return the command of the container's main process."""
    return [python, "-c", _BOOT]


def bridge_argv(python: str) -> List[str]:
    """Return the command that joins an exec stream to the relay."""
    return [python, "-I", "-S", "-c", _JOIN, f"{FOLDER}/relay.sock"]


def job_boot_argv(python: str) -> List[str]:
    """Return the command of a job's main process: its order comes over a socket, by order_argv, and not over stdin.

    FOLDER must not be there yet, and the folder above it must be nobody else's. Exits with EXIT_NO_ORDER.
    """
    return [python, "-c", _OWN_PATH + _text("intake.py") + _JOB_BOOT]


def order_argv(python: str) -> List[str]:
    """Return the command that joins an exec stream to a job's main process: order_line goes in, `ok` and an end come.

    Nothing but an end comes when the order did not arrive, or when another one did before.
    """
    return [python, "-I", "-S", "-c", _JOIN_ORDER + _text("bridge.py"), f"{FOLDER}/order.sock"]


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def order_line(
    kernel: str,
    spawn: Dict[str, Any],
    terms: Dict[str, Any],
    journal: Dict[str, Any],
    *,
    gpus: Optional[Mapping[str, Any]] = None,
    ends_with_stdin: bool = False,
) -> bytes:
    """Return the line for the container's stdin: the relay's own code, the kernel's id, its first launch, its terms.

    `terms` are lifetime.Terms by name; `journal` has the folder of its file and its bound in bytes. `gpus` has the ids
    of the GPUs that the container should see, `locks` (the folder of their locks; empty for none) and maybe
    `look_seconds`; without it the container should see none. `ends_with_stdin`: the end of stdin ends the relay.
    """
    files = {name: _text(name) for name in _FILES}
    order: Dict[str, Any] = {"kernel": kernel, "folder": FOLDER, "spawn": spawn, "files": files}
    order.update(terms=terms, journal=journal)
    if gpus is not None:
        order["gpus"] = dict(gpus)
    if ends_with_stdin:
        order["ends_with_stdin"] = True
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
