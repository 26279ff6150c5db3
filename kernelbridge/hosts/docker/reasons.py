"""Find the inmost reason in what an engine and those below it (containerd, runc, NVIDIA's toolkit) say. Pure.

Each of them puts its own words before those of the one below, so that the reason comes last, often cut off by whoever
shows it.
"""

from __future__ import annotations

import re
from typing import Final

# More than any chain of theirs; a registry may answer with a page.
LONGEST_TOLD: Final = 2000
# No more is looked at: on a page of a registry, or the log of a container, expressions would search for hours.
_LONGEST_READ: Final = 4000
# What stands before a reason and only says who passes it on.
_WRAPPERS: Final = re.compile(
    r"""(?:
      (?:docker: )?Error\ response\ from\ daemon | error\ while\ creating\ container
    | failed\ to\ (?:create\ (?:containerd\ )?task(?:\ for\ container)? | create\ shim(?:\ task)? | start\ shim
        | set\ up\ container\ networking | initialize)
    | OCI\ runtime\ (?:create\ failed | exec\ failed | error) | runc\ create\ failed | crun | exec\ failed
    | unable\ to\ start\ container\ process | error\ during\ container\ init
    | error\ running\ (?:prestart\ |createRuntime\ )?hook(?:\ \#?\d+)?
    | (?:container|process|rootfs|standard_init)_linux\.go:\d+ | starting\ container\ process\ caused
    | (?:container|running\ (?:exec\ setns|prestart\ hook\ \d+))\ (?:init|process\ for\ init)?\ ?caused
    | could\ not\ apply\ required\ modification\ to\ OCI\ specification | error\ modifying\ OCI\ spec
    | driver\ failed\ programming\ external\ connectivity\ on\ endpoint\ \S+\ \(\w+\)
    | failed\ to\ create\ endpoint\ \S+\ on\ network\ \S+
    | rpc\ error:\ code\ =\ \w+\ desc\ = | failed\ to\ pull\ and\ unpack\ image\ "[^"]*"
    | failed\ to\ resolve\ reference\ "[^"]*" | failed\ to\ (?:do\ request|copy|fetch\ anonymous\ token)
    | httpReadSeeker:\ failed\ open | error\ pulling\ image\ configuration
    | (?:initializing\ source|unable\ to\ copy\ from\ source|reading\ manifest)\ \S+(?:\ in\ \S+)?
    )\ ?:?\ *["(]?\ *""",
    re.VERBOSE | re.IGNORECASE,
)
# NVIDIA's hook says in which mode it is, before it says anything else.
_NO_REASON: Final = re.compile(r"Auto-detected mode as .*|exit status \d+.*|[\W_]*(unknown)?[\W_]*", re.IGNORECASE)


def shortened(message: str) -> str:
    """Return a message as it is, or its beginning and its end: the reason comes last."""
    if len(message) <= _LONGEST_READ:
        return message
    return f"{message[: _LONGEST_READ // 4]} … {message[-_LONGEST_READ * 3 // 4 :]}"


def told(message: str) -> str:
    """Put the engine's words on one line, whole: the inmost reason first, then all of it where there is more."""
    whole, reason = _one_line(message), inmost(message)
    if len(whole) > LONGEST_TOLD:
        # Never the end, where the reason is.
        whole = f"{whole[: LONGEST_TOLD // 4]} … {whole[-LONGEST_TOLD // 2 :]}"
    return whole if _is_most(reason, whole) else f"{reason}; in full: {whole}"


def inmost(message: str) -> str:
    """Return the reason that was given first, by whoever met it."""
    text = _unescaped(shortened(message))
    _, mark, said = text.rpartition("stderr:")
    # A hook that failed without a word: what stands before it has to do.
    lines = [line for line in _cleaned(said).splitlines() if not _NO_REASON.fullmatch(line.strip())] if mark else []
    if lines:
        return _cleaned(lines[-1])
    line = _cleaned(" ".join(text.partition(", stdout:")[0].split()))
    while (found := _WRAPPERS.match(line)) and len(line) > found.end():
        line = _cleaned(line[found.end() :])
    return line


def _unescaped(message: str) -> str:
    """Take off the layers of quoting that older engines put around the words of those below."""
    return re.sub(r"\\+(?=[\"'])", "", re.sub(r"\\+n", "\n", message))


def _cleaned(text: str) -> str:
    """Take off what the layers above leave behind the reason: quotes, dots, and `: unknown` for its kind."""
    text = text.strip().lstrip("\"'")
    return re.sub(r"(?:[\"'\s]*: unknown)?[\s\"'.\\]*$", "", text)


def _one_line(message: str) -> str:
    return " ".join(_unescaped(shortened(message)).split())


def _is_most(reason: str, whole: str) -> bool:
    """Whether there is nothing more to tell than the reason."""
    return not reason or len(reason) > LONGEST_TOLD or whole.startswith(reason)
