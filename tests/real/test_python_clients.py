"""Jupyter's own Python clients: its test suite for kernels, nbclient, papermill, the console, several at once.

Editors and browsers: test_vscode_raw.py, test_services.py, test_lab_browser.py. The start itself: test_waiting.py.
"""

from __future__ import annotations

import hashlib
import platform
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupyter_kernel_test
import nbformat
import papermill
import pexpect
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from kernelbridge.channels import waiting
from kernelbridge.kernel import records
from tests.clients.blocking import Cell, Client, Message, connected, started
from tests.clients.notebook import NAME, fleet_closed_after, write_specs
from tests.printed import unwrapped
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", autouse=True)
def user(rig: Rig, module_env: Laptop) -> Iterator[Laptop]:
    """Environments `test`, and `small` with little memory."""
    table = f'image = "{rig.image}"\nhosts = ["lab"]\n'
    environments = f'[environments.test]\n{table}\n[environments.small]\n{table}memory = "256m"\n'
    module_env.write_config(f'[hosts.lab]\nssh = "lab"\n\n{environments}')
    write_specs(module_env)
    with fleet_closed_after(module_env):
        yield module_env


class TestKernelSuite(jupyter_kernel_test.KernelTests):
    """Jupyter's own suite; its samples are those of ipykernel's."""

    kernel_name = NAME
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('to stderr', file=sys.stderr)"
    completion_samples = [{"text": "zi", "matches": {"zip"}}]
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x * 2\n\n"]
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]
    invalid_code_samples = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result = [
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    ]
    code_display_data = [
        {"code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))", "mime": "text/html"},
        {"code": "from IPython.display import Math, display; display(Math('x'))", "mime": "text/latex"},
    ]
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    def history_helper(self, execute_first: Any, timeout: float | None = 15, **wanted: Any) -> Message:
        reply: Message = super().history_helper(execute_first, timeout, **wanted)
        if wanted["hist_access_type"] == "range":
            # IPython calls the session that runs 0; the suite wants its number.
            reply["content"]["history"] = [[wanted["session"], *rest] for _, *rest in reply["content"]["history"]]
        return reply


@pytest.fixture(scope="module")
def running(user: Laptop) -> Iterator[tuple[KernelManager, Client]]:
    """A kernel for the tests that leave it as they found it."""
    with started() as both:
        yield both


@pytest.fixture
def client(running: tuple[KernelManager, Client]) -> Client:
    return running[1]


# -- what a cell can do


def test_what_a_cell_reads_with_input_is_what_the_user_typed(client: Client) -> None:
    asked: list[str] = []

    def type_in(message: Message) -> None:
        asked.append(message["content"]["prompt"])
        client.kernel.input("ada")

    shown: list[Message] = []
    reply = client.kernel.execute_interactive(
        "name = input('who? '); print(name[::-1])",
        timeout=20 * SLOW,
        allow_stdin=True,
        stdin_hook=type_in,
        output_hook=shown.append,
    )
    assert (reply["content"]["status"], asked) == ("ok", ["who? "])
    assert Cell(reply=reply, iopub=shown).text == "ada\n"[-2::-1] + "\n"


def test_a_widget_moved_by_the_user_runs_its_callback_whose_answer_comes_back(client: Client) -> None:
    made = client.run(
        "import ipywidgets\n"
        "slider = ipywidgets.IntSlider(value=1, max=10)\n"
        "seen = []\n"
        "def moved(change):\n"
        "    seen.append(change['new'])\n"
        "    slider.max = change['new'] * 100\n"
        "slider.observe(moved, names='value')\n"
        "slider"
    )
    models = [message["content"] for message in made.of("comm_open")]
    model = next(one for one in models if one["data"]["state"]["_model_name"] == "IntSliderModel")
    update = {"method": "update", "state": {"value": 7}, "buffer_paths": []}
    client.ask("shell", "comm_msg", {"comm_id": model["comm_id"], "data": update})
    client.wait_for(
        lambda message: (
            message["msg_type"] == "comm_msg"
            and message["content"]["comm_id"] == model["comm_id"]
            and message["content"]["data"].get("state", {}).get("max") == 700
        )
    )
    assert client.run("seen").result == "[7]"


