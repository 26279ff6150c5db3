"""Any image as it is: its Python is found, and what that lacks for a kernel is added beside what the image has.

So all of hosts/docker/images/workshop.py is asked of a real engine: paths looked for, files put in, an image made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kernelbridge.kernel.process_mark import ProcessMark, own_mark, owner_text
from tests.clients.notebook import CellFailed, notebook
from tests.clients.terminal import kernelbridge
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

# Where each of them comes from.
PLACES = "[__import__(name).__file__ for name in ('ipykernel', 'debugpy', 'zmq')]"
ADDED = "/opt/kernelbridge/packages/cpython-"


@pytest.fixture(autouse=True)
def derived_gone(rig: Rig) -> Iterator[None]:
    # Those of other tests on this engine, too.
    remove_derived(rig)
    yield
    remove_derived(rig)


def remove_derived(rig: Rig) -> None:
    """Have no image that was made."""
    for name in derived(rig):
        rig.engine.cli("image", "rm", "-f", name)


def derived(rig: Rig) -> list[str]:
    """The images that were made."""
    return rig.engine.cli("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "kernelbridge/derived").split()


def config(rig: Rig, image: str) -> dict[str, Any]:
    (found,) = json.loads(rig.engine.cli("image", "inspect", image))
    return dict(found["Config"])


def python_of(rig: Rig) -> str:
    """The Python of the one kernel, by which others find it."""
    (container,) = rig.engine.kernels()
    return str(container.labels["kernelbridge.python"])


def started(laptop: Laptop, image: str, **keys: Any) -> Any:
    laptop.write_environment(image, **keys)
    return notebook(laptop)


def test_what_an_image_lacks_is_added_once_and_changes_nothing_of_it(rig: Rig, module_env: Laptop) -> None:
    with started(module_env, rig.bare_image, network="none") as kernel:
        assert all(place.startswith(ADDED) for place in kernel.value(PLACES))
        kernel.run("import sys")
        assert kernel.value("sys.path[-1]").startswith(ADDED), "what the image has comes first"
        assert kernel.debug("debugInfo")["success"]
    (made,) = derived(rig)
    before, after = config(rig, rig.bare_image), config(rig, made)
    for key in ("Entrypoint", "User", "Env", "WorkingDir"):
        assert (before[key] or None) == (after[key] or None), key
    assert not after["Labels"]["kernelbridge.work"], "it does not say who made it"
    with started(module_env, rig.bare_image) as kernel:
        assert kernel.value("6 * 7") == 42
    assert derived(rig) == [made]


def test_the_python_with_the_framework_is_found_off_the_path_and_its_old_ipykernel_replaced(
    rig: Rig, module_env: Laptop
) -> None:
    """Without torch it is the first that has ipykernel, as it is."""
    with started(module_env, rig.old_image) as kernel:
        kernel.run("import ipykernel")
        assert python_of(rig) == "/opt/venv/bin/python3"
        assert not kernel.value("ipykernel.__file__").startswith(ADDED)
    assert derived(rig) == []
    site = "/opt/old/lib/python3.11/site-packages/torch"
    torch = f"mkdir {site}; touch {site}/__init__.py"
    with rig.engine.running_image(rig.old_image, torch) as image, started(module_env, image) as kernel:
        kernel.run("import ipykernel, pexpect, torch")
        assert python_of(rig) == "/opt/old/bin/python3"
        assert kernel.value("ipykernel.__file__").startswith(ADDED)
        assert kernel.value("ipykernel.version_info[0] >= 6")
        assert kernel.value("torch.__file__").startswith("/opt/old"), "what is new enough stays the image's"
        assert kernel.value("pexpect.__file__").startswith("/opt/old")
        assert kernel.debug("debugInfo")["success"]


# conda as images have it: not on PATH, its base and an environment with a Python each.
CONDA = """
set -e
for prefix in /opt/conda /opt/conda/envs/train; do
    mkdir -p $prefix/bin $prefix/conda-meta $prefix/lib
    cp -L /usr/bin/python3 $prefix/bin/python3.11
    ln -s python3.11 $prefix/bin/python3
    ln -s python3.11 $prefix/bin/python
    cp -a /usr/lib/python3.11 $prefix/lib/
    touch $prefix/conda-meta/history
