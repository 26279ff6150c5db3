"""Translate the engine's refusals into errors of ours: what it said, whole, and what helps against just that. Pure.

One table for containers and one for pulls, the first row that fits counts. The words are those of Docker, containerd,
runc, crun, Podman, NVIDIA's toolkit and registries, from their sources and from what people report; where no row fits,
no cause is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kernelbridge.errors import (
    ContainerFailed,
    DriverTooOld,
    EngineFailed,
    GpuToolkitMissing,
    GpuWayMissing,
    ImageMissing,
    ImagePullFailed,
    ImageUnusable,
    KernelBridgeError,
    MountMissing,
    UlimitRefused,
)
from kernelbridge.hosts.docker.gpu_access import CDI_BY_UUID
from kernelbridge.hosts.docker.reasons import shortened, told


@dataclass(frozen=True, kw_only=True)
class _Refusal:
    """One refusal, and where it came from."""

    host: str
    image: str
    message: str
    # What the row's pattern found.
    found: re.Match[str]

    @property
    def reason(self) -> str:
        """Return all that was said."""
        return told(self.message)

    def filled(self, text: str) -> str:
        """Put host and image into a remedy."""
        return text.replace("HOST", self.host).replace("IMAGE", self.image)


_Maker = Callable[[_Refusal], KernelBridgeError]


def container_error(*, host: str, image: str, message: str) -> KernelBridgeError:
    """Say why a container could not be created or started."""
    return _first(_CONTAINER, host, image, message) or ContainerFailed(host=host, image=image, reason=told(message))


def pull_error(*, host: str, image: str, message: str) -> KernelBridgeError:
    """Say why an image could not be pulled."""
    return _first(_PULL, host, image, message) or ImagePullFailed(host=host, image=image, reason=told(message))


def _first(rows: tuple[tuple[str, _Maker], ...], host: str, image: str, message: str) -> KernelBridgeError | None:
    line = " ".join(shortened(message).split())
    for pattern, make in rows:
        if found := re.search(pattern, line, re.IGNORECASE):
            return make(_Refusal(host=host, image=image, message=message, found=found))
    return None


def is_foreign(message: str) -> bool:
    """Whether a program could not be run because it is made for another processor."""
    return "exec format error" in message.lower()


def foreign_image(image: str, host: str, architectures: tuple[str, str]) -> KernelBridgeError:
    """Return the error for such an image; the architectures are its own and its host's, empty where not known."""
    own, hosts = architectures
    fault = f"is for {own}, {host} is {hosts}" if own and hosts else f"is for another architecture than {host}"
    return ImageUnusable(image=image, fault=fault, remedy=_PLATFORM.replace("HOST", host))


# -- what a row makes of a refusal


def _container(remedy: str) -> _Maker:
    """Make the error for a container that cannot be as it is asked for."""
    return lambda no: ContainerFailed(host=no.host, image=no.image, reason=no.reason, remedy=no.filled(remedy))


def _engine(remedy: str, fault: str = "") -> _Maker:
    """Make the error for an engine that is in disorder, whatever it is asked to start."""

    def make(no: _Refusal) -> KernelBridgeError:
        reason = f"{fault}: {no.reason}" if fault else no.reason
        return EngineFailed(host=no.host, action="start a container", reason=reason, remedy=no.filled(remedy))

    return make


def _gpu(fault: str, remedy: str) -> _Maker:
    """Make the error for GPUs that could not be handed out."""
    return lambda no: GpuWayMissing(host=no.host, reason=f"{fault} ({no.reason})", remedy=no.filled(remedy))


def _image(fault: str, remedy: str) -> _Maker:
    """Make the error for an image that cannot be run here; `{name}` in `fault` is what the pattern found."""

    def make(no: _Refusal) -> KernelBridgeError:
        text = fault.format(host=no.host, **no.found.groupdict())
        return ImageUnusable(image=no.image, fault=f"{text} ({no.reason})", remedy=no.filled(remedy))

    return make


def _pull(remedy: str) -> _Maker:
    return lambda no: ImagePullFailed(host=no.host, image=no.image, reason=no.reason, remedy=no.filled(remedy))


def _missing(remedy: str = "") -> _Maker:
    return lambda no: ImageMissing(host=no.host, image=no.image, reason=no.reason, remedy=no.filled(remedy))


