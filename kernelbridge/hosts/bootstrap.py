"""Ship the relay into a container: write the argv of its first process, and the line that this process reads. Pure.

The argv is constant: nothing of the user's stands in it. Code, launch and secrets go in the line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from kernelbridge import __version__
from kernelbridge.config.container_paths import JOURNAL_FOLDER, LOCKS_FOLDER, RUN_FOLDER
from kernelbridge.errors import ImageUnusable
from kernelbridge.protocol.exit_codes import EXIT_NO_ORDER, EXIT_OLD_PYTHON, OLD_PYTHON_SAYS
from kernelbridge.protocol.port_mux import NO_FORWARDER

if TYPE_CHECKING:
    from kernelbridge.config.schema import Environment  # loads pydantic

RELAY_FOLDER = f"{RUN_FOLDER}/relay"
# The journal's folder, in the volume that is made for it.
JOURNAL_NAME = "journal"
# How long a job's first process waits for its order.
ORDER_SECONDS = 600
# What is shipped: whole folders, so that no file can be forgotten.
_FOLDERS = ("protocol", "relay", "relay/beside", "relay/gpus", "relay/process")
# Run by their paths, also by another version that joins or restarts the kernel: these paths stay.
_BY_PATH = ("bridge.py", "ipykernel_launcher.py")
_HISTORY = "--HistoryManager.hist_file"

# The first lines that run in an image, in the Python of whoever made it: this, and all that stands behind it, parses in
# 2.7 too. It says what it is and ends, for what comes after it would not run. Besides: sys.path[0] is the working
# folder, and a json.py of the user's there would be imported.
_OWN_PATH = f"""\
import sys
if sys.version_info < (3, 8):
    sys.stderr.write("{OLD_PYTHON_SAYS}%d.%d\\n" % sys.version_info[:2])
    sys.exit({EXIT_OLD_PYTHON})
sys.path[:] = [p for p in sys.path if p]
"""
# Needs `order`.
_UNPACK = f"""\
import os
folder = {RELAY_FOLDER!r}
os.umask(0o077)
for name, text in order.pop("files").items():
    path = folder + "/kernelbridge_relay/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
sys.path.insert(0, folder)
os.umask(0o022)
from kernelbridge_relay.relay.__main__ import main
main(order)
"""
_BOOT = f"""\
{_OWN_PATH}\
import json
order = json.loads(sys.stdin.buffer.readline())
{_UNPACK}"""
# After job_boot.py, and like that in quotes: an old Python does not parse it. The folder is fresh: what another process
# left there is not ours to take up.
_JOB_BOOT = f"""
import json
os.umask(0o077)
os.makedirs({RELAY_FOLDER!r})
order = take("{RELAY_FOLDER}/order.sock", {ORDER_SECONDS})
if not order:
    print("no order came", file=sys.stderr)
    sys.exit({EXIT_NO_ORDER})
order = json.loads(order)
{_UNPACK}"""

# Waits for the relay, which is started at the same moment, and becomes the bridge.
_JOIN = f"""\
import os, time
until = time.monotonic() + 20
while not os.path.exists("{RELAY_FOLDER}/relay.sock") and time.monotonic() < until:
    time.sleep(0.005)
exec(compile(open("{RELAY_FOLDER}/kernelbridge_relay/bridge.py").read(), "bridge.py", "exec"))
"""
# Runs a program of the relay's code beside it.
_BESIDE = f"""\
import sys
sys.path.insert(0, "{RELAY_FOLDER}")
from kernelbridge_relay.relay.MODULE import main
main()
"""
# Does nothing until it is ended.
_WAIT = """\
import signal
while True:
    signal.pause()
"""
# Waits for a job's first process, which may start later than this one; bridge.py follows, which is not there yet.
_JOIN_ORDER = f"""\
import os, time
until = time.monotonic() + 20
names = ["{RELAY_FOLDER}/order.sock", "{RELAY_FOLDER}/kernelbridge_relay"]
while not any(map(os.path.exists, names)) and time.monotonic() < until:
    time.sleep(0.005)
"""
# The relay's release in the container may be older than this one, and have no such program.
_FORWARD = f"""\
import sys
sys.path[:] = ["{RELAY_FOLDER}", *filter(None, sys.path)]
try:
    from kernelbridge_relay.relay.beside.port_forwarder import main
except ImportError:
    sys.stdout.write({NO_FORWARDER.decode()!r})
else:
    main()
"""


def boot_argv(python: str) -> list[str]:
    """Return the command of the container's main process."""
    return [python, "-c", _BOOT]


def bridge_argv(python: str) -> list[str]:
    """Return the command that joins an exec stream to the relay."""
    return [python, "-I", "-S", "-c", _JOIN, f"{RELAY_FOLDER}/relay.sock"]


def beside_argv(python: str, module: str) -> list[str]:
    """Return the command of a program of the relay's code, by its module in relay/, beside the relay.

    A relay of an older version may not have it: then it ends without a word.
    """
    return [python, "-I", "-S", "-c", _BESIDE.replace("MODULE", module)]


def forward_argv(python: str) -> list[str]:
    """Return the command that joins an exec stream to the container's ports; see PortMux."""
    return [python, "-I", "-S", "-c", _FORWARD]


def job_boot_argv(python: str) -> list[str]:
    """Return the command of a job's main process: its order comes over a socket, by order_argv, and not over stdin.

    RELAY_FOLDER must not be there yet, and the folder above it must be nobody else's. Exits with EXIT_NO_ORDER.
    """
    text = _text("job_boot.py") + _JOB_BOOT
    return [python, "-c", f'{_OWN_PATH}exec(compile({text!a}, "job_boot.py", "exec"))\n']


