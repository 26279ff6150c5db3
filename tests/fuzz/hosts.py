"""What hosts answer: nvidia-smi, Slurm, container engines and their errors, the login's own facts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st

from kernelbridge.config.schema import Environment
from kernelbridge.errors import EngineTooOld, ImageUnusable, KernelBridgeError
from kernelbridge.hosts.docker import (
    cli_config,
    error_map,
    gpu_access,
    gpu_queue,
    reasons,
    registry_auth,
    responses,
    users,
)
from kernelbridge.hosts.docker.hijack import Demultiplexer, FramingError, HeadReader, UpgradeError, error_message
from kernelbridge.hosts.docker.images import dockerignore, python_probe
from kernelbridge.hosts.gpus import nvidia_smi
from kernelbridge.hosts.labels import Labels, parse_labels
from kernelbridge.hosts.slurm import commands, job_ending
from kernelbridge.hosts.transport import facts
from tests.fuzz.mutations import mutated, mutated_json, mutated_text, refused

_SAMPLES: Final = Path(__file__).parents[1] / "unit" / "samples"
_NOW: Final = datetime(2026, 11, 28, tzinfo=UTC)


def _sample(name: str) -> str:
    return (_SAMPLES / name).read_text("utf-8")


# -- nvidia-smi


def _answers() -> list[str]:
    listed = _sample("nvidia-smi/h100-L.txt")
    answers = [_sample(f"nvidia-smi/{name}.txt") for name in ("four-h200", "gb10", "mig-a100", "mig-a100")]
    for name in ("h100-busy", "h100-kernel"):
        xml = _sample(f"nvidia-smi/{name}.xml")
        answers.append(f"kernelbridge gpus xml\n{xml}kernelbridge gpus list\n{listed}kernelbridge gpus end\n")
    return answers


GPUS: Final = mutated_text(_answers())


def check_gpus(answer: str) -> None:
    """Any answer is cards or a trouble, with nothing in it that a terminal would obey."""
    found = nvidia_smi.parse(answer, answer[-100:])
    assert not found.gpus or not found.trouble
    for gpu in found.gpus:
        assert gpu.uuid.startswith(("GPU-", "MIG-"))
        assert gpu.free_mib >= 0
        assert all(process.pid >= 0 and process.name.isprintable() for process in gpu.processes)
        assert (gpu.uuid + gpu.name + gpu.index + gpu.brand).isprintable()
    assert (nvidia_smi.shown(found.gpus, trouble=found.trouble) + found.driver + found.cuda).isprintable()


# -- Slurm

_ACCOUNTS: Final = (
    "CANCELLED by 1000|0:15|None|n1\nFAILED|1:0|None|n2\nOUT_OF_ME+|0:125|OutOfMemory|n3\nRUNNING|0:0||\n"
)
_ENDINGS: Final = [
    _sample(f"slurm/{one}.txt") for one in ("failed", "timeout", "preempted", "node_fail", "cancelled", "running")
]
_LOGS: Final = [
    "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-28T10:00:00 DUE TO TIME LIMIT ***\n",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch.\nKilled\n",
    "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
]
SLURM: Final = mutated_text(
    [
        *(_sample("slurm/squeue.txt"), _sample("slurm/squeue.txt"), _sample("slurm/sinfo.txt"), _ACCOUNTS),
        *(*_ENDINGS, *_LOGS, "main*|gpu:h200:8(S:0-1),nic:2\nshort|(null)\n", "1234;cluster\n", "1-02:03:04", "59:53"),
    ]
)


def check_slurm(text: str) -> None:
    """Any text is jobs, nodes, an ending or nothing."""
    for job in commands.parse_queue(text, who="ada@lab").values():
        assert job.job.isdecimal() and (job.name + job.state + job.reason).isprintable()
        parse_labels(job.name, job.labels)
        assert commands.waiting_text(job, host="lab")
        assert repr(job) and job.is_waiting + job.is_running + job.is_ending <= 1
    for node in commands.parse_nodes(text):
        assert all(count >= 0 for count in (*node.gpus_total.values(), *node.gpus_used.values()))
    commands.parse_partitions(text)
    refused(lambda: commands.parse_job_id(text), ValueError)
    commands.parse_duration(text)
    commands.parse_time(text)
    assert commands.sentence(text)
    commands.is_silent(text)
    commands.says_gone(text)
    commands.is_unconfigured(text)
    for job_id in ("19", "11", "7"):
        for ending in (job_ending.parse_shown(text, job=job_id), job_ending.parse_accounts(text, job=job_id)):
            if ending is not None:
                error = job_ending.explain(ending, environment="torch", host="lab", runtime="apptainer")
                assert error.sentence and str(ending)
    assert job_ending.state_of_log(text)
    assert job_ending.last_line(text).isprintable()


_LABEL: Final = st.text(max_size=20)
LABELS: Final = st.fixed_dictionaries({one.name: _LABEL for one in fields(Labels)})


def check_labels(example: dict[str, str]) -> None:
    """Labels come back from a job's comment as they were, or are said to be too long; from containers too."""
    labels = Labels(**example).to_dict()
    comment = refused(lambda: commands.write_comment(labels), ValueError)
    if comment is not None:
        assert comment.isascii() and comment.isprintable() and "|" not in comment
        read = commands.parse_comment(comment)
        assert read == {**labels, "kernelbridge.user": ""}
    found = parse_labels(f"/kernelbridge-{example['kernel']}", labels)
    assert found is None or found.to_dict() == labels


