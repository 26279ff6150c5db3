"""What is said where GPUs cannot be had as asked for, or are lost later; the cards and the toolkit are STAND-INS."""

from __future__ import annotations

from typing import Any

import pytest

from kernelbridge.hosts import bootstrap
from tests.clients.notebook import CellFailed, notebook
from tests.printed import unwrapped
from tests.rig.daemon import wait_until
from tests.rig.laptop import Laptop
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(180)
DRIVER = ("550.00.00", "12.4")


def refusal(laptop: Laptop) -> str:
    """What the first cell of a kernel that does not start shows, or what its start raised."""
    try:
        with notebook(laptop) as kernel:
            return kernel.run("1")
    except CellFailed as exc:
        return str(exc)
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"


def test_an_engine_without_the_toolkit_says_so(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, gpus=1)
    rig.engine.stop()
    rig.engine.start(toolkit=False)
    try:
        said = refusal(bridge_env)
    finally:
        rig.engine.restart()
    assert "lab: its Docker engine cannot hand GPUs to containers (could not select device driver" in said
    assert "Install the NVIDIA Container Toolkit on lab and restart Docker" in said
    assert rig.engine.kernels() == []


@pytest.mark.parametrize("variable", ["NVIDIA_REQUIRE_CUDA=cuda>=13.0", "CUDA_VERSION=13.1.0"])
def test_an_image_that_needs_a_newer_driver_is_refused_before_anything_is_made(
    rig: Rig, bridge_env: Laptop, variable: str
) -> None:
    rig.engine.gpus.set_driver(*DRIVER)
    with rig.engine.changed(rig.image, f"ENV {variable}") as image:
        bridge_env.write_environment(image, gpus=1)
        said = refusal(bridge_env)
        assert f"lab: the image {image} needs" in said
        assert "cuda>=13" in said
        assert "the host has driver 550.00.00 for CUDA 12.4" in said
        assert rig.engine.kernels() == []


def test_no_cards_are_seen_where_none_are_wanted_and_the_image_says_all(rig: Rig, bridge_env: Laptop) -> None:
    with rig.engine.changed(rig.image, "ENV NVIDIA_VISIBLE_DEVICES=all") as image:
        bridge_env.write_environment(image)
        with notebook(bridge_env) as kernel:
            kernel.run("import os, shutil")
            assert kernel.value("(os.environ['NVIDIA_VISIBLE_DEVICES'], shutil.which('nvidia-smi'))") == ("void", None)


def test_a_default_runtime_that_gives_cards_to_everybody_is_noticed(rig: Rig, bridge_env: Laptop) -> None:
    """Here the image itself brings what such a runtime would put in: a nvidia-smi that lists all cards."""
    listing = " ".join(f"'GPU {index}: Stand-in (UUID: {uuid})'" for index, uuid in enumerate(UUIDS))
    file = "/usr/bin/nvidia-smi"
    make = f"echo '#!/bin/sh' >{file}; for line in {listing}; do echo \"echo '$line'\" >>{file}; done; chmod 755 {file}"
    with rig.engine.running_image(rig.image, make) as image:
        bridge_env.write_environment(image)
        said = refusal(bridge_env)
        wait_until(lambda: rig.engine.kernels() == [], "the container to be gone", 10)
    assert f"lab: the container should see no GPU but sees {UUIDS[0]}" in said


def test_a_toolkit_that_hands_out_nothing_is_noticed(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, gpus=1)
    rig.engine.gpus.break_hook()
    try:
        said = refusal(bridge_env)
    finally:
        rig.engine.gpus.insert()
    assert f"lab: the container should see {UUIDS[0]} but sees none, so it was stopped." in said
    wait_until(lambda: rig.engine.kernels() == [], "the container to be gone", 10)


def test_a_container_that_loses_its_cards_is_explained_and_a_restart_gets_another(
    rig: Rig, bridge_env: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bootstrap.order_line

    def sooner(*words: Any, gpus: dict[str, Any], **more: Any) -> bytes:
        line: bytes = real(*words, gpus={**gpus, "look_seconds": 1.0}, **more)
        return line

    monkeypatch.setattr(bootstrap, "order_line", sooner)
    bridge_env.write_environment(rig.image, gpus=1)
    with notebook(bridge_env) as kernel:
        kernel.run("import os, time")
        (before,) = rig.engine.kernels()
        # As after `systemctl daemon-reload` on a host with the hook: the nodes are there and may not be opened.
        before.exec_run(["touch", "/run/standin-gpu-lost"], user="0")
        said = kernel.run("time.sleep(8)")
        lost = "can no longer reach its GPUs, as happens after `systemctl daemon-reload` there."
        assert lost in unwrapped(said)
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=60)
        kernel.run("import os")
        (after,) = rig.engine.kernels()
        assert after.id != before.id
        assert kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']") == UUIDS[0]


def test_a_host_whose_gpu_access_it_does_not_have_says_so(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, host={"gpu_access": "cdi"}, gpus=1)
    assert "GpuWayMissing: lab:" in refusal(bridge_env)
    bridge_env.write_environment(rig.image, host={"gpu_access": "runtime"}, gpus=1)
    assert "lab: its engine has no runtime `nvidia`" in refusal(bridge_env)
