"""`kernelbridge shell` and `exec`: a command in a kernel's container, joined to the user's terminal or pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from kernelbridge import errors
from tests.clients.blocking import Client, connected
from tests.clients.terminal import begin, kernelbridge, launched, wait_bound, write_connection_file
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def kernel(rig: Rig, module_env: Laptop) -> Iterator[Client]:
    """One kernel for the whole file, held by a launcher, with a variable and a folder of its own."""
    module_env.write_environment(rig.image, env={"MODE": "fast"}, secrets=["TOKEN"])
    file = write_connection_file(module_env.runtime_dir)
    os.environ["TOKEN"] = "t0ken"
    try:
        with launched(module_env, file, TOKEN="t0ken"):
            wait_bound(file)
            with connected(str(file)) as client:
                client.run("import os; os.makedirs('/tmp/project', exist_ok=True); os.chdir('/tmp/project')")
                yield client
    finally:
        del os.environ["TOKEN"]
        rig.engine.sweep()


def kernel_id(rig: Rig) -> str:
    (container,) = rig.engine.kernels()
    return str(container.labels["kernelbridge.kernel"])[:8]


def test_a_command_has_the_kernels_variables_folder_and_exit_code(rig: Rig, module_env: Laptop, kernel: Client) -> None:
    script = 'echo "$MODE $TOKEN $PWD"; echo trouble >&2; exit 3'
    ended = kernelbridge(module_env, "exec", kernel_id(rig), "--", "sh", "-c", script)
    assert (ended.code, ended.out, ended.err) == (3, "fast t0ken /tmp/project\n", "trouble\n")
    python = kernelbridge(module_env, "exec", kernel_id(rig), "--", "python", "-c", "import sys; print(sys.prefix)")
    assert python.out.strip() == kernel.run("import sys; sys.prefix").result.strip("'")  # type: ignore[union-attr]


def test_input_of_every_kind_comes_through_and_a_signal_ends_it(rig: Rig, module_env: Laptop, kernel: Client) -> None:
    data = os.urandom(3_000_000)
    done = subprocess.run(
        [sys.executable, "-m", "kernelbridge", "exec", kernel_id(rig), "--", "cat"],
        input=data,
        env=module_env.env,
        capture_output=True,
        timeout=60 * SLOW,
    )
    assert done.stdout == data, done.stderr
    killed = kernelbridge(module_env, "exec", kernel_id(rig), "--", "sh", "-c", "kill -9 $$")
    assert killed.code == 128 + signal.SIGKILL


def test_ctrl_c_reaches_the_command(rig: Rig, module_env: Laptop, kernel: Client) -> None:
    script = "trap 'echo stopped; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    with begin(module_env, "exec", kernel_id(rig), "--", "sh", "-c", script) as command:
        assert command.process.stdout is not None
        assert command.process.stdout.readline() == "ready\n"
        command.process.send_signal(signal.SIGINT)
        ended = command.finish()
    assert (ended.code, ended.out) == (7, "stopped\n")


def test_a_command_that_is_not_there_is_a_sentence(rig: Rig, module_env: Laptop, kernel: Client) -> None:
    ended = kernelbridge(module_env, "exec", kernel_id(rig), "--", "no-such-command")
    assert ended.code == errors.CommandNotRun.exit_code
    assert "lab: the command could not be run: no-such-command: No such file or directory." in ended.err
    nowhere = kernelbridge(module_env, "exec", "-w", "/no/such", kernel_id(rig), "--", "true")
    assert "/no/such: No such file or directory" in nowhere.err


def test_a_shell_is_a_real_terminal(rig: Rig, module_env: Laptop, kernel: Client) -> None:
    words = ["-m", "kernelbridge", "shell", kernel_id(rig)]
    shell = pexpect.spawn(
        sys.executable, words, env=module_env.env, dimensions=(30, 100), timeout=30 * SLOW, encoding="utf-8"
    )
    try:
        shell.expect(r"[#$] $")
        shell.sendline("stty size; tty; echo $TERM-")
        shell.expect("30 100\r\n/dev/pts/")
        shell.setwinsize(40, 120)
        shell.sendline("sleep 0.3; stty size")
        shell.expect("40 120\r\n")
        # Ctrl-C is the command's, not ours.
        shell.sendline("sleep 100")
        shell.expect("sleep 100\r\n")
        time.sleep(0.5)
        shell.send("\x03")
        shell.sendline("echo again-$?")
        shell.expect("again-130")
        shell.sendline("exit 5")
        shell.expect(pexpect.EOF)
    finally:
        shell.close()
    assert shell.exitstatus == 5


def test_what_reads_slowly_or_not_at_all_costs_nothing(rig: Rig, module_env: Laptop, kernel: Client) -> None:
    words = [sys.executable, "-m", "kernelbridge", "exec", kernel_id(rig), "--", "sh", "-c", "yes | head -c 50000000"]
    piped = subprocess.run(
        ["sh", "-c", '"$@" | head -c 10; exit 0', "sh", *words],
        env=module_env.env,
        capture_output=True,
        timeout=60 * SLOW,
    )
    assert piped.stdout == b"y\n" * 5, piped.stderr


def test_a_command_without_an_end_is_ended_where_nobody_reads_it(rig: Rig, module_env: Laptop, kernel: Client) -> None:
    words = [sys.executable, "-m", "kernelbridge", "exec", kernel_id(rig), "--", "yes", "without an end"]
    shell = '"$@" 2>errors | head -1; echo "${PIPESTATUS[0]}"; cat errors'
    piped = subprocess.run(
        ["bash", "-c", shell, "bash", *words],
        env=module_env.env,
        cwd=module_env.runtime_dir,
        capture_output=True,
        text=True,
        timeout=60 * SLOW,
    )
    assert piped.stdout == "without an end\n141\n", piped.stderr
    running = "import glob; any(b'without' in open(one, 'rb').read() for one in glob.glob('/proc/[0-9]*/cmdline'))"
    wait_until(lambda: kernel.run(running).result == "False", "the command's end", 20)


def test_a_container_is_reached_by_its_environments_name(rig: Rig, module_env: Laptop, kernel: Client) -> None:
    ended = kernelbridge(module_env, "exec", "test", "--", "sh", "-c", 'echo "$MODE"')
    assert (ended.code, ended.out) == (0, "fast\n")
    assert "No kernel `tset`" in kernelbridge(module_env, "exec", "tset", "--", "true").err


def test_a_command_hears_of_a_client_that_is_gone(rig: Rig, module_env: Laptop, kernel: Client) -> None:
    script = "trap 'touch /tmp/hung-up; exit' HUP; echo ready; while :; do sleep 0.05; done"
    with begin(module_env, "exec", kernel_id(rig), "--", "sh", "-c", script) as command:
        assert command.process.stdout is not None
        assert command.process.stdout.readline() == "ready\n"
        command.process.kill()
    wait_until(
        lambda: kernel.run("import os; os.path.exists('/tmp/hung-up')").result == "True", "the command's SIGHUP", 20
    )


def test_files_are_copied_both_ways_with_modes_and_odd_names(
    rig: Rig, module_env: Laptop, kernel: Client, tmp_path: Path
) -> None:
    name = kernel_id(rig)
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "öne two\nthree").write_bytes(os.urandom(2_000_000))
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("run.sh")
    assert kernelbridge(module_env, "cp", str(tree), f"{name}:/tmp/copied").err == ""
    # Into a folder that is there.
    assert kernelbridge(module_env, "cp", str(tree / "run.sh"), f"{name}:/tmp/copied/inner").err == ""
    listed = kernel.run("import os; sorted(os.listdir('/tmp/copied/inner'))").result
    assert listed == repr(["run.sh", "öne two\nthree"])
    assert kernelbridge(module_env, "cp", f"{name}:/tmp/copied", str(tmp_path / "back")).err == ""
    back = tmp_path / "back"
    assert (back / "inner" / "öne two\nthree").read_bytes() == (tree / "inner" / "öne two\nthree").read_bytes()
    assert (back / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (back / "link").readlink() == Path("run.sh")
    missing = kernelbridge(module_env, "cp", f"{name}:/no/such", str(tmp_path))
    assert (missing.code, "/no/such: No such file or directory" in missing.err) == (1, True)
    nowhere = kernelbridge(module_env, "cp", str(tmp_path / "none"), f"{name}:/tmp")
    assert "No such file or directory" in nowhere.err
    full = kernelbridge(module_env, "cp", str(tree), f"{name}:/no/such/folder")
    assert "/no/such: No such file or directory" in full.err


def test_a_kernel_that_is_not_there_is_a_sentence(module_env: Laptop, kernel: Client) -> None:
    ended = kernelbridge(module_env, "exec", "nonesuch", "--", "true")
    assert ended.code == errors.KernelNotFound.exit_code
    assert Path(module_env.home).exists()
