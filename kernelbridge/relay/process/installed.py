"""Find which versions of a kernel's packages this Python has, without importing any: that would take a second."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import Dict, List, Mapping, Optional, Sequence

from ...protocol.versions import version_number
from ..ipykernel_launcher import FirstFinder

# The folder or file that says what is installed: ipykernel-6.29.5.dist-info, pyzmq-24.0.1-py3.11.egg-info.
_INSTALLED = re.compile(r"(?P<name>.+?)-(?P<version>[0-9][^-]*?)(-py[0-9.]+.*)?\.(dist|egg)-info$")
# By what pip calls it, where that is another word.
_MODULES = {"pyzmq": "zmq"}


def lacking(floors: Mapping[str, str], path: Sequence[str], first: Optional[FirstFinder] = None) -> List[str]:
    """Return what this Python lacks of packages by name, or has only older than its floor; `first` as it imports."""
    found = versions(path)
    if first is not None and first.names:
        found.update((name, text) for name, text in versions([first.folder]).items() if _module(name) in first.names)
    return [
        name
        for name, floor in floors.items()
        if find_spec(_module(name)) is None or (name in found and version_number(found[name]) < version_number(floor))
    ]


def versions(path: Sequence[str]) -> Dict[str, str]:
    """Return the version of each package that is installed in these folders, by name; the first of each counts."""
    found: Dict[str, str] = {}
    for folder in path:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for match in filter(None, map(_INSTALLED.match, names)):
            found.setdefault(match.group("name").lower().replace("_", "-"), match.group("version"))
    return found


def _module(name: str) -> str:
    return _MODULES.get(name, name)
