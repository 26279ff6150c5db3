"""hosts/docker/images/dockerignore.py: what Docker's documentation and its own tests say of patterns."""

from __future__ import annotations

import pytest

from kernelbridge.hosts.docker.images import dockerignore


@pytest.mark.parametrize(
    ("lines", "path", "is_excluded"),
    [
        ("*/temp*", "a/temp.txt", True),
        ("*/temp*", "a/temp/b/c", True),
        ("*/temp*", "a/b/temp", False),
        ("*/*/temp*", "a/b/temp", True),
        ("temp?", "tempa", True),
        ("temp?", "temp", False),
        ("**/*.go", "x.go", True),
        ("**/*.go", "a/b/x.go", True),
        ("**", "a/b", True),
        ("a/**", "a/b/c", True),
        ("a/**", "ab/c", False),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("/foo/bar/", "foo/bar/baz", True),
        ("./foo", "foo", True),
        ("foo", "a/foo", False),
        ("*.md\n!README*.md\nREADME-secret.md", "README-x.md", False),
        ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", True),
        ("*.md\nREADME-secret.md\n!README*.md", "README-secret.md", False),
        ("*\n!src", "src/a/b", False),
        ("*\n!src\n**/*.log", "src/a/b.log", True),
        ("# a\n\n  b  ", "b", True),
        ("# a", "# a", False),
        (r"\#a", "#a", True),
        ("a[bc]d", "abd", True),
        ("a[^bc]d", "abd", False),
        ("a.b", "axb", False),
        ("a+(b)", "a+(b)", True),
        (r"a\*", "a*", True),
        (r"a\*", "ab", False),
        ("\ufeffa", "a", True),
        ("*", "Dockerfile", False),
    ],
)
def test_a_path_is_left_out_as_docker_leaves_it_out(lines: str, path: str, is_excluded: bool) -> None:
    assert dockerignore.parse(lines, always_sent=["Dockerfile"]).excludes(path) is is_excluded


def test_a_folder_is_passed_over_where_nothing_in_it_can_be_sent() -> None:
    assert dockerignore.parse("data").excludes_all_below("data")
    assert not dockerignore.parse("data\n!data/a").excludes_all_below("data")
    assert not dockerignore.parse("data", always_sent=["data/Dockerfile"]).excludes_all_below("data")
    assert not dockerignore.parse("data").excludes_all_below("src")


@pytest.mark.parametrize("line", ["!", "! ", "a[b-a]"])
def test_a_line_that_means_nothing_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"names nothing|is no pattern"):
        dockerignore.parse(line)


@pytest.mark.parametrize("line", ["[[a]x", "[a--b]", "[--9]", "[a&&b]", "[a||b]", "[~~]"])
def test_a_class_that_python_would_warn_of_is_none_or_one_like_others(line: str) -> None:
    try:
        dockerignore.parse(line).excludes("ax")
    except ValueError as exc:
        assert "is no pattern" in str(exc)


def test_many_stars_in_a_row_take_no_longer_than_two() -> None:
    rules = dockerignore.parse("**/" * 40 + "x")
    assert rules.excludes("a/" * 40 + "x")
    assert not rules.excludes("a/" * 40 + "y")
