"""fleet/open_files.py: what a process that may open few files hears, in the place of libzmq's end of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet import open_files

FEW = """
import resource
from kernelbridge.fleet import open_files
open_files.check()
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
try:
    open_files.check()
except Exception as exc:
    print(exc)
"""


@pytest.mark.parametrize(("opened", "most", "is_room"), [(24, 64, True), (25, 64, False), (1000, 1024, False)])
def test_a_kernel_needs_room_for_its_files(opened: int, most: int, is_room: bool) -> None:
    if is_room:
        open_files.check_room(opened=opened, most=most)
        return
    with pytest.raises(KernelBridgeError, match=f"^This process may open {most} files and has opened {opened}: "):
        open_files.check_room(opened=opened, most=most)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_process_with_few_files_is_told_and_lives() -> None:
    ended = subprocess.run([sys.executable, "-c", FEW], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.startswith("This process may open 30 files and has opened ")
    assert "Allow more with `ulimit -n 1024` before it is started." in ended.stdout
