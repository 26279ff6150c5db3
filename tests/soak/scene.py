"""Who takes part in a soak: the server and its pages, scripts, launchers, those who take turns, two laptops."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.clients.cluster import LOGIN_NODE, MEMORY
from tests.clients.holder import Holder
from tests.clients.notebook import write_specs
from tests.clients.page import ReturningServer
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.whole import Rig
from tests.soak.seats import Desk, HolderSeat, LauncherSeat, PageSeat, Seat
from tests.soak.turns import Turns, TurnUser

# Of the kernels: pages, launchers that stay, launchers that are killed and taken over, a script's, with GPUs, in jobs.
_SHARES = (("page", 0.3), ("launcher", 0.15), ("roaming", 0.15), ("script", 0.15), ("gpu", 0.15), ("job", 0.1))
# Each wants so many of the four cards, so that three already wait for each other.
GPUS_EACH = 2
_SECONDS_TO_QUEUE = "20m"


def shares(kernels: int, *, with_jobs: bool) -> dict[str, int]:
    """Return how many kernels of each kind there are. Pure."""
    parts = [one for one in _SHARES if with_jobs or one[0] != "job"]
    whole = sum(share for _, share in parts)
    found = {name: max(1, int(kernels * share / whole)) for name, share in parts}
    found["page"] = max(1, found["page"] + kernels - sum(found.values()))
    return found


def config(rig: Rig, *, ssh: str, persists: bool) -> str:
    """The kernelbridge.toml of one laptop; kernels with GPUs are reached through the engine, others the short way."""
    login = {**LOGIN_NODE, "ssh": ssh}
    image = f"image = '{rig.image}'"
    return "\n".join(
        [
            "[hosts.lab]",
            f"ssh = '{ssh}'",
            "[hosts.engine]",
            *(f"ssh = '{ssh}'", "short_way = false"),
            "[hosts.cluster]",
            *(f"{key} = '{text}'" for key, text in login.items()),
            "[environments.test]",
            *(image, "hosts = ['lab']", f"persist = {str(persists).lower()}"),
            "[environments.gpu]",
            *(image, "hosts = ['engine']", f"gpus = {GPUS_EACH}", f"wait = '{_SECONDS_TO_QUEUE}'"),
            "[environments.job]",
            *(image, "hosts = ['cluster']", f"memory = '{MEMORY}'", ""),
        ]
    )


@contextmanager
def new_laptop(rig: Rig, *, ssh: str, persists: bool = True) -> Iterator[Laptop]:
    """A user's home with its config and kernel specs; gone at the end."""
    # Short: unix sockets lie in it.
    folder = Path(tempfile.mkdtemp(prefix="kbs-"))
    try:
        laptop = SoakLaptop(**rig.laptop(folder).__dict__)
        (folder / "xdg").mkdir(mode=0o700)
        laptop.write_config(config(rig, ssh=ssh, persists=persists))
        with at_home(laptop):
            write_specs(laptop)
        yield laptop
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class SoakLaptop(Laptop):
    """Its sockets are in its home, where they can be counted."""

    @property
    def variables(self) -> dict[str, str]:
        return {
            **super().variables,
            "XDG_RUNTIME_DIR": str(self.home / "xdg"),
            "SSH_AUTH_SOCK": "",
            "PYTHONFAULTHANDLER": "1",
        }


