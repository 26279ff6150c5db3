"""Check what a user adds to the engine's create body (`engine_config`, `devices`, `security_opt`) against our promises.

Pure. The keys are those of POST /containers/create, API 1.40 to 1.47.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from kernelbridge.config import fields

# A key, with dots between its parts, and what is wrong with it.
Found = tuple[str, str]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALLOW: Final = "; only with `allow_unsafe = true`"
_GPUS: Final = "GPUs are leased: write `gpus`"
_HOST: Final = "HostConfig"
_TOP_KEYS: Final = _names(
    "ArgsEscaped AttachStderr AttachStdin AttachStdout Cmd Domainname Entrypoint Env ExposedPorts Healthcheck"
    " HostConfig Hostname Image Labels MacAddress Name NetworkDisabled NetworkingConfig OnBuild OpenStdin Shell"
    " StdinOnce StopSignal StopTimeout Tty User Volumes WorkingDir"
)
_HOST_KEYS: Final = _names(
    "Annotations AutoRemove Binds BlkioDeviceReadBps BlkioDeviceReadIOps BlkioDeviceWriteBps BlkioDeviceWriteIOps"
    " BlkioWeight BlkioWeightDevice CapAdd CapDrop CgroupParent CgroupnsMode ConsoleSize ContainerIDFile CpuCount"
    " CpuPercent CpuPeriod CpuQuota CpuRealtimePeriod CpuRealtimeRuntime CpuShares CpusetCpus CpusetMems"
    " DeviceCgroupRules DeviceRequests Devices Dns DnsOptions DnsSearch ExtraHosts GroupAdd IOMaximumBandwidth"
    " IOMaximumIOps Init IpcMode Isolation KernelMemory KernelMemoryTCP Links LogConfig MaskedPaths Memory"
    " MemoryReservation MemorySwap MemorySwappiness Mounts NanoCpus NetworkMode OomKillDisable OomScoreAdj PidMode"
    " PidsLimit PortBindings Privileged PublishAllPorts ReadonlyPaths ReadonlyRootfs RestartPolicy Runtime SecurityOpt"
    " ShmSize StorageOpt Sysctls Tmpfs UTSMode Ulimits UsernsMode VolumeDriver VolumesFrom"
)
# What makes a container a kernel's; nothing allows these.
_OURS: Final = _names(
    "ArgsEscaped AttachStderr AttachStdin AttachStdout Cmd Entrypoint Healthcheck Name OnBuild OpenStdin Shell"
    " StdinOnce StopSignal Tty HostConfig.AutoRemove HostConfig.CapDrop HostConfig.ConsoleSize"
    " HostConfig.ContainerIDFile HostConfig.Init HostConfig.LogConfig HostConfig.RestartPolicy"
)
# What has a key of its own, which is checked there.
_OWN_KEYS: Final = {
    "Env": "`env`, `pass_env` or `secrets`, which `docker inspect` does not show",
    "Hostname": "`hostname`",
    "Image": "`image`",
    "Labels": "`labels`",
    "NetworkDisabled": '`network = "none"`',
    "StopTimeout": "`stop_timeout`",
    "User": "`user`",
    "WorkingDir": "`workdir`",
    "HostConfig.CapAdd": "`cap_add`",
    "HostConfig.Devices": "`devices`",
    "HostConfig.Dns": "`dns`",
    "HostConfig.ExtraHosts": "`extra_hosts`",
    "HostConfig.GroupAdd": "`groups`",
    "HostConfig.IpcMode": "`ipc`",
    "HostConfig.Memory": "`memory`",
    "HostConfig.NanoCpus": "`cpus`",
    "HostConfig.NetworkMode": "`network`",
    "HostConfig.PidsLimit": "`pids_limit`",
    "HostConfig.ReadonlyRootfs": "`read_only`",
    "HostConfig.Runtime": "`container_runtime`",
    "HostConfig.SecurityOpt": "`security_opt`",
    "HostConfig.ShmSize": "`shm_size`",
    "HostConfig.Sysctls": "`sysctls`",
    "HostConfig.Ulimits": "`ulimits`",
}
# Disks and memory of the host: whoever has them reads and writes past every other protection.
_HOST_DEVICE: Final = re.compile(
    r"/dev(/(mem|kmem|port|mapper|disk|block|nvme|[shv]d|xvd|dm-|md|loop|nbd|zvol|mmcblk|sr|sg)([0-9a-z/-].*)?)?"
)
_LOOPBACK: Final = ("127.0.0.1", "::1")


def engine_config_problems(written: Mapping[str, Any], *, network: str, allows_unsafe: bool) -> Iterator[Found]:
    """Yield each key of `engine_config` that kernelbridge, or the engine, would not take."""
    keys = [(key, value) for key, value in written.items() if key != _HOST]
    host_config = written.get(_HOST, {})
    if isinstance(host_config, Mapping):
        keys += [(f"{_HOST}.{key}", value) for key, value in host_config.items()]
    else:
        yield _HOST, "must be a table"
    for key, value in keys:
        sentence = _refused(key, value, network) or ("" if allows_unsafe else _unsafe(key, value))
        if sentence:
            yield key, sentence


def _refused(key: str, value: Any, network: str) -> str:
    """Say why a key cannot be written here, whatever `allow_unsafe` says; empty if it can."""
    table, name = (_HOST_KEYS, key.removeprefix(f"{_HOST}.")) if key.startswith(f"{_HOST}.") else (_TOP_KEYS, key)
    if name not in table:
        return _unknown(name, table is _HOST_KEYS)
    if key in _OURS:
        return "is set by kernelbridge itself"
    if key in _OWN_KEYS:
        return f"write {_OWN_KEYS[key]} of the environment"
    if key == "HostConfig.DeviceRequests" and re.search("gpu|nvidia", json.dumps(value), re.IGNORECASE):
        return _GPUS
    if key == "NetworkingConfig" and not _names_only(value, network):
        return f"may describe the network of `network` ({network}) alone"
    if key in ("Volumes", "HostConfig.Tmpfs"):
        return _first_refusal(fields.check_mount_target, value) if isinstance(value, Mapping) else "must be a table"
    if key in ("HostConfig.Mounts", "HostConfig.Binds"):
        return _bad_mount(value)
    return ""


def _unknown(name: str, is_host_key: bool) -> str:
    """Say that the engine has no such key there, and which it may be, and where."""
    here, there = (_HOST_KEYS, _TOP_KEYS) if is_host_key else (_TOP_KEYS, _HOST_KEYS)
    by_lower = {known.lower(): known for table in (there, here) for known in sorted(table)}
    near = difflib.get_close_matches(name.replace("_", "").lower(), list(by_lower), n=1, cutoff=0.7)
    if not near:
        return "the engine has no such key"
    known = by_lower[near[0]]
    where = "" if known in here else f" outside of `{_HOST}`" if is_host_key else f" of `{_HOST}`"
    return f"the engine has no such key; did you mean `{known}`{where}?"


def _names_only(value: Any, network: str) -> bool:
    endpoints = value.get("EndpointsConfig", {}) if isinstance(value, Mapping) else None
    return isinstance(endpoints, Mapping) and set(endpoints) <= {network}


def _first_refusal(check: Callable[[str], str], paths: Mapping[str, Any] | Sequence[str]) -> str:
    for path in paths:
        try:
            check(path)
        except ValueError as error:
            return str(error)
    return ""


def _mount_rows(value: Any) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return source, target and all else of each row of Mounts or Binds."""
    rows = []
    for row in value if isinstance(value, list | tuple) else ():
        if isinstance(row, Mapping):
            rows.append((str(row.get("Source", "")), str(row.get("Target", "")), row))
        else:
            source, _, rest = str(row).partition(":")
            rows.append((source, rest.partition(":")[0], {"Type": "bind" if source.startswith("/") else "volume"}))
    return rows


