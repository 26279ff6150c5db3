"""hosts/docker/reasons.py: the inmost reason of what an engine says, and that all of it is told."""

from __future__ import annotations

import pytest

from kernelbridge.hosts.docker.reasons import LONGEST_TOLD, inmost, told

NEW = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: error during container init: "
)
OLD = (
    'OCI runtime create failed: container_linux.go:349: starting container process caused "process_linux.go:449: '
    'container init caused \\"process_linux.go:432: running prestart hook 0 caused \\\\\\"error running hook: '
)
LEGACY = "Auto-detected mode as 'legacy'\n"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("no space left on device", "no space left on device"),
        (
            f"{NEW}error running prestart hook #0: exit status 1, stdout: , stderr: {LEGACY}"
            "nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown",
            "nvidia-container-cli: initialization error: nvml error: driver not loaded",
        ),
        (
            f"{NEW}error running hook #0: error running hook: exit status 1, stdout: , stderr: {LEGACY}"
            "nvidia-container-cli: detection error: nvml error: unknown error: unknown",
            "nvidia-container-cli: detection error: nvml error: unknown error",
        ),
        (
            f"{OLD}exit status 1, stdout: , stderr: nvidia-container-cli: initialization error: driver error: failed "
            'to process request\\\\\\\\n\\\\\\"\\"": unknown',
            "nvidia-container-cli: initialization error: driver error: failed to process request",
        ),
        # A hook that says nothing of its own.
        (
            f"{NEW}error running hook #0: error running hook: exit status 2, stdout: , stderr: : unknown",
            "exit status 2",
        ),
        (
            f'{NEW}exec: "python3": executable file not found in $PATH: unknown',
            'exec: "python3": executable file not found in $PATH',
        ),
        (
            'OCI runtime create failed: container_linux.go:380: starting container process caused: exec: "python3": '
            "executable file not found in $PATH: unknown",
            'exec: "python3": executable file not found in $PATH',
        ),
        (
            "driver failed programming external connectivity on endpoint k (50070d9139): iptables failed: iptables "
            "--wait -t nat -A DOCKER: No chain/target/match by that name.\n (exit status 1)",
            "iptables failed: iptables --wait -t nat -A DOCKER: No chain/target/match by that name. (exit status 1)",
        ),
        (
            'failed to resolve reference "docker.io/library/x:1": failed to do request: Head "https://r/": dial tcp: '
            "lookup r: no such host",
            'Head "https://r/": dial tcp: lookup r: no such host',
        ),
        ("", ""),
        ("OCI runtime create failed", "OCI runtime create failed"),
    ],
)
def test_the_inmost_reason_is_found(message: str, reason: str) -> None:
    assert inmost(message) == reason


def test_all_is_told_on_one_line_and_the_reason_first() -> None:
    whole = f"{NEW}error running hook #0: exit status 1, stdout: , stderr: {LEGACY}nvidia-container-cli: last: unknown"
    line = told(whole)
    assert line.startswith("nvidia-container-cli: last; in full: failed to create task for container: ")
    assert line.endswith("nvidia-container-cli: last: unknown")
    assert "\n" not in line
    assert told("a\n  b") == "a b"


def test_of_very_long_words_the_middle_is_left_out_and_never_the_end() -> None:
    line = told(f"begin {'x' * 5000} end")
    assert len(line) < LONGEST_TOLD
    assert line.startswith("begin")
    assert line.endswith("end")
