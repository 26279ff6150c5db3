"""Describe one kernel's start: what a front-end asks for, what the fleet provides, what the relay is ordered."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kernelbridge.channels.rate_limit import Limits
from kernelbridge.config.container_paths import CACHE_FOLDER
from kernelbridge.config.schema import CACHE_VARIABLES, Environment, Host
from kernelbridge.files.project import Project
from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.backend import Backend
from kernelbridge.hosts.labels import Labels
from kernelbridge.hosts.progress import WorkProgress
from kernelbridge.hosts.transport.login.questions import Ask
from kernelbridge.hosts.transport.login.stage import Hearer
from kernelbridge.kernel.process_mark import ProcessMark
from kernelbridge.kernel.records import Records
from kernelbridge.kernel.start.kept_logs import KEPT_LOGS_FOLDER, KeptLogs
from kernelbridge.kernel.state import KernelState
from kernelbridge.protocol.handshake import Owner
from kernelbridge.protocol.terminal import USUAL_TERM, WindowSize

if TYPE_CHECKING:
    from kernelbridge.channels.poller import ZmqPoller  # loads pyzmq
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py
    from kernelbridge.hosts.slurm.cluster import Cluster


@dataclass(frozen=True, kw_only=True)
class RunCommand:
    """What runs in the place of a kernel: a user's command, or nothing but a container that waits."""

    # Empty: it waits until it is stopped. None: of a command that runs already, whose words are not known here.
    argv: tuple[str, ...] | None = ()
    # Where it starts; empty: the environment's `workdir`, else the image's.
    folder: str = ""
    # Of the terminal that it gets; None: pipes.
    window: WindowSize | None = None

    @property
    def kind(self) -> str:
        """As labels and records name it."""
        return "up" if self.argv == () else "run"


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """A front-end's request for one kernel, or for a command in the place of one."""

    kernel_id: str
    environment: Environment
    display_name: str
    hosts: tuple[Host, ...]
    # Variables of this machine; only those that the environment names are read.
    environ: Mapping[str, str] = field(repr=False)
    # More arguments for the kernel process, as Jupyter's clients may give them.
    arguments: tuple[str, ...] = ()
    # The root folder of the Jupyter server that asks, what people call the kernel, and the path of its notebook; see
    # records.KernelRecord.
    server: str = ""
    title: str = ""
    notebook: str = ""
    # Under which it may be taken up again after a goodbye; see jupyter/vscode_launcher.py.
    claim: str = ""
    # The kernel's header.session, of one that runs already; empty: a new one.
    session: str = ""
    # Whether its client can show only the output of its own cells: what others left waits until a cell can show it.
    only_own: bool = False
    # The file that says where its endpoints are here, for other programs of this machine; empty: none is written.
    connection_file: str = ""
    # What runs in the place of a kernel; None: a kernel.
    command: RunCommand | None = None
    # Its workspace, resolved, and the folder here in which it was started; None where it has none.
    project: Project | None = None
    folder: str = ""

    @property
    def workload(self) -> str:
        """What people call what runs there."""
        if self.command is None:
            return "kernel"
        return "command" if self.command.kind == "run" else "container"

    def changed(self, *, hosts: tuple[Host, ...] | None = None, persist: bool) -> LaunchRequest:
        """Return it for other hosts, and with another `persist`."""
        environment = self.environment.model_copy(update={"persist": persist})
        return replace(self, hosts=self.hosts if hosts is None else hosts, environment=environment)


WatchLogin = Callable[[Host, Hearer], contextlib.AbstractContextManager[None]]


# Asks somewhere what a login to a host needs of a person, for as long as a block runs.
AnswerLogins = Callable[[Host, Ask], contextlib.AbstractContextManager[None]]


def unasked(host: Host, ask: Ask) -> contextlib.AbstractContextManager[None]:
    """Ask nowhere: there is no login that needs a person."""
    return contextlib.nullcontext()


def unwatched(host: Host, hearer: Hearer) -> contextlib.AbstractContextManager[None]:
    """Watch nothing: there is no login whose stages could be told."""
    return contextlib.nullcontext()


