"""Every error's sentence says what failed and where, and its remedy what to do next. Those of GPUs: gpu_error_rows."""

from __future__ import annotations

import re

import pytest

from kernelbridge import errors, gpu_errors, kernel_errors
from kernelbridge.cli import tables
from kernelbridge.errors import (
    ConfigInvalid,
    ConfigMissing,
    ConnectionFileInvalid,
    EndpointTaken,
    EngineDenied,
    EngineDown,
    EngineFailed,
    EngineMissing,
    EngineTooOld,
    ForwardingForbidden,
    HostKeyChanged,
    HostKeyUnknown,
    HostNameUnknown,
    HostRefused,
    HostUnreachable,
    KernelBridgeError,
    LinkLost,
    LoginRefused,
    Problem,
    SecretMissing,
    SpecsUnwritable,
    SshConfigInvalid,
    SshFailed,
    UnknownEnvironment,
    UnknownHost,
)
from kernelbridge.kernel_errors import (
    ContainerFailed,
    GpuToolkitMissing,
    GpuUnavailable,
    ImageMissing,
    ImagePullFailed,
    ImageUnusable,
    KernelDied,
    KernelEnded,
    KernelExpired,
    KernelHeld,
    KernelNotFound,
    KernelOutOfMemory,
    KernelTaken,
    MountMissing,
    OutputUndelivered,
    StartCancelled,
    StartTimeout,
    UlimitRefused,
)
from tests.gpu_error_rows import GPU_ERRORS

