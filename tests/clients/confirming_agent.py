"""An ssh agent that holds the user's only key and asks before each use, as for a key that wants a touch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.rig.daemon import run, wait_until
from tests.rig.laptop import Laptop


class ConfirmingAgent:
    """A real ssh-agent; `allow` and `forbid` say what its user does when asked."""

    def __init__(self, laptop: Laptop) -> None:
        self.socket = laptop.home / "agent.sock"
        self._allowed = laptop.home / "allowed"
        self.asked = laptop.home / "asked"
        asks = laptop.home / "ask"
        asks.write_text(f"#!/bin/sh\ntouch {self.asked}\nwhile ! [ -e {self._allowed} ]; do sleep 0.05; done\n")
        asks.chmod(0o700)
        env = {**os.environ, "SSH_ASKPASS": str(asks), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
        self.process = subprocess.Popen(["ssh-agent", "-D", "-a", str(self.socket)], env=env, stdout=subprocess.DEVNULL)
        wait_until(self.socket.exists, "the agent's socket", 10)
        key = laptop.ssh_folder / "id_ed25519"
        run(["ssh-add", "-q", "-c", str(key)], env={**os.environ, "SSH_AUTH_SOCK": str(self.socket)})
        key.unlink()  # Its public half says which of the agent's it is.

    def allow(self) -> None:
        """The user confirms every use from now on."""
        self._allowed.touch()

    def forbid(self) -> None:
        """The user is not there."""
        self._allowed.unlink(missing_ok=True)
        self.asked.unlink(missing_ok=True)

    def close(self) -> None:
        """End it, whatever it waits for."""
        self.allow()
        self.process.terminate()
        self.process.wait(10)


@contextmanager
def confirming_agent(laptop: Laptop) -> Iterator[ConfirmingAgent]:
    """The agent of a user, for all hosts."""
    agent = ConfirmingAgent(laptop)
    laptop.configure_ssh("Host *", f"  IdentityAgent {agent.socket}")
    try:
        yield agent
    finally:
        agent.close()
