"""`kernelbridge attach`: a kernel of any host from a terminal, beside who holds it, instead, or after it was left."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kernelbridge import errors
from kernelbridge.protocol.exit_codes import CLAIM_SECONDS
from tests.clients import gate
from tests.clients.blocking import Client, connected
from tests.clients.launched import Launched, launched
from tests.clients.terminal import Command, begin, kernelbridge, wait_bound
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def nothing_stays(rig: Rig, bridge_env: Laptop) -> Iterator[None]:
    """Kernels that are left to run on are what these tests are about."""
    bridge_env.write_environment(rig.image, persist=True)
    yield
    rig.engine.sweep()


def row_of(laptop: Laptop) -> dict[str, Any]:
    """What `ps` says of the one kernel there is."""
    ended = kernelbridge(laptop, "ps", "--json")
    assert ended.code == 0, ended.err
    (row,) = ended.json["kernels"]
    found: dict[str, Any] = row
    return found


@contextmanager
def attached(laptop: Laptop, *words: str) -> Iterator[tuple[Command, Path]]:
    """`kernelbridge attach --no-console WORDS`, holding a kernel, and its connection file."""
    with begin(laptop, "attach", "--no-console", *words) as command:
        assert command.process.stdout is not None and command.process.stderr is not None
        first = command.process.stdout.readline().strip()
        assert first, command.process.stderr.read()
        assert command.process.stdout.readline() == f"jupyter console --existing {first}\n"
        assert command.process.stdout.readline() == "Ctrl-C leaves the kernel running.\n"
        yield command, Path(first)


@contextmanager
def used(one: Launched) -> Iterator[Client]:
    """A client of a launcher's kernel; one that comes before the ports are bound gives up at once."""
    wait_bound(Path(one.connection_file))
    with one.client() as client:
        yield client


def interrupted(command: Command) -> tuple[int, str, str]:
    """Ctrl-C; how it ended."""
    command.process.send_signal(signal.SIGINT)
    ended = command.finish()
    return ended.code, ended.out, ended.err


@pytest.fixture
def left(bridge_env: Laptop, nothing_stays: None) -> str:
    """A kernel with `x = 41` that its editor has left; its id."""
    with launched(bridge_env) as one:
        with used(one) as client:
            client.run("x = 41")
            wait_until(lambda: row_of(bridge_env)["undelivered_bytes"] == 0, "the acknowledgement", 10)
        kernel_id = str(row_of(bridge_env)["kernel_id"])
        one.end()
    # Nothing more: some tests come back within the 15 s of a goodbye.
    return kernel_id


def test_a_kernel_that_was_left_is_used_from_a_terminal_and_left_again(bridge_env: Laptop, left: str) -> None:
    row = row_of(bridge_env)
    assert (row["state"], row["link"], row["held_by"], row["is_orphan"]) == ("idle", "detached", "", False)
    assert re.search(rf"{left[:12]} .* idle, detached since \d\d:\d\d +- ", kernelbridge(bridge_env, "ps").out)
    # The only one: it need not be named.
    with attached(bridge_env) as (command, path):
        assert path == bridge_env.runtime_dir / f"kernelbridge-{left}.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with connected(str(path)) as client:
            assert client.run("x + 1").result == "42"
        held = row_of(bridge_env)
        assert (held["state"], held["link"], held["held_by"]) == ("idle", "held", held["owner"])
        code, out, err = interrupted(command)
        assert (code, out, err) == (0, f"The kernel runs on: {left}.\n", "")
    assert not path.exists()
    assert row_of(bridge_env)["link"] == "detached"
    # What the editor wrote down of it is known still.
    # The folder, as long as no cell has named its notebook.
    assert row_of(bridge_env)["title"] == f"{bridge_env.home.name}/"


def test_a_stopped_attach_leaves_in_good_order(bridge_env: Laptop, left: str) -> None:
    with attached(bridge_env, left[:8]) as (command, path):
        command.process.terminate()
        assert command.finish().code == 0
    assert not path.exists()
    assert row_of(bridge_env)["link"] == "detached"


