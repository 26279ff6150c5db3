"""channels/vscode.py: VS Code's start-up cells are recognised, answered before the kernel is there, and read."""

from __future__ import annotations

import pytest

from kernelbridge.channels import vscode
from kernelbridge.channels.messages import Request
from kernelbridge.protocol.frames import CONTROL
from tests.made_requests import PROBE, STARTUP, execute, hidden, request


@pytest.mark.parametrize(
    ("asked", "widgets", "printed"),
    [
        (execute(PROBE), "8.1.5", ["abc123IPyWidgets:8.1.5\n"]),
        (execute(PROBE), vscode.NOT_INSTALLED, []),
        (hidden(STARTUP), "8.1.5", []),
        (hidden("%load_ext autoreload"), "", []),
    ],
)
def test_startup_cells_are_answered_as_the_kernel_would(asked: Request, widgets: str, printed: list[str]) -> None:
    answers = vscode.early_answer(asked, widgets)
    assert [answer.content["text"] for answer in answers if answer.kind == "stream"] == printed
    assert [answer.content["status"] for answer in answers if answer.kind == "execute_reply"] == ["ok"]


def found(*asked: Request) -> list[str]:
    """Ids of those that are VS Code's start-up cells, as they come one after the other."""
    cells = vscode.StartupCells()
    for one in asked:
        cells.look(one)
    return [one.id for one in asked if one in cells]


RUN = hidden("%load_ext autoreload\n%autoreload 2", name="runStartupCommands")
INFO = request("kernel_info_request", name="info")


@pytest.mark.parametrize(
    ("asked", "startup"),
    [
        # As VS Code sends them: probe, its own code, the user's start-up commands, kernel_info, the user's cell.
        (
            [execute(PROBE, name="probe"), hidden(STARTUP, name="own"), RUN, INFO, execute(name="user")],
            ["probe", "own", "runStartupCommands"],
        ),
        # Code of a version that begins otherwise; the Interactive Window's, which has a hook in front.
        ([execute(PROBE, name="probe"), hidden("__vsc_ipynb_file__ = 'a'", name="own"), INFO], ["probe", "own"]),
        ([hidden(f"import os\nos.environ['X'] = '1'\n{STARTUP}", name="own")], ["own"]),
        # A second client's cell between them; a subshell's or control's question ends nothing.
        (
            [execute(PROBE, name="probe"), execute(name="user", who=b"other"), RUN],
            ["probe", "runStartupCommands"],
        ),
        (
            [execute(PROBE, name="probe"), request("kernel_info_request", channel=CONTROL, name="c"), RUN],
            ["probe", "runStartupCommands"],
        ),
        ([execute(PROBE, name="probe"), hidden("1", name="foreign", who=b"other")], ["probe"]),
        # The Interactive Window tells each file's name before its first cell.
        ([INFO, hidden("__file__ = '/home/ada/it\\\\s.py'", name="file")], ["file"]),
        ([INFO, hidden("__file__ = 'a'; print(1)", name="file")], []),
        # What VS Code and extensions run later waits for the kernel: their output matters.
        ([execute(PROBE, name="probe"), INFO, RUN], ["probe"]),
        ([execute(PROBE, name="probe"), execute(name="user"), RUN], ["probe"]),
        # Nor does it matter where the debugger's questions come.
        (
            [execute(PROBE, name="probe"), hidden("import ipykernel\nprint(ipykernel.__version__)", name="asks")],
            ["probe"],
        ),
        ([execute(PROBE, name="probe"), hidden("import debugpy\ndebugpy.debug_this_thread()", name="d")], ["probe"]),
        ([hidden("import ipykernel\nprint(ipykernel.__version__)", name="asks")], []),
        ([execute(STARTUP, name="written by a user")], []),
        ([request("complete_request", name="completes")], []),
    ],
)
def test_vscodes_startup_cells_are_told_by_what_they_are_and_by_their_order(
    asked: list[Request], startup: list[str]
) -> None:
    assert found(*asked) == startup


@pytest.mark.parametrize(
    ("printed", "version"),
    [(["noise\nP:8.1.5\n"], "8.1.5"), (["P:", "8.1.5"], "8.1.5"), (["P:"], ""), ([], ""), (["other"], "")],
)
def test_the_version_is_read_from_what_the_probe_printed(printed: list[str], version: str) -> None:
    assert vscode.printed_version("P:", printed) == version


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ('__vsc_ipynb_file__ = "/home/ada/train.ipynb"', "/home/ada/train.ipynb"),
        ('__vsc_ipynb_file__ = "c:\\\\Users\\\\ada\\\\train.ipynb"', "c:\\Users\\ada\\train.ipynb"),
        # VS Code escapes no quotes.
        ('__vsc_ipynb_file__ = "/home/ada/"a".ipynb"', '/home/ada/"a".ipynb'),
        ("", ""),
    ],
)
def test_the_start_up_cell_names_the_notebook(line: str, path: str) -> None:
    assert vscode.notebook_path(hidden(f"{STARTUP}\n{line}\nimport this\n")) == path
    # The user may have such a line as well.
    assert vscode.notebook_path(execute(line)) == ""


@pytest.mark.parametrize(
    ("cell_id", "path"),
    [
        ("vscode-notebook-cell:/home/ada/my%20work/train.ipynb#W0sZmlsZQ%3D%3D", "/home/ada/my work/train.ipynb"),
        ("vscode-notebook-cell://ssh-remote%2Blab/home/ada/train.ipynb#W0s", "/home/ada/train.ipynb"),
        ("vscode-notebook-cell:/c%3A/Users/ada/train.ipynb#W0s", "c:/Users/ada/train.ipynb"),
        ("vscode-notebook-cell:Untitled-1.ipynb?jupyter-notebook#W0s", "Untitled-1.ipynb"),
        # JupyterLab's.
        ("3f2a91c0-5f4e", ""),
        ("http://[", ""),
        (None, ""),
    ],
)
def test_a_users_cell_has_an_address_in_its_notebook(cell_id: str | None, path: str) -> None:
    asked = execute("1", metadata={} if cell_id is None else {"cellId": cell_id})
    assert vscode.notebook_path(asked) == path
    assert vscode.notebook_path(request("complete_request", metadata={"cellId": cell_id})) == ""
