"""What one value of the config may look like: sizes, GPUs, mounts, limits, names. Pure; the keys: see config.py.

Every function raises ValueError with a sentence that goes behind the key: "must be a size like "8g"".
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Final, Literal

DISPLAY_NAME: Final = "Docker-GPU (remote)"

SIZE_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
SIZE_PATTERN: Final = r"^([0-9]+(?:\.[0-9]+)?) ?([kmgt]?)(?:i?b)?$"
DURATION_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION_PATTERN: Final = r"^([0-9]+(?:\.[0-9]+)?) ?([smhd]?)$"
ENVIRONMENT_NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9-]*$"
HOST_NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
VARIABLE_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
SBATCH_WORD_PATTERN: Final = r"^-(-[a-z][a-z-]*(=\S.*)?|[A-Za-z]\S*)$"
# What makes a batch job ours: its script, its name, its answer, and that no second kernel starts by itself.
SBATCH_TAKEN: Final = frozenset(
    {"--array", "-a", "--comment", "--input", "-i", "--job-name", "-J", "--no-requeue", "--output", "-o", "--error"}
    | {"-e", "--parsable", "--requeue", "--wrap", "--wait", "-W", "--test-only"}
)
GPU_ID_PATTERN: Final = r"^([0-9]+|(GPU|MIG)-[0-9A-Za-z/-]+)$"
MOUNT_PATTERN: Final = r"^(/|~)[^:]*:/[^:]*(:(ro|rw))?$"

# What the engine knows; `core` is missing because `core_dumps` is its key.
ULIMIT_NAMES: Final = frozenset(
    {"cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice"}
    | {"nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}
)
# The relay, the launcher or the engine write these themselves.
RESERVED_VARIABLES: Final = frozenset(
    {"JPY_PARENT_PID", "JPY_SESSION_NAME", "PYDEVD_IPYTHON_COMPATIBLE_DEBUGGING", "TMPDIR"}
)
ENGINE_SOCKET_NAMES: Final = frozenset({"docker.sock", "podman.sock", "containerd.sock"})
# Folders in which an engine keeps its socket: mounting them mounts it.
ENGINE_SOCKET_FOLDERS: Final = frozenset({"/run", "/var/run", "/run/podman", "/run/containerd", "/run/user"})
# How tokens of well-known services begin: Hugging Face, GitHub, OpenAI, AWS, GitLab, Slack.
GIVEAWAY_VALUE: Final = r"^(hf_|gh[opsur]_|github_pat_|sk-|AKIA|ASIA|glpat-|xox[abpr]-)[A-Za-z0-9_-]{8,}$"
GIVEAWAY_NAME: Final = r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$"
# Folders of the container that belong to its kernel, the engine or the relay.
TAKEN_TARGETS: Final = (
    "/proc",
    "/sys",
    "/dev/pts",
    "/run/kernelbridge",
    "/var/lib/kernelbridge",
    "/var/lib/kernelbridge.locks",
)


def parse_size(value: object) -> int:
    """Say how many bytes `"8g"` is; a plain number is bytes already."""
    match = re.match(SIZE_PATTERN, str(value).strip().lower())
    if isinstance(value, bool) or not isinstance(value, int | str) or match is None:
        raise ValueError('must be a size like "8g" or "512m"')
    size_bytes = int(float(match[1]) * SIZE_UNITS[match[2]])
    if size_bytes == 0:
        raise ValueError("must be more than 0 bytes")
    return size_bytes


def size_text(size_bytes: int) -> str:
    """Write bytes as the config does: the largest unit that divides them."""
    unit = max((unit for unit in SIZE_UNITS if size_bytes % SIZE_UNITS[unit] == 0), key=SIZE_UNITS.__getitem__)
    return f"{size_bytes // SIZE_UNITS[unit]}{unit}"


def parse_duration(value: object) -> float:
    """Say how many seconds `"24h"` is; a plain number is seconds already."""
    match = re.match(DURATION_PATTERN, str(value).strip().lower())
    if isinstance(value, bool) or not isinstance(value, int | float | str) or match is None:
        raise ValueError('must be a time like "24h", "30m" or "90s"')
    seconds = float(match[1]) * DURATION_UNITS[match[2]]
    if seconds == 0:
        raise ValueError("must be more than 0 seconds")
    return seconds


def duration_text(seconds: float) -> str:
    """Write a time as the config does: hours, minutes or seconds, the largest unit that divides it."""
    unit = next(unit for unit in "hms" if seconds % DURATION_UNITS[unit] == 0 or unit == "s")
    return f"{seconds / DURATION_UNITS[unit]:g}{unit}"


def parse_gpus(value: object) -> int | Literal["all"] | tuple[str, ...]:
    """Take a number of cards, "all", or the ids of cards."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if value == "all":
        return "all"
    if isinstance(value, list | tuple) and value:
        ids = tuple(str(gpu_id) for gpu_id in value)
        wrong = [gpu_id for gpu_id in ids if not re.match(GPU_ID_PATTERN, gpu_id)]
        if wrong:
            raise ValueError(f'{wrong[0]!r} is no GPU id; write its index ("0") or its UUID ("GPU-...")')
        if len(set(ids)) < len(ids):
            raise ValueError("names one GPU twice")
        return ids
    raise ValueError('must be a number of GPUs (0 for none), "all", or ids like ["0", "GPU-..."]')


