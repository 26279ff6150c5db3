"""kernel/failures.py: what people are told of a start and an end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import (
    ContainerFailed,
    EngineDown,
    EngineFailed,
    GpuLost,
    ImageUnusable,
    KernelDied,
    KernelEnded,
    KernelExpired,
    KernelOutOfMemory,
    LinkLost,
)
from kernelbridge.hosts.backend import Exited, Missing
from kernelbridge.hosts.docker.engine import PullProgress
from kernelbridge.hosts.progress import Meter
from kernelbridge.kernel import failures
from kernelbridge.kernel.request import LaunchRequest, RunCommand
from kernelbridge.protocol.exit_codes import EXIT_CODES
from kernelbridge.protocol.handshake import DroppedEvent, FailedEvent, NoticeEvent
from tests.made_clock import StillClock
from tests.made_events import exited

HOST = Host(name="lab", ssh="lab")


def launch_request(**keys: Any) -> LaunchRequest:
    environment = Environment(name="torch", image="torch:2", **keys)
    return LaunchRequest(kernel_id="k1", environment=environment, display_name="Torch", hosts=(HOST,), environ={})


def test_a_death_names_environment_host_code_and_last_words() -> None:
    error = failures.death(launch_request(), HOST, exited(code=-11, last_words="Segmentation fault"))
    assert isinstance(error, KernelDied)
    assert error.sentence == (
        "The kernel of Torch on lab ended: signal SIGSEGV (native code used memory that is not its own). "
        "Its last output: Segmentation fault"
    )


def test_a_setup_is_told_by_its_command_and_its_last_words() -> None:
    failed = failures.failed_start(launch_request(), HOST, FailedEvent(1, reason="exit code 1: no", setup="make\nit"))
    assert failed.sentence == "The setup of Torch on lab failed: `make` ended with exit code 1: no."
    cases = (("make\nit", "done 1 of 3"), ("make", ""), (" ", ""))
    told = [failures.setup_progress(NoticeEvent(1, "setup", path, why)) for path, why in cases]
    assert [str(one) for one in told] == ["setup: make: done 1 of 3", "setup: make", "setup"]
    assert {one.logged for one in told if one is not None} == {"setup"}, "a log has no command of the user's"
    assert failures.setup_progress(NoticeEvent(1, "moved", "/root", "/home")) is None


@pytest.mark.parametrize(
    ("kind", "path", "reason", "text"),
    [
        ("moved", "/root", "/home/ada", "the kernel starts in /home/ada: your user may not enter /root"),
        ("refused", "/data", "Permission denied", "you cannot write to the mount /data on lab (Permission denied)"),
        ("foreign", "/data", "65534", "what is written to the mount /data belongs to user 65534 on lab, not to you"),
        ("squashed", "/data", "Permission denied", "root cannot write to the mount /data on lab (Permission denied)"),
        ("selinux", "/data", "Permission denied", "SELinux on lab keeps the kernel out of the mount /data"),
        (
            "mapped",
            "/data",
            "65534",
            "what is written to the mount /data belongs to user 65534 on lab, not to you: its",
        ),
        ("of a newer relay", "/data", "", ""),
    ],
)
def test_what_a_user_would_not_expect_is_one_line(kind: str, path: str, reason: str, text: str) -> None:
    told = failures.notice_text(NoticeEvent(1, kind, path, reason), HOST)
    assert told.startswith(text)
    assert bool(told) is bool(text)


CLUSTER = Host(name="hpc", ssh="hpc", scheduler="slurm", runtime="apptainer")


@pytest.mark.parametrize(
    ("facts", "keys", "host", "how", "remedy"),
    [
        (
            {"code": -7, "full": ("/dev/shm",), "shm_bytes": 64 * 2**20},
            {},
            HOST,
            "signal SIGBUS (/dev/shm, whose size is `shm_size`, 64 MiB, is full).",
            "Raise `shm_size` of its environment, shut the kernel down",
        ),
        ({"code": -7}, {}, HOST, "(/dev/shm, whose size is `shm_size`, was most likely full).", "Raise `shm_size`"),
        (
            {"code": -7, "shm_bytes": 2**30},
            {"ipc": "host"},
            HOST,
            "(/dev/shm, 1,024 MiB, was most likely full).",
            "Free /dev/shm on the host",
        ),
        ({"code": -7}, {}, CLUSTER, "signal SIGBUS (/dev/shm was most likely full).", "Free /dev/shm on the host"),
        (
            {"code": -7, "full": ("/dev/shm", "/data")},
            {},
            HOST,
            "signal SIGBUS; there is no room left in /data.",
            "Free some there.",
        ),
        (
            {"code": 1, "full": ("/tmp/k/tmp", "/data")},
            {},
            HOST,
            "exit code 1; there is no room left in /tmp/k/tmp and /data.",
            "Free some there. Restart",
        ),
        (
            {"code": -4},
            {},
            HOST,
            "signal SIGILL (it has an instruction that this processor does not know).",
            "Use a build of the package, or an image, for the processor of lab.",
        ),
        ({"code": -9}, {}, HOST, "signal SIGKILL (something outside killed it).", "Restart the kernel"),
        ({"code": 3, "full": ("/dev/shm",)}, {}, HOST, "ended: exit code 3.", "Restart the kernel to continue."),
        ({"code": -15}, {}, HOST, "ended: signal SIGTERM.", "Restart the kernel to continue."),
    ],
)
def test_a_death_is_explained_as_far_as_its_code_and_its_folders_tell(
    facts: dict[str, Any], keys: dict[str, Any], host: Host, how: str, remedy: str
) -> None:
    error = failures.death(launch_request(**keys), host, exited(**facts))
    assert error.sentence.endswith(how)
    assert error.remedy.startswith(remedy)


def test_an_older_relay_may_take_ipykernels_banner_for_last_words() -> None:
    error = failures.death(launch_request(), HOST, exited(code=3, last_words="--existing kernel-d1c6.json"))
    assert error.sentence == "The kernel of Torch on lab ended: exit code 3."


@pytest.mark.parametrize(("memory", "limit"), [("2g", "its limit is 2 GiB"), (None, "the host had no memory left")])
def test_a_death_for_lack_of_memory_names_the_limit(memory: str | None, limit: str) -> None:
    error = failures.death(launch_request(memory=memory), HOST, exited(code=-9, out_of_memory=True))
    assert isinstance(error, KernelOutOfMemory)
    assert limit in error.sentence


def test_an_end_by_a_limit_names_the_key_that_set_it() -> None:
    error = failures.death(launch_request(), HOST, exited(code=-9, wanted=True, why="max_lifetime"))
    assert isinstance(error, KernelExpired)
    assert error.sentence == "The kernel of Torch on lab was ended by `max_lifetime` of its environment."
    assert isinstance(failures.death(launch_request(), HOST, exited(why="")), KernelDied)


def test_the_end_of_a_kernel_that_nobody_used_is_no_limit_of_the_users() -> None:
    container = Exited(code=EXIT_CODES["unused"], oom_killed=False, error="", finished_at="")
    for error in (
        failures.death(launch_request(), HOST, exited(-9, why="unused")),
        failures.container_end(launch_request(), HOST, container),
    ):
        assert type(error) is KernelEnded
        assert "nobody had run a cell in it, and this machine could not be reached for 10 minutes" in error.sentence


@pytest.mark.parametrize(
    ("messages", "size", "text"),
    [
        (1, 2_000_000, "[kernelbridge: dropped 1 message of this output (2.0 MB): `journal_size` was reached]\n"),
        (
            12_345,
            40_000,
            "[kernelbridge: dropped 12,345 messages of this output (0.0 MB): `journal_size` was reached]\n",
        ),
    ],
)
def test_a_line_stands_for_output_that_had_no_room(messages: int, size: int, text: str) -> None:
    assert failures.dropped_text(DroppedEvent(1, {}, messages, size)) == text


def test_a_pause_says_what_ends_it() -> None:
    text = "the container is paused on lab; the cell goes on after `docker unpause kernelbridge-k1` there"
    assert failures.pause_text("k1", HOST) == text
    assert "the job is suspended on hpc" in failures.pause_text("k1", CLUSTER)


def test_an_image_that_lacks_something_is_told_from_a_container_that_failed() -> None:
    lacking = failures.failed_start(launch_request(), HOST, FailedEvent(1, lacks="ipykernel"))
    assert isinstance(lacking, ImageUnusable)
    assert lacking.sentence == "The image torch:2 has no ipykernel."
    failed = failures.failed_start(launch_request(), HOST, FailedEvent(1, reason="no folder"))
    assert isinstance(failed, ContainerFailed)
    assert "no folder" in failed.sentence


def test_a_pull_says_how_far_it_is_once_it_knows() -> None:
    clock = StillClock()
    meter, first = Meter("pulling torch:2", clock=clock), PullProgress(image="torch:2", status="Waiting")
    assert str(failures.pull_progress(meter, first)) == "pulling torch:2"
    some = replace(first, done_bytes=500_000_000, total_bytes=1_000_000_000, grows=True)
    assert str(failures.pull_progress(meter, some)) == "pulling torch:2: 0.50 of at least 1.00 GB"
    clock.now += 10
    half = replace(first, done_bytes=1_500_000_000, total_bytes=3_000_000_000)
    line = "pulling torch:2: 50 %, 1.50 of 3.00 GB, 200 MB/s, about 8 s left"
    assert str(failures.pull_progress(meter, half)) == line
    untold = replace(first, done_bytes=9, total_bytes=9, done_layers=2, total_layers=5)
    assert str(failures.pull_progress(meter, untold)) == "unpacking torch:2: 2 of 5 layers"
    told = replace(untold, unpacked_bytes=3)
    assert str(failures.pull_progress(meter, told)) == "unpacking torch:2: 33 %, 3 of 9 B, 2 of 5 layers"


@pytest.mark.parametrize(
    ("network", "asked_for", "is_refused"),
    [("bridge", False, False), ("none", False, False), ("host", False, True), ("host", True, False)],
)
def test_debugging_is_refused_on_the_hosts_network_unless_asked_for(
    network: str, asked_for: bool, is_refused: bool
) -> None:
    environment = Environment(name="torch", image="torch:2", network=network, debug_on_host_network=asked_for)
    said = failures.debug_refusal(environment, HOST)
    assert bool(said) is is_refused
    assert ("Debugging is off in torch" in said) is is_refused


@pytest.mark.parametrize(
    ("runtime", "network", "asked_for", "is_refused"),
    [
        ("apptainer", "bridge", False, True),
        ("apptainer", "none", False, False),
        ("apptainer", "bridge", True, False),
        ("pyxis", "none", False, True),
        ("podman", "bridge", False, False),
        ("docker", "host", False, True),
    ],
)
def test_debugging_is_refused_in_a_job_that_has_its_nodes_network(
    runtime: Any, network: str, asked_for: bool, is_refused: bool
) -> None:
    environment = Environment(name="torch", image="torch:2", network=network, debug_on_host_network=asked_for)
    cluster = Host(name="hpc", ssh="hpc", scheduler="slurm", runtime=runtime)
    said = failures.debug_refusal(environment, cluster)
    assert bool(said) is is_refused
    assert (f"{runtime} runs it on the node's network" in said) is is_refused


# -- a relay that ended before it could be joined

TINI = "[FATAL tini (7)] exec python3 failed: "


@pytest.mark.parametrize(
    ("code", "log", "kind", "sentence"),
    [
        (
            78,
            "kernelbridge cannot run in Python 3.7",
            ImageUnusable,
            "The image i has Python 3.7; kernelbridge needs 3.8.",
        ),
        (78, "noise\nkernelbridge cannot run in Python 2.7\n", ImageUnusable, "The image i has Python 2.7; kernel"),
        (78, "", ImageUnusable, "The image i has Python of an old version; kernelbridge needs 3.8."),
        (1, f"{TINI}Exec format error", ImageUnusable, "The image i is for arm64, lab is x86_64."),
        (1, "exec /usr/bin/python3: exec format error", ImageUnusable, "The image i is for arm64, lab is x86_64."),
        (127, f"{TINI}No such file or directory", ImageUnusable, "The image i has no `python3`."),
        (127, "", ImageUnusable, "The image i has no `python3`."),
        (126, f"{TINI}Permission denied", ImageUnusable, "The image i has no `python3` that its user may run."),
        (
            1,
            "exec /sbin/docker-init not found",
            EngineFailed,
            "lab: Docker could not start a container (the host has no",
        ),
        (
            127,
            "python3: error while loading shared libraries: libpython3.so.1.0: cannot open shared object file",
            ContainerFailed,
            "(exit code 127: python3: error while loading shared libraries: libpython3.so.1.0",
        ),
        (1, "Traceback\nModuleNotFoundError: x", ContainerFailed, "(exit code 1: ModuleNotFoundError: x)"),
        (3, "", ContainerFailed, "(it ended with exit code 3)"),
        (85, "", ContainerFailed, "(nobody could join it for 60 s)"),
        (77, "", ContainerFailed, "(what it was to do did not reach it)"),
        (143, "", ContainerFailed, "(something stopped it)"),
    ],
)
def test_a_relay_that_could_not_begin_says_what_its_image_or_host_lacks(
    code: int, log: str, kind: type[Exception], sentence: str
) -> None:
    how = Exited(code=code, oom_killed=False, error="", finished_at="")
    error = failures.relay_end(
        host="lab", image="i", python="python3", how=how, log=log, architectures=("arm64", "x86_64")
    )
    assert type(error) is kind
    assert sentence in error.sentence


def test_an_image_for_an_unknown_processor_is_told_without_its_name() -> None:
    how = Exited(code=1, oom_killed=False, error="", finished_at="")
    error = failures.relay_end(
        host="lab", image="i", python="python3", how=how, log=f"{TINI}Exec format error", architectures=("", "")
    )
    assert error.sentence == "The image i is for another architecture than lab."


RUN_LATER = (
    "The image's ENTRYPOINT (/entry.sh) runs after `python` was looked for: write the Python that it sets up there."
)
NOT_RUN = "The image's ENTRYPOINT (/entry.sh) is not run: what it sets up, set with `env` and `python`."


@pytest.mark.parametrize(
    ("entrypoint", "is_said"),
    [
        (["/entry.sh"], True),
        ([], False),
        (["/usr/bin/tini", "--"], False),
        (["/usr/bin/tini", "-g", "--", "/entry.sh"], True),
        (["/bin/sh", "-c"], False),
    ],
)
def test_an_entrypoint_is_named_where_what_it_sets_up_may_be_missing(entrypoint: list[str], is_said: bool) -> None:
    request = launch_request()
    told = failures.failed_start(request, HOST, FailedEvent(1, lacks="ipykernel"), entrypoint=entrypoint)
    assert ("ENTRYPOINT" in told.remedy) is is_said
    lacking = failures.broken_start(request, HOST, ImageUnusable(image="i", lacks="`python3`"), entrypoint=entrypoint)
    assert ("ENTRYPOINT" in lacking.remedy) is is_said
    # Another fault has its own remedy alone.
    for other in (
        ImageUnusable(image="i", fault="is for arm64, lab is x86_64", remedy="Use another."),
        EngineDown(host="lab", socket="/s"),
    ):
        assert "ENTRYPOINT" not in str(failures.broken_start(request, HOST, other, entrypoint=entrypoint))
    if entrypoint == ["/entry.sh"]:
        assert told.remedy.endswith(RUN_LATER)
        off = replace(request, environment=request.environment.model_copy(update={"entrypoint": "off"}))
        told = failures.failed_start(off, HOST, FailedEvent(1, lacks="ipykernel"), entrypoint=entrypoint)
        assert told.remedy.endswith(NOT_RUN)


def test_a_kernel_without_what_the_entrypoint_sets_up_says_so() -> None:
    assert failures.entrypoint_failure(["/entry.sh", "-x"], "ended with exit code 1: no\x1b[0m such") == (
        "the image's ENTRYPOINT (/entry.sh -x) ended with exit code 1: no?[0m such; the kernel runs without what it "
        'sets up. `entrypoint = "off"` of the environment leaves it out'
    )


RUN = replace(launch_request(shm_size="1g"), command=RunCommand(argv=("train",)))
KILLED = Exited(code=137, oom_killed=False, error="", finished_at="")
UNJOINED = Exited(code=EXIT_CODES["unjoined"], oom_killed=False, error="", finished_at="")


@pytest.mark.parametrize(
    "text",
    [
        str(failures.death(RUN, HOST, exited(code=-9, out_of_memory=True))),
        str(failures.death(RUN, HOST, exited(code=-9, full=("/data",)))),
        str(failures.death(RUN, HOST, exited(code=-7))),
        str(failures.death(RUN, HOST, exited(code=-15, why="max_lifetime"))),
        str(failures.container_end(RUN, HOST, KILLED)),
        str(failures.container_end(RUN, HOST, UNJOINED)),
        str(failures.container_end(RUN, HOST, Missing())),
        str(failures.broken_start(RUN, HOST, LinkLost(host="lab"))),
        str(GpuLost(environment="torch", host="lab", what="command")),
        failures.entrypoint_failure(["/entry.sh"], "ended", what="command"),
        failures.pause_text("k1", HOST, what="command"),
        failures.pause_text("k1", CLUSTER, what="command"),
        failures.dropped_words(DroppedEvent(1, {}, 2, 3_000_000)),
        *(
            failures.notice_text(NoticeEvent(1, kind, "/data", "x"), HOST, what="command")
            for kind in ("moved", "refused", "squashed", "selinux", "mapped", "foreign")
        ),
        failures.other_user_text("lab", "x", what="command"),
    ],
)
def test_who_runs_a_command_hears_of_no_kernel_and_no_cell(text: str) -> None:
    words = text.replace("kernelbridge", "")
    assert "kernel" not in words
    assert "cell" not in words
    assert "[" not in words
