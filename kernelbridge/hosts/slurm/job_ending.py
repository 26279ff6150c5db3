"""Read from Slurm's answers and the job's log how a job ended, and explain it in one sentence. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from kernelbridge.errors import JobEnded, KernelBridgeError, RuntimeMissing
from kernelbridge.hosts.slurm.job_script import CARDS_EXIT, MOUNT_EXIT, RUNTIME_EXIT
from kernelbridge.plain_text import printable

FINAL_STATES: Final = frozenset(
    {"COMPLETED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "FAILED", "DEADLINE", "BOOT_FAIL"}
    | {"REVOKED"}
)
UNKNOWN: Final = "UNKNOWN"
# What slurmstepd writes into a job's log as it ends the job; it is there where nobody remembers the job any more.
_CAUSES: Final = {
    "DUE TO TIME LIMIT": "TIMEOUT",
    "DUE TO PREEMPTION": "PREEMPTED",
    "DUE TO NODE FAILURE": "NODE_FAIL",
    "oom_kill event": "OUT_OF_MEMORY",
    "oom-kill event": "OUT_OF_MEMORY",
}


@dataclass(frozen=True, kw_only=True)
class JobEnding:
    """The end of one job, as far as anybody knows it."""

    job: str
    # One of FINAL_STATES, or UNKNOWN.
    state: str
    exit_code: int = 0
    # The signal that ended the script; 0 for none.
    signal: int = 0
    reason: str = ""
    node: str = ""
    # The number of the user who cancelled it, where the cluster keeps accounts.
    cancelled_by: str = ""
    # The end of what the script and the runtime printed.
    log: str = ""

    def __str__(self) -> str:
        return f"job {self.job} {self.state} {self.exit_code}:{self.signal}"


def parse_shown(answer: str, *, job: str) -> JobEnding | None:
    """Read `scontrol show job -o`; None while the job has not ended."""
    # The first mention counts: behind them comes the comment, whose text is not Slurm's.
    words: dict[str, str] = {}
    for word in answer.split():
        key, mark, text = word.partition("=")
        if mark:
            words.setdefault(key, text)
    state = words.get("JobState", "")
    if words.get("JobId") != job or state not in FINAL_STATES:
        return None
    code, signal = _codes(words.get("ExitCode", ""))
    reason = words.get("Reason", "").replace("_", " ")
    node = words.get("BatchHost", "") or words.get("NodeList", "")
    return JobEnding(job=job, state=state, exit_code=code, signal=signal, reason=_known(reason), node=_known(node))


def parse_accounts(answer: str, *, job: str) -> JobEnding | None:
    """Read the answer to accounting_argv(); None while the job has not ended, or where it is unknown."""
    for line in answer.splitlines():
        fields = line.split("|")
        if len(fields) < 4:
            continue
        # "CANCELLED by 1000"; a + behind the word stands for text cut off.
        state, _, by = fields[0].partition(" by ")
        if state.rstrip("+") in FINAL_STATES:
            code, signal = _codes(fields[1])
            return JobEnding(
                job=job,
                state=state.rstrip("+"),
                exit_code=code,
                signal=signal,
                reason=_known(fields[2]),
                node=_known(fields[3]),
                cancelled_by=by.strip(),
            )
    return None


def _codes(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _known(text: str) -> str:
    return "" if text in ("None", "(null)", "Unknown", "None assigned") else text


def state_of_log(log: str) -> str:
    """Return the state that a job's log tells of; UNKNOWN where it says nothing."""
    for mark, state in _CAUSES.items():
        if mark in log:
            return state
    return "CANCELLED" if re.search(r"slurmstepd.*\*\*\* JOB [0-9]+ .*CANCELLED AT", log) else UNKNOWN


def last_line(log: str) -> str:
    """Return the last line that a program wrote, without Slurm's own; what is not printable is left out."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("slurmstepd")]
    return printable(lines[-1], instead="")[:300] if lines else ""


def explain(
    ending: JobEnding, *, environment: str, host: str, runtime: str, was_ready: bool = True
) -> KernelBridgeError:
    """Explain the end of a job in one sentence. `was_ready`: the relay in it was heard of."""
    failed_early = ending.exit_code not in (0, CARDS_EXIT, MOUNT_EXIT) and not was_ready
    if ending.state == "FAILED" and (failed_early or ending.exit_code == RUNTIME_EXIT):
        said = last_line(ending.log) or "it printed nothing"
        reason = said if ending.exit_code == RUNTIME_EXIT else f"exit code {ending.exit_code}: {said}"
        return RuntimeMissing(host=host, node=ending.node or "?", runtime=runtime, reason=reason)
    how, remedy = _how(ending)
    return JobEnded(environment=environment, host=host, job=ending.job, how=how, remedy=remedy)


def _how(ending: JobEnding) -> tuple[str, str]:
    """Say what goes behind "The job N of E on H", and what to do; empty for the usual."""
    node = f"node {ending.node}" if ending.node else "its node"
    match ending.state:
        case "TIMEOUT":
            return "reached its time limit", "Start it again; set a longer `time_limit` in the environment."
        case "PREEMPTED":
            return "was preempted by a job with a higher priority", ""
        case "NODE_FAIL" | "BOOT_FAIL":
            return f"ended because {node} failed", ""
        case "OUT_OF_MEMORY":
            return "used more memory than it was given", "Raise `memory` of the environment and start again."
        case "DEADLINE":
            return "reached its deadline", ""
        case "CANCELLED":
            by = {"": "", "0": " by an administrator"}.get(ending.cancelled_by, f" by user {ending.cancelled_by}")
            return f"was cancelled{by}", ""
        case "FAILED" if ending.exit_code == CARDS_EXIT:
            said = last_line(ending.log) or "no line says which"
            return f"does not see the GPUs that it was given ({said})", f"Ask the administrators of {node}."
        case "FAILED" if ending.exit_code == MOUNT_EXIT:
            said = last_line(ending.log) or "no line says which"
            return f"may not have one of its mounts ({said})", "Change `mounts` of the environment."
        case "FAILED":
            code = f"signal {ending.signal}" if ending.signal else f"exit code {ending.exit_code}"
            return f"failed on {node} ({code})", ""
        case "COMPLETED":
            return "has ended by itself", ""
        case _:
            return "is gone, and Slurm no longer knows why", ""
