"""Loaded by pytest in another project's suite: notes each result, and keeps our kernel spec in force.

Copied into the folder of the run, and imports nothing of ours: the suite's environment has only the package.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Set by environments.py: where results go, where each start of our kernel is noted, and {pattern: reason}.
RESULTS = "KERNELBRIDGE_FOREIGN_RESULTS"
STARTS = "KERNELBRIDGE_FOREIGN_STARTS"
LEFT_OUT = "KERNELBRIDGE_FOREIGN_LEFT_OUT"
# The user's own home: a suite that makes a new one has no ssh configuration there.
HOME = "KERNELBRIDGE_FOREIGN_HOME"
SERVER_CONFIG = "jupyter_server_config.d/kernelbridge.json"
_FACTORY = "create_provisioner_instance"


def _write(name: str, line: object) -> None:
    # In one write: processes that a test starts write here too.
    with Path(os.environ[name]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def _starts() -> int:
    path = Path(os.environ[STARTS])
    return len(path.read_text().splitlines()) if path.exists() else 0


def pytest_configure() -> None:
    """Note each kernel that is about to be started by our provisioner, in children of this process too."""
    try:
        from jupyter_client.provisioning.factory import KernelProvisionerFactory
    except ImportError:
        return  # Its kernels are a server's.

    make = getattr(KernelProvisionerFactory, _FACTORY)

    def noted(self: Any, kernel_id: str, kernel_spec: Any, parent: Any) -> Any:
        if kernel_spec.metadata.get("kernel_provisioner", {}).get("provisioner_name") == "kernelbridge":
            _write(STARTS, kernel_id)
        return make(self, kernel_id, kernel_spec, parent)

    setattr(KernelProvisionerFactory, _FACTORY, noted)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what does not apply, with its reason."""
    reasons: dict[str, str] = json.loads(os.environ[LEFT_OUT])
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        reason = next((reasons[one] for one in reasons if fnmatch.fnmatchcase(item.nodeid, one)), None)
        (left if reason else kept).append(item)
        if reason:
            _write(RESULTS, {"test": item.nodeid, "outcome": "left out", "reason": reason})
    config.hook.pytest_deselected(items=left)
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Iterator[None]:
    """A new home gets the ssh configuration, a new configuration of Jupyter our extension."""
    result = yield
    home = Path(os.environ.get("HOME", "/"))
    own = Path(os.environ[HOME]) / ".ssh"
    if home.is_dir() and not (home / ".ssh").exists():
        (home / ".ssh").symlink_to(own)
    if fixturedef.argname == "jp_env_config_path":
        path = Path(str(fixturedef.cached_result[0])) / SERVER_CONFIG
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"ServerApp": {"jpserver_extensions": {"kernelbridge": True}}}))
    return result


_BEFORE: dict[str, int] = {}
_SEEN: dict[str, dict[str, Any]] = {}


def pytest_runtest_logstart(nodeid: str) -> None:
    _BEFORE[nodeid] = _starts()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The worst of a test's three parts counts."""
    seen = _SEEN.setdefault(report.nodeid, {"outcome": "passed", "reason": ""})
    if report.failed and seen["outcome"] != "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else str(report.longrepr)
        seen.update(outcome="failed", reason=text.strip().splitlines()[0] if text.strip() else report.when)
    elif report.skipped and seen["outcome"] == "passed":
        reason = getattr(report, "wasxfail", None) or report.longrepr
        text = reason[2] if isinstance(reason, tuple) else str(reason)
        seen.update(outcome="skipped", reason=text.removeprefix("Skipped: "))


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Write what became of it, and how many kernels of ours it has started."""
    seen = _SEEN.pop(nodeid, None)
    if seen is not None:
        _write(RESULTS, {"test": nodeid, **seen, "kernels": _starts() - _BEFORE[nodeid]})
