"""What our code does with files: on the user's machine, and in a relay. By name."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any, Final
from unittest import mock

from kernelbridge.atomic_files import write_once, write_whole
from kernelbridge.cli import app
from kernelbridge.cli.commands import ssh as ssh_command
from kernelbridge.cli.ssh import config as ssh_config
from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.files.holder import Holder
from kernelbridge.files.ignore import PARTS_FOLDER
from kernelbridge.files.listing import Entry, Kind, look_here
from kernelbridge.files.manifest import Manifest
from kernelbridge.files.plan import Known
from kernelbridge.files.transfer import local_copy
from kernelbridge.fleet import log_files
from kernelbridge.hosts.docker.images import wheels
from kernelbridge.hosts.docker.images.wheels import Wheel
from kernelbridge.hosts.transport import host_keys
from kernelbridge.jupyter import kernelspecs
from kernelbridge.kernel import life_lock
from kernelbridge.kernel.records import ImageRecord, KernelRecord, Records
from kernelbridge.kernel.start.kept_logs import KeptLogs
from kernelbridge.relay.beside import terminal
from kernelbridge.relay.gpus.gpu_lock import GpuLocks, Refused
from kernelbridge.relay.journal import Journal
from kernelbridge.relay.process import setup_runner
from kernelbridge.relay.spool import Spool
from tests.disk.faults import Fault
from tests.disk.runs import Case, State, files
from tests.fakes import FakeFleet
from tests.outputs import event, read, said

_LAB: Final = Host(name="lab", ssh="lab")
_INFO: Final = {"status": "ok", "implementation": "ipython"}
_OTHERS: Final = "other ssh-ed25519 AAAA1\n# a comment\n"
_CONFIG: Final = Path("/home/ada/kernelbridge.toml")
_LAUNCHER: Final = Path("/venv/bin/kernelbridge-launch")


def _nothing(folder: Path) -> None: ...


# -- one file


def _old(folder: Path) -> None:
    (folder / "file").write_bytes(b"old" * 5000)


def _replace(folder: Path) -> None:
    write_whole(folder / "file", b"new" * 9000, is_private=True)


def _write_first(folder: Path) -> None:
    write_once(folder / "file", b"new" * 9000, is_private=True)


# -- records


def _record(kernel_id: str, **more: Any) -> KernelRecord:
    made: dict[str, Any] = {
        "environment": "torch",
        "config": str(_CONFIG),
        "host": "lab",
        "image": "i",
        "python": "",
        "session": "s",
    }
    return KernelRecord(kernel_id=kernel_id, started=1.0, **{**made, **more})


def _some_records(folder: Path) -> None:
    records = Records(folder / "kb")
    for kernel_id in ("k1", "k2"):
        records.keep(_record(kernel_id))
    records.keep_image(name="a:1", image_id="sha256:a", record=ImageRecord(kernel_info=_INFO, widgets="8.1"))
    (folder / "kb" / "machine-id").write_text("0123456789abcdef\n")


def _work_with_records(folder: Path) -> None:
    records = Records(folder / "kb")
    records.machine_id()
    records.change("k1", stop_wanted=True)
    records.forget("k2")
    records.keep(_record("k3", title="train"))
    records.keep_image(name="b:1", image_id="sha256:b", record=ImageRecord(kernel_info=_INFO, widgets="7"))
    records.forget_unreadable()


def _records(folder: Path) -> State:
    records = Records(folder / "kb")
    found: State = {record.kernel_id: record for record in records.kernels()}
    found |= {f"image {name}": records.image(name) for name in ("a:1", "b:1")}
    identity = folder / "kb" / "machine-id"
    return {**found, "id": identity.read_text() if identity.exists() else None}


# -- known_hosts


def _key(folder: Path) -> host_keys.HostKey:
    return host_keys.HostKey(
        name="lab",
        algorithm="ssh-ed25519",
        fingerprint="SHA256:x",
        line="lab ssh-ed25519 " + "A" * 60 + "\n",
        is_known=False,
        is_changed=False,
        known_hosts_path=folder / ".ssh" / "known_hosts",
    )


def _known_hosts(folder: Path) -> None:
    (folder / ".ssh").mkdir()
    (folder / ".ssh" / "known_hosts").write_text(_OTHERS)


def _trust(folder: Path) -> None:
    key = _key(folder)
    path = folder / ".ssh" / "known_hosts"
    if not path.exists() or key.line not in path.read_text():
        host_keys.remember(_LAB, key)


def _lines(folder: Path) -> State:
    """Whole lines: what is left of one that a killed process has begun is no key, and ends before the next."""
    path = folder / ".ssh" / "known_hosts"
    known = {*_OTHERS.splitlines(), _key(folder).line.strip()}
    return {line: True for line in (path.read_text().splitlines() if path.exists() else ()) if line in known}


# With these nobody can take a half line back.
_FOR_GOOD: Final = (Fault.KILLED, Fault.STAYS_BROKEN)
_NO_KEYS: Final = tuple(fault for fault in Fault if fault is not Fault.INTERRUPTED)
_FOR_NOW: Final = tuple(fault for fault in Fault if fault not in _FOR_GOOD)


def _trusted(folder: Path) -> None:
    _known_hosts(folder)
    host_keys.remember(_LAB, _key(folder))


def _take_back(folder: Path) -> None:
    host_keys.forget(folder / ".ssh" / "known_hosts", _key(folder).line)


# -- kernel specs


def _specs(*names: str) -> Config:
    return Config(path=_CONFIG, environments={name: Environment(name=name, image="x") for name in names})


def _some_specs(folder: Path) -> None:
    kernelspecs.write(_specs("old", "torch"), folder / "kernels", Path("/older/launch"))


def _install(folder: Path) -> None:
    kernelspecs.write(_specs("torch", "new"), folder / "kernels", _LAUNCHER)


def _uninstall(folder: Path) -> None:
    kernelspecs.remove(folder / "kernels", _CONFIG)


# -- logs


def _some_logs(folder: Path) -> None:
    for number in range(3):
        KeptLogs(folder / "kb").keep(f"k{number}", f"line {number}\n" * 50)


def _keep_log(folder: Path) -> None:
    kept = KeptLogs(folder / "kb")
    kept.keep("k1", "another\n" * 900)
    kept.forget("k2")
    kept.sweep()


def _note(folder: Path) -> None:
    log_files.note_command("ps", "HostUnreachable (exit 10): x", {}, folder)


def _full_log(folder: Path) -> None:
    (folder / "logs").mkdir()
    (folder / "logs" / "commands.log").write_bytes(b"x" * (log_files.LOG_FILE_BYTES + 1))


def _log(folder: Path) -> None:
    log_files.begin("server", {}, folder)
    for number in range(3):
        logging.getLogger("kernelbridge").error("line %d", number)


def _log_lines(folder: Path) -> State:
    """Whole lines, at most: which there are is a matter of the time."""
    found = b"".join(path.read_bytes() for path in folder.glob("logs/*") if path.stat().st_size < 10_000)
    return {"lines": [re.sub(rb"^\S+", b"", line) for line in found.splitlines() if line.endswith((b"line", b"x"))] * 0}


# -- locks


def _hold(folder: Path) -> None:
    life_lock.hold(folder, "own")
    life_lock.sweep(folder, {"own"})


def _let_go() -> None:
    for path, descriptor in list(life_lock._HELD.items()):
        del life_lock._HELD[path]
        try:
            os.close(descriptor)
        except OSError:
            continue


def _is_held(folder: Path) -> State:
    """Whether a lock's file tells of a process that has ended, while it has not."""
    return {}


