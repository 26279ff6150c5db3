"""A seat is a user with one kernel: runs numbered cells through all that happens, and counts what comes of each."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import docker
import psutil

from kernelbridge.hosts.labels import NAME_PREFIX
from tests.clients.blocking import Message
from tests.clients.holder import Holder
from tests.clients.launched import Launched
from tests.clients.page import ReturningServer, call
from tests.clients.terminal import Command, begin, kernelbridge, wait_bound
from tests.rig.daemon import SLOW
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig
from tests.soak.tally import Tally, cell
from tests.soak.wires import PageWire, ZmqWire

SPEC = "kernelbridge-test"
# A cell of which nothing came for so long, with no fault in force, is one that never ends.
STUCK_SECONDS = 60.0 * SLOW
# Kinds of cells: how many lines at least and at most, how many seconds from one to the next, whether it displays.
_CELLS = (
    (5, 60, 0.25, False),
    (20, 40, 0.1, False),
    (1, 1, 0.0, False),
    (300, 900, 0.0, False),
    (50, 200, 0.0, True),
)
# Floods are rare: each costs a dozen processes much of a processor, and there are twenty kernels.
_HOW_OFTEN = (6, 6, 4, 1, 1)
# From one cell to the next at the most; a person takes longer.
_PAUSE_SECONDS = 8.0
_STEADY_CELLS = tuple(one for one in _CELLS if one[2])
_KEPT_MESSAGES_SECONDS = 30.0


class SeatStuck(RuntimeError):
    """A cell does not end, or a kernel could not be joined again."""


class NotStarted(RuntimeError):
    """A start came to nothing, and said why."""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What a user has who starts launchers: two laptops, and the host."""

    rig: Rig
    laptops: tuple[Laptop, Laptop]
    # When dockerd was restarted: it ends the jobs that wait for its `docker run` (docs/reference/limits.md).
    restarts: list[float] = field(default_factory=list)


