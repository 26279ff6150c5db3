"""`kernelbridge run` and `up`: a command in a container of its own, over cuts, detached, attached, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pexpect
import pytest

from kernelbridge import errors
from tests.clients.terminal import begin, kernelbridge
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def environment(rig: Rig, bridge_env: Laptop) -> Iterator[None]:
    """Runs that go on by themselves are what these tests are about."""
    bridge_env.write_environment(rig.image, env={"MODE": "fast"})
    yield
    rig.engine.sweep()


def rows(laptop: Laptop) -> list[dict[str, Any]]:
    ended = kernelbridge(laptop, "ps", "--json")
    assert ended.code == 0, ended.err
    found: list[dict[str, Any]] = ended.json["kernels"]
    return found


def test_a_command_has_its_exit_code_and_both_outputs_and_leaves_nothing(rig: Rig, bridge_env: Laptop) -> None:
    script = 'echo "$MODE"; echo trouble >&2; exit 3'
    ended = kernelbridge(bridge_env, "run", "test", "--", "sh", "-c", script)
    assert (ended.code, ended.out, ended.err) == (3, "fast\n", "trouble\n")
    assert rig.engine.kernels() == []
    killed = kernelbridge(bridge_env, "run", "test", "sh", "-c", "kill -9 $$")
    assert killed.code == 128 + signal.SIGKILL
    missing = kernelbridge(bridge_env, "run", "test", "no-such-command")
    assert missing.code == errors.CommandNotRun.exit_code, missing.err
    assert "No such file or directory: 'no-such-command'" in missing.err
    assert rig.engine.kernels() == []


def test_input_of_any_size_goes_in_and_comes_out_unchanged(bridge_env: Laptop) -> None:
    data = os.urandom(6_000_000)
    words = [sys.executable, "-m", "kernelbridge", "run", "test", "--", "cat"]
    done = subprocess.run(words, input=data, env=bridge_env.env, capture_output=True, timeout=90 * SLOW)
    assert done.returncode == 0, done.stderr
    assert done.stdout == data


def test_output_comes_once_and_in_order_over_cuts(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "lab-proxied"})
    script = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.02; done; exit 4"
    with begin(bridge_env, "run", "test", "--", "sh", "-c", script) as command:
        assert command.process.stdout is not None
        seen = [command.process.stdout.readline().strip() for _ in range(20)]
        with rig.proxy.cut():
            time.sleep(2)
        ended = command.finish()
    assert [*seen, *ended.out.split()] == [str(number) for number in range(300)]
    assert ended.code == 4
    assert "The command runs on" in ended.err


def test_ctrl_c_reaches_the_command_and_a_start_that_is_given_up_leaves_nothing(rig: Rig, bridge_env: Laptop) -> None:
    script = "trap 'echo stopped; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    with begin(bridge_env, "run", "test", "--", "sh", "-c", script) as command:
        assert command.process.stdout is not None
        assert command.process.stdout.readline() == "ready\n"
        command.process.send_signal(signal.SIGINT)
        ended = command.finish()
    assert (ended.code, ended.out) == (7, "stopped\n")
    with begin(bridge_env, "run", "test", "--", "true") as command:
        wait_until(lambda: bool(rig.engine.kernels()), "the container", 20)
        command.process.send_signal(signal.SIGINT)
        assert command.finish().code in (130, 0)
    assert rig.engine.kernels() == []


def test_a_detached_run_is_listed_logged_attached_and_stopped(rig: Rig, bridge_env: Laptop) -> None:
    script = "for i in 1 2 3; do echo line $i; sleep 0.3; done; sleep 2; echo last; exit 5"
    begun = kernelbridge(bridge_env, "run", "-d", "test", "--", "sh", "-c", script)
    assert begun.code == 0, begun.err
    (row,) = rows(bridge_env)
    assert (row["kernel_id"], row["kind"], row["state"]) == (begun.out.strip(), "run", "busy")
    assert row["title"].startswith("sh -c 'for i in 1 2 3")
    wait_until(lambda: "line 3" in kernelbridge(bridge_env, "logs", begun.out.strip()).out, "its log", 20)
    ended = kernelbridge(bridge_env, "attach", begun.out.strip())
    assert (ended.code, ended.out) == (5, "line 1\nline 2\nline 3\nlast\n")
    assert rows(bridge_env) == [] and rig.engine.kernels() == []
    forever = kernelbridge(bridge_env, "run", "-d", "test", "--", "sleep", "1000").out.strip()
    assert kernelbridge(bridge_env, "stop", forever[:8]).code == 0
    assert rig.engine.kernels() == []


def test_a_log_that_is_followed_ends_where_its_run_is_removed(rig: Rig, bridge_env: Laptop) -> None:
    script = "for i in 1 2 3; do echo line $i; done; sleep 1000"
    begun = kernelbridge(bridge_env, "run", "-d", "test", "--", "sh", "-c", script).out.strip()
    wait_until(lambda: "line 3" in kernelbridge(bridge_env, "logs", begun).out, "its log", 20)
    with begin(bridge_env, "logs", "-f", "--tail", "1", begun[:8]) as following:
        assert following.process.stdout is not None
        assert following.process.stdout.readline() == "line 3\n"
        assert kernelbridge(bridge_env, "stop", begun).code == 0
        ended = following.finish()
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_a_run_whose_output_nobody_reads_runs_on_for_whoever_attaches(rig: Rig, bridge_env: Laptop) -> None:
    script = "while [ ! -e /tmp/end ]; do echo line; sleep 0.1; done; echo last; exit 7"
    words = [sys.executable, "-m", "kernelbridge", "run", "test", "--", "sh", "-c", script]
    piped = subprocess.run(
        ["bash", "-c", '"$@" | head -1; echo "${PIPESTATUS[0]}"', "bash", *words],
        env=bridge_env.env,
        capture_output=True,
        text=True,
        timeout=90 * SLOW,
    )
    assert piped.stdout == "line\n141\n", piped.stderr
    (row,) = rows(bridge_env)
    assert row["state"] == "busy"
    assert piped.stderr == f"The command runs on: `kernelbridge attach {row['kernel_id'][:12]}`.\n"
    assert kernelbridge(bridge_env, "exec", "test", "--", "touch", "/tmp/end").code == 0
    ended = kernelbridge(bridge_env, "attach", row["kernel_id"])
    assert (ended.code, ended.out.splitlines()[-1]) == (7, "last")


def test_a_run_whose_client_was_killed_goes_on_and_keeps_its_end(rig: Rig, bridge_env: Laptop) -> None:
    script = "echo first; sleep 6; echo second; exit 6"
    with begin(bridge_env, "run", "test", "--", "sh", "-c", script) as command:
        assert command.process.stdout is not None
        assert command.process.stdout.readline() == "first\n"
        time.sleep(2.5)  # What was acknowledged comes again for 2 s after a process was killed.
        command.process.kill()
    (row,) = rows(bridge_env)
    wait_until(lambda: rows(bridge_env)[0]["state"] == "exited", "the command's end", 30)
    assert "exit code 6" in rows(bridge_env)[0]["why"]
    ended = kernelbridge(bridge_env, "attach", row["kernel_id"][:8])
    assert ended.code == 6
    assert ended.out.endswith("second\n")
    assert rig.engine.kernels() == []


def test_a_run_on_a_terminal_is_a_real_terminal(bridge_env: Laptop) -> None:
    words = ["-m", "kernelbridge", "run", "test", "--", "sh", "-c", "stty size; tty; read x; echo got-$x; exit 3"]
    env = bridge_env.env
    shown = pexpect.spawn(sys.executable, words, env=env, dimensions=(33, 111), timeout=30 * SLOW, encoding="utf-8")
    try:
        shown.expect("33 111\r\n/dev/pts/")
        shown.sendline("words")
        shown.expect("got-words")
        shown.expect(pexpect.EOF)
    finally:
        shown.close()
    assert shown.exitstatus == 3


def written(path: Path, *sources: str, **tags: str) -> Path:
    """A notebook of these cells; `tags` by cell number: c0="parameters"."""
    cells = [
        nbformat.v4.new_code_cell(source, metadata={"tags": [tags[f"c{at}"]]} if f"c{at}" in tags else {})
        for at, source in enumerate(sources)
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(one.get("text", "") for cell in cells for one in cell.get("outputs", []))


def test_a_notebook_runs_with_parameters_and_is_saved_also_where_it_fails(
    rig: Rig, bridge_env: Laptop, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.ipynb", "rate = 0", "print(rate * 2, mode)", c0="parameters")
    made = tmp_path / "out.ipynb"
    done = kernelbridge(
        bridge_env, "run", "test", str(source), "-o", str(made), "-p", "rate", "0.5", "-p", "mode", "fast"
    )
    assert (done.code, done.err) == (0, "")
    assert printed(made) == "1.0 fast\n"
    assert nbformat.read(made, as_version=4).metadata["language_info"]["name"] == "python"
    failing = written(tmp_path / "failing.ipynb", "print('before')", "1 / 0", "print('after')")
    failed = kernelbridge(bridge_env, "run", "test", str(failing))
    assert (failed.code, "A cell failed: ZeroDivisionError" in failed.err) == (1, True)
    assert printed(failing) == "before\n"
    assert rig.engine.kernels() == []


def test_a_notebook_runs_to_its_end_while_its_client_is_stopped(bridge_env: Laptop, tmp_path: Path) -> None:
    source = written(tmp_path / "slow.ipynb", *["import time; time.sleep(1); print(time.time())"] * 4)
    with begin(bridge_env, "run", "test", str(source)) as command:
        wait_until(lambda: printed(source) != "", "the first cell", 40)
        command.process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        resumed_at = time.time()
        command.process.send_signal(signal.SIGCONT)
        ended = command.finish()
    assert ended.code == 0, ended.err
    times = [float(line) for line in printed(source).split()]
    assert len(times) == 4
    assert times[-1] < resumed_at


def test_an_environment_waits_for_commands_and_is_up_once(rig: Rig, bridge_env: Laptop) -> None:
    first = kernelbridge(bridge_env, "up", "test")
    assert first.code == 0, first.err
    again = kernelbridge(bridge_env, "up", "test")
    assert (again.out, len(rig.engine.kernels())) == (first.out, 1)
    assert "is up on lab already" in again.err
    (row,) = rows(bridge_env)
    assert (row["kind"], row["state"], row["deadline"]) == ("up", "idle", None)
    ended = kernelbridge(bridge_env, "exec", first.out.strip()[:8], "sh", "-c", "echo $MODE; exit 9")
    assert (ended.code, ended.out) == (9, "fast\n")
    refused = kernelbridge(bridge_env, "attach", first.out.strip()[:8])
    assert "kernelbridge shell" in refused.err
    assert kernelbridge(bridge_env, "stop", first.out.strip()[:8]).code == 0
    assert json.loads(kernelbridge(bridge_env, "ps", "--json").out)["kernels"] == []
