"""Parse and check single values of the config: sizes, GPUs, mounts, limits, names. Pure.

Every function raises ValueError with a sentence that goes behind the key: "must be a size like "8g"".
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema

from kernelbridge.config import fields
from kernelbridge.config.container_paths import CACHE_FOLDER, DOOR_FOLDER, JOURNAL_FOLDER, LOCKS_FOLDER, RUN_FOLDER

DISPLAY_NAME: Final = "Docker-GPU (remote)"

SIZE_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
# The engine counts in 64 bits with a sign, and dates end with the year 9999.
MOST_BYTES: Final = 1 << 50
MOST_SECONDS: Final = 100 * 365 * 86400
MOST_LIMIT: Final = (1 << 63) - 1
SIZE_PATTERN: Final = r"^([0-9]+(?:\.[0-9]+)?) ?([kmgt]?)(?:i?b)?$"
DURATION_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION_PATTERN: Final = r"^([0-9]+(?:\.[0-9]+)?) ?([smhd]?)$"
ENVIRONMENT_NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9-]*$"
HOST_NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
VARIABLE_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
SBATCH_WORD_PATTERN: Final = r"^-(-[a-z][a-z-]*(=\S.*)?|[A-Za-z]\S*)$"
# What makes a batch job ours: its script, its name, its answer, and that no second kernel starts by itself.
SBATCH_TAKEN: Final = frozenset(
    {"--array", "--comment", "--input", "--job-name", "--no-requeue", "--output", "--error", "--parsable"}
    | {"--requeue", "--wrap", "--wait", "--test-only", "--help", "--usage", "--version"}
)
SBATCH_TAKEN_LETTERS: Final = frozenset("aeiJoWhuV")
# Options in one letter that have a value: what stands behind them in the same word is theirs.
SBATCH_VALUE_LETTERS: Final = frozenset("AbBcCdDFgGLmMnNpqStwx")
GPU_ID_PATTERN: Final = r"^([0-9]{1,4}(:[0-9]{1,4})?|(GPU|MIG)-[0-9A-Za-z/-]{1,80})$"
MACHINE_NAME_PATTERN: Final = r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$"
VOLUME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]+$"
MOUNT_PATTERN: Final = r"^((/|~|\./)[^:]*|\.|[A-Za-z0-9][A-Za-z0-9_.-]+):/[^:]*(:(ro|rw|z|Z)(,(ro|rw|z|Z))?)?$"
TMPFS_PATTERN: Final = r"^/[^:]*(:[0-9.]+ ?[kKmMgGtT]?[iI]?[bB]?)?$"

FORWARD_PATTERN: Final = r"^(raw:)?([0-9]{1,5})(?::([0-9]{1,5}))?$"
MOST_GPUS: Final = 1024

# What the engine knows; `core` is missing because `core_dumps` is its key.
MOST_COMMAND: Final = 32768
ULIMIT_NAMES: Final = frozenset(
    {"cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice"}
    | {"nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}
)
# The relay, the launcher or the engine write these themselves.
RESERVED_VARIABLES: Final = frozenset(
    {"JPY_PARENT_PID", "JPY_SESSION_NAME", "PYDEVD_IPYTHON_COMPATIBLE_DEBUGGING", "TMPDIR"}
)
# How a build's folder begins that is one of the host.
HOST_CONTEXT: Final = "host:"
BUILD_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                **{key: {"type": "string"} for key in ("context", "git", "dockerfile", "target")},
                "args": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        },
    ]
}
ENGINE_SOCKET_NAMES: Final = frozenset({"docker.sock", "podman.sock", "containerd.sock"})
# Folders in which an engine keeps its socket: mounting them mounts it.
ENGINE_SOCKET_FOLDERS: Final = frozenset({"/run", "/var/run", "/run/podman", "/run/containerd", "/run/user"})
# All but the byte 0.
VARIABLE_CONTROLS: Final = "".join(map(chr, (*range(1, 32), *range(127, 160), 0x2028, 0x2029)))
# How tokens of well-known services begin: Hugging Face, GitHub, OpenAI, AWS, GitLab, Slack.
GIVEAWAY_VALUE: Final = r"^(hf_|gh[opsur]_|github_pat_|sk-|AKIA|ASIA|glpat-|xox[abpr]-)[A-Za-z0-9_-]{8,}$"
# As OpenSSH 9.6 refuses them, because a ProxyCommand may hand them to a shell; and what known_hosts reads as a pattern.
SSH_HOST_PATTERN: Final = r"^[^-\s'\"`$\\;&<>|(){}*?!,#][^\s'\"`$\\;&<>|(){}*?!,]*$"
SSH_USER_PATTERN: Final = r"^[^-\s'\"`$\\;&<>|(){}*?!,#]([^\s'\"`$;&<>|(){}*?!,]*[^\s'\"`$\\;&<>|(){}*?!,])?$"
GIVEAWAY_NAME: Final = r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$"
# Folders of the container that belong to its kernel, the engine or the relay.
TAKEN_TARGETS: Final = (
    "/proc",
    "/sys",
    "/dev/pts",
    RUN_FOLDER,
    JOURNAL_FOLDER,
    LOCKS_FOLDER,
    CACHE_FOLDER,
    DOOR_FOLDER,
)


def parse_size(value: object) -> int:
    """Say how many bytes `"8g"` is; a plain number is bytes already."""
    match = re.fullmatch(SIZE_PATTERN, str(value).strip().lower())
    if isinstance(value, bool) or not isinstance(value, int | str) or match is None:
        raise ValueError('must be a size like "8g" or "512m"')
    size_bytes = float(match[1]) * SIZE_UNITS[match[2]]
    if size_bytes < 1:
        raise ValueError("must be more than 0 bytes")
    if size_bytes > MOST_BYTES:
        raise ValueError(f'must be at most "{size_text(MOST_BYTES)}"')
    return int(size_bytes)


def size_text(size_bytes: int) -> str:
    """Write bytes as the config does: the largest unit that divides them."""
    unit = max((unit for unit in SIZE_UNITS if size_bytes % SIZE_UNITS[unit] == 0), key=SIZE_UNITS.__getitem__)
    return f"{size_bytes // SIZE_UNITS[unit]}{unit}"


def parse_duration(value: object) -> float:
    """Say how many seconds `"24h"` is; a plain number is seconds already."""
    match = re.fullmatch(DURATION_PATTERN, str(value).strip().lower())
    if isinstance(value, bool) or not isinstance(value, int | float | str) or match is None:
        raise ValueError('must be a time like "24h", "30m" or "90s"')
    seconds = float(match[1]) * DURATION_UNITS[match[2]]
    if seconds == 0:
        raise ValueError("must be more than 0 seconds")
    if seconds > MOST_SECONDS:
        raise ValueError("must be at most 100 years")
    return seconds


def duration_text(seconds: float) -> str:
    """Write a time as the config does: hours, minutes or seconds, the largest unit that divides it."""
    unit = next(unit for unit in "hms" if seconds % DURATION_UNITS[unit] == 0 or unit == "s")
    # In full: 1.23457e+06 is none.
    number = format(Decimal(repr(seconds / DURATION_UNITS[unit])), "f")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number}{unit}"


@dataclass(frozen=True, kw_only=True)
class GpuRange:
    """As many cards as are wanted; where a host has fewer, all of them, if they are enough."""

    wanted: int
    min: int


def parse_gpu_range(value: object) -> GpuRange:
    """Take `{ wanted = 1, min = 0 }`."""
    if not isinstance(value, Mapping) or value.keys() != {"wanted", "min"}:
        raise ValueError("as a table it has two keys: `{ wanted = 1, min = 0 }`")
    numbers = [value["wanted"], value["min"]]
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= MOST_GPUS for one in numbers):
        raise ValueError("`wanted` and `min` must be numbers of GPUs")
    if value["min"] > value["wanted"]:
        raise ValueError("`min` may not be more than `wanted`")
    return GpuRange(wanted=value["wanted"], min=value["min"])


def parse_gpus(value: object) -> int | Literal["all"] | tuple[str, ...] | GpuRange:
    """Take a number of cards, "all", the ids of cards, or the most and the least of them."""
    if isinstance(value, Mapping):
        return parse_gpu_range(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_GPUS:
        return value
    if value == "all":
        return "all"
    if isinstance(value, list | tuple) and value:
        ids = tuple(str(gpu_id) for gpu_id in value)
        wrong = [gpu_id for gpu_id in ids if not re.fullmatch(GPU_ID_PATTERN, gpu_id)]
        if wrong:
            raise ValueError(
                f'{wrong[0]!r} is not a valid GPU id; write its index ("0", of a MIG device "0:1") or its UUID '
                '("GPU-...")'
            )
        if len(set(ids)) < len(ids):
            raise ValueError("names one GPU twice")
        return ids
    raise ValueError('must be a number of GPUs (0 for none), "all", or ids like ["0", "GPU-..."]')


def check_sbatch_args(words: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is not an option of sbatch, and what decides over the job's script or its answer."""
    for word in words:
        if not re.fullmatch(SBATCH_WORD_PATTERN, word):
            raise ValueError(f'{word!r} is not an option of sbatch; write each as one string: "--qos=debug"')
        if _is_taken_by_us(word):
            raise ValueError(f"{word!r} is set by kernelbridge itself")
    return words


