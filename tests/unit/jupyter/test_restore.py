"""jupyter/restore.py and the events' schema: which kernels a server takes up, how, and what it leaves behind."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from jupyter_client.kernelspec import KernelSpec, NoSuchKernel
from jupyter_events import EventLogger
from jupyter_server.serverapp import ServerApp
from tornado.ioloop import IOLoop
from tornado.web import HTTPError

from kernelbridge.jupyter.extension import PROGRESS_SCHEMA
from kernelbridge.jupyter.provisioner import Provisioner
from kernelbridge.jupyter.restore import CLAIM_OVER_SECONDS, KernelRestorer, due, rows_by_kernel, title_of
from kernelbridge.kernel.kernel import Kernel
from kernelbridge.kernel.process_mark import Liveness
from kernelbridge.kernel.records import KernelRecord, Records, SessionRecord, default_folder
from kernelbridge.kernel.state import KernelState
from tests.fakes import row

CONFIG, ROOT, NOW = "/config/kernelbridge.toml", "/home/ada/work", 1000.0
SESSION = SessionRecord(session_id="s1", path="folder/work.ipynb", name="work.ipynb", type="notebook")


def record(kernel_id: str = "k1", **known: Any) -> KernelRecord:
    """A kernel that a server with this root folder left without a word; what the test does not name is made up."""
    made_up: dict[str, Any] = {
        "environment": "torch",
        "config": CONFIG,
        "host": "lab",
        "image": "torch:2",
        "python": "python3",
        "session": "kernel-session",
        "started": 10.0,
        "process": "77@1.00",
        "server": ROOT,
    }
    return KernelRecord(kernel_id=kernel_id, **{**made_up, **known})


LEFT = {"left": NOW - 100, "process": "", "persist": True}


@pytest.mark.parametrize(
    ("known", "is_due"),
    [
        # Killed: also without `persist`, but only the same server's.
        ({}, True),
        ({"persist": True}, True),
        ({"server": ""}, False),
        ({"server": "/elsewhere"}, False),
        # Left in good order: by the same server, or by VS Code or a program.
        (LEFT, True),
        ({**LEFT, "persist": False}, False),
        ({**LEFT, "server": ""}, True),
        ({**LEFT, "server": "/elsewhere"}, False),
        # A restart in VS Code may claim it first.
        ({**LEFT, "server": "", "claim": "abc"}, True),
        ({**LEFT, "server": "", "claim": "abc", "left": NOW - CLAIM_OVER_SECONDS + 1}, False),
        ({**LEFT, "server": "", "left": NOW - 1}, True),
        # Held, not wanted, another config's.
        ({"process": "alive"}, False),
        ({**LEFT, "process": "alive"}, False),
        # Nobody here knows whether another machine's process has ended.
        ({"process": "elsewhere"}, False),
        ({**LEFT, "process": "elsewhere"}, False),
        ({"stop_wanted": True}, False),
        ({"config": "/other.toml"}, False),
    ],
)
def test_a_server_takes_up_what_was_its_own_or_nobodys_and_lives_on(known: dict[str, Any], is_due: bool) -> None:
    one = record(**known)
    marks = {"alive": Liveness.ALIVE, "elsewhere": Liveness.UNKNOWN}
    found = due([one], config=CONFIG, server=ROOT, now=NOW, liveness=lambda one: marks.get(one.process, Liveness.ENDED))
    assert found == ([one] if is_due else [])


def model(kernel_id: str, session_id: str, path: str, name: str | None = None) -> dict[str, Any]:
    """A session as Jupyter's REST has it."""
    return {"id": session_id, "path": path, "name": name, "type": "notebook", "kernel": {"id": kernel_id}}


def test_all_sessions_of_a_kernel_are_remembered_in_order() -> None:
    rows = rows_by_kernel([model("k1", "s1", "a.ipynb", "a.ipynb"), model("k2", "s2", "b"), model("k1", "s3", "c")])
    assert [one.session_id for one in rows["k1"]] == ["s1", "s3"]
    assert rows["k2"] == (SessionRecord(session_id="s2", path="b", name="", type="notebook"),)


