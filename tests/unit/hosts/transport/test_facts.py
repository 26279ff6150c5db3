"""hosts/transport/facts.py: what a host says right after login is read, and nothing that is cut."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelbridge.hosts.transport.facts import FACTS_SCRIPT, HostFacts, SocketFacts, parse_facts, parse_socket

FACTS = """\
kernelbridge facts 1
uid 1001
gid 100
user ada
home /home/ada lovelace
groups 100 27 44
socket yes no /var/run/docker.sock
socket yes yes /run/user/1001/docker.sock
socket no no /run/user/1001/docker.sock
docker yes
engine unix:///run/user/1001/docker.sock
end
"""


def test_facts_are_read() -> None:
    facts = parse_facts(FACTS)
    assert (facts.user, facts.uid, facts.gid, facts.home) == ("ada", 1001, 100, "/home/ada lovelace")
    assert facts.engine == "unix:///run/user/1001/docker.sock"
    assert facts.groups == (100, 27, 44)
    assert (facts.has_docker_command, facts.may_sudo_docker) == (True, False)
    assert [socket.path for socket in facts.sockets] == ["/var/run/docker.sock", "/run/user/1001/docker.sock"]
    assert [socket.path for socket in facts.usable_sockets] == ["/run/user/1001/docker.sock"]


@pytest.mark.parametrize("answer", ["", "hi\n" + FACTS, FACTS.replace("uid 1001\n", ""), FACTS[:-4]])
def test_facts_that_are_cut_are_refused(answer: str) -> None:
    with pytest.raises(ValueError, match=r"is cut|lacks"):
        parse_facts(answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("kernelbridge socket yes yes yes\n", SocketFacts(path="/s", exists=True, is_writable=True, is_listening=True)),
        ("hi\nkernelbridge socket yes no unknown\n", SocketFacts(path="/s", exists=True, is_writable=False)),
        ("", SocketFacts(path="/s", exists=False, is_writable=False)),
        ("kernelbridge socket yes\n", SocketFacts(path="/s", exists=False, is_writable=False)),
    ],
)
def test_a_socket_is_what_the_host_says_of_it(answer: str, expected: SocketFacts) -> None:
    assert parse_socket("/s", answer) == expected


# -- the script itself


def ask(home: Path, **env: str) -> HostFacts:
    """Run the script here, with another home."""
    whole = {"HOME": str(home), "PATH": "/usr/bin:/bin", **env}
    ended = subprocess.run(["sh", "-c", FACTS_SCRIPT], capture_output=True, text=True, check=True, env=whole)
    return parse_facts(ended.stdout)


def make_socket(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    return str(path)


def write_context(docker: Path, name: str, host: str, *, indent: str | None = None) -> None:
    meta = docker / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    endpoints = {"docker": {"Host": host, "SkipTLSVerify": False}, "kubernetes": {"Host": "https://10.0.0.1"}}
    meta.write_text(json.dumps({"Name": name, "Metadata": {"Description": "x"}, "Endpoints": endpoints}, indent=indent))


@pytest.fixture
def home() -> Iterator[Path]:
    """Short: the path of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="kbt-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    "place",
    [
        *(".docker/run/docker.sock", ".docker/desktop/docker.sock", ".orbstack/run/docker.sock", ".rd/docker.sock"),
        *(".colima/default/docker.sock", ".colima/docker.sock", ".lima/docker/sock/docker.sock"),
    ],
)
def test_an_engine_is_looked_for_in_the_usual_places_of_a_home(home: Path, place: str) -> None:
    path = make_socket(home / place)
    found = next(one for one in ask(home).sockets if one.path == path)
    assert (found.exists, found.is_writable) == (True, True)


def test_a_rootless_engine_is_found_in_the_runtime_folder(home: Path) -> None:
    docker, podman = make_socket(home / "run/docker.sock"), make_socket(home / "run/podman/podman.sock")
    usable = [one.path for one in ask(home, XDG_RUNTIME_DIR=str(home / "run")).usable_sockets]
    assert [path for path in usable if path.startswith(str(home))] == [docker, podman]


@pytest.mark.parametrize("indent", [None, "\t"], ids=["as docker writes it", "as an editor does"])
def test_the_current_context_comes_first(home: Path, indent: str | None) -> None:
    docker = home / ".docker"
    path = make_socket(home / "elsewhere.sock")
    make_socket(docker / "run/docker.sock")
    write_context(docker, "mine", f"unix://{path}", indent=indent)
    write_context(docker, "mine2", "unix:///wrong")
    config = {"auths": {"x": {"auth": "c2VjcmV0"}}, "currentContext": "mine", "credsStore": "y"}
    (docker / "config.json").write_text(json.dumps(config, indent=indent))
    facts = ask(home)
    assert (facts.engine, facts.sockets[0].path) == (f"unix://{path}", path)
    assert ask(home, DOCKER_CONTEXT="mine2").engine == "unix:///wrong"
    assert ask(home, DOCKER_CONTEXT="default").engine == ""
    assert ask(home, DOCKER_HOST="tcp://10.0.0.7:2375").engine == "tcp://10.0.0.7:2375"
    moved = home / "moved"
    docker.rename(moved)
    assert ask(home).engine == ""
    assert ask(home, DOCKER_CONFIG=str(moved)).engine == f"unix://{path}"


def test_no_password_of_dockers_config_is_printed(home: Path) -> None:
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text('{"auths": {"x": {"auth": "c2VjcmV0"}}, "currentContext": "gone"}')
    whole = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(["sh", "-c", FACTS_SCRIPT], capture_output=True, text=True, check=True, env=whole)
    assert "c2VjcmV0" not in ended.stdout + ended.stderr
    assert parse_facts(ended.stdout).engine == ""