def check_sbatch_args(words: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is no option of sbatch, and what decides over the job's script or its answer."""
    for word in words:
        if not re.match(SBATCH_WORD_PATTERN, word):
            raise ValueError(f'{word!r} is no option of sbatch; write each as one text: "--qos=debug"')
        if re.split("=", word)[0] in SBATCH_TAKEN:
            raise ValueError(f"{word!r} is kernelbridge's own to set")
    return words


def parse_ulimit(value: object) -> tuple[int, int]:
    """Take one number for both limits, or "SOFT:HARD"; -1 is no limit."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= -1:
        return (value, value)
    if isinstance(value, tuple) and len(value) == 2:
        value = f"{value[0]}:{value[1]}"
    match = re.match(r"^(-1|[0-9]+):(-1|[0-9]+)$", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a number, or "SOFT:HARD"; -1 is no limit')
    soft, hard = int(match[1]), int(match[2])
    if hard != -1 and (soft == -1 or soft > hard):
        raise ValueError("the soft limit is above the hard one")
    return (soft, hard)


def parse_mount(text: str) -> tuple[str, str, bool]:
    """Take "SRC:DST", "SRC:DST:ro" or "SRC:DST:rw" apart: source, target, read-only."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
        raise ValueError(f'{text!r} must be "SOURCE:TARGET" or "SOURCE:TARGET:ro"')
    return parts[0], parts[1], parts[2:] == ["ro"]


def check_mount_source(source: str) -> str:
    """Refuse a folder of the host that gives the container more than files; return it in its plain form."""
    if source != "~" and not source.startswith(("/", "~/")):
        raise ValueError(f"the source {source!r} must be a path of the host that begins with / or ~/")
    if ".." in source.split("/"):
        raise ValueError(f"the source {source!r} may not contain ..")
    plain = posixpath.normpath(source).replace("//", "/")
    if plain == "/":
        raise ValueError("the whole host (/) may not be mounted")
    if plain == "/proc" or plain.startswith("/proc/"):
        raise ValueError("/proc of the host may not be mounted")
    if plain in ENGINE_SOCKET_FOLDERS or posixpath.basename(plain) in ENGINE_SOCKET_NAMES:
        raise ValueError(f"{plain} may not be mounted: whoever has the engine's socket is root on the host")
    if re.match(r"^(/var)?/run/user/[0-9]+$", plain):
        raise ValueError(f"{plain} may not be mounted: a rootless engine keeps its socket there")
    return plain


def check_mount_target(target: str) -> str:
    """Refuse a place in the container that is not free; return it in its plain form."""
    if not target.startswith("/"):
        raise ValueError(f"the target {target!r} must be a path that begins with /")
    plain = posixpath.normpath(target).replace("//", "/")
    if plain in ("/", "/dev", "/run", "/var/run") or any(
        plain == taken or plain.startswith(taken + "/") for taken in TAKEN_TARGETS
    ):
        raise ValueError(f"nothing may be mounted at {plain} of the container")
    return plain


def check_environment_name(name: str) -> str:
    """Environment names become folder names of kernel specs; VS Code hides those called python*."""
    if not re.match(ENVIRONMENT_NAME_PATTERN, name):
        raise ValueError(
            f"{name!r} is no name for an environment; use a-z, 0-9 and -, beginning with a letter or digit"
        )
    if name.startswith("python"):
        raise ValueError("an environment may not be called python...: VS Code hides such kernels")
    return name


def check_host_name(name: str) -> str:
    """Host names are ours alone; the machine's own name stands in `ssh`."""
    if not re.match(HOST_NAME_PATTERN, name):
        raise ValueError(f"{name!r} is no name for a host; use letters, digits, dot, - and _")
    return name


def check_variable(name: str) -> str:
    """Refuse what is no variable's name, and those that kernelbridge writes itself."""
    if not re.match(VARIABLE_PATTERN, name):
        raise ValueError(f"{name!r} is no name for an environment variable")
    if name == "NVIDIA_VISIBLE_DEVICES":
        raise ValueError("is written by kernelbridge; choose cards with `gpus`")
    if name in RESERVED_VARIABLES or name.startswith("KERNELBRIDGE_"):
        raise ValueError("is written by kernelbridge itself")
    return name


def check_label(name: str) -> str:
    """Labels that begin with kernelbridge say which containers are ours; nobody else may write them."""
    if not name or name.lower().startswith("kernelbridge"):
        raise ValueError("labels may not be empty or begin with kernelbridge")
    return name


def check_ulimit_name(name: str) -> str:
    """Refuse limits that the engine does not know."""
    if name == "core":
        raise ValueError("is not a limit to set here; use `core_dumps = true`")
    if name not in ULIMIT_NAMES:
        raise ValueError(f"is no limit; there are {', '.join(sorted(ULIMIT_NAMES))}")
    return name


def check_display_name(name: str) -> str:
    """Refuse names that VS Code takes for its own Python kernels."""
    if not name.strip() or not name.isprintable():
        raise ValueError("must be text that can be shown")
    if name in ("Python 3", "Python 3 (ipykernel)"):
        raise ValueError(f"may not be {name!r}: VS Code hides such kernels")
    return name


def check_ssh(target: str) -> str:
    """An alias of ~/.ssh/config, user@name:port, or "local"; never something that reads as an option."""
    if not target or target.startswith("-") or any(mark.isspace() for mark in target) or not target.isprintable():
        raise ValueError('must be an alias of ~/.ssh/config, "user@name:port", or "local"')
    return target


def check_container_path(path: str) -> str:
    """A path in the container is absolute."""
    if not path.startswith("/"):
        raise ValueError("must be a path that begins with /")
    return path


def shown_names(written: Mapping[str, str | None]) -> dict[str, str]:
    """The display name of each environment; the one without a name of its own gets the short default."""
    unnamed = [name for name, shown in written.items() if shown is None]
    short = unnamed if len(unnamed) == 1 and DISPLAY_NAME not in written.values() else []
    return {
        name: shown or (DISPLAY_NAME if name in short else f"{DISPLAY_NAME}, {name}") for name, shown in written.items()
    }


def looks_secret(variable: str, value: str) -> bool:
    """Whether a variable's value is probably a token or a password, by its own look or by the variable's name."""
    if re.match(GIVEAWAY_VALUE, value):
        return True
    # A path or a short word under such a name is usually no secret: SSL_KEY = "/certs/key.pem".
    return bool(re.search(GIVEAWAY_NAME, variable.upper())) and len(value) >= 8 and "/" not in value[:1]
