"""The images of the tests: a Debian with Python and ipykernel, made without a registry, and small variants of it.

KERNELBRIDGE_TEST_CACHE names a folder that keeps them between runs; without it they are made each time.
KERNELBRIDGE_TEST_IMAGE names an image with ipykernel and ipywidgets to take from this machine's own Docker instead.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.rig.daemon import RigError, run
from tests.rig.debian import codename, mirror
from tests.rig.engine import EngineRig

REPOSITORY = "kernelbridge-test"
KERNEL = f"{REPOSITORY}/kernel:1"
BARE = f"{REPOSITORY}/bare:1"  # Python, and no ipykernel
NOPYTHON = f"{REPOSITORY}/nopython:1"
USER = f"{REPOSITORY}/user:1"  # the kernel image with USER 1000 and a home
ENTRYPOINT = f"{REPOSITORY}/entrypoint:1"  # the kernel image with an ENTRYPOINT that ends at once
# An old ipykernel in a venv that is not on PATH, where another `pip` is, and a user whom /etc/passwd does not know.
OLD = f"{REPOSITORY}/old:1"
OLD_PYTHON = "/opt/old/bin/python3"

PACKAGES = ("ipykernel", "ipywidgets")
# The last that handle control on the thread that runs the cells, and know neither interrupt_request nor debug_request.
OLD_PACKAGES = ("ipykernel<6", "ipython<8")
# What a kernel never reads, and every machine would carry and remove again: two thirds of all files.
_USELESS = (
    "var/lib/apt/lists",
    "var/cache/apt/archives",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/zoneinfo/right",
    "usr/share/zoneinfo/posix",
)
_USELESS_STUBS = ("jedi/third_party/django-stubs", "jedi/third_party/typeshed/stubs")

_KERNEL_FILE = f"""\
FROM {BARE}
COPY wheels /wheels
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install -q --no-index --find-links /wheels {" ".join(PACKAGES)} \
    && rm -rf /wheels /root/.cache {" ".join(f"/opt/venv/lib/python3*/site-packages/{one}" for one in _USELESS_STUBS)} \
    && /opt/venv/bin/pip uninstall -q -y setuptools pip
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""
_NOPYTHON_FILE = f"FROM {BARE}\nUSER root\nRUN rm -f $(which -a python3 python) /usr/bin/python3*\n"
_USER_FILE = f"""\
FROM {KERNEL}
USER root
RUN id 1000 || PATH=$PATH:/usr/sbin useradd --create-home --uid 1000 jovyan
USER 1000
WORKDIR /home/jovyan
"""
_ENTRYPOINT_FILE = f'FROM {KERNEL}\nENTRYPOINT ["/bin/false"]\nCMD ["never"]\n'
_OLD_FILE = f"""\
FROM {KERNEL}
USER root
COPY wheels /wheels
RUN python3 -m venv /opt/old \
    && /opt/old/bin/pip install -q --no-index --find-links /wheels {" ".join(f"'{one}'" for one in OLD_PACKAGES)} \
    && rm -rf /wheels /root/.cache && printf '#!/bin/sh\\necho of the system\\n' > /usr/local/bin/pip \
    && chmod 755 /usr/local/bin/pip && ln -s pip /usr/local/bin/python
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
USER 1234
WORKDIR /
"""


def missing_images() -> str | None:
    """Why no image can be made here; None where it can."""
    if os.environ.get("KERNELBRIDGE_TEST_IMAGE"):
        return None
    if shutil.which("debootstrap") is None or shutil.which("apt-get") is None:
        return "debootstrap is missing; scripts/test installs it, or set KERNELBRIDGE_TEST_IMAGE to an image to take"
    return None


def provide(engine: EngineRig) -> None:
    """The engine has all images of the tests: from the cache, from this machine's Docker, or made now."""
    cache = os.environ.get("KERNELBRIDGE_TEST_CACHE")
    if not cache:
        with tempfile.TemporaryDirectory(dir=engine.lab.path) as folder:
            _make(engine, Path(folder))
        return
    kept = Path(cache)
    kept.mkdir(parents=True, exist_ok=True)
    saved = kept / f"engine-{_recipe(engine)}"
    with _locked(kept / "lock"):
        if not saved.exists():
            with tempfile.TemporaryDirectory(dir=kept) as work:
                _make(engine, Path(work))
            unfinished = saved.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            with engine.stopped():
                _copy(engine.data, unfinished)
            unfinished.rename(saved)
            return
    with engine.stopped():
        _copy(saved, engine.data)


