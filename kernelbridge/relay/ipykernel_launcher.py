"""Start ipykernel as a relay needs it; run by its path, in the place of ipykernel's module of this name.

ipykernel lets 1000 messages wait for the relay and drops the rest, `idle` among them, when the relay gets no processor
time for a moment (seen with 60,000 displays beside a second busy kernel). Where native code crashes it says nothing: a
pipe of its own stands in for stderr, and ends with it. Which requests it has a handler for stands in none of its
messages: it is written beside the connection file. And what was added to an image for kernels alone lies where its
Python does not look.
"""

from __future__ import annotations

import faulthandler
import importlib.machinery
import json
import os
import sys
from typing import Any, FrozenSet, Optional

FACTS_NAME = "kernel.json"
PIPE_NAME = "forked"
# What was added to the image: a folder for each kind of Python, and in it the modules of which the image's own are too
# old.
PACKAGES_FOLDER = "/opt/kernelbridge/packages"
FIRST_NAME = "first.json"


class FirstFinder:
    """Finds a few modules in the folder of what was added, before the image's own of these names."""

    def __init__(self, folder: str, names: FrozenSet[str]) -> None:
        self.folder = folder
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Called by Python's import for each module."""
        if path is not None or name not in self.names:
            return None
        return importlib.machinery.PathFinder.find_spec(name, [self.folder], target)


def add_packages(folder: str = PACKAGES_FOLDER) -> Optional[FirstFinder]:
    """Let this process find what was added for its Python: behind the image's own, but for what is too old there."""
    own = os.path.join(folder, str(sys.implementation.cache_tag))
    if not os.path.isdir(own) or own in sys.path:
        return None
    sys.path.append(own)
    names: FrozenSet[str] = frozenset()
    try:
        with open(os.path.join(own, FIRST_NAME)) as file:
            names = frozenset(json.load(file))
    except (OSError, ValueError, TypeError):
        pass  # All of the image's own are new enough.
    finder = FirstFinder(own, names)
    if names:
        meta_path: Any = sys.meta_path
        # Before whatever looks on the path.
        meta_path.insert(0, finder)
    return finder


def write_facts(app: Any) -> None:
    """Write which requests the kernel answers on control; without the file kernel_info is all that is known."""
    path = os.path.join(os.path.dirname(app.abs_connection_file), FACTS_NAME)
    try:
        facts = {"control": sorted(app.kernel.control_handlers)}
        with open(path + ".new", "w") as file:
            json.dump(facts, file)
        os.rename(path + ".new", path)
    except (OSError, AttributeError):
        pass  # No room, or a kernel class of another kind.


def keep_pipe_private(folder: str) -> None:
    """Let forked processes reach the kernel's output by a socket in a folder; ipykernel's is TCP on the loopback.

    With the host's network every login there could fill it.
    """
    try:
        import zmq
        from ipykernel.iostream import IOPubThread

        thread: Any = IOPubThread
        setup = thread._setup_pipe_in
    except (ImportError, AttributeError):
        return  # A version that has none.
    address = "ipc://" + os.path.join(folder, PIPE_NAME)

    def bind(sock: Any, *_: Any, **__: Any) -> int:
        sock.bind(address)
        return 0

    def setup_pipe_in(self: Any) -> None:
        socket: Any = zmq.Socket
        before, socket.bind_to_random_port = socket.bind_to_random_port, bind
        try:
            setup(self)
        finally:
            socket.bind_to_random_port = before

    def setup_pipe_out(self: Any) -> Any:
        context: Any = zmq.Context()
        sock = context.socket(zmq.PUSH)
        sock.linger = 3000
        sock.connect(address)
        return context, sock

    thread._setup_pipe_in, thread._setup_pipe_out = setup_pipe_in, setup_pipe_out


def main() -> None:
    """Run the kernel; the arguments are those of ipykernel_launcher."""
    # Our own folder, in which nothing is for the kernel; with PYTHONSAFEPATH it is not there.
    if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]
    add_packages()
    # Kept from ipykernel, and so the kernel's last words.
    faulthandler.enable(os.dup(2))
    from ipykernel import kernelapp

    app: Any = kernelapp.IPKernelApp
    bind, make, log = app.init_iopub, app.init_kernel, app.log_connection_info

    def init_iopub(self: Any, context: Any) -> None:
        context.sndhwm = 0
        keep_pipe_private(os.path.dirname(self.abs_connection_file))
        bind(self, context)

    def init_kernel(self: Any) -> None:
        make(self)
        write_facts(self)

    def log_connection_info(self: Any) -> None:
        # With a parent it prints no banner, whose last line looks like the last words of a kernel that dies.
        self.parent_handle, before = 1, self.parent_handle
        log(self)
        self.parent_handle = before

    app.init_iopub = init_iopub
    app.init_kernel = init_kernel
    app.log_connection_info = log_connection_info
    app.launch_instance()


if __name__ == "__main__":
    main()
