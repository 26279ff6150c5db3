"""protocol/mount_table.py: the file system of a path, as the kernel's own table has it."""

from __future__ import annotations

import pytest

from kernelbridge.protocol.mount_table import file_system


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "overlay"), ("/a", "ext4"), ("/ab", "overlay"), ("/a/b", "nfs"), ("/a b", "xfs"), ("/\u00f6/x", "nfs4")],
)
def test_the_file_system_is_that_of_the_last_and_longest_mount_point(path: str, kind: str) -> None:
    lines = [
        "1 0 0:1 / / rw - overlay overlay rw",
        "2 1 8:1 / /a rw - tmpfs tmpfs rw",
        "3 1 8:1 / /a rw master:1 - ext4 /dev/sda rw,seclabel",
        "4 3 0:2 / /a/b rw - nfs server:/ rw",
        "5 1 8:2 / /a\\040b rw - xfs /dev/sdb rw",
        "6 1 0:3 / /\u00f6 rw - nfs4 server:/ rw",
        "nonsense",
    ]
    assert file_system(path, "\n".join(lines)) == kind
    assert file_system(path, "") == ""
