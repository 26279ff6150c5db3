"""Check which GPUs this container sees, whether they are the right ones, and whether it can still reach them later.

nvidia-smi is asked where there is one; else the device nodes are counted. What an image's NVIDIA_VISIBLE_DEVICES says
does not matter. Nothing here waits: step() is called in each turn of the relay's loop.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Callable, List, Optional, Sequence, Union

from ...protocol.handshake import MismatchedGpus

# Without persistence mode nvidia-smi wakes every card up first.
SMI_SECONDS = 20.0
# How often is looked whether the cards are still there: by the control node, which costs nothing, else by nvidia-smi.
NODE_LOOK_SECONDS = 30.0
LIST_LOOK_SECONDS = 60.0
# After nvidia-smi failed once; twice in a row counts.
AGAIN_SECONDS = 10.0
CONTROL_NODE = "nvidiactl"

# The names of cards and of their parts (MIG); or only how many nodes there are; None if that could not be found out.
Seen = Union[None, int, List[str]]
_LISTED = re.compile(r"^\s*(GPU|MIG)\b.*\(UUID:\s*([^)\s]+)\s*\)")
_NODE = re.compile(r"nvidia[0-9]+")


def listed(answer: str) -> List[str]:
    """Return the cards in an answer of `nvidia-smi -L`; a card of which parts (MIG) are listed is not one itself."""
    names: List[str] = []
    # Where the card that is being read stands; taken out again when its first part comes.
    card = -1
    for line in answer.splitlines():
        found = _LISTED.match(line)
        if found is None:
            continue
        kind, name = found.groups()
        if kind == "GPU":
            card = len(names)
        elif card >= 0:
            del names[card]
            card = -1
        names.append(name)
    return names


def fits(wanted: Sequence[str], seen: Seen) -> bool:
    """Whether a container sees the cards that it should, and no other; True where that is not known."""
    if seen is None:
        return True
    if not isinstance(seen, int):
        return set(seen) == set(wanted)
    if any(name.startswith("MIG-") for name in wanted):
        return seen > 0  # Parts of one card share its node.
    return seen == len(set(wanted))


class _Listing:
    """One run of `nvidia-smi -L`, which nobody waits for; it inherits no lock."""

    def __init__(self, program: str, now: float) -> None:
        """Start it. Raises OSError."""
        self._process = subprocess.Popen(
            [program, "-L"], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._until = now + SMI_SECONDS
        self._said = b""
        # None until it has ended, and for ever if it took too long.
        self.exit_code: Optional[int] = None

    @property
    def cards(self) -> List[str]:
        """What it listed."""
        return listed(self._said.decode("utf-8", "replace")) if self.exit_code == 0 else []

    def is_over(self, now: float) -> bool:
        """Take in what came; True when there will be no more."""
        self.exit_code = self._process.poll()
        self._read()
        if self.exit_code is None and now < self._until:
            return False
        self.end()
        return True

    def _read(self) -> None:
        try:
            while True:
                piece = os.read(self._output.fileno(), 65536)
                if not piece:
                    return
                self._said += piece
        except BlockingIOError:
            return

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended: one that a hanging driver does not let go has not, even after end()."""
        return self._process.poll() is not None

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def end(self) -> None:
        """End it, and wait for nothing."""
        if not self.is_gone:
            self._process.kill()
        self._output.close()


