"""hosts/docker/images/wheels.py: wheels for another machine's Python are asked for, completed, and packed for it."""

from __future__ import annotations

import os
import stat
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kernelbridge.hosts.docker.images import derived_image, wheels
from kernelbridge.hosts.docker.images.derived_image import WheelsFailed
from kernelbridge.hosts.docker.images.wheels import Wheel
from tests.made_pythons import MARKERS, made_python


def wheel(name: str, version: str, *requires: str, modules: tuple[str, ...] = ()) -> Wheel:
    """A wheel that is nowhere."""
    needs = tuple(Requirement(text) for text in requires)
    return Wheel(path=Path(name), name=name, version=version, requires=needs, modules=modules or (name,))


def written(folder: Path, name: str, *requires: str, **files: str) -> Path:
    """A wheel of version 99 on disk."""
    path = folder / f"{name}-99-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 99", *(f"Requires-Dist: {one}" for one in requires)]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}-99.dist-info/METADATA", "\n".join(lines))
        file.writestr(f"{name}-99.dist-info/WHEEL", "Wheel-Version: 1.0")
        file.writestr(f"{name}/__init__.py", f"# {name}")
        for key, text in files.items():
            file.writestr(key, text)
    return path


@pytest.mark.parametrize(
    ("libc", "first", "last"),
    [
        ("glibc 2.36", "manylinux_2_36_x86_64", "linux_x86_64"),
        ("glibc 2.17", "manylinux_2_17_x86_64", "linux_x86_64"),
        ("musl 1.2.4", "musllinux_1_2_x86_64", "musllinux_1_0_x86_64"),
        ("", "linux_x86_64", "linux_x86_64"),
    ],
)
def test_wheels_for_all_c_libraries_up_to_its_own_will_do(libc: str, first: str, last: str) -> None:
    found = wheels.platforms(libc, "x86_64")
    assert (found[0], found[-1]) == (first, last)
    assert ("manylinux2014_x86_64" in found) == libc.startswith("glibc")


@pytest.mark.parametrize(
    ("version", "soabi", "name", "abi"),
    [
        ("3.11.2", "cpython-311-x86_64-linux-gnu", "cpython", ("cp", "cp311")),
        ("3.13.1", "cpython-313t-x86_64-linux-gnu", "cpython", ("cp", "cp313t")),
        ("3.10.14", "pypy310-pp73-x86_64-linux-gnu", "pypy", ("pp", "pypy310_pp73")),
    ],
)
def test_pip_is_asked_for_wheels_of_that_python(version: str, soabi: str, name: str, abi: tuple[str, str]) -> None:
    python = made_python(version=version, soabi=soabi, markers={**MARKERS, "implementation_name": name})
    argv = wheels.pip_argv(python, ["--odd", "a>=1"], Path("/w"))
    assert argv[:4] == [sys.executable, "-m", "pip", "download"]
    assert {f"--implementation={abi[0]}", f"--abi={abi[1]}", "--only-binary=:all:", "--dest=/w"} < set(argv)
    assert f"--python-version={'.'.join(version.split('.')[:2])}" in argv
    # What is wanted is never taken for an option.
    assert argv[-3:] == ["--", "--odd", "a>=1"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("/v/python: No module named pip\n", "there is no pip beside kernelbridge"),
        ("Looking\nERROR: no x\nERROR: No match for x\n", "ERROR: no x ERROR: No match for x"),
        ("a\nb\nc\nd\n", "b c d"),
        ("", "it says nothing"),
    ],
)
def test_what_pip_says_last_is_the_reason(said: str, reason: str) -> None:
    assert derived_image.last_words(said).startswith(reason)


def test_what_this_machines_python_needs_no_more_is_asked_for_where_that_one_does() -> None:
    found = [
        wheel("ipykernel", "6", "client>=2", "traitlets"),
        wheel("client", "3", 'importlib-metadata>=4; python_version < "3.10"', 'colorama; sys_platform == "win32"'),
        wheel("traitlets", "5", 'pytest; extra == "test"', 'argcomplete; extra == "more"'),
    ]
    wanted = ["ipykernel>=6", "traitlets[more]"]
    assert wheels.left_out(wanted, found, MARKERS) == ["argcomplete"]
    older = {**MARKERS, "python_version": "3.8"}
    assert sorted(wheels.left_out(wanted, found, older)) == ["argcomplete", "importlib-metadata>=4"]
    found += [wheel("importlib-metadata", "8", "zipp"), wheel("argcomplete", "3")]
    assert wheels.left_out(wanted, found, older) == ["zipp"]


