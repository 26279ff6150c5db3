"""`kernelbridge doctor` points at the one link that was broken, on a host that was whole before; cards: STAND-INS.

Its trials and its conversation with a kernel are real ones.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.cli import app
from kernelbridge.config import load
from kernelbridge.fleet.doctor.finding import LinkName
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.hosts.docker.images.python_probe import _MARK
from kernelbridge.jupyter import kernelspecs
from tests.clients.terminal import Command, Ended, kernelbridge
from tests.rig.daemon import wait_until
from tests.rig.laptop import Laptop
from tests.rig.slow_engine import Guise
from tests.rig.slurm import SlurmRig
from tests.rig.sshd import make_key
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)

Findings = list[dict[str, Any]]
MACHINE = [
    *("Python", "config", "cache", "kernel specs", "seen by Jupyter", "seen by VS Code", "launcher"),
    "server extension",
]
HOST = [
    *("ssh config", "name", "route", "host key", "login", "shell", "clock", "forwarding", "engine", "API version"),
    *("live-restore", "storage", "NVIDIA driver", "toolkit", "CDI"),
]
ENVIRONMENT = ["GPUs", "image", "mounts", "image's Python", "container", "kernel"]
# This machine's disk may be small, and it may be busy: these may warn by themselves.
RESTLESS = {"storage", "shell"}
# Behind one of these nothing of a host can be looked at.
GATES = {"ssh config", "name", "route", "host key", "login", "second factor", "shell", "forwarding"}


def doctor(laptop: Laptop, *words: str) -> Ended:
    return kernelbridge(laptop, "doctor", *words)


Here = Callable[..., Ended]


@pytest.fixture
def doctor_here(whole: Laptop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """The same in this process: what it loads takes most of its time."""

    def run(*words: str, **env: str) -> Ended:
        for name, text in env.items():
            monkeypatch.setenv(name, text)
        capsys.readouterr()
        code = app.run(
            ["doctor", *words], open_fleet=lambda config, asked: Fleet(config), environ=os.environ, version="1.2.3"
        )
        printed = capsys.readouterr()
        return Ended(code=code, out=printed.out, err=printed.err)

    return run


def install(laptop: Laptop) -> None:
    kernelspecs.write(load.load(laptop.config), kernelspecs.default_root(), kernelspecs.launcher_path())


@pytest.fixture(scope="module", autouse=True)
def living_on(rig: Rig) -> Iterator[None]:
    with rig.engine.living_on():
        yield


@pytest.fixture
def whole(rig: Rig, bridge_env: Laptop) -> Laptop:
    """A laptop whose every link holds, as far as this machine's disk lets it."""
    bridge_env.write_environment(rig.image, gpus=1, mounts=["/tmp:/data:ro"])
    install(bridge_env)
    return bridge_env


def test_all_links_are_told_in_order_with_what_was_found(rig: Rig, whole: Laptop) -> None:
    found = json.loads(doctor(whole, "--json").out)
    assert [one["link"] for one in found] == [*MACHINE, *HOST, *ENVIRONMENT]
    assert {one["link"] for one in found if one["state"] == "warning"} <= RESTLESS
    assert [one["link"] for one in found if one["state"] == "skipped"] == ["image's Python", "container", "kernel"]
    assert {one["host"] for one in found[len(MACHINE) :]} == {"lab"}
    assert {one["environment"] for one in found[len(MACHINE) + len(HOST) :]} == {"test"}
    said = {one["link"]: one["found"] for one in found}
    assert said["ssh config"] == f"lab is kbtest@{rig.sshd.address}:{rig.sshd.port}"
    assert "SSH-2.0-OpenSSH" in said["route"]
    assert said["host key"] == f"known as [{rig.sshd.address}]:{rig.sshd.port}"
    assert said["login"].startswith("kbtest at lab, by the key ")
    assert said["login"].endswith("id_ed25519")
    assert said["engine"].startswith("Docker ")
    assert said["NVIDIA driver"].startswith("4 x ")
    assert said["image"].startswith(f"{rig.image} is there")
    assert "`kernelbridge doctor test`" in said["kernel"]
    assert rig.engine.kernels() == []


