"""The first process of the made machine: own /run, /tmp, /etc/passwd and host name; ends with its parent. See lab.py.

Runs as pid 1 of new mount, network, pid, uts and ipc namespaces. When its stdin ends (the test run is gone, however
that came about) it exits, and the host's kernel then ends every process and removes every mount and network device.
"""

import ctypes
import json
import os
import select
import socket
import sys

MS_BIND = 4096


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def main() -> None:
    """Make the machine as the JSON file says, say `ready`, then only reap until stdin ends."""
    with open(sys.argv[1]) as wish_file:  # noqa: PTH123  # few imports: the interpreter may be hidden by our mounts
        wish = json.load(wish_file)
    socket.sethostname(wish["name"])
    _mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    for folder, mode in wish["folders"].items():
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        os.chmod(folder, int(mode, 8))  # noqa: PTH101
    for target, source in wish["binds"].items():
        _mount(source, target, "", MS_BIND, "")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        readable, _, _ = select.select([0], [], [], 1.0)
        if readable and not os.read(0, 4096):
            return
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue


if __name__ == "__main__":
    main()
