"""Type what a relay and this side say besides the kernel's messages: events, states, who comes and goes. Pure.

Each is a NamedTuple that is read from, and written as, a JSON object of the stream. Keys of a newer version are
ignored; what is missing or of a wrong type is a WireError.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence, Union

from . import frames
from .json_object import LEAST_COUNT, TABLE_BYTES, JsonObject, json_bytes

# Of a banner, and of any other value of a kernel_info that is too long as a whole.
_INFO_CHARACTERS = 4096
# What a relay says first by its short way, to those alone whom it lets in: then it is no other program.
DOOR_GREETING = frames.frame(frames.PONG)


class Owner(NamedTuple):
    """Who joins: for relays `machine:process:start id`, for people `login@machine`."""

    mark: str
    who: str


def kernel_info(said: Any) -> Dict[str, Any]:
    """Return the content of an image's kernel_info with the types that clients expect, and not too long.

    Raises WireError if it is no object.
    """
    if not isinstance(said, dict):
        raise frames.WireError("no kernel_info")
    info = dict(said)
    if isinstance(info.get("banner"), str):
        info["banner"] = info["banner"][:_INFO_CHARACTERS]
    for key, kind, inner in _INFO_TYPES:
        value = info.get(key, kind())
        if not isinstance(value, kind) or (inner and not all(isinstance(one, inner) for one in value)):
            del info[key]
    if json_bytes(info) > TABLE_BYTES:
        info = {
            key: value for key, value in info.items() if key in _INFO_KEYS and json_bytes(value) <= _INFO_CHARACTERS
        }
    return info


_INFO_TYPES: Sequence[Any] = (
    ("banner", str, None),
    ("protocol_version", str, None),
    ("implementation", str, None),
    ("implementation_version", str, None),
    ("language_info", dict, None),
    ("help_links", list, dict),
    ("supported_features", list, str),
)
_INFO_KEYS = frozenset([key for key, _, _ in _INFO_TYPES] + ["status", "debugger"])


class ReadyEvent(NamedTuple):
    """A launch answers: the content of its kernel_info."""

    launch: int
    info: Dict[str, Any]
    # What went wrong with the image's ENTRYPOINT before it: words that follow its name; empty if nothing did.
    entrypoint: str = ""

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> ReadyEvent:
        """Read it."""
        event = JsonObject(said)
        info = kernel_info(said.get("info"))
        return cls(launch=event.count("launch"), info=info, entrypoint=event.text("entrypoint", ""))

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        said: Dict[str, Any] = {"event": "ready", "launch": self.launch, "info": self.info}
        return {**said, "entrypoint": self.entrypoint} if self.entrypoint else said


class MismatchedGpus(NamedTuple):
    """The GPUs that a container should see, and those that it sees: their ids, or how many."""

    wanted: Sequence[str]
    seen: Union[int, Sequence[str]]


def _seen(gpus: JsonObject) -> Union[int, Sequence[str], None]:
    """Return the ids of the GPUs that are seen, or how many; None where that is not known yet."""
    if isinstance(gpus.take("seen", None), int):
        return gpus.count("seen")
    return None if gpus.take("seen", None) is None else gpus.texts("seen")


class FailedEvent(NamedTuple):
    """A launch could not be started: the image lacks a module, the GPUs are others, a setup failed, something else."""

    launch: int
    lacks: str = ""
    gpus: Optional[MismatchedGpus] = None
    reason: str = ""
    # The command of the setup that failed; `reason` is then how, and its last words.
    setup: str = ""

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> FailedEvent:
        """Read it."""
        event = JsonObject(said)
        gpus = event.object_or_none("gpus")
        seen = None if gpus is None else _seen(gpus)
        # No GPU at all is an answer too.
        mismatch = None if gpus is None else MismatchedGpus(gpus.texts("wanted"), 0 if seen is None else seen)
        return cls(
            event.count("launch"),
            event.text_or_none("lacks") or "",
            mismatch,
            event.text("reason", ""),
            event.text("setup", ""),
        )

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        told: Dict[str, Any] = {"event": "failed", "launch": self.launch}
        if self.gpus is not None:
            told["gpus"] = self.gpus._asdict()
        elif self.lacks:
            told["lacks"] = self.lacks
        else:
            told["reason"] = self.reason
        return {**told, "setup": self.setup} if self.setup else told


class ExitedEvent(NamedTuple):
    """The kernel process of a launch has ended."""

    launch: int
    # Negative: by this signal.
    code: int
    out_of_memory: bool
    # Whether somebody asked the relay to end it.
    wanted: bool
    # The last line that it wrote to its own output; where Python itself crashed, what and where.
    last_words: str
    # The deadline that ended it: a key of the config, or a word of EXIT_CODES; empty if none did.
    why: str = ""
    # The folders without room when it ended, and the size of /dev/shm; none and 0 from older relays.
    full: Sequence[str] = ()
    shm_bytes: int = 0

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> ExitedEvent:
        """Read it."""
        event = JsonObject(said)
        return cls(
            launch=event.count("launch"),
            code=event.count("code", least=LEAST_COUNT),
            out_of_memory=event.flag("out_of_memory"),
            wanted=event.flag("wanted"),
            last_words=event.text("last_words"),
            why=event.text_or_none("why") or "",
            full=tuple(event.texts("full", ())),
            shm_bytes=event.count("shm_bytes", 0),
        )

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        return {"event": "exited", **self._asdict()}


class GpuLostEvent(NamedTuple):
    """The container of a launch cannot reach its GPUs any more; `parent` is the header of the running cell."""

    launch: int
    parent: Optional[Dict[str, Any]]

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> GpuLostEvent:
        """Read it."""
        event = JsonObject(said)
        return cls(launch=event.count("launch"), parent=event.table_or_none("parent"))

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        return {"event": "gpu_lost", "launch": self.launch, "parent": self.parent}


class DroppedEvent(NamedTuple):
    """The journal had no room for so much output of one cell, whose header is `parent`."""

    launch: int
    parent: Dict[str, Any]
    messages: int
    size_bytes: int
    # `invalid` where they were no messages, `size` where each is too long; empty where there was no room for them.
    why: str = ""

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> DroppedEvent:
        """Read it."""
        event = JsonObject(said)
        return cls(
            launch=event.count("launch"),
            parent=event.table("parent"),
            messages=event.count("messages"),
            size_bytes=event.count("bytes"),
            why=event.text("why", ""),
        )

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        said = {"event": "dropped", "launch": self.launch, "parent": self.parent, "messages": self.messages}
        return {**said, "bytes": self.size_bytes, **({"why": self.why} if self.why else {})}


class LeftOutputEvent(NamedTuple):
    """Output of cells of other clients follows, as it was asked for; the titles of the newest cells, by request."""

    launch: int
    cells: Mapping[str, Sequence[Any]]

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> LeftOutputEvent:
        """Read it."""
        event = JsonObject(said)
        cells: Dict[str, Sequence[Any]] = {}
        for request_id, title in event.table("cells").items():
            if not isinstance(title, (list, tuple)) or len(title) != 2:
                raise frames.WireError("no title of a cell")
            number = JsonObject({"number": title[0]})
            cells[request_id] = [
                None if title[0] is None else number.count("number"),
                JsonObject({"line": title[1]}).text("line"),
            ]
        return cls(event.count("launch"), cells)

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        return {"event": "left_output", "launch": self.launch, "cells": self.cells}


class NoticeEvent(NamedTuple):
    """Something is not as a user expects it, and the launch goes on: one line, by kind, of a path of the container.

    `moved`: the kernel may not start there, and does in `reason`. Of a mount: `refused`, it cannot be written to, by
    the system's word, `squashed`, because its NFS server takes root for nobody, `selinux`, because of its label there;
    `foreign`, what is written there belongs to the user with that number, `mapped`, by the NFS server's word.
    `setup`: a command of the setup runs, and has printed `reason` last; its `path` is that command.
    """

    launch: int
    kind: str
    path: str
    reason: str

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> NoticeEvent:
        """Read it."""
        event = JsonObject(said)
        return cls(event.count("launch"), event.text("kind"), event.text("path"), event.text("reason"))

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        return {"event": "notice", **self._asdict()}


class InputEvent(NamedTuple):
    """How much of its input a command has taken, ever: who sends it waits where that is much less than was sent."""

    launch: int
    taken_bytes: int

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> InputEvent:
        """Read it."""
        event = JsonObject(said)
        return cls(event.count("launch"), event.count("taken_bytes"))

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        return {"event": "input", **self._asdict()}


RelayEvent = Union[
    ReadyEvent, FailedEvent, ExitedEvent, GpuLostEvent, DroppedEvent, LeftOutputEvent, NoticeEvent, InputEvent
]


def event_from(said: Mapping[str, Any]) -> Optional[RelayEvent]:
    """Return the event that the relay tells; None for one of a newer version."""
    name = JsonObject(said).text("event")
    if name == "ready":
        return ReadyEvent.from_dict(said)
    if name == "failed":
        return FailedEvent.from_dict(said)
    if name == "exited":
        return ExitedEvent.from_dict(said)
    if name == "gpu_lost":
        return GpuLostEvent.from_dict(said)
    if name == "left_output":
        return LeftOutputEvent.from_dict(said)
    if name == "notice":
        return NoticeEvent.from_dict(said)
    if name == "input":
        return InputEvent.from_dict(said)
    return DroppedEvent.from_dict(said) if name == "dropped" else None


class TimeLeft(NamedTuple):
    """How long the kernel lives if nothing happens, and the key or word that says so."""

    seconds: float
    why: str


class HeldBy(NamedTuple):
    """Who holds a kernel, for relays and for people, and for how many seconds; empty if nobody does."""

    owner: Optional[str] = None
    who: str = ""
    held_seconds: float = 0.0


class GpuStatus(NamedTuple):
    """The GPUs that the relay has locked, those that it sees (ids, their number, or not known yet), and their loss."""

    ids: Sequence[str] = ()
    seen: Union[int, Sequence[str], None] = None
    lost: bool = False


class Status(NamedTuple):
    """How a relay and its kernel do: part of a WELCOME, and the answer to whoever asks."""

    # starting, idle, busy or exited
    state: str
    # Of the kernel process that there is; 0 without one.
    launch: int
    ready: bool
    # Content of kernel_info, once ready; and the header of the request that is worked on.
    info: Optional[Dict[str, Any]]
    running: Optional[Dict[str, Any]]
    # What the image lacks for a kernel, and how the last kernel process ended; where there is none.
    lacks: str
    outcome: Optional[ExitedEvent]
    undelivered_bytes: int
    deadline: Optional[TimeLeft]
    persist: bool
    # Whether it was left under a claim.
    claim: bool
    # Who holds it and for how long; since when nobody does.
    owner: Optional[str]
    who: str
    held_seconds: float
    alone_seconds: Optional[float]
    gpus: GpuStatus = GpuStatus()
    quiet_seconds: float = 0.0
    session: str = ""
    version: int = 0
    # Whether anybody has run a cell in it.
    used: bool = True
    # The kernelbridge that made it; empty where its relay does not say so.
    release: str = ""
    # How its owner is joined: by the relay's own `socket`, or an `exec` of the engine's; empty where nobody is.
    way: str = ""

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Status:
        """Read it."""
        status = JsonObject(said)
        outcome, deadline, gpus = (status.object_or_none(name) for name in ("outcome", "deadline", "gpus"))
        return cls(
            state=status.text("state"),
            launch=status.count("launch"),
            ready=status.flag("ready"),
            info=None if status.take("info") is None else kernel_info(said["info"]),
            running=status.table_or_none("running"),
            lacks=status.text("lacks"),
            outcome=ExitedEvent.from_dict(said["outcome"]) if outcome else None,
            undelivered_bytes=status.count("undelivered_bytes"),
            deadline=TimeLeft(deadline.seconds("seconds"), deadline.text("why")) if deadline else None,
            persist=status.flag("persist"),
            claim=status.flag("claim"),
            owner=status.text_or_none("owner"),
            who=status.text("who"),
            held_seconds=status.seconds("held_seconds"),
            alone_seconds=status.seconds_or_none("alone_seconds"),
            gpus=GpuStatus(gpus.texts("ids"), _seen(gpus), gpus.flag("lost", False)) if gpus else GpuStatus(),
            quiet_seconds=status.seconds("quiet_seconds", 0.0),
            session=status.text("session", ""),
            version=status.count("version", 0),
            used=status.flag("used", True),
            release=status.text("release", ""),
            way=status.text("way", ""),
        )

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        said = self._asdict()
        said["outcome"] = None if self.outcome is None else self.outcome.to_dict()
        said["deadline"] = None if self.deadline is None else self.deadline._asdict()
        said["gpus"] = self.gpus._asdict()
        return said


class Hello(NamedTuple):
    """Who knocks at a relay, and what for: to hold the kernel, or to ask (logs or status) without disturbing."""

    kernel: str
    # Who joins, for relays and for people; see Owner.
    owner: str = ""
    who: str = ""
    # Names the numbering of this end, and how far it has the relay's.
    stream: str = ""
    received: Sequence[int] = ()
    # Whether it takes the kernel from another owner; what it must have been left under. None: not said.
    take: Optional[bool] = None
    claim: Optional[str] = None
    ask: Optional[str] = None
    # Whether it can show only output of its own clients' requests: the rest waits until it asks for it.
    only_own: Optional[bool] = None
    version: Optional[int] = frames.VERSION

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Hello:
        """Read it; of another version all may be missing, and it is refused."""
        asked = JsonObject(said)
        version = asked.count("version", 0) or None
        ask = asked.text_or_none("ask")
        knows = version == frames.VERSION and ask in (None, "attach")
        return cls(
            kernel=asked.text("kernel", ""),
            owner=asked.text("owner") if knows else "",
            who=asked.text("who", ""),
            stream=asked.text("stream") if knows else "",
            received=asked.counts("received", len(frames.LANES)) if knows else (),
            take=asked.flag("take") if asked.take("take", None) is not None else None,
            claim=asked.text_or_none("claim"),
            ask=ask,
            only_own=asked.flag("only_own") if asked.take("only_own", None) is not None else None,
            version=version,
        )

    @property
    def only_asks(self) -> bool:
        """Whether it asks for an answer, and not for the kernel itself."""
        return self.ask not in (None, "attach")

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def frame(self) -> bytes:
        """Return the HELLO frame."""
        return frames.frame(frames.HELLO, json.dumps(self.to_dict()).encode())


class Welcome(NamedTuple):
    """The relay lets an owner in: how its kernel does, how far it has this end's numbering, its own start id."""

    status: Status
    received: Sequence[int]
    epoch: str

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Welcome:
        """Read it."""
        welcome = JsonObject(said)
        return cls(Status.from_dict(said), welcome.counts("received", len(frames.LANES)), welcome.text("epoch"))

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        return dict(self.status.to_dict(), received=self.received, epoch=self.epoch)

    def frame(self) -> bytes:
        """Return the WELCOME frame."""
        return frames.frame(frames.WELCOME, json.dumps(self.to_dict()).encode())