# -- engines

_IMAGE: Final = {
    "Id": "sha256:1",
    "Size": 7,
    "Architecture": "arm",
    "Variant": "v7",
    "Created": "2026-01-01T00:00:00.123456789Z",
    "Config": {"Env": ["A=b"], "User": "me", "Labels": {"a": "b"}, "Entrypoint": ["/e"], "Cmd": ["sh"]},
}
_CONTAINER: Final = {
    "Id": "1",
    "Names": ["/kernelbridge-k1"],
    "Image": "a/b:1",
    "ImageID": "sha256:1",
    "Labels": {"kernelbridge.kernel": "k1"},
    "State": "running",
    "Created": 1700000000,
}
_STATE: Final = {
    "State": {
        "Status": "exited",
        "ExitCode": 137,
        "OOMKilled": True,
        "Error": "x",
        "FinishedAt": "2026-01-01T00:00:00.1Z",
    },
    "Config": {"Image": "a/b:1"},
}
_QUEUE: Final = {"kernelbridge.queue": "k1", "kernelbridge.wish": "2", "kernelbridge.user": "ada@lap"}
_VOLUMES: Final = {
    "Volumes": [
        {"Name": "kernelbridge-ticket-k1", "Labels": _QUEUE, "CreatedAt": "2026-01-01T00:00:00Z"},
        {"Name": "kernelbridge-ticket-k1-3", "Labels": _QUEUE, "CreatedAt": "2026-01-01T00:00:00+01:00"},
    ],
    "Warnings": ["w"],
}
_INFO: Final = {
    "Runtimes": {"nvidia": {"path": "n"}, "runc": {}},
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
    "CDISpecDirs": ["/etc/cdi"],
    "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=GPU-1"}],
    "SystemTime": "2026-01-01T00:00:00.5+01:00",
    "Driver": "overlay2",
}
_VERSION: Final = {"ApiVersion": "1.41", "Version": "20.10", "Components": [{"Name": "Podman Engine", "Version": "4"}]}
_PULL: Final = [
    {"status": "Pulling from a", "id": "latest"},
    {"status": "Downloading", "id": "a", "progressDetail": {"current": 3, "total": 10}},
    {"status": "Extracting", "id": "a", "progressDetail": {"current": 3, "total": 10}},
    {"status": "Pull complete", "id": "a"},
]
_DOCKER: Final = {
    "auths": {"https://r.example/v1/": {"auth": "YTpi"}, "q.example": {"username": "u", "password": "p"}},
    "credHelpers": {"r.example": "pass"},
    "credsStore": "desktop",
    "proxies": {"default": {"httpProxy": "http://p:3128", "noProxy": "x"}},
    "Username": "<token>",
    "Secret": "s",
}
_PYTHON: Final = {
    "path": "/usr/bin/python3",
    "prefix": "/usr",
    "version": "3.11.2",
    "cache_tag": "cpython-311",
    "soabi": "cpython-311-x86_64-linux-gnu",
    "libc": "glibc 2.36",
    "frameworks": ["torch"],
    "packages": {"ipykernel": "6.29"},
    "markers": {"python_version": "3.11"},
}
ENGINE: Final = mutated_json([_IMAGE, [_CONTAINER] * 2, _STATE, _VOLUMES, _INFO, _VERSION, _PULL, _DOCKER, _PYTHON])