def _is_taken_by_us(word: str) -> bool:
    """Whether sbatch reads an option of ours in a word: it takes long ones cut short, and short ones joined."""
    if word.startswith("--"):
        name = word.partition("=")[0]
        return any(taken.startswith(name) for taken in SBATCH_TAKEN)
    for letter in word[1:]:
        if letter in SBATCH_TAKEN_LETTERS:
            return True
        if letter in SBATCH_VALUE_LETTERS:
            break
    return False


def parse_ulimit(value: object) -> tuple[int, int]:
    """Take one number for both limits, or "SOFT:HARD"; -1 is no limit."""
    if isinstance(value, int) and not isinstance(value, bool) and -1 <= value <= MOST_LIMIT:
        return (value, value)
    if isinstance(value, tuple) and len(value) == 2:
        value = f"{value[0]}:{value[1]}"
    match = re.fullmatch(r"(-1|[0-9]{1,19}):(-1|[0-9]{1,19})", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a number, or "SOFT:HARD"; -1 is no limit')
    soft, hard = int(match[1]), int(match[2])
    if max(soft, hard) > MOST_LIMIT:
        raise ValueError(f"must be at most {MOST_LIMIT}")
    if hard != -1 and (soft == -1 or soft > hard):
        raise ValueError("the soft limit is above the hard one")
    return (soft, hard)


def parse_mount(text: str) -> tuple[str, str, bool, str]:
    """Take "SOURCE:TARGET" or "SOURCE:TARGET:ro,z" apart: source, target, read-only, SELinux's `z` or `Z`."""
    parts = text.split(":")
    options = parts[2].split(",") if len(parts) == 3 else []
    modes, labels = [[word for word in options if word in pair] for pair in (("ro", "rw"), ("z", "Z"))]
    if len(parts) not in (2, 3) or len(modes) > 1 or len(labels) > 1 or len(modes) + len(labels) < len(options):
        raise ValueError(f'{text!r} must be "SOURCE:TARGET" or "SOURCE:TARGET:ro", with `z` or `Z` for SELinux')
    return parts[0], parts[1], modes == ["ro"], "".join(labels)


def is_volume(source: str) -> bool:
    """Whether a mount's source is a volume of the engine's, as docker run tells it from a folder of the host."""
    return re.fullmatch(VOLUME_PATTERN, source) is not None


def check_source(source: str) -> str:
    """Refuse what is neither a folder of the host nor a volume; return it in its plain form, `./` as `~/`."""
    if is_volume(source):
        if source.lower().startswith("kernelbridge-"):
            raise ValueError(f"the volume {source} may not be mounted: such names are kernelbridge's own")
        return source
    is_relative = source == "." or source.startswith("./")
    return check_mount_source(f"~{source[1:]}" if is_relative else source)


def check_mount_source(source: str) -> str:
    """Refuse a folder of the host that gives the container more than files; return it in its plain form."""
    if source != "~" and not source.startswith(("/", "~/")):
        hint = f"; in your home there it is {'./' + source!r}" if re.match(r"[A-Za-z0-9_.-]+/", source) else ""
        raise ValueError(
            f"the source {source!r} must be a path on the host that begins with / or ~/, or a volume's name of two "
            f"characters or more{hint}"
        )
    if ".." in source.split("/"):
        raise ValueError(f"the source {source!r} may not contain ..")
    plain = posixpath.normpath(source).replace("//", "/")
    if plain == "/":
        raise ValueError("the whole host (/) may not be mounted")
    if plain == "/proc" or plain.startswith("/proc/"):
        raise ValueError("/proc of the host may not be mounted")
    if plain in ENGINE_SOCKET_FOLDERS or posixpath.basename(plain) in ENGINE_SOCKET_NAMES:
        raise ValueError(f"{plain} may not be mounted: whoever has the engine's socket is root on the host")
    if re.fullmatch(r"^(/var)?/run/user/[0-9]+$", plain):
        raise ValueError(f"{plain} may not be mounted: a rootless engine keeps its socket there")
    return plain


def holds(folder: str, path: str) -> bool:
    """Whether a path is a folder, or below it."""
    plain = posixpath.normpath(folder).replace("//", "/")
    return (posixpath.normpath(path).replace("//", "/") + "/").startswith(plain.rstrip("/") + "/")


def check_mount_target(target: str) -> str:
    """Refuse a place in the container that is not free; return it in its plain form."""
    if not target.startswith("/"):
        raise ValueError(f"the target {target!r} must be a path that begins with /")
    plain = posixpath.normpath(target).replace("//", "/")
    if plain in ("/", "/dev", "/run", "/var/run") or any(
        plain == taken or plain.startswith(taken + "/") for taken in TAKEN_TARGETS
    ):
        raise ValueError(f"nothing may be mounted at {plain} in the container")
    return plain


def parse_tmpfs(text: str) -> tuple[str, int | None]:
    """Take "/path" or "/path:SIZE" apart: the folder, and its upper limit in bytes."""
    target, mark, size = text.partition(":")
    return target, parse_size(size) if mark else None


def check_tmpfs(text: str) -> str:
    """Refuse a folder in memory at a place that is not free; return it in its plain form."""
    target, size_bytes = parse_tmpfs(text)
    plain = check_mount_target(target)
    if plain == "/dev/shm":  # noqa: S108 - a place in the container
        raise ValueError(f"{plain} is in memory already; its size is `shm_size`")
    return plain if size_bytes is None else f"{plain}:{size_text(size_bytes)}"


def check_context(context: str) -> str:
    """Refuse a build's folder that depends on where a program was started."""
    path = context.removeprefix(HOST_CONTEXT)
    is_whole = path.startswith(("/", "~/")) or path == "~"
    if not is_whole and (path != context or not Path(path).is_absolute()):
        raise ValueError(
            f'{context!r} must be a folder: "~/project" or a whole path; one of the host is "{HOST_CONTEXT}~/project"'
        )
    return context


def check_git(address: str) -> str:
    """Refuse what git would take for an option, a program or a question, and passwords."""
    url, _, rest = address.partition("#")
    ref, _, folder = rest.partition(":")
    if not url or re.search(r"\s", address) or url.startswith("-") or ref.startswith("-") or "::" in url:
        raise ValueError('must be the address of a git repository: "URL", "URL#BRANCH" or "URL#BRANCH:SUBFOLDER"')
    if re.match(r"https?://[^/@]*@", url):
        raise ValueError("may not contain a login: git on the host has one, in its credential helper or its ssh keys")
    if folder:
        check_path_inside(folder)
    return address


def check_path_inside(path: str) -> str:
    """Refuse a path that leads out of the folder it is meant in."""
    plain = posixpath.normpath(path)
    if not path or plain.startswith(("/", "-")) or plain.split("/")[0] == ".." or "\\" in path:
        raise ValueError(f"{path!r} must be a path inside the folder that is built")
    return plain


def check_build_args(args: Mapping[str, str]) -> Mapping[str, str]:
    """Refuse what is no argument's name, and what looks like a secret: arguments can be read in the image."""
    for name, value in args.items():
        if not re.fullmatch(VARIABLE_PATTERN, name):
            raise ValueError(f"{name!r} is not a valid name for a build argument")
        if looks_secret(name, value):
            raise ValueError(f"{name} looks like a secret, which everybody who has the image could read in it")
    return args


def check_environment_name(name: str) -> str:
    """Refuse what cannot be a folder's name of a kernel spec, or what VS Code hides: python*."""
    if not re.fullmatch(ENVIRONMENT_NAME_PATTERN, name):
        raise ValueError(
            f"{name!r} is not a valid environment name; use a-z, 0-9 and -, beginning with a letter or digit"
        )
    if name.startswith("python"):
        raise ValueError("an environment may not be called python...: VS Code hides such kernels")
    return name


def check_host_name(name: str) -> str:
    """Refuse a name that is not plain; it is ours alone, the machine's own name stands in `ssh`."""
    if not re.fullmatch(HOST_NAME_PATTERN, name):
        raise ValueError(f"{name!r} is not a valid host name; use letters, digits, dots, - and _")
    return name


def check_variable(name: str) -> str:
    """Refuse what is no variable's name, and those that kernelbridge writes itself."""
    if not re.fullmatch(VARIABLE_PATTERN, name):
        raise ValueError(f"{name!r} is not a valid name for an environment variable")
    if name == "NVIDIA_VISIBLE_DEVICES":
        raise ValueError("is set by kernelbridge; choose GPUs with `gpus`")
    if name in RESERVED_VARIABLES or name.startswith("KERNELBRIDGE_"):
        raise ValueError("is set by kernelbridge itself")
    return name


def check_label(name: str) -> str:
    """Refuse labels that begin with kernelbridge: they say which containers are ours."""
    if not name or name.lower().startswith("kernelbridge"):
        raise ValueError("labels may not be empty or begin with kernelbridge")
    return name


def check_address(address: str) -> str:
    """Refuse what is not an IP address."""
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise ValueError(f"{address!r} is not an IP address") from error
    return address


def check_extra_host(text: str) -> str:
    """Refuse what is not a name, a colon and an address."""
    name, _, address = text.partition(":")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise ValueError(f'{text!r} must be "NAME:ADDRESS"')
    if address != "host-gateway":
        check_address(address)
    return text


def parse_forward(value: object) -> tuple[int, int, bool]:
    """Take a port, "HERE:THERE" or "raw:HERE:THERE" apart: the port here, that of the container, whether it is raw."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    match = re.fullmatch(FORWARD_PATTERN, text)
    here, there = (int(match[2]), int(match[3] or match[2])) if match else (0, 0)
    if match is None or not (0 < here < 65536 and 0 < there < 65536):
        raise ValueError(f'{value!r} must be a port: 6006, "8080:80" (HERE:THERE), or "raw:5555" if it is not HTTP')
    return here, there, bool(match[1])


def check_ulimit_name(name: str) -> str:
    """Refuse limits that the engine does not know."""
    if name == "core":
        raise ValueError("cannot be set here; use `core_dumps = true`")
    if name not in ULIMIT_NAMES:
        raise ValueError(f"is not a known limit; use one of {', '.join(sorted(ULIMIT_NAMES))}")
    return name


def check_display_name(name: str) -> str:
    """Refuse names that VS Code takes for its own Python kernels."""
    if not name.strip() or not name.isprintable():
        raise ValueError("must be printable text, and not blank")
    if name in ("Python 3", "Python 3 (ipykernel)"):
        raise ValueError(f"may not be {name!r}: VS Code hides such kernels")
    return name


def check_ssh(target: str) -> str:
    """Take an alias of ~/.ssh/config, user@name:port, or "local"; nothing that a shell or known_hosts reads as more."""
    user, has_user, name = target.rpartition("@")
    if not is_ssh_name(name) or (has_user and not re.fullmatch(SSH_USER_PATTERN, user)) or not target.isprintable():
        raise ValueError('must be an alias of ~/.ssh/config, "user@name:port", or "local"')
    return target


def is_ssh_name(name: str) -> bool:
    """Whether a machine's name may go to ssh, its config and known_hosts."""
    return bool(re.fullmatch(SSH_HOST_PATTERN, name)) and name.isprintable()


def refuse_control_characters(value: object, *, allowed: str = "") -> None:
    """Refuse text, at any depth, with what ends a line, a C string or a word for some program. Raises ValueError."""
    if isinstance(value, str):
        wrong = next((mark for mark in value if mark not in allowed and _is_control(mark)), "")
        if wrong:
            raise ValueError(f"may not contain the control character {wrong!r}")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            refuse_control_characters(key)
            refuse_control_characters(inner, allowed=allowed)
    elif isinstance(value, list | tuple):
        for inner in value:
            refuse_control_characters(inner, allowed=allowed)


def _is_control(mark: str) -> bool:
    # Separators of lines and paragraphs, and halves of characters, which cannot be encoded.
    return unicodedata.category(mark) in ("Cc", "Zl", "Zp", "Cs")


def check_container_path(path: str) -> str:
    """Refuse a path in the container that is not absolute."""
    if not path.startswith("/"):
        raise ValueError("must be a path that begins with /")
    return path


def check_command(text: str) -> str:
    """Refuse a command of a shell that is empty, or so long that it is none."""
    if not text.strip():
        raise ValueError("a command may not be empty")
    if len(text) > MOST_COMMAND:
        raise ValueError(f"a command may have at most {MOST_COMMAND} characters; write a script and run that")
    return text


def check_command_folder(path: str) -> str:
    """Refuse what cannot be a part of PATH."""
    if not path.startswith("/") or ":" in path:
        raise ValueError(f"{path!r} is not a folder of the host; write a path that begins with / and has no colon")
    return path


def shown_names(written: Mapping[str, str | None]) -> dict[str, str]:
    """Return the display name of each environment; the one without a name of its own gets the short default."""
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


def as_tuple(value: object) -> object:
    """Turn TOML's lists into the tuples that frozen models have."""
    return tuple(value) if isinstance(value, list) else value


Size = Annotated[
    int,
    PlainValidator(fields.parse_size),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": fields.SIZE_PATTERN}]}),
]
Duration = Annotated[
    float,
    PlainValidator(fields.parse_duration),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": fields.DURATION_PATTERN}]}
    ),
]
Gpus = Annotated[
    int | Literal["all"] | tuple[str, ...] | fields.GpuRange,
    PlainValidator(fields.parse_gpus),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"const": "all"},
                {"type": "array", "items": {"type": "string", "pattern": fields.GPU_ID_PATTERN}, "minItems": 1},
                {
                    "type": "object",
                    "properties": {name: {"type": "integer", "minimum": 0} for name in ("wanted", "min")},
                    "required": ["wanted", "min"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
Ulimit = Annotated[
    tuple[int, int],
    PlainValidator(fields.parse_ulimit),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": -1}, {"type": "string"}]}),
]
Variable = Annotated[str, AfterValidator(fields.check_variable)]
SlurmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,-]*$")]
Words = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Variables = Annotated[tuple[Variable, ...], BeforeValidator(as_tuple)]
