"""Decide what becomes of each path of a workspace: two listings and what was known before in, actions out. Pure.

Each side is compared with what was seen of that side before, and never with the other one's clock. What both sides have
changed is kept twice. Nothing that nobody has seen before is deleted.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from kernelbridge.files.listing import Entry, Kind, Listing, folded, to_bytes

# File systems allow so many bytes in a name.
_MOST_NAME_BYTES: Final = 255
# A file that is only newer than it was is read before it is sent again, if it is bigger than this.
_WORTH_READING_BYTES: Final = 1 << 20


class Known(NamedTuple):
    """What was seen of a path on both sides when they last were the same."""

    local: Entry
    host: Entry


class Deed(Enum):
    """What is done with a path."""

    COPY_THERE = "copy there"
    COPY_HERE = "copy here"
    DELETE_THERE = "delete there"
    DELETE_HERE = "delete here"
    # The host's version gets the name `beside`.
    KEEP_BESIDE = "keep beside"
    # The content is there; whether it can be executed is set.
    MODE_THERE = "mode there"
    # Both are the same: it is known from now on. Or nobody has it any more.
    REMEMBER = "remember"
    FORGET = "forget"
    # Both have the same size: they have to be read.
    COMPARE = "compare"
    # The user has to know.
    TELL = "tell"


@dataclass(frozen=True, kw_only=True)
class Action:
    """One thing to be done. `local` and `host` are what is there and what it may replace; None: nothing."""

    deed: Deed
    path: str
    local: Entry | None = None
    host: Entry | None = None
    beside: str = ""
    words: str = ""

    def __repr__(self) -> str:
        more = f" as {self.beside}" if self.beside else f": {self.words}" if self.words else ""
        return f"<{self.deed.value} {self.path}{more}>"


@dataclass(frozen=True, kw_only=True)
class PlanTerms:
    """What decisions depend on beside the listings."""

    host: str
    # When the pass began, for names: 20260131T235959.
    stamp: str
    is_both: bool = False
    # Whether a path is one of those that come back.
    pulls: Callable[[str], bool] = field(default=lambda path: False)
    # Whether nothing is deleted here, whatever was deleted there.
    keeps_deleted: bool = False
    # Whether this machine's files can be marked as executable; and takes names for the same that differ in case alone.
    has_modes: bool = True
    folds_case: bool = False
    # Whether two files of one size are the same, of those that were compared.
    same: Mapping[str, bool] = field(default_factory=dict)


def plan(local: Listing, host: Listing, known: Mapping[str, Known], terms: PlanTerms) -> list[Action]:
    """Return what brings both sides into step, in an order in which it can be done."""
    planner = _Planner(local, host, known, terms)
    for path in sorted({*local.entries, *host.entries, *known}):
        planner.decide(path)
    return _ordered(planner.actions)


_ORDER: Final = (
    *(Deed.TELL, Deed.COMPARE, Deed.KEEP_BESIDE, Deed.DELETE_THERE, Deed.DELETE_HERE),
    *(Deed.COPY_THERE, Deed.MODE_THERE, Deed.COPY_HERE, Deed.REMEMBER, Deed.FORGET),
)


def _ordered(actions: Sequence[Action]) -> list[Action]:
    """Make room before something is put there, and empty folders before they go; make folders before their files."""
    done: list[Action] = []
    for deed in _ORDER:
        some = [action for action in actions if action.deed is deed]
        done += reversed(some) if deed in (Deed.DELETE_THERE, Deed.DELETE_HERE) else some
    return done


class _Planner:
    """Goes through the paths, those of a folder after the folder, and collects actions."""

    def __init__(self, local: Listing, host: Listing, known: Mapping[str, Known], terms: PlanTerms) -> None:
        self._local, self._host, self._known, self._terms = local, host, known, terms
        self.actions: list[Action] = []
        # Folders whose content on the host has got out of the way, or is as if it had never been known.
        self._moved: set[str] = set()
        self._anew: set[str] = set()
        self._unknown = {*local.unknown, *host.unknown}
        self._folded = folded(local.entries) if terms.folds_case else {}

    def _add(self, deed: Deed, path: str, *, beside: str = "", words: str = "", is_room_made: bool = False) -> None:
        local, host = self._local.entries.get(path), self._host.entries.get(path)
        if is_room_made or self._is_in(path.rpartition("/")[0], self._moved):
            local, host = (local, None) if deed is Deed.COPY_THERE else (None, host)
        self.actions.append(Action(deed=deed, path=path, local=local, host=host, beside=beside, words=words))

    def _is_in(self, path: str, folders: set[str]) -> bool:
        if not folders:
            return False
        while path:
            if path in folders:
                return True
            path = path.rpartition("/")[0]
        return "" in folders

    def decide(self, path: str) -> None:
        """Decide about one path."""
        if self._is_in(path, self._unknown) or path in self._local.left_out:
            return
        known = self._known.get(path)
        local, host = self._local.entries.get(path), self._host.entries.get(path)
        above = path.rpartition("/")[0]
        if self._is_in(above, self._moved):
            host = None
        if self._is_in(above, self._moved) or self._is_in(above, self._anew):
            known = None
        if local is None and host is None:
            if path in self._known and self._host.is_whole:
                self._add(Deed.FORGET, path)
        elif local is None:
            self._only_there(path, known)
        elif host is None:
            self._only_here(path, local, known)
        else:
            self._on_both(path, local, host, known)

    def _comes_back(self, path: str) -> bool:
        return self._terms.is_both and self._terms.pulls(path)

    def _only_there(self, path: str, known: Known | None) -> None:
        host = self._host.entries[path]
        if known is None:
            if self._comes_back(path):
                self._copy_here(path)
        elif host == known.host:
            self._add(Deed.DELETE_THERE, path)
        elif host.kind is Kind.FOLDER:
            self._add(Deed.FORGET, path)
        else:
            words = f"{path} was deleted here and changed on {self._terms.host}: it is kept there"
            self._add(Deed.TELL, path, words=words)
            self._add(Deed.FORGET, path)

    def _only_here(self, path: str, local: Entry, known: Known | None) -> None:
        if known is None or local != known.local:
            self._add(Deed.COPY_THERE, path)
        elif self._comes_back(path) and self._host.is_whole and not self._terms.keeps_deleted:
            self._add(Deed.DELETE_HERE, path)

    def _on_both(self, path: str, local: Entry, host: Entry, known: Known | None) -> None:
        is_changed_here = known is None or local != known.local
        is_changed_there = known is None or host != known.host
        if not is_changed_here and not is_changed_there:
            return
        if local.kind is not host.kind:
            self._of_two_kinds(path, local, is_changed_there=is_changed_there, is_changed_here=is_changed_here)
        elif local.kind is not Kind.FILE and local == host:
            self._add(Deed.REMEMBER, path)
        elif not is_changed_there and known is not None:
            self._changed_here(path, local, known.local)
        elif not is_changed_here:
            # Also where `pull` does not name it: both sides have it, and one has changed it.
            if self._terms.is_both:
                self._copy_here(path)
        elif local.kind is Kind.FILE and local.size_bytes == host.size_bytes and path not in self._terms.same:
            self._add(Deed.COMPARE, path)
        elif self._terms.same.get(path):
            self._same_content(path, local, host)
        else:
            self._conflict(path)

    def _changed_here(self, path: str, local: Entry, before: Entry) -> None:
        if local.kind is not Kind.FILE or local.size_bytes != before.size_bytes:
            self._add(Deed.COPY_THERE, path)
        elif local.mtime_ns == before.mtime_ns:
            self._add(Deed.MODE_THERE, path)
        elif local.size_bytes < _WORTH_READING_BYTES or self._terms.same.get(path) is False:
            self._add(Deed.COPY_THERE, path)
        elif path in self._terms.same:
            self._same_content(path, local, self._host.entries[path])
        else:
            self._add(Deed.COMPARE, path)

    def _same_content(self, path: str, local: Entry, host: Entry) -> None:
        differs = self._terms.has_modes and local.is_executable != host.is_executable
        self._add(Deed.MODE_THERE if differs else Deed.REMEMBER, path)

    def _conflict(self, path: str) -> None:
        beside = self._beside(path)
        self._add(Deed.KEEP_BESIDE, path, beside=beside)
        self._add(Deed.COPY_THERE, path, is_room_made=True)
        host = self._host.entries[path]
        if host.kind is Kind.FOLDER:
            self._moved.add(path)
        elif self._terms.is_both:
            self.actions.append(Action(deed=Deed.COPY_HERE, path=beside, host=host))

    def _of_two_kinds(self, path: str, local: Entry, *, is_changed_there: bool, is_changed_here: bool) -> None:
        """Decide about a file, folder or link here that is another of these there."""
        host = self._host.entries[path]
        if host.kind is Kind.FOLDER:
            is_changed_there = is_changed_there and self._known.get(path) is None
            is_changed_there = is_changed_there or self._is_changed_below(path, self._host.entries, is_here=False)
        if local.kind is Kind.FOLDER:
            is_changed_here = is_changed_here or self._is_changed_below(path, self._local.entries, is_here=True)
        if is_changed_here and not is_changed_there:
            self._add(Deed.DELETE_THERE, path)
            self._add(Deed.COPY_THERE, path, is_room_made=True)
        elif is_changed_here:
            self._conflict(path)
            self._anew.add(path)
        elif self._terms.is_both and (host.kind is not Kind.FOLDER or self._comes_back(path)):
            self._add(Deed.DELETE_HERE, path)
            self._add(Deed.COPY_HERE, path, is_room_made=True)

    def _is_changed_below(self, folder: str, entries: Mapping[str, Entry], *, is_here: bool) -> bool:
        """Whether something in a folder is new or changed on one side."""
        for path, entry in entries.items():
            if path.startswith(f"{folder}/"):
                known = self._known.get(path)
                if known is None or entry != (known.local if is_here else known.host):
                    return True
        return False

    def _copy_here(self, path: str) -> None:
        twin = self._folded.get(next(iter(folded([path])))) if self._folded else None
        if twin is not None and twin != path:
            words = f"{path} stays on {self._terms.host}: this machine takes its name for that of {twin}"
            self._add(Deed.TELL, path, words=words)
            return
        self._add(Deed.COPY_HERE, path)

    def _beside(self, path: str) -> str:
        taken = self._host.entries.keys() | self._local.entries.keys()
        name = beside_name(path, host=self._terms.host, stamp=self._terms.stamp)
        numbered = (beside_name(path, host=self._terms.host, stamp=f"{self._terms.stamp}-{n}") for n in range(2, 100))
        return next((name for name in (name, *numbered) if name not in taken), name)


def beside_name(path: str, *, host: str, stamp: str) -> str:
    """Return the name under which a host's version is kept: model.changed-on-lab-20260131T235959.py."""
    return marked_name(path, f".changed-on-{host}-{stamp}")