def test_a_kernel_that_a_program_here_holds_is_used_through_its_own_connection_file(bridge_env: Laptop) -> None:
    with launched(bridge_env) as one, used(one) as client:
        client.run("x = 41")
        row = row_of(bridge_env)
        ended = kernelbridge(bridge_env, "attach", row["kernel_id"][:8])
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.splitlines() == [one.connection_file, f"jupyter console --existing {one.connection_file}"]
        with connected(one.connection_file) as second:
            assert second.run("x + 1").result == "42"
        nobody = kernelbridge(bridge_env, "attach")
        assert nobody.code == 1
        assert nobody.err.splitlines() == [
            "No kernel of this machine runs that nobody holds.",
            "Name one: `kernelbridge attach ID`.",
        ]
        assert row["kernel_id"][:12] in nobody.out


def test_a_kernel_that_another_machine_holds_is_busy_until_it_is_taken(bridge_env: Laptop) -> None:
    second = Laptop(**{**bridge_env.__dict__, "data_dir": bridge_env.home / "second"})
    with launched(bridge_env) as one:
        with used(one) as client:
            client.run("x = 41")
        row = row_of(second)
        assert (row["link"], row["is_ours"]) == ("held", False)
        refused = kernelbridge(second, "attach", row["kernel_id"][:8])
        assert refused.code == errors.KernelHeld.exit_code
        known, who = row["kernel_id"][:12], row["held_by"]
        sentence = rf"{known} on lab has been held by {re.escape(who)} since \d\d:\d\d\."
        assert re.fullmatch(sentence, refused.err.splitlines()[0])
        assert f"kernelbridge attach --take {known}" in refused.err.splitlines()[1]
        assert one.process.poll() is None
        with attached(second, "--take", row["kernel_id"]) as (command, path):
            assert one.process.wait(20 * SLOW) == 1
            assert one.told.startswith(
                f"KernelTaken: The kernel of Docker-GPU (remote) on lab was taken over by {row['held_by']}."
            )
            with connected(str(path)) as client:
                assert client.run("x + 1").result == "42"
                # Nobody takes it back.
                time.sleep(3)
                assert client.run("x + 2").result == "43"
            assert interrupted(command)[0] == 0
    assert row_of(second)["link"] == "detached"


def test_a_second_terminal_takes_the_kernel_from_the_first_which_says_so(bridge_env: Laptop, left: str) -> None:
    with attached(bridge_env, left) as (first, path):
        shared = kernelbridge(bridge_env, "attach", left)
        assert shared.out.splitlines()[:1] == [str(path)], shared
        with attached(bridge_env, "--take", left) as (second, again):
            ended = first.finish()
            assert ended.code == errors.KernelTaken.exit_code
            assert "was taken over by" in ended.err
            # The same name, and it is the second one's now.
            assert again == path
            with connected(str(again)) as client:
                assert client.run("x + 1").result == "42"
            # This machine knows still who has it.
            assert kernelbridge(bridge_env, "attach", left).out.splitlines()[0] == str(path)
            assert interrupted(second)[0] == 0
    assert not path.exists()


def test_a_kernel_whose_holder_was_killed_is_shown_with_its_deadline_and_attached_to(
    rig: Rig, bridge_env: Laptop
) -> None:
    bridge_env.write_environment(rig.image, lost_grace="2h")
    with launched(bridge_env) as one:
        with used(one) as client:
            client.run("x = 41")
        # While output is not acknowledged no clock runs.
        wait_until(lambda: row_of(bridge_env)["undelivered_bytes"] == 0, "the acknowledgement", 10)
        one.kill()
    wait_until(lambda: row_of(bridge_env)["deadline_key"] == "lost_grace", "the deadline", 20)
    row = row_of(bridge_env)
    assert (row["state"], row["link"], row["is_orphan"]) == ("idle", "link lost", True)
    line = kernelbridge(bridge_env, "ps").out.splitlines()[1]
    assert re.search(r"idle, link lost since \d\d:\d\d, orphan +(\d\d \w{3} )?\d\d:\d\d \(lost_grace\) ", line)
    with attached(bridge_env, row["kernel_id"]) as (command, path):
        with connected(str(path)) as client:
            assert client.run("x + 1").result == "42"
        assert row_of(bridge_env)["deadline"] is None
        assert interrupted(command)[0] == 0


