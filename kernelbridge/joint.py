"""One kernel's stream to its relay, and what the relay says of the launches: awaited by kernel.py.

How the stream is kept: attachment.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from kernelbridge import creation, outcome
from kernelbridge.activity import Activity
from kernelbridge.attachment import Attachment
from kernelbridge.channels.sockets import Channels
from kernelbridge.config import Host
from kernelbridge.errors import KernelBridgeError, LinkLost
from kernelbridge.host.answers import Exited, Missing, Over
from kernelbridge.kernel_errors import KernelEnded, KernelExpired, KernelHeld, KernelTaken
from kernelbridge.relay import lifetime, wire
from kernelbridge.surroundings import Surroundings
from kernelbridge.wanted import Wanted


class Hearer(Protocol):
    """Who has the joint; called on the loop, must not block."""

    def tell(self, state: str, text: str = "") -> None:
        """For people: the kernel is busy or idle, or its link is lost."""

    def runs(self, info: dict[str, Any], running: Mapping[str, Any] | None) -> None:
        """A relay that was there before has a kernel that answers; `running` is the header of its cell."""

    def died(self, event: Mapping[str, Any]) -> None:
        """The kernel process of the newest launch has ended."""

    def leased(self, gpu_ids: Sequence[str]) -> None:
        """The relay says which GPUs it has."""

    def lost_gpus(self, parent: Mapping[str, Any]) -> None:
        """The container cannot reach its GPUs any more; `parent` is the header of the running cell, or empty."""

    def tried(self, error: KernelBridgeError) -> None:
        """The stream could not be joined at this time."""

    def gone(self, error: KernelBridgeError, *, is_ours: bool) -> None:
        """The stream will not come back; `is_ours` unless another has the kernel now."""


class Joint:
    """The stream of one kernel, from one container to the next."""

    def __init__(self, wanted: Wanted, around: Surroundings, channels: Channels, hearer: Hearer) -> None:
        self.wanted = wanted
        self._around = around
        self._channels = channels
        self._hearer = hearer
        self.activity = Activity(hearer.tell)
        self._host: Host = wanted.hosts[0]
        self._attachment: Attachment | None = None
        # Number of the newest launch of the kernel process; the relay's word on an older one is no news.
        self.launch = 0
        # Resolved by the relay's word on the newest launch: kernel_info content, or the error.
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        # Resolved by the first welcome, where a relay was there before; None where we make one.
        self.found: asyncio.Future[Mapping[str, Any]] | None = None
        # Whether it is taken up only to be launched again.
        self._is_claimed = False

    def __repr__(self) -> str:
        return f"<Joint launch {self.launch} {self._attachment!r}>"

    @property
    def is_there(self) -> bool:
        """Whether there is a relay, joined at this moment or not."""
        return self._attachment is not None

    @property
    def is_joined(self) -> bool:
        """Whether the relay hears us at this moment, as far as we know."""
        return self._attachment is not None and self._attachment.is_joined

    @property
    def is_settled(self) -> bool:
        """Whether the newest launch has answered or failed."""
        return self.ready.done()

    def expect(self, launch: int) -> None:
        """A launch begins; what is known of those before does not count any more."""
        self.launch = launch
        self.activity.is_ending = False
        self.ready = asyncio.get_running_loop().create_future()

    def attachment(self, host: Host, *, is_old: bool = False, takes: bool = False, claim: str = "") -> Attachment:
        """Return what joins the relay on a host; `is_old` where it was there before us."""
        self._host = host
        self._is_claimed = bool(claim)
        self.found = asyncio.get_running_loop().create_future() if is_old else None
        reach = partial(self._around.site, host)
        place = creation.place(
            self.wanted.kernel_id, self.wanted.environment, host, reach=reach, rest=self._around.rest
        )
        self._attachment = Attachment(place, self, owner=self._around.owner, takes=takes, claim=claim)
        return self._attachment

    def take_no_more(self) -> None:
        """Leave what comes from now on to whoever joins next."""
        if self._attachment is not None:
            self._attachment.take_no_more()

    def part(self) -> Attachment | None:
        """Forget the stream; return it, to be closed."""
        attachment, self._attachment = self._attachment, None
        return attachment

    async def drop(self) -> None:
        """Leave the stream, where there is one."""
        attachment = self.part()
        if attachment is not None:
            await attachment.aclose()

    def send(self, packed: list[tuple[int, bytes]]) -> None:
        """Send messages to the kernel: (lane, packed); nowhere where there is no relay."""
        if self._attachment is not None:
            self._attachment.send(packed)

    def command(self, order: dict[str, Any]) -> None:
        """Send an order to the relay."""
        if self._attachment is not None:
            self._attachment.command(order)

    def launch_again(self, launch: int, order: dict[str, Any]) -> None:
        """Order another launch; what waits for the one before is dropped."""
        self.expect(launch)
        if self._attachment is not None:
            self._attachment.forget_waiting()
            self._attachment.command(order)

    # -- called by the attachment

    @property
    def is_congested(self) -> bool:
        """Whether a slow client holds so much back that nothing more should be acknowledged."""
        return self._channels.is_congested

    def delivered(self, packed: list[wire.Buffer]) -> None:
        """Messages of the kernel."""
        self.activity.see(packed)
        self._channels.deliver(packed)

    def told(self, event: dict[str, Any]) -> None:
        """The relay's word: on what it had no room for, or on a launch."""
        if event["event"] == "dropped":
            self._channels.notice(event["parent"], outcome.dropped_text(event))
            return
        if event["launch"] != self.launch:
            return
        if event["event"] == "gpu_lost":
            self._hearer.lost_gpus(event["parent"] or {})
            return
        waits = not self.ready.done()
        if event["event"] == "ready" and waits:
            self.ready.set_result(event["info"])
        elif event["event"] == "failed" and waits:
            self.ready.set_exception(outcome.failed_start(self.wanted, self._host, event))
        elif event["event"] == "exited" and waits:
            self.ready.set_exception(outcome.death(self.wanted, self._host, event))
        elif event["event"] == "exited":
            self.activity.close()
            self._hearer.died(event)

    def joined(self, welcome: Mapping[str, Any]) -> None:
        """The stream is there, or there again."""
        self._channels.find()
        self._hearer.leased(welcome["gpus"]["ids"])
        if self.is_settled:
            self._hearer.tell(self.activity.state)
        if self.found is None or self.found.done():
            return
        self.launch = int((welcome["outcome"] or welcome)["launch"])
        self.found.set_result(welcome)
        if welcome["ready"] and not self._is_claimed:
            # At once: what the relay sends next is this kernel's.
            self.ready.set_result(welcome["info"])
            self._hearer.runs(welcome["info"], welcome["running"])

    def lost(self, error: LinkLost) -> None:
        """The stream is not there at the moment; the kernel runs on."""
        self._channels.lose(error)
        self._hearer.tell("link lost", str(error))

    def tried(self, error: KernelBridgeError) -> None:
        """The stream could not be joined at this time."""
        self._hearer.tried(error)

    def taken(self, error: KernelHeld) -> None:
        """Another has the kernel."""
        self._attachment = None
        taken = KernelTaken(environment=self.wanted.display_name, host=self._host.name, who=error.who)
        self._gone(taken if self.ready.done() else error, is_ours=False)

    def ended(self, how: Exited | Missing | Over) -> None:
        """The container has ended, or is gone."""
        if isinstance(how, Over):
            self._leave()
            self._gone(how.explain(self.wanted.display_name), is_ours=True)
            return
        text = "was removed from elsewhere" if isinstance(how, Missing) else f"was ended ({how})"
        self._leave()
        if isinstance(how, Exited) and how.code == lifetime.EXIT_CODES["unjoined"]:
            seconds = lifetime.UNJOINED_SECONDS
            text = (
                f"was ended: this machine could not be reached for {seconds:.0f} s, before it asked the kernel anything"
            )
        key = lifetime.key_of(how.code) if isinstance(how, Exited) else ""
        error: KernelBridgeError = KernelEnded(environment=self.wanted.display_name, host=self._host.name, how=text)
        if key:
            error = KernelExpired(environment=self.wanted.display_name, host=self._host.name, key=key)
        self._gone(error, is_ours=True)

    def _leave(self) -> None:
        attachment = self.part()
        if attachment is not None:
            attachment.forget()

    def _gone(self, error: KernelBridgeError, *, is_ours: bool) -> None:
        if self.found is not None and not self.found.done():
            self.found.set_exception(error)
        elif not self.ready.done():
            self.ready.set_exception(error)
        self._hearer.gone(error, is_ours=is_ours)
