"""hosts/docker/error_map.py: the engine's refusals become errors that name what is the matter and what helps."""

from __future__ import annotations

import time

import pytest

from kernelbridge import errors
from kernelbridge.errors import KernelBridgeError
from kernelbridge.hosts.docker import error_map

# How engines of today and of Docker 20.10 begin what runc says.
RUNC = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: error during container init: "
)
OLD = "OCI runtime create failed: container_linux.go:380: starting container process caused: "
HOOK = f"{RUNC}error running prestart hook #0: exit status 1, stdout: , stderr: Auto-detected mode as 'legacy'\n"
CLI = f"{HOOK}nvidia-container-cli: "
CDI = "nvidia-ctk cdi generate --device-name-strategy=uuid"

# What is said; the error that it becomes; a part of its sentence and of its remedy.
STARTS: list[tuple[str, type[KernelBridgeError], str, str]] = [
    # The engine's own init.
    (
        'failed to initialize: docker-init: exec: "docker-init": executable file not found in $PATH',
        errors.EngineFailed,
        "the host has no `docker-init`",
        "Install `docker-init` on lab",
    ),
    (
        'exec: "docker-init": executable file not found in $PATH',
        errors.EngineFailed,
        "the host has no `docker-init`",
        "Install `docker-init` on lab",
    ),
    (
        f'{RUNC}error mounting "/nowhere/docker-init" to rootfs at "/sbin/docker-init": stat /nowhere/docker-init: no '
        "such file or directory: unknown",
        errors.EngineFailed,
        "the host has no `docker-init`",
        "Install `docker-init` on lab",
    ),
    (
        f"{OLD}process_linux.go:545: container init caused: rootfs_linux.go:75: mounting "
        '"/usr/bin/docker-init" to rootfs at "/sbin/docker-init" caused: no such file or directory: unknown',
        errors.EngineFailed,
        "the host has no `docker-init`",
        "Install `docker-init` on lab",
    ),
    (
        "container-init binary not found on the host: stat /usr/libexec/podman/catatonit: no such file or directory",
        errors.EngineFailed,
        "the host has no `docker-init`",
        "(Podman: `catatonit`)",
    ),
    # NVIDIA.
    (
        f"{CLI}initialization error: nvml error: driver not loaded: unknown",
        errors.GpuWayMissing,
        "its NVIDIA driver is not loaded, or does not work (nvidia-container-cli: initialization error: nvml",
        "until `nvidia-smi` works there",
    ),
    (
        f"{CLI}initialization error: driver rpc error: failed to process request: unknown",
        errors.GpuWayMissing,
        "its NVIDIA driver is not loaded, or does not work",
        "until `nvidia-smi` works there",
    ),
    (
        f"{CLI}initialization error: nvml error: driver/library version mismatch: unknown",
        errors.GpuWayMissing,
        "updated while the old one is still loaded",
        "Reboot lab",
    ),
    (
        f"{CLI}initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object file: no such "
        "file or directory: unknown",
        errors.GpuWayMissing,
        "finds no NVIDIA driver",
        "Install the driver on lab",
    ),
    (
        f"{CLI}requirement error: unsatisfied condition: cuda>=12.4, please update your driver to a newer version, or "
        "use an earlier cuda container: unknown",
        errors.DriverTooOld,
        "needs cuda>=12.4, but the host has",
        "Update the NVIDIA driver on lab",
    ),
    (
        f"{CLI}requirement error: unsatisfied condition: brand = tesla: unknown",
        errors.DriverTooOld,
        "needs brand=tesla,",
        "Update the NVIDIA driver on lab",
    ),
    (
        f"{CLI}device error: GPU-5ce4e7c2-0c4b: unknown device: unknown",
        errors.GpuWayMissing,
        "does not find the GPU",
        "`nvidia-smi -L` on lab",
    ),
    (
        f"{CLI}mount error: file creation failed: /var/lib/docker/overlay2/{'a' * 64}/merged/usr/lib/x86_64-linux-gnu/"
        "libnvidia-ml.so.1: file exists: unknown",
        errors.ImageUnusable,
        f"an NVIDIA driver of its own (libnvidia-ml.so.1) where the host's belong (nvidia-container-cli: mount error: "
        f"file creation failed: /var/lib/docker/overlay2/{'a' * 64}/merged/usr/lib/x86_64-linux-gnu/"
        "libnvidia-ml.so.1: file exists; in full: ",
        "Remove `libcuda.so*` and `libnvidia-*` from the image",
    ),
    (
        f"{CLI}mount error: failed to add device rules: unable to find any existing device filters attached to the "
        "cgroup: bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not permitted: unknown",
        errors.GpuWayMissing,
        "may not give the container rights on the card",
        "no-cgroups = true",
    ),
    (
        f"{RUNC}error running hook #0: error running hook: exit status 1, stdout: , stderr: Auto-detected mode as "
        "'csv'\ninvoking the NVIDIA Container Runtime Hook directly (e.g. specifying the docker --gpus flag) is not "
        "supported. Please use the NVIDIA Container Runtime (e.g. specify the --runtime=nvidia flag) instead.: unknown",
        errors.GpuWayMissing,
        "wants another way",
        "Set `gpu_access` of [hosts.lab] to runtime",
    ),
    (
        f"{CLI}detection error: nvml error: unknown error: unknown",
        errors.GpuWayMissing,
        "could not hand out the GPUs (nvidia-container-cli: detection error: nvml error: unknown error; in full: ",
        "Repair it on lab",
    ),
    (
        f"{CLI}initialization error: change root failed: no such file or directory: unknown",
        errors.GpuWayMissing,
        "could not hand out the GPUs",
        "Repair it on lab",
    ),
    (
        'could not select device driver "" with capabilities: [[gpu]]',
        errors.GpuToolkitMissing,
        "",
        "Install the NVIDIA",
    ),
    ("Unknown runtime specified nvidia", errors.GpuToolkitMissing, "", "Install the NVIDIA Container Toolkit on lab"),
    ("unknown or invalid runtime name: nvidia", errors.GpuToolkitMissing, "", "Install the NVIDIA Container Toolkit"),
    (
        f"{RUNC}error running hook #0: fork/exec /usr/bin/nvidia-container-runtime-hook: no such file or directory",
        errors.GpuToolkitMissing,
        "cannot hand GPUs",
        "Install the NVIDIA Container Toolkit on lab",
    ),
    (
        "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-5ce4e7c2",
        errors.GpuWayMissing,
        "its CDI files do not have this GPU under its UUID (CDI device injection failed",
        CDI,
    ),
    (
        "failed to create task for container: failed to create shim task: OCI runtime create failed: could not apply "
        "required modification to OCI specification: error modifying OCI spec: failed to inject CDI devices: "
        "unresolvable CDI devices nvidia.com/gpu=GPU-5ce4e7c2: unknown",
        errors.GpuWayMissing,
        "under its UUID (failed to inject CDI devices: unresolvable CDI devices nvidia.com/gpu=GPU-5ce4e7c2; in full",
        CDI,
    ),
    ("setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=GPU-5", errors.GpuWayMissing, "UUID", CDI),
    (
        'could not select device driver "cdi" with capabilities: []',
        errors.GpuWayMissing,
        "has CDI switched off",
        '"features": {"cdi": true}',
    ),
    (
        "CDI device injection failed: failed to inject devices: failed to stat CDI host device "
        '"/dev/nvidia-uvm": no such file or directory',
        errors.GpuWayMissing,
        "do not fit its driver any more",
        "Write them anew on lab",
    ),
    # What the environment asks for.
    (
        'invalid mount config for type "bind": bind source path does not exist: /data/a b',
        errors.MountMissing,
        "/data/a b does not exist",
        "",
    ),
    ("statfs /data/x: no such file or directory", errors.MountMissing, "/data/x does not exist", ""),
    (
        'error gathering device information while adding custom device "/dev/fuse": no such file or directory',
        errors.ContainerFailed,
        "/dev/fuse",
        "Fix `devices`",
    ),
    ("unknown or invalid runtime name: runsc", errors.ContainerFailed, "runsc", "Fix `container_runtime`"),
    ("Unknown runtime specified runsc", errors.ContainerFailed, "runsc", "Fix `container_runtime`"),
    (
        f'{RUNC}sysctl "kernel.pid_max" is not in a separate kernel namespace: unknown',
        errors.ContainerFailed,
        "kernel.pid_max",
        "Fix `sysctls`",
    ),
    (
        f"{RUNC}open /proc/sys/net/none: no such file or directory: unknown",
        errors.ContainerFailed,
        "none",
        "Fix `sysctls`",
    ),
    (
        "json: cannot unmarshal string into Go struct field HostConfig.HostConfig.CpuShares of type int64",
        errors.ContainerFailed,
        "CpuShares",
        "Fix `engine_config`",
    ),
    ("decoding seccomp profile failed: x", errors.ContainerFailed, "seccomp", "Fix `security_opt`"),
    ('invalid --security-opt: "no"', errors.ContainerFailed, "security-opt", "Fix `security_opt`"),
    (
        "conflicting options: hostname and the network mode",
        errors.ContainerFailed,
        "conflicting",
        "Fix `hostname`, `dns` or `extra_hosts`",
    ),
    (f"{RUNC}error setting rlimit type 8: operation not permitted: unknown", errors.UlimitRefused, "rlimit", "ulimits"),
    (
        f'{RUNC}exec: "python3": executable file not found in $PATH: unknown',
        errors.ImageUnusable,
        "no `python3`",
        "pip",
    ),
    (
        f'{OLD}exec: "/opt/py/python": stat /opt/py/python: no such file or directory: unknown',
        errors.ImageUnusable,
        "no `/opt/py/python`",
        "",
    ),
    (
        "crun: executable file `python3` not found in $PATH: No such file or directory: OCI runtime attempted to "
        "invoke a command that was not found",
        errors.ImageUnusable,
        "no `python3`",
        "",
    ),
    (
        f'{RUNC}exec: "/opt/py": permission denied: unknown',
        errors.ImageUnusable,
        "has no `/opt/py` that its user may run",
        "Set `python` or `user`",
    ),
    (
        f"{RUNC}exec /sbin/docker-init: exec format error: unknown",
        errors.ImageUnusable,
        "is for another architecture than lab",
        "Use an image that is made for the architecture of lab",
    ),
    ("unable to find user ada: no matching entries in passwd file", errors.ContainerFailed, "ada", "Fix `user`"),
    ("Unable to find group 44x: no matching entries in group file", errors.ContainerFailed, "44x", "Fix `groups`"),
    (
        f'{RUNC}chdir to cwd ("/w") set in config.json failed: permission denied',
        errors.ContainerFailed,
        "",
        "`workdir`",
    ),
    ('invalid CapAdd: unknown capability: "CAP_X"', errors.ContainerFailed, "CAP_X", "Fix `cap_add`"),
    ("Minimum memory limit allowed is 6MB", errors.ContainerFailed, "6MB", "Raise `memory`"),
    (
        f'{RUNC}failed to write "104857600": open /sys/fs/cgroup/memory/docker/1/memory.memsw.limit_in_bytes: no such '
        "file or directory",
        errors.ContainerFailed,
        "memsw",
        "Remove `memory`",
    ),
    (
        "Range of CPUs is from 0.01 to 8.00, as there are only 8 CPUs available",
        errors.ContainerFailed,
        "",
        "Lower `cpus`",
    ),
    (
        "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted",
        errors.ContainerFailed,
        "CFS",
        "Remove `cpus`",
    ),
    ("network lab-net not found", errors.ContainerFailed, "lab-net", "Fix `network`"),
    (
        "cannot share the host's network namespace when user namespaces are enabled",
        errors.ContainerFailed,
        "",
        "The engine of lab remaps users",
    ),
    (
        'Conflict. The container name "/kernelbridge-x" is already in use by container "abc". You have to remove (or '
        "rename) that container to be able to reuse that name.",
        errors.ContainerFailed,
        "",
        "still being removed",
    ),
    (
        f'{RUNC}error mounting "/a" to rootfs at "/b": mount /a:/b, flags: 0x5000: not a directory: unknown: Are you '
        "trying to mount a directory onto a file (or vice-versa)?",
        errors.ContainerFailed,
        "",
        "Fix `mounts`",
    ),
    (
        f'{RUNC}error mounting "/nfs/a" to rootfs at "/b": stat /nfs/a: permission denied: unknown',
        errors.ContainerFailed,
        "",
        "root_squash",
    ),
    (
        "error while creating mount source path '/opt/x': mkdir /opt/x: read-only file system",
        errors.ContainerFailed,
        "",
        "a snap sees the home folder alone",
    ),
    # The host.
    ("mkdir /var/lib/docker/overlay2/1: no space left on device", errors.ContainerFailed, "", "Free disk space on lab"),
    ("failed to watch: inotify_add_watch: no space left on device", errors.EngineFailed, "", "max_user_watches"),
    (
        f"{RUNC}unable to join session keyring: unable to create session key: disk quota exceeded: unknown",
        errors.EngineFailed,
        "could not start a container (unable to join session keyring: unable to create session key: disk quota",
        "kernel.keys.maxkeys",
    ),
    (
        "mkdir /sys/fs/cgroup/memory/docker/1: no space left on device",
        errors.EngineFailed,
        "",
        "too many cgroups",
    ),
    ("open /var/lib/docker/containers/1/x: read-only file system", errors.ContainerFailed, "", "`dmesg` on lab"),
    (
        'AppArmor enabled on system but the docker-default profile could not be loaded: exec: "apparmor_parser": '
        "executable file not found in $PATH",
        errors.EngineFailed,
        "",
        "Install AppArmor's tools on lab",
    ),
    (
        f"{RUNC}unable to apply apparmor profile: apparmor failed to apply profile: write /proc/self/attr/apparmor/"
        "exec: no such file or directory: unknown",
        errors.EngineFailed,
        "",
        "restart apparmor docker",
    ),
    (
        f"{RUNC}error adding seccomp filter rule for syscall bdflush: requested action matches",
        errors.EngineFailed,
        "",
        "libseccomp",
    ),
    (
        f"{RUNC}open sysctl net.ipv4.ip_unprivileged_port_start file: reopen fd 8: permission denied: unknown",
        errors.EngineFailed,
        "",
        "lab is a container itself",
    ),
    (
        "potentially insufficient UIDs or GIDs available in user namespace (requested 0:42 for /etc/gshadow): Check "
        "/etc/subuid and /etc/subgid",
        errors.EngineFailed,
        "",
        "subordinate ids",
    ),
    ("cgroups: cgroup mountpoint does not exist: unknown", errors.EngineFailed, "", "Repair the cgroups of lab"),
    (
        f'{RUNC}unable to apply cgroup configuration: unable to start unit "docker-1.scope": Message recipient '
        "disconnected from message bus without replying: unknown",
        errors.EngineFailed,
        "",
        "Repair the cgroups of lab",
    ),
    (
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network",
        errors.EngineFailed,
        "",
        "no address left",
    ),
    ("all predefined address pools have been fully subnetted", errors.EngineFailed, "", "no address left"),
    (
        "failed to set up container networking: no available IPv4 addresses on this network's address pools: bridge",
        errors.EngineFailed,
        "",
        "no address left",
    ),
    (
        "failed to create endpoint k on network bridge: failed to add the host (veth1) <=> sandbox (veth2) pair "
        "interfaces: operation not supported",
        errors.EngineFailed,
        "",
        "Reboot lab",
    ),
    (
        "failed to set up container networking: driver failed programming external connectivity on endpoint k (85): "
        "Unable to enable DNAT rule: (iptables failed: iptables --wait -t nat -A DOCKER: iptables: No "
        "chain/target/match by that name.\n (exit status 1))",
        errors.EngineFailed,
        "(Unable to enable DNAT rule:",
        "Restart Docker on lab",
    ),
    (
        "driver failed programming external connectivity on endpoint k (1f): Error starting userland proxy: listen "
        "tcp4 0.0.0.0:8888: bind: address already in use",
        errors.EngineFailed,
        "",
        "Another program on lab has that port",
    ),
    ("No such image: nope:1", errors.ImageMissing, "", ""),
    ("content digest sha256:1: not found", errors.ContainerFailed, "", "`docker rmi i`"),
    (
        'failed to create task for container: connection error: desc = "transport: Error while dialing dial unix '
        '/run/containerd/containerd.sock: connect: connection refused": unavailable',
        errors.EngineFailed,
        "",
        "Restart containerd and Docker",
    ),
    (
        "failed to create shim task: OCI runtime create failed: unable to retrieve OCI runtime error (open /run/"
        "containerd/1/log.json: no such file or directory): runc did not terminate successfully: exit status 127",
        errors.EngineFailed,
        "",
        "reinstall or update runc",
    ),
    ("authorization denied by plugin opa: policy", errors.EngineFailed, "", "ask its administrators"),
    ("fork/exec /proc/self/exe: resource temporarily unavailable", errors.EngineFailed, "", "short of memory"),
    # No cause is guessed for what nobody knows.
    ("something new", errors.ContainerFailed, "did not start (something new)", "Fix the environment and try again."),
]


