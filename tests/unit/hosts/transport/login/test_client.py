"""hosts/transport/login/client.py: what a server of asyncssh's asks, and how it is answered (OpenSSH's: tests/real)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from kernelbridge.hosts.transport.login.client import LoginClient
from kernelbridge.hosts.transport.login.questions import LoginQuestion, LoginQuestions
from kernelbridge.hosts.transport.openssh.identities import Identities, Identity
from tests.unit.hosts.transport.test_dial import hop

KEY = asyncssh.generate_private_key("ssh-ed25519")
OTHER = asyncssh.generate_private_key("ssh-ed25519")
NAME, ADA = "ada@lab", "(ada@lab) "


class Server(asyncssh.SSHServer):
    """Asks what a test wants it to ask."""

    # What it asks by the keyboard, in turn: what it says before, its prompts, and the answers that it takes.
    challenges: Sequence[tuple[str, Sequence[tuple[str, bool]], Sequence[str]]] = ()
    password = ""
    is_expired = False
    takes_key = False

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return self.takes_key

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key.public_data == KEY.public_data

    def password_auth_supported(self) -> bool:
        return bool(self.password)

    def validate_password(self, username: str, password: str) -> bool:
        if self.is_expired and password == self.password:
            raise asyncssh.PasswordChangeRequired("It has expired.\nAt least 12 letters.")
        return password == self.password

    def change_password(self, username: str, old_password: str, new_password: str) -> bool:
        self.is_expired, type(self).password = False, new_password
        return True

    def kbdint_auth_supported(self) -> bool:
        return bool(self.challenges)

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> Any:
        self._turn = 0
        said, prompts, _ = self.challenges[0]
        return "", said, "", prompts

    def validate_kbdint_response(self, username: str, responses: Sequence[str]) -> Any:
        if list(responses) != list(self.challenges[self._turn][2]):
            return False
        self._turn += 1
        if self._turn == len(self.challenges):
            return True
        said, prompts, _ = self.challenges[self._turn]
        return "", said, "", prompts


class Visit:
    """One login with answers that are given in turn; None: nobody answers any more."""

    def __init__(self, home: Path, *lines: str) -> None:
        self.hop = hop(home, *lines)
        self.identities = Identities()
        self.asked: list[LoginQuestion] = []
        self.pauses = 0
        self.client: LoginClient

    async def enter(self, server: type[Server], *answers: str | None) -> None:
        """Log in. Raises asyncssh.Error."""
        left = list(answers)

        async def ask(question: LoginQuestion) -> str | None:
            assert self._is_paused
            self.asked.append(question)
            return left.pop(0)

        listener = await asyncssh.listen("127.0.0.1", 0, server_factory=server, server_host_keys=[OTHER])
        self._is_paused = False
        try:
            with LoginQuestions([ask]).for_login():
                self.client = LoginClient(self.hop, self.identities, connected=lambda: None, closed=lambda: None)
                self.client.paused = self._pause
                options = {
                    name: self.hop.options()[name] for name in ("password_auth", "kbdint_auth", "preferred_auth")
                }
                connection = await asyncssh.connect(
                    "127.0.0.1",
                    listener.get_port(),
                    username="ada",
                    config=None,
                    known_hosts=None,
                    client_keys=None,
                    agent_path=None,
                    client_factory=lambda: self.client,
                    **options,
                )
                connection.abort()
                await connection.wait_closed()
        finally:
            listener.close()
            await listener.wait_closed()

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        self._is_paused = True
        yield
        self._is_paused = False

    async def refusal(self, server: type[Server], *answers: str | None) -> str:
        with pytest.raises(asyncssh.PermissionDenied):
            await self.enter(server, *answers)
        return str(self.client.refusal())

    @property
    def prompts(self) -> list[str]:
        return [question.prompt for question in self.asked]


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    return Visit(tmp_path)


def server(**facts: Any) -> type[Server]:
    return type("Made", (Server,), facts)


CODE = ("Welcome", [("Code: ", False)], ["1"])


async def test_what_a_host_asks_is_asked_in_its_words_and_shown_as_it_says(visit: Visit) -> None:
    asks = server(challenges=[CODE, ("", [("User? ", True), ("PIN: ", False)], ["ada", "2"])])
    await visit.enter(asks, "1", "ada", "2")
    assert visit.asked == [
        LoginQuestion(prompt=f"{ADA}Code: ", notes=(f"{NAME}: Welcome",)),
        LoginQuestion(prompt=f"{ADA}User? ", echo=True),
        LoginQuestion(prompt=f"{ADA}PIN: "),
    ]


@pytest.mark.parametrize(("lines", "times"), [((), 3), (("NumberOfPasswordPrompts 1",), 1)])
async def test_a_wrong_answer_is_asked_for_again_as_often_as_ssh_does(
    tmp_path: Path, lines: Sequence[str], times: int
) -> None:
    visit = Visit(tmp_path, *lines)
    said = await visit.refusal(server(challenges=[CODE]), *["wrong"] * times)
    assert visit.prompts == [f"{ADA}Code: "] * times
    denied = f"{NAME}: Permission denied, please try again."
    assert [denied in question.notes for question in visit.asked] == [False, True, True][:times]
    assert "the host did not accept the answer to `(ada@lab) Code:`" in said
    assert not visit.client.refusal().needs_person


async def test_where_nobody_answers_nothing_else_is_asked_and_the_refusal_says_so(visit: Visit) -> None:
    said = await visit.refusal(server(challenges=[CODE], password="1"), None)
    assert visit.prompts == [f"{ADA}Code: "]
    assert "asks a person `(ada@lab) Code:`, and nobody was there to answer" in said
    assert visit.client.refusal().needs_person


async def test_a_password_is_asked_for_as_ssh_does(visit: Visit) -> None:
    await visit.enter(server(password="sesame"), "wrong", "sesame")
    assert visit.asked == [
        LoginQuestion(prompt="ada@lab's password: "),
        LoginQuestion(prompt="ada@lab's password: ", notes=(f"{NAME}: Permission denied, please try again.",)),
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ("BatchMode yes",),
        ("PasswordAuthentication no", "KbdInteractiveAuthentication no"),
        ("PasswordAuthentication no", "ChallengeResponseAuthentication no"),
        ("PreferredAuthentications publickey",),
    ],
)
async def test_nobody_is_asked_where_the_config_says_so(tmp_path: Path, lines: Sequence[str]) -> None:
    visit = Visit(tmp_path, *lines)
    await visit.refusal(server(challenges=[CODE], password="1"))
    assert visit.asked == []
    assert not visit.client.refusal().needs_person


async def test_the_preferred_way_is_tried_first(tmp_path: Path) -> None:
    visit = Visit(tmp_path, "PreferredAuthentications password,keyboard-interactive")
    await visit.enter(server(challenges=[CODE], password="sesame"), "sesame")
    assert visit.prompts == ["ada@lab's password: "]


async def test_a_password_that_has_expired_is_changed(visit: Visit) -> None:
    await visit.enter(server(password="old", is_expired=True), "old", "old", "new", "mew", "new", "new")
    once, twice = "ada@lab's new password: ", "ada@lab's new password once more: "
    assert visit.prompts == ["ada@lab's password: ", "ada@lab's old password: ", once, twice, once, twice]
    assert visit.asked[1].notes == (f"{NAME}: It has expired.", f"{NAME}: At least 12 letters.")
    assert visit.asked[4].notes == (f"{NAME}: They are not the same, please try again.",)


async def test_a_password_that_nobody_changes_is_refused_in_the_hosts_words(visit: Visit) -> None:
    expired = server(password="old", is_expired=True)
    assert "It has expired. At least 12 letters." in await visit.refusal(
        expired, "old", "old", "a", "b", "c", "d", "e", ""
    )


def locked(key: asyncssh.SSHKey, *, is_public: bool = True) -> Identity:
    """A key behind a passphrase."""

    def unlock(passphrase: str) -> asyncssh.SSHKey:
        if passphrase != "sesame":
            raise asyncssh.KeyEncryptionError("wrong")
        return key

    half = asyncssh.SSHKeyPair(
        key.algorithm, key.algorithm, key.sig_algorithms, key.sig_algorithms, key.public_data, None
    )
    name = "~/.ssh/good" if key is KEY else "~/.ssh/other"
    return Identity(name=name, pair=half if is_public else None, unlock=unlock)


async def test_a_passphrase_is_asked_for_only_once_the_host_has_taken_the_public_half(visit: Visit) -> None:
    kept: list[asyncssh.SSHKey] = []

    async def keep(key: asyncssh.SSHKey) -> None:
        kept.append(key)

    visit.identities.found, visit.identities.keep = [locked(OTHER), locked(KEY)], keep
    await visit.enter(server(takes_key=True), "wrong", "sesame")
    prompt = "Enter passphrase for key '~/.ssh/good': "
    assert visit.asked == [
        LoginQuestion(prompt=prompt),
        LoginQuestion(prompt=prompt, notes=("Wrong passphrase, please try again.",)),
    ]
    assert visit.client.accepted == "~/.ssh/good"
    assert kept == [KEY]


async def test_a_key_whose_public_half_is_not_known_is_opened_first(visit: Visit) -> None:
    visit.identities.found = [locked(KEY, is_public=False)]
    await visit.enter(server(takes_key=True), "sesame")
    assert visit.client.offered == ["~/.ssh/good"]


async def test_a_passphrase_that_is_not_given_passes_the_key_over(visit: Visit) -> None:
    visit.identities.found = [locked(KEY, is_public=False), locked(KEY)]
    said = await visit.refusal(server(takes_key=True), "", "")
    assert visit.identities.skipped[0] == "~/.ssh/good (its passphrase was not given)"
    assert "did not accept" not in said
