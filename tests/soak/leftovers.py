"""What is left when everybody has gone: containers, volumes, tickets, jobs, locks, sockets, folders, processes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import docker.errors
import psutil

from kernelbridge.hosts.labels import LOCKS_VOLUME
from tests.rig.daemon import RigError
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.whole import Rig

_WORDS = ("kernelbridge", "ipykernel", "/relay.sock")


def on_the_host(rig: Rig, slurm: SlurmRig | None, volumes: Iterable[str]) -> list[str]:
    """What is left there; `volumes` were there before."""
    found = [f"container {one.name} {one.status}" for one in rig.engine.kernels()]
    with rig.engine.client() as client:
        before = {*volumes, LOCKS_VOLUME}
        found += [f"volume {one.name}" for one in client.volumes.list() if one.name not in before]
        found += locks(rig, client)
    for process in rig.lab.processes():
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            # The rig's own folder and control group have that word in their name.
            if any(word in words.replace(rig.lab.path.name, "") for word in _WORDS) or "containerd-shim" in words:
                found.append(f"process {process.name()}: {words[:100]}")
    found += [f"ssh session {one.pid}" for one in rig.sshd.sessions()]
    found += [f"folder {path}" for path in (rig.lab.path / "tmp").glob("kernelbridge*")]
    return [*found, *(slurm.traces() if slurm is not None else [])]


def locks(rig: Rig, client: docker.DockerClient) -> list[str]:
    """Which cards' locks are held by somebody."""
    try:
        volume = client.volumes.get(LOCKS_VOLUME)
    except docker.errors.NotFound:
        return []
    folder = rig.engine.data / "volumes" / volume.name / "_data"
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() or path.is_dir():
            try:
                rig.lab.run(["flock", "--nonblock", str(path), "true"])
            except RigError:
                found.append(f"lock {path.relative_to(folder)}")
    return found


def on_a_laptop(laptop: Laptop) -> list[str]:
    """What is left of kernels in a user's folders: sockets, connection files, records."""
    folders = {
        "socket folder": laptop.home / "xdg" / "kernelbridge",
        "record": laptop.data_dir / "kernelbridge" / "kernels",
        "offer": laptop.data_dir / "kernels" / "kernelbridge.running",
    }
    found = [f"{what} {path}" for what, folder in folders.items() for path in sorted(folder.glob("*"))]
    found += [f"connection file {path}" for path in laptop.runtime_dir.glob("kernel*-*.json")]
    return found


def processes_of(laptops: Iterable[Laptop]) -> list[str]:
    """Which processes of these users run here."""
    homes = {f"HOME={laptop.home}".encode() for laptop in laptops}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if homes & set(Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")):
                found.append(f"process {process.pid}: {' '.join(process.cmdline())[:120]}")
    return found
