"""hosts/docker/images/derived_image.py: what is added to which Python, and what the image that is made so is called."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernelbridge.errors import ImageUnusable
from kernelbridge.hosts.docker.images import derived_image
from kernelbridge.relay.ipykernel_launcher import FIRST_NAME, PACKAGES_FOLDER
from tests.made_pythons import made_python

ALL = {"ipykernel": "6.29.5", "debugpy": "1.8.21", "pyzmq": "27.1.0"}


@pytest.mark.parametrize(
    ("packages", "lacks"),
    [
        (ALL, []),
        ({}, ["ipykernel", "debugpy", "pyzmq"]),
        ({**ALL, "ipykernel": "5.5.6"}, ["ipykernel"]),
        ({**ALL, "ipykernel": "6.0"}, []),
        ({**ALL, "ipykernel": "6.0.0rc1"}, []),
        ({**ALL, "ipykernel": "7.1"}, []),
        ({"ipykernel": "6.29.5", "pyzmq": "27.1.0"}, ["debugpy"]),
        ({**ALL, "debugpy": "0+unknown"}, ["debugpy"]),
    ],
)
def test_what_a_python_lacks_is_what_it_has_not_or_only_older_than_a_kernel_needs(
    packages: dict[str, str], lacks: list[str]
) -> None:
    assert derived_image.lacking(made_python(packages=packages)) == lacks


def test_an_image_is_named_by_all_that_it_is_made_of() -> None:
    python = made_python()
    recipe = derived_image.kernel_recipe("sha256:1", python)
    assert recipe.tag == f"kernelbridge/derived:{recipe.hash}"
    assert recipe == derived_image.kernel_recipe("sha256:1", python)
    others = [
        derived_image.kernel_recipe("sha256:2", python),
        derived_image.kernel_recipe("sha256:1", replace(python, path="/opt/venv/bin/python")),
        replace(recipe, parts={"floors": {}}),
    ]
    assert len({recipe.hash, *(one.hash for one in others)}) == 4


def test_its_labels_say_of_what_it_was_made_and_when() -> None:
    recipe = derived_image.kernel_recipe("sha256:1", made_python())
    assert recipe.labels("2026-11-27T12:00:00+00:00") == {
        "kernelbridge.derived": recipe.hash,
        "kernelbridge.base": "sha256:1",
        "kernelbridge.added": "ipykernel,debugpy,pyzmq",
        "kernelbridge.made": "2026-11-27T12:00:00+00:00",
    }


def test_what_is_added_lies_where_that_kind_of_python_alone_looks() -> None:
    python = made_python()
    assert derived_image.first_file(python) == f"{PACKAGES_FOLDER}/cpython-311/{FIRST_NAME}"
    assert derived_image.packages_folder(python) == "/opt/kernelbridge/packages/cpython-311"
    assert derived_image.kernel_requirements() == ["ipykernel>=6.0", "debugpy>=1.0", "pyzmq>=17"]
    kept = derived_image.cache_name(python)
    assert kept == derived_image.cache_name(replace(python, path="/opt/venv/bin/python"))
    assert kept != derived_image.cache_name(replace(python, libc="musl 1.2.4"))


def test_a_python_that_says_nothing_of_its_wheels_is_told(image: str = "i") -> None:
    derived_image.check_architecture(made_python(), image)
    with pytest.raises(ImageUnusable, match="does not say which wheels it takes"):
        derived_image.check_architecture(replace(made_python(), soabi=""), image)


def test_packages_are_named_as_in_a_sentence() -> None:
    assert [derived_image.in_words(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]
