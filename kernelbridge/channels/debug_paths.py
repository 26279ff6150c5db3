"""Let an editor debug, and link to, its own copies of files that the kernel has elsewhere. Pure.

debugpy maps the paths itself once it is told how, in the `attach` request (DAP; debugpy's `pathMappings`). Only VS Code
is told: JupyterLab fetches sources by the paths that the kernel reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kernelbridge.channels import messages
from kernelbridge.channels.messages import Request
from kernelbridge.protocol.frames import Buffer

# Where cells' files are, as long as the kernel has not said it.
DEFAULT_CELL_PREFIX = "/tmp/"  # noqa: S108 - a place in the container
_VSCODE = "vscode"
# Of clients and of questions that are remembered; the oldest go.
_MOST_REMEMBERED = 100
# Around a path in a line of a traceback: IPython's own ("File PATH:12, in f()", in colours) and Python's.
_BEFORE_PATH = r"(^|[^\w./-]|\x1b\[[\d;]*m)"
_PATH_END = r"[^\s:\"'<>|\x1b]*"


class DebugPaths:
    """Rewrites what passes between an editor and a kernel that have the same files under different paths."""

    def __init__(
        self, mappings: Sequence[Mapping[str, str]], *, to_local: Callable[[str], str | None], is_windows: bool
    ) -> None:
        """`mappings` are debugpy's: tables of localRoot and remoteRoot.

        `to_local` returns the path here of a file there; `is_windows`: this machine's paths are.
        """
        self._mappings = [dict(mapping) for mapping in mappings]
        self._to_local = to_local
        self._is_windows = is_windows
        # The routing ids of clients that have said that they are VS Code, in their order.
        self._editors: dict[tuple[bytes, ...], None] = {}
        # Questions for where cells' files are, that have no answer yet; and the answer.
        self._asked: dict[str, None] = {}
        self._cell_prefix = DEFAULT_CELL_PREFIX
        roots = "|".join(re.escape(mapping["remoteRoot"].rstrip("/")) for mapping in self._mappings)
        self._paths = re.compile(rf"{_BEFORE_PATH}((?:{roots})/{_PATH_END})") if roots else None

    def __repr__(self) -> str:
        return f"<DebugPaths of {len(self._mappings)} folders>"

    # -- requests

    def rewritten(self, request: Request) -> Request:
        """Return a request as the kernel is to get it."""
        if request.kind != "debug_request" or not self._mappings:
            return request
        asked = request.content
        arguments = asked.get("arguments")
        match asked.get("command"):
            case "initialize" if isinstance(arguments, dict):
                self._note_client(request, is_editor=arguments.get("clientID") == _VSCODE)
            case "debugInfo":
                _remember(self._asked, request.id)
            case "attach" if request.identities in self._editors:
                given = arguments if isinstance(arguments, dict) else {}
                return _with_content(request, {**asked, "arguments": self._attach(given)})
        return request

    def _note_client(self, request: Request, *, is_editor: bool) -> None:
        self._editors.pop(request.identities, None)
        if is_editor:
            _remember(self._editors, request.identities)

    def _attach(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of an attach with the mappings; those that the client has given itself come first.

        Cells' files need a mapping to themselves: with any mapping, debugpy takes a file without one for its own.
        """
        given = arguments.get("pathMappings")
        cells = {"localRoot": self._cell_prefix, "remoteRoot": self._cell_prefix}
        mappings = [*(given if isinstance(given, list) else []), *self._mappings, cells]
        return {**arguments, "pathMappings": mappings, **({"clientOS": "windows"} if self._is_windows else {})}

    # -- answers

    def replied(self, parent_id: str, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """Take in a reply on control, which may say where cells' files are; return it as the client is to get it."""
        if parent_id in self._asked:
            del self._asked[parent_id]
            self._note_prefix(parts)
        return self.with_cell_paths(parts)

    def _note_prefix(self, parts: Sequence[Buffer]) -> None:
        try:
            prefix = json.loads(bytes(parts[messages.delimiter_index(parts) + 5]))["body"]["tmpFilePrefix"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return
        if isinstance(prefix, str) and prefix.startswith("/"):
            # The folder of all launches: a kernel that is restarted has another number in it.
            self._cell_prefix = prefix.rstrip("/").rpartition("/")[0] + "/"

    def with_cell_paths(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """Return a reply or event of the debugger in which cells' files are called as the kernel calls them.

        For an editor on Windows debugpy writes every path with backslashes, and the editor would not know its cells.
        """
        if not (self._is_windows and self._editors):
            return parts
        at = messages.delimiter_index(parts) + 5
        changed = json.loads(bytes(parts[at]), object_hook=self._with_cell_path)
        return [*parts[:at], json.dumps(changed).encode(), *parts[at + 1 :]]

    def _with_cell_path(self, table: dict[str, Any]) -> dict[str, Any]:
        path = table.get("path")
        if isinstance(path, str) and path.replace("\\", "/").startswith(self._cell_prefix):
            return {**table, "path": path.replace("\\", "/")}
        return table

    def with_local_links(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """Return an `error` message whose traceback names the files here, of which an editor makes links."""
        if self._paths is None:
            return parts
        at = messages.delimiter_index(parts) + 5
        content = json.loads(bytes(parts[at]))
        lines = content.get("traceback")
        if not isinstance(lines, list):
            return parts
        mapped = [self._linked(line) if isinstance(line, str) else line for line in lines]
        if mapped == lines:
            return parts
        return [*parts[:at], json.dumps({**content, "traceback": mapped}).encode(), *parts[at + 1 :]]

    def _linked(self, line: str) -> str:
        assert self._paths is not None
        return self._paths.sub(lambda found: found[1] + (self._to_local(found[2]) or found[2]), line)


def _remember(table: dict[Any, None], key: Any) -> None:
    table[key] = None
    while len(table) > _MOST_REMEMBERED:
        del table[next(iter(table))]


def _with_content(request: Request, content: Mapping[str, Any]) -> Request:
    at = len(request.identities) + 5
    return replace(request, parts=(*request.parts[:at], json.dumps(content).encode(), *request.parts[at + 1 :]))