def test_a_kernel_is_called_as_its_notebook() -> None:
    assert title_of([SESSION]) == "work.ipynb"
    assert title_of([replace(SESSION, name="")]) == "work.ipynb"
    assert title_of([]) == ""


# -- a server


class FakeSessions:
    """Jupyter's table of sessions."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.is_locked = False

    async def get_session(self, *, session_id: str) -> dict[str, Any]:
        for one in self.rows:
            if one["id"] == session_id:
                return one
        raise HTTPError(404)

    async def save_session(self, session_id: str, *, path: str, name: str, type: str, kernel_id: str) -> None:
        self.rows.append({**model(kernel_id, session_id, path, name), "type": type})

    async def list_sessions(self) -> list[dict[str, Any]]:
        if self.is_locked:
            raise sqlite3.OperationalError("database is locked")
        return self.rows


@dataclass
class FakeKernelManager:
    """Jupyter's manager of one kernel."""

    provisioner: Provisioner
    execution_state: str = "starting"
    last_activity: datetime | None = None
    is_restarting: bool = True

    def stop_restarter(self) -> None:
        self.is_restarting = False


class FakeManager:
    """Jupyter's manager of all kernels."""

    root_dir = ROOT

    def __init__(self) -> None:
        self.kernels: dict[str, FakeKernelManager] = {}
        self.started: list[tuple[str, str]] = []
        # Kernels whose start fails, and the specs that are there with the configs they name.
        self.broken: set[str] = set()
        self.specs = {"kernelbridge-torch": CONFIG}
        self.unwatched: list[str] = []
        self.kernel_spec_manager = self

    def get_kernel_spec(self, name: str) -> KernelSpec:
        if name not in self.specs:
            raise NoSuchKernel(name)
        return KernelSpec(metadata={"kernelbridge": {"config": self.specs[name]}})

    def __contains__(self, kernel_id: str) -> bool:
        return kernel_id in self.kernels

    def list_kernel_ids(self) -> list[str]:
        return list(self.kernels)

    def get_kernel(self, kernel_id: str) -> FakeKernelManager:
        return self.kernels[kernel_id]

    def remove_kernel(self, kernel_id: str) -> None:
        del self.kernels[kernel_id]

    def stop_watching_activity(self, kernel_id: str) -> None:
        self.unwatched.append(kernel_id)

    async def start_kernel(self, *, kernel_name: str, kernel_id: str, path: str) -> str:
        self.started.append((kernel_name, kernel_id))
        if kernel_id in self.broken:
            raise OSError("no more sockets")
        self.kernels[kernel_id] = FakeKernelManager(provisioner=Provisioner())
        return kernel_id


@dataclass
class FakeFleet:
    """Runs at once what it is given; knows what was left."""

    left: list[Any] = field(default_factory=list)

    def submit(self, coro: Coroutine[Any, Any, Any]) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            coro.send(None)
        except StopIteration as exc:
            done.set_result(exc.value)
        return done

    async def detach(self, kernel: Any) -> None:
        self.left.append(kernel)


class FakeServer:
    """What of a ServerApp is used."""

    def __init__(self) -> None:
        self.kernel_manager = FakeManager()
        self.session_manager = FakeSessions()
        self.gateway_config = SimpleNamespace(gateway_enabled=False)
        self.log = logging.getLogger("test")
        self.io_loop = IOLoop(make_current=False)
        self.base_url = "/base/"
        self.web_app = self
        self.handlers: list[str] = []

    def add_handlers(self, host: str, handlers: list[tuple[str, type]]) -> None:
        self.handlers += [pattern for pattern, _ in handlers]

    def hold(self, kernel_id: str, fleet: FakeFleet, *, persist: bool, state: KernelState = KernelState.RUNNING) -> Any:
        """Give it a kernel of ours."""
        environment = SimpleNamespace(persist=persist, name="torch", image="torch:2")
        is_final = state in (KernelState.FAILED, KernelState.STOPPED)
        kernel = SimpleNamespace(request=SimpleNamespace(environment=environment), state=state, is_final=is_final)
        provisioner = Provisioner()
        provisioner._kernel, provisioner._fleet = cast(Kernel, kernel), cast(Any, fleet)
        self.kernel_manager.kernels[kernel_id] = FakeKernelManager(provisioner=provisioner)
        return kernel


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Records:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    return Records(default_folder())