def _hold_workspace(folder: Path) -> None:
    holder = Holder(folder / "w" / "lock")
    try:
        holder.take()
        holder.tell_state(is_in_step=True)
    finally:
        holder.release()


def _lock_gpus(folder: Path) -> None:
    locks = GpuLocks(["GPU-a", "GPU-b"], str(folder))
    try:
        locks.take()
        assert len(locks.descriptors) == 2
    finally:
        locks.give_back()


def _gpu_folders(folder: Path) -> None:
    for name in ("GPU-a", "GPU-b"):
        (folder / name).mkdir()


def _lock_terminal(folder: Path) -> None:
    held = terminal.hold_lock(str(folder))
    if held is not None:
        os.close(held[0])
        terminal.is_any_open(str(folder))


# -- workspaces


def _entry(size_bytes: int) -> Entry:
    return Entry(Kind.FILE, size_bytes, 7, False, "")


def _manifest(folder: Path) -> None:
    manifest = Manifest(folder / "m" / "list")
    manifest.forget_all(copy_id="c")
    manifest.note({"a.py": Known(_entry(1), _entry(1)), "b.py": Known(_entry(2), _entry(2))}, ())


def _learn(folder: Path) -> None:
    """A pass, and the next one, which comes even if the first could not be noted."""
    manifest = Manifest(folder / "m" / "list")
    failed: OSError | None = None
    for learned in ({"c.py": Known(_entry(3), _entry(3))}, {"d.py": Known(_entry(4), _entry(4))}):
        try:
            manifest.note(learned, ["b.py"])
        except OSError as exc:
            failed = exc
    if failed is not None:
        raise failed


