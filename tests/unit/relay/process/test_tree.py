"""relay/process/tree.py: whatever was started below a process is found and ended, and collected."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from kernelbridge.relay.process import tree
from tests.rig.daemon import SLOW

PACKAGE = Path(tree.__file__).parents[3]
# A relay's stand-in: adopts, lets a child start all kinds of runaways and end, ends them, and says what is left.
RELAY = """
import json, os, subprocess, sys, time
from kernelbridge.relay.process import tree
adopts = tree.adopt_orphans()
kept = subprocess.Popen(["sleep", "600"])
kernel = subprocess.Popen([sys.executable, "-c", KERNEL], stdout=subprocess.PIPE, text=True)
runaways = json.loads(kernel.stdout.readline())
kernel.wait()
def alive(pids):
    return [pid for pid in pids if any(one.pid == pid and not one.is_over for one in tree.descendants(os.getpid()))]
before = alive(runaways)
left = tree.end_descendants(keep=[kept.pid])
tree.collect_orphans([kept.pid])
after = [one.pid for one in tree.descendants(os.getpid())]
print(json.dumps([adopts, sorted(before) == sorted(runaways), left, after == [kept.pid]]))
kept.kill()
""".replace(
    "KERNEL",
    repr(
        """
import json, os, subprocess, time
sleep = ["sleep", "600"]
pids = [
    subprocess.Popen(sleep).pid,
    subprocess.Popen(sleep, start_new_session=True).pid,
    subprocess.Popen(sleep, process_group=0).pid,
]
read, write = os.pipe()
if os.fork() == 0:  # A daemon: its parent ends at once.
    os.setsid()
    pid = os.fork()
    if pid:
        os.write(write, str(pid).encode())
        os._exit(0)
    os.execvp("sleep", sleep)
os.wait()
pids.append(int(os.read(read, 20)))
pids.append(int(subprocess.check_output(["sh", "-c", "nohup sleep 600 >/dev/null 2>&1 & echo $!"])))
# One that starts others for ever.
pids.append(subprocess.Popen(["sh", "-c", "while :; do sleep 600 & sleep 0.05; done"], start_new_session=True).pid)
print(json.dumps(pids))
"""
    ),
)


def test_daemons_sessions_and_what_nohup_keeps_are_ended_and_collected_and_what_is_kept_is_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RELAY],
        cwd=PACKAGE,
        capture_output=True,
        text=True,
        timeout=20 * SLOW,
    )
    assert json.loads(done.stdout) == [True, True, [], True], done.stderr


def test_a_process_is_read_with_any_name_and_one_that_is_gone_is_none(tmp_path: Path) -> None:
    program = tmp_path / "a (b) Z"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "600"])
    try:
        (found,) = [one for one in tree.descendants(os.getpid()) if one.pid == child.pid]
        assert (found.parent, found.name, found.is_over) == (os.getpid(), "a (b) Z", False)
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        (found,) = [one for one in tree.descendants(os.getpid()) if one.pid == child.pid]
        assert found.is_over
    finally:
        child.kill()
        child.wait()
    assert [one for one in tree.descendants(os.getpid()) if one.pid == child.pid] == []
    assert tree._read(child.pid) is None