@contextmanager
def at_home(laptop: Laptop) -> Iterator[None]:
    """This process has the user's folders for its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in laptop.variables.items():
            patch.setenv(name, value)
        yield


@dataclass(kw_only=True)
class Scene:
    """All that the schedule can happen to."""

    rig: Rig
    slurm: SlurmRig | None
    # The server's and the launchers'; the one that takes over; that of those who roam: on the first one a kernel that
    # was left would be the server's before a terminal has it.
    laptops: tuple[Laptop, Laptop, Laptop]
    server: ReturningServer
    desk: Desk
    pages: list[PageSeat] = field(default_factory=list)
    launchers: list[LauncherSeat] = field(default_factory=list)
    # Those that are killed, left and taken over.
    roaming: list[LauncherSeat] = field(default_factory=list)
    scripts: list[HolderSeat] = field(default_factory=list)
    holder: Holder | None = None
    gpu_users: list[TurnUser] = field(default_factory=list)
    job_users: list[TurnUser] = field(default_factory=list)
    gpu_turns: Turns = field(default_factory=Turns)
    job_turns: Turns = field(default_factory=Turns)

    @property
    def seats(self) -> list[Seat]:
        """Whoever keeps a kernel."""
        return [*self.pages, *self.launchers, *self.roaming, *self.scripts]

    @property
    def users(self) -> list[TurnUser]:
        """Whoever takes turns."""
        return [*self.gpu_users, *self.job_users]

    def ours_here(self) -> list[psutil.Process]:
        """Every process of the laptops behind the proxy's line: what stands still while they sleep."""
        found: list[psutil.Process] = []
        with suppress(psutil.Error):
            found += tree_of(self.server.process.pid)
        if self.holder is not None:
            found += tree_of(self.holder.process.pid)
        seats = [*self.launchers, *self.roaming, *(user.seat for user in self.users if user.seat is not None)]
        for seat in seats:
            if seat.laptop is not self.laptops[1]:
                found += [process for one in seat.processes() for process in tree_of(one.pid)]
        return found

    def relays(self) -> list[psutil.Process]:
        """The relays' processes: the containers' main ones, under their init."""
        found = []
        for process in self.rig.lab.processes():
            with suppress(psutil.Error):
                words = process.cmdline()
                if "-c" in words[1:2] and "kernelbridge_relay" in words[2]:
                    found.append(process)
        return found

    def watched(self) -> Iterator[tuple[str, psutil.Process]]:
        """Every process whose figures are looked at, with its role. Those of turns live too short for it."""
        for number, process in enumerate(tree_of(self.server.process.pid)):
            yield ("server" if number == 0 else "server's child", process)
        if self.holder is not None:
            for process in tree_of(self.holder.process.pid):
                yield "script", process
        for seat in (*self.launchers, *self.roaming):
            for process in seat.processes():
                yield ("launcher" if "attach" not in " ".join(_words(process)) else "attach", process)
        for process in self.relays():
            yield "relay", process


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def tree_of(pid: int) -> list[psutil.Process]:
    """A process and all below it; nothing where it has ended."""
    try:
        own = psutil.Process(pid)
        return [own, *own.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def opened(rig: Rig, slurm: SlurmRig | None, *, kernels: int, seed: int, say: Callable[[str], None]) -> Iterator[Scene]:
    """Start everything; at the end no process of it is left, whatever happened inside."""
    wanted = shares(kernels, with_jobs=slurm is not None)
    with ExitStack() as undo:
        first = undo.enter_context(new_laptop(rig, ssh="lab-proxied"))
        second = undo.enter_context(new_laptop(rig, ssh="lab"))
        server = ReturningServer(first.home / "server", env=first.variables)
        undo.callback(end_server, server)
        third = undo.enter_context(new_laptop(rig, ssh="lab-proxied"))
        desk = Desk(rig=rig, laptops=(first, second))
        roams = Desk(rig=rig, laptops=(third, second))
        scene = Scene(rig=rig, slurm=slurm, laptops=(first, second, third), server=server, desk=desk)
        server.wait_ready()
        seeds = iter(range(seed * 1000, seed * 1000 + 1000))
        say(f"kernels: {', '.join(f'{count} {name}' for name, count in wanted.items())}")
        for number in range(wanted["page"]):
            scene.pages.append(PageSeat(f"page-{number}", next(seeds), server))
        kinds = (("launcher", scene.launchers, desk), ("roaming", scene.roaming, roams))
        for kind, seats, whose in kinds:
            for number in range(wanted[kind]):
                seat = LauncherSeat(f"{kind}-{number}", next(seeds), whose)
                undo.callback(seat.end_processes)
                seat.open()
                seats.append(seat)
        with at_home(first):
            holder = scene.holder = Holder(first, wanted["script"])
        undo.callback(_end, holder)
        for number in range(wanted["script"]):
            scene.scripts.append(HolderSeat(f"script-{number}", next(seeds), holder, number))
        for kind, users, turns in (
            ("gpu", scene.gpu_users, scene.gpu_turns),
            ("job", scene.job_users, scene.job_turns),
        ):
            for number in range(wanted.get(kind, 0)):
                users.append(TurnUser(f"{kind}-{number}", next(seeds), desk, kind, turns))
        undo.callback(_end_turns, scene)
        yield scene


def end_server(server: ReturningServer) -> None:
    """No process of a server is left, whatever happened. Safe to call when it has ended."""
    tree = tree_of(server.process.pid)
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait(20)
    server._log.close()
    for process in tree:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(tree, timeout=10)


def _end(holder: Holder) -> None:
    tree = tree_of(holder.process.pid)
    for process in tree:
        with suppress(psutil.Error):
            process.kill()
    holder.process.wait(20)
    psutil.wait_procs(tree, timeout=10)
    for pipe in (holder.process.stdin, holder.process.stdout):
        if pipe is not None and not pipe.closed:
            with suppress(OSError):
                pipe.close()


def _end_turns(scene: Scene) -> None:
    for user in scene.users:
        user.stop()
        if user.seat is not None:
            user.seat.end_processes()
    time.sleep(0.1)
