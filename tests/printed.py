"""What the command line prints of an error."""

from __future__ import annotations

from kernelbridge.errors import KernelBridgeError, error_page


def unwrapped(text: str) -> str:
    """A text that was broken into lines, on one."""
    return " ".join(text.split())


def docs_line(code: int) -> str:
    """The last line: where the error is explained."""
    return f"docs: {error_page(code)}"


def told_by_launcher(error: KernelBridgeError) -> str:
    """What VS Code's launcher writes to stderr; the last line names no Error, or VS Code would show that alone."""
    return "".join(f"{line}\n" for line in [*error.lines(), docs_line(error.exit_code)])


def lines_of(error: KernelBridgeError) -> list[str]:
    """Its sentence, what to do, where it is explained."""
    return [error.sentence, error.remedy, docs_line(error.exit_code)]
