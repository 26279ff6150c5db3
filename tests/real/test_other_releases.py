"""Kernels that another release made: joined where both speak the same version, and else asked, read and stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from kernelbridge import __version__
from kernelbridge.kernel.records import Records, default_folder
from tests.clients.page import Page, ReturningServer, call
from tests.clients.terminal import Ended, kernelbridge
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.last_release import LAST, last_release, next_release, start
from tests.rig.whole import Rig

NAME = "kernelbridge-test"
KERNEL = "0a1b2c3d-0000-4000-8000-000000000001"
SHORT = KERNEL[:12]
# A command line of a release to come, which speaks a later version of the stream.
LATER = """\
from kernelbridge.protocol import frames
frames.VERSION = 3
from kernelbridge.__main__ import main
raise SystemExit(main())
"""

pytestmark = pytest.mark.timeout(180)


def later(laptop: Laptop, *words: str) -> Ended:
    """`kernelbridge WORDS` of a release to come."""
    done = subprocess.run(
        [sys.executable, "-c", LATER, *words], env=laptop.env, capture_output=True, text=True, timeout=60 * SLOW
    )
    return Ended(code=done.returncode, out=done.stdout, err=done.stderr)


def remembered(laptop: Laptop, rig: Rig) -> None:
    """What the last release wrote down of a kernel that VS Code left a while ago."""
    record: dict[str, Any] = {"kernel_id": KERNEL, "environment": "test", "config": str(laptop.config), "host": "lab"}
    record |= {"image": rig.image, "python": "python3", "session": "SESSION-ID", "persist": True}
    times: dict[str, Any] = {"started": time.time() - 100, "left": time.time() - 90}
    folder = default_folder() / "kernels"
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / f"{KERNEL}.json").write_text(json.dumps({**record, **times, "process": "", "sessions": []}))


def row_of(ended: Ended) -> dict[str, Any]:
    (row,) = ended.json["kernels"]
    return dict(row)


def expect_row(row: dict[str, Any], version: str) -> None:
    assert (row["kernel_id"], row["state"], row["is_ours"], row["version"]) == (KERNEL, "idle", True, version)


def wait_idle(laptop: Laptop) -> dict[str, Any]:
    """Its row, once its relay says that it can work."""
    rows: list[dict[str, Any]] = []

    def is_idle() -> bool:
        rows.append(row_of(kernelbridge(laptop, "ps", "--json")))
        return bool(rows[-1]["state"] == "idle")

    wait_until(is_idle, "the kernel to answer", 30)
    return rows[-1]


def test_a_kernel_of_the_last_release_is_joined_used_restarted_and_stopped(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, persist=True)
    start(rig, last_release(), kernel_id=KERNEL, owner=Records(default_folder()).machine_id())
    expect_row(wait_idle(bridge_env), LAST)
    remembered(bridge_env, rig)
    with ReturningServer(bridge_env.home / "server", env=bridge_env.variables) as server:
        wait_until(lambda: [one["id"] for one in server.get("api/kernels")] == [KERNEL], "the kernel to be listed", 30)
        page = Page(server, NAME, kernel_id=KERNEL)
        assert page.run("kept = 41; print(kept + 1)") == "42\n"
        call(server, "POST", f"api/kernels/{KERNEL}/restart")
        assert page.run("print('kept' in globals())") == "False\n"
        lines = page.run("import os; [print(n, flush=True) for n in range(200)]; os.system('echo from the program')")
        assert lines.splitlines()[:200] == [str(n) for n in range(200)]
        # What is written past the kernel's own stdout is in its log.
        page.run("os.write(2, b'to the log\\n')")
        assert "to the log" in kernelbridge(bridge_env, "logs", SHORT).out
        assert "to the log" in later(bridge_env, "logs", SHORT).out
        page.close()
        server.kill()

    wait_until(lambda: row_of(later(bridge_env, "ps", "--json"))["link"] != "held", "the relay to notice", 30)
    refused = later(bridge_env, "attach", "--no-console", SHORT)
    assert (refused.code, refused.out) == (90, "")
    said = " ".join(refused.err.split())
    assert f"{SHORT} on lab was made by kernelbridge {LAST}; this is {__version__}, which cannot" in said
    assert f"`pip install kernelbridge=={LAST}`, here, joins it again" in said
    assert later(bridge_env, "clean").code == 0
    assert [one.labels["kernelbridge.kernel"] for one in rig.engine.kernels()] == [KERNEL], "it is to persist"
    assert later(bridge_env, "stop", SHORT).out == f"Stopped {KERNEL} (test on lab).\n"
    assert rig.engine.kernels() == []


def test_a_kernel_of_a_later_release_is_shown_read_and_stopped_and_attach_says_what_joins_it(
    rig: Rig, bridge_env: Laptop
) -> None:
    bridge_env.write_environment(rig.image)
    start(rig, next_release("0.9.0"), kernel_id=KERNEL, owner=Records(default_folder()).machine_id())
    expect_row(wait_idle(bridge_env), "0.9.0")
    refused = kernelbridge(bridge_env, "attach", "--no-console", SHORT)
    assert (refused.code, refused.out) == (90, "")
    assert "was made by kernelbridge 0.9.0" in " ".join(refused.err.split())
    assert kernelbridge(bridge_env, "logs", SHORT).code == 0
    assert kernelbridge(bridge_env, "stop", SHORT).code == 0
    assert rig.engine.kernels() == []
