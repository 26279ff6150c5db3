"""The key `workspace`: a path or a table, its defaults, and a sentence for what it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.config import load
from kernelbridge.config.schema import Workspace
from kernelbridge.errors import ConfigInvalid


def parsed(workspace: str, more: str = "") -> Workspace | None:
    text = f'[environments.test]\nimage = "x"\n{more}\nworkspace = {workspace}\n'
    return load.parse(text, Path("k.toml")).environments["test"].workspace


def complaint(workspace: str, more: str = "") -> str:
    with pytest.raises(ConfigInvalid) as caught:
        parsed(workspace, more)
    return "; ".join(map(str, caught.value.problems))


def test_a_path_alone_is_the_folder_here() -> None:
    found = parsed('"."')
    assert found is not None
    assert (found.local, found.host, found.container, found.sync) == (".", None, "/workspace", "push")
    assert (found.ignore, found.pull, found.big_files) == ((), (), 1 << 30)


def test_a_table_has_all_of_it() -> None:
    found = parsed(
        '{ local = "~/proj", container = "/src/", sync = "both", pull = ["runs/**"], ignore = ["*.h5"], '
        'big_files = "5g" }'
    )
    assert found is not None
    assert (found.local, found.container, found.sync) == ("~/proj", "/src", "both")
    assert (found.pull, found.ignore, found.big_files) == (("runs/**",), ("*.h5",), 5 << 30)


def test_a_folder_that_the_host_has_by_itself_is_only_mapped() -> None:
    found = parsed('{ host = "~/proj", local = "~/proj" }')
    assert found is not None
    assert (found.host, found.local) == ("~/proj", "~/proj")


@pytest.mark.parametrize(
    ("workspace", "more", "sentence"),
    [
        ('"~"', "", "environments.test.workspace.local: may not be a whole home folder"),
        ('"~/"', "", "may not be a whole home folder"),
        ('"/"', "", "may not be a whole disk"),
        ('"C:\\\\"', "", "may not be a whole disk"),
        ('" "', "", "must be a folder of this machine"),
        ('{ container = "work" }', "", 'must be a path that begins with /, or "same"'),
        ('{ container = "/proc" }', "", "nothing may be mounted at /proc"),
        ('{ sync = "pull" }', "", "expected: path, or a table"),
        ('{ pull = ["runs/**"] }', "", 'add `sync = "both"`'),
        ('{ sync = "both", pull = ["../x"] }', "", "must name files inside the folder"),
        ('{ host = "~/proj", sync = "both" }', "", "so nothing is copied, and `sync` has no meaning"),
        ('{ locl = "." }', "", "unknown key; did you mean `local`?"),
        ('"."', 'mounts = ["~/data:/workspace"]', "/workspace is taken by `mounts` or `tmpfs`"),
        ('"."', 'tmpfs = ["/workspace:1g"]', "/workspace is taken by `mounts` or `tmpfs`"),
        ('{ big_files = "much" }', "", 'must be a size like "8g"'),
    ],
)
def test_what_it_cannot_be_is_said(workspace: str, more: str, sentence: str) -> None:
    assert sentence in complaint(workspace, more)