def order_argv(python: str) -> list[str]:
    """Return the command that joins an exec stream to a job's main process: order_line goes in, `ok` and an end come.

    Nothing but an end comes when the order did not arrive, or when another one did before.
    """
    return [python, "-I", "-S", "-c", _JOIN_ORDER + _text("bridge.py"), f"{RELAY_FOLDER}/order.sock"]


def old_python(image: str, log: str) -> ImageUnusable:
    """Return the error for an image whose Python ended with EXIT_OLD_PYTHON; `log` has what it said."""
    version = log.rpartition(OLD_PYTHON_SAYS)[2].split()
    fault = f"has Python {version[0] if version else 'of an old version'}; kernelbridge needs 3.8"
    remedy = "Use an image with Python 3.8 or newer, or set `python` of the environment to such a one in it."
    return ImageUnusable(image=image, fault=fault, remedy=remedy, of_python=True)


def _text(name: str, folder: str = "relay") -> str:
    return resources.files("kernelbridge").joinpath(*folder.split("/"), name).read_text("utf-8")


def _files() -> dict[str, str]:
    """Return the relay's code by the path that it gets in the container."""
    files = {"__init__.py": ""}
    for folder in _FOLDERS:
        names = (entry.name for entry in resources.files("kernelbridge").joinpath(*folder.split("/")).iterdir())
        files.update({f"{folder}/{name}": _text(name, folder) for name in sorted(names) if name.endswith(".py")})
    files.update({name: files[f"relay/{name}"] for name in _BY_PATH})
    return files


def order_line(
    kernel: str,
    spawn: dict[str, Any],
    terms: dict[str, Any],
    journal: dict[str, Any],
    *,
    gpus: Mapping[str, Any] | None = None,
    **more: Any,
) -> bytes:
    """Return the line for the container's stdin: the relay's own code, the kernel's id, its first launch, its terms.

    `terms` has the keys of exit_codes.Terms; `journal` has the folder of its file and its bound in bytes. `gpus`
    has the ids of the GPUs that the container should see, `locks` (the folder of their locks; empty for none) and maybe
    `look_seconds`; without it the container should see none. `more`: `environ` is what each launch finds in its
    environment beside the container's own; `ends_with_stdin`: the end of stdin ends the relay; `probe`: mounts to which
    the kernel's user should be able to write; `door`: the `path` of another socket to listen at, and the `uid` of the
    one user who is let in there.
    """
    order: dict[str, Any] = {"kernel": kernel, "folder": RELAY_FOLDER, "spawn": spawn, "files": _files()}
    order.update(terms=terms, journal=journal, release=__version__)
    if gpus is not None:
        order["gpus"] = dict(gpus)
    order.update({key: one for key, one in more.items() if one})
    return json.dumps(order).encode() + b"\n"


def spawn_order(
    *, launch: int, session: str, env: dict[str, str], cwd: str, arguments: Sequence[str] = (), **more: Any
) -> dict[str, Any]:
    """Return the order to start a Python kernel; `env` holds what the kernel process alone may see, secrets too.

    `more`: `setup` are commands of a shell to be run before, once in a container unless `setup_every` is `restart`.
    """
    starter = f"{RELAY_FOLDER}/kernelbridge_relay/ipykernel_launcher.py"
    argv = ["{python}", "-Xfrozen_modules=off", starter, "-f", "{connection_file}", "--Session.session={session}"]
    # The history would write each cell to the container's disk, which is the host's. nbclient says so too, to kernels
    # called python3, and ipykernel refuses to hear it twice.
    if not any(word.startswith(_HISTORY) for word in arguments):
        argv.append(f"{_HISTORY}=:memory:")
    return {
        "do": "spawn",
        "launch": launch,
        "session": session,
        "argv": [*argv, *arguments],
        "env": env,
        "cwd": cwd,
        "needs": ["ipykernel", "zmq"],
        **more,
    }


def command_order(
    *, launch: int, session: str, env: dict[str, str], cwd: str, argv: Sequence[str], window: Any, **more: Any
) -> dict[str, Any]:
    """Return the order to start a user's command; without one the container waits. See spawn_order()."""
    command = {"window": window, "waits": not argv}
    words = list(argv) or ["{python}", "-I", "-S", "-c", _WAIT]
    order = {"do": "spawn", "launch": launch, "session": session, "argv": words, "env": env, "cwd": cwd, "needs": []}
    return {**order, "command": command, **more}


def relay_line(
    kernel_id: str,
    environment: Environment,
    spawn: dict[str, Any],
    *,
    gpus: Sequence[str] | None,
    **more: Any,
) -> bytes:
    """Return what a relay is told at its start: its code, the first launch, its terms, its cards.

    Without `gpus` its container's own variable names them. `more`: `environ`, `ends_with_stdin`, `door`: see
    order_line().
    """
    terms = {
        "persist": environment.persist,
        "lost_grace": environment.lost_grace,
        "max_lifetime": environment.max_lifetime,
        "idle_timeout": environment.idle_timeout,
        "keep_exited": environment.keep_exited,
    }
    journal = {"folder": f"{JOURNAL_FOLDER}/{JOURNAL_NAME}", "bytes": environment.journal_size}
    locks = LOCKS_FOLDER if gpus and environment.gpu_lock == "flock" else ""
    cards = {"ids": None if gpus is None else list(gpus), "locks": locks}
    is_login = environment.is_host_user
    more["probe"] = [mount.target for mount in environment.all_mounts if is_login and not mount.read_only]
    return order_line(kernel_id, spawn, terms, journal, gpus=cards, **more)
