"""relay/process/death.py: kills are counted, last words found, folders without room named."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernelbridge.relay.process import death

CRASH = """\
one line
Fatal Python error: Segmentation fault

Thread 0x00007f1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait

Current thread 0x00007f2 (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/tmp/kernelbridge-x/tmp/ipykernel_12/3.py", line 4 in f
  File "/opt/venv/lib/IPython/core/interactiveshell.py", line 3508 in run_code

Extension modules: numpy.core._multiarray_umath (total: 1)
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("\n \n", ""),
        ("one\ntwo\n\n", "two"),
        ("x" * 400, "x" * 300),
        ("terminate called\n  what():  std::bad_alloc\n", "what():  std::bad_alloc"),
        (
            CRASH,
            'Fatal Python error: Segmentation fault, File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in '
            "string_at, called in line 4 of the cell",
        ),
        (
            "Fatal Python error: Aborted\n\nCurrent thread 0x1 (most recent call first):\n  <no Python frame>\n",
            "Fatal Python error: Aborted",
        ),
        ("Fatal Python error: old\n\nFatal Python error: new\n", "Fatal Python error: new"),
        (
            "Fatal Python error: Bus error\n\nCurrent thread 0x1 (most recent call first):\n"
            '  File "/tmp/ipykernel_1/2.py", line 2 in g\n',
            'Fatal Python error: Bus error, File "/tmp/ipykernel_1/2.py", line 2 in g',
        ),
    ],
)
def test_last_words_are_the_last_line_or_the_crash_with_the_line_that_led_to_it(text: str, words: str) -> None:
    assert death.last_words(text) == words


def test_who_aborts_has_said_why_just_before() -> None:
    crash = "Fatal Python error: {}\n\nCurrent thread 0x1 (most recent call first):\n  <no Python frame>\n"
    said = "terminate called\n  what():  std::bad_alloc\n"
    assert death.last_words(said + crash.format("Aborted")) == "what():  std::bad_alloc (Fatal Python error: Aborted)"
    assert death.last_words(said + crash.format("Bus error")) == "Fatal Python error: Bus error"


def test_a_folder_is_named_once_where_its_file_system_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = {"/full": (1000, 10), "/free": (1000, 900), "/none": (0, 0)}

    def statvfs(folder: str) -> SimpleNamespace:
        if folder not in rooms:
            raise FileNotFoundError(folder)
        blocks, free = rooms[folder]
        return SimpleNamespace(f_blocks=blocks, f_bavail=free, f_frsize=4096)

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert death.without_room(["/full", "/free", "/none", "/gone", "/full"]) == ["/full"]
    assert (death.size_of("/free"), death.size_of("/gone")) == (4096000, 0)


@pytest.mark.parametrize(
    ("texts", "kills"),
    [
        (["low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\n"], 2),  # cgroup v2
        ([None, "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"], 5),  # cgroup v1
        (["low 0\n", "oom_kill 1\n"], 1),
        ([None, None], 0),
    ],
)
def test_kills_for_lack_of_memory_are_counted_as_either_cgroup_tells_them(
    tmp_path: Path, texts: list[str | None], kills: int
) -> None:
    paths = [tmp_path / str(number) for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        if text is not None:
            path.write_text(text)
    assert death.oom_kills([str(path) for path in paths]) == kills


@pytest.mark.parametrize(
    ("told", "first"),
    [
        ("0::/\n", "/sys/fs/cgroup/memory.events"),  # a container with a namespace of its own
        ("0::/slurm/job_7/step_batch\n", "/sys/fs/cgroup/slurm/job_7/step_batch/memory.events"),
        (
            "9:cpu,cpuacct:/x\n5:memory:/slurm/uid_1/job_7\n1:name=systemd:/y\n",
            "/sys/fs/cgroup/memory/slurm/uid_1/job_7/memory.oom_control",
        ),
        ("", "/sys/fs/cgroup/memory.events"),
    ],
)
def test_kills_are_counted_in_our_own_cgroup_and_else_at_the_top(told: str, first: str) -> None:
    paths = death.oom_files(told)
    assert paths[0] == first
    assert paths[-2:] == ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"]
    assert death.oom_kills() >= 0
