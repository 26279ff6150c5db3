"""What a kernel's container looks like: environment + cards -> the engine's create body; our labels, written and read.

Pure. Who talks to the engine: see host/engine.py.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from kernelbridge import values
from kernelbridge.config import Environment, Mount
from kernelbridge.errors import ConfigInvalid, Problem
from kernelbridge.host import requirements, volumes

NAME_PREFIX: Final = "kernelbridge-"
LABEL_PREFIX: Final = "kernelbridge."
# All containers of ours carry it, so it is what a listing asks the engine for.
KERNEL_LABEL: Final = LABEL_PREFIX + "kernel"
# Where the relay keeps its sockets and each launch's TMPDIR: memory, gone with the container.
RUN_FOLDER: Final = "/run/kernelbridge"
# Where it keeps output that nobody took yet: an anonymous volume, on disk, gone with the container.
JOURNAL_FOLDER: Final = "/var/lib/kernelbridge"
# One named volume per engine with a folder for each card, on which the relay that has the card holds a lock.
LOCKS_VOLUME: Final = "kernelbridge-locks"
# Of the container that makes such folders and is never started: of which kernel's start it was.
LOCKS_LABEL: Final = LABEL_PREFIX + "locks"
LOCKS_FOLDER: Final = "/var/lib/kernelbridge.locks"
HOST_USER: Final = "host"


@dataclass(frozen=True, kw_only=True)
class GpuAsk:
    """The cards that a container gets, by UUID, and how its engine is asked for them."""

    ids: tuple[str, ...] = ()
    way: requirements.Way = "gpus"


def name(kernel_id: str) -> str:
    """The container's name. The engine gives a name once, so two starts cannot make one kernel twice."""
    return NAME_PREFIX + kernel_id


