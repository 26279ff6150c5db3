"""Turn output of cells that nobody could show into what another cell, or a terminal, can show. Pure.

A title names each cell by its number and first line, where they are known. What a cell cleared is gone; an error is
text, as it must not fail the cell that shows it; what needs a widget's live state is shown as its plain text.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import frames

# Cells whose titles are kept; the oldest goes.
MOST_CELLS = 100
_LINE_LENGTH = 60
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class CellTitle(NamedTuple):
    """A cell as people know it: its number, where it has one, and its first line."""

    number: Optional[int] = None
    line: str = ""

    def text(self) -> str:
        """Return it as a part of a sentence."""
        name = "a cell" if self.number is None else "cell [%d]" % self.number
        return name + (": " + self.line if self.line else "")


class CellTitles:
    """The titles of the newest cells, read off the kernel's own messages."""

    def __init__(self) -> None:
        self._titles: "OrderedDict[str, CellTitle]" = OrderedDict()

    def __repr__(self) -> str:
        return "<CellTitles of %d>" % len(self._titles)

    def note(self, parts: Sequence[frames.Buffer]) -> None:
        """Take in an execute_input; one that cannot be read has no title."""
        try:
            at = _delimiter(parts)
            parent, content = json.loads(bytes(parts[at + 3])), json.loads(bytes(parts[at + 5]))
            lines = (line.strip() for line in str(content["code"]).splitlines())
            line = next((line for line in lines if line), "")
            line = line if len(line) <= _LINE_LENGTH else line[: _LINE_LENGTH - 3] + "..."
            self.add({str(parent["msg_id"]): CellTitle(int(content["execution_count"]), line)})
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return

    def add(self, titles: Mapping[str, CellTitle]) -> None:
        """Take in titles by the ids of their requests."""
        self._titles.update(titles)
        while len(self._titles) > MOST_CELLS:
            self._titles.popitem(last=False)

    def of(self, request_id: str) -> CellTitle:
        """Return the title of a request's cell."""
        return self._titles.get(request_id, CellTitle())

    def to_dict(self) -> Dict[str, List[Any]]:
        """Return all, as they go over the stream."""
        return {request_id: list(title) for request_id, title in self._titles.items()}


class Shown(NamedTuple):
    """What is to be shown: the type and content of an iopub message, and which request it was of."""

    kind: str
    content: Dict[str, Any]
    request: str


class LeftOutput:
    """Gather output of cells of before, and give it out as what may be shown."""

    def __init__(self, titles: CellTitles) -> None:
        self.titles = titles
        # What was gathered since the last flush, and the request whose output was given out last.
        self._gathered: List[Shown] = []
        self._last = ""

    def __repr__(self) -> str:
        return "<LeftOutput %d gathered>" % len(self._gathered)

    def add(self, parts: Sequence[frames.Buffer]) -> None:
        """Take in an iopub message; one that cannot be read, or shows nothing, is dropped."""
        try:
            at = _delimiter(parts)
            kind = str(json.loads(bytes(parts[at + 2]))["msg_type"])
            request = str(json.loads(bytes(parts[at + 3])).get("msg_id", ""))
            content = json.loads(bytes(parts[at + 5]))
            if kind == "execute_input":
                self.titles.note(parts)
            elif kind == "clear_output":
                self._gathered = [one for one in self._gathered if one.request != request]
            else:
                shown = _shown(kind, content, parts[at + 6 :])
                if shown is not None:
                    self._gathered.append(Shown(shown[0], shown[1], request))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return

    def add_text(self, request: str, text: str) -> None:
        """Take in a line of ours about the output of a request."""
        self._gathered.append(Shown("stream", {"name": "stderr", "text": text}, request))

    def flush(self) -> List[Shown]:
        """Return what was gathered, in order, with a title wherever another cell's begins."""
        gathered, self._gathered = self._gathered, []
        found: List[Shown] = []
        for one in gathered:
            if one.request != self._last:
                self._last = one.request
                title = "[kernelbridge: output of %s, which no client was there to show]\n" % (
                    self.titles.of(one.request).text()
                )
                found.append(Shown("stream", {"name": "stderr", "text": title}, one.request))
            found.append(one)
        return found


def _shown(
    kind: str, content: Mapping[str, Any], buffers: Sequence[frames.Buffer]
) -> Optional[Tuple[str, Dict[str, Any]]]:
    if kind == "stream":
        # A command's output comes as bytes.
        text = str(content["text"]) + b"".join(buffers).decode("utf-8", "replace")
        return kind, {"name": str(content["name"]), "text": text}
    if kind == "error":
        traceback = "\n".join(str(line) for line in content.get("traceback") or ())
        return "stream", {"name": "stderr", "text": (traceback or "%(ename)s: %(evalue)s" % content) + "\n"}
    if kind not in ("display_data", "execute_result", "update_display_data"):
        return None
    data = {name: value for name, value in content["data"].items() if name != _WIDGET_VIEW}
    shown = {"data": data, "metadata": content.get("metadata", {}), "transient": content.get("transient", {})}
    return ("update_display_data" if kind == "update_display_data" else "display_data"), shown


def _delimiter(parts: Sequence[frames.Buffer]) -> int:
    """Return the index of the delimiter. Raises LookupError."""
    for index, part in enumerate(parts):
        if part == frames.DELIMITER:
            return index
    raise LookupError("no delimiter")


def plain(shown: Iterable[Shown]) -> str:
    """Return the same for a terminal: pictures and the like are named."""
    pieces: List[str] = []
    for one in shown:
        if one.kind == "stream":
            pieces.append(one.content["text"])
            continue
        data = one.content["data"]
        text = str(data.get("text/plain", ""))
        others = [name for name in data if name not in ("text/plain", "text/html")]
        named = " (%s)" % ", ".join(sorted(others)) if others else ""
        before = "" if not pieces or pieces[-1].endswith("\n") else "\n"
        pieces.append("%s%s%s\n" % (before, text or "something to display", named))
    return "".join(pieces)