def _bad_mount(value: Any) -> str:
    """Say which place is not free, or which volume is kernelbridge's own; empty if none."""
    rows = _mount_rows(value)
    volumes = [source for source, _, _ in rows if fields.is_volume(source)]
    return _first_refusal(fields.check_mount_target, [target for _, target, _ in rows]) or _first_refusal(
        fields.check_source, volumes
    )


def _unsafe(key: str, value: Any) -> str:
    """Say which promise a key would break; empty if none."""
    why = _UNSAFE[key](value) if key in _UNSAFE else ""
    return why + _ALLOW if why else ""


def _always(why: str) -> Callable[[Any], str]:
    return lambda value: why if value else ""


def _hosts_own(what: str) -> Callable[[Any], str]:
    return lambda value: f"gives the kernel {what}" if value == "host" or str(value).startswith("container:") else ""


def _shares_host(value: Any) -> str:
    """Whether a mount is a folder of the host, also one that a volume's options name."""
    for source, _, row in _mount_rows(value):
        volume = json.dumps(row.get("VolumeOptions", {}))
        if row.get("Type") == "bind" or source.startswith("/") or re.search(r'"device": ?"/', volume):
            return "mounts a folder of the host unchecked; write `mounts`"
    return ""


def _opens_port(value: Any) -> str:
    rows = [row for listed in value.values() for row in listed or [{}]] if isinstance(value, Mapping) else [{}]
    is_local = all(isinstance(row, Mapping) and row.get("HostIp") in _LOOPBACK for row in rows)
    return "" if is_local else 'opens a port of the host to others than its logins (`HostIp = "127.0.0.1"` does not)'