Observer = Callable[[str, KernelState, str | WorkProgress], None]


@dataclass(frozen=True, kw_only=True)
class KernelServices:
    """All that a kernel uses of its fleet."""

    poller: ZmqPoller
    records: Records
    owner: Owner
    # The process's own mark, and the config's path: what a record says of a kernel.
    mark: ProcessMark
    config: str
    # What Jupyter Server lets through; None where nobody limits.
    limits: Limits | None
    labels: Callable[[LaunchRequest, tuple[str, ...]], Labels]
    # The engine of a host; the cluster of a login node; whichever it is.
    engine: Callable[[Host], Awaitable[Engine]]
    cluster: Callable[[Host], Awaitable[Cluster]]
    backend: Callable[[Host], Awaitable[Backend]]
    rest: Callable[[float], Coroutine[Any, Any, None]]
    # Has somebody called with what a login to a host is doing, for as long as a block runs.
    watch_login: WatchLogin = unwatched
    # Has a login ask somewhere; and has one be tried again that was refused.
    answer_logins: AnswerLogins = unasked
    retry_login: Callable[[Host], None] = lambda host: None
    # Told of every state and of all progress: (kernel id, state, what is done or why it is so).
    observe: Observer

    @property
    def kept_logs(self) -> KeptLogs:
        """What was written by starts that failed."""
        return KeptLogs(self.records.folder / KEPT_LOGS_FOLDER)


LEAST_SECRET_LENGTH = 4
# What Jupyter and the kernel's own clock need; all else by `pass_env`.
ALWAYS_PASSED = ("JPY_SESSION_NAME", "TZ")


# Read by TensorBoard's `%tensorboard`; without it the cell shows a port of the page's own machine, and in VS Code none.
BOARD_VARIABLE, BOARD_ADDRESS = "TENSORBOARD_PROXY_URL", "http://localhost:%PORT%/"


def _boards(environment: Environment) -> dict[str, str]:
    """Return where a cell finds a board of the container, if there is a port for it under the same number here."""
    has_port = any(forward.here == forward.there and not forward.is_raw for forward in environment.forwards)
    return {BOARD_VARIABLE: BOARD_ADDRESS} if has_port else {}


def secret_values(request: LaunchRequest) -> list[str]:
    """Return what the kernel gets from this machine's variables and nobody may read, the longest first.

    Shorter ones are parts of too much else.
    """
    names = (*request.environment.secrets, *request.environment.pass_env)
    values = {request.environ[name] for name in names if name in request.environ}
    return sorted((value for value in values if len(value) >= LEAST_SECRET_LENGTH), key=len, reverse=True)


def launch_order(request: LaunchRequest, *, launch: int, session: str) -> dict[str, Any]:
    """Return what the relay needs to start the kernel process; what may be secret goes only here, over stdin."""
    environment = request.environment
    names = (*ALWAYS_PASSED, *environment.pass_env, *environment.secrets)
    passed = {name: request.environ[name] for name in names if name in request.environ}
    caches = {name: f"{CACHE_FOLDER}/{folder}" for name, folder in CACHE_VARIABLES.items() if environment.cache}
    command = request.command
    has_window = command is not None and command.window is not None
    shown = {"TERM": request.environ.get("TERM", USUAL_TERM)} if has_window else {}
    env = {**_boards(environment), **caches, **shown, **environment.env, **passed}
    setup = {"setup": list(environment.setup), "setup_every": environment.setup_every} if environment.setup else {}
    project_folder = request.project.container_folder if request.project is not None else ""
    folder = (command.folder if command else "") or environment.workdir or project_folder
    if command is not None:
        window = command.window.to_dict() if command.window else None
        return bootstrap.command_order(
            launch=launch, session=session, env=env, cwd=folder, argv=command.argv or (), window=window, **setup
        )
    return bootstrap.spawn_order(
        launch=launch, session=session, env=env, cwd=folder, arguments=request.arguments, **setup
    )
