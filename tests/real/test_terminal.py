"""The command line against a real host: kernels that others hold, orphans, hosts that are away.

What goes wrong and its sentence: test_bad_input.py. What the wheel brings: test_installed.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kernelbridge import __version__, errors
from tests.clients.blocking import Client, connected
from tests.clients.terminal import Command, Ended, kernelbridge, launched, wait_bound, write_connection_file
from tests.printed import lines_of
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig


@pytest.fixture(autouse=True)
def nothing_stays(rig: Rig, bridge_env: Laptop) -> Iterator[None]:
    """After the goodbye of a launcher its container stays a moment: see test_lifetimes.py."""
    yield
    rig.engine.sweep()


@contextmanager
def held(laptop: Laptop) -> Iterator[tuple[Command, Client]]:
    """A kernel that a launcher holds, as VS Code would have it, and a client of it."""
    file = write_connection_file(laptop.runtime_dir)
    with launched(laptop, file) as launcher:
        wait_bound(file)
        with connected(str(file)) as client:
            client.run("'it is there'")
            yield launcher, client


def kernel_id(rig: Rig) -> str:
    """The id of the one kernel there is."""
    (container,) = rig.engine.kernels()
    return str(container.labels["kernelbridge.kernel"])


def expect_good(ended: Ended) -> Ended:
    assert (ended.code, ended.err) == (0, "")
    return ended


def test_config_prints_what_is_in_force_and_hides_what_looks_like_a_secret(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, shm_size="8g", env={"HF_TOKEN": "hf_abcdefghijklmnop", "MODE": "fast"})
    shown = kernelbridge(bridge_env, "config")
    assert shown.code == 0
    assert shown.out.splitlines()[:3] == [f"# {bridge_env.config}", "[hosts.lab]", 'ssh = "lab"']
    assert 'shm_size = "8g"\n' in shown.out
    assert "gpus = 0  # default\n" in shown.out
    assert 'MODE = "fast"' in shown.out
    assert "abcdefghijklmnop" not in shown.out + shown.err
    assert "environments.test.env.HF_TOKEN looks like a secret" in shown.err
    whole = expect_good(kernelbridge(bridge_env, "config", "--json")).json
    assert whole["environments"]["test"]["shm_size"] == 8 << 30
    assert whole["environments"]["test"]["display_name"] == "Docker-GPU (remote)"
    assert "abcdefghijklmnop" not in json.dumps(whole)
    schema = expect_good(kernelbridge(bridge_env, "config", "--schema")).json
    assert "shm_size" in json.dumps(schema)


def test_without_any_config_the_terminal_says_what_to_write(bridge_env: Laptop) -> None:
    bridge_env.config.unlink()
    # Not named by anybody: the usual place, where none need be.
    empty = Laptop(**{**bridge_env.__dict__, "config": bridge_env.config_dir / "kernelbridge.toml"})
    shown = expect_good(kernelbridge(empty, "config"))
    assert "not there: defaults only" in shown.out
    assert 'ssh = "local"' in shown.out
    assert "no environments yet: write [environments.NAME] with an image" in shown.out
    installed = expect_good(kernelbridge(empty, "install"))
    assert "write [environments.NAME] with an image, then install again" in installed.out


def test_install_writes_renews_and_removes_kernel_specs_and_leaves_foreign_ones_alone(
    rig: Rig, bridge_env: Laptop
) -> None:
    kernels = bridge_env.data_dir / "kernels"
    foreign = kernels / "kernelbridge-other" / "kernel.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text('{"argv": ["x"], "display_name": "somebody\'s", "language": "x"}')
    first = expect_good(kernelbridge(bridge_env, "install"))
    assert first.out == 'Wrote kernelbridge-test: "Docker-GPU (remote)"\n'
    assert "is up to date" in expect_good(kernelbridge(bridge_env, "install")).out
    listed = subprocess.run(
        [sys.executable, "-m", "jupyter", "kernelspec", "list", "--json"],
        env=bridge_env.env,
        capture_output=True,
        timeout=60,
        check=True,
    )
    spec = json.loads(listed.stdout)["kernelspecs"]["kernelbridge-test"]
    assert spec["spec"]["display_name"] == "Docker-GPU (remote)"
    assert {path.name for path in Path(spec["resource_dir"]).iterdir()} == {
        *("kernel.json", "logo-32x32.png", "logo-64x64.png", "logo-svg.svg")
    }
    text = bridge_env.config.read_text().replace("environments.test", "environments.fresh")
    bridge_env.write_config(f'{text}\n[environments.other]\nimage = "{rig.image}"\n')
    again = kernelbridge(bridge_env, "install")
    assert again.out.splitlines() == [
        'Wrote kernelbridge-fresh: "Docker-GPU (remote), fresh"',
        "Removed kernelbridge-test: its environment is gone.",
    ]
    assert "belongs to another config and was left alone" in again.err
    assert expect_good(kernelbridge(bridge_env, "uninstall")).out == "Removed kernelbridge-fresh.\n"
    assert expect_good(kernelbridge(bridge_env, "uninstall")).out == "No kernel specs to remove.\n"
    assert [path.name for path in kernels.iterdir()] == ["kernelbridge-other"]
    assert "somebody's" in foreign.read_text()


def test_ps_lists_a_kernel_that_another_process_holds(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, gpus=2)
    assert expect_good(kernelbridge(bridge_env, "ps")).out == "No kernels.\n"
    with held(bridge_env):
        (row,) = expect_good(kernelbridge(bridge_env, "ps", "--json")).json["kernels"]
        assert row["kernel_id"] == kernel_id(rig)
        expected: dict[str, Any] = {"environment": "test", "host": "lab", "image": rig.image, "state": "idle"}
        expected |= {"is_ours": True, "is_orphan": False, "gpus": list(UUIDS[:2]), "link": "held", "deadline": None}
        expected |= {"held_by": row["owner"], "why": "", "undelivered_bytes": row["undelivered_bytes"]}
        assert {key: row[key] for key in expected} == expected
        heads, line = expect_good(kernelbridge(bridge_env, "ps")).out.splitlines()
        columns = ["KERNEL", "ENVIRONMENT", "NOTEBOOK", "HOST", "STATE", "ENDS", "GPUS", "OWNER", "CREATED", "IMAGE"]
        assert heads.split() == columns
        assert line.split()[:6] == [row["kernel_id"][:12], "test", f"{Path.cwd().name}/", "lab", "idle", "-"]


def test_ps_shows_what_it_found_beside_a_host_that_is_away(rig: Rig, bridge_env: Laptop) -> None:
    text = bridge_env.config.read_text()
    with held(bridge_env):
        bridge_env.write_config(f'{text}\n[hosts.away]\nssh = "kbtest@127.0.0.1:9"\n')
        whole = kernelbridge(bridge_env, "ps", "--json")
        assert (whole.code, len(whole.json["kernels"])) == (0, 1)
        away = errors.HostRefused(host="away", address="127.0.0.1:9")
        assert whole.json["problems"] == [
            {"sentence": away.sentence, "remedy": away.remedy, "exit_code": away.exit_code},
        ]
        shown = kernelbridge(bridge_env, "ps")
        assert kernel_id(rig)[:12] in shown.out
        assert shown.err.splitlines() == lines_of(away)
        # Not seen is not gone: a kernel that is nowhere may be where nobody could be asked.
        for words in (["stop", "nowhere"], ["logs", "nowhere"], ["clean"]):
            ended = kernelbridge(bridge_env, *words)
            assert (ended.code, ended.out) == (away.exit_code, "")
            assert ended.err.splitlines() == lines_of(away)


def test_an_orphan_is_shown_and_removed_by_clean_and_nothing_else_is(rig: Rig, bridge_env: Laptop) -> None:
    with held(bridge_env), held(bridge_env) as (killed, _):
        living, orphan = sorted(
            kernelbridge(bridge_env, "ps", "--json").json["kernels"], key=lambda row: str(row["created"])
        )
        killed.process.kill()
        killed.process.wait(10)
        marks = {row["kernel_id"]: row["is_orphan"] for row in kernelbridge(bridge_env, "ps", "--json").json["kernels"]}
        assert sorted(marks.values()) == [False, True]
        orphan_id = next(one for one, is_orphan in marks.items() if is_orphan)
        assert orphan_id in {living["kernel_id"], orphan["kernel_id"]}
        assert re.search(
            rf"{orphan_id[:12]} +test +\S+ +lab +idle, link lost since \d\d:\d\d.*, orphan ",
            kernelbridge(bridge_env, "ps").out,
        )
        said = expect_good(kernelbridge(bridge_env, "clean", "--dry-run")).out
        assert orphan_id[:12] in said
        assert said.endswith("These would be removed.\n")
        dry = expect_good(kernelbridge(bridge_env, "clean", "--dry-run", "--json")).json
        assert (dry["dry_run"], [row["kernel_id"] for row in dry["kernels"]]) == (True, [orphan_id])
        assert len(rig.engine.kernels()) == 2
        assert expect_good(kernelbridge(bridge_env, "clean")).out.endswith("These were removed.\n")
        assert kernel_id(rig) != orphan_id
        assert expect_good(kernelbridge(bridge_env, "clean")).out == "Nothing to remove.\n"


def test_another_installations_kernels_are_listed_and_never_cleaned(rig: Rig, bridge_env: Laptop) -> None:
    with held(bridge_env) as (killed, _):
        killed.process.kill()
        killed.process.wait(10)
        # The same user's second machine: the same login on the host, records of its own.
        second = Laptop(**{**bridge_env.__dict__, "data_dir": bridge_env.home / "second"})
        (row,) = expect_good(kernelbridge(second, "ps", "--json")).json["kernels"]
        assert (row["is_ours"], row["is_orphan"]) == (False, False)
        assert expect_good(kernelbridge(second, "clean")).out == "Nothing to remove.\n"
        assert expect_good(kernelbridge(second, "stop", "--all")).out == "No kernels.\n"
        assert kernel_id(rig) == row["kernel_id"]
        # What it said last may have been on its way when it was killed.
        assert expect_good(kernelbridge(bridge_env, "clean", "--discard")).code == 0


def test_stop_ends_kernels_by_the_beginning_of_an_id_or_all_and_their_holders_say_why(
    rig: Rig, bridge_env: Laptop
) -> None:
    with held(bridge_env) as (first, _):
        known = kernel_id(rig)
        with held(bridge_env) as (second, _):
            nobody = errors.KernelNotFound(kernel="", hosts=["lab"])
            assert kernelbridge(bridge_env, "stop", "").err.splitlines()[0] == nobody.sentence
            stopped = expect_good(kernelbridge(bridge_env, "stop", known[:8]))
            assert stopped.out == f"Stopped {known} (test on lab).\n"
            assert kernel_id(rig) != known
            stopped = expect_good(kernelbridge(bridge_env, "stop", "--all"))
            assert len(stopped.out.splitlines()) == 1
            assert rig.engine.kernels() == []
            for launcher in (first, second):
                ended = launcher.finish(seconds=30)
                assert ended.code == 1
                assert ended.told.startswith("KernelEnded: The container of Docker-GPU (remote) on lab was ")
    unknown = errors.KernelNotFound(kernel=known, hosts=["lab"])
    ended = kernelbridge(bridge_env, "stop", known)
    assert (ended.code, ended.err.splitlines()) == (52, lines_of(unknown))


def test_logs_shows_what_the_process_itself_wrote_and_no_output_of_cells(rig: Rig, bridge_env: Laptop) -> None:
    with held(bridge_env) as (_, client):
        client.run("import os, subprocess; print('in the notebook')")
        client.run("for number in range(300): os.write(1, f'line {number}\\n'.encode())")
        known = kernel_id(rig)[:8]

        def said(*words: str) -> list[str]:
            return expect_good(kernelbridge(bridge_env, "logs", known, *words)).out.splitlines()

        # The engine takes both streams side by side: what is written to the one may be kept before the other's.
        for last, code in {
            "line 299": "pass",
            "to stderr": "os.write(2, b'to stderr\\n')",
            "from a child": "subprocess.run(['sh', '-c', 'echo from a child'])",
        }.items():
            client.run(code)
            wait_until(partial(lambda line: line in said(), last), "the last line", 10)
        assert said()[-2:] == ["to stderr", "from a child"]
        assert len(said()) == 200
        assert said("--tail", "3") == ["line 299", "to stderr", "from a child"]
        assert "in the notebook" not in said("--tail", "1000")
        # The kernel's own link was not disturbed by the one that asked.
        assert client.run("6 * 7").result == "42"
    wait_until(lambda: kernelbridge(bridge_env, "logs", known).code == 52, "the container to be gone", 30)


def test_logs_of_a_process_that_has_ended_can_still_be_read(rig: Rig, bridge_env: Laptop) -> None:
    with held(bridge_env) as (launcher, client):
        known = kernel_id(rig)[:8]
        launcher.process.kill()
        launcher.process.wait(10)
        rig.engine.kernels()[0].stop(timeout=0)
        (row,) = kernelbridge(bridge_env, "ps", "--json").json["kernels"]
        assert (row["state"], row["is_orphan"]) == ("exited", True)
        assert expect_good(kernelbridge(bridge_env, "logs", known)).err == ""
        assert len(kernelbridge(bridge_env, "clean", "--json").json["kernels"]) == 1
        assert client.kernel


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["ps", "--help"], ["-h"]])
def test_help_and_version_are_quick_and_touch_no_host(rig: Rig, bridge_env: Laptop, words: list[str]) -> None:
    before = rig.sshd.arrivals
    shown = expect_good(kernelbridge(bridge_env, *words, seconds=10 * SLOW))
    assert ("kernelbridge" in shown.out) and (__version__ in shown.out or "--" in shown.out)
    assert rig.sshd.arrivals == before


def test_a_machine_with_two_names_has_each_kernel_and_card_once_and_commands_work(rig: Rig, bridge_env: Laptop) -> None:
    names = {"lab": "lab", "again": "lab-proxied", "as-root": "lab-root"}
    hosts = "".join(f'[hosts.{name}]\nssh = "{alias}"\n' for name, alias in names.items())
    bridge_env.write_config(f'{hosts}[environments.test]\nimage = "{rig.image}"\nhosts = ["again"]\n')
    with held(bridge_env) as (_, client):
        (row,) = expect_good(kernelbridge(bridge_env, "ps", "--json")).json["kernels"]
        assert (row["host"], sorted(row["also_on"]), row["link"]) == ("again", ["as-root", "lab"], "held")
        cards = kernelbridge(bridge_env, "gpus", "--json").json["gpus"]
        assert [(card["host"], card["also_on"]) for card in cards] == [("lab", ["again", "as-root"])] * 4
        client.run("kept = 41")
        attached = expect_good(kernelbridge(bridge_env, "attach", row["kernel_id"][:8], "--no-console"))
        assert "jupyter console --existing" in attached.out
        with rig.proxy.cut():
            shown = kernelbridge(bridge_env, "ps", "--json").json
            assert [(one["host"], one["also_on"]) for one in shown["kernels"]] == [("lab", ["as-root", "again"])]
            assert len(shown["problems"]) == 1
        assert client.run("kept + 1").result == "42"
        stopped = expect_good(kernelbridge(bridge_env, "stop", row["kernel_id"][:8]))
        assert stopped.out == f"Stopped {row['kernel_id']} (test on again).\n"
    assert rig.engine.kernels() == []