def _copy(source: Path, target: Path) -> None:
    """Carry images as the engine's own folders: a `docker save` and a `load` per machine take ten times as long.

    Layers never change, so that on one disk all machines share the same files of them.
    """
    target.mkdir(exist_ok=True)
    layers = "-al" if source.stat().st_dev == target.stat().st_dev else "-a"
    # The last is where engines from 29 on keep all of it; not tried here, Debian's are older.
    for name, how in (("image", "-a"), ("overlay2", layers), ("containerd", "-a")):
        if (source / name).is_dir():
            shutil.rmtree(target / name, ignore_errors=True)
            run(["cp", how, source / name, target / name])


def _recipe(engine: EngineRig) -> str:
    """Changes when the images would, or the engine's way to keep them; what mirror and PyPI hold may age.

    Every version of Docker reads what another one wrote with this driver.
    """
    given = os.environ.get("KERNELBRIDGE_TEST_IMAGE", "")
    driver = engine.cli("info", "--format", "{{.Driver}}")
    parts = (
        _KERNEL_FILE,
        _NOPYTHON_FILE,
        _USER_FILE,
        _ENTRYPOINT_FILE,
        _OLD_FILE,
        *_USELESS,
        given,
        codename(),
        driver,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _make(engine: EngineRig, work: Path) -> None:
    given = os.environ.get("KERNELBRIDGE_TEST_IMAGE")
    if given:
        _take(engine, given, work)
    else:
        _make_bare(engine, work / "rootfs")
        wheels = work / "kernel" / "wheels"
        _download(wheels, PACKAGES, python=_python_of(work / "rootfs"))
        _build(engine, KERNEL, _KERNEL_FILE, work / "kernel")
    _build(engine, NOPYTHON, _NOPYTHON_FILE, work / "nopython")
    _build(engine, USER, _USER_FILE, work / "user")
    _build(engine, ENTRYPOINT, _ENTRYPOINT_FILE, work / "entrypoint")
    say = "import sys; print('%d.%d' % sys.version_info[:2])"
    python = engine.cli("run", "--rm", "--network=none", "--entrypoint=python3", KERNEL, "-c", say).strip()
    _download(work / "old" / "wheels", OLD_PACKAGES, python=python)
    _build(engine, OLD, _OLD_FILE, work / "old")


def _take(engine: EngineRig, image: str, work: Path) -> None:
    """The made machine has no way out: pull with this machine's own Docker, and carry the file over."""
    saved = work / "taken.tar"
    try:
        run(["docker", "image", "inspect", image])
    except RigError:
        run(["docker", "pull", image])
    run(["docker", "save", "--output", saved, image])
    engine.cli("load", "--input", saved)
    engine.cli("tag", image, KERNEL)
    packages = " ".join(PACKAGES)
    _build(engine, BARE, f"FROM {KERNEL}\nUSER root\nRUN python3 -m pip uninstall -q -y {packages}\n", work / "bare")


def _make_bare(engine: EngineRig, rootfs: Path) -> None:
    address, proxy = mirror()
    environment = {**os.environ, **({"http_proxy": proxy} if proxy else {})}
    run(
        ["debootstrap", "--variant=minbase", "--include=python3-venv", codename(), rootfs, address],
        env=environment,
        seconds=900,
    )
    for useless in _USELESS:
        shutil.rmtree(rootfs / useless, ignore_errors=True)
    tar = rootfs.with_suffix(".tar")
    run(["tar", "-C", rootfs, "-cf", tar, "."])
    engine.cli("import", tar, BARE)
    tar.unlink()


def _python_of(rootfs: Path) -> str:
    """Which Python the rootfs has, as `3.11`."""
    return (rootfs / "usr/bin/python3").readlink().name.removeprefix("python")


def _download(wheels: Path, packages: Sequence[str], *, python: str) -> None:
    wheels.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--python-version", python]
    run([*pip, "--dest", wheels, *packages])


def _build(engine: EngineRig, name: str, recipe: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(recipe)
    # No `--network`: the made machine has no way out, and nothing here needs one.
    engine.cli("build", "-q", "-t", name, folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