def _mount_missing(no: _Refusal) -> KernelBridgeError:
    return MountMissing(host=no.host, path=no.found["path"])


def _driver_too_old(no: _Refusal) -> KernelBridgeError:
    needs = no.found["needs"].replace(" ", "")
    return DriverTooOld(host=no.host, image=no.image, needs=needs, driver="a driver or card that does not meet that")


_FREE_DISK: Final = "Free disk space on HOST: `docker system df` there shows what Docker uses."
_SUBIDS: Final = "Give the login that runs the engine more subordinate ids in /etc/subuid and /etc/subgid of HOST."
_PLATFORM: Final = "Use an image that is made for the architecture of HOST too."
_POLICY: Final = "A policy of HOST forbids it: ask its administrators."

_CONTAINER: Final[tuple[tuple[str, _Maker], ...]] = (
    # -- programs of the host's own
    (
        r"(docker-init|container-init|catatonit).*(not found|no such file)|does not exist: \S*(docker-init|catatonit)",
        _engine(
            "Install `docker-init` on HOST: Docker's own packages bring it, and a `tini` of that name does as well "
            "(Podman: `catatonit`).",
            "the host has no `docker-init`, under which every kernel's container runs",
        ),
    ),
    (
        r"apparmor_parser.*(not found|no such file)",
        _engine("Install AppArmor's tools on HOST (package `apparmor`), and restart Docker."),
    ),
    # -- GPUs
    (r"unsatisfied condition: (?P<needs>[a-z_]+ ?[<>=!]+ ?[^\s,:\\\"]+)", _driver_too_old),
    (
        r"driver/library version mismatch",
        _gpu(
            "its NVIDIA driver was updated while the old one is still loaded",
            "Reboot HOST, or load the driver's modules anew; `nvidia-smi` there says the same until then.",
        ),
    ),
    (
        r"nvml error: driver not loaded|driver (rpc )?error: failed to process request",
        _gpu(
            "its NVIDIA driver is not loaded, or does not work",
            "Repair the driver on HOST until `nvidia-smi` works there; after an update that is often a reboot.",
        ),
    ),
    (
        r"load library failed: lib(nvidia-ml|cuda)|initialization error: cannot open shared object file",
        _gpu(
            "NVIDIA's toolkit finds no NVIDIA driver there",
            "Install the driver on HOST until `nvidia-smi` works there. An engine in a machine or snap of its own "
            "(Docker Desktop, snap) does not see the host's driver.",
        ),
    ),
    (
        r"nvidia-container-cli: (device error|detection error).*(unknown device|not found|no such)",
        _gpu(
            "NVIDIA's toolkit does not find the GPU",
            "Compare `kernelbridge gpus` with `nvidia-smi -L` on HOST; a card that has dropped off its bus needs a "
            "reboot.",
        ),
    ),
    (
        r"nvidia-container-cli: mount error: .*?(?P<file>[^/\s:]+): file exists",
        _image(
            "has files of an NVIDIA driver of its own ({file}) where the host's belong",
            "Remove `libcuda.so*` and `libnvidia-*` from the image; `docker commit` of a container with GPUs puts "
            "them there.",
        ),
    ),
    (
        r"bpf_prog_(query|attach|load)|failed to add device rules|device filters attached",
        _gpu(
            "NVIDIA's toolkit may not give the container rights on the card",
            "For a rootless engine set `no-cgroups = true` in /etc/nvidia-container-runtime/config.toml on HOST; else "
            "update the NVIDIA Container Toolkit there.",
        ),
    ),
    (
        r"invoking the nvidia container runtime hook directly",
        _gpu(
            "its NVIDIA toolkit wants another way",
            "Set `gpu_access` of [hosts.HOST] to runtime, or to cdi where HOST has CDI files.",
        ),
    ),
    (r"unresolvable cdi devices", _gpu("its CDI files do not have this GPU under its UUID", CDI_BY_UUID)),
    (
        r'could not select device driver "cdi"|\bcdi\b.* (not enabled|disabled|not supported)',
        _gpu(
            "its Docker engine has CDI switched off",
            'Set `"features": {"cdi": true}` in /etc/docker/daemon.json of HOST, or `gpu_access` of the host to auto.',
        ),
    ),
    (
        r"cdi (host )?device .*no such file|failed to stat cdi|cdi device injection failed",
        _gpu(
            "its CDI files do not fit its driver any more",
            "Write them anew on HOST: `nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/"
            "nvidia.yaml`.",
        ),
    ),
    (
        r"could not select device driver|unknown( or invalid)? runtime( name)?( specified)?:? nvidia"
        r"|nvidia-container-[a-z-]+\\*\"?: (executable file )?(not found|no such file|stat )"
        r"|nvidia-container-[a-z-]+: no such file",
        lambda no: GpuToolkitMissing(host=no.host, reason=no.reason),
    ),
    (
        r"nvidia-container-|nvidia-ctk|libnvidia-container|nvidia-cdi-hook",
        _gpu(
            "NVIDIA's container toolkit could not hand out the GPUs",
            "Repair it on HOST until `docker run --rm --gpus all ubuntu nvidia-smi` works there.",
        ),
    ),
    # -- what the environment asks for
    (r"bind source path does not exist: (?P<path>\S.*?)\s*$", _mount_missing),
    (r"statfs (?P<path>/.+?): no such file or directory", _mount_missing),
    (
        r"gathering device information|error creating device nodes|stat /dev/\S+: no such file",
        _container("Fix `devices` of the environment: HOST has no such device."),
    ),
    (
        r"unknown( or invalid)? runtime( name)?( specified)?:? |invalid runtime name",
        _container("Fix `container_runtime` of the environment: `docker info` on HOST lists its runtimes."),
    ),
    (
        r"sysctl \S+ (is )?not |/proc/sys/\S+: (no such file|permission denied|invalid argument)",
        _container("Fix `sysctls` of the environment: only those that a container has for itself work."),
    ),
    (
        r"invalid (--)?security-opt|opening seccomp profile|decoding seccomp|apparmor profile .*(not found|does not)",
        _container("Fix `security_opt` of the environment."),
    ),
    (
        r"cannot unmarshal|invalid json|decoding|unsupported (config|option)",
        _container("Fix `engine_config` of the environment: the engine cannot read a value in it."),
    ),
    (
        r"conflicting options|invalid hostname|bad format for add-host|dns address",
        _container("Fix `hostname`, `dns` or `extra_hosts` of the environment: they must fit its `network`."),
    ),
    (r"error setting rlimit|setrlimit", lambda no: UlimitRefused(host=no.host, reason=no.reason)),
    (
        r"exec format error|cannot execute binary file",
        _image("is for another architecture than {host}", _PLATFORM),
    ),
    (
        r"exec: \\*\"(?P<name>[^\"\\]+)\\*\": (executable file not found|stat .*: no such file|.*no such file or dir)"
        r"|executable file `(?P<name2>[^`]+)` not found",
        lambda no: ImageUnusable(image=no.image, lacks=f"`{no.found['name'] or no.found['name2']}`"),
    ),
    (
        r"exec: \\*\"(?P<name>[^\"\\]+)\\*\": .*(permission denied|is a directory)",
        _image("has no `{name}` that its user may run", "Set `python` or `user` of the environment."),
    ),
    (
        r"unable to find group|no matching entries in group file",
        _container("Fix `groups` or `user` of the environment: numbers always work."),
    ),
    (
        r"unable to find user|no matching entries in passwd file",
        _container("Fix `user` of the environment: a number always works."),
    ),
    (r"chdir to cwd|mkdir to cwd|working directory|cannot mkdir", _container("Fix `workdir` of the environment.")),
    (r"(unknown|invalid) capability|invalid capadd", _container("Fix `cap_add` of the environment.")),
    (r"minimum memory limit|memory limit .*(too small|less than)", _container("Raise `memory` of the environment.")),
    (
        r"memsw|memory\.swap|swap limit",
        _container("Remove `memory` from the environment: the cgroups of HOST cannot limit swap."),
    ),
    (r"range of cpus is from", _container("Lower `cpus` of the environment.")),
    (
        r"nanocpus|cpu cfs|cpu\.(max|cfs)",
        _container("Remove `cpus` from the environment: the kernel of HOST cannot limit it."),
    ),
    (r"pids\.max|pids limit", _container("Change `pids_limit` of the environment.")),
    (
        r"network \S+ not found|no such network|could not find a network|unable to find network",
        _container("Fix `network` of the environment, or create the network on HOST: `docker network create`."),
    ),
    (
        r"user namespaces are enabled|incompatible with user namespaces|userns=.*(network|ipc)",
        _container('The engine of HOST remaps users: leave `network = "host"` and `ipc = "host"` away.'),
    ),
    (
        r"already in use by (container|a container)|name .*is already in use",
        _container("What was there before is still being removed: try again in a moment."),
    ),
    (
        r"duplicate mount point|mount a directory (onto|on) a file|mount.*not a directory|invalid mount",
        _container("Fix `mounts` of the environment: a file goes on a file, a folder on a folder, each place once."),
    ),
    (
        r"(mount source path|error mounting|mounting) .*(permission denied|operation not permitted)",
        _container("The engine of HOST may not read a source in `mounts`: check its rights, and NFS's root_squash."),
    ),
    (
        r"mount source path .*read-only file system",
        _container("Docker of a snap sees the home folder alone: fix `mounts`, or install Docker's own package."),
    ),
    # -- the host
    (
        r"(inotify|fsnotify).*(no space left|too many)|user (watches|instances)",
        _engine("Raise `fs.inotify.max_user_watches` and `fs.inotify.max_user_instances` of HOST with sysctl."),
    ),
    (
        r"(session key|keyring).*(quota exceeded|cannot allocate)|disk quota exceeded.*key",
        _engine("Raise `kernel.keys.maxkeys` and `kernel.keys.maxbytes` of HOST with sysctl."),
    ),
    (
        r"cgroup\S*: no space left|cgroup.*(numerical result|no space left)",
        _engine("HOST has too many cgroups: remove containers that nobody uses, or reboot it."),
    ),
    (r"no space left on device|disk quota exceeded", _container(_FREE_DISK)),
    (
        r"read-only file system",
        _container(
            "A disk of HOST, or the place of a mount, is read-only: fix `mounts`; after a fault of the disk `dmesg` "
            "on HOST tells."
        ),
    ),
    (r"apparmor", _engine("Load AppArmor's profiles anew on HOST: `systemctl restart apparmor docker`.")),
    (r"seccomp", _engine("Update Docker, runc and libseccomp on HOST together; its kernel must support seccomp.")),
    (
        r"selinux|relabel|attr/keycreate",
        _engine("Fix SELinux on HOST: install `container-selinux`, and label what `mounts` names."),
    ),
    (
        r"ip_unprivileged_port_start",
        _engine("HOST is a container itself (LXC, Proxmox): update its machine's LXC and AppArmor profile, or runc."),
    ),
    (r"insufficient uids or gids|/etc/sub[ug]id|new[ug]idmap|lchown .*invalid argument", _engine(_SUBIDS)),
    (
        r"(unshare|clone|user ?namespace|[ug]id_map).*(not permitted|permission denied|no space left)",
        _engine(
            "HOST forbids user namespaces to this engine: see the sysctls `user.max_user_namespaces` and "
            "`kernel.apparmor_restrict_unprivileged_userns`."
        ),
    ),
    (
        r"cgroup|unit \S+\.scope|message bus|\bdbus\b",
        _engine("Repair the cgroups of HOST: after an update of systemd or of Docker restart Docker, or reboot."),
    ),
    (
        r"ipv4 (address|pool)|address pools?|no available ip|no free address",
        _engine(
            "Docker on HOST has no address left: remove networks and containers that nobody uses "
            "(`docker network prune`), or widen `default-address-pools`."
        ),
    ),
    (
        r"veth|pair interfaces|operation not supported.*(bridge|interface|endpoint)",
        _engine("Reboot HOST: its kernel was updated, and the modules for networks of the one that runs are gone."),
    ),
    (
        r"iptables|ip6tables|nft|firewall|no chain/target",
        _engine("Restart Docker on HOST: its rules of the firewall are gone, as after a reload of the firewall."),
    ),
    (
        r"address already in use|port is already allocated",
        _engine("Another program on HOST has that port or address: end it, or choose another `network`."),
    ),
    (
        r"no such image",
        lambda no: ImageMissing(host=no.host, image=no.image, reason="not on the host"),
    ),
    (
        r"content digest \S+: not found|layer does not exist|rwlayer|overlay mount|parent snapshot|snapshot .*not ex",
        _container("The image on HOST is damaged: remove it there with `docker rmi IMAGE`, and start again."),
    ),
    (
        r"logging (driver|plugin)|log driver|log-opt",
        _engine("Docker on HOST lacks the log driver `local`: update it."),
    ),
    (r"authorization denied|authz", _engine(_POLICY)),
    (
        r"containerd\.sock|connection error: desc|containerd.*(deadline|connection refused)|error while dialing",
        _engine("Restart containerd and Docker on HOST: `systemctl restart containerd docker`."),
    ),
    (
        r"did not terminate successfully|unable to retrieve oci runtime|symbol lookup|fork/exec \S*(runc|crun|shim)",
        _engine("The container runtime of HOST is broken: reinstall or update runc and containerd there."),
    ),
    (
        r"too many open files|resource temporarily unavailable|cannot allocate memory|out of memory",
        _engine("HOST is short of memory, processes or open files: end what is not needed there, or raise its limits."),
    ),
)