class Seat:
    """One kernel and who uses it. What is meant for a kind of seat only stands in its class below."""

    kind = ""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.tallies: list[Tally] = []
        # What is wrong beside what the tallies say.
        self.troubles: list[str] = []
        # Held while a request is on its way out, and by who changes the kernel's holder.
        self.asking = threading.RLock()
        # Numbers of the cells that this kernel process should have run.
        self.expected: list[int] = []
        self._chance = random.Random(seed)
        self._by_request: dict[str, Tally] = {}
        # Texts of results, by request.
        self._results: dict[str, str] = {}
        self._is_over = threading.Event()
        # Set while no new cell may begin; while none may that prints as fast as it can.
        self._paused = threading.Event()
        self._steady = threading.Event()
        self._thread: threading.Thread | None = None
        self._numbers = 0
        self.finished_cells = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, {len(self.tallies)} cells>"

    # -- for each kind

    wire: PageWire | ZmqWire

    def processes(self) -> list[psutil.Process]:
        """The processes here that hold its kernel and no other."""
        return []

    def close(self) -> None:
        """End the kernel in the way of its kind."""
        raise NotImplementedError

    # -- messages

    def hear(self, message: Message) -> None:
        """Take what came, on the wire's thread."""
        tally = self._by_request.get(message["parent_header"].get("msg_id", ""))
        kind, content = message["header"]["msg_type"], message["content"]
        if tally is None:
            return
        if kind == "execute_result":
            self._results[tally.request] = content["data"]["text/plain"]
            return
        tally.take(time.monotonic(), kind, content)

    def ask(self, code: str, *, lines: int = 0, number: int | None = None, is_steady: bool = True) -> Tally:
        """Send a cell; what comes of it is counted from here on."""
        with self.asking:
            request = uuid.uuid4().hex
            now = time.monotonic()
            tally = Tally(
                request=request,
                number=-1 if number is None else number,
                wanted=lines,
                began_at=now,
                is_steady=is_steady,
            )
            self._by_request[request] = tally
            self.wire.execute(code, request)
            if number is not None:
                self.tallies.append(tally)
                self.expected.append(number)
            return tally

    def await_end(self, tally: Tally, *, seconds: float = STUCK_SECONDS) -> None:
        """Return when a cell has its reply and its idle. Raises SeatStuck where nothing comes of it for so long."""
        while not tally.is_finished and not tally.excused:
            quiet = time.monotonic() - max(tally.heard_at, tally.began_at, *(one.at for one in tally.handovers), 0.0)
            if quiet > seconds:
                raise SeatStuck(f"{self.name}: nothing came of {tally} for {quiet:.0f} s")
            time.sleep(0.05)

    def value(self, expression: str, *, seconds: float = STUCK_SECONDS) -> str:
        """What an expression is in the kernel, as text."""
        tally = self.ask(expression)
        self.await_end(tally, seconds=seconds)
        # The result comes before the idle, but perhaps before it on another socket than the reply.
        until = time.monotonic() + 5 * SLOW
        while tally.request not in self._results and time.monotonic() < until:
            time.sleep(0.05)
        return self._results.get(tally.request, f"nothing; {tally.replies} {tally.notices} {tally.strange}")

    # -- cells

    def begin(self) -> None:
        """Run cells until `finish`."""
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._is_over.is_set():
                if self._paused.is_set():
                    time.sleep(0.05)
                    continue
                self.run_cell()
                self._is_over.wait(self._chance.uniform(0, _PAUSE_SECONDS))
        except Exception as exc:
            self.troubles.append(f"{type(exc).__name__}: {exc}")

    def run_cell(self) -> None:
        """Run one numbered cell to its end."""
        cells, often = (_STEADY_CELLS, None) if self._steady.is_set() else (_CELLS, _HOW_OFTEN)
        ((least, most, every, displays),) = self._chance.choices(cells, often)
        lines = self._chance.randint(least, most)
        with self.asking:
            if self._paused.is_set():
                return
            number, self._numbers = self._numbers, self._numbers + 1
            code = cell(number, lines, every_seconds=every, displays=displays)
            tally = self.ask(code, lines=lines, number=number, is_steady=every > 0)
        self.await_end(tally)
        self.finished_cells += 1

    @property
    def running(self) -> Tally | None:
        """The cell whose end has not come yet."""
        last = self.tallies[-1] if self.tallies else None
        return last if last is not None and not last.is_finished and not last.excused else None

    def await_heard(self, *, seconds: float = 60.0) -> bool:
        """Return when nothing is asked of which nothing was heard; False where that does not come to be."""
        until = time.monotonic() + seconds * SLOW
        while (tally := self.running) is not None and not tally.numbers:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    @contextmanager
    def steady(self, *, seconds: float = STUCK_SECONDS) -> Iterator[bool]:
        """What prints as fast as it can has come to its end, and does not begin inside; whether that came to be."""
        self._steady.set()
        try:
            until = time.monotonic() + seconds
            while (tally := self.running) is not None and not tally.is_steady and time.monotonic() < until:
                time.sleep(0.05)
            yield tally is None or tally.is_steady
        finally:
            self._steady.clear()

    @contextmanager
    def paused(self, *, seconds: float = STUCK_SECONDS) -> Iterator[bool]:
        """No cell runs nor begins inside; whether that came to be."""
        self._paused.set()
        try:
            until = time.monotonic() + seconds
            while self.running is not None and time.monotonic() < until:
                time.sleep(0.05)
            yield self.running is None
        finally:
            self._paused.clear()

    def handed_over(self, how: str, ended_at: float) -> None:
        """Another process holds the kernel from here on: what came shortly before may come again."""
        now = time.monotonic()
        for tally in self._recent(now):
            tally.handed_over(now, how, ended_at)

    def _recent(self, now: float) -> list[Tally]:
        return [one for one in self.tallies if not one.is_finished or now - one.heard_at < _KEPT_MESSAGES_SECONDS]

    def finish(self) -> None:
        """Let the cell that runs come to its end, and begin no more."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(STUCK_SECONDS + 30)
            if self._thread.is_alive():
                self.troubles.append(f"its cell does not end: {self.running}")
            self._thread = None

    def check_ran(self) -> None:
        """Each request has run once, and in order: the kernel itself wrote it down."""
        try:
            ran = self.value("globals().get('ran', [])", seconds=120 * SLOW)
        except SeatStuck as exc:
            self.troubles.append(str(exc))
            return
        if ran.replace("\n", "").replace(" ", "") != str(self.expected).replace(" ", ""):
            self.troubles.append(f"the kernel ran {_difference(ran, self.expected)}")

    def flaws(self, *, slack_seconds: float) -> list[str]:
        """What is wrong with this seat, a sentence each."""
        told = [flaw for one in self.tallies for flaw in one.flaws(slack_seconds=slack_seconds)]
        return [f"{self.name}: {flaw}" for flaw in [*self.troubles, *told]]


def _difference(ran: str, expected: list[int]) -> str:
    try:
        numbers = [int(word) for word in ran.strip("[]").replace("\n", " ").split(",") if word.strip()]
    except ValueError:
        return f"{ran[:300]!r}, not {expected[:5]}..."
    missing, twice = set(expected) - set(numbers), {n for n in numbers if numbers.count(n) > 1}
    return f"{len(numbers)} cells, not {len(expected)}: missing {sorted(missing)}, twice {sorted(twice)}"


class PageSeat(Seat):
    """JupyterLab's page of a notebook; the server is shared and may go and come."""

    kind = "page"

    def __init__(self, name: str, seed: int, server: ReturningServer) -> None:
        super().__init__(name, seed)
        self.server = server
        self.page = self.wire = PageWire(server, SPEC, f"{name}.ipynb", self.hear)
        self.page.join()
        self.value("1")

    @property
    def kernel_id(self) -> str:
        return self.page.kernel_id

    def reload(self) -> None:
        """Close the page and open it again, as the same client. What was on its way to it is nobody's."""
        with self.asking:
            if (tally := self.running) is not None:
                tally.excused = "its page was reloaded"
            self.page.part()
            self.page.join()

    def restart(self) -> None:
        """Restart the kernel between two cells."""
        call(self.server, "POST", f"api/kernels/{self.kernel_id}/restart", {})
        self.expected.clear()

    def close(self) -> None:
        """Close the notebook and shut its kernel down."""
        self.page.part()
        call(self.server, "DELETE", f"api/sessions/{self.page.session_id}")