# Each error with facts; its exit code; what failed, and where; what to do next.
TABLE: list[tuple[KernelBridgeError, int, str, str]] = [
    (
        ConfigInvalid(
            path="/k.toml",
            problems=[
                Problem(key="hosts.lab.gpu", sentence="unknown key"),
                Problem(key="hots", sentence="unknown key"),
            ],
        ),
        10,
        "/k.toml: hosts.lab.gpu: unknown key; hots: unknown key",
        "Mend the file; `kernelbridge config` checks it.",
    ),
    (
        ConfigMissing(path="/k.toml", reason="there is no such file"),
        11,
        "/k.toml: the config file cannot be read (there is no such file).",
        "Write it, or name another with KERNELBRIDGE_CONFIG.",
    ),
    (
        UnknownEnvironment(name="pytroch", path="/k.toml", nearest="pytorch"),
        12,
        "/k.toml: there is no environment `pytroch`. Did you mean `pytorch`?",
        "Add it to the config, or run `kernelbridge install` to renew the kernel specs.",
    ),
    (
        UnknownHost(name="lib", path="/k.toml", nearest="lab"),
        13,
        "/k.toml: there is no host `lib`. Did you mean `lab`?",
        "Add [hosts.lib] to the config.",
    ),
    (
        SpecsUnwritable(path="/kernels/a", reason="Permission denied"),
        14,
        "/kernels/a: the kernel spec cannot be written (Permission denied).",
        "Give yourself the right to write it.",
    ),
    (
        SecretMissing(environment="pytorch", name="HF_TOKEN"),
        15,
        "pytorch: the secret HF_TOKEN is not set on this machine.",
        "Set HF_TOKEN where JupyterLab or VS Code is started, or take it out of `secrets`.",
    ),
    (
        ConnectionFileInvalid(path="/run/kernel-1.json", reason="no key"),
        16,
        "/run/kernel-1.json: the connection file cannot be used (no key).",
        "Start the kernel again.",
    ),
    (
        EndpointTaken(reason="port 9001"),
        17,
        "This machine: the kernel's ports are taken (port 9001).",
        "Start the kernel again.",
    ),
    (
        HostRefused(host="lab", address="lab.example:22"),
        20,
        "lab: lab.example:22 refused the connection.",
        "Is sshd running there, and is the port right?",
    ),
    (
        HostNameUnknown(host="lab", address="lab.example:22"),
        21,
        "lab: the name lab.example:22 is not known here.",
        "Mend `ssh` of [hosts.lab] or HostName in ~/.ssh/config; are you on the right network?",
    ),
    (
        HostUnreachable(host="lab", address="lab.example:22", reason="timed out"),
        22,
        "lab: lab.example:22 cannot be reached (timed out).",
        "Is the machine on, and are you on the right network or VPN?",
    ),
    (
        LoginRefused(host="lab", user="ada"),
        23,
        "lab: the login as ada was refused.",
        "Try `ssh` yourself; load the key into the ssh agent or name it as IdentityFile in ~/.ssh/config.",
    ),
    (
        HostKeyUnknown(host="lab", algorithm="ssh-ed25519", fingerprint="SHA256:abc"),
        24,
        "lab: its host key is not known yet (ssh-ed25519 SHA256:abc).",
        "Compare the fingerprint with the one its owner gives you, then run `kernelbridge trust lab`.",
    ),
    (
        HostKeyChanged(
            host="lab", algorithm="ssh-ed25519", fingerprint="SHA256:abc", known_hosts_name="[lab.example]:2222"
        ),
        25,
        "lab: its host key has CHANGED (now ssh-ed25519 SHA256:abc); somebody may be in between.",
        "Ask its owner. If that is right: `ssh-keygen -R '[lab.example]:2222'`, then `kernelbridge trust lab`.",
    ),
    (
        ForwardingForbidden(host="lab"),
        26,
        "lab: its sshd forbids forwarding, and the docker command is not there to go round it.",
        "Ask for `AllowStreamLocalForwarding yes` in its sshd_config, or for the docker command to be installed.",
    ),
    (
        LinkLost(host="lab", since="12:00"),
        27,
        "lab: the link is lost since 12:00.",
        "It is being opened again; the kernel there runs on.",
    ),
    (
        SshConfigInvalid(host="lab", reason="timed out"),
        28,
        "lab: the ssh configuration cannot be used (timed out).",
        "Mend ~/.ssh/config.",
    ),
    (
        SshFailed(host="lab", reason="timed out"),
        29,
        "lab: SSH failed (timed out).",
        "Try `ssh -v` to the same host; it tells more.",
    ),
    (
        EngineMissing(host="lab", looked=["/var/run/docker.sock", "/run/user/1000/docker.sock"]),
        30,
        "lab: no Docker engine was found (looked at /var/run/docker.sock, /run/user/1000/docker.sock).",
        "Install Docker there, or set `socket` of [hosts.lab].",
    ),
    (
        EngineDown(host="lab", socket="/var/run/docker.sock"),
        31,
        "lab: the Docker engine at /var/run/docker.sock does not answer.",
        "Start it on lab: `systemctl start docker`.",
    ),
    (
        EngineDenied(host="lab", user="ada", socket="/var/run/docker.sock"),
        32,
        "lab: user ada may not use Docker (/var/run/docker.sock).",
        "Add ada to the group `docker` on lab, use rootless Docker, or allow `sudo -n docker`.",
    ),
    (
        EngineTooOld(host="lab", api="1.30", needed="1.40"),
        33,
        "lab: its Docker engine is too old (API 1.30, needed 1.40).",
        "Update Docker there to 19.03 or newer.",
    ),
    (
        EngineFailed(host="lab", action="create the container", reason="timed out"),
        34,
        "lab: Docker could not create the container (timed out).",
        "The engine's log on the host may tell more.",
    ),
    (
        ImageMissing(host="lab", image="pytorch:2", reason="manifest unknown"),
        40,
        "lab: there is no image pytorch:2 (manifest unknown).",
        "Check the name; if it is private, `docker login` on lab.",
    ),
    (
        ImagePullFailed(host="lab", image="pytorch:2", reason="no space left on device"),
        41,
        "lab: the image pytorch:2 could not be pulled (no space left on device).",
        "Is the host's disk full or its network down? Run the cell again to try again.",
    ),
    (
        ImageUnusable(image="pytorch:2", lacks="ipykernel"),
        42,
        "The image pytorch:2 has no ipykernel.",
        "Add `RUN pip install ipykernel` to the image, or set `python` of the environment.",
    ),
    (
        MountMissing(host="lab", path="/data"),
        43,
        "lab: the mount source /data does not exist.",
        "Make it on lab, or take it out of `mounts`.",
    ),
    (
        GpuUnavailable(host="lab", wanted="2 GPUs", found="1 GPU"),
        44,
        "lab: 2 GPUs wanted, 1 GPU there.",
        "Set `gpus` of the environment, or name another host.",
    ),
    (
        GpuToolkitMissing(host="lab"),
        45,
        "lab: its Docker engine cannot hand GPUs to containers.",
        "Install the NVIDIA Container Toolkit on lab and restart Docker, or set `gpus = 0`.",
    ),
    (
        ContainerFailed(host="lab", image="pytorch:2", reason="exit code 1"),
        46,
        "lab: the container of pytorch:2 did not start (exit code 1).",
        "Mend the environment and try again.",
    ),
    (
        UlimitRefused(host="lab", reason="error setting rlimit type 8"),
        47,
        "lab: the engine may not set the limits asked for (error setting rlimit type 8).",
        "Lower `ulimits` or take them out.",
    ),
    (
        KernelDied(environment="pytorch", host="lab", how="exit code 3", last_words="Segmentation fault."),
        50,
        "The kernel of pytorch on lab ended: exit code 3. Its last words: Segmentation fault.",
        "Restart the kernel to go on.",
    ),
    (
        KernelOutOfMemory(environment="pytorch", host="lab", limit="2g"),
        51,
        "The kernel of pytorch on lab ran out of memory (2g) and was ended.",
        "Raise `memory` of the environment or use less; restart the kernel to go on.",
    ),
    (
        KernelNotFound(kernel="aabb", hosts=["lab", "two"]),
        52,
        "No kernel `aabb` on lab, two.",
        "`kernelbridge ps` lists them.",
    ),
    (
        StartTimeout(host="lab", what="the image pull", seconds=1800.0),
        53,
        "lab: the image pull took longer than 1800 s.",
        "Raise `start_seconds` of the environment.",
    ),
    (
        StartCancelled(environment="pytorch"),
        54,
        "The start of pytorch was cancelled.",
        "",
    ),
    (
        KernelEnded(environment="pytorch", host="lab", how="was stopped from elsewhere"),
        55,
        "The container of pytorch on lab was stopped from elsewhere.",
        "Start the kernel again.",
    ),
    (
        KernelHeld(kernel="aabb1111", host="lab", who="ada@laptop", since="12:04"),
        56,
        "The kernel aabb1111 on lab is held by ada@laptop since 12:04.",
        "`kernelbridge attach --take aabb1111` takes it over; the other then loses it.",
    ),
    (
        KernelTaken(environment="pytorch", host="lab", who="ada@desk"),
        57,
        "The kernel of pytorch on lab was taken over by ada@desk.",
        "It runs on there; `kernelbridge ps` shows it, `kernelbridge attach --take` takes it back.",
    ),
    (
        KernelExpired(environment="pytorch", host="lab", key="idle_timeout"),
        58,
        "The kernel of pytorch on lab was ended by `idle_timeout` of its environment.",
        "Start the kernel again; raise `idle_timeout` if it came too soon.",
    ),
    (
        OutputUndelivered(kernel="aabb1111", host="lab", megabytes=3.24),
        59,
        "The kernel aabb1111 on lab has output that nobody took yet (3.2 MB): it stays.",
        "`kernelbridge attach aabb1111` fetches it, `kernelbridge clean --discard` throws it away.",
    ),
    *GPU_ERRORS,
]