def check_engine(answer: Any) -> None:
    """Any answer is understood, or refused with the one error that is translated; its facts have their types."""
    readers: tuple[Callable[[Any], Any], ...] = (
        responses.parse_images,
        responses.parse_image_uses,
        responses.parse_image_name,
        responses.read_warnings,
        responses.read_id,
    )
    for read in readers:
        refused(partial(read, answer), ValueError)
    image = refused(lambda: responses.parse_image(answer), ValueError)
    assert image is None or python_probe.possible_paths(image.env) is not None
    state = refused(lambda: responses.parse_state(answer), ValueError)
    assert state is None or repr(state)
    for row in refused(lambda: responses.parse_containers(answer), ValueError) or ():
        parse_labels(row.name, row.labels)
        datetime.fromtimestamp(row.created, UTC)
    for ticket in (tickets := gpu_queue.read(refused(lambda: responses.parse_volumes(answer), ValueError) or ())):
        assert gpu_queue.ahead(tickets, ticket.kernel_id, _NOW) is not None
    info = refused(lambda: responses.parse_info(answer), ValueError)
    if info is not None:
        gpu_queue.engine_now(info)
        _read_info(info)
    version = refused(lambda: responses.parse_version(answer), ValueError)
    if version is not None:
        engine = refused(lambda: responses.engine_facts(version, host="lab", socket="/s", transport="t"), EngineTooOld)
        assert engine is None or str(engine)
    tally = responses.PullTally(image="i")
    for line in answer if isinstance(answer, list) else [answer]:
        refused(partial(tally.add, line), ValueError)
    assert tally.progress.status.isprintable()
    text = json.dumps(answer)
    config = cli_config.parse_config(text)
    for registry in ("r.example", "q.example", registry_auth.registry_of("ubuntu")):
        registry_auth.helper_for(config, registry)
        found = registry_auth.stored(config, registry)
        assert all(isinstance(word, str) for word in found.values())
        registry_auth.told_by_helper(text, registry)
    assert all(isinstance(word, str) for word in cli_config.proxy_variables(config, "/var/run/docker.sock").values())
    pythons = python_probe.parse_probe(f"kernelbridge has found {text}\nkernelbridge has found {text}")
    assert len(pythons) <= 1
    refused(lambda: python_probe.choose(pythons, image="i"), ImageUnusable)
    for python in pythons:
        assert python_probe.parse_python(json.loads(json.dumps(python.to_dict()))) == python


def _read_info(info: responses.Answer) -> None:
    """Do with GET /info what is done with it elsewhere."""
    for version in ("20.10.5", "28.1.0", "5.0.1"):
        for access in ("auto", "cdi", "runtime"):
            refused(
                partial(
                    gpu_access.gpu_way,
                    info,
                    is_podman=version[0] == "5",
                    version=version,
                    access=access,
                    host="lab",
                ),
                KernelBridgeError,
            )
    for environment in (Environment(name="e", image="i"), Environment(name="e", image="i", user="host")):
        users.choose(environment, _HOST, info)