def test_twenty_megabytes_of_output_come_whole_and_in_order(client: Client) -> None:
    cell = client.run("for n in range(200_000): print(f'{n:099d}')")
    assert cell.text == "".join(f"{n:099d}\n" for n in range(200_000))


def test_ten_megabytes_in_one_buffer_are_the_same_there_and_back(client: Client) -> None:
    client.run(
        "import hashlib\n"
        "def opened(comm, message):\n"
        "    [buffer] = message['buffers']\n"
        "    comm.send({'sum': hashlib.sha256(buffer).hexdigest()}, buffers=[bytes(buffer)[::-1]])\n"
        "get_ipython().kernel.comm_manager.register_target('echo', opened)"
    )
    sent = random.Random(1).randbytes(10_000_000)
    kernel = client.kernel
    content = {"comm_id": "echo-1", "target_name": "echo", "data": {}}
    kernel.session.send(kernel.shell_channel.socket, kernel.session.msg("comm_open", content), buffers=[sent])
    echo = client.wait_for(
        lambda message: message["msg_type"] == "comm_msg" and message["content"]["comm_id"] == "echo-1"
    )
    assert echo["content"]["data"]["sum"] == hashlib.sha256(sent).hexdigest()
    [back] = echo["buffers"]
    assert bytes(back) == sent[::-1]


def test_a_cell_in_a_subshell_runs_while_the_main_shell_sleeps(client: Client) -> None:
    info = client.answer(client.ask("shell", "kernel_info_request"))["content"]
    assert "kernel subshells" in info["supported_features"]
    created = client.answer(client.ask("control", "create_subshell_request"))["content"]
    sleeping = client.send("import time; time.sleep(60)")
    client.wait_for(lambda message: _is_busy(message, sleeping))
    content = {"code": "print('from the subshell')", "silent": False, "allow_stdin": False}
    beside = client.ask("shell", "execute_request", content, subshell_id=created["subshell_id"])
    assert client.finish(beside, seconds=10).text == "from the subshell\n"
    assert not client.has_answer(sleeping)
    client.answer(client.ask("control", "interrupt_request"))
    assert client.finish(sleeping, seconds=10).reply["ename"] == "KeyboardInterrupt"
    deleted = client.ask("control", "delete_subshell_request", {"subshell_id": created["subshell_id"]})
    assert client.answer(deleted)["content"]["status"] == "ok"


def _is_busy(message: Message, request: str) -> bool:
    is_its_own = bool(message["parent_header"].get("msg_id") == request)
    return is_its_own and message["msg_type"] == "status" and message["content"]["execution_state"] == "busy"


def test_two_clients_see_each_others_output_and_get_their_own_replies_alone(
    running: tuple[KernelManager, Client],
) -> None:
    path = running[0].connection_file
    with connected(path) as first, connected(path) as second:
        requests = {
            client: [client.send(f"print('{name}', {n})") for n in range(20)]
            for client, name in ((first, "first"), (second, "second"))
        }
        for client, own in requests.items():
            for request in own:
                client.finish(request)
        for client, other in ((first, second), (second, first)):
            for n, request in enumerate(requests[other]):
                name = "first" if other is first else "second"
                seen = [one for one in client.seen() if one["parent_header"].get("msg_id") == request]
                assert Cell(reply={}, iopub=seen).text == f"{name} {n}\n"
                assert not client.has_answer(request)
        asked = first.kernel.execute("input('only the first is asked')")
        assert first.kernel.get_stdin_msg(timeout=10 * SLOW)["content"]["prompt"] == "only the first is asked"
        assert not second.kernel.stdin_channel.msg_ready()
        first.kernel.input("thanks")
        assert first.finish(asked).result == "'thanks'"


# -- how a kernel ends


def test_an_end_by_itself_is_explained_in_the_cell_that_ran_and_a_restart_helps(user: Laptop) -> None:
    with started() as (manager, client):
        ended = client.run("import os, time; print('before', flush=True); time.sleep(0.3); os._exit(3)")
        assert ended.text == "before\n"
        assert ended.reply["ename"] == "KernelDied"
        assert "ended: exit code 3" in ended.error
        assert "Restart the kernel to continue." in ended.error
        assert "ended: exit code 3" in client.run("1").error  # And in each that comes after it.
        wait_until(lambda: not manager.is_alive(), "the end to be seen", 10)
        manager.restart_kernel(now=True)
        client.kernel.wait_for_ready(timeout=30 * SLOW)
        assert client.run("6 * 7").result == "42"


