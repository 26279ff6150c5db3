"""cli/commands/setup/init.py: what is asked, looked at and written, and that nothing is where something is wrong."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kernelbridge.cli.commands.setup import init
from kernelbridge.config import load
from kernelbridge.errors import EngineMissing, HostKeyUnknown, HostUnreachable
from kernelbridge.fleet.doctor.finding import Finding, LinkName
from kernelbridge.fleet.gpu_listing import GpuListing, GpuRow, GpuState
from kernelbridge.hosts.slurm.commands import PartitionFacts
from tests.fakes import FakeFleet, host_key
from tests.unit.cli.conftest import Call

UNREACHABLE = HostUnreachable(host="lab", address="lab:22", reason="timed out")
CARD = GpuRow(
    host="gpu2", index="0", uuid="u", name="A100", memory_mib=80, used_mib=0, cuda="11.8", state=GpuState.FREE
)
HAS_GPUS = [Finding(link=link, found="by gpus") for link in (LinkName.TOOLKIT, LinkName.CDI)]
MISSING = EngineMissing(host="lab", looked=["/run/docker.sock"])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, config_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a config, whose ssh knows two machines."""
    config_path.unlink()
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/config").write_text("Host lab gpu2\nHost *\n")
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Somebody sits at the terminal and types these lines; behind them comes Ctrl-D."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    return lambda lines: monkeypatch.setattr("sys.stdin", Terminal(lines))


def test_flags_are_enough_and_a_second_time_changes_nothing(
    call: Call, fleet: FakeFleet, config_path: Path, tmp_path: Path
) -> None:
    fleet.findings["lab"] = HAS_GPUS
    fleet.listings = [GpuListing(gpus=(replace(CARD, host="lab"),))]
    words = ("init", "--yes", "--host", "ada@lab:22", "--image", "team/torch:2")
    ended = call(*words)
    assert (ended.code, ended.err) == (0, "")
    assert f"Wrote {config_path}: host lab, environment torch" in ended.out
    assert 'Wrote kernelbridge-torch: "Docker-GPU (remote)"' in ended.out
    assert 'VS Code: open a notebook, Select Kernel, Jupyter Kernel..., "Docker-GPU (remote)".' in ended.out
    loaded = load.load(config_path)
    assert loaded.hosts["lab"].ssh == "ada@lab:22"
    assert (loaded.environments["torch"].image, loaded.environments["torch"].gpus) == ("team/torch:2", 1)
    assert (tmp_path / "data/kernels/kernelbridge-torch/kernel.json").exists()
    before = config_path.read_text()
    assert f"{config_path} has them already: host lab, environment torch" in call(*words).out
    assert config_path.read_text() == before


def test_what_is_offered_is_asked_for_by_its_number(
    call: Call, fleet: FakeFleet, config_path: Path, types: Callable[[str], None]
) -> None:
    fleet.others = {"old:1": 1, "new:2": 7_400_000_000}
    fleet.too_new = {"newest:3": "gpu2: the image newest:3 needs cuda>=13.0."}
    fleet.listings = [GpuListing(gpus=(replace(CARD, host="local", cuda="12.8"), CARD))]
    types("9\n2\n2\n")
    ended = call("init")
    assert ended.code == 0
    assert "  1  lab\n  2  gpu2\n  3  this machine's own Docker\n" in ended.out
    assert "Not offered: gpu2: the image newest:3 needs cuda>=13.0.\n" in ended.out
    offered = ["new:2  (7.4 GB)", "old:1", "pytorch/pytorch:2.7.1-cuda11.8-cudnn9-runtime  (is pulled; some 7 GB)"]
    assert "".join(f"  {number}  {name}\n" for number, name in enumerate(offered, 1)) in ended.out
    loaded = load.load(config_path)
    assert [host.ssh for host in loaded.hosts.values()] == ["gpu2"]
    assert (loaded.environments["old"].image, loaded.environments["old"].gpus) == ("old:1", 0)


