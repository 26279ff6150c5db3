"""Tell what a container and its kernel process were made of, so that a changed config is seen. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from kernelbridge.config.schema import Environment, Host

# What each start of the kernel process reads anew, in whatever container.
_PROCESS_KEYS = frozenset({"env", "pass_env", "secrets", "workdir"})
# What each start reads anew on this machine alone.
_HERE_KEYS = frozenset({"forwards"})
# What no container is made of: names, where and how long to look for a place, what is read on this machine alone.
_OUTSIDE_KEYS = _HERE_KEYS | {
    *("name", "display_name", "hosts", "pull", "wait", "start_seconds", "cull_idle_timeout", "debug_on_host_network"),
}
_HOST_KEYS = frozenset({"ssh", "socket", "gpu_access", "scheduler", "runtime", "partition", "account", "sbatch_args"})


def recipe(environment: Environment, host: Host) -> dict[str, str]:
    """Return a short hash of each key of the config that is not at its default, by key."""
    # The name of a built image is made of `build` itself.
    outside = {*_OUTSIDE_KEYS, *(("image",) if environment.build is not None else ())}
    of_environment = environment.model_dump(mode="json", exclude_defaults=True, warnings=False, exclude=outside)
    of_host = host.model_dump(mode="json", exclude_defaults=True, warnings=False, include=set(_HOST_KEYS))
    made_of = {**of_environment, **{f"hosts.{host.name}.{key}": value for key, value in of_host.items()}}
    return {key: _hash(value) for key, value in made_of.items()}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def changed_keys(before: Mapping[str, str], now: Mapping[str, str], *, with_process: bool) -> list[str]:
    """Return the keys that differ, in order; those of the kernel process only where it is not started anew."""
    differ = {key for key in {*before, *now} if before.get(key) != now.get(key)}
    return sorted(differ if with_process else differ - _PROCESS_KEYS)


def with_process_keys(environment: Environment, now: Environment) -> Environment:
    """Return the environment with what each start of the kernel process reads anew as it is by now."""
    return environment.model_copy(update={key: getattr(now, key) for key in _PROCESS_KEYS | _HERE_KEYS})


def words(keys: Iterable[str]) -> str:
    """Return the keys as a part of a sentence: "`gpus`, `image` and `mounts`"."""
    *first, last = [f"`{key}`" for key in keys]
    return f"{', '.join(first)} and {last}" if first else last
