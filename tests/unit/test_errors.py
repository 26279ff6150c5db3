"""errors.py: every sentence says what failed and where, its remedy what to do next. Those of GPUs: gpu_error_rows.

All others stand in one table.
"""

from __future__ import annotations

import re

import pytest

from kernelbridge import errors
from kernelbridge.cli import reference
from kernelbridge.errors import (
    BoardFailed,
    BuildFailed,
    CacheFailed,
    CommandNotRun,
    ConfigInvalid,
    ConfigMissing,
    ConnectionFileInvalid,
    ContainerFailed,
    EndpointTaken,
    EngineDenied,
    EngineDown,
    EngineFailed,
    EngineMissing,
    EngineTooOld,
    FileFailed,
    ForwardFailed,
    ForwardingForbidden,
    GpuToolkitMissing,
    GpuUnavailable,
    HostKeyChanged,
    HostKeyUnknown,
    HostNameUnknown,
    HostRefused,
    HostUnreachable,
    ImageMissing,
    ImagePullFailed,
    ImageUnusable,
    KernelBridgeError,
    KernelDied,
    KernelEnded,
    KernelExpired,
    KernelHeld,
    KernelNotFound,
    KernelOfOtherVersion,
    KernelOutOfMemory,
    KernelTaken,
    LinkLost,
    LoginAttempt,
    LoginRefused,
    MountMissing,
    OutputUndelivered,
    PackagesFailed,
    Problem,
    SecretMissing,
    SetupFailed,
    SpecsUnwritable,
    SshConfigInvalid,
    SshFailed,
    StartCancelled,
    StartTimeout,
    UlimitRefused,
    UnknownEnvironment,
    UnknownHost,
    WorkspaceBig,
    WorkspaceFailed,
    WorkspaceRefused,
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
        "Fix the file; `kernelbridge config` checks it.",
    ),
    (
        ConfigMissing(path="/k.toml", reason="there is no such file"),
        11,
        "/k.toml: the config file cannot be read (there is no such file).",
        "Create it, or name another one in KERNELBRIDGE_CONFIG.",
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
        "Check that you have permission to write there.",
    ),
    (
        SecretMissing(environment="pytorch", name="HF_TOKEN"),
        15,
        "pytorch: the secret HF_TOKEN is not set on this machine.",
        "Set HF_TOKEN where JupyterLab or VS Code is started, or remove it from `secrets`.",
    ),
    (
        SetupFailed(environment="Torch", host="lab", command="make it\nall", how="exit code 2: no rule"),
        18,
        "The setup of Torch on lab failed: `make it` ended with exit code 2: no rule.",
        "Fix `setup` of the environment, or what the command needs.",
    ),
    (
        CacheFailed(host="lab", path="/home/ada/.cache/x", reason="Disk quota exceeded"),
        80,
        "lab: /home/ada/.cache/x cannot be made (Disk quota exceeded).",
        "Make room for it in your home there, or set `cache = false`.",
    ),
    (
        WorkspaceRefused(path="/home/ada", reason="it is your whole home folder"),
        81,
        "This machine: /home/ada cannot be the workspace, it is your whole home folder.",
        "Set `local` of `workspace` to your project's folder.",
    ),
    (
        WorkspaceBig(host="lab", files=["data/train.bin (20.0 GB)", "model.pt (3.0 GB)"], limit="20g"),
        82,
        "lab: the workspace has big files that are not there yet: data/train.bin (20.0 GB), model.pt (3.0 GB).",
        'To copy them set `big_files = "20g"` of `workspace`; to leave them out name them in its `ignore`, or in '
        ".gitignore.",
    ),
    (
        WorkspaceFailed(host="lab", reason="a.bin: No space left on device"),
        83,
        "lab: the workspace cannot be copied (a.bin: No space left on device).",
        "What was copied stays; the next try goes on from there.",
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
        "This machine: the kernel's ports are already in use (port 9001).",
        "Start the kernel again.",
    ),
    (
        FileFailed(path="/home/ada/k.toml", reason="No space left on device"),
        19,
        "This machine: /home/ada/k.toml cannot be read or written (No space left on device).",
        "Make room there, or give yourself the right to it, and try again; what was there is as it was.",
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
        "lab: the name lab.example:22 cannot be resolved.",
        "Fix `ssh` of [hosts.lab] or HostName in ~/.ssh/config; are you on the right network?",
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
        "Try it with `ssh`; load your key into the ssh agent, or name it as IdentityFile in ~/.ssh/config.",
    ),
    (
        LoginRefused(host="lab", user="ada", attempt=LoginAttempt(offered=("~/.ssh/a", "b"), skipped=("c (locked)",))),
        23,
        "lab: the login as ada was refused (offered: ~/.ssh/a, b; skipped: c (locked)).",
        "Try it with `ssh`; load your key into the ssh agent, or name it as IdentityFile in ~/.ssh/config.",
    ),
    (
        LoginRefused(
            host="lab",
            user="ada",
            attempt=LoginAttempt(offered=("a",), accepted="a", wanted=("password", "hostbased"), has_control_path=True),
        ),
        23,
        "lab: the key a was accepted for ada, but the host wants password or hostbased too.",
        "Ask the host's owner which logins it takes. "
        "kernelbridge cannot share an open connection of `ssh` (ControlPath).",
    ),
    (
        LoginRefused(
            host="lab", user="ada", attempt=LoginAttempt(accepted="a", wanted=("keyboard-interactive",), is_batch=True)
        ),
        23,
        "lab: the key a was accepted for ada, but the host wants keyboard-interactive too.",
        "Nobody is asked for it, because the ssh config has `BatchMode yes` for this host.",
    ),
    (
        LoginRefused(host="lab", user="ada", attempt=LoginAttempt(unanswered="(ada@lab) Code:", has_control_path=True)),
        23,
        "lab: the login as ada asks a person `(ada@lab) Code:`, and nobody was there to answer.",
        "Run a cell, or a command in a terminal, and answer there. Where nobody sits, use a key from the ssh agent "
        "that is enough by itself, or name a program in SSH_ASKPASS. An open connection of `ssh` (ControlPath) cannot "
        "be used.",
    ),
    (
        LoginRefused(host="lab", user="ada", attempt=LoginAttempt(accepted="a", unanswered="(ada@lab) Code:")),
        23,
        "lab: the key a was accepted for ada, but the host asks a person too: `(ada@lab) Code:`, and nobody was there "
        "to answer.",
        "Run a cell, or a command in a terminal, and answer there. Where nobody sits, use a key from the ssh agent "
        "that is enough by itself, or name a program in SSH_ASKPASS.",
    ),
    (
        LoginRefused(host="lab", user="ada", attempt=LoginAttempt(answered=("(ada@lab) Code:",) * 3)),
        23,
        "lab: the login as ada was refused: the host did not accept the answer to `(ada@lab) Code:`.",
        "Try again in a moment with the right one; hosts lock those out who fail often.",
    ),
    (
        LoginRefused(
            host="lab", user="ada", attempt=LoginAttempt(answered=("(ada@lab) Code:",), said="Your account has expired")
        ),
        23,
        'lab: the login as ada was refused after an answer to `(ada@lab) Code:`, and the host said: "Your account has '
        'expired".',
        "Do what it says, in a terminal with `ssh`, or ask the host's owner about the account.",
    ),
    (
        LoginRefused(host="lab", user="ada", attempt=LoginAttempt(accepted="a", said="Your account has expired")),
        23,
        'lab: the key a was accepted for ada, then the host refused: "Your account has expired".',
        "Ask the host's owner about the account.",
    ),
    (
        LoginRefused(host="lab", user="ada", attempt=LoginAttempt(is_flooded=True)),
        23,
        "lab: the login as ada was refused after too many keys (no key was offered).",
        "Set the right IdentityFile and `IdentitiesOnly yes` for this host in ~/.ssh/config.",
    ),
    (
        HostKeyUnknown(host="lab", algorithm="ssh-ed25519", fingerprint="SHA256:abc", is_kept=False),
        24,
        "lab: its host key is not known yet (ssh-ed25519 SHA256:abc).",
        "Let UserKnownHostsFile of this host name a file that keeps keys; compare the fingerprint with the one its "
        "owner gives you, then run `kernelbridge trust lab`.",
    ),
    (
        SshConfigInvalid(host="lab", reason="x is missing", remedy="Install x."),
        28,
        "lab: the ssh configuration cannot be used (x is missing).",
        "Install x.",
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
        "lab: its host key has CHANGED (now ssh-ed25519 SHA256:abc); somebody may be intercepting the connection.",
        "Ask its owner. If the change is genuine, run `ssh-keygen -R '[lab.example]:2222'`, then `kernelbridge trust "
        "lab`.",
    ),
    (
        HostKeyChanged(
            host="lab", algorithm="ssh-rsa", fingerprint="SHA256:abc", known_hosts_name="lab", is_revoked=True
        ),
        25,
        "lab: its host key is REVOKED (ssh-rsa SHA256:abc); somebody may be intercepting the connection.",
        "Ask its owner for a new key.",
    ),
    (
        ForwardingForbidden(host="lab"),
        26,
        "lab: its sshd forbids forwarding, and there is no docker command on the host to use instead.",
        "Ask for `AllowStreamLocalForwarding yes` in its sshd_config, or for the docker command to be installed.",
    ),
    (
        LinkLost(host="lab", since="12:00"),
        27,
        "lab: the link is lost (since 12:00).",
        "It is being reopened; what runs there keeps running.",
    ),
    (
        SshConfigInvalid(host="lab", reason="timed out"),
        28,
        "lab: the ssh configuration cannot be used (timed out).",
        "Fix ~/.ssh/config.",
    ),
    (
        SshFailed(host="lab", reason="timed out"),
        29,
        "lab: SSH failed (timed out).",
        "Try `ssh -v` to the same host; it says more.",
    ),
    (
        EngineMissing(host="lab", looked=["/var/run/docker.sock", "/run/user/1000/docker.sock"]),
        30,
        "lab: no Docker engine was found (looked at /var/run/docker.sock, /run/user/1000/docker.sock).",
        "Install Docker there, or set `socket` of [hosts.lab].",
    ),
    (
        EngineMissing(host="lab", looked=["/var/run/docker.sock"], elsewhere="tcp://10.0.0.7:2375"),
        30,
        "lab: no Docker engine was found (looked at /var/run/docker.sock). Its docker command uses "
        "tcp://10.0.0.7:2375, which is not a socket of this machine.",
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
        "lab: its Docker engine is too old (API 1.30; 1.40 is needed).",
        "Update Docker there to 19.03 or newer.",
    ),
    (
        EngineFailed(host="lab", action="create the container", reason="timed out"),
        34,
        "lab: Docker could not create the container (timed out).",
        "The engine's log on the host may say more.",
    ),
    (
        ImageMissing(host="lab", image="pytorch:2", reason="manifest unknown"),
        40,
        "lab: there is no image pytorch:2 (manifest unknown).",
        "Check the name; if it is private, run `docker login` on lab.",
    ),
    (
        ImagePullFailed(host="lab", image="pytorch:2", reason="no space left on device"),
        41,
        "lab: the image pytorch:2 could not be pulled (no space left on device).",
        "Try again; `docker pull pytorch:2` on lab may say more.",
    ),
    (
        BuildFailed(host="lab", environment="torch", reason="exit code: 3"),
        92,
        "lab: the image of torch could not be built (exit code: 3).",
        "Correct its Dockerfile or `build` of the environment, and try again.",
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
        "Create it on lab, or remove it from `mounts`.",
    ),
    (
        GpuUnavailable(host="lab", wanted="2 GPUs", found="1 GPU"),
        44,
        "lab: 2 GPUs requested, found 1 GPU.",
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
        "Fix the environment and try again.",
    ),
    (
        UlimitRefused(host="lab", reason="error setting rlimit type 8"),
        47,
        "lab: the engine is not allowed to set the requested limits (error setting rlimit type 8).",
        "Lower `ulimits`, or remove them.",
    ),
    (
        KernelDied(environment="pytorch", host="lab", how="exit code 3", last_words="Segmentation fault."),
        50,
        "The kernel of pytorch on lab ended: exit code 3. Its last output: Segmentation fault.",
        "Restart the kernel to continue.",
    ),
    (
        KernelOutOfMemory(environment="pytorch", host="lab", limit="2g"),
        51,
        "The kernel of pytorch on lab ran out of memory (2g) and was killed.",
        "Raise `memory` of the environment or use less; restart the kernel to continue.",
    ),
    (
        KernelNotFound(kernel="aabb", hosts=["lab", "two"]),
        52,
        "No kernel `aabb` on lab, two.",
        "`kernelbridge ps` lists the kernels.",
    ),
    (
        StartTimeout(host="lab", what="the image pull", seconds=1800.0),
        53,
        "lab: the image pull took longer than 1800 s.",
        "Raise `start_seconds` of the environment.",
    ),
    (
        StartTimeout(host="lab", what="`nvidia-smi`", seconds=30.0, remedy="Run it there."),
        53,
        "lab: `nvidia-smi` took longer than 30 s.",
        "Run it there.",
    ),
    (
        SshFailed.no_command(host="lab", user="ada", words="This account is currently not available."),
        29,
        "lab: SSH failed (the login as ada was accepted, but the host runs no command for it: "
        '"This account is currently not available.").',
        "Log in there once with `ssh` and do what it asks, or ask its administrator for a login that may run commands.",
    ),
    (
        SshFailed.reads_all(host="lab"),
        29,
        "lab: SSH failed (a start-up file of the login, such as ~/.bashrc, starts another shell or reads its input, "
        "and waits for the end of what a command is still to be sent).",
        "Let that file do so in terminals only: `[ -t 0 ] && exec fish` instead of `exec fish`.",
    ),
    (
        SshFailed.no_command(host="lab", user="ada", words=""),
        29,
        "lab: SSH failed (the login as ada was accepted, but the host runs no command for it, and it says nothing).",
        "Log in there once with `ssh` and do what it asks, or ask its administrator for a login that may run commands.",
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
        "aabb1111 on lab has been held by ada@laptop since 12:04.",
        "`kernelbridge attach --take aabb1111` takes it over; the other one then loses it.",
    ),
    (
        KernelOfOtherVersion(kernel="aabb1111", host="lab", release="0.1.0", is_newer=False, own_release="0.3.0"),
        90,
        "aabb1111 on lab was made by kernelbridge 0.1.0; this is 0.3.0, which cannot join it.",
        "`pip install kernelbridge==0.1.0`, here, joins it again; until then `kernelbridge logs aabb1111` shows its "
        "log and `kernelbridge stop aabb1111` ends it.",
    ),
    (
        KernelOfOtherVersion(kernel="aabb1111", host="lab", release="", is_newer=True, own_release="0.1.0"),
        90,
        "aabb1111 on lab was made by a newer kernelbridge; this is 0.1.0, which cannot join it.",
        "`pip install --upgrade kernelbridge`, here, joins it again; until then `kernelbridge logs aabb1111` shows its "
        "log and `kernelbridge stop aabb1111` ends it.",
    ),
    (
        PackagesFailed(host="lab", image="pytorch:2", what="debugpy", reason="ERROR: No matching distribution"),
        91,
        "lab: debugpy could not be added to the image pytorch:2 (ERROR: No matching distribution).",
        "Add `RUN pip install ipykernel` to the image, or let `pip` on this machine reach its index.",
    ),
    (
        BoardFailed(kernel="aabb1111 on lab", reason="No module named tensorboard"),
        95,
        "TensorBoard in the container of the kernel aabb1111 on lab ended (No module named tensorboard).",
        'If it is missing, write `packages = ["tensorboard"]` in the environment and restart the kernel.',
    ),
    (
        ForwardFailed(kernel="aabb1111", reason="lab does not answer"),
        94,
        "The ports of the kernel aabb1111 cannot be reached (lab does not answer).",
        "Try again; `kernelbridge ps` says whether the kernel runs and its host answers.",
    ),
    (
        CommandNotRun(host="lab", reason="pythno: No such file or directory"),
        93,
        "lab: the command could not be run: pythno: No such file or directory.",
        "Check the command's name and the folder; `kernelbridge shell` shows what the container has.",
    ),
    (
        CommandNotRun.in_its_place(host="lab", environment="pytorch", reason="pythno: No such file or directory"),
        93,
        "lab: the command could not be run: pythno: No such file or directory.",
        "Check the command's name and the folder; `kernelbridge up pytorch` and then `kernelbridge shell` show what "
        "the container has.",
    ),
    (
        KernelEnded(
            environment="aabb1111", host="lab", how="does not run", remedy="`kernelbridge ps` lists what runs."
        ),
        55,
        "The container of aabb1111 on lab does not run.",
        "`kernelbridge ps` lists what runs.",
    ),
    (
        CommandNotRun.of_old_relay(host="lab"),
        93,
        "lab: the command could not be run: its container was started by an older kernelbridge, or has just ended.",
        "Start it anew, and try again.",
    ),
    (
        KernelTaken(environment="pytorch", host="lab", who="ada@desk"),
        57,
        "The kernel of pytorch on lab was taken over by ada@desk.",
        "It keeps running there; `kernelbridge ps` shows it, `kernelbridge attach --take` takes it back.",
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
        "The kernel aabb1111 on lab has output that nobody has fetched yet (3.2 MB), so it is kept.",
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
    assert error.to_json() == {"sentence": sentence, "remedy": remedy, "exit_code": exit_code}


@pytest.mark.parametrize("error", [error for error, *_ in TABLE], ids=name_of)
def test_each_sentence_names_its_place_and_is_one_line(error: KernelBridgeError) -> None:
    places = ("lab", "pytorch", "/k.toml", "/kernels/a", "/run/kernel-1.json", "This machine")
    assert any(place in error.sentence for place in places)
    assert "\n" not in str(error)
    for text in (error.sentence, error.remedy):
        assert not text or isinstance(error, ConfigInvalid) or re.search(r"[.?]$", text)


def test_every_kind_of_error_is_in_the_table() -> None:
    assert {type(error) for error, *_ in TABLE} == set(reference.kinds())


def test_no_two_kinds_have_one_exit_code_and_none_has_a_shells() -> None:
    codes = [kind.exit_code for kind in reference.kinds()]
    assert len(set(codes)) == len(codes)
    # 1 and 2 are anybody's, 64 to 78 are sysexits.h's, from 126 on a shell's.
    assert all(10 <= code < 64 or 79 <= code < 126 for code in codes)


def test_the_tree_at_the_top_of_the_file_is_whole() -> None:
    """The first digit of the exit code is the branch."""
    branches = re.findall(
        r"^    (\d)x .*?:((?:.|\n        )*)",
        errors.__doc__ or "",
        re.MULTILINE,
    )
    written = {name: int(digit) for digit, names in branches for name in re.findall(r"\b[A-Z]\w+", names)}
    assert written == {kind.__name__: kind.exit_code // 10 for kind in reference.kinds()}


@pytest.mark.parametrize("kind", reference.kinds(), ids=lambda kind: kind.__name__)
def test_each_kind_has_a_docstring_and_one_root(kind: type[KernelBridgeError]) -> None:
    assert kind.__doc__
    assert kind.__bases__ == (KernelBridgeError,)


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (errors.LinkLost(host="lab"), "lab: the link is lost."),
        (errors.UnknownHost(name="x", path="/k.toml"), "no host `x`."),
        (errors.KernelDied(environment="a", host="lab", how="exit code 3"), "ended: exit code 3."),
        (errors.KernelNotFound(kernel="a", hosts=["lab"]), "No kernel `a` on lab."),
        (
            errors.KernelNotFound(kernel="a", hosts=["lab"], found=["a1 (x.ipynb, gpu)", "a2 (cpu)"]),
            "`a` may be any of 2 kernels: a1 (x.ipynb, gpu), a2 (cpu). Name it by more of its id.",
        ),
        (
            errors.KernelNotFound(kernel="a", hosts=["lab"], renamed=("kernelbridge-a1", "b")),
            "No kernel `a` on lab: its container was renamed, and is b now.",
        ),
        (errors.ImageUnusable(image="x", lacks="python3", remedy="Use another."), "Use another."),
        (
            errors.GpusBusy(host="lab", wanted="1 GPU", holders=["GPU 0: bob"]),
            "not free: GPU 0: bob.",
        ),
        (errors.JobEnded(environment="a", host="lab", job="1", how="ended", remedy="Wait."), "ended. Wait."),
        (errors.GpuMismatch(host="lab", wanted="a", seen="b", remedy="Ask."), "stopped. Ask."),
    ],
)
def test_facts_that_are_not_known_leave_no_gap(error: KernelBridgeError, part: str) -> None:
    assert str(error).find(part) >= 0
    assert "  " not in str(error)
    assert "None" not in str(error)