def test_other_names_than_those_offered_can_be_typed(
    call: Call, config_path: Path, types: Callable[[str], None]
) -> None:
    types("ada@box\nReg:5000/Team/Torch@sha256:0\n")
    assert call("init").code == 0
    loaded = load.load(config_path)
    assert loaded.hosts["box"].ssh == "ada@box"
    assert loaded.environments["torch"].image == "Reg:5000/Team/Torch@sha256:0"


def test_this_machines_own_docker_is_a_host_too(call: Call, config_path: Path, types: Callable[[str], None]) -> None:
    types("3\n\n")
    assert call("init").code == 0
    assert load.load(config_path).hosts["local"].is_local
    assert load.load(config_path).environments["plain-python"].image == "python:3.12"


@pytest.mark.parametrize("typed", ["", "1\n", "1\ny\n"])
def test_whoever_leaves_leaves_all_as_it_was(
    call: Call,
    fleet: FakeFleet,
    config_path: Path,
    tmp_path: Path,
    types: Callable[[str], None],
    typed: str,
) -> None:
    fleet.slurm = (PartitionFacts(name="main", is_default=True, has_gpus=True),)
    fleet.findings["lab"] = Finding.of_error(LinkName.ENGINE, MISSING)
    types(typed)
    assert call("init").code == 1
    assert not config_path.exists()
    assert not (tmp_path / "data/kernels").exists()


def test_a_broken_link_is_shown_and_nothing_is_written(call: Call, fleet: FakeFleet, config_path: Path) -> None:
    fleet.findings["lab"] = Finding.of_error(LinkName.LOGIN, UNREACHABLE)
    ended = call("init", "--host", "lab", "--image", "x")
    assert ended.code == UNREACHABLE.exit_code
    assert f"broken   login                     {UNREACHABLE.sentence}" in ended.out
    assert ended.err == f"No config was written: login of lab is broken. {UNREACHABLE.remedy}\n"
    assert not config_path.exists()


