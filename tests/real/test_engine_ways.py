"""Each way to an engine over a real sshd, and each way in which there is none. What it does: test_engine.py."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

import pytest

from kernelbridge import errors
from kernelbridge.config.schema import Host
from kernelbridge.hosts.docker.engine import Engine, Missing, Running, open_engine
from kernelbridge.hosts.transport.local import open_local
from kernelbridge.hosts.transport.ssh import open_link
from tests.real.test_engine import LAB, MIB, NAME, Digest, engine_of, spec
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig


async def echo(engine: Engine, rig: Rig) -> None:
    """The least that a kernel needs works over this way."""
    await engine.create(NAME, spec(rig))
    await engine.start(NAME)
    digest, sent = Digest(), os.urandom(5 * MIB)
    stream = await engine.exec_stream(NAME, ["cat"], digest)
    stream.write(sent)
    stream.write_eof()
    await asyncio.wait_for(digest.ended.wait(), 30)
    assert (digest.failure, digest.hash.digest()) == (None, hashlib.sha256(sent).digest())
    polls = [engine.state(NAME) for _ in range(12)]
    assert all(isinstance(state, Running) for state in await asyncio.gather(*polls))
    await engine.remove(NAME)


async def test_where_forwarding_is_forbidden_the_docker_command_is_the_way(rig: Rig, bridge_env: Laptop) -> None:
    for forbidden in (rig.sshd.streamlocal_forbidden, rig.sshd.forwarding_forbidden):
        with forbidden():
            async with engine_of() as engine:
                assert engine.about.transport == "docker system dial-stdio"
                await echo(engine, rig)


async def test_where_only_sudo_is_granted_it_is_used(rig: Rig, bridge_env: Laptop) -> None:
    async with engine_of("lab-sudo") as engine:
        assert engine.about.transport == "sudo -n docker system dial-stdio"
        await echo(engine, rig)


async def test_without_the_docker_command_forbidden_forwarding_is_told(rig: Rig, bridge_env: Laptop) -> None:
    with rig.lab.without_command("docker"), rig.sshd.streamlocal_forbidden():
        async with await open_link(LAB) as link:
            with pytest.raises(errors.ForwardingForbidden, match="sshd forbids forwarding"):
                await open_engine(link, LAB)


async def refusal(alias: str = "lab", socket: str | None = None) -> errors.KernelBridgeError:
    with pytest.raises(errors.KernelBridgeError) as caught:
        async with engine_of(alias, socket):
            pass
    return caught.value


async def test_another_login_is_denied_by_name(rig: Rig, bridge_env: Laptop) -> None:
    exc = await refusal("lab-other")
    assert type(exc) is errors.EngineDenied
    assert exc.sentence == "lab: user kbother may not use Docker (/var/run/docker.sock)."


async def test_a_denied_socket_that_was_named_is_told_by_its_name(rig: Rig, bridge_env: Laptop) -> None:
    exc = await refusal("lab-other", rig.engine.host_socket)
    assert type(exc) is errors.EngineDenied
    assert rig.engine.host_socket in exc.sentence


async def test_an_engine_that_is_down_is_told_from_one_that_is_not_there(rig: Rig, bridge_env: Laptop) -> None:
    missing = await refusal(socket="/nowhere/docker.sock")
    async with await open_link(LAB) as link:
        engine = await open_engine(link, LAB)
        with rig.engine.stopped():
            with pytest.raises(errors.EngineDown):
                await engine.state(NAME)
            with pytest.raises(errors.EngineDown):
                await open_engine(link, LAB)
            down = await refusal()
        assert await engine.state(NAME) == Missing(), "the same engine object serves again"
    assert type(down) is errors.EngineDown
    assert down.sentence == "lab: the Docker engine at /var/run/docker.sock does not answer."
    assert type(missing) is errors.EngineMissing
    assert "/nowhere/docker.sock" in missing.sentence


async def test_an_engine_that_comes_up_after_the_login_is_found(rig: Rig, bridge_env: Laptop) -> None:
    with rig.engine.stopped():
        link = await open_link(LAB)
        with pytest.raises(errors.EngineDown):
            await open_engine(link, LAB)
    async with link, await open_engine(link, LAB) as engine:
        assert await engine.state(NAME) == Missing()


async def test_a_rootless_engine_is_found_by_itself(rig: Rig, bridge_env: Laptop) -> None:
    with rig.engine.only_rootless() as path:
        async with engine_of("lab-rootless") as engine:
            assert engine.about.socket == path
            assert await engine.image(rig.image) is not None


async def test_this_machines_own_engine_needs_no_ssh(rig: Rig) -> None:
    host = Host(name="here", ssh="local", socket=str(rig.engine.socket))
    link = await open_local("here")
    async with await open_engine(link, host) as engine:
        await echo(engine, rig)
    await link.aclose()


class OldEngine(UnixStreamServer):
    """A stand-in that answers GET /version as Docker 18.09 did, and nothing else."""

    def __init__(self, path: Path, answer: bytes) -> None:
        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                return

            def address_string(self) -> str:
                return "unix"

        super().__init__(str(path), Answers)


@contextmanager
def stand_in(path: Path, answer: bytes) -> Iterator[None]:
    with OldEngine(path, answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield
        server.shutdown()
        thread.join(5)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b'{"Version": "18.09.9", "ApiVersion": "1.39", "MinAPIVersion": "1.12"}', errors.EngineTooOld),
        (b'{"hello": "world"}', errors.EngineFailed),
        (b"<html>", errors.EngineFailed),
    ],
)
async def test_what_is_no_engine_for_us_is_told(tmp_path: Path, answer: bytes, kind: Callable[..., Exception]) -> None:
    path = tmp_path / "old.sock"
    with stand_in(path, answer):
        link = await open_local("here")
        with pytest.raises(errors.KernelBridgeError) as caught:
            await open_engine(link, Host(name="here", ssh="local", socket=str(path)))
        await link.aclose()
    assert type(caught.value) is kind
    if kind is errors.EngineTooOld:
        assert caught.value.sentence == "here: its Docker engine is too old (API 1.39; 1.40 is needed)."
