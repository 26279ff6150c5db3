"""Hosts that ask a person, by a real sshd with PAM: who is asked where, how often; and the answer stays nowhere."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any, ClassVar

import nbformat
import psutil
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.clients.blocking import Cell, Client, started
from tests.clients.driver import NodeClient
from tests.clients.lab import lab_page
from tests.clients.notebook import NAME, write_specs
from tests.clients.server import JupyterServer
from tests.clients.specs import installed_spec
from tests.clients.terminal import kernelbridge
from tests.rig.daemon import SLOW, run, wait_until
from tests.rig.laptop import Laptop
from tests.rig.sshd import OneTimeCodes
from tests.rig.whole import Rig

PROMPT = "(kbtest@lab) Password: "
HELLO = "print('hello from', 6 * 7)"


@pytest.fixture
def codes(rig: Rig, bridge_env: Laptop) -> Iterator[OneTimeCodes]:
    """The host wants a one-time code after the key, as clusters do; at the end of the test no more."""
    write_specs(bridge_env)
    with rig.sshd.asking() as made:
        yield made


@pytest.fixture(autouse=True)
def no_command_left() -> Iterator[None]:
    yield
    while Terminal.begun:
        Terminal.begun.pop().close()


@contextlib.contextmanager
def kernel(*, ready: bool = True) -> Iterator[tuple[KernelManager, Client]]:
    with started(NAME, ready=ready) as both:
        yield both


def asked(client: Client, *, seconds: float = 30) -> dict[str, Any]:
    """What the next input request of a client says."""
    message: dict[str, Any] = client.kernel.get_stdin_msg(timeout=seconds * SLOW)
    assert message["msg_type"] == "input_request"
    content: dict[str, Any] = message["content"]
    return {**content, "cell": message["parent_header"]["msg_id"]}


def is_asked(client: Client, *, seconds: float = 1) -> bool:
    with contextlib.suppress(Empty):
        client.kernel.get_stdin_msg(timeout=seconds)
        return True
    return False


def run_asked(client: Client, code: str) -> Cell:
    """Run a cell that is asked for a code first."""
    request = client.send(HELLO, allow_stdin=True)
    assert asked(client)["cell"] == request
    client.kernel.input(code)
    return client.finish(request)


# -- in the notebook


def places(laptop: Laptop, rig: Rig) -> Iterator[tuple[str, str]]:
    """All where an answer could be kept: files of this user and of the host, and command lines."""
    for folder in (laptop.home, rig.lab.path):
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_size < 10_000_000:
                    yield str(path), path.read_bytes().decode("latin-1")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            yield f"process {process.pid}", " ".join(process.cmdline())


def test_a_cell_asks_for_the_code_and_then_runs_and_the_answer_is_nowhere(
    rig: Rig, bridge_env: Laptop, codes: OneTimeCodes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("asyncssh").setLevel(logging.DEBUG)
    with kernel() as (_, client):
        time.sleep(1)
        before = rig.sshd.connections
        request = client.send(HELLO, allow_stdin=True)
        assert asked(client) == {"prompt": PROMPT, "password": True, "cell": request}
        client.kernel.input("wrong")
        assert asked(client) == {"prompt": PROMPT, "password": True, "cell": request}
        code = codes.new()
        assert [name for name, text in places(bridge_env, rig) if code in text] == [str(codes.path)]
        client.kernel.input(code)
        cell = client.finish(request)
        assert cell.text == "hello from 42\n"
        shown = [one["content"]["text"] for one in cell.of("stream")]
        assert "kbtest@lab: Cluster login\n" in "".join(shown)
        assert "kbtest@lab: Permission denied, please try again.\n" in "".join(shown)
        assert rig.sshd.connections == before + 1
        history = client.run("%history -g").text
        assert "hello from" in history
        assert code not in history
        assert [name for name, text in places(bridge_env, rig) if code in text] == []
    assert "[lab] logged in as kbtest" in caplog.text
    assert code not in caplog.text


def test_an_interrupt_ends_the_question_and_the_cell_and_the_next_cell_asks_again(
    rig: Rig, codes: OneTimeCodes
) -> None:
    with kernel() as (manager, client):
        first = client.send(HELLO, allow_stdin=True)
        asked(client)
        manager.interrupt_kernel()
        assert client.finish(first).error.startswith("KeyboardInterrupt")
        before = rig.sshd.connections
        time.sleep(3)
        assert rig.sshd.connections == before
        # What its client says to the question that is over is nobody's answer.
        client.kernel.input(codes.new())
        assert run_asked(client, codes.new()).text == "hello from 42\n"


def test_a_kernel_that_waits_for_a_person_can_be_shut_down(codes: OneTimeCodes) -> None:
    with kernel() as (manager, client):
        client.send(HELLO, allow_stdin=True)
        asked(client)
        began = time.monotonic()
        manager.shutdown_kernel()
        assert time.monotonic() - began < 20 * SLOW
        assert not manager.is_alive()


def test_after_a_cut_nothing_is_tried_until_a_cell_is_run_which_asks(rig: Rig, codes: OneTimeCodes) -> None:
    with kernel() as (_, client):
        assert run_asked(client, codes.new()).text == "hello from 42\n"
        client.run("kept = 7")
        before = rig.sshd.connections
        rig.sshd.kill_connections()
        # One try finds out that a person is needed; another one may have come while connections were still killed.
        time.sleep(3)
        tried = rig.sshd.connections
        assert tried <= before + 2
        time.sleep(3)
        assert rig.sshd.connections == tried
        request = client.send("print(kept)", allow_stdin=True)
        assert asked(client)["cell"] == request
        # The kernel's own question, and its answer, are the kernel's.
        client.kernel.input(codes.new())
        assert client.finish(request).text.endswith("7\n")
        assert rig.sshd.connections <= tried + 1
        own = client.send("print(input('name? '))", allow_stdin=True)
        assert asked(client)["prompt"] == "name? "
        client.kernel.input("ada")
        assert client.finish(own).text == "ada\n"


def test_two_kernels_that_wait_for_one_login_ask_once(rig: Rig, codes: OneTimeCodes) -> None:
    with kernel() as (_, first), kernel() as (_, second):
        requests = [client.send(HELLO, allow_stdin=True) for client in (first, second)]
        asking: list[Client] = []
        limit = time.monotonic() + 30 * SLOW
        while not asking and time.monotonic() < limit:
            asking = [client for client in (first, second) if is_asked(client, seconds=0.3)]
        assert not any(is_asked(client) for client in (first, second))
        [one] = asking
        one.kernel.input(codes.new())
        for client, request in zip((first, second), requests, strict=True):
            assert client.finish(request).text == "hello from 42\n"


def test_a_host_that_hangs_up_while_a_person_thinks_gets_the_answer_all_the_same(rig: Rig, bridge_env: Laptop) -> None:
    write_specs(bridge_env)
    with rig.sshd.asking("LoginGraceTime 2") as codes, kernel() as (_, client):
        request = client.send(HELLO, allow_stdin=True)
        asked(client)
        time.sleep(4)
        client.kernel.input(codes.new())
        assert client.finish(request).text == "hello from 42\n"
        assert not is_asked(client, seconds=0.1)


def test_a_notebook_that_nobody_sits_at_fails_at_once_and_says_what_to_do(codes: OneTimeCodes) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(HELLO)])
    began = time.monotonic()
    with pytest.raises(CellExecutionError) as caught:
        NotebookClient(notebook, kernel_name=NAME, timeout=60).execute()
    assert time.monotonic() - began < 30 * SLOW
    words = " ".join(str(caught.value).split())
    assert "but the host asks a person too: `(kbtest@lab) Password:`, and nobody was there to answer." in words
    assert "use a key from the ssh agent that is enough by itself" in words


def test_vscode_asks_in_the_users_cell_and_not_in_those_that_nobody_sees(
    rig: Rig, bridge_env: Laptop, codes: OneTimeCodes
) -> None:
    with NodeClient("vscode_raw.mjs", installed_spec(bridge_env).settings()) as code:
        # Its hidden cells may be asked too, and would answer with nothing.
        code.ask("start")
        cell = code.execute(HELLO, replies=["wrong", codes.new()])
        assert (cell["prompts"], cell["screen"].strip()) == ([PROMPT, PROMPT], "hello from 42")
        own = code.execute("print(input('name? '))", replies=["ada"])
        assert (own["prompts"], own["screen"].splitlines()[-1]) == (["name? "], "ada")
        code.ask("stop")
    # It is to persist.
    rig.engine.sweep()


def test_jupyterlab_shows_a_field_for_the_code(rig: Rig, bridge_env: Laptop, codes: OneTimeCodes) -> None:
    with (
        JupyterServer(bridge_env.home / "server", lab=True, env=bridge_env.variables) as server,
        lab_page(server, "login-asks") as page,
    ):
        page.choose_kernel("Docker-GPU (remote)")
        page.write(0, HELLO)
        page.run(0)
        field = page.output(0).locator("input.jp-Stdin-input")
        field.wait_for(timeout=30_000 * SLOW)
        assert field.get_attribute("type") == "password"
        assert PROMPT.strip() in page.output(0).inner_text()
        code = codes.new()
        field.fill(code)
        field.press("Enter")
        page.expect_output(0, "hello from 42", seconds=60)
        page.expect_done(0)
        assert code not in page.page.content()
        page.shut_down_kernel()


# -- in a terminal


class Terminal:
    """A command with a terminal of its own, whose input and output are pipes."""

    # All that a test has begun; ended by the fixture.
    begun: ClassVar[list[Terminal]] = []

    def __init__(self, laptop: Laptop, *words: str, has_terminal: bool = True, **variables: str) -> None:
        self.end, inner = pty.openpty()
        self.shown = ""

        def adopt() -> None:
            os.setsid()
            if has_terminal:
                fcntl.ioctl(inner, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "kernelbridge", *words],
            env={**laptop.env, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=adopt,
            text=True,
        )
        # Without it the terminal would be gone whenever nobody asks in it.
        self._inner = inner
        self.begun.append(self)

    def expect(self, words: str, *, seconds: float = 30) -> None:
        """Wait until the terminal has shown this, after what was waited for before."""
        limit = time.monotonic() + seconds * SLOW
        while words not in self.shown:
            assert time.monotonic() < limit, f"{words!r} was not shown: {self.shown!r}"
            assert self.process.poll() is None, f"it has ended: {self.process.communicate()}"
            if select.select([self.end], [], [], 0.2)[0]:
                self.shown += os.read(self.end, 4096).decode()
        self.shown = self.shown.partition(words)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.end)
        os.close(self._inner)

    def type(self, words: str) -> None:
        os.write(self.end, words.encode())

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60 * SLOW)
        while select.select([self.end], [], [], 0)[0]:
            self.shown += os.read(self.end, 4096).decode()
        return self.process.returncode, out, err


def test_a_command_asks_in_the_terminal_wherever_its_input_and_output_go(
    rig: Rig, bridge_env: Laptop, codes: OneTimeCodes
) -> None:
    # The time that a person takes is not the login's.
    bridge_env.write_environment(rig.image, host={"login_seconds": 4})
    terminal = Terminal(bridge_env, "ps", "--json")
    terminal.expect(f"kbtest@lab: Cluster login\r\n{PROMPT}")
    time.sleep(5)
    terminal.type("wrong\n")
    terminal.expect("Permission denied")
    terminal.expect(PROMPT)
    code = codes.new()
    terminal.type(f"{code}\n")
    exit_code, out, err = terminal.finish()
    assert (exit_code, json.loads(out)["kernels"]) == (0, [])
    assert code not in terminal.shown + out + err


def test_ctrl_c_at_the_question_ends_the_command_and_the_terminal_echoes_again(
    bridge_env: Laptop, codes: OneTimeCodes
) -> None:
    terminal = Terminal(bridge_env, "ps")
    terminal.expect(PROMPT)
    assert not termios.tcgetattr(terminal.end)[3] & termios.ECHO
    terminal.process.send_signal(signal.SIGINT)
    exit_code, out, _ = terminal.finish()
    assert (exit_code != 0, out) == (True, "")
    assert termios.tcgetattr(terminal.end)[3] & termios.ECHO


def test_three_wrong_answers_are_one_connection_and_end_with_the_hosts_refusal(
    rig: Rig, bridge_env: Laptop, codes: OneTimeCodes
) -> None:
    before = rig.sshd.connections
    terminal = Terminal(bridge_env, "ps")
    for _ in range(3):
        terminal.expect(PROMPT)
        terminal.type("wrong\n")
    exit_code, _, err = terminal.finish()
    assert (exit_code, rig.sshd.connections) == (23, before + 1)
    assert "the host did not accept the answer to `(kbtest@lab) Password:`" in err


def test_what_the_host_says_of_the_account_is_told(rig: Rig, bridge_env: Laptop) -> None:
    with rig.sshd.asking(account="deny") as codes:
        terminal = Terminal(bridge_env, "ps")
        terminal.expect(PROMPT)
        terminal.type(f"{codes.new()}\n")
        exit_code, _, err = terminal.finish()
    assert exit_code == 23
    assert "Your account has expired, see the desk" in err


def test_each_jump_host_asks_under_its_own_name(rig: Rig, bridge_env: Laptop, codes: OneTimeCodes) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "lab-behind"})
    terminal = Terminal(bridge_env, "ps", "--json")
    terminal.expect("(kbtest@lab-proxied) Password: ")
    terminal.type(f"{codes.new()}\n")
    terminal.expect("(kbtest@lab-behind) Password: ")
    terminal.type(f"{codes.new()}\n")
    assert terminal.finish()[0] == 0


def test_a_password_alone_lets_in_and_batch_mode_asks_for_none(rig: Rig, bridge_env: Laptop) -> None:
    with rig.sshd.asking("AuthenticationMethods password", "PasswordAuthentication yes") as codes:
        terminal = Terminal(bridge_env, "ps", "--json")
        terminal.expect("kbtest@lab's password: ")
        terminal.type(f"{codes.new()}\n")
        assert terminal.finish()[0] == 0
        bridge_env.configure_ssh("Host lab", "  BatchMode yes")
        exit_code, _, err = Terminal(bridge_env, "ps").finish()
        assert exit_code == 23
        assert "refused" in err


def test_a_passphrase_is_asked_for_the_key_that_the_host_takes_and_for_no_other(rig: Rig, bridge_env: Laptop) -> None:
    folder = bridge_env.ssh_folder
    other, good = folder / "other", folder / "id_ed25519"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "another", "-f", other])
    run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "the passphrase", "-f", good])
    bridge_env.configure_ssh("Host lab", f"  IdentityFile {other}", "  AddKeysToAgent yes")
    socket = bridge_env.home / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    wait_until(socket.exists, "the agent", 10)
    terminal = Terminal(bridge_env, "ps", "--json", SSH_AUTH_SOCK=str(socket))
    terminal.expect("Enter passphrase for key '~/.ssh/id_ed25519': ")
    terminal.type("wrong\n")
    terminal.expect("Wrong passphrase, please try again.")
    terminal.expect("Enter passphrase for key '~/.ssh/id_ed25519': ")
    terminal.type("the passphrase\n")
    assert terminal.finish()[0] == 0
    # From now on the agent has the key.
    assert Terminal(bridge_env, "ps", "--json", SSH_AUTH_SOCK=str(socket)).finish()[0] == 0
    agent.terminate()
    agent.wait()


# -- by SSH_ASKPASS


def askpass(laptop: Laptop, answer: str) -> tuple[Path, Path]:
    """A program that answers, and the file in which it notes what it was asked."""
    program, noted = laptop.home / "askpass", laptop.home / "asked"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {noted}\necho {answer}\n')
    program.chmod(0o755)
    return program, noted


def test_a_program_that_ssh_askpass_names_is_asked_where_there_is_no_terminal(
    rig: Rig, bridge_env: Laptop, codes: OneTimeCodes
) -> None:
    program, noted = askpass(bridge_env, codes.new())
    named: Any = {"SSH_ASKPASS": str(program), "DISPLAY": ":9"}
    exit_code, _, _ = Terminal(bridge_env, "ps", has_terminal=False, **named).finish()
    assert exit_code == 0
    assert noted.read_text().splitlines() == ["kbtest@lab: Cluster login", PROMPT]

    before = rig.sshd.connections
    never = Terminal(bridge_env, "ps", has_terminal=False, SSH_ASKPASS_REQUIRE="never", **named)
    exit_code, _, err = never.finish()
    assert (exit_code, rig.sshd.connections) == (23, before + 1)
    assert "nobody was there to answer" in err


def test_doctor_asks_too_and_says_so(bridge_env: Laptop, codes: OneTimeCodes) -> None:
    terminal = Terminal(bridge_env, "doctor", "lab")
    terminal.expect(PROMPT)
    terminal.type(f"{codes.new()}\n")
    _, out, _ = terminal.finish()
    rows = {line[11:27].strip(): line for line in out.splitlines()}
    assert rows["login"].startswith("  ok ")
    assert rows["second factor"].endswith("asked for, and given")
    assert rows["engine"].startswith("  ok ")


def test_doctor_that_nobody_can_answer_points_at_the_second_factor(bridge_env: Laptop, codes: OneTimeCodes) -> None:
    ended = kernelbridge(bridge_env, "doctor", "lab", "--json")
    (broken,) = [one for one in ended.json if one["state"] == "broken" and one["host"]]
    assert (broken["link"], broken["exit_code"]) == ("second factor", 23)
