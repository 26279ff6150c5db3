"""Write Slurm's command lines and parse what they print: jobs, their queue, nodes. Pure."""

from __future__ import annotations

import math
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

from kernelbridge.config.fields import GpuRange
from kernelbridge.hosts.labels import LABEL_PREFIX, NAME_PREFIX, USER_LABEL
from kernelbridge.plain_text import printable

# The comment's first word, so that no other text is taken for ours.
_COMMENT_MARK: Final = "kernelbridge=1&"
# Seen on Slurm 22.05: sbatch refuses a longer one.
COMMENT_BYTES: Final = 1024
# Below the login's home, which the nodes mostly share.
LOG_FOLDER: Final = ".cache/kernelbridge/jobs"
_MIB: Final = 1 << 20
# The year 2286: no job of Slurm's starts later.
_MOST_TIME: Final = 10_000_000_000

# A login over ssh may not have read what puts Slurm's commands on the PATH. Times would be in the login node's zone.
_PROFILE: Final = "[ ! -r /etc/profile ] || . /etc/profile </dev/null >/dev/null 2>&1"
WRAPPED: Final = (
    "sh",
    "-c",
    'export SLURM_TIME_FORMAT=%s; command -v "$1" >/dev/null 2>&1 || ' + _PROFILE + '; exec "$@"',
    "slurm",
)
# `$1` is the log's path below the home, the rest is sbatch's command. The file is made first: its mode stays.
# Logs of jobs that nobody was told the end of: whoever started them was killed.
_SUBMIT: Final = (
    'cd "$HOME" && (umask 077 && mkdir -p "${1%/*}" && : >"$1") &&'
    ' { find "${1%/*}" -name "' + NAME_PREFIX + '*.log" -mtime +30 -exec rm -f -- {} + 2>/dev/null; shift; }'
    " && { command -v sbatch >/dev/null 2>&1 || " + _PROFILE + '; exec "$@"; }'
)
# The comment comes last: it alone may hold the mark between the fields.
QUEUE_FORMAT: Final = "%A|%j|%T|%N|%S|%L|%V|%r|%k"
QUEUE: Final = (*WRAPPED, "squeue", "--me", "-h", "-a", "-o", QUEUE_FORMAT)
PARTITIONS: Final = (*WRAPPED, "sinfo", "-h", "-o", "%P|%G")
NODES: Final = (*WRAPPED, "sinfo", "-h", "-N", "-a", "-O", "NodeHost:|,StateLong:|,Partition:|,Gres:|,GresUsed:|")

