"""How far a pull is, from a real registry over a slow line: on terminals, in pipes, in cells. What stays of failures.

The line, the fields of events: tests/unit/cli/test_status_line.py, tests/unit/jupyter/test_extension_gpus.py.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pexpect
import pytest

from tests.clients.blocking import connected, started
from tests.clients.notebook import fleet_closed_after, write_specs
from tests.clients.terminal import kernelbridge, launched, wait_bound, write_connection_file
from tests.real.conftest import require
from tests.rig.daemon import SLOW, RigError
from tests.rig.laptop import Laptop
from tests.rig.next_debian import missing_next_debian
from tests.rig.registry import ADDRESS, registry
from tests.rig.whole import Rig
from tests.unit.cli.test_status_line import drawn

pytestmark = pytest.mark.timeout(240)

NAME = "kernelbridge-test/slowly:1"
SIZE_BYTES, BYTES_PER_SECOND = 10_000_000, 2_500_000
SLOW_PORT = 5056
IMAGE = f"127.0.0.1:{SLOW_PORT}/{NAME}"
PERCENT = re.compile(r"pulling \S+: (\d+) %, [0-9.]+ of 10\.\d MB, [0-9.]+ [MkG]B/s(, about \d+ (s|min) left)?")
# Runs in the made machine: the registry again, behind a slow line.
LINE = f"""
import socket, threading, time
def carry(source, target, is_slow):
    try:
        while piece := source.recv(32768):
            target.sendall(piece)
            if is_slow:
                time.sleep(len(piece) / {BYTES_PER_SECOND})
    except OSError:
        pass
    finally:
        for end in (source, target):
            try: end.shutdown(socket.SHUT_RDWR)
            except OSError: pass
listener = socket.create_server(("127.0.0.1", {SLOW_PORT}))
while True:
    near, _ = listener.accept()
    far = socket.create_connection({tuple(ADDRESS.split(":"))!r})
    for ends in ((near, far, False), (far, near, True)):
        threading.Thread(target=carry, args=ends, daemon=True).start()
