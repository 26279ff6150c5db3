"""What somebody else can read of a kernel: another login, a neighbour container. Tries every way in; stdlib only.

Runs over there, fed to `python3 -` with WISH filled in; prints one JSON line. Who sends it: test_security.py.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What to try and what to look for; `markers` come reversed, so that no copy of this text is taken for a find.
WISH: dict[str, Any] = {}
MARKERS = [marker[::-1].encode() for marker in WISH.get("markers", [])]
LISTEN_SECONDS = WISH.get("listen_seconds", 0.15)
MOST_BYTES = 64 << 20
FOLDER = "run/kernelbridge"

found: dict[str, set[str]] = {}
tried: dict[str, int] = {}
folders_tried: set[Any] = set()


def note(place: str, piece: bytes) -> None:
    """Remember which markers were read where."""
    for marker in MARKERS:
        if marker in piece:
            found.setdefault(place, set()).add(marker.decode())


def count(way: str) -> None:
    """One more thing of this kind was tried."""
    tried[way] = tried.get(way, 0) + 1


def read(path: str, most: int = MOST_BYTES) -> bytes:
    """What the file holds; nothing where it may not be read."""
    try:
        # Never wait: a fifo or a device gives nothing.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return b""
    pieces: list[bytes] = []
    try:
        while most > 0 and (piece := os.read(descriptor, most)):
            pieces.append(piece)
            most -= len(piece)
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return b"".join(pieces)


# -- sockets


def hear(sock: socket.socket) -> bytes:
    """Everything that comes within the limit."""
    heard = b""
    limit = time.monotonic() + LISTEN_SECONDS
    while time.monotonic() < limit and len(heard) < MOST_BYTES:
        sock.settimeout(max(0.01, limit - time.monotonic()))
        try:
            piece = sock.recv(65536)
        except OSError:
            break
        if not piece:
            break
        heard += piece
    return heard


def subscribe(sock: socket.socket) -> bytes:
    """Be a ZeroMQ subscriber to everything, by hand (ZMTP 3.0, no security)."""
    sock.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"
    sock.sendall(b"\x04" + bytes([len(ready)]) + ready)
    sock.sendall(b"\x00\x01\x01")
    return hear(sock)


def ask_web(sock: socket.socket) -> bytes:
    """Be a browser."""
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    return hear(sock)


def ask_debugger(sock: socket.socket) -> bytes:
    """Be an editor that wants to run code in the process."""
    request = {"seq": 1, "type": "request", "command": "initialize", "arguments": {"adapterID": "x"}}
    body = json.dumps(request).encode()
    sock.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    heard = hear(sock)
    if b"Content-Length" in heard:
        found.setdefault("a debugger answers", set()).add(repr(sock.getpeername()))
    return heard


def try_socket(family: int, address: Any, place: str) -> None:
    """Connect in each way and listen."""
    way = "unix sockets" if family == socket.AF_UNIX else "ports"
    count(way)
    for ask in (hear, subscribe, ask_web, ask_debugger):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(2)
        try:
            with sock:
                sock.connect(address)
                count(way + " that let us in")
                note(place, ask(sock))
        except OSError:
            return


def listening_ports() -> Iterator[int]:
    """The TCP ports on which somebody listens in this network namespace."""
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in read(name).decode().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                yield int(words[1].rsplit(":", 1)[1], 16)


def try_ports() -> None:
    """Each listening port of ours, and each that WISH names, at each address."""
    ports = sorted({*listening_ports(), *WISH.get("ports", [])})
    for address in WISH.get("addresses", ["127.0.0.1"]):
        for port in ports:
            try_socket(socket.AF_INET, (address, port), "port")
    for address in WISH.get("scan", []):
        scan(address)


def scan(address: str) -> None:
    """Every port of an address; each that is open is tried."""
    for port in range(1, 65536):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(0.2)
        with sock:
            is_open = sock.connect_ex((address, port)) == 0
        if is_open:
            try_socket(socket.AF_INET, (address, port), "port")
    count("addresses scanned")


def try_unix_sockets() -> None:
    """Each unix socket of this network namespace, abstract ones too."""
    for line in read("/proc/net/unix").decode(errors="replace").splitlines()[1:]:
        _, _, path = line.partition(line.split()[6])
        name = path.strip()
        if name.startswith("@"):
            try_socket(socket.AF_UNIX, "\0" + name[1:], "unix socket")
        elif name:
            try_socket(socket.AF_UNIX, name, "unix socket")


# -- processes and files


def read_memory(pid: str) -> bytes:
    """All that a process has written to."""
    pieces: list[bytes] = []
    for line in read(f"/proc/{pid}/maps").decode().splitlines():
        where, rights = line.split()[:2]
        if not rights.startswith("rw"):
            continue
        begin, end = (int(part, 16) for part in where.split("-"))
        try:
            with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
                memory.seek(begin)
                pieces.append(memory.read(min(end - begin, MOST_BYTES)))
        except (OSError, OverflowError, ValueError):
            continue
    return b"".join(pieces)


def try_process(pid: str) -> None:
    """Each door that /proc has into a process."""
    base = f"/proc/{pid}/"
    count("processes")
    if WISH.get("only_kernels") and not (Path(base) / "root" / FOLDER).is_dir():
        return
    cmdline = read(base + "cmdline")
    # The kernel process runs a file of the relay's folder.
    who = "relay" if b"kernelbridge_relay" in cmdline and b"ipykernel_launcher" not in cmdline else "process"
    who = "bridge" if b"bridge.py" in cmdline else who
    note(who + " cmdline", cmdline)
    environ = read(base + "environ")
    if environ:
        count("environments read")
    note(who + " environ", environ)
    memory = read_memory(pid)
    if memory:
        count("memories read")
    note(who + " memory", memory)
    try:
        for path in Path(base, "fd").iterdir():
            count("descriptors")
            note(who + " descriptor", read(str(path), 1 << 20))
    except OSError:
        pass
    try:
        inside = Path(base, "root", FOLDER).stat()
    except OSError:
        return
    # All processes of a container have the same.
    if (inside.st_dev, inside.st_ino) not in folders_tried:
        folders_tried.add((inside.st_dev, inside.st_ino))
        try_folder(base + "root/" + FOLDER, "relay's folder")


def try_folder(root: str, place: str) -> None:
    """Each file and socket below a folder."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = f"{folder}/{name}"
            try:
                mode = Path(path).lstat().st_mode
            except OSError:
                continue
            if stat.S_ISSOCK(mode):
                try_socket(socket.AF_UNIX, path, place + " socket")
            elif stat.S_ISREG(mode):
                count("files")
                note(place, read(path, 4 << 20))


def main() -> None:
    """Try it all and say what was read."""
    if WISH.get("addresses") or WISH.get("scan"):
        try_ports()
    if WISH.get("unix"):
        try_unix_sockets()
    pids = [one.name for one in Path("/proc").iterdir()] if WISH.get("processes") else WISH.get("pids", [])
    for pid in map(str, pids):
        if pid.isdigit() and int(pid) != os.getpid():
            try_process(pid)
    for root in WISH.get("folders", []):
        try_folder(root, "file")
    answer = {"found": {place: sorted(markers) for place, markers in found.items()}, "tried": tried}
    sys.stdout.write(json.dumps(answer) + "\n")


if WISH:
    main()
