"""config/defaults.py: every environment begins with the defaults, and a mistake is named where it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config import load
from kernelbridge.config.defaults import merged
from kernelbridge.config.schema import Environment
from kernelbridge.errors import ConfigInvalid

FILE = Path("/k.toml")


def environment(text: str, name: str = "a") -> Environment:
    return load.parse(text, FILE).environment(name)


def problems(text: str) -> dict[str, str]:
    with pytest.raises(ConfigInvalid) as caught:
        load.parse(text, FILE)
    return {problem.key: problem.sentence for problem in caught.value.problems}


TEAM = """
[defaults]
image = "torch:2"
mounts = ["/data:/data:ro", "/work:/work"]
memory = "8g"
env = { A = "team", B = "team" }
[environments.a]
mounts = ["/mine:/mine"]
env = { B = "own" }
[environments.b]
image = "other:1"
memory = "1g"
"""


def test_tables_merge_and_lists_are_replaced() -> None:
    own, other = environment(TEAM), environment(TEAM, "b")
    assert (own.image, own.memory, own.env) == ("torch:2", 8 << 30, {"A": "team", "B": "own"})
    assert [mount.source for mount in own.mounts] == ["/mine"]
    assert (other.image, other.memory, other.env) == ("other:1", 1 << 30, {"A": "team", "B": "team"})
    assert [mount.source for mount in other.mounts] == ["/data", "/work"]


def test_an_image_of_its_own_and_what_one_is_built_of_replace_each_other() -> None:
    built = environment('[defaults]\nimage = "x"\n[environments.a]\nbuild = "~/p"')
    assert built.build is not None
    assert built.image.startswith("kernelbridge/build:")
    named = environment('[defaults]\nbuild = "~/p"\n[environments.a]\nimage = "x"')
    assert (named.build, named.image) == (None, "x")


@pytest.mark.parametrize(
    "tables",
    [{}, {"environments": {"a": {}}}, {"defaults": {"gpus": 1}}, {"defaults": 1, "environments": {"a": {"gpus": 1}}}],
)
def test_without_both_nothing_changes(tables: dict[str, Any]) -> None:
    assert merged(tables) == tables


@pytest.mark.parametrize(
    ("text", "key", "sentence"),
    [
        ('[defaults]\nimge = "x"', "defaults.imge", "did you mean `image`?"),
        ("[defaults]\nssh = 'x'", "defaults.ssh", "of a host?"),
        ('[defaults]\nmemory = "x"\n[environments.a]\nimage = "x"', "defaults.memory", 'size like "8g"'),
        ('[defaults]\nenv = { N = 1 }\n[environments.a]\nimage = "x"\nenv = { A = "1" }', "defaults.env.N", "expected"),
        ('[defaults]\nhosts = ["no"]\n[environments.a]\nimage = "x"', "defaults.hosts.0", "there is no host `no`"),
        ('[defaults]\nname = "x"', "defaults.name", "unknown key"),
        ("defaults = 1", "defaults", "must be a table: [defaults]"),
        # What the environment itself says is the environment's.
        ('[defaults]\nmemory = "1g"\n[environments.a]\nimage = "x"\nmemory = "x"', "environments.a.memory", "size"),
        ("[defaults]\ngpus = 1\n[environments.a]", "environments.a.image", "is missing"),
    ],
)
def test_a_mistake_is_named_once_where_it_was_written(text: str, key: str, sentence: str) -> None:
    found = problems(text)
    assert list(found) == [key]
    assert sentence in found[key]