_HOST: Final = facts.HostFacts(
    user="ada", uid=1000, gid=1000, home="/h", sockets=(), has_docker_command=True, may_sudo_docker=False
)
_REFUSALS: Final = [
    "Error response from daemon: failed to create task for container: failed to create shim task: OCI runtime create "
    "failed: runc create failed: unable to start container process: error during container init: error running "
    "prestart hook #0: exit status 1, stdout: , stderr: Auto-detected mode as 'legacy'\n"
    "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object "
    "file: no such file or directory: unknown",
    "nvidia-container-cli: mount error: file creation failed: /var/lib/x/libcuda.so.1: file exists: unknown",
    "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.4, please update your driver",
    'invalid mount config for type \\"bind\\": bind source path does not exist: /data/x',
    "error while mounting volume '/a': failed to mount local volume: mount :/x: permission denied",
    "unshare: operation not permitted; cgroup: no space left on device; lookup r.example on 1.1.1.1:53: no such host",
    "toomanyrequests: You have reached your pull rate limit. no matching manifest for linux/arm64/v8 in the list",
    "failed to register layer: Error processing tar file(exit status 1): write /usr/lib/x: no space left on device",
    "does not match the specified platform: wanted linux/arm64, actual: linux/amd64; returned error: 503 x",
    "driver failed programming external connectivity on endpoint kb (abc): Error starting userland proxy: x",
]
REFUSAL: Final = mutated_text(_REFUSALS)


def check_refusal(message: str) -> None:
    """Any words of an engine become one error with a sentence, soon, however long they are."""
    for error in (
        error_map.container_error(host="lab", image="i", message=message),
        error_map.pull_error(host="lab", image="i", message=message),
    ):
        assert error.sentence
        assert len(error.sentence) < 6000
    assert reasons.told(message) is not None
    reasons.inmost(message)
    error_map.is_foreign(message)
    error_message(message.encode("utf-8", "replace"))
    responses.is_version_refusal(400, message)


_FRAMED: Final = b"\1\0\0\0\0\0\0\5hello\2\0\0\0\0\0\0\3err\1\0\0\0\0\0\0\4more"
_HEADS: Final = [
    b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\n\r\n"
    + _FRAMED,
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\nOCI runtime exec failed: x",
    b'HTTP/1.1 409 Conflict\r\nContent-Length: 24\r\n\r\n{"message":"not running"}',
    _FRAMED,
]
UPGRADE: Final = st.tuples(mutated(_HEADS), st.integers(1, 200))


def check_upgrade(example: tuple[bytes, int]) -> None:
    """An engine's stream is read as the same bytes wherever it is cut, or refused."""
    data, step = example
    reader, head = HeadReader(), None
    for at in range(0, len(data), step):
        try:
            head = reader.feed(data[at : at + step])
        except UpgradeError:
            break
        if head is not None:
            error_message(head.rest)
            break
    for stream in (data, head.rest if head is not None else b""):
        assert _unframed(stream, len(stream) or 1) in (None, _unframed(stream, step)) or _unframed(stream, step) is None


def _unframed(stream: bytes, step: int) -> tuple[bytes, bytes] | None:
    frames = Demultiplexer()
    found = (b"", b"")
    for at in range(0, len(stream), step):
        try:
            stdout, stderr = frames.feed(stream[at : at + step])
        except FramingError as exc:
            assert len(str(exc)) <= 1000
            return None
        found = (found[0] + stdout, found[1] + stderr)
    assert sum(map(len, found)) <= len(stream)
    return found


_FACTS: Final = [
    "kernelbridge facts 1\nuser ada\nuid 1000\ngid 1000\ngroups 1000 999\nhome /home/ada\nengine unix:///run/x\n"
    "socket yes yes /var/run/docker.sock\nsocket no no /run/user/1000/docker.sock\ndocker yes\nsudo yes\nend\n"
]
FACTS: Final = mutated_text(_FACTS)


def check_facts(text: str) -> None:
    """What a host says of itself is understood or refused."""
    found = refused(lambda: facts.parse_facts(text), ValueError)
    assert found is None or found.usable_sockets is not None
    facts.parse_socket("/s", text)


IGNORED: Final = st.tuples(
    mutated_text(["*.pyc\n**/__pycache__\n!keep\n/a/**/b\n[a-c]?x\n# no\n\\#yes\n", "**/a/**/b/**/c\n!**/a*b*c\n"]),
    mutated_text(["a/x/b", "a/__pycache__/b.pyc", "keep", "a/b/c/d/e/f/g"]),
)


def check_ignored(example: tuple[str, str]) -> None:
    """Any `.dockerignore` is rules or refused, and any path is in or out of them, soon."""
    text, path = example
    rules = refused(lambda: dockerignore.parse(text), ValueError)
    if rules is not None:
        rules.excludes(path[:300])
        rules.excludes_all_below(path[:300])
