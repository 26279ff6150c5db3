"""fleet/images.py: whose image is needed by what, and what is removed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.errors import EngineFailed, HostRefused, KernelBridgeError
from kernelbridge.fleet import images
from kernelbridge.hosts.docker.images.image_store import StoredImage
from tests.fakes import row

LAB, TWO, HPC = Host(name="lab", ssh="lab"), Host(name="two", ssh="two"), Host(name="hpc", ssh="h", scheduler="slurm")
CONFIG = Config(
    path=Path("/k.toml"),
    hosts={"lab": LAB, "two": TWO, "hpc": HPC},
    environments={
        "torch": Environment(name="torch", image="pytorch:2", hosts=("lab",)),
        "saved": Environment(name="saved", image="team/saved", hosts=("lab", "two")),
    },
)
MACHINE = "m1"


def stored(name: str, **facts: Any) -> StoredImage:
    made_up: dict[str, Any] = {
        "kind": "derived",
        "names": (name,),
        "labels": {},
        "bases": (),
        "size_bytes": 1,
        "created": 10.0,
        "last_used": 10.0,
        "is_in_use": False,
    }
    return StoredImage(id=f"sha256:{name}", **{**made_up, **facts})


def derived(name: str, base: str, **facts: Any) -> StoredImage:
    return stored(name, labels={"kernelbridge.derived": "h"}, bases=(base,), **facts)


def snapshot(name: str, by: str = MACHINE, **facts: Any) -> StoredImage:
    return stored(name, kind="snapshot", labels={"kernelbridge.snapshot": by}, bases=("pytorch:2",), **facts)


def build(name: str, **facts: Any) -> StoredImage:
    return stored(name, kind="build", labels={"kernelbridge.build": "h"}, **facts)


class MadeImages:
    """The images of one engine."""

    def __init__(self, *rows: StoredImage) -> None:
        self.rows = rows
        self.removed: list[str] = []
        self.made: list[tuple[str, tuple[str, str], dict[str, str]]] = []

    async def list(self) -> list[StoredImage]:
        return list(self.rows)

    async def remove(self, image_id: str) -> None:
        if "stuck" in image_id:
            raise EngineFailed(host="lab", action="remove", reason="a container is made of it")
        self.removed.append(image_id)

    async def snapshot(self, container: str, name: tuple[str, str], labels: dict[str, str]) -> str:
        self.made.append((container, name, labels))
        return "sha256:1"


def engine_of(lab: MadeImages, *, two: MadeImages | None = None, there: Any = None) -> Any:
    async def image(name: str) -> Any:
        return there

    async def engine(host: Host) -> Any:
        if host.name == "two" and two is None:
            raise HostRefused(host="two", address="two:22")
        return SimpleNamespace(images=lab if host.name == "lab" else two, image=image)

    return engine


async def test_an_image_is_needed_by_those_that_name_it_or_what_it_was_made_of() -> None:
    lab = MadeImages(derived("d1", "pytorch:2"), derived("d2", "other:1"), snapshot("team/saved:latest"))
    listing = await images.look(CONFIG, engine_of(lab, two=MadeImages(derived("d1", "pytorch:2"))), MACHINE)
    needed = {(one.host, one.name): one.environments for one in listing.images}
    assert needed == {
        ("lab", "d1"): ("torch",),
        ("lab", "d2"): (),
        ("lab", "team/saved:latest"): ("saved",),
        # There that environment does not run.
        ("two", "d1"): (),
    }
    assert [one.kind for one in listing.images if one.host == "lab"] == ["derived", "derived", "snapshot"]
    assert listing.problems == ()


async def test_a_snapshot_is_not_needed_by_what_it_was_made_of() -> None:
    listing = await images.look(CONFIG, engine_of(MadeImages(snapshot("mine:1")), two=MadeImages()), MACHINE)
    assert [one.environments for one in listing.images] == [()]


@pytest.mark.parametrize("discard", [False, True])
async def test_what_nothing_needs_is_removed_and_a_snapshot_only_where_told_so(*, discard: bool) -> None:
    lab = MadeImages(
        derived("needed", "pytorch:2"),
        derived("used", "other:1", is_in_use=True),
        derived("old", "other:1"),
        derived("stuck", "other:1"),
        snapshot("mine:1"),
        snapshot("theirs:1", by="m2"),
    )
    told = await images.clean(CONFIG, engine_of(lab), MACHINE, dry_run=True, discard=discard)
    assert lab.removed == []
    cleaned = await images.clean(CONFIG, engine_of(lab), MACHINE, dry_run=False, discard=discard)
    assert lab.removed == ["sha256:old", *(["sha256:mine:1"] if discard else [])]
    assert {one.name for one in told.images} == {one.name for one in cleaned.images} | {"stuck"}
    assert [one.name for one in cleaned.kept] == ([] if discard else ["mine:1"])
    assert [type(problem) for problem in cleaned.problems] == [HostRefused, EngineFailed]


async def test_a_build_is_needed_by_the_environment_that_it_was_built_for_and_goes_after_what_is_made_of_it() -> None:
    mine = Environment(name="mine", build="~/project")  # type: ignore[arg-type]
    config = Config(path=Path("/k.toml"), hosts={"lab": LAB}, environments={"mine": mine})
    earlier = build("earlier", names=(), created=9.0, last_used=9.0)
    lab = MadeImages(build(mine.image), earlier, build("used", is_in_use=True), derived("of-it", "sha256:earlier"))
    listing = await images.look(config, engine_of(lab), MACHINE)
    assert {(one.name, one.kind): one.environments for one in listing.images} == {
        (mine.image, "build"): ("mine",),
        ("earlier", "build"): (),
        ("used", "build"): (),
        ("of-it", "derived"): (),
    }
    cleaned = await images.clean(config, engine_of(lab), MACHINE, dry_run=False, discard=False)
    assert lab.removed == ["sha256:of-it", "sha256:earlier"]
    assert cleaned.problems == ()


async def test_a_snapshot_has_our_mark_and_takes_nobodys_name() -> None:
    lab = MadeImages()
    kernel = row("k1", host="lab", image="pytorch:2")
    await images.snapshot(CONFIG, engine_of(lab), MACHINE, kernel=kernel, name="mine:1")
    labels = {"kernelbridge.snapshot": MACHINE, "kernelbridge.base": "pytorch:2"}
    assert lab.made == [("kernelbridge-k1", ("mine", "1"), labels)]
    again = engine_of(lab, there=SimpleNamespace(labels=labels))
    await images.snapshot(CONFIG, again, MACHINE, kernel=kernel, name="mine:1")
    taken = engine_of(lab, there=SimpleNamespace(labels={}))
    with pytest.raises(KernelBridgeError, match="lab has an image pytorch that is no snapshot of yours"):
        await images.snapshot(CONFIG, taken, MACHINE, kernel=kernel, name="pytorch")
    with pytest.raises(KernelBridgeError, match="is not a name for an image"):
        await images.snapshot(CONFIG, engine_of(lab), MACHINE, kernel=kernel, name="A b")
    with pytest.raises(KernelBridgeError, match="runs in a job of hpc"):
        job = row("k1", host="hpc", image="pytorch:2")
        await images.snapshot(CONFIG, engine_of(lab), MACHINE, kernel=job, name="mine:1")
    assert len(lab.made) == 2
