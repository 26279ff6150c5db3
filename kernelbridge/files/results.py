"""Decide which files that a command has made in the copy of a commit come into the project, and under which name. Pure.

Nothing of the project is replaced but what came so itself, and has not been changed since; what the commit has is no
result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from kernelbridge.files.listing import Entry, Kind, Listing
from kernelbridge.files.plan import Action, Deed, Known, marked_name
from kernelbridge.files.project import Checkout


@dataclass(frozen=True, kw_only=True)
class ResultTerms:
    """What decisions depend on beside the host's listing."""

    host: str
    checkout: Checkout
    # Whether a path is one of those that come back.
    pulls: Callable[[str], bool]
    # What the project has at a path.
    here: Callable[[str], Entry | None]
    # Whether two files of one size are the same, of those that were compared.
    same: Mapping[str, bool] = field(default_factory=dict)


def results(host: Listing, known: Mapping[str, Known], terms: ResultTerms) -> list[Action]:
    """Return what brings new results into the project; `known` is what came before, under whichever name."""
    return [action for path in sorted(host.entries) for action in _result(path, host.entries[path], known, terms)]


def _result(path: str, there: Entry, known: Mapping[str, Known], terms: ResultTerms) -> Iterator[Action]:
    if there.kind is Kind.FOLDER or path in terms.checkout.paths or not terms.pulls(path):
        return
    before = known.get(path)
    if before is not None and before.host == there:
        return
    here = terms.here(path)
    if here is None or (before is not None and before.local == here):
        yield Action(deed=Deed.COPY_HERE, path=path, local=here, host=there)
    elif here.kind is there.kind is Kind.FILE and here.size_bytes == there.size_bytes and path not in terms.same:
        yield Action(deed=Deed.COMPARE, path=path, local=here, host=there)
    elif terms.same.get(path):
        yield Action(deed=Deed.REMEMBER, path=path, local=here, host=there)
    else:
        yield from _beside(path, there, before, terms)


def _beside(path: str, there: Entry, before: Known | None, terms: ResultTerms) -> Iterator[Action]:
    """Bring what the project has another file for: beside that, under a name that says where it is from."""
    name = result_name(path, host=terms.host, commit=terms.checkout.commit)
    here = terms.here(name)
    if here is None or (before is not None and before.local == here):
        yield Action(deed=Deed.COPY_HERE, path=path, local=here, host=there, beside=name)
        return
    words = f"{path} stays on {terms.host}: there are other files {path} and {name} here"
    yield Action(deed=Deed.TELL, path=path, words=words)
    # So that it is told once: nothing here is taken for what came.
    yield Action(deed=Deed.REMEMBER, path=path, local=there, host=there)


def result_name(path: str, *, host: str, commit: str) -> str:
    """Return the name of a result where the project has another file: log.of-1a2b3c4d5e6f-on-lab.csv."""
    return marked_name(path, f".of-{commit[:12]}-on-{host}")
