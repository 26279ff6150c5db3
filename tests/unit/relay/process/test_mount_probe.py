"""relay/process/mount_probe.py: a mount that is not its user's to write to is told, and nothing is left there."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.relay.process import mount_probe
from kernelbridge.relay.process.mount_probe import MountProbe, MountTrouble, look


def test_a_mount_of_ones_own_has_no_trouble_and_nothing_is_left_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert look(str(tmp_path)) is None
    assert look(str(tmp_path / "file")) is None
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_anothers_is_told_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert look(str(tmp_path)) == MountTrouble("foreign", str(tmp_path), str(os.getuid()))
    assert list(tmp_path.iterdir()) == []


def test_a_mount_that_cannot_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look("/proc") == MountTrouble("refused", "/proc", "No such file or directory")
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert look(str(tmp_path / "file")) == MountTrouble("refused", str(tmp_path / "file"), "Permission denied")


def test_mounts_are_looked_at_once_beside_all_else(tmp_path: Path) -> None:
    rung = threading.Event()
    probe = MountProbe([str(tmp_path), "/proc"], rung.set)
    assert (probe.has_begun, probe.take()) == (False, [])
    probe.begin()
    assert probe.has_begun
    assert rung.wait(10)
    assert [trouble.path for trouble in probe.take()] == ["/proc"]
    probe.begin()
    assert probe.take() == []
    assert repr(probe) == "<MountProbe of 2 mounts, 0 troubles>"


def test_without_mounts_no_thread_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.Thread", None)
    MountProbe([], lambda: None).begin()


NFS = "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:9 / {} rw - nfs4 server:/x rw\n"
SELINUX, APPARMOR = "system_u:system_r:container_t:s0:c1,c2\0", "docker-default (enforce)\n"
ROOTS_OWN, ROOTLESS = "0 0 4294967295\n", "0 1000 1\n"


@pytest.mark.parametrize(
    ("number", "kind", "uid", "files"),
    [
        (errno.EACCES, "refused", 1000, {}),
        (errno.EROFS, "refused", 0, {"mountinfo": NFS, "uid_map": ROOTS_OWN}),
        (errno.EACCES, "squashed", 0, {"mountinfo": NFS, "uid_map": ROOTS_OWN}),
        (errno.EPERM, "squashed", 0, {"mountinfo": NFS, "uid_map": ROOTS_OWN}),
        # Another user to the server: a rootless engine's root, and whoever is not root.
        (errno.EACCES, "refused", 0, {"mountinfo": NFS, "uid_map": ROOTLESS}),
        (errno.EACCES, "refused", 1000, {"mountinfo": NFS, "uid_map": ROOTS_OWN, "current": SELINUX}),
        (errno.EACCES, "selinux", None, {"current": SELINUX}),
        (errno.EPERM, "refused", None, {"current": SELINUX}),
        (errno.EACCES, "refused", None, {"current": APPARMOR}),
        # The folder is another's, and its mode does not allow it.
        (errno.EACCES, "refused", 4711, {"current": SELINUX}),
    ],
)
def test_why_a_mount_refuses_is_told_where_that_is_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: str, uid: int | None, files: dict[str, str]
) -> None:
    def refuse(*words: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mount_probe, "open", refuse, raising=False)
    monkeypatch.setattr(mount_probe, "_read", lambda path: files.get(Path(path).name, "").format(tmp_path))
    tmp_path.chmod(0o700)
    if uid is not None:
        monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert look(str(tmp_path)) == MountTrouble(kind, str(tmp_path), os.strerror(number))


@pytest.mark.parametrize(("label", "kind"), [(SELINUX, "selinux"), (APPARMOR, "refused")])
def test_a_mount_that_selinux_hides_is_told_as_its_doing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, kind: str
) -> None:
    path = str(tmp_path / "hidden")
    really = os.stat

    def stat(asked: Any, **options: Any) -> os.stat_result:
        if asked == path:
            raise PermissionError(errno.EACCES, "hidden")
        return really(asked, **options)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(mount_probe, "_read", lambda asked: label if asked.endswith("current") else "")
    assert look(path) == MountTrouble(kind, path, "Permission denied")


def test_a_server_that_makes_files_anothers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_probe, "_read", lambda path: NFS.format(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert look(str(tmp_path)) == MountTrouble("mapped", str(tmp_path), str(os.getuid()))