# Why a job waits that will never start by waiting.
HOPELESS: Final = frozenset(
    {"PartitionTimeLimit", "PartitionNodeLimit", "PartitionDown", "PartitionInactive", "BadConstraints"}
    | {"DependencyNeverSatisfied", "InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed"}
    | {"JobHeldUser", "JobHeldAdmin", "QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit"}
)
_SILENT: Final = re.compile(
    r"Socket timed out|Unable to contact slurm controller|Zero Bytes were transmitted|Connection refused"
    r"|Connection reset|Resource temporarily unavailable|Transport endpoint|slurmctld.*(busy|standby)"
    r"|in the process of starting|Communication connection failure|Insane message length|Broken pipe",
    re.IGNORECASE,
)
_GONE: Final = re.compile(r"Invalid job id|Job/step already completing or completed", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One job as it is to be."""

    # kernelbridge-<kernel id>; the job's name, and its log's.
    name: str
    partition: str | None = None
    account: str | None = None
    # None: the partition's default.
    seconds: float | None = None
    # Slurm's words for the GPUs; empty for none.
    gres: str = ""
    memory_bytes: int | None = None
    cpus: float | None = None
    # The user's own arguments of sbatch.
    args: tuple[str, ...] = ()
    # See write_comment().
    comment: str = ""

    @property
    def log_path(self) -> str:
        """Where the script's output goes, below the login's home: Slurm's last words, and the runtime's."""
        return f"{LOG_FOLDER}/{self.name}.log"


def gres_of(*, gpus: int | str | Sequence[str] | GpuRange, gres: str | None) -> str:
    """Write Slurm's words for the GPUs: as the user wrote them, else made of their number, which must be one.

    Raises: ValueError.
    """
    if gres is not None:
        return gres
    if isinstance(gpus, GpuRange):
        gpus = gpus.wanted
    if not isinstance(gpus, int):
        raise ValueError("Slurm gives GPUs by number; write one, or Slurm's own syntax in `gres`")
    return f"gpu:{gpus}" if gpus else ""


def _options(request: JobRequest) -> list[str]:
    # On one node, and never started a second time by Slurm itself: two kernels would have one name.
    words = ["--no-requeue", "--nodes=1", "--ntasks=1", f"--job-name={request.name}"]
    if request.comment:
        words.append(f"--comment={request.comment}")
    if request.partition is not None:
        words.append(f"--partition={request.partition}")
    if request.account is not None:
        words.append(f"--account={request.account}")
    if request.seconds is not None:
        # Slurm's unit; what is asked for is given at least.
        words.append(f"--time={max(1, math.ceil(request.seconds / 60))}")
    if request.gres:
        words.append(f"--gres={request.gres}")
    if request.memory_bytes is not None:
        words.append(f"--mem={math.ceil(request.memory_bytes / _MIB)}M")
    if request.cpus is not None:
        words.append(f"--cpus-per-task={math.ceil(request.cpus)}")
    return [*words, *request.args]


def check_argv(request: JobRequest) -> list[str]:
    """Return the command that asks whether Slurm would take the job; a script comes over stdin."""
    return [*WRAPPED, "sbatch", "--test-only", *_options(request)]


def submit_argv(request: JobRequest, *, home: str) -> list[str]:
    """Return the command that hands in the script from its stdin and prints the job's id."""
    # Slurm takes %x in a file's name for its own words.
    log = f"{home}/{request.log_path}".replace("\\", "\\\\").replace("%", "%%")
    sbatch = ["sbatch", "--parsable", f"--output={log}", "--open-mode=append", *_options(request)]
    return ["sh", "-c", _SUBMIT, "slurm", request.log_path, *sbatch]


def show_argv(job: str) -> list[str]:
    """Return the command that shows one job, for some minutes after its end too."""
    return [*WRAPPED, "scontrol", "show", "job", "-o", job]


def accounting_argv(job: str) -> list[str]:
    """Return the command that shows a job of any age, where the cluster keeps accounts."""
    return [*WRAPPED, "sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode,Reason,NodeList"]


def cancel_argv(job: str) -> list[str]:
    """Return the command that ends a job."""
    return [*WRAPPED, "scancel", job]


def step_argv(job: str, command: Sequence[str]) -> list[str]:
    """Return the command that runs another one inside a job, from the login node; stdin and stdout pass unchanged."""
    # The login's folder may not be on the node. The step shares what the job has, so that it never waits for it.
    step = ["srun", f"--jobid={job}", "--overlap", "--nodes=1", "--ntasks=1", "--chdir=/", "--mpi=none", "--quiet"]
    # Else Slurm keeps what comes until the end of a line, and a frame has none.
    return [*WRAPPED, *step, "--unbuffered", *command]


def node_argv(node: str, command: Sequence[str]) -> list[str]:
    """Return the command that runs another one on a node by ssh, from the login node. It never asks anything."""
    words = ["ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR", "--", node]
    return [*words, shlex.join(command)]


def parse_job_id(answer: str) -> str:
    """Read what `sbatch --parsable` printed: ID, or ID;CLUSTER. Raises: ValueError."""
    for line in reversed(answer.splitlines()):
        if match := re.fullmatch(r"([0-9]{1,18})(;\S+)?", line.strip()):
            return match[1]
    raise ValueError(f"no job id in {answer[-200:]!r}")


def is_silent(stderr: str) -> bool:
    """Whether a command failed because the controller did not answer: then nothing is known."""
    return _SILENT.search(stderr) is not None


def is_unconfigured(stderr: str) -> bool:
    """Whether the command does not know any cluster."""
    return "configuration source" in stderr or "Unable to process configuration file" in stderr


def says_gone(stderr: str) -> bool:
    """Whether the controller itself said that it knows no such job."""
    return _GONE.search(stderr) is not None


def sentence(stderr: str) -> str:
    """Return Slurm's own words of an error, without the command's name before them."""
    found: list[str] = []
    for line in stderr.splitlines():
        plain = re.sub(r"^(\w+: )?((error|fatal|allocation failure): )?(Batch job submission failed: )?", "", line)
        if plain.strip() and not plain.startswith("Try ") and plain.strip() not in found:
            found.append(plain.strip())
    return "; ".join(found)[:500] or "no reason given"


def write_comment(labels: Mapping[str, str]) -> str:
    """Write our labels as a job's comment: letters, digits and a few marks, so that no program stumbles over it.

    All logins of the cluster can read it: the user's name on this machine stays out. Raises: ValueError, where they
    are too long.
    """
    # Without the prefix that they have on containers: room is short.
    ours = {key.removeprefix(LABEL_PREFIX): "" if key == USER_LABEL else text for key, text in labels.items()}
    comment = _COMMENT_MARK + urlencode(ours, quote_via=quote)
    if len(comment) > COMMENT_BYTES:
        raise ValueError(f"the labels take {len(comment)} of {COMMENT_BYTES} bytes")
    return comment


def parse_comment(comment: str) -> dict[str, str]:
    """Read our labels back, with the keys that containers have; empty where the comment is not ours."""
    if not comment.startswith(_COMMENT_MARK):
        return {}
    pairs = parse_qsl(comment.removeprefix(_COMMENT_MARK), keep_blank_values=True)
    return {LABEL_PREFIX + key: text for key, text in pairs}


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """One job of the queue. It is ours only if parse_labels() says so."""

    job: str
    name: str
    # Slurm's word: PENDING, CONFIGURING, RUNNING, COMPLETING, SUSPENDED, STOPPED ...
    state: str
    # Why it waits; None once it runs.
    reason: str
    # Empty while it waits.
    node: str
    # Seconds since 1970; None: Slurm cannot say. Of a running job its real start.
    starts: float | None
    # None: no limit, or not known.
    time_left_seconds: float | None
    submitted: float | None
    # Whose it is: LOGIN@HOST.
    who: str = ""
    comment: str = field(default="", repr=False)

    @property
    def labels(self) -> dict[str, str]:
        """Our labels, from the comment; the user's name is not written there."""
        written = parse_comment(self.comment)
        if written and not written.get(USER_LABEL):
            written[USER_LABEL] = self.who
        return written

    @property
    def is_waiting(self) -> bool:
        """Whether it has no node that is ready yet."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")

    @property
    def is_running(self) -> bool:
        """Whether its script runs."""
        return self.state == "RUNNING"

    @property
    def is_ending(self) -> bool:
        """Whether it is on its way out; its processes may live for KillWait (mostly 30 s) more."""
        return self.state in ("COMPLETING", "SIGNALING", "STAGE_OUT")

    @property
    def is_hopeless(self) -> bool:
        """Whether it waits for something that waiting does not bring."""
        return self.state == "PENDING" and self.reason in HOPELESS


def parse_queue(answer: str, *, who: str = "") -> dict[str, JobFacts]:
    """Read the answer to QUEUE: the jobs by id; `who` has them all."""
    jobs = {}
    for line in answer.splitlines():
        fields = printable(line).split("|", 8)
        if len(fields) == 9 and _is_number(fields[0]):
            job, name, state, node, starts, left, submitted, reason, comment = fields
            jobs[job] = JobFacts(
                job=job,
                name=name,
                state=state,
                reason="" if reason == "None" else reason,
                node=node,
                starts=parse_time(starts),
                time_left_seconds=parse_duration(left),
                submitted=parse_time(submitted),
                who=who,
                comment="" if comment == "(null)" else comment,
            )
    return jobs


def parse_time(text: str) -> float | None:
    """Read seconds since 1970; Slurm's N/A and Unknown are None."""
    return float(text) if _is_number(text) and 0 < int(text) < _MOST_TIME else None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", text) is not None


def parse_duration(text: str) -> float | None:
    """Read [DAYS-][[HOURS:]MINUTES:]SECONDS; UNLIMITED, INVALID and NOT_SET are None."""
    match = re.fullmatch(r"(?:([0-9]{1,6})-)?(?:(?:([0-9]{1,6}):)?([0-9]{1,6}):)?([0-9]{1,9})", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def waiting_text(job: JobFacts, *, host: str, local: Callable[[float], time.struct_time] = time.localtime) -> str:
    """Write what the waiting cell shows of a job in the queue."""
    text = f"waiting in the queue of {host}" + (f" ({job.reason})" if job.reason else "")
    if job.state == "CONFIGURING":
        text = f"node {job.node} of {host} is being made ready"
    elif job.starts is not None and job.state == "PENDING":
        when, today = local(job.starts), local(time.time())
        day = "" if when[:3] == today[:3] else time.strftime("%Y-%m-%d ", when)
        text += f", expected start {day}{time.strftime('%H:%M', when)}"
    return text


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """One node of the cluster, for an inventory."""

    name: str
    # Slurm's word: idle, mixed, allocated, drained, draining, down ...
    state: str
    partitions: tuple[str, ...]
    # By type; the type is empty where the cluster names none.
    gpus_total: Mapping[str, int]
    gpus_used: Mapping[str, int]


def parse_nodes(answer: str) -> tuple[NodeFacts, ...]:
    """Read the answer to NODES, which has a line for each node and partition."""
    nodes: dict[str, NodeFacts] = {}
    for line in answer.splitlines():
        fields = line.split("|")
        if len(fields) < 5:
            continue
        name, state, partition, total, used = fields[:5]
        others = nodes[name].partitions if name in nodes else ()
        nodes[name] = NodeFacts(
            name=name,
            # A mark behind the word: * does not answer, ~ powered down, # powering up, ! $ @ ^ + and -.
            state=state.rstrip("*~#!%$@^+-"),
            partitions=(*others, partition.rstrip("*")),
            gpus_total=_count_gpus(total),
            gpus_used=_count_gpus(used),
        )
    return tuple(nodes.values())


@dataclass(frozen=True, kw_only=True)
class PartitionFacts:
    """A partition that this login may use."""

    name: str
    is_default: bool
    # Whether any of its nodes has GPUs.
    has_gpus: bool


def parse_partitions(answer: str) -> tuple[PartitionFacts, ...]:
    """Read the answer to PARTITIONS, which has a line for each partition and kind of node."""
    found: dict[str, PartitionFacts] = {}
    for line in answer.splitlines():
        marked, separator, gres = line.partition("|")
        name = marked.strip().rstrip("*")
        if not separator or not name:
            continue
        has_gpus = bool(_count_gpus(gres)) or (name in found and found[name].has_gpus)
        found[name] = PartitionFacts(name=name, is_default=marked.strip().endswith("*"), has_gpus=has_gpus)
    return tuple(found.values())


def _count_gpus(gres: str) -> dict[str, int]:
    """Read `gpu:h200:8(S:0-1),nic:2` or `gpu:h200:3(IDX:0-2)`."""
    counts: dict[str, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = entry.split(":")
        if name == "gpu" and rest and _is_number(rest[-1]):
            kind = rest[0] if len(rest) > 1 else ""
            counts[kind] = counts.get(kind, 0) + int(rest[-1])
    return counts