def test_a_build_that_failed_shows_its_last_lines_below_the_remedy() -> None:
    error = BuildFailed(host="lab", environment="torch", reason="exit code: 3", lines=["no such\x1b[0m package"])
    assert error.lines()[-2:] == ["The build's last lines:", "  no such?[0m package"]


@pytest.mark.parametrize("error", [row[0] for row in TABLE], ids=lambda error: type(error).__name__)
def test_every_error_fits_where_editors_show_it_with_its_remedy_on_a_line_of_its_own(error: KernelBridgeError) -> None:
    lines = error.lines()
    assert lines[0].startswith(f"{type(error).__name__}: ")
    assert all(len(line) <= errors.TRACEBACK_COLUMNS or " " not in line for line in lines)
    if error.remedy:
        assert sum(error.remedy.startswith(line) for line in lines) >= 1
        assert " ".join(lines).endswith(error.remedy)


def test_a_configs_problems_and_what_was_noted_stand_on_lines_of_their_own() -> None:
    problems = [Problem(key="a", sentence="unknown key"), Problem(key="b", sentence="not a number")]
    error = ConfigInvalid(path="/k.toml", problems=problems)
    error.add_note("So it was not loaded.")
    assert error.lines() == [
        "ConfigInvalid: /k.toml: a: unknown key",
        "/k.toml: b: not a number",
        "Fix the file; `kernelbridge config` checks it.",
        "So it was not loaded.",
    ]


def test_a_word_that_is_longer_than_a_line_stays_whole() -> None:
    assert errors.wrapped(f"see {'x' * 90} there", 80) == ["see", "x" * 90, "there"]


def test_foreign_words_in_an_error_are_text() -> None:
    error = EngineFailed(host="lab", action="start", reason="\x1b]52;c;aGk=\x07 line\nline\x9b")
    for said in (error.sentence, str(error), error.args[0], error.to_json()["sentence"]):
        assert "lab: Docker could not start (?]52;c;aGk=? line line?)." in str(said)
