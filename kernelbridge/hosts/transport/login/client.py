"""Authenticate as `ssh` does: keys one by one, then what a person is asked for. Called by asyncssh during a login."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import asyncssh

from kernelbridge.errors import LoginAttempt, LoginRefused
from kernelbridge.hosts.transport.login.questions import LoginQuestion, current_asking
from kernelbridge.hosts.transport.login.stage import report, waits_for_user
from kernelbridge.hosts.transport.openssh.identities import Identities, Identity
from kernelbridge.hosts.transport.ssh_config import Hop
from kernelbridge.plain_text import printable

_DENIED = "Permission denied, please try again."
# Of a login's last words.
_SAID_LENGTH = 500


class LoginClient(asyncssh.SSHClient):
    """One try to log in at one machine: what it offers, whom it asks, and what the host makes of it."""

    def __init__(
        self, hop: Hop, identities: Identities, *, connected: Callable[[], None], closed: Callable[[], None]
    ) -> None:
        """`connected` and `closed` are called when the connection is made, and when it has ended."""
        self._hop = hop
        self._identities = identities
        self._connected, self._closed = connected, closed
        self._asking = current_asking()
        self._rest = list(identities.found)
        # Called when the host has shown its key and the login begins.
        self.begun: Callable[[], None] = lambda: None
        # Entered while a person is asked.
        self.paused: Callable[[], AbstractContextManager[None]]
        # Set by validate_host_public_key() when the key is refused.
        self.refused_key: asyncssh.SSHKey | None = None
        # The names of the keys that went out, the one that the host had us sign with, and what it asked for then.
        self.offered: list[str] = []
        self.accepted = ""
        self.wanted: list[str] = []
        # What the host said after a key was accepted, or an answer was given.
        self.said = ""
        # The prompts that were answered; and the first that nobody could answer.
        self.answered: list[str] = []
        self.unanswered = ""
        # How often each way was tried that asks a person; and whether the host has asked for anything.
        self._tries = {"keyboard-interactive": 0, "password": 0}
        self._was_asked = False
        # What it said without asking anything.
        self._notes: list[str] = []

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """Called by asyncssh."""
        self._connected()
        self._connection = conn
        report(f"waiting for {self._hop.shown} to answer")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncssh once."""
        self._closed()

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Called by asyncssh only for keys that known_hosts does not have."""
        self.refused_key = key
        return False

    def auth_banner_received(self, msg: str, lang: str) -> None:
        """Called by asyncssh for what the host says before the login is done."""
        if self.accepted or self.answered:
            self.said = printable(msg.strip().replace("\n", " "))

    # -- keys

    async def public_key_auth_requested(self) -> asyncssh.SSHKeyPair | None:
        """Called by asyncssh for each key."""
        self.begun()
        if not self.offered:
            report(f"logging in as {self._hop.user}")
        while self._rest:
            identity = self._rest.pop(0)
            known = identity if identity.pair is not None else await self._opened(identity)
            if known is not None:
                self.offered.append(known.name)
                return self._watched(known)
        return None

    async def _opened(self, identity: Identity) -> Identity | None:
        """Return a key of whose public half nothing is known, decrypted; None where that cannot be."""
        try:
            key = await self._unlocked(identity)
        except ValueError as exc:
            self._identities.skipped.append(f"{identity.name} ({exc})")
            return None
        return Identity(name=identity.name, pair=asyncssh.load_keypairs(key)[0])

    def _watched(self, identity: Identity) -> asyncssh.SSHKeyPair:
        """Return the key, noting when it signs: only what the host accepts has to."""
        pair = copy.copy(identity.pair)
        assert pair is not None

        async def sign_async(data: bytes) -> bytes:
            try:
                signature = await self._sign(identity, pair, data)
            except ValueError as exc:
                self._identities.skipped.append(f"{identity.name} (cannot sign: {exc})")
                raise
            self.accepted = identity.name
            return signature

        vars(pair)["sign_async"] = sign_async
        return pair

    async def _sign(self, identity: Identity, pair: asyncssh.SSHKeyPair, data: bytes) -> bytes:
        """Sign with a key, or with what its file has behind a passphrase. Raises ValueError."""
        if identity.unlock is not None:
            key = await self._unlocked(identity)
            locked: bytes = await asyncio.to_thread(key.sign, data, pair.sig_algorithm)
            return locked
        # Agents have it; asyncssh looks for it at each key.
        original = identity.pair
        sign: Callable[[bytes], Awaitable[bytes]] = getattr(
            original, "sign_async", lambda data: asyncio.to_thread(pair.sign, data)
        )
        with waits_for_user(f"waiting for the key {identity.name}: touch it, or confirm that it may be used"):
            return await sign(data)

    async def _unlocked(self, identity: Identity) -> asyncssh.SSHKey:
        """Return a key from its file, by the passphrase that a person gives. Raises ValueError."""
        assert identity.unlock is not None
        prompt = f"Enter passphrase for key '{identity.name}': "
        notes: tuple[str, ...] = ()
        for _ in range(self._hop.settings.prompts):
            passphrase = await self._ask(LoginQuestion(prompt=prompt, notes=notes))
            if not passphrase:  # As for ssh, to give none is to pass it over.
                break
            try:
                key = await asyncio.to_thread(identity.unlock, passphrase)
            except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError):
                notes = ("Wrong passphrase, please try again.",)
                continue
            if self._identities.keep is not None:
                await self._identities.keep(key)
            return key
        raise ValueError("its passphrase was not given")

    # -- what a person is asked for

    def _may_try(self, way: str) -> bool:
        """Whether a way is to be tried that asks a person: as often as ssh does."""
        self.begun()
        if not self.wanted:
            self.wanted = list(self._connection.get_server_auth_methods())
        if self._hop.settings.is_batch or self.unanswered:
            return False
        self._tries[way] += 1
        return self._tries[way] <= self._hop.settings.prompts

    async def _ask(self, question: LoginQuestion) -> str | None:
        """Ask a person, once: where nobody answers nobody is asked again."""
        if self.unanswered:
            return None
        with self.paused():
            answer = await self._asking.ask(question)
        if answer is None:
            self.unanswered = question.prompt.strip()
        return answer

    async def _ask_for_host(self, question: LoginQuestion) -> str | None:
        """Ask a person what the host wants to know."""
        answer = await self._ask(question)
        if answer is not None:
            self.answered.append(question.prompt.strip())
        return answer

    def _plain(self, what: str, notes: Sequence[str] = ()) -> LoginQuestion:
        """Return the question for what the host has no prompt of its own for, in ssh's words."""
        marked = LoginQuestion.of_host(self._hop.who, "", notes=notes).notes
        return LoginQuestion(prompt=f"{self._hop.who}'s {what}: ", notes=marked)

    def _denied(self, way: str) -> list[str]:
        return [_DENIED] if self._tries[way] > 1 else []

    def kbdint_auth_requested(self) -> str | None:
        """Called by asyncssh where the host would ask."""
        if not self._may_try("keyboard-interactive"):
            return None
        if self._tries["keyboard-interactive"] > 1 and not self._was_asked:
            return None  # It has nothing to ask, and would not the next time.
        self._notes = self._denied("keyboard-interactive")
        return ""

    async def kbdint_challenge_received(
        self, name: str, instructions: str, lang: str, prompts: Sequence[tuple[str, bool]]
    ) -> list[str] | None:
        """Called by asyncssh with what the host asks, and with what it only says."""
        self._notes += [*name.splitlines(), *instructions.splitlines()]
        self._notes = [line for line in self._notes if line.strip()]
        if self._notes and not prompts:
            self.said = printable(" ".join(self._notes))[:_SAID_LENGTH]
        self._was_asked = self._was_asked or bool(prompts)
        answers: list[str] = []
        for prompt, echo in prompts:
            notes, self._notes = self._notes, []
            answer = await self._ask_for_host(LoginQuestion.of_host(self._hop.who, prompt, notes=notes, echo=echo))
            if answer is None:
                return None
            answers.append(answer)
        return answers

    async def password_auth_requested(self) -> str | None:
        """Called by asyncssh where the host takes a password."""
        if not self._may_try("password"):
            return None
        return await self._ask_for_host(self._plain("password", self._denied("password")))

    async def password_change_requested(self, prompt: str, lang: str) -> tuple[str, str]:
        """Called by asyncssh where the host wants a new password before it lets anybody in."""
        self.said = printable(" ".join(prompt.split()))[:_SAID_LENGTH]
        old = await self._ask_for_host(self._plain("old password", prompt.splitlines()))
        notes: list[str] = []
        for _ in range(self._hop.settings.prompts if old is not None else 0):
            new = await self._ask_for_host(self._plain("new password", notes))
            again = await self._ask_for_host(self._plain("new password once more"))
            if new is None or again is None or old is None:
                break
            if new == again:
                return old, new
            notes = ["They are not the same, please try again."]
        # asyncssh goes on to the next way to log in.
        not_changed: Any = NotImplemented
        return cast(tuple[str, str], not_changed)

    def refusal(self, *, is_flooded: bool = False) -> LoginRefused:
        """Make the error for a login that was refused."""
        hop = self._hop
        attempt = LoginAttempt(
            offered=tuple(self.offered),
            skipped=tuple(self._identities.skipped),
            accepted=self.accepted,
            wanted=tuple(self.wanted),
            said=self.said,
            answered=tuple(self.answered),
            unanswered=self.unanswered,
            is_batch=hop.settings.is_batch,
            is_flooded=is_flooded,
            has_control_path=hop.settings.one("controlpath") is not None,
        )
        user = f"{hop.user}@{hop.target}" if hop.is_jump else hop.user
        return LoginRefused(host=hop.host_name, user=user, attempt=attempt)
