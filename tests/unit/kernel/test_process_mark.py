"""kernel/process_mark.py: no process is taken for another, of whatever time, machine, boot or container."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kernelbridge.kernel import process_mark
from kernelbridge.kernel.process_mark import (
    Liveness,
    Machine,
    ProcessMark,
    is_local,
    liveness,
    mark_of,
    own_mark,
    owner_has_ended,
    owner_process,
    owner_text,
    this_machine,
)

HERE = Machine(machine_id="aa", hostname="bb", boot="cc", pid_namespace="1")
ALIVE, ENDED, UNKNOWN = Liveness.ALIVE, Liveness.ENDED, Liveness.UNKNOWN
MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:40 / /home rw shared:2 - nfs4 server:/home rw
24 23 8:2 / /home/ada/fast\\040disk rw - xfs /dev/sdb1 rw
24 23 8:2 / /home/zoé\\040b rw - xfs /dev/sdb1 rw
25 22 0:41 / /mnt rw - ext4 /dev/sdc1 rw
26 25 0:42 / /mnt rw - fuse.sshfs host: rw
27 22 0:43 / /srv rw - lustre 10.0.0.1:/srv rw
28 22 0:44 / /win rw - 9p C: rw
"""


def birth_of(machine: Machine, ticks: str) -> str:
    return ".".join((machine.machine_id, machine.hostname, machine.boot, machine.pid_namespace, ticks))


def own_ticks() -> str:
    return own_mark().birth.rpartition(".")[2]


def test_this_process_is_alive() -> None:
    assert liveness(own_mark()) is ALIVE
    assert own_mark() == mark_of(os.getpid())


def test_a_process_that_has_ended_is_not_alive_also_while_its_parent_has_not_heard_of_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        mark = mark_of(other.pid)
        assert liveness(mark) is ALIVE
        assert other.stdin is not None
        other.stdin.close()
        if sys.platform == "linux":
            # Seen, and not fetched.
            os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
            assert liveness(mark) is ENDED
        other.wait(30)
    assert liveness(mark) is ENDED
    with pytest.raises(ProcessLookupError):
        mark_of(other.pid)


def test_a_later_process_with_the_same_number_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = own_mark()
    later = mark._replace(birth=f"{mark.birth}1")
    assert liveness(later) is ENDED


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the start is written down once")
def test_a_clock_that_is_set_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = own_mark()
    proc = tmp_path / "proc"
    (proc / str(os.getpid())).mkdir(parents=True)
    (proc / f"{os.getpid()}/stat").write_text(Path("/proc/self/stat").read_text())
    seconds = int(psutil.boot_time()) + 3600
    (proc / "stat").write_text(f"cpu 1 2 3\nbtime {seconds}\n")
    monkeypatch.setattr(process_mark, "_PROC", proc)
    assert mark_of(os.getpid()).process != mark.process
    assert mark_of(os.getpid()).birth == mark.birth
    assert liveness(mark) is ALIVE
    # What the first release wrote has the time of day alone.
    assert liveness(ProcessMark(mark.process)) is ENDED


def test_a_mark_of_the_first_release_is_read_as_it_was() -> None:
    process = psutil.Process()
    assert liveness(ProcessMark(f"{process.pid}@{process.create_time():.2f}")) is ALIVE
    assert liveness(ProcessMark(f"{process.pid}@0.00")) is ENDED
    assert own_mark().process == f"{process.pid}@{process.create_time():.2f}"


@pytest.mark.parametrize(
    ("text", "is_what"),
    [("", ENDED), ("@", UNKNOWN), ("x@1.00", UNKNOWN), ("12", UNKNOWN), ("?", UNKNOWN), ("-1@1.00", ENDED)],
)
def test_nobody_has_ended_and_what_is_no_mark_is_unknown(text: str, is_what: Liveness) -> None:
    assert liveness(ProcessMark(text)) is is_what


@pytest.mark.parametrize("birth", ["x", "a.b.c.d.x", "a.b.c.d.1.newer", "...."])
def test_a_birth_as_another_version_writes_it_is_unknown(birth: str) -> None:
    assert liveness(own_mark()._replace(birth=birth)) is UNKNOWN


OTHER_BOOT = replace(HERE, boot="c2")