def test_a_new_key_is_asked_about_and_looked_past(
    call: Call, fleet: FakeFleet, config_path: Path, types: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.keys = [host_key()]
    unknown = HostKeyUnknown(host="lab", algorithm="ssh-ed25519", fingerprint="SHA256:abc")
    fleet.findings["lab"] = Finding.of_error(LinkName.LOGIN, unknown)
    trust = fleet.trust

    async def trusted(host: str, key: object) -> None:
        fleet.findings.clear()
        await trust(host, key)  # type: ignore[arg-type]

    monkeypatch.setattr(fleet, "trust", trusted)
    types("y\n")
    ended = call("init", "--host", "lab", "--image", "x")
    assert ended.code == 0
    assert "lab.example shows the key ssh-ed25519 SHA256:abc" in ended.out
    assert [host for host, _ in fleet.trusted] == ["lab"]
    config_path.unlink()
    fleet.findings["lab"] = Finding.of_error(LinkName.LOGIN, unknown)
    assert call("init", "--yes", "--host", "lab", "--image", "x").code == unknown.exit_code


def test_a_config_that_is_there_is_added_to_and_what_ran_here_runs_here(call: Call, config_path: Path) -> None:
    mine = "# mine\n[environments.old]\nimage = 'x' # by hand\n"
    config_path.write_text(mine)
    ended = call("init", "--yes", "--host", "lab", "--image", "torch")
    assert ended.code == 0
    assert config_path.read_text().startswith(mine)
    loaded = load.load(config_path)
    assert [host.name for host in loaded.hosts_of(loaded.environments["old"])] == ["local", "lab"]
    assert "On lab may run, after the hosts before it: old, which name no `hosts`." in ended.out


def test_a_config_with_a_mistake_is_told_and_left(call: Call, config_path: Path) -> None:
    config_path.write_text("gpu = 1\n")
    assert call("init", "--yes", "--host", "lab", "--image", "x").code == 10
    assert config_path.read_text() == "gpu = 1\n"


def test_without_a_terminal_the_machine_must_be_named(call: Call, home: Path, config_path: Path) -> None:
    ended = call("init", "--image", "x")
    assert ended.code == 2
    assert "--host ALIAS" in ended.err
    (home / ".ssh/config").write_text("Host only\n")
    assert call("init", "--image", "x").code == 0
    assert load.load(config_path).hosts["only"].ssh == "only"


@pytest.mark.parametrize(
    ("ssh", "name"), [("lab", "lab"), ("ada@10.0.0.5:2222", "10.0.0.5"), ("_gateway", "gateway"), ("[::1]", "host")]
)
def test_a_host_gets_a_name_that_the_config_takes(ssh: str, name: str) -> None:
    assert init._host_name(ssh) == name


def test_a_login_node_of_slurm_gets_jobs_in_the_partition_that_is_chosen(
    call: Call, fleet: FakeFleet, config_path: Path, types: Callable[[str], None]
) -> None:
    fleet.findings["lab"] = [Finding(link=LinkName.LOGIN, found="in"), Finding.of_error(LinkName.ENGINE, MISSING)]
    fleet.slurm = (
        PartitionFacts(name="main", is_default=True, has_gpus=False),
        PartitionFacts(name="gpu", is_default=False, has_gpus=True),
    )
    types("1\n2\n\n")
    ended = call("init")
    assert (ended.code, ended.err) == (0, "")
    assert "lab has Slurm, and no Docker that this login may use: each kernel will be a job." in ended.out
    assert "broken" not in ended.out
    assert "  1  main  (the default)\n  2  gpu  (GPUs)\n" in ended.out
    loaded = load.load(config_path)
    assert (loaded.hosts["lab"].scheduler, loaded.hosts["lab"].partition) == ("slurm", "gpu")
    assert next(iter(loaded.environments.values())).gpus == 1
    before = config_path.read_text()
    words = ("init", "--yes", "--host", "lab", "--image", next(iter(loaded.environments.values())).image)
    assert "has them already" in call(*words).out
    assert config_path.read_text() == before


def test_without_slurm_an_engine_that_is_missing_is_the_broken_link(call: Call, fleet: FakeFleet) -> None:
    fleet.findings["lab"] = Finding.of_error(LinkName.ENGINE, MISSING)
    ended = call("init", "--host", "lab", "--image", "x")
    assert ended.code == MISSING.exit_code
    assert f"broken   engine                    {MISSING.sentence}" in ended.out


def test_little_room_is_a_warning_where_the_image_is_to_be_pulled(call: Call, fleet: FakeFleet) -> None:
    fleet.findings["lab"] = Finding.warning(LinkName.STORAGE, "5 GB free in /var/lib/docker", "Prune.")
    fleet.others = {"there:1": 1}
    said = "Warning: 5 GB free in /var/lib/docker; python:3.12 may need some 1 GB."
    assert said in call("init", "--yes", "--host", "lab", "--image", "python:3.12").err
    assert "may need some 5 to 20 GB" in call("init", "--yes", "--host", "lab", "--image", "team/torch:3").err
    assert call("init", "--yes", "--host", "lab", "--image", "there:1").err == ""


def test_an_image_that_is_named_and_too_new_is_a_warning(call: Call, fleet: FakeFleet) -> None:
    fleet.too_new = {"new:3": "lab: the image new:3 needs cuda>=13.0."}
    ended = call("init", "--yes", "--host", "lab", "--image", "new:3")
    assert (ended.code, ended.err) == (0, "Warning: lab: the image new:3 needs cuda>=13.0.\n")


def test_gpus_that_containers_would_not_get_are_not_asked_for(call: Call, fleet: FakeFleet, config_path: Path) -> None:
    fleet.findings["lab"] = [Finding.warning(LinkName.TOOLKIT, "missing", "Install it."), HAS_GPUS[1]]
    fleet.listings = [GpuListing(gpus=(replace(CARD, host="lab"),))]
    assert call("init", "--yes", "--host", "lab", "--image", "x").code == 0
    assert load.load(config_path).environments["x"].gpus == 0
