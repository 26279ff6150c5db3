"""Serve `kernelbridge ssh-config`, and `ssh-proxy`, which ssh starts by what that has written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from kernelbridge.atomic_files import write_once, write_whole
from kernelbridge.cli.context import CliContext
from kernelbridge.cli.ssh import config
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet.loop import LIST_SECONDS
from kernelbridge.hosts.relay_query import RelayAddress
from kernelbridge.kernel.command.terminal import CommandRequest, Terminal, open_terminal
from kernelbridge.kernel.records import default_folder


def write_config(
    ctx: typer.Context,
    wants_write: Annotated[
        bool, typer.Option("--write", help="Write it, and include it in ~/.ssh/config; else it is printed.")
    ] = False,
    wants_removal: Annotated[bool, typer.Option("--remove", help="Take it out of ~/.ssh/config again.")] = False,
) -> None:
    """Carry out `kernelbridge ssh-config`."""
    context: CliContext = ctx.obj
    ssh_folder = Path.home() / ".ssh"
    try:
        if wants_removal:
            was_there = config.remove(ssh_folder)
            context.say("Removed." if was_there else "There is nothing to remove.")
            return
        loaded = context.read_config()
        folder = default_folder()
        host_key(folder)
        text = config.entries(tuple(loaded.environments), folder=folder, config=loaded.path.absolute())
        if not wants_write:
            typer.echo(text, nl=False)
            return
        path = config.write(text, ssh_folder)
    except OSError as exc:
        raise KernelBridgeError(
            f"The ssh config cannot be written: {exc}.", "Add what `kernelbridge ssh-config` prints to it yourself."
        ) from exc
    names = ", ".join(f"{config.HOST_PREFIX}{name}" for name in loaded.environments)
    context.say(f"Wrote {path}, which ~/.ssh/config includes now.")
    context.say(f"`ssh` knows {names or 'no environment yet'}, and {config.HOST_PREFIX}ID for any kernel of `ps`.")


def host_key(folder: Path) -> bytes:
    """Return the key by which containers are known to ssh here, made at the first call, with its known_hosts."""
    from kernelbridge.cli.ssh import server  # loads asyncssh

    path = config.host_key_path(folder)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        write_once(path, server.new_host_key(), is_private=True)
    key = path.read_bytes()
    line = config.known_hosts_line(server.public_line(key)).encode()
    known = config.known_hosts_path(folder)
    if not known.exists() or known.read_bytes() != line:
        write_whole(known, line, is_private=True)
    return key


def proxy(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As ssh was given it: kb-NAME, or kb- and an id.")],
) -> None:
    """Carry out `kernelbridge ssh-proxy`: ssh's own connection is on stdin and stdout."""

    context: CliContext = ctx.obj
    key = host_key(default_folder())
    with context.fleet(context.read_config()) as fleet:
        asked = fleet.address_of(name.removeprefix(config.HOST_PREFIX))
        address = context.wait(fleet, asked, seconds=LIST_SECONDS)
        fleet.run(_serve(address, key))


async def _serve(address: RelayAddress, key: bytes) -> None:
    from kernelbridge.cli.ssh import server  # loads asyncssh

    async def open_beside(request: CommandRequest, output: Callable[[int, bytes], None]) -> Terminal:
        return await open_terminal(await address.workload(), request, host=address.host, output=output)

    await server.serve(server.joined_to_stdio(), host_key=key, open_beside=open_beside, python=address.python)
