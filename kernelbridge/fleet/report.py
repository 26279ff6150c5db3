"""Make the text of a bug report: versions, config, findings, the last errors and logs of this machine's processes.

Nothing secret is in it: of the config the values that may be secret are left out, and the log files have none. What
still looks like one is taken out of the whole, and so are the names of people and machines, unless they are wanted.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement

from kernelbridge.config.schema import Config
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet import log_files
from kernelbridge.fleet.doctor.finding import Finding
from kernelbridge.fleet.redaction import redacted, redacted_config, without_lines
from kernelbridge.kernel.start.kept_logs import KEPT_LOGS_FOLDER
from kernelbridge.plain_text import printable_lines

# Of errors, and of each log file; and how many files.
MOST_ERRORS: Final = 40
MOST_LOG_LINES: Final = 200
MOST_LOGS: Final = 8
_MOST_LINE_LENGTH: Final = 1000
_PROGRAM_SECONDS: Final = 5.0
# What else says how kernels are used here.
_BESIDE: Final = ("jupyterlab", "notebook", "ipykernel", "jupyter_console", "papermill")
# Extensions of VS Code that start kernels.
_EXTENSIONS: Final = ("ms-toolsai.jupyter", "ms-python.python", "ms-vscode-remote.remote-ssh")
_EXTENSION_FOLDERS: Final = (".vscode", ".vscode-server", ".vscode-insiders", ".vscode-oss", ".cursor")
_EXTENSION: Final = re.compile(r"(?P<name>.+?)-(?P<version>[0-9].*)")
_BEGINS: Final = re.compile(r"\d{4}-\d\d-\d\dT\S+Z (?P<level>[A-Z]+) ")


@dataclass(frozen=True, kw_only=True)
class BugReport:
    """What a report is made of."""

    made: datetime
    # Of what is installed and what runs here: name and version.
    versions: Sequence[tuple[str, str]]
    config: Config | None
    # Why the config cannot be read; None where it can.
    config_failure: KernelBridgeError | None = None
    # None: nobody looked.
    findings: Sequence[Finding] | None = None
    errors: Sequence[str] = ()
    # By file's name: the last lines.
    logs: Sequence[tuple[str, Sequence[str]]] = ()
    # The names of what was kept of starts that failed; not what they wrote.
    failed_starts: Sequence[str] = ()
    masked: Callable[[str], str] = field(default=lambda text: text, repr=False)

    @property
    def contents(self) -> list[str]:
        """What is in it, in words."""
        said = [f"versions of {len(self.versions)} programs and packages"]
        said.append("no config: it cannot be read" if self.config is None else "your config, without values of secrets")
        if self.findings is None:
            said.append("nothing of `kernelbridge doctor`")
        else:
            said.append(f"what `kernelbridge doctor` found: {len(self.findings)} links")
        said.append(f"the last errors: {len(self.errors)}")
        said.append(f"the ends of {len(self.logs)} log files")
        said.append(f"which starts failed: {len(self.failed_starts)}, without what they wrote")
        return said

    def text(self) -> str:
        """Return it as Markdown."""
        findings = "Nobody looked."
        if self.findings is not None:
            told = [finding.to_json() for finding in self.findings]
            rows = [
                f"{one.host or 'this machine'}: {one.state} {one.link}: {one.found} {one.remedy}".rstrip()
                for one in self.findings
            ]
            findings = f"{_block(rows)}\n\nThe same for programs:\n\n{_block(json.dumps(told, indent=1).splitlines())}"
        config = (
            redacted_config(self.config) if self.config is not None else str(self.config_failure or "There is none.")
        )
        parts = [
            "# kernelbridge report",
            f"Made {self.made:%Y-%m-%d %H:%M} UTC. In it: {'; '.join(self.contents)}.",
            "## Versions",
            _block([f"{name} {version}" for name, version in self.versions]),
            "## Config",
            _block(config.splitlines()),
            "## Doctor",
            findings,
            "## Last errors",
            _block(self.errors) if self.errors else "None.",
            "## Starts that failed",
            _block(self.failed_starts) if self.failed_starts else "None.",
            "## Log files",
            "\n\n".join(f"{name}:\n\n{_block(lines)}" for name, lines in self.logs) or "None.",
        ]
        whole = redacted(printable_lines("\n\n".join(parts)))
        return self.masked(whole) + "\n"


def _block(lines: Sequence[str]) -> str:
    """Return lines as they are in Markdown: nothing in them ends the block."""
    shown = [line[:_MOST_LINE_LENGTH].replace("```", "'''") for line in lines]
    return "\n".join(["```text", *shown, "```"])


def versions(home: Path) -> list[tuple[str, str]]:
    """Return what is installed here and matters for kernels: name and version."""
    found = [
        ("Python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("OpenSSH", _first_line(["ssh", "-V"])),
    ]
    names = ["kernelbridge", *_dependencies(), *_BESIDE]
    for name in dict.fromkeys(names):
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return [*found, *_extensions(home)]


def _dependencies() -> list[str]:
    try:
        written = metadata.requires("kernelbridge") or []
    except metadata.PackageNotFoundError:
        return []
    names = []
    for line in written:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if "extra" not in str(requirement.marker or ""):
            names.append(requirement.name)
    return names


def _extensions(home: Path) -> list[tuple[str, str]]:
    """Return the versions of VS Code's extensions, as far as their folders are seen here."""
    found: set[tuple[str, str]] = set()
    for folder in _EXTENSION_FOLDERS:
        for path in (home / folder / "extensions").glob("*-[0-9]*"):
            named = _EXTENSION.fullmatch(path.name)
            if named is not None and named["name"].lower() in _EXTENSIONS:
                found.add((f"{folder.removeprefix('.')}: {named['name']}", named["version"]))
    return sorted(found)


