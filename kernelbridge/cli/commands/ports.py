"""Serve `kernelbridge forward` and `tensorboard`: ports of a kernel's container on this machine, until Ctrl-C."""

from __future__ import annotations

import threading
import time
import webbrowser
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Annotated

import typer

from kernelbridge.cli.commands.terminal import KernelArgument
from kernelbridge.cli.context import CliContext, until_told_to_leave
from kernelbridge.cli.status_line import StatusLine
from kernelbridge.config import fields
from kernelbridge.config.schema import Forward
from kernelbridge.errors import ForwardFailed
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.loop import LIST_SECONDS
from kernelbridge.hosts.forwards.mux_stream import PortRefused
from kernelbridge.hosts.forwards.port_forwards import OpenForward, PortForwards

BOARD_PORT = 6006
_OPEN_SECONDS, _CLOSE_SECONDS = 30.0, 10.0
_LOOK_SECONDS = 0.1
# How often it is asked whether the container is there still.
_ASK_SECONDS = 15.0


def forward(
    ctx: typer.Context,
    kernel: KernelArgument,
    ports: Annotated[list[str], typer.Argument(metavar="PORT...", help="The container's ports, or HERE:THERE.")],
    raw: Annotated[bool, typer.Option("--raw", help="They are not HTTP: nothing that is sent is looked at.")] = False,
) -> None:
    """Carry out `kernelbridge forward`."""
    context: CliContext = ctx.obj
    wanted = _wanted(ports, raw=raw)
    with context.fleet(context.read_config()) as fleet:
        forwards = context.wait(fleet, fleet.forwards(kernel), seconds=LIST_SECONDS)
        try:
            for one in context.wait(fleet, _open(forwards, wanted), seconds=_OPEN_SECONDS):
                _show(context, fleet, forwards, one)
            context.say("Ctrl-C ends this.")
            with until_told_to_leave():
                _stay(fleet, forwards)
            context.say("The kernel has ended.")
        except KeyboardInterrupt:
            pass
        finally:
            context.wait(fleet, forwards.aclose(), seconds=_CLOSE_SECONDS)


def _wanted(ports: Sequence[str], *, raw: bool) -> tuple[Forward, ...]:
    try:
        parsed = [fields.parse_forward(port) for port in ports]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return tuple(Forward(here=here, there=there, is_raw=raw or is_raw) for here, there, is_raw in parsed)


async def _open(forwards: PortForwards, wanted: Sequence[Forward]) -> tuple[OpenForward, ...]:
    """Listen. Raises ForwardFailed where no port can be had."""
    try:
        opened = forwards.listen(wanted)
    except OSError as exc:
        raise ForwardFailed(kernel=forwards.kernel, reason=str(exc)) from exc
    return opened


def _show(context: CliContext, fleet: Fleet, forwards: PortForwards, one: OpenForward) -> None:
    """Say where a port is, and what is to be known of it."""
    if one.is_elsewhere:
        context.complain(f"Port {one.asked.here} is taken on this machine; {one.here} is used.")
    if one.asked.is_raw:
        context.complain(
            f"Any program of this machine (on Linux: of your login) can connect to {one.here}, and any web page can "
            "send to it."
        )
    context.say(f"{one.address} -> {one.asked.there} of {forwards.kernel}")
    if not context.wait(fleet, _answers(forwards, one.asked.there), seconds=_OPEN_SECONDS):
        context.complain(f"Nothing listens at port {one.asked.there} in the container yet.")


async def _answers(forwards: PortForwards, there: int) -> bool:
    """Whether something listens at a port of the container. Raises ForwardFailed."""
    try:
        (await forwards.connect(there)).close()
    except PortRefused:
        return False
    return True


def _stay(fleet: Fleet, forwards: PortForwards) -> None:
    """Return when the kernel has ended."""
    asked: Future[bool] | None = None
    ask_at = time.monotonic() + _ASK_SECONDS
    while True:
        time.sleep(_LOOK_SECONDS)
        if asked is None and time.monotonic() > ask_at:
            asked = fleet.submit(forwards.has_ended())
        if asked is not None and asked.done():
            if asked.result():
                return
            asked, ask_at = None, time.monotonic() + _ASK_SECONDS


def tensorboard(
    ctx: typer.Context,
    kernel: KernelArgument,
    folder: Annotated[str, typer.Argument(metavar="LOGDIR", help="The folder of the container that it shows.")],
    port: Annotated[
        int, typer.Option("--port", help="Its port here, and in the container if it is free.", min=1, max=65535)
    ] = BOARD_PORT,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in the browser.")] = True,
) -> None:
    """Carry out `kernelbridge tensorboard`."""
    context: CliContext = ctx.obj

    addresses: SimpleQueue[str] = SimpleQueue()
    with context.fleet(context.read_config()) as fleet:
        running = fleet.submit(fleet.board(kernel, folder, port=port, ready=addresses.put))
        line = StatusLine(lambda: f"starting TensorBoard in {kernel}")
        line.start()
        try:
            with until_told_to_leave():
                while not running.done():
                    with suppress(Empty):
                        # It is told again where it has become another.
                        address = addresses.get(timeout=_LOOK_SECONDS)
                        line.stop()
                        _show_board(context, address, opens=browser)
            running.result()
        except KeyboardInterrupt:
            running.cancel()
            wait_for([running], _CLOSE_SECONDS)
        finally:
            line.stop()


def _show_board(context: CliContext, address: str, *, opens: bool) -> None:
    context.say(address)
    context.say("Ctrl-C ends it.")
    if opens:
        # A browser without a desktop holds up who calls it, for as long as it is open.
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
