"""Start a container and a kernel for a moment, as a front-end would, to see whether they work; remove both again."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from kernelbridge.channels import endpoints
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.errors import CommandNotRun, GpuMismatch, StartTimeout
from kernelbridge.fleet.doctor.finding import Finding, LinkName, Said
from kernelbridge.kernel import failures
from kernelbridge.kernel.request import LaunchRequest, RunCommand
from kernelbridge.kernel.state import KernelState
from kernelbridge.protocol import terminal

if TYPE_CHECKING:
    from kernelbridge.kernel.command.run import CommandRun, RunOutput  # loads pyzmq
    from kernelbridge.kernel.kernel import Kernel

# For one trial; the steps of a start have limits of their own, by `start_seconds`.
TRIAL_SECONDS: Final = 600.0
# For what a client asks of a kernel that runs.
TALK_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.05
_MOST_OUTPUT_BYTES: Final = 64 << 10
# Runs in the place of a kernel, whatever the image has.
_GPU_SCRIPT: Final = (
    "nvidia-smi -L 2>/dev/null || { set -- /dev/nvidia[0-9]* /dev/dxg; "
    'for device do [ ! -e "$device" ] || echo "$device"; done; }'
)


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What a client heard of a kernel."""

    # `Python 3.11.2`.
    language: str
    # Why breakpoints will not stop; empty where they do, or that was not asked.
    debugger_trouble: str = ""


# Talks to the kernel at these endpoints, as Jupyter's clients do; blocks, until told to give up. Raises
# KernelBridgeError.
Talk = Callable[[Mapping[str, Any], bool, threading.Event], Conversation]


class Trials:
    """Starts things for a moment, by a fleet's own ways."""

    def __init__(
        self,
        *,
        start: Callable[[LaunchRequest, Endpoints], Awaitable[Kernel]],
        stop: Callable[[Kernel], Awaitable[None]],
        make_run: Callable[[LaunchRequest, RunOutput], Awaitable[CommandRun]],
        talk: Talk,
        runtime_folder: str | None,
    ) -> None:
        self._start = start
        self._stop = stop
        self._make_run = make_run
        self._talk = talk
        self._runtime_folder = runtime_folder

    def __repr__(self) -> str:
        return "<Trials>"

    async def container(self, request: LaunchRequest) -> Said:
        """Start a container in which a look at its GPUs stands in the kernel's place. Raises KernelBridgeError."""
        from kernelbridge.kernel.command.run import RunOutput  # loads pyzmq

        wanted = request.environment.gpus != 0
        argv = ("sh", "-c", _GPU_SCRIPT if wanted else "true")
        request = _as_trial(replace(request, command=RunCommand(argv=argv)), setup=())
        written = bytearray()

        def write(kind: int, data: bytes) -> None:
            if kind == terminal.OUTPUT and len(written) < _MOST_OUTPUT_BYTES:
                written.extend(data)

        output = RunOutput(write=write, is_congested=lambda: False, progress=lambda text: None, tell=lambda text: None)
        run = await self._make_run(request, output)
        try:
            await run.start()
            await run.wait()
            gpu_ids = run.placement.gpu_ids
        except CommandNotRun as error:
            # It was all there but for the shell.
            return Finding.not_tried(LinkName.CONTAINER, f"no look inside: {error.sentence}")
        finally:
            await asyncio.shield(run.remove())
        seen = written.decode("utf-8", "replace").splitlines()
        if gpu_ids and not seen:
            raise GpuMismatch(host=run.host.name, wanted=", ".join(gpu_ids), seen="none")
        if not gpu_ids:
            return "starts and ends"
        which = "GPU" if len(gpu_ids) == 1 else f"{len(gpu_ids)} GPUs"
        return f"sees its {which} ({seen[0].strip()[:80]})"

    async def kernel(self, request: LaunchRequest, *, debugs: bool) -> Said:
        """Start a kernel, talk to it as a client does, and stop it. Raises KernelBridgeError."""
        request = _as_trial(request)
        host = request.hosts[0]
        debugs = debugs and not failures.debug_refusal(request.environment, host)
        made = endpoints.made(runtime_folder=self._runtime_folder)
        gives_up = threading.Event()
        try:
            kernel = await self._start(request, made)
        except BaseException:
            made.remove()
            raise
        try:
            await _ready(kernel)
            way = kernel.way
            connection = kernel.channels.endpoints.connection_info()
            heard = await asyncio.to_thread(self._talk, connection, debugs, gives_up)
        except Exception:
            if kernel.failure is not None:
                raise kernel.failure from None
            raise
        finally:
            gives_up.set()
            await asyncio.shield(self._stop(kernel))
        if heard.debugger_trouble:
            remedy = f"Add `RUN pip install -U ipykernel debugpy` to the image of {request.environment.name}."
            found = f"answers ({heard.language}), but its debugger does not: {heard.debugger_trouble}"
            return Finding.warning(LinkName.KERNEL, found, remedy)
        does = "and debugs" if debugs else "(debugging is off)"
        by = {"socket": "; reached by its own socket", "exec": "; reached through the engine"}.get(way, "")
        return f"answers ({heard.language}), computes {does}{by}"


def _as_trial(request: LaunchRequest, **changed: Any) -> LaunchRequest:
    """Return a request for something that waits for nothing, fetches nothing, and leaves nothing behind."""
    quick = {"persist": False, "wait": None, "forwards": (), "workspace": None, "pull": "never", **changed}
    environment = request.environment.model_copy(update=quick)
    return replace(request, kernel_id=str(uuid.uuid4()), environment=environment, title="kernelbridge doctor")


async def _ready(kernel: Kernel) -> None:
    """Return when a kernel answers. Raises why it does not."""
    seconds = kernel.request.environment.start_seconds + TALK_SECONDS
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while kernel.state is KernelState.STARTING:  # noqa: ASYNC110 - observers are for the fleet's whole life
                await asyncio.sleep(_LOOK_SECONDS)
    if kernel.failure is not None:
        raise kernel.failure
    if kernel.state is KernelState.STARTING:
        raise StartTimeout(host=kernel.host.name, what="the kernel", seconds=seconds)
