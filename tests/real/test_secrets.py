"""Where a secret, an environment variable and what a cell printed are not written down; each place is shown to be read.

Who could listen in: test_security.py.
"""

from __future__ import annotations

import json
import logging
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.clients.blocking import Client
from tests.clients.notebook import Notebook, notebook
from tests.rig.daemon import SLOW, Daemon, wait_until
from tests.rig.lab import USERS
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

# What may stand nowhere; `label` is the one that the user asked to be shown.
MARKERS = {name: f"{name}-{secrets.token_hex(8)}" for name in ("token", "env", "passed", "output", "label")}
SHOWN_BY_WISH = {"events": {"label"}, "inspect": {"label"}, "snapshot": {"label"}, "disk": {"label"}}
PLANT = "kernelbridge-test-plant"
OTHER_UID = next(user.uid for user in USERS if user.name == "kbother")
# Whoever has the number of the image's own user on the host.
NAMESAKE_UID = 1000


class CommandLines:
    """The command line of every process of this machine and the made one, from its making until `close`."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="command-lines")
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_over.wait(0.01):
            for process in psutil.process_iter():
                try:
                    self.seen.add(" ".join(process.cmdline()))
                except psutil.Error:
                    continue

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()


class Places:
    """Every place where something of a kernel's life may be written down; `read` looks at all of them."""

    def __init__(self, rig: Rig, folder: Path, *, log: pytest.LogCaptureFixture) -> None:
        self._rig = rig
        self._log = log
        path = folder / "events.json"
        words = ["docker", "--host", rig.engine.url, "events", "--format", "{{json .}}"]
        self._daemon = Daemon("events", words, log=path)
        self._events = path
        # For grep, whose own words are command lines too; where the made machine's disk is not looked through.
        self._patterns = folder / "patterns"
        self._patterns.write_text("\n".join(MARKERS.values()))
        self._lines = CommandLines()
        # Until the recorder has seen one event of its own, it may not listen yet.
        wait_until(self._hears, "docker events to listen", 20)

    def _hears(self) -> bool:
        self._rig.engine.cli("network", "create", f"{PLANT}-{secrets.token_hex(2)}")
        self._rig.engine.cli("network", "prune", "--force")
        return bool(self._events.read_text())

    def read(self, *, containers: bool = True) -> dict[str, set[str]]:
        """Which markers stand where, by name."""
        cli = self._rig.engine.cli
        ids = cli("ps", "-aq").split() if containers else []
        places: dict[str, Callable[[], str]] = {
            "events": self._events.read_text,
            "inspect": lambda: cli("inspect", *ids) if ids else "",
            "logs": lambda: "".join(cli("logs", one) for one in ids),
            "snapshot": lambda: "".join(self._snapshot(one) for one in ids),
            "disk": self.disk,
            "command lines": lambda: "\n".join(self._lines.seen),
            "our log": lambda: self._log.text,
        }
        texts = {place: read() for place, read in places.items()}
        found = {place: {name for name, marker in MARKERS.items() if marker in text} for place, text in texts.items()}
        return {place: names for place, names in found.items() if names}

    def disk(self) -> str:
        """All files of the engine: layers, volumes, its own notes on containers, its logs."""
        return self._grep("-r", str(self._rig.lab.path / "engine"), str(self._rig.lab.log_folder))

    def _grep(self, *where: str) -> str:
        words = ["grep", "-ohaF", "-f", str(self._patterns), *where]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout

    def _snapshot(self, container: str) -> str:
        """What somebody gets who commits the container and saves the image."""
        image = f"{PLANT}:snapshot"
        saved = self._rig.lab.path / "snapshot.tar"
        self._rig.engine.cli("commit", container, image)
        self._rig.engine.cli("save", "--output", saved, image)
        found = self._grep(str(saved))
        self._rig.engine.cli("rmi", image)
        saved.unlink()
        return found

    def close(self) -> None:
        self._daemon.kill()
        self._lines.close()


