"""hosts/docker/volumes.py: folders travel into a container or a volume as a tar archive; who gets an empty volume."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kernelbridge.hosts.docker.volumes import Volumes, empty_folder, folder_archive, given


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_an_archive_has_each_folder_once_with_its_mode_and_nothing_else(mode: int) -> None:
    with tarfile.open(fileobj=io.BytesIO(folder_archive(["b", "a"], mode=mode))) as tar:
        members = tar.getmembers()
    assert [(one.name, one.isdir(), one.mode, one.size) for one in members] == [
        ("a", True, mode, 0),
        ("b", True, mode, 0),
    ]


def pieces(*members: tuple[str, bytes, int, int], step: int = 100) -> Iterator[bytes]:
    """An archive of members (name, type, uid, gid), as it arrives."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, kind, uid, gid in members:
            member = tarfile.TarInfo(name)
            member.type, member.uid, member.gid, member.mode = kind, uid, gid, 0o755
            tar.addfile(member)
    whole = archive.getvalue()
    return (whole[start : start + step] for start in range(0, len(whole), step))


ROOTS = ("0/", tarfile.DIRTYPE, 0, 0)
FILE = ("0/file", tarfile.REGTYPE, 0, 0)


@pytest.mark.parametrize(
    ("members", "is_new"),
    [
        ([ROOTS], True),
        ([ROOTS, FILE], False),
        ([ROOTS, ("0/lost+found", tarfile.DIRTYPE, 0, 0)], False),
        # Somebody else's, and what is no folder.
        ([("0/", tarfile.DIRTYPE, 1001, 0)], False),
        ([("0/", tarfile.DIRTYPE, 0, 1001)], False),
        ([("0", tarfile.SYMTYPE, 0, 0)], False),
        ([], False),
    ],
)
def test_only_an_empty_folder_of_roots_is_taken_for_a_new_volume(members: list[Any], is_new: bool) -> None:
    assert (empty_folder(pieces(*members)) is not None) is is_new


@pytest.mark.parametrize("broken", [b"", b"x" * 2000])
def test_what_is_no_archive_is_no_new_volume(broken: bytes) -> None:
    assert empty_folder(iter([broken])) is None


def test_no_more_of_a_full_volume_is_read_than_tells_that_it_is_full() -> None:
    arriving = pieces(ROOTS, *[FILE] * 1000, step=512)
    assert empty_folder(arriving) is None
    assert sum(1 for _ in arriving) > 900


@pytest.mark.parametrize(
    ("user", "wanted"),
    [
        ("1000:5", (1000, 5, 0o750)),
        ("1000", (1000, 0, 0o750)),
        ("jovyan", (0, 0, 0o1777)),
        ("1000:users", (0, 0, 0o1777)),
    ],
)
def test_a_folder_is_given_by_number_and_to_a_name_by_its_mode(user: str, wanted: tuple[int, int, int]) -> None:
    folder = tarfile.TarInfo("0/")
    folder.mode = 0o750
    with tarfile.open(fileobj=io.BytesIO(given(folder, "0", user))) as tar:
        (member,) = tar.getmembers()
    assert (member.name, member.isdir()) == ("0", True)
    assert (member.uid, member.gid, member.mode) == wanted


class Carriers:
    """An engine's client that keeps what it was asked for; the second volume is full."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def create_container_from_config(self, body: dict[str, Any], name: str) -> None:
        assert name.startswith("kernelbridge-carrier-")
        self.asked.append([(mount["Source"], mount["Target"]) for mount in body["HostConfig"]["Mounts"]])

    def get_archive(self, name: str, path: str) -> tuple[Iterator[bytes], object]:
        return pieces(*([ROOTS, FILE] if path.endswith("1") else [ROOTS])), {}

    def put_archive(self, name: str, path: str, archive: bytes) -> None:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            self.asked.append((path, [(member.name, member.uid) for member in tar.getmembers()]))

    def remove_container(self, name: str, **options: bool) -> None:
        self.asked.append("remove")


async def test_volumes_are_given_by_way_of_a_container_that_is_removed() -> None:
    client = Carriers()

    async def call(words: str, work: Callable[[Any], Any], read: Callable[[Any], Any]) -> Any:
        return read(work(client))

    await Volumes(call).give(["new", "full"], "1000:5", image="torch:2", labels={"kernelbridge.locks": "k1"})
    assert client.asked == [[("new", "/mnt/0"), ("full", "/mnt/1")], ("/mnt", [("0", 1000)]), "remove"]