class GpuMonitor:
    """What the container sees of the cards in `wanted`; `say` takes a line for the log."""

    def __init__(
        self,
        wanted: Sequence[str],
        say: Callable[[bytes], None],
        *,
        look_seconds: Optional[float] = None,
        devices: str = "/dev",
    ) -> None:
        self.wanted = list(wanted)
        self._say = say
        self._look_seconds = look_seconds
        self._devices = devices
        self._program: Optional[str] = None
        # The run of nvidia-smi that is waited for, and the one before.
        self._listing: Optional[_Listing] = None
        self._last: Optional[_Listing] = None
        # What was seen at first; set once, with is_settled.
        self.seen: Seen = None
        self.is_settled = False
        # Whether the cards were there and cannot be reached now; changed by each later look.
        self.is_lost = False
        # Whether there are later looks, by the node or by nvidia-smi; and when the next one is.
        self._has_node = self._has_list = False
        self._look_at = 0.0
        self._failures = 0

    def __repr__(self) -> str:
        state = "lost" if self.is_lost else "settled" if self.is_settled else "looking"
        return "<GpuMonitor %s, wanted %s, seen %s>" % (state, self.wanted, self.seen)

    @property
    def mismatch(self) -> Optional[MismatchedGpus]:
        """What should be seen and what is, where the two differ; None while they do not, as far as is known."""
        if not self.is_settled or fits(self.wanted, self.seen):
            return None
        assert self.seen is not None  # It fits anything.
        return MismatchedGpus(self.wanted, self.seen)

    @property
    def pids(self) -> List[int]:
        """The processes that it has started and waits for."""
        return [listing.pid for listing in (self._listing, self._last) if listing is not None and not listing.is_gone]

    def begin(self, now: float) -> None:
        """Start the first look. Safe to call twice."""
        if self.is_settled or self._listing is not None:
            return
        self._program = shutil.which("nvidia-smi")
        if self._program is not None and self._starts(self._program, now):
            return
        self._program = None
        count = self._nodes()
        self._settle(count if count else [], now)

    def step(self, now: float) -> None:
        """Do what is due: mostly nothing."""
        if self._listing is not None:
            if not self._listing.is_over(now):
                return
            listing, self._last, self._listing = self._listing, self._listing, None
            self._look_at = now + self._period()
            if self.is_settled:
                self._compare(listing, now)
            else:
                self._judge(listing, now)
        elif now >= self._look_at and (self._has_node or self._has_list):
            self._look_again(now)

    def close(self) -> None:
        """End what runs."""
        if self._listing is not None:
            self._listing.end()
            self._listing = None

    def _starts(self, program: str, now: float) -> bool:
        try:
            self._listing = _Listing(program, now)
        except OSError:
            return False  # The image's C library cannot run it, for one.
        return True

    def _nodes(self) -> int:
        """Count the cards that have a device node here."""
        try:
            return sum(1 for name in os.listdir(self._devices) if _NODE.fullmatch(name))
        except OSError:
            return 0

    # -- at first

    def _judge(self, listing: _Listing, now: float) -> None:
        if listing.exit_code is None:
            self._say(b"[kernelbridge] nvidia-smi did not answer: which GPUs are seen here is not known\n")
            self._settle(None, now)
        else:
            self._settle(listing.cards, now)

    def _settle(self, seen: Seen, now: float) -> None:
        self.seen, self.is_settled = seen, True
        if self.wanted and seen is not None and fits(self.wanted, seen):
            self._has_node = self._can_open() is True
            self._has_list = self._program is not None and not self._has_node
            self._look_at = now + self._period()

    # -- later

    def _period(self) -> float:
        if self._look_seconds is not None:
            return self._look_seconds
        return NODE_LOOK_SECONDS if self._has_node else LIST_LOOK_SECONDS

    def _can_open(self) -> Optional[bool]:
        """Whether the container may use the driver's control node; None if that is no question of being allowed."""
        # Asked of the container's device rules, which come before the driver; non-blocking, lest a driver hangs.
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            os.close(os.open(os.path.join(self._devices, CONTROL_NODE), flags))
        except PermissionError:  # EPERM, EACCES
            return False
        except OSError:
            return None
        return True

    def _look_again(self, now: float) -> None:
        self._look_at = now + self._period()
        if self._has_node:
            can_open = self._can_open()
            if can_open is not None:
                self.is_lost = not can_open
        elif self._last is not None and not self._last.is_gone:
            return  # A second one would hang beside it.
        elif self._program is None or not self._starts(self._program, now):
            self._has_list = False  # It is not there any more: that says nothing about the cards.

    def _compare(self, listing: _Listing, now: float) -> None:
        """Take in a later answer; one that did not come in time says nothing."""
        if listing.exit_code is None:
            return
        self._failures = self._failures + 1 if listing.exit_code else 0
        if not self._failures:
            self.is_lost = not set(self.wanted) <= set(listing.cards)
        elif self._failures > 1:
            self.is_lost = True
        else:
            self._look_at = now + min(AGAIN_SECONDS, self._period())