def config_mark(config_path: object) -> str:
    """Stands for a config file's path in labels, where no text of the user's may be."""
    return hashlib.sha256(str(config_path).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What list, attach and clean know of a kernel; cannot change after the container was made."""

    kernel: str
    environment: str
    # Which installation made it: the machine's own id.
    owner: str
    # Which process started it: `pid@start time`.
    process: str = ""
    # For people: `login@machine`. Information, not protection.
    user: str = ""
    image: str = ""
    version: str = ""
    # See config_mark().
    config: str = ""
    # UUIDs joined by commas.
    gpus: str = ""
    # Seconds for which the container is kept after it ended by itself.
    keep_exited: str = ""

    def to_dict(self) -> dict[str, str]:
        """All our keys, the empty ones too: a key that we leave out could come from the image."""
        return {LABEL_PREFIX + field.name: getattr(self, field.name) for field in fields(self)}


def parse(container_name: str, labels: Mapping[str, str]) -> Labels | None:
    """Read our labels back; None if the container is not ours. Images and their copies carry labels too, not names."""
    kernel_id = labels.get(KERNEL_LABEL, "")
    keys = {field.name: LABEL_PREFIX + field.name for field in fields(Labels)}
    # The engine writes names with a slash in front.
    is_named_so = container_name.removeprefix("/") == name(kernel_id)
    if not kernel_id or not is_named_so or not labels.keys() >= set(keys.values()):
        return None
    return Labels(**{field_name: labels[key] for field_name, key in keys.items()})


def spec(
    *,
    environment: Environment,
    labels: Labels,
    command: Sequence[str],
    gpus: GpuAsk,
    host_home: str,
    host_user: tuple[int, int],
) -> dict[str, Any]:
    """The body of POST /containers/create. Raises: ConfigInvalid, if a mount with ~ turns out to be one we refuse."""
    body: dict[str, Any] = {
        "Image": environment.image,
        # The image's own entrypoint does not run: it could eat our stdin or print on our stream.
        # An empty list would do on Docker, but Podman takes it for none given.
        "Entrypoint": list(command[:1]),
        "Cmd": list(command[1:]),
        "Env": _env(environment, gpus),
        "Labels": {**environment.labels, **labels.to_dict()},
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "Volumes": {JOURNAL_FOLDER: {}},
        # An image's health check would exec into the container for ever.
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(environment, gpus, host_home),
    }
    if environment.user is not None:
        body["User"] = "{}:{}".format(*host_user) if environment.user == HOST_USER else environment.user
    if environment.workdir is not None:
        body["WorkingDir"] = environment.workdir
    return body


def _env(environment: Environment, gpus: GpuAsk) -> list[str]:
    """What the engine itself must know; all that comes from this machine goes to the relay, over stdin."""
    # The image knows no user of the host's number, so it has neither home nor name; torch.compile asks for both.
    homeless = {"HOME": "/tmp", "USER": "kernelbridge"} if environment.user == HOST_USER else {}  # noqa: S108
    # Always ours, and last: with nvidia as default runtime an image's own `all` would be all cards.
    # With CDI the engine itself puts the cards in, and NVIDIA's hook has nothing to add.
    cards = {"NVIDIA_VISIBLE_DEVICES": "void" if gpus.way == "cdi" else ",".join(gpus.ids) or "void"}
    if gpus.way == "runtime" and gpus.ids:
        cards["NVIDIA_DRIVER_CAPABILITIES"] = "compute,utility"
    return [f"{key}={text}" for key, text in sorted({**homeless, **cards}.items())]


def _host_config(environment: Environment, gpus: GpuAsk, host_home: str) -> dict[str, Any]:
    host_config: dict[str, Any] = {
        "Init": True,
        "PidsLimit": environment.pids_limit,
        "Ulimits": _ulimits(environment),
        "IpcMode": environment.ipc,
        "NetworkMode": environment.network,
        "Mounts": [_bind(mount, environment, host_home) for mount in environment.mounts],
        "Tmpfs": {RUN_FOLDER: "rw,nosuid,nodev,mode=1777,size=64m"},
        "CapDrop": ["ALL"],
        "CapAdd": list(environment.cap_add),
        "SecurityOpt": ["no-new-privileges"],
        "GroupAdd": list(environment.groups),
        # Start lines and fatal ones only; the relay keeps what the kernel prints.
        "LogConfig": {"Type": "local", "Config": {"max-size": "4m", "max-file": "2"}},
        "RestartPolicy": {"Name": "no"},
    }
    if environment.ipc != "host":
        host_config["ShmSize"] = environment.shm_size
    if environment.memory is not None:
        host_config["Memory"] = environment.memory
    if environment.cpus is not None:
        host_config["NanoCpus"] = round(environment.cpus * 1e9)
    if gpus.ids:
        host_config.update(requirements.device_request(gpus.way, gpus.ids))
        if environment.gpu_lock == "flock":
            # Read-only: nobody in there can take a lock's folder away from the others.
            host_config["Mounts"].append(volumes.mount(LOCKS_VOLUME, LOCKS_FOLDER, read_only=True))
    return host_config


def _ulimits(environment: Environment) -> list[dict[str, Any]]:
    limits = [
        {"Name": limit, "Soft": soft, "Hard": hard} for limit, (soft, hard) in sorted(environment.ulimits.items())
    ]
    # A core file holds every secret that was in memory, and the engine's own limit is often infinity.
    return limits if environment.core_dumps else [{"Name": "core", "Soft": 0, "Hard": 0}, *limits]


def host_path(source: str, host_home: str) -> str:
    """A mount's source with ~ replaced by the login's home on the host."""
    if source == "~" or source.startswith("~/"):
        return posixpath.normpath(posixpath.join(host_home, source[2:]))
    return source


def check_source(path: str, mount: Mount, environment: Environment) -> str:
    """Refuse what a mount's source turned out to be on the host; return it in its plain form. Raises: ConfigInvalid."""
    try:
        return values.check_mount_source(path)
    except ValueError as error:
        problem = Problem(key=f"environments.{environment.name}.mounts", sentence=str(error))
        raise ConfigInvalid(path=mount.source, problems=[problem]) from error


def _bind(mount: Mount, environment: Environment, host_home: str) -> dict[str, Any]:
    """A mount of type bind: where the source is missing the engine complains, and makes no folder of root's."""
    # Again, because only now is it known what ~ stands for.
    source = check_source(host_path(mount.source, host_home), mount, environment)
    return {"Type": "bind", "Source": source, "Target": mount.target, "ReadOnly": mount.read_only}
