"""fleet/log_files.py: a file for each process, bounded, private, without libraries' words and without secrets."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelbridge import __version__
from kernelbridge.fleet import log_files
from kernelbridge.fleet.log_files import LOG_FILE_BYTES, MOST_LOG_FILES, MOST_LOG_SECONDS

OURS = logging.getLogger("kernelbridge.kernel.kernel")


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    log_files.end()


def begun(folder: Path, **environ: str) -> Path:
    path = log_files.begin("launcher", environ, folder)
    assert path is not None
    return path


def test_what_we_say_is_written_and_what_libraries_say_is_not(tmp_path: Path) -> None:
    path = begun(tmp_path, KERNELBRIDGE_LOG="debug")
    OURS.info("[%s] link lost", "lab")
    OURS.debug("a detail")
    for name in ("asyncssh", "docker.utils", "urllib3.connectionpool", "requests", "tornado", ""):
        logging.getLogger(name).warning("MARKER of %s", name)
    _, *lines = path.read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "INFO kernelbridge.kernel.kernel: [lab] link lost",
        "DEBUG kernelbridge.kernel.kernel: a detail",
    ]
    assert lines[0].split(" ")[0].endswith("Z")


@pytest.mark.parametrize(
    ("asked", "levels"),
    [
        ("", ["INFO", "INFO", "WARNING"]),
        ("DEBUG", ["INFO", "DEBUG", "INFO", "WARNING"]),
        ("warning", ["WARNING"]),
        # The word itself is told.
        ("loud", ["INFO", "WARNING", "INFO", "WARNING"]),
    ],
)
def test_a_variable_says_how_much_is_written(tmp_path: Path, asked: str, levels: list[str]) -> None:
    path = begun(tmp_path, KERNELBRIDGE_LOG=asked)
    OURS.debug("a")
    OURS.info("b")
    OURS.warning("c")
    assert [line.split(" ")[1] for line in path.read_text().splitlines()] == levels


def test_without_a_log_nothing_is_made(tmp_path: Path) -> None:
    assert log_files.begin("launcher", {"KERNELBRIDGE_LOG": "off"}, tmp_path) is None
    log_files.note_command("ps", "it failed", {"KERNELBRIDGE_LOG": "off"}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_process_begins_with_its_version_and_has_one_file(tmp_path: Path) -> None:
    path = begun(tmp_path)
    assert f"kernelbridge {__version__} begins" in path.read_text()
    assert log_files.begin("launcher", {}, tmp_path) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such rights")
def test_no_other_login_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = begun(tmp_path / "data")
        OURS.info("x")
        log_files.note_command("ps", "it failed", {}, tmp_path / "data")
    finally:
        os.umask(before)
    assert {one.stat().st_mode & 0o777 for one in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_secret_in_what_we_say_is_taken_out_and_so_are_orders_to_a_terminal(tmp_path: Path) -> None:
    path = begun(tmp_path)
    OURS.warning("the proxy is %s \x1b]0;title\x07", "http://ada:s3cr3t@proxy:3128")
    try:
        raise ValueError("token=s3cr3t")
    except ValueError:
        OURS.exception("it failed")
    text = path.read_text()
    assert "s3cr3t" not in text
    assert "\x1b" not in text
    assert "ValueError" in text


def test_a_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = begun(tmp_path)
    for _ in range(30):
        OURS.info("x" * (LOG_FILE_BYTES // 10))
    sizes = {one.name: one.stat().st_size for one in path.parent.iterdir()}
    assert set(sizes) == {path.name, f"{path.name}.1"}
    assert max(sizes.values()) <= LOG_FILE_BYTES


def test_what_was_printed_before_is_printed_still_and_no_more(tmp_path: Path) -> None:
    """As in the launcher, whose stderr VS Code shows: errors alone."""
    root, printed = logging.getLogger(), io.StringIO()
    handler, level = logging.StreamHandler(printed), root.level
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    try:
        begun(tmp_path, KERNELBRIDGE_LOG="debug")
        OURS.debug("a")
        OURS.warning("b")
        OURS.error("c")
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert printed.getvalue() == "c\n"


def test_a_folder_that_cannot_be_written_costs_the_log_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert log_files.begin("launcher", {}, tmp_path / "file") is None
    log_files.note_command("ps", "it failed", {}, tmp_path / "file")


def test_old_files_and_too_many_go_and_those_of_processes_that_run_stay(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    gone = 4_190_000  # Above what Linux gives.
    for number in range(MOST_LOG_FILES + 5):
        (folder / f"server-2026T{number:02}-{gone}.log").write_text("x")
        os.utime(folder / f"server-2026T{number:02}-{gone}.log", (1000 + number, 1000 + number))
    alive = folder / f"server-2025T00-{os.getpid()}.log"
    others = folder / "notes.txt", folder / "commands.log"
    for path in (alive, *others):
        path.write_text("x")
        os.utime(path, (900, 900))
    log_files.sweep(folder, now=2000.0)
    left = sorted(path.name for path in folder.glob("server-2026*"))
    assert left == [f"server-2026T{number:02}-{gone}.log" for number in range(5, MOST_LOG_FILES + 5)]
    assert alive.exists()
    log_files.sweep(folder, now=2000.0 + MOST_LOG_SECONDS)
    assert sorted(path.name for path in folder.iterdir()) == ["commands.log", "notes.txt"]


def test_commands_write_into_one_file_that_stays_small(tmp_path: Path) -> None:
    for number in range(3):
        log_files.note_command("ps", f"HostRefused (exit 20): {number}", {}, tmp_path)
    path = tmp_path / "logs" / "commands.log"
    assert [line.partition(" ")[2] for line in path.read_text().splitlines()] == [
        f"ERROR command: ps: HostRefused (exit 20): {number}" for number in range(3)
    ]
    path.write_text("x" * (LOG_FILE_BYTES + 1))
    log_files.note_command("ps", "more", {}, tmp_path)
    assert path.stat().st_size < 1000
    assert {one.name for one in log_files.log_paths(tmp_path)} == {"commands.log", "commands.log.1"}