"""


@pytest.fixture(scope="module")
def laptop(rig: Rig, module_env: Laptop) -> Iterator[Laptop]:
    """Environment `slow`, whose image comes slowly; its kernel is as good as any. And `test`, whose image is there."""
    require(missing_next_debian())
    made = "kernelbridge-test-slowly"
    rig.engine.cli("run", "--name", made, rig.image, "sh", "-c", f"head -c {SIZE_BYTES} /dev/urandom > /big")
    rig.engine.cli("commit", made, NAME)
    rig.engine.cli("rm", made)
    try:
        with registry(rig, images=[NAME]), fleet_closed_after(module_env):
            rig.engine.cli("image", "rm", NAME)
            line = rig.lab.start("slow-line", ["python3", "-I", "-c", LINE])
            table = 'hosts = ["lab"]\nimage = '
            slow = f'[environments.slow]\n{table}"{IMAGE}"\npull = "always"\n'
            module_env.write_config(f'[hosts.lab]\nssh = "lab"\n\n[environments.test]\n{table}"{rig.image}"\n\n{slow}')
            write_specs(module_env)
            try:
                yield module_env
            finally:
                line.kill()
    finally:
        with suppress(RigError):
            rig.engine.cli("image", "rm", IMAGE)


@pytest.fixture
def absent(rig: Rig, laptop: Laptop) -> Iterator[Laptop]:
    """The image is not on the host before the test."""
    with suppress(RigError):
        rig.engine.cli("image", "rm", IMAGE)
    yield laptop


# What says of the terminal that the tests themselves run in, and would be believed more than the terminal itself.
_OF_ANOTHER = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


def on_terminal(laptop: Laptop, columns: int, *words: str, **env: str) -> tuple[int, str]:
    """`kernelbridge WORDS` on a terminal: its exit code, and all that came."""
    own = {name: text for name, text in laptop.env.items() if name not in _OF_ANOTHER}
    process = pexpect.spawn(
        sys.executable,
        ["-m", "kernelbridge", *words],
        env={**own, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **env},
        dimensions=(24, columns),
        encoding="utf-8",
        timeout=60 * SLOW,
    )
    process.expect(pexpect.EOF)
    process.close()
    assert process.exitstatus is not None
    return process.exitstatus, str(process.before)


def test_a_terminal_shows_percent_size_speed_and_time_left_in_one_line_that_goes(absent: Laptop) -> None:
    code, said = on_terminal(absent, 120, "pull", "slow")
    lines = drawn(said)
    assert (code, lines[-1]) == (0, f"lab has {IMAGE}")
    found = [match for line in lines if (match := PERCENT.search(line))]
    assert found, lines
    assert any(match[2] for match in found), "a time that is left"
    assert all(len(line) < 120 for line in lines)
    assert drawn(said.rpartition("\x1b[2K")[2]) == [lines[-1]]


def test_a_narrow_terminal_keeps_to_its_lines_and_to_the_percentage(absent: Laptop) -> None:
    code, said = on_terminal(absent, 20, "pull", "slow", NO_COLOR="1")
    lines = drawn(said)[:-1]
    assert code == 0
    assert any(re.fullmatch(r"\d+ % lab: pulling.*", line) for line in lines), lines
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|9[0-7])[0-9;]*m", said), "no colours"
    assert [line for line in lines if len(line) >= 20 and "has 127" not in line] == []


def test_a_pipe_gets_the_answer_alone(laptop: Laptop) -> None:
    ended = kernelbridge(laptop, "pull", "slow")
    assert (ended.code, ended.out, ended.err) == (0, f"lab has {IMAGE}\n", "")


def test_a_cell_shows_the_same_in_one_line_that_goes_when_its_kernel_is_there(absent: Laptop) -> None:
    with started("kernelbridge-slow", ready=False) as (_, client):
        cell = client.finish(client.send("print('there')"))
    lines = [one["content"]["text"] for one in cell.of("stream")]
    found = [match for line in lines if (match := PERCENT.search(line))]
    assert found, lines
    assert all(line.count("\n") == 1 for line in lines)
    # Each takes the place of the one before, and the last goes.
    assert cell.text == "there\n"


def test_a_command_that_waits_for_a_host_says_so_after_a_while(rig: Rig, laptop: Laptop) -> None:
    slow = laptop.config.with_name("slow.toml")
    slow.write_text('[hosts.lab]\nssh = "lab-proxied"\nlogin_seconds = 4\n')
    with rig.proxy.blackhole():
        code, said = on_terminal(laptop, 80, "--config", str(slow), "ps")
        assert code == 22
        assert any(re.search(r"^lab: .*\([2-9] s\)$", line) for line in drawn(said)), drawn(said)
        piped = kernelbridge(laptop, "--config", str(slow), "ps", "--json")
    assert [one["exit_code"] for one in json.loads(piped.out)["problems"]] == [22]
    assert piped.err == ""


# -- when it breaks


def test_what_a_run_wrote_whose_start_failed_can_be_read_afterwards(rig: Rig, laptop: Laptop) -> None:
    config = laptop.config.with_name("failing.toml")
    setup = '["echo it broke like this; exit 3"]'
    config.write_text(
        f'[hosts.lab]\nssh = "lab"\n[environments.failing]\nhosts = ["lab"]\nimage = "{rig.image}"\nsetup = {setup}\n'
    )
    ended = kernelbridge(laptop, "--config", str(config), "run", "failing", "--", "true")
    assert ended.code == 18
    named = re.search(r"`(kernelbridge logs (\S+))` shows what it wrote", ended.told)
    assert named, ended.err
    assert not rig.engine.kernels(), "its container is gone"
    logs = kernelbridge(laptop, "--config", str(config), "logs", named[2])
    assert (logs.code, "it broke like this" in logs.out) == (0, True), logs
    assert logs.err.startswith("It did not start, and is gone.")
    (kept,) = Path(laptop.data_dir).glob("kernelbridge/failed-starts/*.log")
    assert kept.stat().st_mode & 0o777 == 0o600
    report = kernelbridge(laptop, "--config", str(config), "report", "--offline", "-o", "-")
    assert f"{named[2][:8]} at 20" in report.out
    assert "SetupFailed (exit 18): The setup of" in report.out
    assert "it broke like this" not in report.out


def test_no_log_has_code_output_secrets_or_the_connections_key_at_any_level(rig: Rig, laptop: Laptop) -> None:
    markers = {name: f"{name}{secrets.token_hex(8)}" for name in ("code", "output", "token", "env")}
    config = laptop.config.with_name("logged.toml")
    config.write_text(
        f'[hosts.lab]\nssh = "lab"\n[environments.test]\nhosts = ["lab"]\nimage = "{rig.image}"\n'
        f'secrets = ["HF_TOKEN"]\nenv = {{ NOTE = "{markers["env"]}" }}\n'
    )
    file = write_connection_file(laptop.runtime_dir)
    key = secrets.token_hex(16)
    file.write_text(json.dumps({**json.loads(file.read_text()), "key": key}))
    env = {"KERNELBRIDGE_LOG": "debug", "KERNELBRIDGE_CONFIG": str(config), "HF_TOKEN": markers["token"]}
    with launched(laptop, file, **env) as launcher:
        wait_bound(file)
        with connected(str(file)) as client:
            made = f"print({markers['output'][:9]!r} + {markers['output'][9:]!r}, {markers['code']!r} == 0)"
            assert markers["output"] in client.run(made).text
            assert client.run("import os; [os.environ[name] for name in ('HF_TOKEN', 'NOTE')]").result
            assert client.run(f"1 / 0  # {markers['code']}").error
        launcher.process.terminate()
        ended = launcher.finish()
    rig.engine.sweep()  # It was left for a restart.
    folder = Path(laptop.data_dir) / "kernelbridge" / "logs"
    (log,) = folder.glob("launcher-*.log")
    text = "".join(path.read_text() for path in folder.iterdir()) + ended.err
    assert " INFO kernelbridge.kernel.kernel: [lab k=" in log.read_text()
    assert " DEBUG kernelbridge." in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    found = {name for name, marker in {**markers, "key": key}.items() if marker in text}
    assert found == set()
    report = kernelbridge(laptop, "--config", str(config), "report", "--offline", "-o", "-")
    assert "launcher-" in report.out
    assert not {name for name, marker in {**markers, "key": key}.items() if marker in report.out}
