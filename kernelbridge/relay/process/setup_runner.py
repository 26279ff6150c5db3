"""Run an environment's setup commands, and become the kernel; run by its path, in the kernel's place.

So they end with it, whatever ends it. Commands come in a file beside the connection file, which also says how far they
are; it is gone once all have succeeded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any, Dict, List

STATE_NAME = "setup.json"


def write_state(path: str, state: Dict[str, Any]) -> None:
    """Replace the file: the relay never reads half of it."""
    with open(path + ".new", "w") as file:
        json.dump(state, file)
    os.rename(path + ".new", path)


def run(command: str, folder: str) -> int:
    """Run a command by sh, whose stdin is empty; it stands in no argv, and on no disk: `folder` is in memory."""
    with tempfile.TemporaryFile(dir=folder) as script:
        script.write(command.encode("utf-8", "surrogateescape") + b"\n")
        script.seek(0)
        number = script.fileno()
        words = ["sh", "/proc/self/fd/%d" % number]
        # A kernel has one pipe for both; of a user's command stdout is its own.
        return subprocess.call(words, stdin=subprocess.DEVNULL, stdout=sys.stderr, pass_fds=[number])


def main(path: str, kernel: List[str]) -> None:
    """Run what the file says; then become the kernel."""
    with open(path) as file:
        commands = json.load(file)["commands"]
    for command in commands:
        write_state(path, {"command": command})
        try:
            code = run(command, os.path.dirname(path))
        except OSError as exc:
            print("sh: %s" % (exc.strerror or exc), file=sys.stderr, flush=True)
            code = 127
        if code:
            write_state(path, {"command": command, "code": code})
            sys.exit(1)
    os.unlink(path)
    try:
        os.execvp(kernel[0], kernel)  # noqa: S606 - as the environment or its user says
    except OSError as exc:
        print("%s: %s" % (kernel[0], exc.strerror), file=sys.stderr, flush=True)
        sys.exit(127 if isinstance(exc, FileNotFoundError) else 126)  # As shells do.


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
