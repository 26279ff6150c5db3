"""Images and hosts as people have them: what an image, its host's Docker and its login say holds in the kernel, or the
user is told why it cannot.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.hosts.labels import LABEL_PREFIX, SNAPSHOT_LABEL
from tests.clients.notebook import CellFailed, notebook
from tests.clients.terminal import kernelbridge
from tests.rig.daemon import SLOW
from tests.rig.laptop import Laptop
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig

PROXIES = {"default": {"httpProxy": "http://ada:s3cret@p:3128", "noProxy": "lab"}}
SEEN = "{name: text for name, text in os.environ.items() if 'proxy' in name.lower()}"


def test_what_an_image_and_its_host_say_holds_in_the_kernel(rig: Rig, bridge_env: Laptop) -> None:
    with (
        rig.lab.home_files("kbtest", {".docker/config.json": json.dumps({"proxies": PROXIES})}),
        rig.engine.changed(rig.image, "ENV NVIDIA_DRIVER_CAPABILITIES=all NVIDIA_VISIBLE_DEVICES=all") as image,
    ):
        bridge_env.write_environment(image, gpus=1, memory="300m", env={"no_proxy": "mine"})
        with notebook(bridge_env) as kernel:
            kernel.run("import os")
            # As in `docker run --gpus 1`; which cards it sees is never the image's word.
            assert kernel.value("os.environ['NVIDIA_DRIVER_CAPABILITIES']") == "all"
            assert kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']") == UUIDS[0]
            proxy = PROXIES["default"]["httpProxy"]
            proxies = {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "lab", "no_proxy": "mine"}
            assert kernel.value(SEEN) == proxies
            (container,) = rig.engine.kernels()
            assert "s3cret" not in json.dumps(container.attrs), "a password in a proxy's address is shown to nobody"
            limits = container.attrs["HostConfig"]
            with rig.engine.client() as client:
                can_limit_swap = client.info()["SwapLimit"]
            # Where an engine cannot limit swap, it says so and goes on with the limit of memory alone.
            assert limits["MemorySwap"] == (limits["Memory"] if can_limit_swap else -1)
            assert limits["Memory"] == 300 << 20
            kernel.manager.restart_kernel()
            kernel.client.wait_for_ready(timeout=60 * SLOW)
            kernel.run("import os")
            assert kernel.value(SEEN) == proxies


def told(laptop: Laptop) -> str:
    """What the first cell of a kernel that cannot start says."""
    with notebook(laptop) as kernel, pytest.raises(CellFailed) as caught:
        kernel.run("1")
    return " ".join(caught.value.text.split())


def test_an_entrypoint_that_is_not_run_is_named_where_ipykernel_is_missing(rig: Rig, bridge_env: Laptop) -> None:
    with rig.engine.changed(rig.bare_image, 'ENTRYPOINT ["/entry.sh"]') as image:
        bridge_env.write_environment(image, entrypoint="off", add_ipykernel=False)
        sentence = told(bridge_env)
    assert f"The image {image} has no ipykernel." in sentence
    assert "The image's ENTRYPOINT (/entry.sh) is not run: what it sets up, set with `env` and `python`." in sentence


# One after the other, in the manner of NGC's (exports, prints a banner), tini and docker-stacks' start.sh (looks at its
# words, runs what lies in a folder), conda's and micromamba's (sources an activation), ROS' (`set -e`, sources); and as
# docker-stacks' does for root: it becomes another user in the end.
ENTRYPOINTS = {
    "entry": """#!/bin/bash
case $KIND in
fails) echo 'no such profile' >&2; exit 3 ;;
serves) while :; do echo serving; sleep 0.05; done ;;
esac
export NGC=1 LD_LIBRARY_PATH=/usr/local/ngc
printf '\n=============\n== Toolkit ==\n=============\n\n'
exec /entry/tini -g -- /entry/start.sh "$@"
""",
    "tini": """#!/bin/bash
while [ "$1" != -- ]; do shift; done
shift
"$@" &
wait $!
""",
    "start.sh": """#!/bin/bash