@pytest.fixture
def places(rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Places]:
    caplog.set_level(logging.DEBUG)
    opened = Places(rig, tmp_path, log=caplog)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def secretive(rig: Rig, laptop: Laptop, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> Iterator[Notebook]:
    """A kernel with a secret, a variable of the config, one of this machine, and a label."""
    monkeypatch.setenv("HF_TOKEN", MARKERS["token"])
    monkeypatch.setenv("PASSED", MARKERS["passed"])
    laptop.write_environment(
        keys.pop("image", rig.image),
        secrets=["HF_TOKEN"],
        pass_env=["PASSED"],
        env={"NOTE": MARKERS["env"]},
        labels={"note": MARKERS["label"]},
        **keys,
    )
    with notebook(laptop) as kernel:
        yield kernel


def test_a_secret_is_in_no_label_event_log_layer_file_or_command_line_of_a_kernels_whole_life(
    rig: Rig, bridge_env: Laptop, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    with secretive(rig, bridge_env, monkeypatch) as kernel:
        kernel.run("import os")
        held = kernel.value("[os.environ[name] for name in ('HF_TOKEN', 'PASSED', 'NOTE')]")
        assert held == [MARKERS[name] for name in ("token", "passed", "env")]
        words = [MARKERS["output"][:9], MARKERS["output"][9:]]
        printed = kernel.run(f"print({words[0]!r} + {words[1]!r}); os.write(1, os.environ['NOTE'].encode())")
        assert MARKERS["output"] in printed
        assert kernel.debug("initialize", clientID="test", adapterID="")["success"]
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=30 * SLOW)
        kernel.run("import subprocess; subprocess.run(['sleep', '0.1'])")
        assert places.read() == SHOWN_BY_WISH
    assert not rig.engine.kernels()
    assert places.read(containers=False) == {"events": {"label"}}


def test_each_place_where_a_secret_could_be_written_down_is_looked_at(
    rig: Rig, bridge_env: Laptop, places: Places
) -> None:
    assert places.read() == {}
    cli = rig.engine.cli
    words = ["--name", PLANT, "--env", f"A={MARKERS['env']}", "--label", f"a={MARKERS['label']}", rig.image]
    # On the disk as a file, on the container's own stdout, in the words of a command.
    code = f"open('/noted', 'w').write({MARKERS['token'][::-1]!r}[::-1]); print({MARKERS['output'][::-1]!r}[::-1], "
    cli("run", "-d", *words, "python3", "-c", code + "flush=True); import time; time.sleep(600)")
    cli("exec", PLANT, "true", MARKERS["passed"])
    logging.getLogger("kernelbridge.kernel").debug("started with %s", MARKERS["token"])
    wait_until(lambda: MARKERS["output"] in cli("logs", PLANT), "the plant to print", 20)
    found = places.read()
    cli("rm", "--force", PLANT)
    assert found.pop("events") == {"label", "passed"}
    assert found.pop("inspect") == {"env", "label"}
    assert found.pop("logs") == {"output"}
    assert found.pop("snapshot") == {"env", "label", "token"}
    assert {"env", "label", "token", "output"} <= found.pop("disk")
    assert {"env", "label", "passed"} <= found.pop("command lines")
    assert found.pop("our log") == {"token"}
    assert found == {}


# About 17 MB, the secret in all of it; what waits beyond 8 MiB goes to the host's disk.
SHOUTING = """
import os, time
time.sleep(3)
for _ in range(30):
    print(os.environ['HF_TOKEN'] * 25_000, flush=True)
"""


def journal_files(rig: Rig) -> list[str]:
    """The files below the journals of all containers, on the made machine's disk."""
    volumes = [mount["Source"] for one in rig.engine.kernels() for mount in one.attrs["Mounts"]]
    assert volumes, "the journal has a volume of its own"
    return rig.lab.run(["find", *volumes, "-type", "f"]).split()


def journal_modes(rig: Rig) -> set[str]:
    return set(rig.lab.run(["stat", "-c", "%a", *journal_files(rig)]).split())


def volumes(rig: Rig) -> set[str]:
    with rig.engine.client() as client:
        return {str(volume.id) for volume in client.volumes.list()}


@pytest.mark.parametrize("keys", [{}, {"image": Rig.user_image, "user": "image"}])
def test_a_secret_that_a_cell_prints_waits_on_the_disk_for_root_alone_until_it_is_delivered(
    rig: Rig, bridge_env: Laptop, places: Places, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]
) -> None:
    before = volumes(rig)
    with secretive(rig, bridge_env, monkeypatch, **keys, host={"ssh": "lab-proxied"}) as kernel:
        client = Client(kernel.client)
        cell = client.send(SHOUTING)
        client.wait_for(lambda message: message["msg_type"] == "execute_input")
        with rig.proxy.cut():
            wait_until(lambda: len(journal_files(rig)) > 0, "the journal's file", 30)
            wait_until(lambda: MARKERS["token"] in places.disk(), "the secret on the disk", 30)
            assert places.read() == {**SHOWN_BY_WISH, "disk": {"label", "token"}}
            assert journal_modes(rig) == {"600"}
            for login in (OTHER_UID, NAMESAKE_UID):
                assert not can_read(rig, login, journal_files(rig))
            assert can_read(rig, 0, journal_files(rig))
        assert client.finish(cell).text == f"{MARKERS['token'] * 25_000}\n" * 30
        wait_until(lambda: journal_files(rig) == [], "the journal's file to be gone", 10)
        assert places.read() == SHOWN_BY_WISH
    assert not rig.engine.kernels()
    assert volumes(rig) == before
    assert places.read(containers=False) == {"events": {"label"}}


