"""jupyter/provisioner.py: what it does to Jupyter's managers beside the start, which the real tests see."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from jupyter_client.manager import KernelManager
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager, ServerKernelManager

from kernelbridge.jupyter import shared_fleets
from kernelbridge.jupyter.provisioner import Provisioner
from kernelbridge.kernel.state import KernelState


class NoFleet:
    """A start comes as far as to say what is wanted."""

    def launch_request(self, *_: Any, **__: Any) -> Any:
        raise LookupError("no farther")


async def begin(manager: KernelManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_fleets, "fleet_of", lambda _path: NoFleet())
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


@dataclass
class EndedKernel:
    """A kernel that has ended, as far as the provisioner asks; and the heart of its channels."""

    state: KernelState = KernelState.FAILED
    exit_code: int | None = 42
    end_heard_at: float | None = None

    @property
    def channels(self) -> EndedKernel:
        return self

    @property
    def is_final(self) -> bool:
        return self.state is not KernelState.EXITED


def polled(kernel: EndedKernel, manager: KernelManager) -> Provisioner:
    made = Provisioner(parent=manager)
    made._kernel = cast(Any, kernel)
    manager.provisioner = made
    if isinstance(manager, ServerKernelManager):
        manager.start_restarter()
    return made


async def test_a_server_sees_the_end_of_a_kernel_three_seconds_after_a_cell_has_heard_why() -> None:
    manager: Any = ServerKernelManager()
    kernel = EndedKernel()
    provisioner = polled(kernel, manager)
    assert await provisioner.poll() is None
    assert manager._restarter.restart_limit > 0
    kernel.end_heard_at = time.monotonic() - 2
    assert await provisioner.poll() is None
    kernel.end_heard_at = time.monotonic() - 3
    assert await provisioner.poll() == 42
    assert manager._restarter.restart_limit == 0
    manager.stop_restarter()


async def test_who_has_no_pages_who_asked_for_the_end_and_who_may_restart_see_it_at_once() -> None:
    assert await polled(EndedKernel(), KernelManager()).poll() == 42
    manager: Any = ServerKernelManager()
    assert await polled(EndedKernel(end_heard_at=-math.inf), manager).poll() == 42
    assert await polled(EndedKernel(state=KernelState.EXITED), manager).poll() == 42
    assert await polled(EndedKernel(state=KernelState.STOPPED), manager).poll() == 42
    assert await polled(EndedKernel(exit_code=None), manager).poll() is None
    manager.shutting_down = True
    assert await polled(EndedKernel(), manager).poll() == 42
    manager.stop_restarter()