set -e
echo "Entered start.sh with args: $*"
[ $# -gt 0 ] || exec bash
for hook in /entry/hooks/*.sh; do source "$hook"; done
unset SUDO
umask 027
cd /var/tmp
exec /entry/activate_and_run "$@"
""",
    "hooks/10.sh": "export HOOKED=$(id -u)\n",
    "activate_and_run": """#!/bin/bash
source /entry/activate
exec /entry/ros_entrypoint.sh "$@"
""",
    "activate": "export CONDA_DEFAULT_ENV=base CONDA_SHLVL=1 PATH=/opt/conda/bin:$PATH\n",
    "ros_entrypoint.sh": """#!/bin/bash
set -e
source /entry/setup.bash --
export HOME=/home/other USER=other
exec setpriv --reuid=4321 --regid=4321 --clear-groups "$@"
""",
    "setup.bash": 'export ROS_DISTRO=jazzy PYTHONPATH=/opt/ros/lib GREETING="$HELLO you"\n',
}


@contextmanager
def entrypoints(rig: Rig) -> Iterator[None]:
    """The login on the host has a folder of such scripts."""
    folder = rig.lab.home("kbtest") / "entry"
    for name, text in ENTRYPOINTS.items():
        path = folder / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    try:
        yield
    finally:
        rig.lab.run(["rm", "-r", str(folder)])


def test_what_an_images_entrypoint_sets_up_is_there_and_what_goes_wrong_with_it_is_said(
    rig: Rig, bridge_env: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    keys: dict[str, Any] = {"mounts": ["~/entry:/entry:ro"], "user": "root", "secrets": ["MY_TOKEN"]}
    names = ["NGC", "HOOKED", "CONDA_DEFAULT_ENV", "ROS_DISTRO", "PYTHONPATH", "GREETING", "SUDO", "MY_TOKEN"]
    seen = f"[os.environ.get(name) for name in {names}]"
    # What is gone in the end may be so because another user has no right to it: it stays.
    wanted = ["1", "0", "base", "jazzy", "/opt/ros/lib", "hello you", "1", "s3cret"]
    with entrypoints(rig), rig.engine.changed(rig.image, 'ENTRYPOINT ["/entry/entry"]', "ENV SUDO=1") as image:
        env = {"HELLO": "hello", "KIND": "all"}
        bridge_env.write_environment(image, **keys, env=env, cap_add=["SETUID", "SETGID"])
        with notebook(bridge_env) as kernel:
            assert kernel.run("import os") == "", "an entrypoint that works is no news"
            assert kernel.value(seen) == wanted
            assert kernel.value("os.getcwd(), os.getuid(), os.environ['HOME']") == ("/var/tmp", 0, "/root")
            assert kernel.value("'/opt/conda/bin' in os.environ['PATH'].split(':')")
            kernel.run("open('/tmp/made', 'w').close()")
            assert kernel.value("oct(os.stat('/tmp/made').st_mode)") == "0o100640"
            kernel_id = str(rig.engine.kernels()[0].name).removeprefix("kernelbridge-")
            assert "Entered start.sh with args: " in kernelbridge(bridge_env, "logs", kernel_id).out
            kernel.manager.restart_kernel()
            kernel.client.wait_for_ready(timeout=60 * SLOW)
            kernel.run("import os")
            assert (kernel.value(seen), kernel.value("os.getcwd()")) == (wanted, "/var/tmp")
        for kind, words in {
            "fails": "ended with exit code 3 and has not run its command: no such profile",
            "serves": f"has not run its command within {2 * SLOW:g} s: serving",
        }.items():
            bridge_env.write_environment(image, **keys, env={"KIND": kind}, start_seconds=20 * SLOW)
            with notebook(bridge_env) as kernel:
                said = " ".join(kernel.run("import os").split())
                assert f"[kernelbridge: the image's ENTRYPOINT (/entry/entry) {words}; the kernel runs without" in said
                assert kernel.value("'NGC' in os.environ") is False
                assert kernel.run("1") == "1"
        bridge_env.write_environment(image, **keys, env={"KIND": "fails"}, entrypoint="off")
        with notebook(bridge_env) as kernel:
            assert kernel.run("1") == "1"


SNAPSHOT = "kernelbridge-test-snapshot:1"


def test_a_snapshot_has_what_its_kernel_wrote_and_no_secret_and_starts_again(
    rig: Rig, bridge_env: Laptop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret-of-mine")
    keys: dict[str, Any] = {"user": "root", "secrets": ["MY_TOKEN"], "env": {"MINE": "of-my-config"}}
    bridge_env.write_environment(rig.image, **keys, labels={"team": "vision"})
    with notebook(bridge_env) as kernel:
        kernel.run("import os, pathlib; pathlib.Path('/opt/model').write_text('left by a cell')")
        assert kernel.value("os.environ['MY_TOKEN']") == "s3cret-of-mine"
        (container,) = rig.engine.kernels()
        kernel_id = str(container.name).removeprefix("kernelbridge-")
        taken = kernelbridge(bridge_env, "snapshot", kernel_id[:8], rig.image)
        assert f"lab has an image {rig.image} that is no snapshot of yours." in taken.err
        made = kernelbridge(bridge_env, "snapshot", kernel_id[:8], SNAPSHOT)
        assert made.code == 0, made
        assert kernel.value("1 + 1") == 2, "it goes on"
    try:
        rig.engine.cli("save", "--output", tmp_path / "saved.tar", SNAPSHOT)
        layers = (tmp_path / "saved.tar").read_bytes()
        (tmp_path / "saved.tar").unlink()
        assert b"left by a cell" in layers, "the search finds what is there"
        for secret in (b"s3cret-of-mine", b"of-my-config", b"kernelbridge_relay/relay/supervisor.py"):
            assert secret not in layers
        with rig.engine.client() as client:
            said, base = (client.images.get(name).attrs["Config"] for name in (SNAPSHOT, rig.image))
        assert (said["Entrypoint"] or None, said["Cmd"]) == (base["Entrypoint"], base["Cmd"] or ["sh"])
        ours = {key: text for key, text in said["Labels"].items() if key.startswith(LABEL_PREFIX) and text}
        assert ours.keys() == {SNAPSHOT_LABEL, LABEL_PREFIX + "base"}
        assert {line.partition("=")[0] for line in said["Env"]} <= {"PATH", "NVIDIA_VISIBLE_DEVICES", "HOME", "USER"}
        (listed,) = kernelbridge(bridge_env, "images", "--json").json["images"]
        assert (listed["name"], listed["kind"], listed["base"]) == (SNAPSHOT, "snapshot", rig.image)
        assert (listed["environments"], listed["is_ours"], listed["is_in_use"]) == ([], True, False)
        bridge_env.write_environment(SNAPSHOT, **keys)
        with notebook(bridge_env) as kernel:
            assert kernel.value("open('/opt/model').read()") == "left by a cell"
            assert kernelbridge(bridge_env, "images", "--json").json["images"][0]["is_in_use"]
        cleaned = kernelbridge(bridge_env, "clean", "--images", "--discard", "--json").json
        assert cleaned["images"] == [], "an environment is made of it"
        bridge_env.write_environment(rig.image)
        assert [one["name"] for one in kernelbridge(bridge_env, "clean", "--images", "--json").json["kept"]] == [
            SNAPSHOT
        ]
        assert kernelbridge(bridge_env, "clean", "--images", "--discard").code == 0
        assert kernelbridge(bridge_env, "images").out == "No images.\n"
    finally:
        rig.engine.cli("image", "rm", "-f", SNAPSHOT)


# A stand-in: today's Python, which says that it is an old one before it does what it is told.
OLD_PYTHON = """#!/bin/sh
exec python3 -c 'import sys; sys.version_info = (3, 7, 17); exec(sys.argv[2])' "$@"
"""


@contextmanager
def old_python(rig: Rig) -> Iterator[str]:
    """An image whose /py/python3 is such a one."""
    script = OLD_PYTHON.replace("\n", "\\n").replace("'", "'\\''")
    made = f"mkdir /py; printf '{script}' >/py/python3; chmod 755 /py/python3"
    with rig.engine.running_image(rig.image, made) as image:
        yield image


def test_a_python_that_is_too_old_is_told_by_its_version(rig: Rig, bridge_env: Laptop) -> None:
    with old_python(rig) as image:
        bridge_env.write_environment(image, python="/py/python3")
        sentence = told(bridge_env)
    assert f"The image {image} has Python 3.7; kernelbridge needs 3.8." in sentence
    assert "Use an image with Python 3.8 or newer" in sentence


def test_an_image_for_another_processor_is_told_by_both(rig: Rig, bridge_env: Laptop, tmp_path: Path) -> None:
    (tmp_path / "arm.tar").write_bytes(arm_image("kernelbridge-test-arm:1"))
    rig.engine.cli("load", "--input", tmp_path / "arm.tar")
    try:
        bridge_env.write_environment("kernelbridge-test-arm:1")
        sentence = told(bridge_env)
    finally:
        rig.engine.cli("image", "rm", "-f", "kernelbridge-test-arm:1")
    assert "The image kernelbridge-test-arm:1 is for arm64, lab is x86_64." in sentence
    assert "Use an image that is made for the architecture of lab too." in sentence


def arm_image(name: str) -> bytes:
    """An image as `docker save` writes it, whose programs are heads of ELF files for AArch64 and nothing more."""
    numbers = (2, 0xB7, 1, 0x400078, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", *numbers)
    program = head + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 200, 200, 0x1000) + bytes(80)
    layer = tarred({"usr/bin/python3": program, "bin/sh": program})
    diffs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    described = {"architecture": "arm64", "os": "linux", "config": {"Env": ["PATH=/usr/bin:/bin"]}, "rootfs": diffs}
    config = json.dumps(described).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": ["l/layer.tar"]}]
    return tarred({config_name: config, "l/layer.tar": layer, "manifest.json": json.dumps(manifest).encode()})


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()
