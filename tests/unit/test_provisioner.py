"""jupyter/provisioner.py: what it does to Jupyter's managers beside the start, which the real tests see."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from jupyter_client.manager import KernelManager
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager, ServerKernelManager

from kernelbridge.jupyter import fleets
from kernelbridge.jupyter.provisioner import Provisioner


class NoFleet:
    """A start comes as far as to say what is wanted."""

    def wanted(self, *_: Any, **__: Any) -> Any:
        raise LookupError("no farther")


async def begin(manager: KernelManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "fleet_of", lambda _path: NoFleet())
    with pytest.raises(LookupError):
        await Provisioner(parent=manager, config_path="/nowhere/config.toml").launch_kernel([])


async def test_a_server_can_list_a_kernel_before_it_has_noted_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = cast(Any, AsyncMappingKernelManager)()
    manager = ServerKernelManager(kernel_name="kernelbridge-test")
    server._kernels["k1"] = manager
    with pytest.raises(Exception, match="last_activity"):
        server.list_kernels()
    await begin(manager, monkeypatch)
    (row,) = server.list_kernels()
    assert (row["id"], row["execution_state"]) == ("k1", "starting")
    assert datetime.now(UTC) - datetime.fromisoformat(row["last_activity"]) < timedelta(minutes=1)


async def test_a_manager_without_a_server_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = KernelManager()
    await begin(manager, monkeypatch)
    assert not hasattr(manager, "last_activity")