def test_running_out_of_memory_is_explained_with_its_limit(user: Laptop) -> None:
    with started("kernelbridge-small") as (_, client):
        ended = client.run("hog = bytearray(600 << 20)")
    assert ended.reply["ename"] == "KernelOutOfMemory"
    assert "ran out of memory (its limit is 0.25 GiB)" in ended.error
    assert "Raise `memory` of the environment" in ended.error


# -- programs


def notebook(*cells: str) -> Any:
    """A notebook as JupyterLab saves it."""
    spec = {"name": NAME, "display_name": "Docker-GPU (remote)", "language": "python"}
    code = [nbformat.v4.new_code_cell(one) for one in cells]
    return nbformat.v4.new_notebook(cells=code, metadata={"kernelspec": spec})


VERSION = "import platform; print(platform.python_version())"


def test_nbclient_saves_the_first_run_of_an_image_with_its_own_python_version(user: Laptop) -> None:
    (records.default_folder() / "images.json").unlink(missing_ok=True)  # Nothing is known of any image.
    written = notebook(VERSION, "6 * 7")
    NotebookClient(written, timeout=60).execute()
    first, second = (cell.outputs for cell in written.cells)
    assert second[0].data["text/plain"] == "42"
    assert written.metadata.language_info.version == first[0].text.strip()
    assert written.metadata.language_info.nbconvert_exporter == "python"
    # The test could not fail where our stand-in happens to say the same.
    assert first[0].text.strip() != waiting.DEFAULT_INFO["language_info"]["version"]


@pytest.mark.parametrize(
    ("name", "cell", "sentence"),
    [
        (NAME, "import os; os._exit(3)", "ended: exit code 3"),
        (NAME, "import os; os._exit(0)", "ended: exit code 0"),
        ("kernelbridge-small", "hog = bytearray(600 << 20)", "ran out of memory (its limit is 0.25 GiB)"),
    ],
    ids=["exit", "exit without a fault", "memory"],
)
def test_nbclients_error_says_why_the_kernel_ended(user: Laptop, name: str, cell: str, sentence: str) -> None:
    written = notebook("kept = 1", cell, "print('never')")
    with pytest.raises(CellExecutionError) as caught:
        NotebookClient(written, kernel_name=name, timeout=60).execute()
    assert sentence in unwrapped(str(caught.value))
    assert sentence in written.cells[1].outputs[-1].evalue
    assert written.cells[2].outputs == []


def test_papermill_runs_a_notebook_with_parameters_and_saves_the_right_version(user: Laptop, tmp_path: Path) -> None:
    template = notebook("size = 1", "size * 6", VERSION)
    template.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(template, tmp_path / "in.ipynb")
    papermill.execute_notebook(
        tmp_path / "in.ipynb",
        tmp_path / "out.ipynb",
        parameters={"size": 7},
        progress_bar=False,
        execution_timeout=60,
    )
    saved = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    *_, result, version = saved.cells
    assert result.outputs[0].data["text/plain"] == "42"
    assert saved.metadata.language_info.version == version.outputs[0].text.strip()


def test_the_console_runs_what_is_typed_and_leaves_nothing_at_its_exit(user: Laptop, rig: Rig) -> None:
    before = len(rig.engine.kernels())
    console = pexpect.spawn(
        sys.executable,
        ["-m", "jupyter_console", f"--kernel={NAME}", "--simple-prompt"],
        env={**user.env, "TERM": "dumb"},
        encoding="utf-8",
        timeout=30 * SLOW,
    )
    try:
        console.expect(r"In \[1\]: ")
        console.sendline("import platform; print('on', platform.node(), 6 * 7)")
        console.expect(r"on (\w+) 42")
        assert console.match[1] not in (platform.node(), "lab")
        console.sendline("input('who? ')[::-1]")
        console.expect(r"who\? ")
        console.sendline("ada")
        console.expect("'ada'")
        console.sendline("exit")
        console.expect(pexpect.EOF)
    finally:
        console.close(force=True)
    wait_until(lambda: len(rig.engine.kernels()) == before, "the console's container to be gone", 15)
