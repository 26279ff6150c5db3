"""What is wrong in the config or on this machine: told before anything is started, and nothing is left of the attempt.

Hosts that cannot be used: test_bad_input.py.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from kernelbridge import errors
from kernelbridge.errors import KernelBridgeError
from kernelbridge.hosts.gpus.selection import not_found
from tests.clients.notebook import CellFailed, notebook, write_specs
from tests.clients.refusals import (
    expect_at_start,
    expect_command,
    expect_in_first_cell,
    expect_launcher,
    refusal_of_manager,
)
from tests.clients.terminal import begin, kernelbridge, launched, write_connection_file
from tests.printed import docs_line
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.usefixtures("nothing_left")


# -- the environment

# An engine's words where it has GPUs and no toolkit.
NO_DRIVER = 'could not select device driver "" with capabilities: [[gpu utility compute]]'
FOUR_CARDS = "4 GPUs: " + ", ".join(f"{number} (Stand-in GPU, 80 GiB)" for number in range(4))

# What is written in the environment, and what its start says.
AT_ONCE: dict[str, tuple[dict[str, Any], Callable[[Rig], KernelBridgeError]]] = {
    "a mount whose source is missing": (
        {"mounts": ["/no/such/folder:/data"]},
        lambda rig: errors.MountMissing(host="lab", path="/no/such/folder"),
    ),
    "a mount below home whose source is missing": (
        {"mounts": ["/etc:/etc2:ro", "~/none:/data"]},
        lambda rig: errors.MountMissing(host="lab", path=f"{rig.lab.home('kbtest')}/none"),
    ),
    "a secret that is not set here": (
        {"secrets": ["KERNEL_TOKEN"]},
        lambda rig: errors.SecretMissing(environment="test", name="KERNEL_TOKEN"),
    ),
    "more cards than there are": (
        {"gpus": 5},
        lambda rig: errors.GpuUnavailable(host="lab", wanted="5 GPUs", found=FOUR_CARDS),
    ),
    "a card that is not there": (
        {"gpus": ["7"]},
        lambda rig: errors.GpuUnavailable(host="lab", wanted="GPU 7", found=FOUR_CARDS),
    ),
    "an image that may not be pulled": (
        {"image": "kernelbridge-test/none:1", "pull": "never"},
        lambda rig: errors.ImageMissing(host="lab", image="kernelbridge-test/none:1", reason="`pull` is never"),
    ),
}


@pytest.mark.parametrize("what", AT_ONCE)
def test_what_an_environment_lacks_is_told_before_anything_is_started(rig: Rig, bridge_env: Laptop, what: str) -> None:
    keys, expected = AT_ONCE[what]
    with rig.slow_engine() as engine:
        wanted = {"image": rig.image, "host": {"socket": str(engine.path)}, **keys}
        bridge_env.write_environment(wanted.pop("image"), **wanted)
        expect_at_start(bridge_env, expected(rig))
        assert not [one for one in engine.requests if one.startswith("POST")]


def test_an_image_that_no_registry_gives_is_told_by_its_name(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment("kernelbridge-test/none:1")
    write_specs(bridge_env)
    with launched(bridge_env) as launcher:
        refusal = refusal_of_manager(bridge_env)
        assert type(refusal) is errors.ImageMissing
        assert refusal.sentence.startswith("lab: there is no image kernelbridge-test/none:1 (")
        assert "Check the name" in refusal.remedy
        ended = launcher.finish()
        assert (ended.code, ended.told[:60]) == (1, f"ImageMissing: {refusal}"[:60])


def test_missing_cards_and_a_missing_gpu_toolkit_are_told_apart(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, gpus=1)
    nowhere = f"no GPU (nvidia-smi: {not_found('lab')})"
    with rig.engine.without_gpus():
        expect_at_start(bridge_env, errors.GpuUnavailable(host="lab", wanted="1 GPU", found=nowhere))
        # The driver is there now, and the engine was started without the toolkit.
        rig.engine.gpus.insert()
        expect_in_first_cell(bridge_env, errors.GpuToolkitMissing(host="lab", reason=NO_DRIVER))


def test_a_limit_that_the_engine_may_not_set_is_told(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, ulimits={"nofile": 1 << 40})
    write_specs(bridge_env)
    with launched(bridge_env) as launcher:
        words = "is not allowed to set the requested limits"
        with notebook(bridge_env) as kernel, pytest.raises(CellFailed, match=words) as caught:
            kernel.run("1")
        assert caught.value.name == "UlimitRefused"
        assert "Lower `ulimits`" in launcher.finish().told


# -- what is wrong on this machine


def test_a_kernel_spec_whose_environment_is_gone_says_so(rig: Rig, bridge_env: Laptop) -> None:
    write_specs(bridge_env)
    bridge_env.write_config(bridge_env.config.read_text().replace("environments.test", "environments.tests"))
    expected = errors.UnknownEnvironment(name="test", path=str(bridge_env.config), nearest="tests")
    with launched(bridge_env) as launcher:
        refusal = refusal_of_manager(bridge_env)
        assert str(refusal) == str(expected)
        expect_launcher(launcher.finish(), expected)


def test_all_that_is_wrong_in_the_config_is_told_at_once(rig: Rig, bridge_env: Laptop) -> None:
    write_specs(bridge_env)
    bridge_env.write_environment(rig.image, host={"gpu": 1}, shm_size="8 apples", mount=["/a:/b"], hosts=["labb"])
    where = f"{bridge_env.config}: "
    ended = kernelbridge(bridge_env, "config")
    assert (ended.code, ended.out) == (10, "")
    *problems, remedy, page = ended.err.splitlines()
    assert len(problems) == 4
    assert all(line.startswith(where) for line in problems)
    assert "did you mean `mounts`" in ended.err
    assert "did you mean `lab`" in ended.err
    assert page == docs_line(10)
    assert remedy == "Fix the file; `kernelbridge config` checks it."
    with launched(bridge_env) as launcher:
        refusal = refusal_of_manager(bridge_env)
        assert type(refusal) is errors.ConfigInvalid
        assert [f"{where}{problem}" for problem in refusal.problems] == problems
        expect_launcher(launcher.finish(), refusal)
    others = (["ps"], ["install"], ["clean"], ["stop", "--all"], ["logs", "x"], ["trust", "lab"])
    with ExitStack() as stack:
        commands = [stack.enter_context(begin(bridge_env, *words)) for words in others]
        assert {(one.code, one.err) for one in [command.finish() for command in commands]} == {(10, ended.err)}


def test_a_config_that_is_named_and_not_there_is_told(bridge_env: Laptop) -> None:
    path = bridge_env.home / "none.toml"
    expected = errors.ConfigMissing(path=str(path), reason="there is no such file")
    expect_command(kernelbridge(bridge_env, "--config", str(path), "ps"), expected)
    with launched(bridge_env, KERNELBRIDGE_CONFIG=str(path)) as launcher:
        expect_launcher(launcher.finish(), expected)


def test_a_host_that_is_not_in_the_config_is_told(bridge_env: Laptop) -> None:
    expected = errors.UnknownHost(name="lap", path=str(bridge_env.config), nearest="lab")
    expect_command(kernelbridge(bridge_env, "trust", "lap"), expected)


def test_an_unknown_command_or_option_is_told_without_a_traceback(bridge_env: Laptop) -> None:
    wrong = (["pss"], ["ps", "--jsn"], ["stop"], ["logs"], ["logs", "x", "--tail", "0"])
    with ExitStack() as stack:
        commands = [stack.enter_context(begin(bridge_env, *words)) for words in wrong]
        for ended in [command.finish() for command in commands]:
            assert (ended.code, ended.out) == (2, "")
            assert ended.err
            assert "Traceback" not in ended.err


def test_a_connection_file_that_is_garbage_is_told(bridge_env: Laptop) -> None:
    wrong = ("", "garbage", "[]", '{"ip": "127.0.0.1"}', '{"shell_port": "x"}')
    files = [bridge_env.runtime_dir / f"kernel-{number}.json" for number in range(len(wrong))]
    with ExitStack() as stack:
        for file, text in zip(files, wrong, strict=True):
            file.write_text(text)
        launchers = [stack.enter_context(launched(bridge_env, file)) for file in files]
        for file, launcher in zip(files, launchers, strict=True):
            ended = launcher.finish()
            assert ended.code == 1
            assert ended.told.startswith(f"ConnectionFileInvalid: {file}: the connection file cannot be used (")
            assert "Traceback" not in ended.err


def test_a_connection_file_that_would_open_the_kernel_to_the_network_is_refused(bridge_env: Laptop) -> None:
    file = write_connection_file(bridge_env.runtime_dir)
    file.write_text(file.read_text().replace("127.0.0.1", "0.0.0.0"))
    with launched(bridge_env, file) as launcher:
        ended = launcher.finish()
    assert "the address 0.0.0.0 is not this machine's loopback" in ended.told


def test_a_port_that_is_taken_is_told_and_nothing_is_started(rig: Rig, bridge_env: Laptop) -> None:
    file = write_connection_file(bridge_env.runtime_dir)
    before = rig.sshd.arrivals
    with socket.socket() as other:
        other.bind(("127.0.0.1", json.loads(file.read_text())["iopub_port"]))
        other.listen()
        with launched(bridge_env, file) as launcher:
            ended = launcher.finish()
    assert ended.code == 1
    assert ended.told.startswith("EndpointTaken: This machine: the kernel's ports are already in use (")
    assert "Traceback" not in ended.err
    assert rig.sshd.arrivals == before