def test_output_that_nobody_took_is_shown_kept_by_clean_and_fetched(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image)
    with launched(bridge_env) as one, used(one) as client:
        client.send(gate.held("", "print('y' * 300_000); print('the end')"))
        wait_until(lambda: row_of(bridge_env)["state"] == "busy", "the cell to run", 8)
        one.kill()
    assert "busy, link lost since" in kernelbridge(bridge_env, "ps").out
    gate.open_gates(rig)
    wait_until(lambda: row_of(bridge_env)["undelivered_bytes"] > 300_000, "the output", 20)
    assert re.search(r" 30\d kB of output wait", kernelbridge(bridge_env, "ps").out)
    row = row_of(bridge_env)
    kept = kernelbridge(bridge_env, "clean")
    assert (kept.code, kept.out) == (errors.OutputUndelivered.exit_code, "")
    assert "has output that nobody has fetched yet (0.3 MB), so it is kept." in kept.err
    with attached(bridge_env, row["kernel_id"]) as (command, path):
        with connected(str(path), ready=False) as client:
            client.ask("shell", "kernel_info_request")
            found = client.wait_for(lambda one: "the end" in str(one["content"].get("text")))
            assert found["msg_type"] == "stream"
        wait_until(lambda: row_of(bridge_env)["undelivered_bytes"] == 0, "the acknowledgement", 20)
        assert interrupted(command)[0] == 0
    assert kernelbridge(bridge_env, "clean").code == 0
    assert rig.engine.kernels() == []


def test_clean_throws_output_away_only_when_told_so(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image)
    with launched(bridge_env) as one, used(one) as client:
        client.send(gate.held("", "print('y' * 300_000)"))
        wait_until(lambda: row_of(bridge_env)["state"] == "busy", "the cell to run", 8)
        one.kill()
    gate.open_gates(rig)
    wait_until(lambda: row_of(bridge_env)["undelivered_bytes"] > 300_000, "the output", 20)
    assert kernelbridge(bridge_env, "clean").code == errors.OutputUndelivered.exit_code
    assert kernelbridge(bridge_env, "clean", "--discard").code == 0
    assert rig.engine.kernels() == []


class Terminal:
    """A process on a terminal of its own: what a person types and sees."""

    def __init__(self, laptop: Laptop, *words: str) -> None:
        self.seen = ""
        number, self._screen = pty.fork()
        if number == 0:
            os.execve(sys.executable, [sys.executable, "-m", *words], {**laptop.env, "TERM": "dumb", "COLUMNS": "200"})
        self.number = number

    def wait_for(self, text: str, *, seconds: float = 30) -> None:
        """Read until the text is there; what came before it is forgotten."""
        until = time.monotonic() + seconds * SLOW
        while text not in self.seen:
            assert time.monotonic() < until, f"{text!r} never came: {self.seen!r}"
            if select.select([self._screen], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._screen, 65536).decode("utf-8", "replace")
                except OSError:  # The other side has ended.
                    assert text in self.seen, self.seen
            if "\x1b[6n" in self.seen:
                # Where is the cursor? A terminal answers.
                self.seen = self.seen.replace("\x1b[6n", "")
                os.write(self._screen, b"\x1b[1;1R")
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def end(self) -> int:
        """Return the exit code."""
        _, status = os.waitpid(self.number, 0)
        os.close(self._screen)
        return os.waitstatus_to_exitcode(status)


def test_on_a_terminal_a_console_starts_and_its_end_leaves_the_kernel(bridge_env: Laptop, left: str) -> None:
    screen = Terminal(bridge_env, "kernelbridge", "attach", left[:8])
    screen.wait_for("Ctrl-D leaves the console and the kernel running.")
    screen.wait_for("]: ")
    screen.type("print('the answer', x + 1)\r")
    screen.wait_for("the answer 42")
    screen.wait_for("]: ")
    # The console cannot interrupt what it did not start; we can.
    screen.type("import time; time.sleep(100)\r")
    wait_until(lambda: row_of(bridge_env)["state"] == "busy", "the cell to run", 20)
    screen.type("\x03")
    screen.wait_for("KeyboardInterrupt")
    screen.wait_for("In [")
    screen.wait_for("]: ")
    time.sleep(1)
    screen.type("\x04")
    screen.wait_for("exit")
    screen.type("y\r")
    screen.wait_for(f"The kernel runs on: {left}.")
    assert screen.end() == 0
    row = row_of(bridge_env)
    assert (row["state"], row["link"]) == ("idle", "detached")


