"""What a Slurm job runs: a POSIX shell script around a runtime; and the command that joins it on its node. Pure.

The text is constant but for quoted words. What the script must learn on the node is in shell variables.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from kernelbridge.host.runtime import apptainer, docker, podman, pyxis, spec
from kernelbridge.host.runtime.spec import Runtime, Spec

RUNTIMES: Final[Mapping[str, Runtime]] = {
    "apptainer": apptainer,
    "pyxis": pyxis,
    "podman": podman,
    "docker": docker,
}
# The script's own exit codes: cards that cannot be told, a runtime or a folder that the node does not have.
CARDS_EXIT: Final = 78
RUNTIME_EXIT: Final = 69

_HEAD: Final = r"""#!/bin/sh
# A kernel of kernelbridge: its container runs for as long as this job lasts.
set -u
fail() {
    printf 'kernelbridge: %s\n' "$2" >&2
    exit "$1"
}
"""

# Constrained (ConstrainDevices=yes) a job sees its own cards alone, from index 0 on; else it sees all of them.
_CARDS: Final = r"""
refuse() {
    fail 78 "$1 (Slurm gave ${SLURM_JOB_GPUS:-none}, ${SLURM_GPUS_ON_NODE:-?} on ${SLURMD_NODENAME:-this node})"
}
given=""
given_count=0
old_ifs=$IFS
IFS=,
for part in ${SLURM_JOB_GPUS:-}; do
    case $part in "" | *[!0-9-]* | -* | *- | *-*-*) refuse "GPU $part is no index" ;; esac
    number=${part%-*}
    while [ "$number" -le "${part#*-}" ]; do
        given="$given $number"
        given_count=$((given_count + 1))
        number=$((number + 1))
    done
done
IFS=$old_ifs
granted=${SLURM_GPUS_ON_NODE:-$given_count}
case $granted in "" | *[!0-9]*) refuse "the number of GPUs is not known" ;; esac
[ "$granted" -gt 0 ] || refuse "the job has no GPU"
[ "$given_count" -eq 0 ] || [ "$given_count" -eq "$granted" ] || refuse "Slurm contradicts itself about the GPUs"
seen=$(env -u NVIDIA_VISIBLE_DEVICES -u CUDA_VISIBLE_DEVICES \
    nvidia-smi --query-gpu=index,uuid --format=csv,noheader 2>/dev/null </dev/null |
    sed -n 's/^ *\([0-9][0-9]*\), *\([0-9A-Za-z-][0-9A-Za-z-]*\) *$/\1 \2/p')
seen_count=$(printf '%s\n' "$seen" | grep -c .)
if [ "$seen_count" -eq "$granted" ]; then
    cards=$(printf '%s\n' "$seen" | cut -d ' ' -f 2 | paste -s -d , -)
elif [ "$seen_count" -gt "$granted" ]; then
    [ "$given_count" -gt 0 ] || refuse "$seen_count GPUs are seen, and Slurm does not say which are the job's"
    for number in $given; do
        card=$(printf '%s\n' "$seen" | sed -n "s/^$number //p")
        [ -n "$card" ] || refuse "GPU $number is not seen"
        cards="$cards${cards:+,}$card"
    done
else
    refuse "$seen_count GPUs are seen, $granted were given"
fi
"""

# SIGTERM is handed on; whatever ends the script, SIGKILL too, the runtime's stdin ends with it: fd 3 is the one writer.
_RUN: Final = r"""
base=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}
[ -d "$base" ] && [ -w "$base" ] || base=/tmp
folder=$(mktemp -d "$base/kernelbridge-$kernel.XXXXXX") || fail 69 "no folder can be made in $base"
name=kernelbridge-$kernel
# Jobs of this login that were killed as a whole left theirs: nobody holds the lock any more.
exec 5>"$folder/lock.new" && flock 5 2>/dev/null && mv "$folder/lock.new" "$folder/lock"
for old in "$base"/kernelbridge-*.*; do
    # No link: another login could lay one.
    [ -O "$old" ] && [ ! -L "$old" ] && [ -f "$old/lock" ] || continue
    flock -n "$old/lock" true 2>/dev/null || continue
    (
        name=${old##*/}
        name=${name%.*}
        remove >/dev/null 2>&1 </dev/null 5>&-
    )
    rm -rf "$old"
done
child=""
clean() {
    exec 3>&-
    remove >/dev/null 2>&1 </dev/null 5>&-
    rm -rf "$folder"
}
trap clean EXIT
trap '[ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT HUP
mkdir "$folder/run" "$folder/journal" "$folder/work" && mkfifo "$folder/stdin" || fail 69 "$folder cannot be used"
command -v "$program" >/dev/null || fail 69 "$program is not installed"
exec 3<>"$folder/stdin" 4<"$folder/stdin"
tidy
run <&4 3>&- 4<&- 5>&- &
child=$!
exec 4<&-
while :; do
    wait "$child"
    code=$?
    # A signal ends the waiting, not the child.
    kill -0 "$child" 2>/dev/null || break
done
exit "$code"
"""

# In megabytes; the first that Slurm set. Without either the node's memory is shared as Slurm leaves it.
_LIMITS: Final = r"""
memory=${SLURM_MEM_PER_NODE:-}
if [ -z "$memory" ] && [ -n "${SLURM_MEM_PER_CPU:-}" ] && [ -n "${SLURM_CPUS_ON_NODE:-}" ]; then
    memory=$((SLURM_MEM_PER_CPU * SLURM_CPUS_ON_NODE))
fi
case $memory in 0 | *[!0-9]*) memory="" ;; esac
processors=""
if [ "$(nproc)" -lt "$(nproc --all)" ]; then
    processors=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status 2>/dev/null)
