"""Read a JSON object that the other end wrote: each value with the type and the bounds that it must have. Pure.

Nothing else of it gets further, so that what a relay says cannot surprise whoever uses it.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping, NoReturn, Optional

from .frames import Buffer, WireError

# Text is cut, numbers are brought between these bounds: a century, and what a file can be long.
TEXT_CHARACTERS = 4096
CENTURY_SECONDS = 100 * 365 * 86400.0
MOST_COUNT = (1 << 63) - 1
LEAST_COUNT = -(1 << 31)
MOST_WORDS = 1024
# A message's header, or a kernel_info, as JSON.
TABLE_BYTES = 64 * 1024

_MISSING: Any = object()


def parse_object(payload: Buffer) -> Dict[str, Any]:
    """Return the object in a frame's payload. Raises WireError if there is none."""
    try:
        said = json.loads(bytes(payload), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise WireError("no JSON: %s" % exc) from exc
    if not isinstance(said, dict):
        raise WireError("no JSON object")
    return said


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError("%s is no number of JSON" % name)


def plain(text: str) -> str:
    """Return a text of the other end as people may be shown it: cut, and without control characters."""
    return "".join(mark if mark.isprintable() else "?" for mark in text[:TEXT_CHARACTERS])


class JsonObject:
    """Values by key. Each method raises WireError where the value is of another type, or missing without a default."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        if not isinstance(said, dict):
            raise WireError("no JSON object")
        self._said = said

    def __repr__(self) -> str:
        return "<JsonObject %s>" % ", ".join(sorted(self._said))

    def take(self, key: str, default: Any = _MISSING) -> Any:
        """Return a value as it is."""
        found = self._said.get(key, default)
        if found is _MISSING:
            raise WireError("no `%s`" % key)
        return found

    def text(self, key: str, default: Any = _MISSING) -> str:
        """Return a text, as `plain` leaves it."""
        found = self.take(key, default)
        if not isinstance(found, str):
            raise WireError("`%s` is no text" % key)
        return plain(found)

    def text_or_none(self, key: str, default: Any = None) -> Optional[str]:
        """Return a text, or None."""
        return None if self.take(key, default) is None else self.text(key)

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        """Return true or false."""
        found = self.take(key, default)
        if not isinstance(found, bool):
            raise WireError("`%s` is not true or false" % key)
        return found

    def count(self, key: str, default: Any = _MISSING, *, least: int = 0) -> int:
        """Return a whole number, of 63 bits at most."""
        return _count(key, self.take(key, default), least)

    def counts(self, key: str, how_many: int) -> List[int]:
        """Return so many whole numbers."""
        found = self.take(key)
        if not isinstance(found, list) or len(found) != how_many:
            raise WireError("`%s` is not %d numbers" % (key, how_many))
        return [_count(key, one, 0) for one in found]

    def seconds(self, key: str, default: Any = _MISSING) -> float:
        """Return a time, of a century at most."""
        found = self.take(key, default)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or found != found:
            raise WireError("`%s` is no time" % key)
        return float(min(max(found, -CENTURY_SECONDS), CENTURY_SECONDS))

    def seconds_or_none(self, key: str) -> Optional[float]:
        """Return a time, or None."""
        return None if self.take(key, None) is None else self.seconds(key)

    def table(self, key: str) -> Dict[str, Any]:
        """Return an object, of TABLE_BYTES at most; its values are not looked at."""
        found = self.take(key)
        if not isinstance(found, dict) or json_bytes(found) > TABLE_BYTES:
            raise WireError("`%s` is no small object" % key)
        return found

    def table_or_none(self, key: str) -> Optional[Dict[str, Any]]:
        """Return an object, or None."""
        return None if self.take(key, None) is None else self.table(key)

    def object_or_none(self, key: str) -> Optional[JsonObject]:
        """Return an object whose values are taken one by one, or None."""
        found = self.take(key, None)
        return None if found is None else JsonObject(found)

    def texts(self, key: str, default: Any = _MISSING) -> List[str]:
        """Return a list of texts."""
        found = self.take(key, default)
        if not isinstance(found, (list, tuple)) or len(found) > MOST_WORDS:
            raise WireError("`%s` is no list" % key)
        if not all(isinstance(one, str) for one in found):
            raise WireError("`%s` is no list of texts" % key)
        return [plain(one) for one in found]


def _count(key: str, found: Any, least: int) -> int:
    if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= MOST_COUNT:
        raise WireError("`%s` is no number" % key)
    return found


def json_bytes(table: Any) -> int:
    """Return how long a value is as JSON; longer than allowed where it cannot be written."""
    try:
        return len(json.dumps(table))
    except (ValueError, TypeError, RecursionError):
        return TABLE_BYTES + 1
