"""hosts/docker/images/python_probe.py: the Pythons of an image are found, and the right one is taken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernelbridge.errors import ImageUnusable
from kernelbridge.hosts.docker.images import python_probe
from kernelbridge.hosts.docker.images.python_probe import FoundPython, choose, parse_python
from tests.made_pythons import made_python
from tests.rig.daemon import SLOW

TORCH = ("torch",)
KERNEL = {"ipykernel": "6.0"}


def asked(python: str, *, is_only: bool, path: str = "") -> list[FoundPython]:
    argv = python_probe.probe_argv(python, is_only=is_only)
    env = {"PATH": path or os.environ["PATH"]}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60 * SLOW, check=True)
    return python_probe.parse_probe(done.stdout)


def test_a_python_says_what_it_is_and_has(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('of the user')")
    (found,) = asked(sys.executable, is_only=True)
    assert (found.path, found.prefix) == (sys.executable, sys.prefix)
    assert found.number == sys.version_info[:3]
    assert found.cache_tag == sys.implementation.cache_tag
    assert found.packages["pyzmq"]
    assert found.markers["sys_platform"] == sys.platform
    assert parse_python(found.to_dict()) == found


def test_all_pythons_are_asked_each_environment_once_and_odd_ones_are_left_out(tmp_path: Path) -> None:
    for name, text in {"odd": "#!/bin/sh\necho hello\n", "old": None, "broken": "#!/nothing\n"}.items():
        (tmp_path / name).mkdir()
        file = tmp_path / name / "python3"
        says = 'kernelbridge has found {"path": "/old/python3", "version": "2.7.18"}'
        file.write_text(text or f"#!/bin/sh\necho '{says}'\n")
        file.chmod(0o755)
    path = ":".join([*(str(tmp_path / name) for name in ("odd", "old", "broken")), str(Path(sys.executable).parent)])
    found = asked(sys.executable, is_only=False, path=path)
    assert found[0] == FoundPython(path="/old/python3", version="2.7.18", packages={}, markers={})
    assert found[1].prefix == sys.prefix
    assert len({one.prefix for one in found}) == len(found)


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        {},
        {"path": "/p"},
        {"path": "/p", "version": "x"},
        {"path": 1, "version": "3.8"},
        {"path": "/p", "version": "3.8", "packages": ["a"]},
        {"path": "/p", "version": "3.8", "packages": {"a": 1}},
        {"path": "/p", "version": "3.8", "frameworks": "torch"},
        {"path": "-c", "version": "3.8"},
        {"path": "/p\n", "version": "3.8"},
        {"path": "/p", "version": "3." + "8" * 5000},
        {"path": "/p", "version": "\u0663.8"},
        {"path": "/p", "version": "3.8", "libc": 1},
    ],
)
def test_words_of_an_image_that_are_none_of_ours_are_refused(told: object) -> None:
    with pytest.raises(ValueError, match=r"is|no"):
        parse_python(told)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        # Folders of this machine are named for it.
        ("cache_tag", "../../evil"),
        ("cache_tag", "/tmp/evil"),
        ("cache_tag", ".."),
        ("soabi", "cp311 --index-url=http://evil"),
        # A platform each, back to the oldest.
        ("libc", "glibc 2.999999999"),
        ("libc", "musl 1.2.x"),
        ("libc", "\x1b[2J"),
    ],
)
def test_what_an_image_says_of_its_wheels_and_cannot_be_is_not_said(name: str, word: str) -> None:
    assert getattr(parse_python({"path": "/p", "version": "3.8", name: word}), name) == ""


@pytest.mark.parametrize("libc", ["glibc 2.36", "glibc 2.17.90", "musl 1.2.4", "musl 1.2.4_git20230717"])
def test_a_c_library_is_told_by_its_release(libc: str) -> None:
    assert parse_python({"path": "/p", "version": "3.8", "libc": libc}).libc == libc


def test_of_packages_and_markers_what_is_no_short_word_is_left_out() -> None:
    words = {"a": "1", "b": "1" * 1000, "c" * 1000: "1", "d": "\x1b[2J"}
    found = parse_python(
        {"path": "/p", "version": "3.8", "packages": words, "markers": words, "frameworks": ["x", "jax"]}
    )
    assert (found.packages, found.markers, found.frameworks) == ({"a": "1"}, {"a": "1"}, ("jax",))
    many = parse_python({"path": "/p", "version": "3.8", "packages": {str(number): "1" for number in range(100_000)}})
    assert len(many.packages) == 5000


USR = made_python()
CONDA = made_python("/opt/conda/bin/python3")
OLD = FoundPython(path="/usr/bin/python3", version="3.7.17", packages={}, markers={})
TWO = FoundPython(path="/usr/bin/python", version="2.7.18", packages={}, markers={})


@pytest.mark.parametrize(
    ("found", "best", "why"),
    [
        pytest.param([USR], USR, "", id="the only one"),
        pytest.param([OLD, CONDA], CONDA, "", id="the only one that is new enough"),
        pytest.param([USR, CONDA], USR, "of its 2 Pythons /usr/bin/python3, the first that was found", id="the first"),
        pytest.param(
            [USR, made_python("/opt/conda/bin/python3", frameworks=TORCH)],
            made_python("/opt/conda/bin/python3", frameworks=TORCH),
            "of its 2 Pythons /opt/conda/bin/python3, which has torch",
            id="the one with a framework",
        ),
        pytest.param(
            [USR, made_python("/venv/bin/python3", packages=KERNEL)],
            made_python("/venv/bin/python3", packages=KERNEL),
            "of its 2 Pythons /venv/bin/python3, which has ipykernel",
            id="the one with ipykernel",
        ),
        pytest.param(
            [made_python(packages=KERNEL), made_python("/opt/conda/bin/python3", frameworks=("tensorflow",))],
            made_python("/opt/conda/bin/python3", frameworks=("tensorflow",)),
            "of its 2 Pythons /opt/conda/bin/python3, which has tensorflow",
            id="a framework counts for more",
        ),
    ],
)
def test_one_is_taken_and_said_where_there_are_several(found: list[FoundPython], best: FoundPython, why: str) -> None:
    assert choose(found, image="i") == (best, why)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ([], "The image i has no Python: there is none on its PATH, in a conda or virtual environment, or in /usr."),
        ([OLD], "The image i has Python 3.7.17 (/usr/bin/python3); kernelbridge needs 3.8."),
        (
            [OLD, TWO],
            "The image i has Python 3.7.17 (/usr/bin/python3) and 2.7.18 (/usr/bin/python); kernelbridge needs 3.8.",
        ),
    ],
)
def test_an_image_without_a_python_that_will_do_is_told_by_what_it_has(found: list[FoundPython], sentence: str) -> None:
    with pytest.raises(ImageUnusable) as caught:
        choose(found, image="i")
    assert caught.value.sentence == sentence


def test_where_a_python_may_be_is_known_by_the_images_variables() -> None:
    paths = python_probe.possible_paths({"PATH": "/a/bin:/usr/bin:rel", "CONDA_PREFIX": "/c"})
    assert paths[:5] == ["/a/bin/python3", "/a/bin/python", "/usr/bin/python3", "/usr/bin/python", "/c/bin/python3"]
    assert "/opt/conda/bin/python3" in paths
    assert not [path for path in paths if "*" in path or "$" in path or not path.startswith("/")]
    assert len(set(paths)) == len(paths)