def name_of(error: object) -> str:
    return type(error).__name__ if isinstance(error, KernelBridgeError) else ""


@pytest.mark.parametrize(("error", "exit_code", "sentence", "remedy"), TABLE, ids=name_of)
def test_each_error_says_what_failed_where_and_what_to_do(
    error: KernelBridgeError, exit_code: int, sentence: str, remedy: str
) -> None:
    assert error.exit_code == exit_code
    assert error.sentence == sentence
    assert error.remedy == remedy
    assert str(error) == f"{sentence} {remedy}".rstrip()


@pytest.mark.parametrize("error", [error for error, *_ in TABLE], ids=name_of)
def test_each_sentence_names_its_place_and_is_one_line(error: KernelBridgeError) -> None:
    places = ("lab", "pytorch", "/k.toml", "/kernels/a", "/run/kernel-1.json", "This machine")
    assert any(place in error.sentence for place in places)
    assert "\n" not in str(error)
    for text in (error.sentence, error.remedy):
        assert not text or isinstance(error, ConfigInvalid) or re.search(r"[.?]$", text)


def test_every_kind_of_error_is_in_the_table() -> None:
    assert {type(error) for error, *_ in TABLE} == set(tables.kinds())


def test_no_two_kinds_have_one_exit_code_and_none_has_a_shells() -> None:
    codes = [kind.exit_code for kind in tables.kinds()]
    assert len(set(codes)) == len(codes)
    assert all(10 <= code < 64 for code in codes), "1 and 2 are anybody's, from 64 on they mean other things"


def test_the_tree_at_the_top_of_the_file_is_whole() -> None:
    """The first digit of the exit code is the branch."""
    branches = re.findall(
        r"^    (\d)x .*?:((?:.|\n        )*)",
        f"{errors.__doc__}{kernel_errors.__doc__}{gpu_errors.__doc__}",
        re.MULTILINE,
    )
    written = {name: int(digit) for digit, names in branches for name in re.findall(r"\b[A-Z]\w+", names)}
    assert written == {kind.__name__: kind.exit_code // 10 for kind in tables.kinds()}


@pytest.mark.parametrize("kind", tables.kinds(), ids=lambda kind: kind.__name__)
def test_each_kind_has_a_docstring_and_one_root(kind: type[KernelBridgeError]) -> None:
    assert kind.__doc__
    assert kind.__bases__ == (KernelBridgeError,)


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (errors.LinkLost(host="lab"), "lab: the link is lost."),
        (errors.UnknownHost(name="x", path="/k.toml"), "no host `x`."),
        (kernel_errors.KernelDied(environment="a", host="lab", how="exit code 3"), "ended: exit code 3."),
        (kernel_errors.KernelNotFound(kernel="a", hosts=["lab"], count=2), "2 kernels begin with `a` on lab."),
        (kernel_errors.ImageUnusable(image="x", lacks="python3", remedy="Use another."), "Use another."),
        (
            gpu_errors.GpusBusy(host="lab", wanted="1 GPU", holders=["GPU 0: bob"]),
            "not free: GPU 0: bob.",
        ),
        (gpu_errors.JobEnded(environment="a", host="lab", job="1", how="ended", remedy="Wait."), "ended. Wait."),
        (gpu_errors.GpuMismatch(host="lab", wanted="a", seen="b", remedy="Ask."), "ended. Ask."),
    ],
)
def test_facts_that_are_not_known_leave_no_gap(error: KernelBridgeError, part: str) -> None:
    assert str(error).find(part) >= 0
    assert "  " not in str(error)
    assert "None" not in str(error)