def marked_name(path: str, middle: str) -> str:
    """Return a name beside a path that says what the file is: before its extension, and no longer than may be."""
    folder, _, name = path.rpartition("/")
    stem, extension = posixpath.splitext(name)
    room = _MOST_NAME_BYTES - len(to_bytes(middle + extension))
    if room < 1:
        extension, room = "", _MOST_NAME_BYTES - len(to_bytes(middle))
    while len(to_bytes(stem)) > room:
        stem = stem[:-1]
    return f"{folder}/{stem}{middle}{extension}" if folder else f"{stem}{middle}{extension}"


def big_copies(actions: Sequence[Action], limit_bytes: int, *, known: Mapping[str, Known]) -> list[Action]:
    """Return the copies to the host that the user is asked about first, the biggest first.

    Single files beyond the limit; all files, where together they are beyond ten times of it.
    """
    copies = [
        action
        for action in actions
        if action.deed is Deed.COPY_THERE and action.local is not None and action.local.kind is Kind.FILE
    ]
    copies.sort(key=lambda action: action.local.size_bytes if action.local else 0, reverse=True)
    big = [action for action in copies if action.local and action.local.size_bytes > limit_bytes]
    # What the user has let through before is no question again.
    big = [action for action in big if action.path not in known or known[action.path].local.size_bytes <= limit_bytes]
    total = sum(action.local.size_bytes for action in copies if action.local)
    return big or (copies if total > 10 * limit_bytes else [])