def test_an_environment_is_tried_with_a_container_and_a_kernel_that_are_gone_then(
    rig: Rig, whole: Laptop, doctor_here: Here
) -> None:
    shown = doctor(whole, "test")
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0] == "This machine"
    assert "lab" in lines
    assert "test on lab" in lines
    assert lines[-1].startswith("All links hold")
    rows = {line[11:27].strip(): line[37:] for line in lines if line.startswith("  ok")}
    assert rows["image's Python"].startswith("Python 3.")
    assert "debugpy" in rows["image's Python"]
    assert rows["container"].startswith("sees its GPU (GPU 0: Stand-in GPU")
    assert rows["kernel"].endswith("computes and debugs; reached by its own socket")
    assert rig.engine.kernels() == []
    # From now on it is known what the image has.
    known = {one["link"]: one for one in json.loads(doctor_here("--json").out)}["image's Python"]
    assert (known["state"], known["found"]) == ("ok", rows["image's Python"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_leaves_leaves_nothing_behind(rig: Rig, whole: Laptop, number: signal.Signals) -> None:
    with Command(["kernelbridge", "doctor", "test"], env=whole.env) as command:
        wait_until(lambda: bool(rig.engine.kernels()), "the container that is tried", 60)
        command.process.send_signal(number)
        ended = command.finish()
    assert ended.code != 0
    assert "Traceback" not in ended.err
    assert rig.engine.kernels() == []
    assert list(whole.data_dir.glob("kernelbridge/kernels/*.json")) == []


# -- faults


@contextmanager
def gone(path: Path) -> Iterator[None]:
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@contextmanager
def stand_in(rig: Rig, name: str, script: str) -> Iterator[None]:
    """A command of the host's logins is another one; nvidia-smi is as before at the end, others are gone."""
    path = rig.engine.gpus.folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    try:
        yield
    finally:
        path.unlink()
        rig.engine.gpus.insert()


@contextmanager
def occupied(rig: Rig) -> Iterator[None]:
    rig.engine.gpus.occupy(*UUIDS)
    try:
        yield
    finally:
        rig.engine.gpus.occupy()


@contextmanager
def handing_out_nothing(rig: Rig) -> Iterator[None]:
    rig.engine.gpus.break_hook()
    try:
        yield
    finally:
        rig.engine.gpus.insert()


@contextmanager
def old_engine(rig: Rig, case: Case) -> Iterator[None]:
    with rig.slow_engine() as slow:
        slow.becomes(Guise(answer=b'{"Version":"17.03","ApiVersion":"1.26","MinAPIVersion":"1.12","Arch":"amd64"}'))
        case.host["socket"] = str(slow.path)
        yield


@contextmanager
def no_living_on(rig: Rig) -> Iterator[None]:
    rig.engine._set_live_restore(False)
    try:
        yield
    finally:
        rig.engine._set_live_restore(True)


@dataclass
class Case:
    """What a fault changes: the host's and the environment's keys, the variables of `doctor`."""

    rig: Rig
    laptop: Laptop
    undo: ExitStack
    image: str
    host: dict[str, Any] = field(default_factory=lambda: {"ssh": "lab"})
    keys: dict[str, Any] = field(default_factory=lambda: {"gpus": 1, "mounts": ["/tmp:/data:ro"]})
    env: dict[str, str] = field(default_factory=dict)
    # Whether the kernel specs are written after the config.
    installs: bool = True
    # In place of all that.
    text: str = ""

    def enter(self, fault: AbstractContextManager[Any]) -> Any:
        return self.undo.enter_context(fault)

    def ssh(self, *lines: str) -> None:
        self.laptop.configure_ssh("Host lab", *(f"  {line}" for line in lines))

    def bashrc(self, text: str) -> None:
        self.enter(self.rig.lab.home_files("kbtest", {".bashrc": text}))

    def run_image(self, command: str, image: str = "") -> None:
        self.image = self.enter(self.rig.engine.running_image(image or self.rig.image, command))

    def spec(self, folder: Path, **facts: Any) -> None:
        """Somebody's kernel spec."""
        folder.mkdir(parents=True)
        spec = {"argv": ["python", "-f", "{connection_file}"], "display_name": "Somebody's", "language": "python"}
        (folder / "kernel.json").write_text(json.dumps({**spec, **facts}))

    def other_keys(self) -> None:
        """The right key comes behind two that the host does not know."""
        names = [self.laptop.ssh_folder / f"other{number}" for number in range(2)]
        for name in names:
            make_key(name)
        self.ssh(*(f"IdentityFile {name}" for name in names))


def _shadow(case: Case) -> None:
    folder = case.laptop.home / "elsewhere"
    case.spec(folder / "kernels/kernelbridge-test")
    case.env["JUPYTER_PATH"] = str(folder)


def _twin(case: Case) -> None:
    case.spec(
        case.laptop.data_dir / "kernels/kernelbridge-other",
        argv=[str(kernelspecs.launcher_path())],
        display_name="Docker-GPU (remote)",
    )


def _no_extension(case: Case) -> None:
    folder = case.laptop.config_dir / "jupyter_server_config.d"
    folder.mkdir()
    (folder / "k.json").write_text(json.dumps({"ServerApp": {"jpserver_extensions": {"kernelbridge": False}}}))
    case.env["JUPYTER_PREFER_ENV_PATH"] = "0"


def _broken_cache(case: Case) -> None:
    folder = case.laptop.data_dir / "kernelbridge"
    (folder / "kernels").mkdir(parents=True)
    (folder / "images.json").write_text('{"names": {')
    (folder / "kernels/abc.json").write_text("null")


def _old_spec(case: Case) -> None:
    case.keys["display_name"], case.installs = "another", False


def _lost_spec(case: Case) -> None:
    case.enter(gone(case.laptop.data_dir / "kernels/kernelbridge-test"))
    case.installs = False


def _old_driver(case: Case) -> None:
    case.rig.engine.gpus.set_driver("550.00.00", "12.4")
    case.image = case.enter(case.rig.engine.changed(case.image, "ENV NVIDIA_REQUIRE_CUDA=cuda>=13.0"))


def _slow_login(case: Case) -> None:
    slow = ("AuthorizedKeysFile none", "AuthorizedKeysCommand /usr/bin/sleep 20", "AuthorizedKeysCommandUser nobody")
    case.enter(case.rig.sshd.configured(*slow))
    case.host["login_seconds"] = 2


def _no_forwarding_at_all(case: Case) -> None:
    case.enter(case.rig.sshd.streamlocal_forbidden())
    case.enter(case.rig.lab.without_command("docker"))


def _second_factor(case: Case) -> None:
    case.enter(case.rig.sshd.configured("AuthenticationMethods publickey,password", "PasswordAuthentication yes"))


_OLD_PYTHON = json.dumps({"path": "/usr/bin/python3", "prefix": "/usr", "version": "3.6.9"})
_SAYS_OLD = (
    f"printf '#!/bin/sh\\necho '\"'\"'{_MARK}{_OLD_PYTHON}'\"'\"'\\n' > /usr/bin/python3; chmod 755 /usr/bin/python3"
)
_NO_DEBUGPY = "rm -rf /opt/venv/lib/python3*/site-packages/debugpy*"
_DIES = "echo 'raise SystemExit(3)' > $(echo /opt/venv/lib/python3*/site-packages/ipykernel)/kernelapp.py"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault, and the one link that `doctor` is to point at."""

    link: LinkName
    makes: Callable[[Case], Any]
    state: str = "broken"
    # Whether it shows only when something is started.
    is_deep: bool = False


def _slow_shell(case: Case) -> None:
    """The first time alone: it is then that its time is taken."""
    folder = case.rig.lab.home("kbtest") / ".slept"
    case.bashrc(f"mkdir {folder} 2>/dev/null && sleep 1.2")
    case.undo.callback(case.rig.lab.run, ["rm", "-rf", str(folder)])


def _cut(case: Case) -> None:
    case.ssh("ConnectTimeout 2")
    case.enter(case.rig.lab.unplugged())


def _too_many_keys(case: Case) -> None:
    case.other_keys()
    case.enter(case.rig.sshd.configured("MaxAuthTries 1"))


def _no_image(case: Case) -> None:
    case.image, case.keys["pull"] = "none/such:1", "never"


def _bare_image(case: Case) -> None:
    case.image, case.keys["add_ipykernel"] = case.rig.bare_image, False


def _no_debugger(case: Case) -> None:
    case.keys["add_ipykernel"] = False
    case.run_image(_NO_DEBUGPY)


def _set(**keys: Any) -> Callable[[Case], Any]:
    return lambda case: case.keys.update(keys)


def _on_host(**keys: Any) -> Callable[[Case], Any]:
    return lambda case: case.host.update(keys)


L = LinkName
FAULTS: Mapping[str, Fault] = {
    # this machine
    "a key of the config is none": Fault(link=L.CONFIG, makes=_set(gpu=1)),
    "the config is no TOML": Fault(link=L.CONFIG, makes=lambda case: setattr(case, "text", "[hosts.lab")),
    "the cache cannot be read": Fault(link=L.CACHE, state="warning", makes=_broken_cache),
    "a spec is gone": Fault(link=L.SPECS, makes=_lost_spec),
    "a spec is old": Fault(link=L.SPECS, makes=_old_spec),
    "another spec has its name": Fault(link=L.IN_JUPYTER, makes=_shadow),
    "another spec looks the same": Fault(link=L.IN_VSCODE, state="warning", makes=_twin),
    "the extension is off": Fault(link=L.EXTENSION, state="warning", makes=_no_extension),
    # up to the login
    "the ssh config is wrong": Fault(link=L.SSH_CONFIG, makes=lambda case: case.ssh("Pport 22")),
    "a cipher that nobody has": Fault(link=L.SSH_CONFIG, makes=lambda case: case.ssh("Ciphers none-such")),
    "a name that nobody knows": Fault(link=L.NAME, makes=_on_host(ssh="nowhere.invalid")),
    "nothing listens": Fault(link=L.ROUTE, makes=lambda case: case.enter(case.rig.sshd.stopped())),
    "the way is cut": Fault(link=L.ROUTE, makes=_cut),
    "the host's key is another": Fault(link=L.HOST_KEY, makes=lambda case: case.enter(case.rig.sshd.key_changed())),
    "the host's key is not known": Fault(
        link=L.HOST_KEY, makes=lambda case: case.enter(gone(case.laptop.ssh_folder / "known_hosts"))
    ),
    "the login is refused": Fault(link=L.LOGIN, makes=lambda case: case.enter(case.rig.sshd.login_refused())),
    "there is no key": Fault(link=L.LOGIN, makes=lambda case: case.enter(gone(case.laptop.ssh_folder / "id_ed25519"))),
    "too many keys": Fault(
        link=L.LOGIN,
        makes=_too_many_keys,
    ),
    "the account is over": Fault(link=L.LOGIN, makes=lambda case: case.enter(case.rig.lab.expired("kbtest"))),
    "the login takes too long": Fault(link=L.LOGIN, makes=_slow_login),
    "more than a key is wanted": Fault(link=L.SECOND_FACTOR, makes=_second_factor),
    # behind it
    "the login is for no commands": Fault(
        link=L.SHELL, makes=lambda case: case.enter(case.rig.lab.shell("kbtest", "/usr/sbin/nologin"))
    ),
    "the shell prints": Fault(link=L.SHELL, state="warning", makes=lambda case: case.bashrc("echo Welcome")),
    "the shell is slow": Fault(link=L.SHELL, state="warning", makes=_slow_shell),
    "the clock is wrong": Fault(
        link=L.CLOCK,
        state="warning",
        makes=lambda case: case.enter(stand_in(case.rig, "date", "/bin/date -d '+500 seconds' \"$@\"")),
    ),
    "forwarding is forbidden": Fault(
        link=L.FORWARDING,
        state="warning",
        makes=lambda case: case.enter(case.rig.sshd.streamlocal_forbidden()),
    ),
    "forwarding is forbidden and there is no other way": Fault(link=L.FORWARDING, makes=_no_forwarding_at_all),
    "there is no engine": Fault(link=L.ENGINE, makes=_on_host(socket="/run/none.sock")),
    "the engine is down": Fault(link=L.ENGINE, makes=lambda case: case.enter(case.rig.engine.stopped())),
    "the login may not use the engine": Fault(link=L.ENGINE, makes=_on_host(ssh="lab-other")),
    "the engine is too old": Fault(link=L.API, makes=lambda case: case.enter(old_engine(case.rig, case))),
    "a restart of the engine ends kernels": Fault(
        link=L.LIVE_RESTORE, state="warning", makes=lambda case: case.enter(no_living_on(case.rig))
    ),
    "the disk is full": Fault(
        link=L.STORAGE,
        state="warning",
        makes=lambda case: case.enter(stand_in(case.rig, "df", "echo File; echo /dev/sda 9 9 1000000 99% /")),
    ),
    # GPUs
    "the driver fails": Fault(
        link=L.DRIVER,
        makes=lambda case: case.enter(
            stand_in(
                case.rig, "nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18"
            )
        ),
    ),
    "there is no toolkit": Fault(link=L.TOOLKIT, makes=lambda case: case.enter(case.rig.engine.without_toolkit())),
    "there is no runtime": Fault(link=L.TOOLKIT, makes=_on_host(gpu_access="runtime")),
    "there is no CDI": Fault(link=L.CDI, makes=_on_host(gpu_access="cdi")),
    "more GPUs than there are": Fault(link=L.GPUS, makes=_set(gpus=9)),
    "others have the GPUs": Fault(link=L.GPUS, state="warning", makes=lambda case: case.enter(occupied(case.rig))),
    # the environment
    "no image": Fault(link=L.IMAGE, makes=_no_image),
    "the driver is old": Fault(link=L.IMAGE, makes=_old_driver),
    "no such mount": Fault(link=L.MOUNTS, makes=_set(mounts=["/no/such:/data:ro"])),
    "an image without Python": Fault(
        link=L.IMAGE_PYTHON, is_deep=True, makes=lambda case: setattr(case, "image", case.rig.nopython_image)
    ),
    "an image whose Python is old": Fault(
        link=L.IMAGE_PYTHON, is_deep=True, makes=lambda case: case.run_image(_SAYS_OLD, case.rig.nopython_image)
    ),
    "no ipykernel, and none may be added": Fault(
        link=L.IMAGE_PYTHON,
        is_deep=True,
        makes=_bare_image,
    ),
    "no debugpy, and none may be added": Fault(
        link=L.IMAGE_PYTHON,
        state="warning",
        is_deep=True,
        makes=_no_debugger,
    ),
    "a container that sees no GPU": Fault(
        link=L.CONTAINER, is_deep=True, makes=lambda case: case.enter(handing_out_nothing(case.rig))
    ),
    "a container that cannot start": Fault(link=L.CONTAINER, is_deep=True, makes=_set(container_runtime="none-such")),
    "a kernel that dies": Fault(link=L.KERNEL, is_deep=True, makes=lambda case: case.run_image(_DIES)),
    "a setup that fails": Fault(link=L.KERNEL, is_deep=True, makes=_set(setup=["exit 7"])),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_pointed_at(rig: Rig, whole: Laptop, doctor_here: Here, name: str) -> None:
    fault = FAULTS[name]
    with ExitStack() as undo:
        case = Case(rig=rig, laptop=whole, undo=undo, image=rig.image)
        fault.makes(case)
        if case.text:
            whole.write_config(case.text)
        else:
            whole.write_environment(case.image, host=case.host, **case.keys)
            if case.installs and fault.link is not L.CONFIG:
                install(whole)
        ended = doctor_here(*(["test"] if fault.is_deep else []), "--json", **case.env)
    check(json.loads(ended.out), fault, ended)


def check(found: Findings, fault: Fault, ended: Ended) -> None:
    """One link is broken, or warns; those before it hold, and those behind it say that they were not looked at."""
    seen = [(one["link"], one["state"]) for one in found if one["state"] in ("broken", "warning")]
    told = [one for one in seen if one[0] not in RESTLESS - {str(fault.link)}]
    assert told == [(fault.link, fault.state)], found
    at = next(index for index, one in enumerate(found) if one["link"] == fault.link)
    assert found[at]["remedy"]
    code = found[at]["exit_code"] if fault.state == "broken" else 0
    assert (ended.code, ended.err) == (code, "")
    assert (code != 0) == (fault.state == "broken")
    for one in found[:at]:
        assert one["state"] != "skipped" or one["found"].startswith("not tried: "), one
    behind = [one["link"] for one in found if one["found"] == f"behind {fault.link}"]
    assert all(one["state"] == "skipped" for one in found if one["link"] in behind)
    if fault.state == "broken" and fault.link in GATES:
        assert behind == [one["link"] for one in found[at + 1 :]]
    elif fault.link in BEHIND and fault.state == "broken":
        assert behind == BEHIND[fault.link]


# What is not looked at behind the other links, in an environment with GPUs and mounts.
BEHIND: Mapping[LinkName, list[str]] = {
    L.CONFIG: ["kernel specs", "seen by Jupyter", "seen by VS Code"],
    L.SPECS: ["seen by Jupyter", "seen by VS Code"],
    L.ENGINE: ["API version", "live-restore", "storage", "toolkit", "CDI", *ENVIRONMENT],
    L.API: ["live-restore", "storage", "toolkit", "CDI", *ENVIRONMENT],
    L.DRIVER: ["toolkit", "CDI", "GPUs"],
    L.TOOLKIT: ["CDI", "GPUs"],
    L.CDI: ["GPUs"],
    L.IMAGE: ["mounts", "image's Python", "container", "kernel"],
    L.IMAGE_PYTHON: ["container", "kernel"],
    L.CONTAINER: ["kernel"],
}


def test_where_others_have_the_gpus_nothing_is_started(rig: Rig, doctor_here: Here) -> None:
    with occupied(rig):
        ended = doctor_here("test", "--json")
    found = {one["link"]: one for one in json.loads(ended.out)}
    assert ended.code == 0
    for link in ("container", "kernel"):
        assert (found[link]["state"], found[link]["found"]) == ("skipped", "not tried: its GPUs are taken")


def test_fix_writes_specs_and_throws_a_broken_cache_away(rig: Rig, whole: Laptop, doctor_here: Here) -> None:
    cache = whole.data_dir / "kernelbridge"
    (cache / "kernels").mkdir(parents=True)
    (cache / "images.json").write_text("{}")
    (cache / "kernels/abc.json").write_text("{")
    wheel = cache / "wheels/cpython-311-0/broken.whl"
    wheel.parent.mkdir(parents=True)
    wheel.write_text("cut")
    whole.write_environment(rig.image, gpus=0, display_name="another")
    ended = doctor_here("--fix")
    assert (ended.code, ended.err) == (0, "")
    assert "Threw away from the cache: images.json, kernels/abc.json, wheels/cpython-311-0/broken.whl." in ended.out
    assert 'Wrote kernelbridge-test: "another"' in ended.out
    assert not wheel.exists()
    links = {one["link"]: one["state"] for one in json.loads(doctor_here("--json").out)}
    assert (links["cache"], links["kernel specs"]) == ("ok", "ok")


# -- a cluster


def _mount_of_proc(case: Case) -> None:
    case.rig.lab.run(["ln", "-sfn", "/proc", "/tmp/kernelbridge-test-link"])
    case.undo.callback(case.rig.lab.run, ["rm", "/tmp/kernelbridge-test-link"])
    case.keys["mounts"] = ["/tmp/kernelbridge-test-link:/data:ro"]


SLURM_FAULTS: Mapping[str, Fault] = {
    "Slurm is down": Fault(link=L.SCHEDULER, makes=lambda case: None),
    "Slurm would not take the job": Fault(link=L.JOB, makes=_on_host(partition="none-such")),
    "a mount that leads elsewhere": Fault(link=L.MOUNTS, makes=_mount_of_proc),
}


@pytest.mark.parametrize("name", SLURM_FAULTS)
def test_a_fault_of_a_cluster_is_pointed_at(
    rig: Rig, slurm: SlurmRig, whole: Laptop, doctor_here: Here, name: str
) -> None:
    fault = SLURM_FAULTS[name]
    with ExitStack() as undo:
        case = Case(rig=rig, laptop=whole, undo=undo, image=rig.image, host={"ssh": "lab", "scheduler": "slurm"})
        fault.makes(case)
        if fault.link is L.SCHEDULER:
            undo.enter_context(slurm.controller_stopped())
        whole.write_environment(case.image, host=case.host, **case.keys)
        install(whole)
        ended = doctor_here("--json")
    slurm.revive_node()
    found = json.loads(ended.out)
    check(found, fault, ended)
    behind = {L.SCHEDULER: ["job", "mounts", "kernel"], L.JOB: ["kernel"], L.MOUNTS: ["kernel"]}
    assert [one["link"] for one in found if one["found"] == f"behind {fault.link}"] == behind[fault.link]
    assert slurm.jobs() == []


def test_a_cluster_that_is_whole_gets_no_job(slurm: SlurmRig, whole: Laptop, rig: Rig, doctor_here: Here) -> None:
    whole.write_environment(rig.image, host={"ssh": "lab", "scheduler": "slurm"}, gpus=1)
    install(whole)
    found = {one["link"]: one for one in json.loads(doctor_here("test", "--json").out)}
    assert found["scheduler"]["found"] == "Slurm, 1 nodes with 4 GPUs"
    assert found["job"]["state"] == "ok"
    assert "`kernelbridge run test -- true`" in found["kernel"]["found"]
    assert slurm.jobs() == []
