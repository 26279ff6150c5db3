"""`ps` and `gpus` over the user's own ssh: they find what the full way finds, and leave it to that where they cannot.

That is cli/listings: memory.py remembers, early.py and quick.py ask over openssh/control_link.py. How fast they are:
scripts/bench.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.notebook import notebook
from tests.clients.terminal import Ended, begin, kernelbridge
from tests.rig.daemon import wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

# Runs the program whose words follow, and prints what it has loaded, in a last line of stderr.
LOADED = """
import json, sys
from kernelbridge.__main__ import main
code = main()
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""
HEAVY = {"asyncssh", "docker", "pydantic", "typer", "rich"}
LISTINGS = [("ps",), ("ps", "--json"), ("gpus",), ("gpus", "--json"), ("ps", "--host", "lab")]
# What is told of the moment, not of the kernel.
MOMENTS = ("since", "deadline", "used_mib", "utilization", "processes", "seconds")


def listed(laptop: Laptop, *words: str) -> tuple[Ended, bool]:
    """A listing as users call it, and whether it went the quick way."""
    ended = subprocess.run(
        [sys.executable, "-c", LOADED, *words], env=laptop.env, capture_output=True, text=True, timeout=120, check=False
    )
    err, _, loaded = ended.stderr.rstrip("\n").rpartition("\n")
    return Ended(code=ended.returncode, out=ended.stdout, err=f"{err}\n" if err else ""), HEAVY.isdisjoint(
        json.loads(loaded)
    )


def fully(laptop: Laptop, *words: str) -> Ended:
    """The same by the full way, which any option before the command takes."""
    return kernelbridge(laptop, "--config", str(laptop.config), *words)


def lasting(found: Any) -> Any:
    """What stays the same of a listing in JSON from one moment to the next."""
    if isinstance(found, dict):
        return {key: lasting(one) for key, one in found.items() if key not in MOMENTS}
    return [lasting(one) for one in found] if isinstance(found, list) else found


def remembered(laptop: Laptop) -> Path:
    (path,) = (laptop.home / ".cache" / "kernelbridge").glob("listing-*.json")
    return path


def change(path: Path, **changed: object) -> None:
    """Have other things remembered of the one host."""
    known = json.loads(path.read_text())
    names = ["name", "ssh_words", "path", "socket", "engine_socket", "api_version"]
    for name, value in changed.items():
        known["config"]["hosts"][0][names.index(name)] = value
    path.write_text(json.dumps(known))


def our_ssh() -> list[str]:
    """The folders of control sockets that a process of this machine has in its words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        found += [os.fsdecode(word) for word in words if b"/kernelbridge-" in word and word.endswith(b"/c")]
    return found


def test_both_ways_find_the_same_kernels_and_gpus(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, gpus=["1"])
    with notebook(bridge_env) as kernel:
        kernel.run("'it is there'")
        first, is_quick = listed(bridge_env, "ps")
        assert (first.code, is_quick, "test" in first.out) == (0, False, True)
        assert oct(remembered(bridge_env).stat().st_mode)[-3:] == "600"
        for words in LISTINGS:
            found, is_quick = listed(bridge_env, *words)
            assert is_quick, words
            whole = fully(bridge_env, *words)
            assert (found.code, found.err) == (whole.code, whole.err) == (0, "")
            if "--json" in words:
                assert lasting(found.json) == lasting(whole.json)
                assert found.out.splitlines()[:3] == whole.out.splitlines()[:3]
            else:
                assert found.out == whole.out
    assert our_ssh() == []


def test_without_kernels_and_through_start_up_files_that_print_both_say_the_same(rig: Rig, bridge_env: Laptop) -> None:
    noise = rig.lab.home("kbtest") / ".bashrc"
    noise.write_text("echo welcome; echo 'a warning' >&2\n")
    try:
        kernelbridge(bridge_env, "gpus")
        for words in LISTINGS:
            found, is_quick = listed(bridge_env, *words)
            assert is_quick
            whole = fully(bridge_env, *words)
            assert (found.code, found.err) == (whole.code, whole.err) == (0, "")
            assert found.out == whole.out
    finally:
        noise.unlink()


def test_what_went_wrong_is_said_by_the_full_way_and_what_was_remembered_is_forgotten(
    rig: Rig, bridge_env: Laptop
) -> None:
    kernelbridge(bridge_env, "ps")
    known = bridge_env.ssh_folder / "known_hosts"
    lines = known.read_text()
    known.write_text("")
    refused, is_quick = listed(bridge_env, "ps")
    assert not is_quick
    whole = fully(bridge_env, "ps")
    assert (refused.code, refused.out, refused.err) == (whole.code, whole.out, whole.err)
    assert refused.code != 0
    assert "config" not in json.loads(remembered(bridge_env).read_text())
    # It was no use a moment ago: it is not tried again at once, whatever is found.
    known.write_text(lines)
    assert listed(bridge_env, "ps")[0].code == 0
    assert not listed(bridge_env, "ps")[1]
    assert our_ssh() == []


@pytest.mark.parametrize(
    "changed",
    [
        {"api_version": "1.40"},
        {"engine_socket": "/run/nowhere.sock"},
        {"engine_socket": "/run/docker.sock"},
        {"ssh_words": ["-F", "none", "--", "nobody-is-called-so.invalid"]},
    ],
    ids=["another version", "no socket", "another socket", "another host"],
)
def test_what_is_not_as_remembered_is_left_to_the_full_way(bridge_env: Laptop, changed: dict[str, object]) -> None:
    kernelbridge(bridge_env, "ps")
    change(remembered(bridge_env), **changed)
    found, is_quick = listed(bridge_env, "ps")
    assert (found.code, found.out, found.err, is_quick) == (0, "No kernels.\n", "", False)


def test_a_config_that_was_changed_is_read_anew(rig: Rig, bridge_env: Laptop) -> None:
    kernelbridge(bridge_env, "ps")
    assert listed(bridge_env, "ps")[1]
    bridge_env.write_environment(rig.image, host={"ssh": "lab-nowhere"})
    found, is_quick = listed(bridge_env, "ps")
    assert (found.code != 0, is_quick) == (True, False)


def test_an_ssh_ends_with_the_listing_that_has_begun_it_however_that_ends(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "lab-proxied"})
    kernelbridge(bridge_env, "ps")
    with rig.proxy.delay(0.3):
        with begin(bridge_env, "ps") as command:
            wait_until(lambda: bool(our_ssh()), "the ssh of a listing", 20)
            command.process.kill()
        wait_until(lambda: not our_ssh(), "the end of the ssh of a listing that was killed", 60)