_UNSAFE: Final[Mapping[str, Callable[[Any], str]]] = {
    "HostConfig.Privileged": _always("makes the kernel as good as root on the host, with all its GPUs"),
    "HostConfig.PidMode": _hosts_own("the processes of others"),
    "HostConfig.UsernsMode": _hosts_own("the host's own user numbers"),
    "HostConfig.UTSMode": _hosts_own("the host's own name"),
    "HostConfig.CgroupnsMode": _hosts_own("sight of the host's cgroups"),
    "HostConfig.DeviceCgroupRules": _always("opens devices that no kernel has leased"),
    "HostConfig.MaskedPaths": lambda value: "shows the kernel what engines hide of the host in /proc and /sys",
    "HostConfig.ReadonlyPaths": lambda value: "lets the kernel write to /proc and /sys",
    "HostConfig.VolumesFrom": _always("mounts what another container has, unchecked"),
    "HostConfig.PublishAllPorts": _always("opens ports of the host"),
    "HostConfig.PortBindings": _opens_port,
    "HostConfig.Mounts": _shares_host,
    "HostConfig.Binds": _shares_host,
}


def parse_device(text: str) -> tuple[str, str, str]:
    """Take "HOST[:CONTAINER][:rwm]" apart: path on the host, path in the container, rights. Raises ValueError."""
    match = re.fullmatch(r"(/dev(?:/[^:]*)?)(?::(/[^:]+))?(?::([rwm]{1,3}))?", text)
    if match is None or ".." in text.split("/"):
        raise ValueError(f'{text!r} must be "/dev/NAME", "/dev/NAME:/dev/NAME" or "/dev/NAME:/dev/NAME:rw"')
    if re.match(r"/dev/nvidia", match[1]):
        raise ValueError(f"{match[1]} may not be named here: {_GPUS}")
    return match[1], match[2] or match[1], match[3] or "rwm"


def check_device(text: str) -> str:
    """Refuse what is not a device of the host, or is a GPU."""
    parse_device(text)
    return text


def check_security_opt(text: str) -> str:
    """Refuse what is not an option of the engine."""
    name, mark, value = text.replace(":", "=", 1).partition("=")
    if name not in ("no-new-privileges", "seccomp", "apparmor", "label") or (name != "no-new-privileges" and not mark):
        raise ValueError(f'{text!r} must be "seccomp=...", "apparmor=PROFILE", "label=..." or "no-new-privileges=..."')
    if name == "seccomp" and value != "unconfined" and not value.startswith("{"):
        raise ValueError("the engine takes a seccomp profile as its JSON text, or `unconfined`; not as a path")
    return text


def unsafe_options(devices: Sequence[str], security_opt: Sequence[str]) -> Iterator[Found]:
    """Yield what of these two keys breaks a promise, by key and index."""
    for index, text in enumerate(devices):
        if _HOST_DEVICE.fullmatch(text.partition(":")[0].rstrip("/")):
            yield f"devices.{index}", f"{text} is memory or a disk of the host itself{_ALLOW}"
    for index, text in enumerate(security_opt):
        name, _, value = text.replace(":", "=", 1).partition("=")
        if value in ("unconfined", "disable") or (name == "no-new-privileges" and value.lower() in ("false", "0", "f")):
            yield f"security_opt.{index}", f"{text} takes a protection of the host away{_ALLOW}"


def merged(ours: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Return our body with what is added: tables are merged, lists are joined, of all else the added value counts."""
    body = dict(ours)
    for key, value in added.items():
        mine = body.get(key)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            body[key] = merged(mine, value)
        elif isinstance(mine, list) and isinstance(value, list):
            body[key] = [*mine, *value]
        else:
            body[key] = value
    return body


def check_json(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse what JSON cannot say: dates, and numbers that are none."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError("may have texts, numbers, true, false, lists and tables only") from error
    return value
