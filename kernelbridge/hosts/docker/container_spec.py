"""Write the body of POST /containers/create for an environment, its labels and its cards. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from kernelbridge.config import engine_options
from kernelbridge.config.container_paths import JOURNAL_FOLDER, LOCKS_FOLDER
from kernelbridge.config.schema import Environment, Mount
from kernelbridge.errors import ConfigInvalid, Problem
from kernelbridge.hosts import bootstrap, hardening
from kernelbridge.hosts.docker import gpu_access, volumes
from kernelbridge.hosts.docker.images.prepared_image import PreparedImage
from kernelbridge.hosts.docker.users import ContainerUser
from kernelbridge.hosts.labels import LOCKS_VOLUME, Labels
from kernelbridge.hosts.mounts import refused

# What of the driver NVIDIA's toolkit puts into a container; its words are NVIDIA's own, so none is a secret.
CAPABILITIES: Final = "NVIDIA_DRIVER_CAPABILITIES"
_CAPABILITY_WORDS: Final = re.compile(r"[a-z0-9]+(,[a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class GpuAsk:
    """The cards that a container gets, by UUID, and how its engine is asked for them."""

    ids: tuple[str, ...] = ()
    way: gpu_access.GpuWay = "gpus"
    # Whether the image itself says what of the driver it gets, by CAPABILITIES.
    image_has_capabilities: bool = False


def spec(
    *,
    environment: Environment,
    image: PreparedImage,
    labels: Labels,
    gpus: GpuAsk,
    mounts: Sequence[Mount],
    user: ContainerUser,
) -> dict[str, Any]:
    """Write the body of POST /containers/create. `mounts` are the environment's, as they are on the host.

    Raises: ConfigInvalid, for a runtime beside the one that gives GPUs, or a mount that cannot be labelled.
    """
    command = bootstrap.boot_argv(image.python)
    body: dict[str, Any] = {
        "Image": image.name,
        # The relay runs the image's own entrypoint: here it could eat our stdin or print on our stream.
        # An empty list would do on Docker, but Podman takes it for none given.
        "Entrypoint": command[:1],
        "Cmd": command[1:],
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
        "HostConfig": _host_config(environment, gpus, mounts, user),
    }
    if user.text:
        body["User"] = user.text
    if environment.workdir is not None:
        body["WorkingDir"] = environment.workdir
    if environment.hostname is not None:
        body["Hostname"] = environment.hostname
    if environment.stop_timeout is not None:
        body["StopTimeout"] = environment.stop_timeout
    return engine_options.merged(body, environment.engine_config)


def _env(environment: Environment, gpus: GpuAsk) -> list[str]:
    """Set what the engine itself must know; all that comes from this machine goes to the relay, over stdin."""
    # Always ours, and last: with nvidia as default runtime an image's own `all` would be all cards.
    # With CDI the engine itself puts the cards in, and NVIDIA's hook has nothing to add.
    cards = {"NVIDIA_VISIBLE_DEVICES": "void" if gpus.way == "cdi" else ",".join(gpus.ids) or "void"}
    if wanted := _capabilities(environment):
        cards[CAPABILITIES] = wanted
    elif gpus.way == "runtime" and gpus.ids and not gpus.image_has_capabilities:
        cards[CAPABILITIES] = "compute,utility"
    return [f"{key}={text}" for key, text in sorted(cards.items())]


def _capabilities(environment: Environment) -> str:
    """Return what the environment's own `env` asks for: the toolkit reads it before there is a kernel process."""
    wanted = environment.env.get(CAPABILITIES, "")
    return wanted if _CAPABILITY_WORDS.fullmatch(wanted) else ""


def _host_config(
    environment: Environment, gpus: GpuAsk, mounts: Sequence[Mount], user: ContainerUser
) -> dict[str, Any]:
    host_config: dict[str, Any] = {
        "Init": True,
        "PidsLimit": environment.pids_limit,
        "Ulimits": [
            {"Name": limit, "Soft": soft, "Hard": hard}
            for limit, (soft, hard) in hardening.ulimits(environment).items()
        ],
        "IpcMode": environment.ipc,
        "NetworkMode": environment.network,
        "Mounts": [
            *(_bind(mount) for mount in mounts if not mount.relabel),
            *(volumes.mount(one.source, one.target, read_only=one.read_only) for one in environment.volumes),
        ],
        "Tmpfs": hardening.memory_folders(environment, [mount.target for mount in (*mounts, *environment.volumes)]),
        "CapDrop": [hardening.DROPPED_CAPABILITIES],
        "CapAdd": list(environment.cap_add),
        "SecurityOpt": hardening.security_options(environment),
        "GroupAdd": list(dict.fromkeys([*user.groups, *environment.groups])),
        "LogConfig": hardening.log_config(),
        "RestartPolicy": {"Name": "no"},
    }
    host_config.update(_options(environment, mounts))
    if environment.ipc != "host":
        host_config["ShmSize"] = environment.shm_size
    if environment.memory is not None:
        # Without the second, an engine allows as much swap again: a slow death instead of a limit.
        host_config["Memory"] = host_config["MemorySwap"] = environment.memory
    if environment.cpus is not None:
        host_config["NanoCpus"] = round(environment.cpus * 1e9)
    if gpus.ids:
        has_capabilities = gpus.image_has_capabilities or bool(_capabilities(environment))
        if gpus.way == "runtime" and environment.container_runtime not in (None, "nvidia"):
            raise _two_runtimes(environment)
        host_config.update(gpu_access.device_request(gpus.way, gpus.ids, has_capabilities=has_capabilities))
        if environment.gpu_lock == "flock":
            # Read-only: nobody in there can take a lock's folder away from the others.
            host_config["Mounts"].append(volumes.mount(LOCKS_VOLUME, LOCKS_FOLDER, read_only=True))
    return host_config


def _two_runtimes(environment: Environment) -> ConfigInvalid:
    sentence = "does not go with GPUs where the engine gives them by the `nvidia` runtime: see `gpu_access` of the host"
    key = f"environments.{environment.name}.container_runtime"
    return ConfigInvalid(path=environment.name, problems=[Problem(key=key, sentence=sentence)])


def _options(environment: Environment, mounts: Sequence[Mount]) -> dict[str, Any]:
    """Return the options of the engine's that a container has only where they are written."""
    devices = [engine_options.parse_device(text) for text in environment.devices]
    written: dict[str, Any] = {
        "Devices": [
            {"PathOnHost": on_host, "PathInContainer": inside, "CgroupPermissions": rights}
            for on_host, inside, rights in devices
        ],
        "Dns": list(environment.dns),
        "ExtraHosts": list(environment.extra_hosts),
        "Sysctls": dict(environment.sysctls),
        "Runtime": environment.container_runtime,
        "ReadonlyRootfs": environment.read_only,
        "Binds": [_labelled(mount, environment) for mount in mounts if mount.relabel],
    }
    return {key: value for key, value in written.items() if value}


def _bind(mount: Mount) -> dict[str, Any]:
    """Write a mount of type bind: where the source is missing the engine complains, and makes no folder of root's."""
    return {"Type": "bind", "Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only}


def _labelled(mount: Mount, environment: Environment) -> str:
    """Write a mount that SELinux's label of the source is changed for, which no other form of the engine's can say."""
    if ":" in mount.source:
        raise refused(mount, environment, f"`{mount.relabel}` does not go with the colon in {mount.source}")
    return f"{mount.source}:{mount.target}:{'ro' if mount.read_only else 'rw'},{mount.relabel}"
