"""hosts/docker/users.py: the kernel is the login wherever that can be, with a name and a home of its own."""

from __future__ import annotations

import io
import tarfile

import pytest

from kernelbridge.config.schema import Environment
from kernelbridge.hosts.docker.users import ContainerUser, choose, enter
from kernelbridge.hosts.transport.facts import HostFacts

LOGIN = ContainerUser(text="1000:100", groups=("27", "44"), name="ada")


def facts(uid: int = 1000, gid: int = 100) -> HostFacts:
    return HostFacts(
        user="ada",
        uid=uid,
        gid=gid,
        home="/home/ada",
        sockets=(),
        has_docker_command=True,
        may_sudo_docker=False,
        groups=(100, 44, 27, 0, 1 << 31),
    )


@pytest.mark.parametrize(
    ("user", "options", "login", "chosen"),
    [
        ("host", [], facts(), LOGIN),
        ("host", None, facts(), LOGIN),
        ("host", ["name=seccomp,profile=default", "name=cgroupns"], facts(), LOGIN),
        # Its other groups are root's own.
        ("host", [], facts(0, 0), ContainerUser(text="0:0", name="ada")),
        ("host", ["name=seccomp", "name=rootless"], facts(), ContainerUser(text="0:0")),
        ("image", ["name=userns"], facts(), ContainerUser()),
        ("1:2", ["name=rootless"], facts(), ContainerUser(text="1:2")),
        ("jovyan", [], facts(), ContainerUser(text="jovyan")),
    ],
)
def test_the_user_is_the_login_unless_the_environment_names_another(
    user: str, options: list[str] | None, login: HostFacts, chosen: ContainerUser
) -> None:
    environment = Environment(name="torch", image="torch:2", user=user)
    assert choose(environment, login, {"SecurityOptions": options}) == chosen


@pytest.mark.parametrize(
    ("options", "login", "why"),
    [(["name=userns"], facts(), "`userns-remap`"), ([], facts(1 << 31), "as high as yours")],
)
def test_where_the_login_has_no_number_in_a_container_it_is_the_images_user_and_that_is_told(
    options: list[str], login: HostFacts, why: str
) -> None:
    chosen = choose(Environment(name="torch", image="torch:2"), login, {"SecurityOptions": options})
    assert (chosen.text, chosen.groups, why in chosen.trouble) == ("", (), True)


ROOT = "root:x:0:0:root:/root:/bin/bash\n"
LINE = "kernelbridge:x:1234:5:kernelbridge:/home/kernelbridge:/bin/sh\n"


def archive(text: bytes, *, kind: bytes = tarfile.REGTYPE) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        file = tarfile.TarInfo("passwd")
        file.type, file.mode, file.uid, file.size = kind, 0o644, 7, len(text) if kind == tarfile.REGTYPE else 0
        tar.addfile(file, io.BytesIO(text))
    return written.getvalue()


@pytest.mark.parametrize(
    ("before", "user", "name", "after"),
    [
        (ROOT, "1234:5", "", ROOT + LINE),
        (ROOT.strip(), "1234:5", "", ROOT + LINE),
        ("", "1234:5", "", LINE),
        (ROOT, "1234", "", ROOT + LINE.replace(":5:", ":0:")),
        (ROOT, "1234:5", "ada", ROOT + LINE.replace("kernelbridge", "ada")),
        # A name that another user has, and one that no list takes.
        (ROOT, "1234:5", "root", ROOT + LINE),
        (ROOT, "1234:5", "LAB\\ada", ROOT + LINE),
        (ROOT, "1234:5", "a:d", ROOT + LINE),
        (ROOT, "1234:5", "..", ROOT + LINE),
    ],
)
def test_an_unknown_user_is_the_last_of_the_list_and_has_a_home(before: str, user: str, name: str, after: str) -> None:
    written = enter(archive(before.encode()), user, name)
    assert written is not None
    with tarfile.open(fileobj=io.BytesIO(written)) as tar:
        file, home = tar.getmembers()
        content = tar.extractfile(file)
        assert content is not None
        assert content.read().decode() == after
    assert (file.name, file.mode, file.uid) == ("etc/passwd", 0o644, 7)
    shown = after.splitlines()[-1].split(":")[5]
    assert (f"/{home.name}", home.isdir(), home.mode, home.uid) == (shown, True, 0o700, 1234)
    assert home.gid == int(user.partition(":")[2] or 0)


def test_names_in_any_spelling_stay_as_they_are() -> None:
    written = enter(archive(b"j\xe9r\xf4me:x:1:1::/:/bin/sh\n"), "1234:5")
    assert written is not None
    assert b"j\xe9r\xf4me:x:1:1::/:/bin/sh\nkernelbridge:x:1234:5:" in written


@pytest.mark.parametrize(
    ("given", "user"),
    [
        (archive(b"ann:x:1234:1::/home/ann:/bin/sh\n"), "1234"),
        (archive(LINE.encode()), "99"),
        (archive(b"", kind=tarfile.SYMTYPE), "1234"),
        (archive(b"", kind=tarfile.DIRTYPE), "1234"),
        (b"", "1234"),
        (b"no archive" * 100, "1234"),
        (archive(ROOT.encode())[:300], "1234"),
        (archive(ROOT.encode()), "ann"),
        (archive(ROOT.encode()), "1234:staff"),
        (archive(ROOT.encode()), ""),
    ],
)
def test_nothing_is_written_for_a_user_who_is_there_or_into_what_is_no_plain_file(given: bytes, user: str) -> None:
    assert enter(given, user) is None