fi
amount=${SLURM_CPUS_ON_NODE:-}
case $amount in *[!0-9]*) amount="" ;; esac
"""

_JOIN: Final = r"""
for base in "${SLURM_TMPDIR:-}" "${TMPDIR:-}" /tmp; do
    [ -n "$base" ] || continue
    for folder in "$base/kernelbridge-$kernel".*; do
        [ -d "$folder/run" ] && [ -O "$folder" ] && [ ! -L "$folder" ] && join
    done
done
fail 69 "the job's folder is not found on this node"
"""

# How what only the node knows stands in the script: in a quoted word, and as a word of its own.
_IN_WORDS: Final = {
    spec.FOLDER: '"$folder"',
    spec.CARDS: '"$visible"',
    spec.JOB: '"$SLURM_JOB_ID"',
    spec.NAME: '"$name"',
}
_WHOLE_WORDS: Final = {
    spec.CARD_OPTIONS: "$card_options",
    spec.CPU_OPTIONS: '${processors:+"--cpuset-cpus=$processors"} ${amount:+"--cpus=$amount"}',
    spec.MEMORY_OPTIONS: '${memory:+"--memory=${memory}m"}',
}


def script(runtime: str, made: Spec) -> bytes:
    """The batch script of one kernel. Raises: ConfigInvalid, for a mount that the runtime cannot make."""
    chosen = RUNTIMES[runtime]
    parts = [_HEAD, f"kernel={shlex.quote(made.kernel)}\nprogram={shlex.quote(chosen.PROGRAM)}\ncards=\n"]
    if made.wants_gpus:
        parts.append(_CARDS)
    parts.append(_exports(chosen))
    run, remove = chosen.run_argv(made), chosen.remove_argv()
    if spec.MEMORY_OPTIONS in run:
        parts.append(_LIMITS)
    # In functions, so that the text around them is the same for all.
    parts.append(f"run() {{ exec {_words(run)}; }}\n")
    parts.append(f"remove() {{ {_words(remove) if remove else ':'}; }}\n")
    # What nobody needs is gone at once: nothing of it stays where the script is killed.
    parts.append("tidy() { rm " + ('-rf "$folder"' if chosen.ENDS_ALONE else '-f "$folder/stdin"') + "; }\n")
    return "".join([*parts, _RUN]).encode()


def _exports(chosen: Runtime) -> str:
    """The variables that choose cards. Apptainer takes those with its prefix into the container, and no others."""
    lines = ["visible=${cards:-void}", "card_options="]
    if chosen.CARD_OPTION:
        # Unquoted where it stands: UUIDs have no blanks.
        prefix = shlex.quote(chosen.CARD_OPTION)
        lines.append(
            f'for card in $(printf %s "$cards" | tr , " "); do card_options="$card_options "{prefix}"$card"; done'
        )
    for prefix in ("", "APPTAINERENV_", "SINGULARITYENV_"):
        lines.append(f'export {prefix}NVIDIA_VISIBLE_DEVICES="$visible" {prefix}CUDA_VISIBLE_DEVICES="$cards"')
    return "\n".join([*lines, ""])


def _words(argv: Sequence[str]) -> str:
    """Words of a shell command: quoted, with the node's own facts put in."""
    return " ".join(_WHOLE_WORDS.get(word) or _word(word) for word in argv)


def _word(word: str) -> str:
    parts = re.split("(" + "|".join(map(re.escape, _IN_WORDS)) + ")", word)
    quoted = "".join(_IN_WORDS.get(part) or (shlex.quote(part) if part else "") for part in parts)
    if "\0" in quoted:
        raise ValueError("a word of a command may not have the byte 0")
    return quoted or "''"


def join_argv(runtime: str, made: Spec, command: Sequence[str], *, job: str) -> list[str]:
    """The command, for a job's node, that runs another one beside the relay; stdin and stdout pass unchanged."""
    chosen = RUNTIMES[runtime]
    words = [word.replace(spec.JOB, job) for word in chosen.join_argv(made, command)]
    if not any(spec.FOLDER in word for word in words):
        return words
    text = f"{_HEAD}kernel={shlex.quote(made.kernel)}\njoin() {{ exec {_words(words)}; }}\n{_JOIN}"
    return ["sh", "-c", text]


def joins_as_step(runtime: str) -> bool:
    """Whether the command of join_argv() is for the login node: the runtime's own way into the job is a step."""
    return RUNTIMES[runtime].JOINS_AS_STEP
