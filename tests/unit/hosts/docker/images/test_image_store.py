"""hosts/docker/images/image_store.py: which images are ours, and how they are made and removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kernelbridge.hosts.docker.images.image_store import ImageStore, StoredImage

PLAIN = {"Id": "p", "RepoTags": ["pytorch:2"], "Created": 1, "Size": 1, "Labels": None}
ROWS: list[dict[str, Any]] = [
    PLAIN,
    {
        "Id": "a",
        "RepoTags": ["kernelbridge/derived:1"],
        "Created": 10,
        "Size": 5,
        "Labels": {"kernelbridge.derived": "h", "kernelbridge.base": "p"},
    },
    {
        "Id": "b",
        "RepoTags": None,
        "Created": 20,
        "Size": 6,
        "Labels": {"kernelbridge.snapshot": "m1", "kernelbridge.base": "a"},
    },
    # Of one of ours, by somebody else.
    {"Id": "c", "RepoTags": ["x:1"], "Created": 30, "Size": 7, "Labels": {"kernelbridge.derived": ""}},
    {"Id": "c2", "RepoTags": ["x:2"], "Created": 30, "Size": 7, "Labels": {"kernelbridge.derived": "h"}},
    {"Id": "c3", "RepoTags": ["x:3"], "Created": 30, "Size": 7, "Labels": {"kernelbridge.build": "h"}},
    # Of a Dockerfile that begins with one of ours; and what had the name before.
    {
        "Id": "d",
        "RepoTags": ["kernelbridge/build:1"],
        "Created": 30,
        "Size": 7,
        "Labels": {"kernelbridge.build": "h", "kernelbridge.derived": "h", "kernelbridge.base": "p"},
    },
    {"Id": "e", "RepoTags": ["<none>:<none>"], "Created": 29, "Size": 7, "Labels": {"kernelbridge.build": "unknown"}},
]


class Client:
    """docker-py's, as far as it is used."""

    def __init__(self) -> None:
        self.rows = ROWS
        self.removed: list[str] = []
        self.committed: tuple[Any, ...] = ()

    def images(self, **asked: Any) -> list[dict[str, Any]]:
        return self.rows

    def containers(self, **_: Any) -> list[dict[str, Any]]:
        return [{"ImageID": "a", "Created": 40}, {"ImageID": "a", "Created": 35}, {"ImageID": "z", "Created": 1}]

    def inspect_container(self, name: str) -> dict[str, Any]:
        return {"Image": "sha256:9", "Config": {"Env": ["A=1"], "Labels": {}}}

    def inspect_image(self, name: str) -> dict[str, Any]:
        assert name == "sha256:9"
        return {"Config": {"Cmd": ["bash"], "Env": ["A=1"]}}

    def commit(self, container: str, *, repository: str, tag: str, conf: dict[str, Any]) -> dict[str, str]:
        self.committed = (container, repository, tag, conf["Cmd"], conf["Labels"])
        return {"Id": "sha256:7"}

    def remove_image(self, name: str) -> None:
        self.removed.append(name)


def store(client: Client) -> ImageStore:
    async def call(action: str, work: Callable[[Any], Any], read: Callable[[Any], Any]) -> Any:
        return read(work(client))

    return ImageStore(call)


async def test_images_of_ours_are_told_with_their_last_use() -> None:
    first, second, *builds = await store(Client()).list()
    assert first == StoredImage(
        id="a",
        kind="derived",
        names=("kernelbridge/derived:1",),
        labels={"kernelbridge.derived": "h", "kernelbridge.base": "p"},
        bases=("pytorch:2",),
        size_bytes=5,
        created=10,
        last_used=40,
        is_in_use=True,
    )
    assert (second.kind, second.id, second.names, second.last_used, second.is_in_use) == (
        "snapshot",
        "b",
        (),
        20,
        False,
    )
    assert [(one.kind, one.id, one.names, one.bases) for one in builds] == [
        ("build", "d", ("kernelbridge/build:1",), ()),
        ("build", "e", (), ()),
    ]
    assert second.bases == ("kernelbridge/derived:1", "pytorch:2")


async def test_what_an_image_in_use_was_made_of_is_in_use_too() -> None:
    labels = {"kernelbridge.derived": "h", "kernelbridge.base": "e"}
    client = Client()
    client.rows = [*ROWS, {"Id": "z", "RepoTags": None, "Created": 50, "Size": 7, "Labels": labels}]
    found = {one.id: (one.kind, one.is_in_use) for one in await store(client).list()}
    assert (found["z"], found["e"], found["d"]) == (("derived", True), ("build", True), ("build", False))


async def test_what_is_added_to_a_snapshot_is_no_snapshot() -> None:
    labels = {"kernelbridge.derived": "h", "kernelbridge.snapshot": "m1", "kernelbridge.base": "b"}
    client = Client()
    client.rows = [{"Id": "s", "RepoTags": ["kernelbridge/derived:2"], "Created": 50, "Size": 7, "Labels": labels}]
    assert [one.kind for one in await store(client).list()] == ["derived"]


async def test_a_snapshot_is_a_commit_with_the_images_own_words() -> None:
    client = Client()
    made = await store(client).snapshot("kernelbridge-k1", ("team/model", "2"), {"kernelbridge.snapshot": "m1"})
    assert made == "sha256:7"
    assert client.committed == ("kernelbridge-k1", "team/model", "2", ["bash"], {"kernelbridge.snapshot": "m1"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"Id": 7},
        {"RepoTags": 7},
        {"RepoTags": [7]},
        {"Labels": []},
        {"Labels": {"kernelbridge.derived": 7}},
        {"Created": "yesterday"},
        {"Created": 1e300},
        {"Created": []},
        {"Size": float("nan")},
    ],
    ids=str,
)
async def test_a_row_that_cannot_be_understood_is_left_out_and_all_others_are_told(wrong: dict[str, Any]) -> None:
    client = Client()
    whole = [one.id for one in await store(client).list()]
    client.rows = [*ROWS, {"Id": "f", "RepoTags": ["kernelbridge/derived:9"], "Created": 1, "Size": 1, **wrong}]
    assert [one.id for one in await store(client).list()] == whole
    await store(client).remove("a")
    assert client.removed == ["kernelbridge/derived:1"]


@pytest.mark.parametrize("used", [None, [], [7, {"ImageID": 7}, {"ImageID": "a", "Created": 1e300}]], ids=str)
async def test_a_container_that_cannot_be_understood_uses_nothing(used: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    monkeypatch.setattr(client, "containers", lambda **_: used)
    assert not any(one.is_in_use for one in await store(client).list())


async def test_what_is_no_listing_is_an_error() -> None:
    client = Client()
    client.rows = {"a": 1}  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the images is no list"):
        await store(client).list()


async def test_an_image_goes_with_all_its_names() -> None:
    client = Client()
    await store(client).remove("a")
    await store(client).remove("b")
    assert client.removed == ["kernelbridge/derived:1", "b"]


async def test_images_of_others_are_those_with_a_name_that_we_did_not_make() -> None:
    found = await store(Client()).others()
    assert [image.names for image in found] == [("pytorch:2",), ("x:1",), ("x:2",), ("x:3",)]
