"""Output that waits while the line is down: in memory, then in a file, and what is said of what has no room."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.blocking import Cell, started
from tests.clients.notebook import fleet_closed_after, write_specs
from tests.rig.daemon import wait_until
from tests.rig.lab import USERS
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(300)

NOTICE = re.compile(
    r"\[kernelbridge: dropped ([\d,]+) messages? of this output \([\d.]+ MB\): `journal_size` was reached"
)
OWN_UID = next(user.uid for user in USERS if user.name == "kbtest")
FOLDER = "/var/lib/kernelbridge/journal"
BEGIN, DONE = "/tmp/kernelbridge-begin", "/tmp/kernelbridge-done"
# Numbered pictures of 1 kB as soon as a file is there; another file says that all are made.
DISPLAYS = f"""\
import os, time
from IPython.display import publish_display_data
print('the cell runs', flush=True)
while not os.path.exists({BEGIN!r}):
    time.sleep(0.05)
for n in range(COUNT):
    publish_display_data({{'text/plain': f'{{n:06d}}' + 'x' * 1000}})
open({DONE!r}, 'w').close()
'the end'
"""


@pytest.fixture
def user(bridge_env: Laptop) -> Iterator[Laptop]:
    """A user whose fleet is closed in the end."""
    with fleet_closed_after(bridge_env):
        yield bridge_env


def in_container(rig: Rig, *words: str) -> tuple[int, str]:
    """Run a command in the one container, as root."""
    [one] = rig.engine.kernels()
    done: Any = one.exec_run(list(words), user="0")
    return int(done.exit_code), bytes(done.output).decode()


def files(rig: Rig) -> list[list[str]]:
    """Mode, owner and size of each file in the journal's folder."""
    code, said = in_container(rig, "find", FOLDER, "-type", "f", "-printf", "%m %U %s\\n")
    return [line.split() for line in said.splitlines()] if code == 0 else []


def made_in_a_cut(rig: Rig, laptop: Laptop, count: int, **keys: object) -> tuple[Cell, list[list[str]]]:
    """A cell whose displays were all made while the line was cut, and the files in which they waited."""
    laptop.write_environment(keys.pop("image", rig.image), host={"ssh": "lab-proxied"}, **keys)  # type: ignore[arg-type]
    write_specs(laptop)
    with started() as (_, client):
        cell = client.send(DISPLAYS.replace("COUNT", str(count)))
        client.wait_for_words("the cell runs")
        with rig.proxy.cut():
            wait_until(lambda: rig.proxy.connections == 0, "the cut", 10)
            time.sleep(0.5)  # The far end of a connection that was reset is seen a moment later.
            [one] = rig.engine.kernels()
            done = rig.engine.root_of(one) / DONE.removeprefix("/")
            assert in_container(rig, "touch", BEGIN)[0] == 0
            wait_until(done.exists, "the displays", 90)
            waiting = files(rig)
        came = client.finish(cell, seconds=90)
        assert (came.reply["status"], came.result) == ("ok", "'the end'")
        assert client.run("6 * 7").result == "42"
        wait_until(lambda: files(rig) == [], "the journal's files to be gone", 10)
        return came, waiting


def numbers(cell: Cell) -> list[int]:
    return [int(message["content"]["data"]["text/plain"][:6]) for message in cell.of("display_data")]


def noticed(cell: Cell) -> int:
    """How many messages the cell says were dropped."""
    return sum(int(count.replace(",", "")) for count in NOTICE.findall(cell.text))


def test_what_has_no_room_in_memory_waits_in_a_file_that_others_cannot_read(rig: Rig, user: Laptop) -> None:
    cell, waiting = made_in_a_cut(rig, user, 12_000)
    assert numbers(cell) == list(range(12_000))
    assert {(mode, owner) for mode, owner, _ in waiting} == {("600", str(OWN_UID))}
    # What is in memory is not in the file: 8 MiB, of some 17.
    assert 5e6 < sum(int(size) for *_, size in waiting) < 20e6


def test_an_images_own_user_has_the_same_room(rig: Rig, user: Laptop) -> None:
    cell, waiting = made_in_a_cut(rig, user, 12_000, image=rig.user_image, user="image")
    assert numbers(cell) == list(range(12_000))
    assert {(mode, owner) for mode, owner, _ in waiting} == {("600", "1000")}


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"journal_size": "2m"}, id="the bound"),
        # No file may be larger than 1 MB: what a write meets is what it meets on a full disk.
        pytest.param({"ulimits": {"fsize": 1_000_000}}, id="a disk that takes no more"),
    ],
)
def test_what_is_dropped_is_said_to_the_message_and_reply_and_idle_come(
    rig: Rig, user: Laptop, keys: dict[str, object]
) -> None:
    cell, _ = made_in_a_cut(rig, user, 12_000, **keys)
    came = numbers(cell)
    assert 1000 < len(came) < 11_500
    assert came == sorted(set(came))
    assert came[-1] == 11_999  # The oldest go.
    assert len(came) + noticed(cell) == 12_000
