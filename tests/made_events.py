"""Events and states as a relay tells them; what a test does not care about is made up."""

from __future__ import annotations

from typing import Any

from kernelbridge.protocol.handshake import ExitedEvent, Status


def status(**facts: Any) -> Status:
    """A relay that was started a moment ago."""
    made_up = Status(
        state="starting",
        launch=1,
        ready=False,
        info=None,
        running=None,
        lacks="",
        outcome=None,
        undelivered_bytes=0,
        deadline=None,
        persist=False,
        claim=False,
        owner=None,
        who="",
        held_seconds=0.0,
        alone_seconds=None,
    )
    return made_up._replace(**facts)


def exited(code: int = 3, *, launch: int = 1, **facts: Any) -> ExitedEvent:
    """The end of a kernel process."""
    made_up = ExitedEvent(launch=launch, code=code, out_of_memory=False, wanted=False, last_words="")
    return made_up._replace(**facts)
