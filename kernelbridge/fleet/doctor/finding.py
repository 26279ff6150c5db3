"""Say what was found of one link of the way from here to a kernel: its name, its state, what to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final, TypeVar

from kernelbridge.errors import KernelBridgeError, StartTimeout, unexpected_answer

LINK_SECONDS: Final = 60.0

_T = TypeVar("_T")


class LinkName(StrEnum):
    """The links, in the order in which they are looked at."""

    # Of this machine.
    PYTHON = "Python"
    CONFIG = "config"
    CACHE = "cache"
    SPECS = "kernel specs"
    IN_JUPYTER = "seen by Jupyter"
    IN_VSCODE = "seen by VS Code"
    LAUNCHER = "launcher"
    EXTENSION = "server extension"
    # Of a host, up to its login.
    SSH_CONFIG = "ssh config"
    NAME = "name"
    ROUTE = "route"
    HOST_KEY = "host key"
    LOGIN = "login"
    SECOND_FACTOR = "second factor"
    # Of a host, behind its login.
    SHELL = "shell"
    CLOCK = "clock"
    FORWARDING = "forwarding"
    ENGINE = "engine"
    API = "API version"
    LIVE_RESTORE = "live-restore"
    STORAGE = "storage"
    DRIVER = "NVIDIA driver"
    TOOLKIT = "toolkit"
    CDI = "CDI"
    SCHEDULER = "scheduler"
    # Of an environment on a host.
    GPUS = "GPUs"
    JOB = "job"
    IMAGE = "image"
    MOUNTS = "mounts"
    IMAGE_PYTHON = "image's Python"
    CONTAINER = "container"
    KERNEL = "kernel"


class LinkState(StrEnum):
    """What is known of one link of the way."""

    OK = "ok"
    # It works, and something about it will be in the way one day.
    WARNING = "warning"
    BROKEN = "broken"
    # A link before it is broken, or it was not to be tried.
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found of one link."""

    # The host's name in the config; empty: this machine's own.
    host: str = ""
    # The environment's name, of a link that only it needs.
    environment: str = ""
    link: LinkName
    state: LinkState = LinkState.OK
    found: str
    # What to do; empty where nothing is to be done.
    remedy: str = ""
    # Of the error that says so; 0 without one.
    exit_code: int = 0
    seconds: float = 0.0

    @classmethod
    def of_error(cls, link: LinkName, error: KernelBridgeError) -> Finding:
        """Return what an error says of a link that it broke."""
        return cls(
            link=link,
            state=LinkState.BROKEN,
            found=error.sentence,
            remedy=error.remedy,
            exit_code=error.exit_code,
        )

    @classmethod
    def warning(cls, link: LinkName, found: str, remedy: str) -> Finding:
        """Return what will be in the way one day."""
        return cls(link=link, state=LinkState.WARNING, found=found, remedy=remedy)

    @classmethod
    def not_tried(cls, link: LinkName, why: str) -> Finding:
        """Return that a link was left alone."""
        return cls(link=link, state=LinkState.SKIPPED, found=f"not tried: {why}")

    @property
    def where(self) -> str:
        """Whose link it is, for people."""
        return " on ".join(filter(None, (self.environment, self.host))) or "this machine"

    def to_json(self) -> dict[str, Any]:
        """Return it as `doctor --json` has it."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


Tell = Callable[[Finding], None]
# What a step found of its link, or no more than the words for one that holds.
Said = Finding | str


class Examiner:
    """Carries out the steps that look at the links of one host, or of one environment on it, and tells of each."""

    def __init__(self, tell: Tell, *, host: str, environment: str = "") -> None:
        """`tell` gets each finding as soon as it is."""
        self._tell = tell
        self._host = host
        self._environment = environment

    def __repr__(self) -> str:
        return f"<Examiner of {' on '.join(filter(None, (self._environment, self._host)))}>"

    def of_environment(self, name: str) -> Examiner:
        """Return one for the links that an environment needs there."""
        return Examiner(self._tell, host=self._host, environment=name)

    async def look(
        self, link: LinkName, step: Callable[[], Awaitable[tuple[_T, Said]]], *, seconds: float = LINK_SECONDS
    ) -> _T | None:
        """Carry out a step and tell what it found; return what it brings for the next ones, None if it is broken."""
        began = time.monotonic()
        brought: _T | None = None
        try:
            async with asyncio.timeout(seconds):
                brought, said = await step()
            finding = said if isinstance(said, Finding) else Finding(link=link, found=said)
        except TimeoutError:
            late = StartTimeout(host=self._host, what=f"{link}", seconds=seconds, remedy="Try again.")
            finding = Finding.of_error(link, late)
        except KernelBridgeError as error:
            finding = Finding.of_error(link, error)
        except Exception as exc:
            # Whatever a host answers: the other links are looked at still.
            finding = Finding.of_error(link, unexpected_answer(self._host, exc))
        self.tell(replace(finding, seconds=time.monotonic() - began))
        return None if finding.state is LinkState.BROKEN else brought

    def tell(self, finding: Finding) -> None:
        """Tell of one link."""
        self._tell(replace(finding, host=self._host, environment=self._environment))

    def skip(self, broken: LinkName, *links: LinkName) -> None:
        """Tell that these were not looked at, because of one before them."""
        for link in links:
            self.tell(Finding(link=link, state=LinkState.SKIPPED, found=f"behind {broken}"))