@pytest.mark.parametrize(("message", "kind", "sentence", "remedy"), STARTS, ids=[row[0][-40:] for row in STARTS])
def test_a_container_that_cannot_start_says_why_and_what_helps(
    message: str, kind: type[KernelBridgeError], sentence: str, remedy: str
) -> None:
    error = error_map.container_error(host="lab", image="i", message=message)
    assert type(error) is kind, error
    assert sentence in error.sentence
    assert remedy in error.remedy
    assert "HOST" not in str(error)
    assert "pip install" not in error.remedy or kind is errors.ImageUnusable


PULLS: list[tuple[str, type[KernelBridgeError], str, str]] = [
    (
        "toomanyrequests: You have reached your pull rate limit. You may increase the limit by authenticating and "
        "upgrading: https://www.docker.com/increase-rate-limit",
        errors.ImagePullFailed,
        "toomanyrequests",
        "Run `docker login` on lab: an account may pull more",
    ),
    ("error from registry: 429 Too Many Requests", errors.ImagePullFailed, "429", "Run `docker login` on lab"),
    (
        "no matching manifest for linux/arm64/v8 in the manifest list entries",
        errors.ImageUnusable,
        "is for another architecture than lab (no matching manifest for linux/arm64/v8",
        "Use an image",
    ),
    (
        "no match for platform in manifest sha256:1: not found",
        errors.ImageUnusable,
        "for another architecture",
        "Use an image",
    ),
    (
        'image operating system "windows" cannot be used on this platform: operating system is not supported',
        errors.ImageUnusable,
        "for another architecture",
        "Use an image",
    ),
    (
        "[DEPRECATION NOTICE] Docker Image Format v1 and Docker Image manifest version 2, schema 1 support is disabled",
        errors.ImageUnusable,
        "in a format",
        "Build or push",
    ),
    ("write /var/lib/docker/tmp/x: no space left on device", errors.ImagePullFailed, "", "Free disk space on lab"),
    (
        "failed to register layer: ApplyLayer exit status 1 stdout:  stderr: lchown /x: invalid argument",
        errors.ImagePullFailed,
        "lchown /x: invalid argument",
        "subordinate ids",
    ),
    ("invalid reference format: repository name (a/B) must be lowercase", errors.ImageMissing, "", "Fix `image`"),
    (
        "denied: Your authorization token has expired. Reauthenticate and try again.",
        errors.ImageMissing,
        "expired",
        "Run `docker login` on lab again",
    ),
    (
        'Get "https://r.example/v2/": tls: failed to verify certificate: x509: certificate signed by unknown authority',
        errors.ImagePullFailed,
        "x509",
        "does not trust the registry",
    ),
    (
        'Get "https://r:5000/v2/": http: server gave HTTP response to HTTPS client',
        errors.ImagePullFailed,
        "",
        "does not trust the registry",
    ),
    (
        'Get "https://registry-1.docker.io/v2/": proxyconnect tcp: dial tcp 10.0.0.1:3128: connect: connection refused',
        errors.ImagePullFailed,
        "",
        "Fix the proxy of Docker itself on lab",
    ),
    (
        'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on 127.0.0.53:53: server '
        "misbehaving",
        errors.ImageMissing,
        "",
        "Check the name: Docker on lab cannot resolve",
    ),
    ("received unexpected HTTP status: 503 Service Unavailable", errors.ImagePullFailed, "", "itself has a fault"),
    (
        "pull access denied for x, repository does not exist or may require 'docker login': denied: requested access "
        "to the resource is denied",
        errors.ImageMissing,
        "pull access denied",
        "run `docker login` on lab",
    ),
    ("unauthorized: authentication required", errors.ImageMissing, "", "run `docker login` on lab"),
    ("no basic auth credentials", errors.ImageMissing, "", "run `docker login` on lab"),
    (
        'failed to resolve reference "ghcr.io/a/b:1": failed to authorize: failed to fetch anonymous token: unexpected '
        "status from GET request to https://ghcr.io/token: 403 Forbidden",
        errors.ImageMissing,
        "403 Forbidden",
        "run `docker login` on lab",
    ),
    (
        "manifest for nope:1 not found: manifest unknown: manifest unknown",
        errors.ImageMissing,
        "manifest unknown",
        "Check the name and the tag.",
    ),
    ('failed to resolve reference "docker.io/a/b:1": docker.io/a/b:1: not found', errors.ImageMissing, "", "the tag"),
    ("name unknown: repository a/b not found", errors.ImageMissing, "", "if it is private, run `docker login` on lab"),
    (
        'Get "https://registry-1.docker.io/v2/": net/http: request canceled while waiting for connection '
        "(Client.Timeout exceeded while awaiting headers)",
        errors.ImagePullFailed,
        "",
        "did not reach the registry",
    ),
    ("dial tcp: i/o timeout", errors.ImagePullFailed, "", "did not reach the registry"),
    ("unexpected EOF", errors.ImagePullFailed, "", "did not reach the registry"),
    (
        "filesystem layer verification failed for digest sha256:1",
        errors.ImagePullFailed,
        "",
        "`docker pull i` on lab says more",
    ),
    ("something new", errors.ImagePullFailed, "(something new)", "Try again"),
]


@pytest.mark.parametrize(("message", "kind", "sentence", "remedy"), PULLS, ids=[row[0][:40] for row in PULLS])
def test_a_pull_that_fails_says_why_and_what_helps(
    message: str, kind: type[KernelBridgeError], sentence: str, remedy: str
) -> None:
    error = error_map.pull_error(host="lab", image="i", message=message)
    assert type(error) is kind, error
    assert sentence in error.sentence
    assert remedy in error.remedy


@pytest.mark.parametrize("part", ["nvidia-container-cli: mount error: ", "lookup ", "unshare", "cgroup ", "x"])
def test_the_words_of_an_engine_are_explained_soon_and_shortly_however_many_there_are(part: str) -> None:
    """A registry answers with a page, and a container may have written anything into its log."""
    began = time.process_time()
    for explain in (error_map.container_error, error_map.pull_error):
        error = explain(host="lab", image="i", message=part * (1_000_000 // len(part)))
        assert 0 < len(error.sentence) < 6000
    assert time.process_time() - began < 20