def _first_line(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            words, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PROGRAM_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return "not there"
    said = (done.stdout + done.stderr).decode("utf-8", "replace").strip().splitlines()
    return said[0] if said else f"exit code {done.returncode}"


def read_logs(folder: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the last errors of this machine's processes, and the ends of their log files; `folder`: the records'."""
    errors: list[tuple[str, str]] = []
    logs: list[tuple[str, list[str]]] = []
    for path in log_files.log_paths(folder):
        try:
            lines = path.read_bytes().decode("utf-8", "replace").splitlines()
        except OSError as exc:
            lines = [f"(it cannot be read: {exc.strerror or exc})"]
        errors += [(entry.partition(" ")[0], entry) for entry in error_entries(lines)]
        if len(logs) < MOST_LOGS:
            logs.append((path.name, without_lines(lines, MOST_LOG_LINES)))
    last = [entry for _, entry in sorted(errors, key=lambda one: one[0])[-MOST_ERRORS:]]
    return [line for entry in last for line in entry.splitlines()], logs


def error_entries(lines: Sequence[str]) -> list[str]:
    """Return the warnings and errors among the lines of a log, with their tracebacks."""
    entries: list[list[str]] = []
    is_error = False
    for line in lines:
        begins = _BEGINS.match(line)
        if begins is not None:
            is_error = begins["level"] in ("WARNING", "ERROR", "CRITICAL")
            if is_error:
                entries.append([line])
        elif is_error:
            entries[-1].append(line)
    return ["\n".join(entry) for entry in entries]


def failed_starts(folder: Path) -> list[str]:
    """Return which starts failed here, and when; `folder`: the records'."""
    found = []
    for path in sorted((folder / KEPT_LOGS_FOLDER).glob("*.log")):
        try:
            at = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
        except OSError:
            continue
        found.append(f"{path.name.removesuffix('.log')[:8]} at {at:%Y-%m-%d %H:%M %z}")
    return found