# Why a relay refuses a HELLO that is for another one, or of another version.
OTHER_RELAY = "other kernel or version"


class Busy(NamedTuple):
    """The relay does not let somebody in, or hold the kernel any more: `held`, `taken`, or another reason."""

    reason: str
    # Who has it, for people and for relays, and for how long. None: not said.
    who: Optional[str] = None
    owner: Optional[str] = None
    held_seconds: Optional[float] = None
    # What the relay speaks, and which kernelbridge made it, where that is the reason. None: not said.
    version: Optional[int] = None
    release: Optional[str] = None

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Busy:
        """Read it."""
        busy = JsonObject(said)
        return cls(
            reason=busy.text("reason", ""),
            who=busy.text_or_none("who"),
            owner=busy.text_or_none("owner"),
            held_seconds=busy.seconds_or_none("held_seconds"),
            version=busy.count("version", 0) or None,
            release=busy.text_or_none("release"),
        )

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def frame(self) -> bytes:
        """Return the BUSY frame."""
        return frames.frame(frames.BUSY, json.dumps(self.to_dict()).encode())


class Goodbye(NamedTuple):
    """The owner leaves in good order; `end` unless the kernel is to run on without it."""

    end: bool
    claim: str = ""
    # Whether it has acknowledged something that it did not hand on.
    lacks: bool = False

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Goodbye:
        """Read it."""
        goodbye = JsonObject(said)
        return cls(goodbye.flag("end", False), goodbye.text("claim", ""), goodbye.flag("lacks", False))

    def frame(self) -> bytes:
        """Return the GOODBYE frame."""
        return frames.frame(frames.GOODBYE, json.dumps(self._asdict()).encode())
