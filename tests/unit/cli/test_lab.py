"""cli/lab.py: what `open` means by a word, and which JupyterLab that runs can show it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.cli import lab
from kernelbridge.cli.lab import LabPage, LabServer
from kernelbridge.config import load
from kernelbridge.errors import KernelBridgeError, KernelNotFound
from kernelbridge.kernel.records import KernelRecord, SessionRecord
from tests.unit.cli.conftest import CONFIG

FIRST, SECOND = "aabb1111-0000-4000-8000-000000000001", "aabb2222-0000-4000-8000-000000000002"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the user is: a notebook, and one in a folder."""
    (tmp_path / "here/deep").mkdir(parents=True)
    for name in ("train.ipynb", "deep/other.ipynb"):
        (tmp_path / "here" / name).write_text("{}")
    return tmp_path / "here"


def page(word: str | None, folder: Path, *records: KernelRecord) -> LabPage:
    config = folder.parent / "kernelbridge.toml"
    config.write_text(CONFIG)
    return lab.page_of(word, load.load(config), records, folder)


def record(folder: Path, kernel_id: str = FIRST, **facts: Any) -> KernelRecord:
    made_up: dict[str, Any] = {"environment": "pytorch", "host": "lab", "image": "x", "python": "python3"}
    made_up |= {"session": "s", "started": 1.0, "config": str(folder.parent / "kernelbridge.toml")}
    return KernelRecord(kernel_id=kernel_id, **{**made_up, **facts})


def of_server(folder: Path, path: str, **facts: Any) -> KernelRecord:
    session = SessionRecord(session_id="s", path=path, name=path, type="notebook")
    return record(folder, server=str(folder), sessions=(session,), title=path.rpartition("/")[2], **facts)


def test_without_a_word_it_is_this_folder(folder: Path) -> None:
    assert page(None, folder) == LabPage(root=folder)
    assert page("deep", folder) == LabPage(root=folder / "deep")
    assert page(None, folder).arguments(browser=True) == []


def test_an_environment_is_the_kernel_of_new_notebooks(folder: Path) -> None:
    found = page("pytorch", folder)
    assert found == LabPage(root=folder, spec="kernelbridge-pytorch")
    spec = "--MultiKernelManager.default_kernel_name=kernelbridge-pytorch"
    assert found.arguments(browser=False) == ["--no-browser", spec]


def test_a_notebook_is_shown_in_this_folder_or_in_its_own(folder: Path) -> None:
    assert page("deep/other.ipynb", folder) == LabPage(root=folder, notebook="deep/other.ipynb")
    config = load.load(folder.parent / "kernelbridge.toml")
    assert lab.page_of("../train.ipynb", config, [], folder / "deep") == LabPage(root=folder, notebook="train.ipynb")
    assert page("train.ipynb", folder).arguments(browser=True) == ["./train.ipynb"]


def test_a_notebook_whose_kernel_runs_is_shown_where_its_server_showed_it(folder: Path) -> None:
    known = of_server(folder, "deep/other.ipynb")
    expected = LabPage(root=folder, notebook="deep/other.ipynb")
    for word in ("aabb", "other", "deep/other", "deep/other.ipynb"):
        assert page(word, folder, known) == expected
    config = load.load(folder.parent / "kernelbridge.toml")
    assert lab.page_of("other.ipynb", config, [known], folder / "deep") == expected


def test_a_notebook_of_vs_code_has_its_kernel_picked(folder: Path) -> None:
    known = record(folder, notebook=str(folder / "train.ipynb"), title="train.ipynb")
    expected = LabPage(root=folder, notebook="train.ipynb", is_to_be_picked=True)
    assert page("aabb", folder, known) == expected
    assert page("train.ipynb", folder, known) == expected


def test_a_kernel_without_a_notebook_here_is_for_a_console(folder: Path) -> None:
    with pytest.raises(KernelBridgeError, match="No notebook of aabb1111-000 is known here") as caught:
        page("aabb", folder, record(folder, notebook="/gone/train.ipynb"))
    assert "kernelbridge attach aabb1111-000" in caught.value.remedy


def test_several_kernels_are_listed_and_an_unknown_word_is_told(folder: Path) -> None:
    with pytest.raises(KernelNotFound, match="may be any of 2 kernels: aabb1111-000"):
        page("aabb", folder, record(folder), record(folder, SECOND))
    with pytest.raises(KernelBridgeError, match="`nothing` is neither a notebook here, nor an environment"):
        page("nothing", folder, record(folder))
    with pytest.raises(KernelBridgeError, match="neither"):
        page("aabb", folder, record(folder, config="/another"))


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # the name is http.server's
        is_let_in = self.headers["Authorization"] == "token secret"
        has_lab = self.path == "/base/lab" and is_let_in
        self.send_response(200 if has_lab else 403)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        """Print nothing."""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What a server that runs has written of itself."""
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {"url": f"http://127.0.0.1:{server.server_port}/base/", "token": "secret", "root_dir": str(tmp_path)}
        server.shutdown()
        thread.join()


def test_a_server_that_runs_shows_what_is_in_its_folder(tmp_path: Path, running: dict[str, Any]) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    assert lab.server_for(LabPage(root=tmp_path), runtime) is None
    # One that is gone, one that is being written, one whose folder is elsewhere, one that lets nobody in.
    gone = {"url": "http://127.0.0.1:9/", "token": "", "root_dir": str(tmp_path / "deep")}
    texts = [json.dumps(gone), '{"url"', json.dumps({**running, "root_dir": "/elsewhere"}), "[]"]
    texts += [json.dumps({**running, "token": "other"})]
    for number, text in enumerate(texts):
        (runtime / f"jpserver-{number}.json").write_text(text)
    wanted = LabPage(root=tmp_path / "deep", notebook="a b.ipynb")
    assert lab.server_for(wanted, runtime) is None
    (runtime / "jpserver-9.json").write_text(json.dumps(running))
    found = lab.server_for(wanted, runtime)
    assert found is not None
    assert found.address(wanted) == f"{running['url']}lab/tree/deep/a%20b.ipynb?token=secret"
    assert found.address(LabPage(root=tmp_path)) == f"{running['url']}lab?token=secret"


def test_a_server_without_a_token_has_none_in_its_address(tmp_path: Path) -> None:
    server = LabServer(url="http://h/", token="", root=tmp_path)
    assert server.address(LabPage(root=tmp_path)) == "http://h/lab"


def test_the_way_to_a_page_is_closed_to_others(tmp_path: Path) -> None:
    file = lab.write_way('http://h/lab?token=a&b="', tmp_path)
    assert file.stat().st_mode & 0o077 == 0
    assert 'content="0;url=http://h/lab?token=a&amp;b=&quot;"' in file.read_text()
