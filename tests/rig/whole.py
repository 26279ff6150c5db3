"""All real things together, for the fixtures, the demo and the bench: started in order, removed in reverse."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.rig import images
from tests.rig.engine import EngineRig, missing_engine
from tests.rig.lab import DOCKER_GID, Lab, missing_rights
from tests.rig.laptop import Keys, Laptop, make_laptop
from tests.rig.proxy import TcpProxy
from tests.rig.slow_engine import SlowEngine
from tests.rig.sshd import SshRig, missing_sshd


@dataclass(frozen=True, kw_only=True)
class Rig:
    """The made machine `lab`, its engine and sshd, the line to it, the user's key."""

    lab: Lab
    engine: EngineRig
    sshd: SshRig
    proxy: TcpProxy
    keys: Keys

    # The images that the engine has.
    image = images.KERNEL
    bare_image = images.BARE
    nopython_image = images.NOPYTHON
    user_image = images.USER
    entrypoint_image = images.ENTRYPOINT
    old_image = images.OLD

    def laptop(self, folder: Path) -> Laptop:
        """A new user's home in an empty folder."""
        return make_laptop(folder, keys=self.keys, sshd=self.sshd, proxy_port=self.proxy.port)

    @contextmanager
    def slow_engine(self) -> Iterator[SlowEngine]:
        """A stand-in before the engine, whose answers can be delayed or refused; for `socket` of [hosts.lab]."""
        path = self.lab.path / f"slow-{secrets.token_hex(3)}.sock"
        slow = SlowEngine(path, engine=self.engine.socket, gid=DOCKER_GID)
        try:
            yield slow
        finally:
            slow.close()


def missing() -> str | None:
    """Why the real things cannot run here; None where they can."""
    return missing_rights() or missing_engine() or missing_sshd() or images.missing_images()


def nothing_may_skip() -> bool:
    """Whether a real thing that cannot run is a failure: in CI, or where the user says so."""
    return os.environ.get("CI") == "true" or os.environ.get("KERNELBRIDGE_REQUIRE_ALL") == "1"


@contextmanager
def open_rig() -> Iterator[Rig]:
    """Everything runs inside the `with`, and nothing of it is left behind it."""
    with ExitStack() as undo:
        keys = Keys()
        undo.callback(keys.close)
        lab = Lab()
        undo.callback(lab.close)
        engine = EngineRig(lab)
        undo.callback(engine.close)
        images.provide(engine)
        sshd = SshRig(lab, public_key=keys.public, gpu_path=engine.gpus.folder)
        undo.callback(sshd.close)
        proxy = TcpProxy(sshd.address, sshd.port)
        undo.callback(proxy.close)
        yield Rig(lab=lab, engine=engine, sshd=sshd, proxy=proxy, keys=keys)
