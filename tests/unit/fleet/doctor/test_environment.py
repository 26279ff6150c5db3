"""fleet/doctor/environment.py: what is told of an environment's image and Python, and when something is started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from kernelbridge.errors import GpusBusy, ImageUnusable, KernelBridgeError
from kernelbridge.fleet.doctor.environment import EnvironmentExaminer
from kernelbridge.fleet.doctor.finding import Examiner, Finding, LinkName, LinkState, Said
from kernelbridge.hosts.docker.images.python_probe import FoundPython
from kernelbridge.kernel.request import LaunchRequest
from tests.made_engines import LAB, cards, image, launch_request
from tests.unit.fleet.doctor.test_host import PYTHON

BUSY = GpusBusy(host="lab", wanted="1 GPU", holders=["bob"])
NO_IPYKERNEL = replace(PYTHON, packages={"debugpy": "1.8", "pyzmq": "27"})
NO_DEBUGPY = replace(PYTHON, packages={"ipykernel": "7.0", "pyzmq": "27"})


@dataclass(kw_only=True)
class MadeTrials:
    """Trials that end as a test says; `log` has what was tried."""

    container_said: Said | KernelBridgeError = "sees 1 of its GPUs"
    kernel_said: Said | KernelBridgeError = "answers"
    log: list[str] = field(default_factory=list)

    async def container(self, request: LaunchRequest) -> Said:
        assert request.hosts == (LAB,)
        self.log.append("container")
        if isinstance(self.container_said, KernelBridgeError):
            raise self.container_said
        return self.container_said

    async def kernel(self, request: LaunchRequest, *, debugs: bool) -> Said:
        self.log.append("kernel" if debugs else "kernel without debugger")
        if isinstance(self.kernel_said, KernelBridgeError):
            raise self.kernel_said
        return self.kernel_said


Examine = Callable[..., dict[str, Finding]]


@pytest.fixture
def examine() -> Examine:
    """What is told of an environment on a host that is whole but for what a test says."""

    def run(
        *,
        python: FoundPython | KernelBridgeError | None = PYTHON,
        trials: MadeTrials | None = None,
        has_image: bool = True,
        gpus: int = 2,
        broken: LinkName | None = None,
        **keys: Any,
    ) -> dict[str, Finding]:
        found: list[Finding] = []
        asked: list[str] = []

        async def find_python(engine: object, environment: object, image: object, examine: bool) -> FoundPython | None:
            assert examine == (trials is not None)
            if isinstance(python, KernelBridgeError):
                raise python
            return python

        async def find_image(name: str) -> Any:
            return replace(image(), size_bytes=7 * 1000**3) if has_image else None

        async def check_pullable(name: str, *, seconds: float) -> None:
            asked.append(name)

        engine: Any = SimpleNamespace(
            image=find_image,
            check_pullable=check_pullable,
            gpus=SimpleNamespace(look=lambda **more: asyncio.sleep(0, cards(gpus))),
        )
        request = launch_request(**keys)
        examiner = EnvironmentExaminer(
            request,
            LAB,
            Examiner(found.append, host="lab", environment="torch"),
            find_python=find_python,
            trials=trials,  # type: ignore[arg-type]
        )
        asyncio.run(examiner.examine(engine, cards(gpus), broken=broken))
        return {one.link.value: one for one in found}

    return run


def states(found: dict[str, Finding]) -> dict[str, str]:
    return {name: one.state.value for name, one in found.items() if one.state is not LinkState.OK}


def test_an_image_that_is_to_come_says_how(examine: Examine) -> None:
    found = examine(has_image=False)
    assert found["image"].found == "torch:2 is pulled by the first start"
    assert found["kernel"].found == "not tried: the image is not on lab yet; `kernelbridge pull torch` fetches it"
    assert states(examine(has_image=False, pull="never")) == {
        "image": "broken",
        **dict.fromkeys(["image's Python", "container", "kernel"], "skipped"),
    }
    assert examine(has_image=False, image=None, build="~/project")["image"].found == "is built by the first start"
    assert examine()["image"].found == "torch:2 is there (7.0 GB)"


def test_without_trials_nothing_is_started_nor_looked_into(examine: Examine) -> None:
    found = examine(python=None)
    assert states(found) == dict.fromkeys(["image's Python", "container", "kernel"], "skipped")
    assert found["image's Python"].found.endswith("`kernelbridge doctor torch` looks")
    assert states(examine()) == dict.fromkeys(["container", "kernel"], "skipped")


def test_a_python_says_what_it_lacks_and_whether_that_is_added(examine: Examine) -> None:
    assert examine(python=NO_IPYKERNEL)["image's Python"].found.endswith("a start adds ipykernel")
    fixed = {"add_ipykernel": False}
    trials = MadeTrials()
    found = examine(python=NO_IPYKERNEL, trials=trials, **fixed)
    assert states(found) == {"image's Python": "broken", "container": "skipped", "kernel": "skipped"}
    assert found["image's Python"].found == "The image torch:2 has no ipykernel."
    assert trials.log == []
    assert states(examine(python=NO_DEBUGPY, trials=trials, **fixed)) == {"image's Python": "warning"}
    assert trials.log == ["container", "kernel without debugger"]
    unusable = ImageUnusable(image="torch:2", fault="has no Python")
    assert states(examine(python=unusable, trials=MadeTrials()))["image's Python"] == "broken"


def test_a_container_and_a_kernel_are_tried_one_after_the_other(examine: Examine) -> None:
    trials = MadeTrials()
    found = examine(trials=trials)
    assert states(found) == {}
    assert trials.log == ["container", "kernel"]
    assert (found["container"].found, found["kernel"].found) == ("sees 1 of its GPUs", "answers")
    failed = MadeTrials(container_said=KernelBridgeError("it fails"))
    assert states(examine(trials=failed)) == {"container": "broken", "kernel": "skipped"}
    assert failed.log == ["container"]
    assert states(examine(trials=MadeTrials(kernel_said=KernelBridgeError("it dies")))) == {"kernel": "broken"}


def test_gpus_that_others_have_are_left_to_them(examine: Examine) -> None:
    taken = MadeTrials(kernel_said=BUSY)
    found = examine(trials=taken)
    assert (found["kernel"].state, found["kernel"].found) == (LinkState.SKIPPED, "not tried: its GPUs are taken")


@pytest.mark.parametrize("broken", [LinkName.DRIVER, LinkName.TOOLKIT, LinkName.CDI])
def test_where_containers_get_no_gpus_none_is_started(examine: Examine, broken: LinkName) -> None:
    trials = MadeTrials()
    found = examine(trials=trials, broken=broken)
    assert states(found) == dict.fromkeys(["GPUs", "container", "kernel"], "skipped")
    assert found["container"].found == f"behind {broken}"
    assert trials.log == []