class HolderSeat(Seat):
    """A kernel that a script holds with jupyter_client's manager, as nbclient does; the script has several."""

    kind = "script"

    def __init__(self, name: str, seed: int, holder: Holder, number: int) -> None:
        super().__init__(name, seed)
        self._holder = holder
        self.zmq = self.wire = ZmqWire(self.hear)
        self.zmq.join(holder.connection_files[number])
        self.value("1")

    def close(self) -> None:
        """Close the client; its script ends the kernel."""
        self.zmq.part()


class LauncherSeat(Seat):
    """VS Code's: a launcher holds its kernel; later, where the schedule says so, a terminal of either laptop does."""

    kind = "launcher"

    def __init__(self, name: str, seed: int, desk: Desk, environment: str = "test") -> None:
        super().__init__(name, seed)
        self._laptops = desk.laptops
        self._rig = desk.rig
        # Whose process holds it.
        self.laptop = desk.laptops[0]
        self.zmq = self.wire = ZmqWire(self.hear)
        self.kernel_id = ""
        folder = self.laptop.home / "work" / name
        folder.mkdir(parents=True, exist_ok=True)
        self._launched = Launched(self.laptop, environment, folder)
        self._command: Command | None = None

    def open(self) -> None:
        """Connect as soon as the ports are bound, and have an answer."""
        wait_bound(Path(self._launched.connection_file))
        self.zmq.join(self._launched.connection_file)
        node = self.value("__import__('platform').node()", seconds=600).strip("'")
        self.kernel_id = self._container_names().get(node, "").removeprefix(NAME_PREFIX)
        if not self.kernel_id:
            raise NotStarted(node)

    def _container_names(self) -> dict[str, str]:
        """The names of all containers of ours, by what they call themselves; dockerd may be away for a moment."""
        until = time.monotonic() + 60 * SLOW
        while True:
            try:
                return {str(one.id)[:12]: str(one.name) for one in self._rig.engine.kernels()}
            except docker.errors.DockerException:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    @property
    def process(self) -> subprocess.Popen[bytes] | subprocess.Popen[str]:
        """Who holds the kernel now."""
        return self._command.process if self._command is not None else self._launched.process

    def processes(self) -> list[psutil.Process]:
        try:
            return [psutil.Process(self.process.pid)] if self.process.poll() is None else []
        except psutil.NoSuchProcess:
            return []

    @property
    def told(self) -> str:
        """What the launcher said on its stderr."""
        return self._launched.told

    def kill_owner(self, pause_seconds: float) -> None:
        """SIGKILL to who holds it; a terminal takes it up."""
        with self.asking:
            self.process.kill()
            self.process.wait(20)
            ended_at = time.monotonic()
            time.sleep(pause_seconds)
            self._hand_over("killed", ended_at)

    def leave(self, pause_seconds: float) -> None:
        """Who holds it leaves in good order; a terminal takes it up."""
        with self.asking:
            self.process.send_signal(signal.SIGTERM if self._command is None else signal.SIGINT)
            self.process.wait(60 * SLOW)
            ended_at = time.monotonic()
            time.sleep(pause_seconds)
            self._hand_over("left", ended_at)

    def take(self) -> None:
        """The other laptop takes it, from under who holds it."""
        with self.asking:
            other = self._laptops[self.laptop is self._laptops[0]]
            before = self._command
            was = self.process
            ended_at = time.monotonic()
            command, file = self._attach(other, "--take")
            was.wait(60 * SLOW)
            if before is not None:
                _forget(before)
            self.laptop = other
            self._follow(command, file, "taken over", ended_at)

    def _hand_over(self, how: str, ended_at: float) -> None:
        if self._command is not None:
            _forget(self._command)
        command, file = self._attach(self.laptop)
        self._follow(command, file, how, ended_at)

    def _follow(self, command: Command, file: str, how: str, ended_at: float) -> None:
        self._command = command
        self.zmq.part()
        self.handed_over(how, ended_at)
        self.zmq.join(file)

    def _attach(self, laptop: Laptop, *words: str) -> tuple[Command, str]:
        """`kernelbridge attach`, tried until it holds the kernel: after a kill the relay has to notice it first."""
        until = time.monotonic() + 120 * SLOW
        said = ""
        while time.monotonic() < until:
            command = begin(laptop, "attach", "--no-console", *words, self.kernel_id)
            assert command.process.stdout is not None
            if first := command.process.stdout.readline().strip():
                threading.Thread(target=_drain, args=(command,), daemon=True).start()
                return command, first
            said = command.finish().err
            time.sleep(1)
        raise SeatStuck(f"{self.name}: nobody could attach to it: {said}")

    def close(self) -> None:
        """Stop the kernel from a terminal of the laptop that has it, as the end of a roaming one."""
        self.zmq.part()
        ended = kernelbridge(self.laptop, "stop", self.kernel_id, seconds=120)
        if ended.code:
            self.troubles.append(f"stop ended with {ended.code}: {ended.err}")
        try:
            self.process.wait(60 * SLOW)
        except subprocess.TimeoutExpired:
            self.troubles.append(f"its holder does not end after the stop: {self._waits_for()}")
        self.end_processes()

    def _waits_for(self) -> str:
        """End who holds it; where it stood, as its faulthandler writes it."""
        self.process.send_signal(signal.SIGABRT)
        self.process.wait(20)
        return (self._command.process.stderr.read() if self._command and self._command.process.stderr else "")[-3000:]

    def end_processes(self) -> None:
        """No process of it is left here, whatever happened."""
        if self._command is not None:
            _forget(self._command)
        if self._launched.process.poll() is None:
            self._launched.process.kill()
            self._launched.process.wait(20)
        self._forget_file()

    def _forget_file(self) -> None:
        """VS Code removes the connection file that it made."""
        Path(self._launched.connection_file).unlink(missing_ok=True)

    # -- those that are started and ended again and again

    def end(self) -> None:
        """Close as VS Code does: a SIGTERM to the launcher."""
        self.zmq.part()
        self._launched.end(seconds=60)
        self._forget_file()

    def kill_and_stop(self) -> None:
        """SIGKILL to the launcher; later somebody stops what it left."""
        self._launched.kill()
        self._forget_file()
        self.zmq.part()
        ended = kernelbridge(self.laptop, "stop", self.kernel_id, seconds=120)
        if ended.code:
            self.troubles.append(f"stop ended with {ended.code}: {ended.err}")


def _drain(command: Command) -> None:
    with_lines = command.process.stdout
    assert with_lines is not None
    try:
        for _ in with_lines:
            pass
    except ValueError:
        return  # It was closed.


def _forget(command: Command) -> None:
    """End a terminal's process, and close its pipes."""
    process = command.process
    if process.poll() is None:
        process.kill()
    process.wait(20)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def stopped(processes: list[psutil.Process]) -> Callable[[], None]:
    """SIGSTOP to processes that are there; return what lets them go on."""
    found = [one.pid for one in processes if one.is_running()]
    for pid in found:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            continue

    def go_on() -> None:
        for pid in found:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue

    return go_on
