"""hosts/short_way.py: which containers get a door, how a relay is reached by it, and what is done where it is shut."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.errors import ContainerFailed, LinkLost, StartTimeout
from kernelbridge.hosts import short_way
from kernelbridge.hosts.short_way import BOOT_SECONDS, SHUT_SECONDS, ShortWays
from kernelbridge.hosts.transport.stream import Collector, Completed
from kernelbridge.protocol import frames
from kernelbridge.protocol.handshake import DOOR_GREETING

NAME = "kernelbridge-k1"
FOLDER = "/tmp/kernelbridge-1001/k1"
DOCKER: dict[str, Any] = {"SecurityOptions": ["name=seccomp,profile=builtin"], "OperatingSystem": "Debian"}


class Line:
    """A stream by the door."""

    def __init__(self, receiver: Any) -> None:
        self.receiver = receiver
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        self.receiver.closed(None)


class Link:
    """A host whose sockets answer as a test says: nobody there, or what is said at once."""

    name = "lab"
    facts = type("Facts", (), {"uid": 1001})()

    def __init__(self) -> None:
        self.answer: Completed | Exception = Completed(exit_code=0, stdout=b"", stderr=b"")
        self.commands: list[Sequence[str]] = []
        self.tried: list[str] = []
        # What each try comes to; afterwards the last of them.
        self.says: list[bytes | Exception | None] = [None]
        self.lines: list[Line] = []

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float) -> Completed:
        self.commands.append(argv)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def try_socket(self, path: str, receiver: Any) -> Any:
        self.tried.append(path)
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, Exception):
            raise said
        if said is None:
            return None
        line = Line(receiver)
        self.lines.append(line)
        for at in range(len(said)):
            receiver.data_received(said[at : at + 1])
        return line


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def ways(link: Link) -> ShortWays:
    return ShortWays(link)  # type: ignore[arg-type]


async def test_a_container_gets_a_folder_of_the_logins_alone(link: Link, ways: ShortWays) -> None:
    await ways.make(NAME)
    assert link.commands[0][4:] == ["/tmp/kernelbridge-1001", "1001", "k1"]
    door = ways.door(NAME, DOCKER)
    assert door is not None
    spec = door.added_to({"Image": "x", "HostConfig": {"Init": True, "Mounts": [1]}})
    mount = {"Type": "bind", "Source": FOLDER, "Target": "/run/kernelbridge.door", "ReadOnly": False}
    assert spec == {"Image": "x", "HostConfig": {"Init": True, "Mounts": [1, mount]}}
    assert ways.order(NAME) == {"path": "/run/kernelbridge.door/relay.sock", "uid": 1001}
    await ways.remove(NAME)
    assert link.commands[-1][4:] == ["/tmp/kernelbridge-1001", "1001", "k1"]


async def test_under_a_rootless_engine_the_login_is_the_containers_root(ways: ShortWays) -> None:
    await ways.make(NAME)
    assert ways.door(NAME, {"SecurityOptions": ["name=rootless"]})
    assert (ways.order(NAME) or {})["uid"] == 0


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"SecurityOptions": ["name=userns"]}, "its Docker runs with `userns-remap`"),
        ({"SecurityOptions": ["name=selinux"]}, "its Docker runs with SELinux"),
        ({"OperatingSystem": "Docker Desktop"}, "its containers run in a virtual machine"),
    ],
)
async def test_an_engine_whose_containers_have_no_socket_in_common_with_the_login_is_left_without(
    link: Link, ways: ShortWays, info: dict[str, Any], reason: str
) -> None:
    await ways.make(NAME)
    assert ways.door(NAME, info) is None
    assert (ways.trouble, ways.order(NAME)) == (reason, None)
    # What was made is removed with the container; no more is made.
    await ways.make("kernelbridge-k2")
    await ways.remove(NAME)
    assert [words[3] for words in link.commands] == ["mkdir", "rm"]
    assert await ways.open(NAME, Collector()) is None
    assert link.tried == []


async def test_where_it_is_off_nothing_is_made_or_tried(link: Link) -> None:
    ways = ShortWays(link, trouble="`short_way` is off")  # type: ignore[arg-type]
    await ways.make(NAME)
    assert ways.door(NAME, DOCKER) is None
    assert await ways.open(NAME, Collector()) is None
    await ways.remove(NAME)
    assert (link.commands, link.tried, ways.trouble) == ([], [], "`short_way` is off")


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (Completed(exit_code=1, stdout=b"/tmp/x is not yours alone\n", stderr=b""), "/tmp/x is not yours alone"),
        (StartTimeout(host="lab", what="`sh`", seconds=20), "lab: `sh` was not done in 20 s"),
    ],
)
async def test_a_folder_that_cannot_be_made_is_no_failure(
    link: Link, ways: ShortWays, answer: Completed | Exception, trouble: str
) -> None:
    link.answer = answer
    await ways.make(NAME)
    assert ways.door(NAME, DOCKER) is None
    assert ways.trouble.startswith(trouble[:8])


async def test_a_link_that_is_lost_is_one(link: Link, ways: ShortWays) -> None:
    link.answer = LinkLost(host="lab")
    with pytest.raises(LinkLost):
        await ways.make(NAME)
    link.says = [LinkLost(host="lab")]
    with pytest.raises(LinkLost):
        await ways.open(NAME, Collector())


async def test_an_engine_that_refuses_the_mount_is_left_without(ways: ShortWays) -> None:
    await ways.make(NAME)
    ways.door(NAME, DOCKER)
    other = ContainerFailed(host="lab", image="x", reason="bind source path does not exist: /data")
    assert not ways.refuses(NAME, other)
    assert ways.order(NAME) is not None
    refusal = ContainerFailed(host="lab", image="x", reason=f"bind source path does not exist: {FOLDER}")
    assert ways.refuses(NAME, refusal)
    assert ways.order(NAME) is None
    assert not ways.refuses(NAME, refusal)
    assert FOLDER in ways.trouble


async def test_what_comes_after_the_greeting_is_handed_on(link: Link, ways: ShortWays) -> None:
    link.says = [DOOR_GREETING + b"first"]
    taken = Collector()
    stream: Any = await ways.open(NAME, taken)
    assert link.tried == [f"{FOLDER}/relay.sock"]
    assert bytes(taken.received) == b"first"
    stream.receiver.data_received(b", second")
    assert bytes(taken.received) == b"first, second"
    stream.close()
    await taken.wait_ended()


async def test_a_relay_that_was_started_just_now_is_waited_for_and_others_are_not(
    link: Link, ways: ShortWays, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await ways.open(NAME, Collector()) is None
    assert len(link.tried) == 1
    await ways.make(NAME)
    ways.door(NAME, DOCKER)
    ways.expect(NAME)
    link.says = [None, None, None, DOOR_GREETING]
    assert await ways.open(NAME, Collector()) is not None
    assert len(link.tried) == 5
    # Once: from then on it is there, or is not.
    link.says = [None]
    assert await ways.open(NAME, Collector()) is None
    assert len(link.tried) == 6


async def test_one_whose_door_stays_shut_is_waited_for_so_long(
    link: Link, ways: ShortWays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_way, "BOOT_SECONDS", 0.2)
    await ways.make(NAME)
    ways.door(NAME, DOCKER)
    ways.expect(NAME)
    began = asyncio.get_running_loop().time()
    assert await ways.open(NAME, Collector()) is None
    assert asyncio.get_running_loop().time() - began >= 0.2
    assert BOOT_SECONDS > 0.2


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request", DOOR_GREETING[:3]])
async def test_another_program_or_a_relay_that_shuts_its_door_hears_and_says_nothing(
    link: Link, ways: ShortWays, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(short_way, "GREETING_SECONDS", 0.05)
    link.says = [said]
    taken = Collector()
    assert await ways.open(NAME, taken) is None
    (line,) = link.lines
    assert (line.closed, bytes(taken.received), taken.failure) == (1, b"", None)
    line.receiver.data_received(DOOR_GREETING + b"late")
    assert bytes(taken.received) == b""
    # It is not asked again for a while.
    assert await ways.open(NAME, taken) is None
    assert len(link.tried) == 1
    assert SHUT_SECONDS > 1


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_the_scripts_touch_no_folder_but_one_that_is_the_logins_alone(
    link: Link, ways: ShortWays, tmp_path: Path, mode: int
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    base.chmod(mode)
    (base / "k1").mkdir()
    (base / "k1" / "old.sock").touch()
    asyncio.run(ways.make(NAME))
    asyncio.run(ways.remove(NAME))
    make, remove = (list(words[:4]) for words in link.commands)
    uid, is_ours = str(os.getuid()), mode == 0o700
    done = subprocess.run([*make, str(base), uid, "k1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == ((0, "") if is_ours else (1, f"{base} is not yours alone\n"))
    assert (base / "k1" / "old.sock").exists() is not is_ours
    assert (base / "k1").stat().st_mode & 0o7777 == (0o1777 if is_ours else 0o755)
    subprocess.run([*remove, str(base), uid, ""], check=True)
    assert (base / "k1").exists()
    subprocess.run([*remove, str(base), uid, "k1"], check=True)
    assert base.exists() is not is_ours


def test_a_link_to_a_folder_is_none(link: Link, ways: ShortWays, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "base").symlink_to(tmp_path / "mine")
    asyncio.run(ways.make(NAME))
    words = [*link.commands[0][:4], str(tmp_path / "base"), str(os.getuid()), "k1"]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 1
    assert list((tmp_path / "mine").iterdir()) == []


def test_the_greeting_is_a_frame_that_clients_take_for_a_sign_of_life() -> None:
    assert [frame.kind for frame in frames.Decoder().feed(DOOR_GREETING)] == [frames.PONG]
