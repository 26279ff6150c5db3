"""The fixtures of the real tests: `rig` (the machine, once per run) and `bridge_env` (a new user, once per test)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.clients.cluster import seconds_until_clean
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig, missing_slurm
from tests.rig.whole import Rig, missing, nothing_may_skip, open_rig

# The one rig of this run, for the report on a failed test.
_RIG: list[Rig] = []


def require(missing: str | None) -> None:
    """Skip, or fail where nothing may skip, because of what is missing for a real thing."""
    if missing is not None:
        if nothing_may_skip():
            pytest.fail(f"nothing may skip here, and {missing}")
        pytest.skip(missing)


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    """Real sshd and dockerd on a made machine; `rig.lab`, `.engine`, `.sshd`, `.proxy`, `.image`: see tests/rig."""
    require(missing())
    with open_rig() as whole:
        _RIG.append(whole)
        yield whole
        _RIG.clear()


@pytest.fixture(scope="session")
def slurm(rig: Rig) -> Iterator[SlurmRig]:
    """A real Slurm on the rig's machine, started for the first test that asks: see tests/rig/slurm.py."""
    require(missing_slurm())
    with closing(SlurmRig(rig.lab)) as cluster:
        yield cluster


@pytest.fixture
def bridge_env(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laptop]:
    """A new user's home, keys and Jupyter folders, in force here and in `.env`; environment `test` on host `lab`.

    At the end no container of ours may be left; a test that wants to leave one removes it with rig.engine.sweep().
    """
    with new_user(rig, monkeypatch) as laptop:
        yield laptop


@pytest.fixture
def cluster(rig: Rig, slurm: SlurmRig, bridge_env: Laptop) -> Iterator[SlurmRig]:
    """The same Slurm for one test; at the end nothing of a kernel is left on it."""
    yield slurm
    try:
        seconds_until_clean(rig, slurm)
    finally:
        slurm.sweep()


@pytest.fixture(scope="module")
def module_env(rig: Rig) -> Iterator[Laptop]:
    """The same user for a whole file, whose tests share a kernel; not to be used beside bridge_env."""
    with pytest.MonkeyPatch.context() as monkeypatch, new_user(rig, monkeypatch) as laptop:
        yield laptop


@contextmanager
def new_user(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laptop]:
    # Short, and not pytest's tmp_path: unix socket paths are limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="kbt-"))
    laptop = rig.laptop(folder)
    laptop.write_environment(rig.image)
    for name, value in laptop.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    yield laptop
    left = rig.engine.sweep()
    shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"containers of ours were left behind: {', '.join(left)}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Called by pytest after each phase: a failed one shows the containers' state and last log lines, and sshd's.

    Where nothing may skip, a skip is a failure that says its reason.
    """
    report = yield
    if report.skipped and nothing_may_skip() and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"nothing may skip here: {report.longrepr}"
    if report.failed and call.when == "call" and _RIG:
        report.sections.append(("containers and engine", _RIG[0].engine.report()))
        report.sections.append(("sshd", _RIG[0].sshd.log))
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Called by pytest: the first test of a process that needs the rig also waits for its images to be made.

    Which that will be is not known here: one of the first of each file.
    """
    seen = set()
    for item in items:
        if "rig" in getattr(item, "fixturenames", ()) and item.path not in seen:
            seen.add(item.path)
            item.add_marker(pytest.mark.timeout(1200), append=False)


@pytest.fixture
def nothing_left(bridge_env: Laptop, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the test no socket folder and no container is left; for tests of starts that fail."""
    runtime = bridge_env.home / "xdg"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    yield
    assert list(runtime.glob("kernelbridge/*")) == []
    assert rig.engine.kernels() == []
