"""Make bytes, texts and JSON of samples, each a few edits away from what is real: that reaches further than noise."""

from __future__ import annotations

import copy
import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from hypothesis import strategies as st

# What breaks readers: ends of lines, of numbers and of texts, half a character, orders to a terminal.
TOKENS: Final = (
    *(b"\0", b"\n", b"\r\n", b"\r", b"\t", b" ", b"|", b",", b";", b":", b"=", b"%", b"#", b"'", b'"', b"\\", b"/"),
    *(b"(", b")", b"[", b"]", b"{", b"}", b"<", b">", b"&", b"*", b"?", b"!", b"~", b"-", b"+", b"."),
    *(b"\xff", b"\xed\xa0\x80", b"\xc3", b"\xf0\x9f\x98\x80", b"\x1b[31m", b"\x1b]0;x\x07", b"\x85", b"\xe2\x80\xa8"),
    *(b"0", b"-1", b"1e999", b"NaN", b"9" * 20, b"9" * 5000, b"\xd9\xa3", b"\xc2\xb2", b"null", b"N/A", b"(null)"),
    *(b"A" * 300, b"<IDS|MSG>", b"&amp;", b"]]>", b"<!DOCTYPE x>", b"../", b"--", b"${HOME}", b"%h"),
)
# A value of JSON in the place of any other. 10**400 is JSON, and no float; a lone surrogate is JSON, and no UTF-8.
ODD: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1, 1.5, -0.0, float("inf"), float("nan"), 2**31, 2**63, -(2**63), 10**19, 10**400),
    *(
        "",
        " ",
        "x",
        "0",
        "-1",
        "\0",
        "\n",
        "\ud800",
        "\x1b[31mred",
        "é",
        "x" * 5000,
        "9" * 5000,
        "/",
        "..",
        "a=b",
        "::",
    ),
    *([], {}, [None], [[]], [{}], {"": None}, {"a": {"b": {"c": []}}}, ["x"] * 2000),
)
_TEXTS: Final = tuple(one for one in ODD if isinstance(one, str))
_MOST_EDITS: Final = 6
_MOST_TIMES: Final = 400
_MOST_BYTES: Final = 1 << 18
# An example is made of a few bytes, its recipe: the sample's number, then an edit for each seven. Hypothesis makes and
# shortens one such piece many times faster than as many numbers.
_EDIT: Final = struct.Struct("!BHHH")
_RECIPE: Final = st.binary(min_size=2, max_size=2 + _EDIT.size * _MOST_EDITS)
_Edit = tuple[int, int, int, int]


def _read(recipe: bytes) -> tuple[int, list[_Edit]]:
    """Return the number of the sample and the edits."""
    rest = recipe[2:]
    edits = [_EDIT.unpack_from(rest, at) for at in range(0, len(rest) - _EDIT.size + 1, _EDIT.size)]
    return int.from_bytes(recipe[:2], "big"), edits


def edited(data: bytes, edits: Sequence[_Edit], samples: Sequence[bytes]) -> bytes:
    """Return bytes with these edits made: each is a kind, two places, and what it does there."""
    for kind, first, second, value in edits:
        at, end = sorted(place * (len(data) + 1) >> 16 for place in (first, second))
        token = TOKENS[value % len(TOKENS)]
        match kind % 7:
            case 0:
                data = data[:at] + token + data[at:]
            case 1:
                data = data[:at] + token + data[at + len(token) :]
            case 2:
                data = data[:at] + data[end:]
            case 3:
                data = data[:at] + bytes([value % 256]) + data[at + 1 :]
            case 4:
                data = data[:at] + data[at : at + 1 + second % 64] * (value % _MOST_TIMES) + data[at:]
            case 5:
                other = samples[value % len(samples)]
                data = data[:at] + other[second * (len(other) + 1) >> 16 :]
            case _:
                data = data[:at] + token * (value % _MOST_TIMES) + data[at:]
        data = data[:_MOST_BYTES]
    return data


def mutated(samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes that are a few edits away from a sample."""

    def made(recipe: bytes) -> bytes:
        number, edits = _read(recipe)
        return edited(samples[number % len(samples)], edits, samples)

    return _RECIPE.map(made)


def mutated_text(samples: Sequence[str]) -> st.SearchStrategy[str]:
    """The same as text, read as answers of hosts are."""
    return mutated([sample.encode() for sample in samples]).map(lambda data: data.decode("utf-8", "replace"))


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return where values are: each with its table or list, and its key there. Of long lists no more than the start."""
    keys = list(value)[:50] if isinstance(value, dict) else range(min(len(value), 5)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        _places(value[key], found)
    return found


def _nested(value: Any, depth: int) -> Any:
    return functools.reduce(lambda inner, _: [inner], range(depth), value)


def edited_json(value: Any, edits: Sequence[_Edit]) -> Any:
    """Return a value of JSON with these edits made."""
    root = {"": copy.deepcopy(value)}
    for kind, place, number, more in edits:
        places = _places(root, [])
        if not places:
            break
        holder, key = places[place % len(places)]
        odd = copy.deepcopy(ODD[number % len(ODD)])
        found = holder[key]
        match kind % 8:
            case 1:
                del holder[key]
            case 2 if isinstance(found, dict):
                found[_TEXTS[more % len(_TEXTS)]] = odd
            case 3:
                other, other_key = places[number % len(places)]
                holder[key] = copy.deepcopy(other[other_key])
            case 4:
                holder[key] = _nested(found, number % 60)
            case 5 if isinstance(found, list) and len(found) < 100:
                holder[key] = found * (number % 50)
            case 6 if isinstance(found, str) and len(found) < 10_000:
                holder[key] = found + _TEXTS[number % len(_TEXTS)]
            case _:
                holder[key] = odd
    return root.get("")


def mutated_json(samples: Sequence[Any]) -> st.SearchStrategy[Any]:
    """Values of JSON that are a few edits away from a sample."""

    def made(recipe: bytes) -> Any:
        number, edits = _read(recipe)
        return edited_json(samples[number % len(samples)], edits)

    return _RECIPE.map(made)


def refused(function: Callable[[], Any], *kinds: type[Exception]) -> Any:
    """Return what a function does; None where it refuses in one of the ways that it documents."""
    try:
        return function()
    except kinds:
        return None