def test_a_kernel_that_ended_by_itself_is_no_kernel_to_attach_to(bridge_env: Laptop, left: str) -> None:
    with attached(bridge_env, left) as (command, path):
        with connected(str(path)) as client:
            client.send("import os; os.kill(os.getpid(), 9)")
            ended = command.finish()
        assert ended.code == errors.KernelDied.exit_code
        assert "ended: signal SIGKILL" in ended.err
    assert "exited (signal SIGKILL), detached since" in kernelbridge(bridge_env, "ps").out


def test_an_environment_that_is_gone_from_the_config_is_a_sentence(rig: Rig, bridge_env: Laptop, left: str) -> None:
    bridge_env.write_config(bridge_env.config.read_text().replace("environments.test", "environments.other"))
    ended = kernelbridge(bridge_env, "attach", left)
    assert ended.code == errors.UnknownEnvironment.exit_code
    assert "there is no environment `test`" in ended.err


def test_a_kernel_on_a_host_that_is_away_is_stopped_when_it_is_back(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "lab-proxied"}, persist=True)
    with launched(bridge_env) as one:
        with used(one) as client:
            client.run("x = 41")
        one.end()
    known = row_of(bridge_env)["kernel_id"]
    with rig.proxy.cut():
        away = kernelbridge(bridge_env, "ps")
        assert re.search(rf"{known[:12]} .* lab +unknown ", away.out)
        for words in (["attach", known[:8]], ["stop", known[:8]]):
            ended = kernelbridge(bridge_env, *words)
            assert ended.code == errors.HostRefused.exit_code
            assert "refused the connection" in ended.err
        assert ended.err.splitlines()[-2] == f"{known} will be stopped when lab can be reached again."
        assert "stopping, lab cannot be reached" in kernelbridge(bridge_env, "ps").out
        assert len(rig.engine.kernels()) == 1
    assert kernelbridge(bridge_env, "ps").out == "No kernels.\n"
    assert rig.engine.kernels() == []


def test_vs_codes_picker_has_a_kernel_as_long_as_nobody_holds_it(bridge_env: Laptop, left: str) -> None:
    folder = bridge_env.data_dir / "kernels" / "kernelbridge.running" / f"kernelbridge-running-{left[:8]}"
    spec = json.loads((folder / "kernel.json").read_text())
    shown = f"Docker-GPU (remote) running on lab, {bridge_env.home.name}/, less than 1 h"
    assert spec["display_name"] == shown
    # So long the same editor's next start is its restart.
    time.sleep(CLAIM_SECONDS + 1)
    with joined(bridge_env, spec["env"]) as one:
        with used(one) as client:
            assert client.run("x + 1").result == "42"
        wait_until(lambda: not folder.exists(), "the spec to be gone", 10)
        one.end()
    assert folder.exists()
    assert kernelbridge(bridge_env, "stop", left).code == 0
    kernelbridge(bridge_env, "ps")
    assert not folder.exists()


def test_a_restart_of_a_kernel_from_the_picker_is_in_place(rig: Rig, bridge_env: Laptop, left: str) -> None:
    (container,) = rig.engine.kernels()
    spec = {"KERNELBRIDGE_ENVIRONMENT": "test", "KERNELBRIDGE_KERNEL": left}
    # Within the time of a goodbye, by the same editor.
    with joined(bridge_env, spec) as one:
        with used(one) as client:
            assert "NameError" in client.run("x + 1").error
        one.end()
    assert [one.id for one in rig.engine.kernels()] == [container.id]


@contextmanager
def joined(laptop: Laptop, variables: dict[str, str]) -> Iterator[Launched]:
    """The launcher with a spec's own variables."""
    rest: dict[str, Any] = {name: text for name, text in variables.items() if name != "KERNELBRIDGE_ENVIRONMENT"}
    with launched(laptop, variables["KERNELBRIDGE_ENVIRONMENT"], **rest) as one:
        yield one