def test_only_what_is_too_old_in_the_image_comes_before_it() -> None:
    found = [
        wheel("ipykernel", "6.29", "ipython>=7.23", "traitlets>=5.4", "psutil"),
        wheel("ipython", "8", "traitlets>=5", "pygments", modules=("IPython",)),
        wheel("traitlets", "5.14"),
        wheel("pygments", "2"),
        wheel("psutil", "7"),
    ]
    roots = ["ipykernel>=6"]
    assert wheels.first_modules(roots, found, {}, MARKERS) == []
    has = {"ipykernel": "5.5.6", "ipython": "7.16", "traitlets": "5.5", "pygments": "2.1"}
    assert wheels.first_modules(roots, found, has, MARKERS) == ["IPython", "ipykernel"]
    # What it has is new enough, whatever that needs itself.
    assert wheels.first_modules(roots, found, {**has, "ipykernel": "6.1"}, MARKERS) == []
    assert wheels.first_modules(roots, found, {**has, "traitlets": "4.3"}, MARKERS) == [
        "IPython",
        "ipykernel",
        "traitlets",
    ]
    assert wheels.first_modules(roots, found, {"ipykernel": "of today"}, MARKERS) == []


def test_a_wheel_is_read_and_packed_as_it_lies_on_a_path(tmp_path: Path) -> None:
    files = {
        "bad-99.data/purelib/more.py": "1",
        "bad-99.data/scripts/cmd": "2",
        "bad.libs/x.so": "3",
        "../../etc/passwd": "4",
        "/etc/shadow": "5",
    }
    found = wheels.read_wheel(written(tmp_path, "bad", "six", "no requirement at all!", **files))
    assert (found.name, found.version, [str(one) for one in found.requires]) == ("bad", "99", ["six"])
    assert "bad" in found.modules and "bad-99" not in found.modules
    wheels.pack([found], "opt/p", tmp_path / "t.tar.gz")
    with tarfile.open(tmp_path / "t.tar.gz") as tar:
        entries = {entry.name: entry for entry in tar}
    assert [name for name in entries if entries[name].isfile()] == [
        "opt/p/bad-99.dist-info/METADATA",
        "opt/p/bad-99.dist-info/WHEEL",
        "opt/p/bad/__init__.py",
        "opt/p/more.py",
        "opt/p/bad.libs/x.so",
    ]
    assert {stat.S_IMODE(entry.mode) for entry in entries.values()} == {0o644, 0o755}
    assert list(entries)[:2] == ["opt", "opt/p"]


def test_what_is_no_wheel_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"no zip")
    with pytest.raises(WheelsFailed, match=r"x\.whl is no wheel"):
        wheels.read_wheels(tmp_path)


async def test_what_a_kernel_needs_is_fetched_once_for_each_kind_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip itself, with an index of files."""
    index, cache = tmp_path / "index", tmp_path / "cache"
    index.mkdir()
    for name in ("ipykernel", "debugpy", "pyzmq"):
        written(index, name, 'tool; python_version < "3.9"')
    written(index, "tool")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    python = made_python(version="3.8.10", markers={**MARKERS, "python_version": "3.8"})
    archive, first = await wheels.fetch_kernel(python, cache)
    assert isinstance(archive, Path) and isinstance(first, bytes)
    with tarfile.open(archive) as tar:
        assert "opt/kernelbridge/packages/cpython-311/tool/__init__.py" in tar.getnames()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert (await wheels.fetch_kernel(python, cache))[0] == archive
    with pytest.raises(WheelsFailed, match="ERROR: No matching distribution found"):
        await wheels.fetch_kernel(replace(python, version="3.9.1"), cache)
    assert [path.name for path in cache.iterdir()] == [derived_image.cache_name(python)]
    # What is not used for long goes with the next that is fetched; its last use counts.
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    long_ago = time.time() - wheels.CACHE_SECONDS - 60
    for folder in (cache / "cpython-310-old", cache / derived_image.cache_name(python)):
        folder.mkdir(exist_ok=True)
        os.utime(folder, (long_ago, long_ago))
    await wheels.fetch_kernel(python, cache)
    other = replace(python, version="3.8.11")
    await wheels.fetch_kernel(other, cache)
    assert {path.name for path in cache.iterdir()} == set(map(derived_image.cache_name, (python, other)))