@pytest.mark.parametrize(
    ("machine", "shared", "own_disk"),
    [
        pytest.param(HERE, ALIVE, ALIVE, id="here"),
        pytest.param(replace(HERE, hostname="b2"), ALIVE, ALIVE, id="here, and renamed since"),
        pytest.param(replace(HERE, pid_namespace="2"), UNKNOWN, UNKNOWN, id="another container, same host name"),
        pytest.param(
            replace(HERE, pid_namespace="2", hostname="b2", machine_id="a2"), UNKNOWN, UNKNOWN, id="another container"
        ),
        pytest.param(OTHER_BOOT, ENDED, ENDED, id="before a restart"),
        pytest.param(replace(OTHER_BOOT, pid_namespace="2"), ENDED, ENDED, id="before a restart, WSL"),
        # A cluster's nodes are often copies of one image.
        pytest.param(replace(OTHER_BOOT, hostname="b2"), UNKNOWN, ENDED, id="a copy of this machine"),
        pytest.param(replace(OTHER_BOOT, machine_id="a2"), UNKNOWN, UNKNOWN, id="another machine, same host name"),
        pytest.param(replace(OTHER_BOOT, machine_id="a2", hostname="b2"), UNKNOWN, UNKNOWN, id="another machine"),
        pytest.param(replace(HERE, boot=""), UNKNOWN, UNKNOWN, id="a boot that nobody knows"),
    ],
)
def test_only_what_can_be_seen_from_here_is_known(
    machine: Machine, shared: Liveness, own_disk: Liveness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = own_mark()._replace(birth=birth_of(machine, own_ticks()))
    for is_own, expected in ((False, shared), (True, own_disk)):
        monkeypatch.setattr(process_mark, "is_local", lambda folder, is_own=is_own: is_own)
        assert liveness(mark, folder=tmp_path, here=HERE) is expected
    assert liveness(mark, here=HERE) is shared


@pytest.mark.skipif(sys.platform != "linux", reason="no other system has pid namespaces")
def test_of_a_container_that_was_started_anew_its_own_lock_tells_whether_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_mark, "is_local", lambda folder: folder == tmp_path)
    mark = own_mark()._replace(birth=birth_of(replace(HERE, pid_namespace="2"), own_ticks()))
    assert liveness(mark, folder=tmp_path, here=HERE) is UNKNOWN
    locks = tmp_path / "processes"
    locks.mkdir()
    with (locks / mark.lock_name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert liveness(mark, folder=tmp_path, here=HERE) is UNKNOWN, "it lives, and not here"
    assert liveness(mark, folder=tmp_path, here=HERE) is ENDED
    for other in (replace(HERE, hostname="b2"), replace(HERE, machine_id="a2")):
        assert liveness(mark, folder=tmp_path, here=other) is UNKNOWN
    monkeypatch.setattr(process_mark, "is_local", lambda folder: False)
    assert liveness(mark, folder=tmp_path, here=HERE) is UNKNOWN


def test_without_an_id_only_a_disk_of_its_own_tells_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(HERE, machine_id="")
    mark = own_mark()._replace(birth=birth_of(replace(here, boot="c2"), own_ticks()))
    monkeypatch.setattr(process_mark, "is_local", lambda folder: folder == tmp_path)
    assert liveness(mark, folder=tmp_path, here=here) is ENDED
    assert liveness(mark, folder=tmp_path / "shared", here=here) is UNKNOWN


def test_a_system_without_boots_and_namespaces_knows_its_processes_by_its_name() -> None:
    here = replace(HERE, boot="", pid_namespace="")
    mark = own_mark()._replace(birth=birth_of(here, own_ticks()))
    assert liveness(mark, here=here) is ALIVE
    assert liveness(mark._replace(birth=birth_of(here, "5")), here=here) is ENDED
    assert liveness(mark, here=replace(here, hostname="b2")) is UNKNOWN


@pytest.mark.parametrize(
    ("folder", "is_own"),
    [
        ("/root/data", True),
        ("/", True),
        ("/home/ada", False),
        ("/home/ada/fast disk/data", True),
        ("/home/zoé b/data", True),
        ("/homes", True),
        ("/mnt/x", False),
        ("/srv/x", False),
        ("/win/x", False),
    ],
)
def test_a_disk_of_its_own_is_told_from_one_that_is_shared(folder: str, is_own: bool, tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert is_local(Path(folder), mounts=tmp_path / "mountinfo") is is_own


def test_where_no_mounts_can_be_read_a_disk_may_be_shared(tmp_path: Path) -> None:
    assert not is_local(tmp_path, mounts=tmp_path / "none")


def test_a_mark_names_its_machine_only_to_those_who_know_it() -> None:
    plain = this_machine()
    assert all(len(part) in (0, 12) for part in (plain.machine_id, plain.hostname, plain.boot))
    for path in (Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id")):
        if path.exists():
            assert path.read_text().strip() not in own_mark().birth


def test_an_owner_is_written_as_the_first_release_reads_it_and_read_back() -> None:
    mark = own_mark()
    text = owner_text("installation", mark, "start")
    assert owner_process(text) == mark
    machine, _, rest = text.partition(":")
    assert (machine, rest.rpartition(":")[0]) == ("installation", mark.process)


def test_an_owner_has_ended_only_where_that_is_known() -> None:
    # No process has this number.
    dead = ProcessMark(f"{2**22 + 7}@1", own_mark().birth)
    texts = [owner_text("installation", own_mark(), ""), "me", owner_text("installation", dead, "")]
    assert [owner_has_ended(text) for text in texts] == [False, False, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("installation:12@1.00:start", ProcessMark("12@1.00")),
        ("", ProcessMark("?")),
        ("me", ProcessMark("?")),
        ("a:b:c:d", ProcessMark("b")),
    ],
)
def test_an_owner_of_another_kind_is_nobody_that_is_known(text: str, expected: ProcessMark) -> None:
    assert owner_process(text) == expected
