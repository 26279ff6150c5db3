"""channels/debug_paths.py: what an editor is told of paths, and who is not; links in tracebacks; cells on Windows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernelbridge.channels.debug_paths import DEFAULT_CELL_PREFIX, DebugPaths
from kernelbridge.channels.messages import Request
from kernelbridge.protocol.frames import CONTROL, DELIMITER


def to_local(path: str) -> str | None:
    return path.replace("/workspace", "/home/ann/proj", 1)


def paths(*, is_windows: bool = False) -> DebugPaths:
    local = r"c:\Users\ann\proj" if is_windows else "/home/ann/proj"
    return DebugPaths([{"localRoot": local, "remoteRoot": "/workspace"}], to_local=to_local, is_windows=is_windows)


def asked(command: str, *, client: bytes = b"one", message: str = "m1", **arguments: Any) -> Request:
    header = {"msg_type": "debug_request", "msg_id": message}
    content = {"type": "request", "command": command, "arguments": arguments, "seq": 1}
    written = [json.dumps(part).encode() for part in (header, {}, {}, content)]
    return Request(channel=CONTROL, identities=(client,), header=header, parts=(client, DELIMITER, b"", *written))


def said(content: dict[str, Any]) -> list[bytes]:
    return [b"topic", DELIMITER, b"", b"{}", b"{}", b"{}", json.dumps(content).encode()]


def content_of(parts: Any) -> Any:
    return json.loads(bytes(parts[6]))


def mappings(one: DebugPaths, **arguments: Any) -> Any:
    return one.rewritten(asked("attach", **arguments)).content["arguments"].get("pathMappings")


def test_vscode_is_told_how_folders_are_called_and_where_cells_are() -> None:
    one = paths()
    one.rewritten(asked("initialize", clientID="vscode"))
    assert mappings(one) == [
        {"localRoot": "/home/ann/proj", "remoteRoot": "/workspace"},
        {"localRoot": DEFAULT_CELL_PREFIX, "remoteRoot": DEFAULT_CELL_PREFIX},
    ]
    one.rewritten(asked("debugInfo", message="info"))
    one.replied("info", said({"body": {"tmpFilePrefix": "/tmp/kernelbridge-x/tmp/ipykernel_7/"}}))
    assert mappings(one)[-1]["remoteRoot"] == "/tmp/kernelbridge-x/tmp/"


def test_what_a_client_maps_itself_comes_first_and_all_else_of_its_attach_stays() -> None:
    one = paths()
    one.rewritten(asked("initialize", clientID="vscode"))
    own = {"localRoot": "/a", "remoteRoot": "/b"}
    attach = one.rewritten(asked("attach", pathMappings=[own], justMyCode=True))
    assert attach.content["arguments"]["pathMappings"][0] == own
    assert attach.content["arguments"]["justMyCode"] is True
    assert attach.content["seq"] == 1
    assert "clientOS" not in attach.content["arguments"]


def test_jupyterlab_keeps_the_kernels_own_paths() -> None:
    one = paths()
    one.rewritten(asked("initialize", clientID="jupyterlab"))
    assert mappings(one) is None
    one.rewritten(asked("initialize", client=b"two", clientID="vscode"))
    assert mappings(one) is None
    assert mappings(one, client=b"two") is not None


def test_other_requests_pass_unchanged() -> None:
    one = paths()
    request = asked("setBreakpoints", source={"path": "/home/ann/proj/a.py"})
    assert one.rewritten(request) is request


@pytest.mark.parametrize(
    "line, linked",
    [
        (
            "File \x1b[0;32m/workspace/a/b.py:12\x1b[0m, in f()",
            "File \x1b[0;32m/home/ann/proj/a/b.py:12\x1b[0m, in f()",
        ),
        ('  File "/workspace/a.py", line 3', '  File "/home/ann/proj/a.py", line 3'),
        ("File /other/workspace/a.py:1", "File /other/workspace/a.py:1"),
        ("File /workspaces/a.py:1", "File /workspaces/a.py:1"),
    ],
)
def test_a_traceback_names_the_files_here(line: str, linked: str) -> None:
    shown = paths().with_local_links(said({"ename": "E", "evalue": "", "traceback": [line]}))
    assert content_of(shown) == {"ename": "E", "evalue": "", "traceback": [linked]}


def test_a_message_without_such_paths_is_the_same() -> None:
    parts = said({"traceback": ["nothing"]})
    assert paths().with_local_links(parts) is parts
    strange = said({"traceback": "nothing"})
    assert paths().with_local_links(strange) is strange


def test_an_editor_on_windows_knows_its_cells_again() -> None:
    one = paths(is_windows=True)
    one.rewritten(asked("initialize", clientID="vscode"))
    assert one.rewritten(asked("attach")).content["arguments"]["clientOS"] == "windows"
    frames = [{"source": {"path": "\\tmp\\kb\\ipykernel_7\\1.py"}}, {"source": {"path": r"c:\Users\ann\proj\a.py"}}]
    shown = content_of(one.replied("x", said({"body": {"stackFrames": frames}})))
    assert [frame["source"]["path"] for frame in shown["body"]["stackFrames"]] == [
        "/tmp/kb/ipykernel_7/1.py",
        r"c:\Users\ann\proj\a.py",
    ]


def test_what_cannot_be_read_changes_nothing() -> None:
    one = paths()
    one.rewritten(asked("debugInfo", message="info"))
    one.replied("info", [b"t", DELIMITER, b"", b"{}", b"{}", b"{}", b"no JSON"])
    one.rewritten(asked("initialize", clientID="vscode"))
    assert mappings(one)[-1]["localRoot"] == DEFAULT_CELL_PREFIX