@pytest.fixture
def server() -> Iterator[FakeServer]:
    made = FakeServer()
    yield made
    made.io_loop.close(all_fds=True)


def comeback(server: FakeServer) -> KernelRestorer:
    return KernelRestorer(cast(ServerApp, server), Path(CONFIG))


def test_at_load_kernels_and_sessions_are_there_under_their_old_ids(records: Records, server: FakeServer) -> None:
    records.keep(record(sessions=(SESSION,)))
    comeback(server).at_load()
    assert server.kernel_manager.started == [("kernelbridge-torch", "k1")]
    assert server.session_manager.rows == [model("k1", "s1", "folder/work.ipynb", "work.ipynb")]


def test_one_that_cannot_come_back_keeps_neither_the_server_nor_the_others_away(
    records: Records, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    records.keep(record("k1", started=1.0))
    records.keep(record("k2", started=2.0))
    server.kernel_manager.broken = {"k1"}
    made = comeback(server)
    made.at_load()
    assert server.kernel_manager.list_kernel_ids() == ["k2"]
    assert "kernel k1 cannot be taken up" in caplog.text
    # It is not tried again at once.
    made.at_load()
    assert [kernel_id for _, kernel_id in server.kernel_manager.started] == ["k1", "k2"]


def test_a_session_that_the_servers_own_file_has_still_is_not_doubled(records: Records, server: FakeServer) -> None:
    records.keep(record(sessions=(SESSION,)))
    server.session_manager.rows.append(model("k1", "s1", "folder/work.ipynb", "work.ipynb"))
    comeback(server).at_load()
    assert len(server.session_manager.rows) == 1


@pytest.mark.parametrize("specs", [{}, {"kernelbridge-torch": "/other.toml"}])
def test_without_its_own_environment_a_kernel_waits(
    records: Records, server: FakeServer, specs: dict[str, str]
) -> None:
    records.keep(record())
    server.kernel_manager.specs = specs
    comeback(server).at_load()
    assert server.kernel_manager.started == []


def test_a_server_whose_kernels_are_another_servers_takes_up_nothing(records: Records, server: FakeServer) -> None:
    records.keep(record())
    server.gateway_config.gateway_enabled = True
    comeback(server).at_load()
    assert server.kernel_manager.started == []


async def test_where_the_loop_runs_already_they_come_at_its_next_turn(records: Records, server: FakeServer) -> None:
    records.keep(record())
    later: list[Any] = []
    server.io_loop = cast(IOLoop, SimpleNamespace(add_callback=later.append, close=lambda all_fds: None))
    comeback(server).at_load()
    assert server.kernel_manager.started == []
    await later[0]()
    assert server.kernel_manager.list_kernel_ids() == ["k1"]


def test_a_fault_at_load_is_logged_and_the_server_starts(
    records: Records, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.gateway_config = None  # type: ignore[assignment]  # the fault
    comeback(server).at_load()
    assert "cannot be taken up" in caplog.text


async def test_what_is_remembered_follows_the_notebooks_of_a_kernel(records: Records, server: FakeServer) -> None:
    records.keep(record(title="torch"))
    server.hold("k1", FakeFleet(), persist=True)
    made = comeback(server)
    assert repr(made) == "<KernelRestorer 1 kernels>"
    server.session_manager.rows = [model("k1", "s1", "before.ipynb", "before.ipynb")]
    await made.look()
    known = records.kernel("k1")
    assert known is not None
    assert (known.title, known.sessions[0].path) == ("before.ipynb", "before.ipynb")
    server.session_manager.rows = [model("k1", "s1", "after.ipynb", "after.ipynb")]
    await made.look()
    known = records.kernel("k1")
    assert known is not None
    assert (known.title, known.sessions[0].path) == ("after.ipynb", "after.ipynb")
    # Its notebook closed, the kernel is called as before.
    server.session_manager.rows = []
    await made.look()
    known = records.kernel("k1")
    assert known is not None
    assert (known.title, known.sessions) == ("after.ipynb", ())


async def test_a_kernel_that_is_only_about_to_come_does_not_grow_idle(records: Records, server: FakeServer) -> None:
    server.hold("k1", FakeFleet(), persist=True, state=KernelState.STARTING)
    server.hold("k2", FakeFleet(), persist=True)
    await comeback(server).look()
    activity = {name: kernel.last_activity for name, kernel in server.kernel_manager.kernels.items()}
    assert activity["k1"] is not None
    assert activity["k2"] is None


def test_what_a_kernel_does_is_shown_before_any_page_is_there(records: Records, server: FakeServer) -> None:
    server.hold("k1", FakeFleet(), persist=True)
    made, manager = comeback(server), server.kernel_manager.kernels["k1"]
    made.observed("k1", KernelState.LINK_LOST)
    assert manager.execution_state == "starting"
    made.observed("k1", KernelState.BUSY)
    assert manager.execution_state == "busy"
    made.observed("gone", KernelState.IDLE)
    assert [(found[0], found[3]) for found in made.held()] == [("k1", "busy")]
    assert made.kernel("k1") is not None
    assert made.kernel("gone") is None


async def test_only_kernels_that_persist_are_left_and_pages_hear_nothing_of_it(
    records: Records, server: FakeServer
) -> None:
    fleet = FakeFleet()
    kept = server.hold("k1", fleet, persist=True)
    server.hold("k2", fleet, persist=False)
    server.hold("k3", fleet, persist=True, state=KernelState.FAILED)
    manager, made = server.kernel_manager.kernels["k1"], comeback(server)
    await made.leave()
    assert fleet.left == [kept]
    assert server.kernel_manager.list_kernel_ids() == ["k2", "k3"]
    assert server.kernel_manager.unwatched == ["k1"]
    assert not manager.is_restarting
    assert server.handlers == ["/base/api/kernels.*", "/base/api/sessions.*"]
    records.keep(record("k4"))
    await made.look()
    assert server.kernel_manager.started == []
    assert repr(made) == "<KernelRestorer 2 kernels, leaving>"


async def test_kernels_are_left_also_where_their_notebooks_cannot_be_remembered(
    records: Records, server: FakeServer
) -> None:
    fleet = FakeFleet()
    kept = server.hold("k1", fleet, persist=True)
    server.session_manager.is_locked = True
    await comeback(server).leave()
    assert fleet.left == [kept]


async def test_with_nothing_to_leave_a_stop_is_as_ever(records: Records, server: FakeServer) -> None:
    server.hold("k1", FakeFleet(), persist=False)
    await comeback(server).leave()
    assert (server.kernel_manager.list_kernel_ids(), server.handlers) == (["k1"], [])


# -- rows and events


def test_a_kernel_as_json_has_each_fact_with_moments_and_gpus_in_plain_words() -> None:
    one = row("k1", gpus="GPU-1,GPU-2", since=datetime(2026, 11, 20, 12, 0))
    told = one.to_json()
    assert list(told) == [field.name for field in fields(one)]
    assert (told["since"], told["gpus"]) == ("2026-11-20T12:00:00", ["GPU-1", "GPU-2"])
    assert json.loads(json.dumps(told)) == told
    assert row("k1", gpus="").to_json()["gpus"] == []


def test_the_schema_takes_each_state_and_no_other() -> None:
    logger = EventLogger()
    logger.register_event_schema(Path(str(resources.files("kernelbridge.jupyter") / "kernel_progress.yaml")))
    event = {"kernel_id": "k1", "text": "", "since": "2026-11-20T12:00:00+00:00", "host": "lab"}
    # Those are said of kernels in a list only.
    for state in {state.value for state in KernelState} - {KernelState.HELD, KernelState.UNKNOWN}:
        logger.schemas.validate_event(PROGRESS_SCHEMA, {**event, "state": state})
    with pytest.raises(Exception, match="'sleepy' is not one of"):
        logger.schemas.validate_event(PROGRESS_SCHEMA, {**event, "state": "sleepy"})