done
mkdir /opt/conda/envs/train/lib/python3.11/torch
touch /opt/conda/envs/train/lib/python3.11/torch/__init__.py
printf '#!/bin/sh\\necho of this environment\\n' >/opt/conda/envs/train/bin/accelerate
chmod 755 /opt/conda/envs/train/bin/accelerate
"""


def test_the_environment_of_conda_that_has_the_framework_is_the_kernels(rig: Rig, module_env: Laptop) -> None:
    with rig.engine.running_image(rig.bare_image, CONDA) as image, started(module_env, image) as kernel:
        kernel.run("import subprocess, sys, torch")
        assert python_of(rig) == "/opt/conda/envs/train/bin/python3"
        assert kernel.value("sys.prefix") == "/opt/conda/envs/train"
        assert torchs_folder(kernel.value("torch.__file__")) == "/opt/conda/envs/train"
        # Its commands too, as after `conda activate`.
        assert kernel.value("subprocess.check_output('accelerate', text=True)") == "of this environment\n"
        assert kernel.debug("debugInfo")["success"]


def torchs_folder(file: str) -> str:
    return file.partition("/lib/python")[0]


def test_an_image_without_a_shell_has_kernels_and_says_so_where_it_would_need_one(rig: Rig, module_env: Laptop) -> None:
    """Such as distroless ones are."""
    with rig.engine.running_image(rig.bare_image, "rm /usr/bin/*sh") as image:
        with started(module_env, image) as kernel:
            assert kernel.value("6 * 7") == 42
            assert kernel.debug("debugInfo")["success"]
            assert kernel.value("__import__('shutil').which('sh') is None")
        with started(module_env, image, setup=["true"]) as kernel, pytest.raises(CellFailed) as caught:
            kernel.run("1")
        assert "sh: No such file or directory" in caught.value.text


def test_packages_of_the_environment_count_and_come_without_internet(rig: Rig, module_env: Laptop) -> None:
    """The image has no pip, and its host no internet: this machine sends both."""
    (module_env.config_dir / "more.txt").write_text("colorama  # of terminals\n")
    keys: dict[str, Any] = {"packages": ["six<2"], "requirements": "more.txt"}
    module_env.write_environment(rig.image, **keys)
    # What somebody left who was killed at such work goes with the next.
    dead = owner_text("m", ProcessMark(f"{2**22 + 7}@1", own_mark().birth), "")
    rig.engine.cli("create", "--name=kernelbridge-work-1", f"--label=kernelbridge.work={dead}", rig.image, "true")
    ended = kernelbridge(module_env, "pull", "test")
    assert rig.engine.cli("container", "ls", "--all", "--quiet", "--filter=label=kernelbridge.work").split() == []
    (made,) = derived(rig)
    assert (ended.code, ended.out) == (0, f"lab has {rig.image} as {made}\n"), ended
    with notebook(module_env) as kernel:
        kernel.run("import six, colorama")
        assert not kernel.value("[one.__file__ for one in (six, colorama) if 'kernelbridge' in one.__file__]")
    assert derived(rig) == [made]
    before, after = config(rig, rig.image), config(rig, made)
    for key in ("Entrypoint", "Cmd", "User", "Env", "WorkingDir", "OpenStdin"):
        assert (before[key] or None) == (after[key] or None), key
    assert not after["Labels"]["kernelbridge.work"]
    module_env.write_environment(rig.image, packages=["kernelbridge-test-no-such-package"])
    with notebook(module_env) as kernel, pytest.raises(CellFailed) as caught:
        kernel.run("1")
    assert "`packages` could not be added" in caught.value.text
    assert "ERROR: No matching distribution found for kernelbridge-test-no-such-package" in caught.value.text
    assert derived(rig) == [made]


def test_the_oldest_ipykernel_that_is_left_as_it_is_is_interrupted_and_debugged(rig: Rig, module_env: Laptop) -> None:
    # It does not say that it needs the second.
    with started(module_env, rig.image, packages=["ipykernel==6.0.3", "ipython_genutils"]) as kernel:
        kernel.run("import ipykernel")
        assert kernel.value("ipykernel.__version__") == "6.0.3"
        assert not kernel.value("ipykernel.__file__").startswith(ADDED)
        assert kernel.debug("debugInfo")["success"]
        kernel.client.execute("print('begun', flush=True)\nimport time\ntime.sleep(600)")
        while kernel.client.get_iopub_msg(timeout=60)["content"].get("text") != "begun\n":
            pass
        kernel.manager.interrupt_kernel()
        assert kernel.client.get_shell_msg(timeout=60)["content"]["ename"] == "KeyboardInterrupt"
        assert kernel.value("6 * 7") == 42


# An image that reaches an index and a mirror: here they are folders of its own, as its container has no network.
WITH_INDEX = """
set -e
python3 -m venv /opt/venv
mkdir -p /index /repository /made/DEBIAN /made/usr/share/made
python3 - <<END
import zipfile
with zipfile.ZipFile("/index/of_the_index-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("of_the_index.py", "")
    for name, text in (
        ("METADATA", "Metadata-Version: 2.1\\nName: of-the-index\\nVersion: 1.0\\n"),
        ("WHEEL", "Wheel-Version: 1.0\\nGenerator: made\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"),
        ("RECORD", ""),
    ):
        wheel.writestr("of_the_index-1.0.dist-info/" + name, text)
END
cat >/made/DEBIAN/control <<END
Package: made
Version: 1
Architecture: all
Maintainer: a <a@b>
Description: made
END
touch /made/usr/share/made/file
cd /repository
dpkg-deb --build /made made.deb
{
    dpkg-deb --field made.deb
    echo "Filename: ./made.deb"
    echo "Size: $(stat -c %s made.deb)"
    echo "SHA256: $(sha256sum made.deb | cut -d' ' -f1)"
} >Packages
echo 'deb [trusted=yes] file:/repository ./' >/etc/apt/sources.list
"""


def test_packages_come_from_the_index_and_the_mirror_of_the_image_where_it_reaches_them(
    rig: Rig, module_env: Laptop
) -> None:
    index = "ENV PATH=/opt/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin PIP_NO_INDEX=1 PIP_FIND_LINKS=/index"
    with (
        rig.engine.running_image(rig.bare_image, WITH_INDEX) as plain,
        rig.engine.changed(plain, index) as image,
        started(module_env, image, packages=["of-the-index"], apt=["made"]) as kernel,
    ):
        kernel.run("import of_the_index, os")
        assert kernel.value("of_the_index.__file__").startswith("/opt/venv/lib/")
        assert kernel.value("os.listdir('/usr/share/made')") == ["file"]
        assert python_of(rig) == "/opt/venv/bin/python3"
        assert kernel.debug("debugInfo")["success"]


def test_what_cannot_be_helped_is_told_by_what_was_found(rig: Rig, module_env: Laptop) -> None:
    module_env.write_environment(rig.nopython_image)
    with notebook(module_env) as kernel, pytest.raises(CellFailed) as caught:
        kernel.run("1")
    assert "has no Python: there is none on its PATH" in caught.value.text