def _learned(folder: Path) -> State:
    return dict(Manifest(folder / "m" / "list").known)


def _arrived(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"old")
    (folder / PARTS_FOLDER).mkdir()


def _place(folder: Path) -> None:
    entry = Entry(Kind.FILE, 3000, 10**18, True, "")
    part = local_copy.staged(folder, "a.txt", entry)
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"new" * 1000)
    local_copy.place(folder, "a.txt", entry, part=part, seen=look_here(folder, "a.txt"))
    link = Entry(Kind.LINK, 0, 0, False, "a.txt")
    local_copy.place(folder, "link", link, part=None, seen=look_here(folder, "link"))
    local_copy.place(folder, "d/e", Entry(Kind.FOLDER, 0, 0, False, ""), part=None, seen=look_here(folder, "d/e"))
    local_copy.sweep_parts(folder)


def _placed(folder: Path) -> State:
    return {
        **{name: one for name, one in files(folder).items() if PARTS_FOLDER not in name},
        "d": (folder / "d/e").exists(),
    }


# -- caches


def _wheel(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a-1-py3-none-any.whl", "w") as file:
        file.writestr("a/__init__.py", "# a")
        file.writestr("a-1.dist-info/METADATA", "Name: a\nVersion: 1\n")
    (folder / "cache").mkdir()


def _keep_wheels(folder: Path) -> None:
    path = folder / "a-1-py3-none-any.whl"
    if path.exists():
        wheels.keep([Wheel(path=path, name="a", version="1", requires=(), modules=("a",))], folder / "cache" / "key")
    else:
        _wheel_again(folder)
    kept = [
        Wheel(path=one, name="a", version="1", requires=(), modules=("a",))
        for one in (folder / "cache" / "key").glob("*.whl")
    ]
    wheels.packed(kept, "packages", folder / "cache" / "key")


def _wheel_again(folder: Path) -> None:
    if not (folder / "cache" / "key").exists():
        with zipfile.ZipFile(folder / "a-1-py3-none-any.whl", "w") as file:
            file.writestr("a/__init__.py", "# a")
        _keep_wheels(folder)


def _kept_wheels(folder: Path) -> State:
    # What a killed process has left of an archive is thrown away with all the rest.
    return {
        name: True for name in files(folder / "cache") if name.startswith("key/") and not re.search(r"gz\.\w+$", name)
    }


# -- ssh's config


def _user_config(folder: Path) -> None:
    (folder / ".ssh").mkdir()
    (folder / ".ssh" / "config").write_text("Host lab\n  User ada\n" * 100)


def _write_ssh(folder: Path) -> None:
    ssh_config.write("Host kb-*\n", folder / ".ssh")


def _remove_ssh(folder: Path) -> None:
    ssh_config.remove(folder / ".ssh")


def _with_ours(folder: Path) -> None:
    _user_config(folder)
    _write_ssh(folder)


def _host_key(folder: Path) -> None:
    ssh_command.host_key(folder / "kb")


def _keys(folder: Path) -> State:
    """A key that was made once is the one for good; its known_hosts tells of it."""
    key = ssh_config.host_key_path(folder / "kb")
    return {
        "key": key.read_bytes()[:30] if key.exists() else None,
        "known": ssh_config.known_hosts_path(folder / "kb").exists(),
    }


# -- the relay


def _setup(folder: Path) -> None:
    setup_runner.write_state(str(folder / "setup.json"), {"step": 2, "lines": ["x"] * 500})


def _set_up(folder: Path) -> None:
    setup_runner.write_state(str(folder / "setup.json"), {"step": 1})


def _json(folder: Path) -> State:
    path = folder / "setup.json"
    return {"state": json.loads(path.read_text())["step"] if path.exists() else None}


_NUMBERS: Final = 24


def _output(number: int) -> bytes:
    return said("stream", {"name": "stdout", "text": f"{number} " + "x" * 150}, number=number, parent="cell")


def _run_journal(folder: Path) -> None:
    """A kernel says much while nobody takes it; then all is taken, but for what a notice tells of."""
    spool = Spool(str(folder))
    journal = Journal(spool, limit_bytes=1 << 20, memory_bytes=1600)
    taken: list[bytes] = []
    came: list[int] = []
    told = 0
    for number in range(_NUMBERS):
        journal.add(_output(number))
        if number % 12 == 11:
            journal.peek(1000)
            taken += [one for one in (journal.pop() for _ in range(10)) if one is not None]
    while (packed := journal.pop()) is not None:
        taken.append(packed)
    for packed in taken:
        notice = event(packed)
        if notice is None:
            came.append(read(packed)[0]["number"])
        else:
            told += notice["messages"]
    spool.close()
    assert came == sorted(set(came)), "twice, or out of order"
    assert len(came) + told == _NUMBERS, f"{_NUMBERS - len(came) - told} are lost without a word"


# -- the command line


class Told(Exception):
    """A command has ended with an error, and its sentence."""


_WRITTEN: Final = """# mine, with a comment
[hosts.lab]
ssh = "lab"  # the old one

[environments.torch]
image = "a/b:1"
"""


def _dotfiles(folder: Path) -> None:
    """A config that is kept in a repository, and that nobody else may read."""
    for name in ("config", "dotfiles", "home", "data/kernels"):
        (folder / name).mkdir(parents=True)
    (folder / "dotfiles" / "kb.toml").write_text(_WRITTEN)
    (folder / "dotfiles" / "kb.toml").chmod(0o600)
    (folder / "config" / "kernelbridge.toml").symlink_to(folder / "dotfiles" / "kb.toml")


def _init(folder: Path) -> None:
    said = io.StringIO()
    fleet: Any = FakeFleet()
    with (
        mock.patch.dict(os.environ, {"HOME": str(folder / "home"), "JUPYTER_DATA_DIR": str(folder / "data")}),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
    ):
        code = app.run(
            ("init", "--yes", "--host", "ada@two", "--image", "team/new:2"),
            open_fleet=fleet.open,
            environ={"KERNELBRIDGE_CONFIG": str(folder / "config" / "kernelbridge.toml")},
            version="1",
        )
    text = said.getvalue()
    assert "Traceback" not in text and "has a bug" not in text, text
    if code:
        assert code in (130, 1) or text.strip(), "no word"
        raise Told(text)


def _configured(folder: Path) -> State:
    path = folder / "dotfiles" / "kb.toml"
    spec = folder / "data" / "kernels" / "kernelbridge-new" / "kernel.json"
    return {
        "config": path.read_text(),
        "mode": path.stat().st_mode & 0o777,
        "is a link": (folder / "config" / "kernelbridge.toml").is_symlink(),
        "spec": json.loads(spec.read_text())["display_name"] if spec.exists() else None,
    }


CASES: Final[dict[str, Case]] = {
    "a file is replaced": Case(prepare=_old, act=_replace, look=files, refusals=(OSError,)),
    "a file is made": Case(prepare=_nothing, act=_write_first, look=files, refusals=(OSError,)),
    "records": Case(
        prepare=_some_records, act=_work_with_records, look=_records, is_hint=True, keeps_open=True, reset=_let_go
    ),
    "the first record": Case(
        prepare=_nothing, act=lambda folder: Records(folder / "kb").keep(_record("k1")), look=_records, is_hint=True
    ),
    "a host is trusted": Case(
        prepare=_known_hosts, act=_trust, look=files, refusals=(KernelBridgeError, OSError), faults=_FOR_NOW
    ),
    "a host is trusted, and a line is begun": Case(
        prepare=_known_hosts, act=_trust, look=_lines, refusals=(KernelBridgeError, OSError), faults=_FOR_GOOD
    ),
    "the first host is trusted": Case(prepare=_nothing, act=_trust, look=_lines, refusals=(KernelBridgeError, OSError)),
    "a host's key is taken back": Case(prepare=_trusted, act=_take_back, look=files, is_hint=True),
    "kernel specs are written": Case(prepare=_some_specs, act=_install, look=files, refusals=(KernelBridgeError,)),
    "the first kernel specs": Case(prepare=_nothing, act=_install, look=files, refusals=(KernelBridgeError,)),
    "kernel specs are removed": Case(prepare=_some_specs, act=_uninstall, look=files, refusals=(KernelBridgeError,)),
    "a log is kept": Case(prepare=_some_logs, act=_keep_log, look=files, is_hint=True),
    "a command fails": Case(prepare=_nothing, act=_note, look=_log_lines, is_hint=True),
    "a command fails as its log is full": Case(prepare=_full_log, act=_note, look=_log_lines, is_hint=True),
    "a server logs": Case(
        prepare=_nothing, act=_log, look=_log_lines, is_hint=True, reset=log_files.end, keeps_open=True
    ),
    "a life is locked": Case(
        prepare=_nothing, act=_hold, look=_is_held, refusals=(OSError,), reset=_let_go, keeps_open=True
    ),
    "a workspace is held": Case(prepare=_nothing, act=_hold_workspace, look=lambda folder: {}, refusals=(OSError,)),
    "GPUs are locked": Case(prepare=_gpu_folders, act=_lock_gpus, look=files, refusals=(Refused, OSError)),
    "a terminal is told of": Case(
        prepare=_nothing, act=_lock_terminal, look=lambda folder: {}, is_hint=True, refusals=(OSError,)
    ),
    "a workspace is in step": Case(
        prepare=_manifest, act=_learn, look=_learned, refusals=(OSError,), may_forget=True, is_hint=True
    ),
    "a file comes from the host": Case(
        prepare=_arrived, act=_place, look=_placed, refusals=(OSError, local_copy.NotDone)
    ),
    "wheels are kept": Case(
        prepare=_wheel,
        act=_keep_wheels,
        look=_kept_wheels,
        refusals=(OSError, zipfile.BadZipFile),
        is_stray=lambda name: ".gz." in name or "key." in name,
    ),
    "ssh's config is written": Case(prepare=_user_config, act=_write_ssh, look=files, refusals=(OSError,)),
    "ssh's config is cleaned": Case(prepare=_with_ours, act=_remove_ssh, look=files, refusals=(OSError,)),
    "a setup goes on": Case(prepare=_set_up, act=_setup, look=_json, refusals=(OSError,)),
    "output is kept on the disk": Case(
        prepare=_nothing, act=_run_journal, look=lambda folder: {}, is_stray=lambda name: True, faults=_NO_KEYS
    ),
    "init changes a config": Case(
        prepare=_dotfiles,
        act=_init,
        look=_configured,
        refusals=(Told,),
        keeps_open=True,
        faults=(Fault.BROKEN, Fault.FULL, Fault.STALE, Fault.INTERRUPTED, Fault.KILLED),
    ),
    "a key for ssh is made": Case(
        prepare=_nothing,
        act=_host_key,
        look=_keys,
        refusals=(OSError,),
        faults=(Fault.BROKEN, Fault.STAYS_FULL, Fault.KILLED),
    ),
}