def can_read(rig: Rig, uid: int, paths: Sequence[str]) -> bool:
    """Whether a login of the host can read any of these files."""
    ids = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--"]
    words = rig.lab.inside([*ids, "head", "-qc1", *paths])
    return bool(subprocess.run(words, capture_output=True, check=False).stdout)


@pytest.fixture
def core_limit_off(rig: Rig) -> Iterator[None]:
    """As systemd's unit for Docker has it; the test machine's own limit would hide what we forbid."""
    daemons = rig.lab.processes_named("dockerd", "containerd")
    before = [process.rlimit(psutil.RLIMIT_CORE) for process in daemons]
    for process in daemons:
        process.rlimit(psutil.RLIMIT_CORE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    yield
    for process, limit in zip(daemons, before, strict=True):
        process.rlimit(psutil.RLIMIT_CORE, limit)


@pytest.mark.usefixtures("core_limit_off")
def test_a_crash_writes_no_core_file_unless_the_config_wants_one(
    rig: Rig, bridge_env: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = rig.lab.home("kbtest") / "crash"
    rig.lab.run(["install", "-d", "-m", "777", str(folder)])
    crash = "import os, subprocess; subprocess.run(['python3', '-c', 'import os; os.abort()'], cwd='/crash').returncode"
    cores: list[list[bytes]] = []
    for keys in ({}, {"core_dumps": True}):
        with secretive(rig, bridge_env, monkeypatch, mounts=["~/crash:/crash"], **keys) as kernel:
            assert kernel.value(crash) == -6
            limit = kernel.value("__import__('resource').getrlimit(__import__('resource').RLIMIT_CORE)")
            assert (limit == (0, 0)) is (keys == {})
        cores.append([path.read_bytes() for path in folder.iterdir()])
    rig.lab.run(["rm", "-r", str(folder)])
    assert cores[0] == []
    # A crash handler of this machine's would take the file away before it could be seen.
    if Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/")):
        pytest.skip("core_pattern of this machine takes core files away: the control cannot see one")
    assert [MARKERS["token"].encode() in core for core in cores[1]] == [True]


def test_the_debug_log_of_everything_we_use_holds_no_key_and_no_cell(
    rig: Rig, bridge_env: Laptop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with notebook(bridge_env) as kernel:
        kernel.run(f"print({MARKERS['output']!r})")
        key = kernel.client.session.key.decode()
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("traitlets", "asyncio"))]
    assert len(ours) > 20
    assert not [line for line in ours if key in line or MARKERS["output"] in line]


def test_what_is_kept_on_this_machine_is_closed_to_others_and_holds_no_secret(
    rig: Rig, bridge_env: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with secretive(rig, bridge_env, monkeypatch) as kernel:
        kernel.run("1")
    kept = [path for folder in (bridge_env.data_dir, bridge_env.home / ".local") for path in folder.rglob("*")]
    assert bridge_env.data_dir / "kernelbridge" / "images.json" in kept
    assert (bridge_env.data_dir / "kernelbridge").stat().st_mode & 0o077 == 0
    for path in kept:
        text = path.read_text(errors="replace") if path.is_file() else ""
        assert not [name for name, marker in MARKERS.items() if marker in text], path
    spec = json.loads((bridge_env.data_dir / "kernels" / "kernelbridge-test" / "kernel.json").read_text())
    assert spec["env"].keys() == {"KERNELBRIDGE_ENVIRONMENT", "KERNELBRIDGE_CONFIG"}