_PULL: Final[tuple[tuple[str, _Maker], ...]] = (
    (
        r"toomanyrequests|rate limit|too many requests",
        _pull("Run `docker login` on HOST: an account may pull more. Or wait, and try again."),
    ),
    (
        r"no match(ing manifest)? for (?P<platform>(platform in|[a-z]+/[a-z0-9/]+))",
        _image("is for another architecture than {host}", _PLATFORM),
    ),
    (
        r"(does not (provide|match)|not match).*platform|cannot be used on this platform|operating system is not supp",
        _image("is for another architecture than {host}", _PLATFORM),
    ),
    (
        r"manifest schema|schema 1|schemaversion|image format v1|unsupported (manifest )?media ?type|no decoder",
        _image("is in a format that its Docker does not read", "Build or push the image anew with a newer Docker."),
    ),
    (r"no space left on device|disk quota exceeded", _pull(_FREE_DISK)),
    (
        r"read-only file system",
        _pull("The disk of HOST where Docker keeps its images is read-only: see `dmesg` there."),
    ),
    (r"insufficient uids or gids|lchown .*(invalid argument|not permitted)|/etc/sub[ug]id", _pull(_SUBIDS)),
    (
        r"invalid reference|must be lowercase|invalid repository name|invalid tag",
        _missing("Fix `image` of the environment."),
    ),
    (
        r"token has expired|session has expired|expired.*reauthenticate",
        _missing("Run `docker login` on HOST again: what it has is too old."),
    ),
    (
        r"x509|certificate|server gave http response to https client|tls: ",
        _pull(
            "Docker on HOST does not trust the registry: put the registry's certificate into /etc/docker/certs.d "
            "there, or check the clock of HOST."
        ),
    ),
    (
        r"proxyconnect|proxy authentication|proxy error",
        _pull("Fix the proxy of Docker itself on HOST: `docker info` there shows it."),
    ),
    (
        r"lookup \S+.*(no such host|misbehaving|try again|temporary failure|timeout|refused|unreachable)"
        r"|name resolution|no such host",
        _missing(
            "Check the name: Docker on HOST cannot resolve that of the registry. Or check the DNS and network of HOST."
        ),
    ),
    (
        r"(unexpected|status( code)?|returned)[^.]{0,30}\b50[0-9]\b|bad gateway|service unavailable|internal server",
        _pull("The registry itself has a fault at the moment: try again later."),
    ),
    (
        r"unauthorized|denied|authentication required|no basic auth|insufficient_scope|forbidden|authorization failed"
        r"|\b40[13]\b|credential",
        _missing(),
    ),
    (
        r"manifest unknown|manifest for \S+ not found|manifest \S* ?not found|failed to resolve reference.*not found",
        _missing("Check the name and the tag."),
    ),
    (r"name unknown|name_unknown|repository .*not exist|no such image|not found|does not exist", _missing()),
    (
        r"timeout|deadline exceeded|timed out|connection re(fused|set)|unreachable|no route|\beof\b|broken pipe"
        r"|request canceled",
        _pull("HOST did not reach the registry: check its network, or its proxy, and try again."),
    ),
    (
        r"failed to register layer|layer verification|filesystem layer|invalid tar|unexpected end|checksum|digest",
        _pull("What came was damaged or could not be unpacked: try again; `docker pull IMAGE` on HOST says more."),
    ),
)
