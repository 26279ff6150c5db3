"""hosts/docker/images/build_context.py: what is in the archive, what its hash stands for, a Dockerfile's bases."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

from kernelbridge.hosts.docker.images import build_context
from kernelbridge.hosts.docker.images.build_context import ContextFailed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    for name, text in {"Dockerfile": "FROM x", "a/run.sh": "run", "b.log": "log", ".dockerignore": "*.log\n"}.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    (made / "a/run.sh").chmod(0o750)
    (made / "link").symlink_to("a")
    return made


def members(archive: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(archive) as tar:
        return {member.name: member for member in tar}


def test_an_archive_has_what_is_to_be_sent_with_links_and_modes(folder: Path, tmp_path: Path) -> None:
    os.link(folder / "a/run.sh", folder / "hard")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        build_context.pack(folder, "Dockerfile", tmp_path / "tar")
    found = members(tmp_path / "tar")
    assert set(found) == {".", ".dockerignore", "Dockerfile", "a", "a/run.sh", "hard", "link"}
    assert (found["a/run.sh"].mode, found["a/run.sh"].uid, found["a/run.sh"].uname) == (0o750, 0, "")
    assert (found["link"].issym(), found["link"].linkname) == (True, "a")
    assert (found["hard"].isreg(), found["hard"].size) == (True, 3)


def test_docker_knows_it_for_an_archive_by_its_first_block(tmp_path: Path) -> None:
    name = f"{'long' * 40}.Dockerfile"
    (tmp_path / name).write_text("FROM x")
    archive = tmp_path.parent / "first.tar"
    build_context.pack(tmp_path, name, archive)
    first = tarfile.TarInfo.frombuf(archive.read_bytes()[:512], "utf-8", "strict")
    assert (first.name, first.type) == (".", tarfile.DIRTYPE)


def test_the_hash_is_another_one_where_what_is_sent_is(folder: Path, tmp_path: Path) -> None:
    def packed() -> str:
        return build_context.pack(folder, "Dockerfile", tmp_path / "tar")

    before = packed()
    (folder / "b.log").write_text("not sent")
    os.utime(folder / "a/run.sh", (1, 1))
    assert packed() == before
    (folder / "a/run.sh").chmod(0o755)
    with_mode = packed()
    (folder / "a/run.sh").write_text("RUN")
    with_text = packed()
    (folder / "a/run.sh").rename(folder / "a/run")
    assert len({before, with_mode, with_text, packed()}) == 4


def test_rules_named_for_the_dockerfile_count_instead_of_the_folders(folder: Path, tmp_path: Path) -> None:
    (folder / "Dockerfile.dockerignore").write_text("a\n")
    build_context.pack(folder, "Dockerfile", tmp_path / "tar")
    assert set(members(tmp_path / "tar")) >= {"b.log", "Dockerfile.dockerignore"}
    assert "a" not in members(tmp_path / "tar")


@pytest.mark.parametrize("lines", ["", "*.log\n", "*\n!a\n", "a\n"])
def test_an_archive_of_another_machine_is_filtered_alike(folder: Path, tmp_path: Path, lines: str) -> None:
    (folder / ".dockerignore").write_text(lines)
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(folder, arcname=".")
    build_context.filtered(tmp_path / "whole.tar", "Dockerfile", tmp_path / "filtered.tar")
    build_context.pack(folder, "Dockerfile", tmp_path / "packed.tar")
    assert set(members(tmp_path / "filtered.tar")) == set(members(tmp_path / "packed.tar"))
    with tarfile.open(tmp_path / "filtered.tar") as tar:
        file = tar.extractfile("Dockerfile")
        assert file is not None
        assert file.read() == b"FROM x"


def test_what_cannot_be_packed_is_said(folder: Path, tmp_path: Path) -> None:
    for place, dockerfile, words in (
        (tmp_path / "none", "D", "is no folder of this machine"),
        (folder, "D", "no D in"),
    ):
        with pytest.raises(ContextFailed, match=words):
            build_context.pack(place, dockerfile, tmp_path / "tar")
    (folder / ".dockerignore").write_text("!\n")
    with pytest.raises(ContextFailed, match=r"\.dockerignore: '!' names nothing"):
        build_context.pack(folder, "Dockerfile", tmp_path / "tar")
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(ContextFailed):
        build_context.filtered(tmp_path / "empty.tar", "Dockerfile", tmp_path / "tar")


def test_bases_are_found_and_stages_are_none(tmp_path: Path) -> None:
    text = b"ARG X=1\nFROM --platform=linux/amd64 a/b:1 AS one\nfrom one as two\nFROM $X\nFROM scratch\nFROM c\nFROM c"
    with tarfile.open(tmp_path / "tar", "w") as tar:
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
    assert build_context.base_images(tmp_path / "tar", "Dockerfile") == ["a/b:1", "c"]
