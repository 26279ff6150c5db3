"""Write the batch script that runs a kernel's container, and the command that joins it on its node. Pure.

The text is constant but for quoted words. What the script must learn on the node is in shell variables.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from kernelbridge.config.fields import ENGINE_SOCKET_FOLDERS, ENGINE_SOCKET_NAMES
from kernelbridge.hosts.labels import NAME_PREFIX
from kernelbridge.hosts.slurm.commands import LOG_FOLDER
from kernelbridge.hosts.slurm.runtimes import apptainer, docker, podman, pyxis, spec
from kernelbridge.hosts.slurm.runtimes.spec import JobRuntime, Spec
from kernelbridge.hosts.transport import shell

RUNTIMES: Final[Mapping[str, JobRuntime]] = {
    "apptainer": apptainer,
    "pyxis": pyxis,
    "podman": podman,
    "docker": docker,
}
# The script's own exit codes, beside those of exit_codes: cards that cannot be told, a runtime or a folder that the
# node does not have, a mount that leads to what may not be mounted.
CARDS_EXIT: Final = 79
RUNTIME_EXIT: Final = 69
MOUNT_EXIT: Final = 72

_HEAD: Final = r"""#!/bin/sh
# A kernel of kernelbridge: its container runs for as long as this job lasts.
set -u
fail() {
    printf 'kernelbridge: %s\n' "$2" >&2
    exit "$1"
}
"""
# In shell variables, so that the text below needs none of Python's braces.
_CONSTANTS: Final = (
    f"cards_exit={CARDS_EXIT}\nruntime_exit={RUNTIME_EXIT}\nmount_exit={MOUNT_EXIT}\nprefix={NAME_PREFIX}\n"
    f"logs={LOG_FOLDER}\n"
)

# As fields.check_mount_source() has it, for what the sources are on the node: a link there may lead anywhere.
_MOUNTS: Final = """
socket=${DOCKER_HOST:-}
socket=$(readlink -f "${socket#unix://}" 2>/dev/null)
check_mounts() {
    for source do
        end=$(readlink -f "$source" 2>/dev/null) || end=$source
        may_not="the mount source $source leads to $end"
        case $end in FORBIDDEN) fail "$mount_exit" "$may_not" ;; esac
        case $socket/ in "$end"/*) fail "$mount_exit" "$may_not, where the engine's socket is" ;; esac
        case $end in
            /run/user/* | /var/run/user/*)
                case ${end##*/run/user/} in *[!0-9]*) ;; *) fail "$mount_exit" "$may_not" ;; esac
                ;;
        esac
    done
}
""".replace(
    "FORBIDDEN",
    " | ".join(
        ["/", "/proc", "/proc/*", *sorted(ENGINE_SOCKET_FOLDERS), *(f"*/{n}" for n in sorted(ENGINE_SOCKET_NAMES))]
    ),
)

# Constrained (ConstrainDevices=yes) a job sees its own cards alone, from index 0 on; else it sees all of them.
_CARDS: Final = r"""
refuse() {
    fail "$cards_exit" \
        "$1 (Slurm gave ${SLURM_JOB_GPUS:-none}, ${SLURM_GPUS_ON_NODE:-?} on ${SLURMD_NODENAME:-this node})"
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
folder=$(mktemp -d "$base/$prefix$kernel.XXXXXX") || fail "$runtime_exit" "no folder can be made in $base"
name=$prefix$kernel
# Jobs of this login that were killed as a whole left theirs: nobody holds the lock any more.
exec 5>"$folder/lock.new" && flock 5 2>/dev/null && mv "$folder/lock.new" "$folder/lock"
for old in "$base/$prefix"*.*; do
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
told=""
trap 'told=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT HUP
mkdir "$folder/run" "$folder/journal" "$folder/work" && mkfifo "$folder/stdin" ||
    fail "$runtime_exit" "$folder cannot be used"
command -v "$program" >/dev/null || fail "$runtime_exit" "$program is not installed"
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
# After a goodbye nobody comes back: neither for its end nor for its log. Of a job that is cancelled it says why.
[ "$code" != 0 ] || [ -n "$told" ] || rm -f "${HOME:-/nonexistent}/$logs/$name.log"
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
    for folder in "$base/$prefix$kernel".*; do
        [ -d "$folder/run" ] && [ -O "$folder" ] && [ ! -L "$folder" ] && join
    done
done
fail "$runtime_exit" "the job's folder is not found on this node"
"""

# How what only the node knows stands in the script: in a quoted word, and as a word of its own.
_IN_WORDS: Final = {
    spec.NODE_FOLDER: '"$folder"',
    spec.CARDS: '"$visible"',
    spec.JOB: '"$SLURM_JOB_ID"',
    spec.NAME: '"$name"',
}
_WHOLE_WORDS: Final = {
    spec.CARD_OPTIONS: "$card_options",
    spec.CPU_OPTIONS: '${processors:+"--cpuset-cpus=$processors"} ${amount:+"--cpus=$amount"}',
    # Without the second, an engine allows as much swap again.
    spec.MEMORY_OPTIONS: '${memory:+"--memory=${memory}m"} ${memory:+"--memory-swap=${memory}m"}',
}


def script(runtime: str, made: Spec) -> bytes:
    """Write the batch script of one kernel. Raises: ConfigInvalid, for a mount that the runtime cannot make."""
    chosen = RUNTIMES[runtime]
    names = f"kernel={shlex.quote(made.kernel)}\nprogram={shlex.quote(chosen.PROGRAM)}\ncards=\n"
    parts = [_HEAD, shell.settings(), _CONSTANTS, names]
    if made.environment.host_mounts:
        parts.append(_MOUNTS)
        parts.append(f"check_mounts {shlex.join(mount.source for mount in spec.binds(made))}\n")
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


def _exports(chosen: JobRuntime) -> str:
    """Export the variables that choose cards. Apptainer takes only those with its prefix into the container."""
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
    """Quote the words of a shell command, and put the node's own facts in."""
    return " ".join(_WHOLE_WORDS.get(word) or _word(word) for word in argv)


def _word(word: str) -> str:
    parts = re.split("(" + "|".join(map(re.escape, _IN_WORDS)) + ")", word)
    quoted = "".join(_IN_WORDS.get(part) or (shlex.quote(part) if part else "") for part in parts)
    if "\0" in quoted:
        raise ValueError("a word of a command may not have the byte 0")
    return quoted or "''"


def join_argv(runtime: str, made: Spec, command: Sequence[str], *, job: str) -> list[str]:
    """Return the command, for a job's node, that runs another one beside the relay; its streams pass unchanged."""
    chosen = RUNTIMES[runtime]
    words = [word.replace(spec.JOB, job) for word in chosen.join_argv(made, command)]
    if not any(spec.NODE_FOLDER in word for word in words):
        return words
    text = f"{_HEAD}{_CONSTANTS}kernel={shlex.quote(made.kernel)}\njoin() {{ exec {_words(words)}; }}\n{_JOIN}"
    return ["sh", "-c", text]


def joins_as_step(runtime: str) -> bool:
    """Whether the command of join_argv() is for the login node: the runtime's own way into the job is a step."""
    return RUNTIMES[runtime].JOINS_AS_STEP
