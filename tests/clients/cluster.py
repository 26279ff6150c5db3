"""A config whose hosts are login nodes of the rig's cluster, and their kernels. The cluster: rig/slurm.py."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tests.clients.blocking import Client, Message
from tests.clients.notebook import write_specs
from tests.rig.daemon import RigError, wait_until
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.whole import Rig

# A step is what every cluster has; the other ways: test_slurm_ways.py.
LOGIN_NODE = {"ssh": "lab", "scheduler": "slurm", "runtime": "docker", "node_login": "srun"}
# Above what the rig's cluster gives without a word.
MEMORY = "512m"


def write_cluster(laptop: Laptop, rig: Rig, environments: Mapping[str, Mapping[str, Any]]) -> None:
    """An environment each, on a host of the same name; keys are the environment's, those of `host` the host's."""
    tables: list[str] = []
    for name, keys in environments.items():
        own = {key: text for key, text in keys.items() if key != "host"}
        tables += [f"[hosts.{name}]", *_lines({**LOGIN_NODE, **keys.get("host", {})}), ""]
        more = {"image": rig.image, "memory": MEMORY, "hosts": [name], **own}
        tables += [f"[environments.{name}]", *_lines(more), ""]
    laptop.write_config("\n".join(tables))
    write_specs(laptop)


def _lines(keys: Mapping[str, Any]) -> list[str]:
    # What is written here is the same in Python and TOML, but for true and false.
    return [f"{key} = {str(text).lower() if isinstance(text, bool) else repr(text)}" for key, text in keys.items()]


def shows(client: Client, request: str, words: str, *, seconds: float = 20) -> Message:
    """Wait until a waiting cell shows these words."""

    texts: list[str] = []

    def is_shown(message: Message) -> bool:
        if message["parent_header"].get("msg_id") != request or message["msg_type"] != "stream":
            return False
        texts.append(message["content"]["text"])
        return words in texts[-1]

    try:
        return client.wait_for(is_shown, seconds=seconds)
    except TimeoutError as error:
        raise AssertionError(f"{words!r} is not among {list(dict.fromkeys(texts))}") from error


def seconds_until_clean(rig: Rig, slurm: SlurmRig, *, seconds: float = 30) -> float:
    """Wait until nothing is left of kernels in jobs; how long that took."""
    began = time.monotonic()

    def left() -> list[str]:
        return [*slurm.traces(), *(f"container {one.name} {one.status}" for one in rig.engine.kernels())]

    try:
        wait_until(lambda: not left(), "nothing to be left of the jobs", seconds)
    except RigError as error:
        raise AssertionError(f"left after {seconds} s: {left()}") from error
    return time.monotonic() - began
