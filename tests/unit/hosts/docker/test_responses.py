"""hosts/docker/responses.py: the engine's answers become facts of ours."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from kernelbridge.errors import EngineTooOld
from kernelbridge.hosts import backend
from kernelbridge.hosts.docker import responses
from kernelbridge.hosts.docker.responses import EngineFacts


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"Status": "created", "ExitCode": 127, "Error": "no"}, backend.Created(error="no")),
        ({"Status": "running", "StartedAt": "T"}, backend.Running()),
        ({"Status": "paused", "Paused": True, "StartedAt": "T"}, backend.Running(is_paused=True)),
        (
            {"Status": "exited", "ExitCode": 137, "OOMKilled": True, "Error": "", "FinishedAt": "T"},
            backend.Exited(code=137, oom_killed=True, error="", finished_at="T"),
        ),
        ({"Status": "dead"}, backend.Exited(code=0, oom_killed=False, error="", finished_at="")),
    ],
)
def test_a_container_is_created_running_or_exited(state: dict[str, Any], expected: backend.ContainerState) -> None:
    assert responses.parse_state({"State": state}) == expected


def test_an_image_may_have_no_config_at_all() -> None:
    bare = responses.parse_image({"Id": "sha256:1", "Config": None})
    assert (bare.env, bare.user, bare.labels, bare.size_bytes) == ({}, "", {}, 0)
    full = responses.parse_image({"Id": "sha256:2", "Size": 7, "Config": {"Env": ["A=b=c", "EMPTY="]}})
    assert (full.env, full.size_bytes) == ({"A": "b=c", "EMPTY": ""}, 7)


def test_a_listed_container_may_have_no_labels() -> None:
    [row] = responses.parse_containers(
        [{"Id": "1", "Names": ["/kb-1"], "Labels": None, "State": "exited", "Created": 5}]
    )
    assert (row.name, row.labels, row.state, row.created) == ("kb-1", {}, "exited", 5.0)


def test_podman_is_known_by_its_components() -> None:
    assert responses.is_podman({"Components": [{"Name": "Podman Engine"}]})
    assert not responses.is_podman({"Components": [{"Name": "Engine"}]})
    assert not responses.is_podman({})


def test_api_versions_compare_as_numbers() -> None:
    assert responses.api_number("1.9") < responses.api_number("1.40") < responses.api_number("1.52")


def test_a_pull_adds_up_its_layers() -> None:
    tally = responses.PullTally(image="i")
    lines: list[dict[str, Any]] = [
        {"status": "Pulling from library/i", "id": "latest"},
        {"status": "Pulling fs layer", "id": "a", "progressDetail": {}},
        {"status": "Already exists", "id": "b"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 30, "total": 100}},
    ]
    for line in lines:
        tally.add(line)
    now = tally.progress
    assert (now.done_layers, now.total_layers, now.done_bytes, now.total_bytes) == (1, 2, 30, 100)
    tally.add({"status": "Extracting", "id": "a", "progressDetail": {"current": 5, "total": 100}})
    tally.add({"status": "Pull complete", "id": "a"})
    now = tally.progress
    assert (now.done_layers, now.done_bytes, now.total_bytes) == (2, 100, 100)
    tally.add({"status": "Status: Downloaded newer image"})
    assert tally.progress.total_layers == 2


def test_a_pull_has_no_end_in_sight_while_sizes_of_layers_are_not_known() -> None:
    tally = responses.PullTally(image="i")
    for layer in ("a", "b"):
        tally.add({"status": "Pulling fs layer", "id": layer, "progressDetail": {}})
    tally.add({"status": "Downloading", "id": "a", "progressDetail": {"current": 30, "total": 100}})
    assert tally.progress.grows
    tally.add({"status": "Downloading", "id": "b", "progressDetail": {"current": 1, "total": 10}})
    assert not tally.progress.grows
    tally.add({"status": "Waiting", "id": "c", "progressDetail": {}})
    assert tally.progress.grows
    # So small that nothing else is told of it before it is unpacked, behind the large ones.
    tally.add({"status": "Download complete", "id": "c", "progressDetail": {}})
    assert not tally.progress.grows


def test_a_pull_counts_what_is_unpacked_where_the_engine_tells_it_in_bytes() -> None:
    tally = responses.PullTally(image="i")
    for layer in ("a", "b"):
        tally.add({"status": "Downloading", "id": layer, "progressDetail": {"current": 100, "total": 100}})
        tally.add({"status": "Download complete", "id": layer, "progressDetail": {}})
    before = tally.progress
    assert before.unpacked_bytes is None
    # As containerd's store tells it: seconds.
    tally.add({"status": "Extracting", "id": "a", "progressDetail": {"current": 3, "units": "s"}})
    assert (tally.progress.total_bytes, tally.progress.unpacked_bytes) == (200, None)
    tally.add({"status": "Extracting", "id": "a", "progressDetail": {"current": 40, "total": 100}})
    assert tally.progress.unpacked_bytes == 40
    tally.add({"status": "Pull complete", "id": "a", "progressDetail": {}})
    after = tally.progress
    assert after.unpacked_bytes == 100
    assert after.done_bytes == 200


# -- what no engine says

WRONG: list[Any] = [True, 7, -1, 1.5, 1e300, float("nan"), float("inf"), 10**400, "x", [], [1], [[]], {"a": 1}]
CONTAINER = {"Id": "1", "Names": ["/a"], "Image": "i", "Labels": {"a": "b"}, "State": "running", "Created": 5}
VOLUME = {"Name": "v", "Labels": {"a": "b"}, "CreatedAt": "2026-01-02T03:04:05Z"}
STATE = {"Status": "exited", "ExitCode": 1, "OOMKilled": False, "Error": "", "FinishedAt": "T"}
CONFIG = {"Env": ["A=b"], "User": "u", "Labels": {"a": "b"}, "Image": "i"}
INFO = {
    "SystemTime": "2026-01-02T03:04:05.123456789Z",
    "Runtimes": {"nvidia": {}},
    "SecurityOptions": ["name=rootless"],
    "CDISpecDirs": ["/etc/cdi"],
    "DiscoveredDevices": [{"ID": "x"}],
}
VERSION = {"ApiVersion": "1.43", "Version": "24.0.7", "Components": [{"Name": "Engine"}]}
ANSWERS: list[tuple[Any, Any, Any]] = [
    (responses.parse_image, {"Id": "1", "Size": 7, "Config": CONFIG}, ("Config",)),
    (responses.parse_state, {"State": STATE}, ("State",)),
    (responses.parse_image_name, {"Config": CONFIG}, ("Config",)),
    (responses.parse_info, INFO, ()),
    (responses.parse_version, VERSION, ()),
    (responses.read_id, {"Id": "1"}, ()),
    (responses.read_warnings, {"Id": "1", "Warnings": ["w"]}, ()),
    (responses.parse_volumes, {"Volumes": [VOLUME]}, ()),
    (responses.parse_containers, [CONTAINER], ()),
]


@pytest.mark.parametrize(("parse", "answer", "inner"), ANSWERS, ids=[parse.__name__ for parse, _, _ in ANSWERS])
def test_a_value_of_any_kind_in_any_place_is_understood_or_a_value_error(parse: Any, answer: Any, inner: Any) -> None:
    assert parse(answer) is not None
    others: list[Any] = [*WRONG, None]
    for wrong in [*WRONG, None]:
        if isinstance(answer, dict):
            others += [{**answer, key: wrong} for key in answer]
            others += [{**answer, key: {**answer[key], name: wrong}} for key in inner for name in answer[key]]
    for other in others:
        try:
            parse(other)
        except ValueError:
            continue


@pytest.mark.parametrize("wrong", [*WRONG, None])
def test_a_row_that_cannot_be_understood_costs_itself_alone(wrong: Any) -> None:
    for key in CONTAINER:
        rows = responses.parse_containers([CONTAINER, {**CONTAINER, key: wrong}, wrong, {**CONTAINER, "Id": "2"}])
        assert {"1", "2"} <= {row.id for row in rows}
        assert all(isinstance(text, str) for row in rows for text in row.labels.values())
        assert all(datetime.fromtimestamp(row.created, UTC) for row in rows)
    for key in VOLUME:
        volumes = responses.parse_volumes({"Volumes": [VOLUME, {**VOLUME, key: wrong}, wrong, {**VOLUME, "Name": "w"}]})
        assert {"v", "w"} <= {volume.name for volume in volumes}
        assert all(volume.created.tzinfo for volume in volumes)


@pytest.mark.parametrize("version", ["", "1", "1.43/../../x", "1.43\n", "x.y", "1²1.4", "9" * 5000 + ".1", "1.-2"])
def test_an_api_version_goes_into_paths_and_is_nothing_but_a_version(version: str) -> None:
    with pytest.raises(ValueError, match="ApiVersion"):
        responses.parse_version({"ApiVersion": version})


@pytest.mark.parametrize("wrong", WRONG)
def test_a_line_of_a_pull_that_cannot_be_understood_is_a_value_error(wrong: Any) -> None:
    line = {"status": "Downloading", "id": "a", "progressDetail": {"current": 30, "total": 100}}
    tally = responses.PullTally(image="i")
    for other in (wrong, *({**line, key: wrong} for key in line), {**line, "progressDetail": {"current": wrong}}):
        try:
            tally.add(other)
        except ValueError:
            continue


def test_a_pull_of_endless_layers_is_counted_up_to_a_bound() -> None:
    tally = responses.PullTally(image="i")
    for number in range(20_000):
        tally.add({"status": "Waiting", "id": str(number)})
    assert tally.progress.total_layers == 1000


# -- what the engine is


def facts_of(answer: Mapping[str, Any]) -> EngineFacts:
    read = responses.parse_version(answer)
    return responses.engine_facts(read, host="lab", socket="/s", transport="socket")


def test_an_engine_says_its_version_and_whether_it_is_podman() -> None:
    docker = facts_of({"Version": "29.0.0", "ApiVersion": "1.52", "MinAPIVersion": "1.44", "Components": None})
    assert (str(docker), docker.api_version, docker.is_podman) == ("Docker 29.0.0 (API 1.52)", "1.52", False)
    podman = facts_of({"Version": "5.6.0", "ApiVersion": "1.41", "Components": [{"Name": "Podman Engine"}]})
    assert (str(podman), podman.is_podman) == ("Podman 5.6.0 (API 1.41)", True)


@pytest.mark.parametrize("api", ["1.39", "1.9", "0.99"])
def test_an_api_without_gpus_is_too_old(api: str) -> None:
    with pytest.raises(EngineTooOld):
        facts_of({"ApiVersion": api})


@pytest.mark.parametrize(
    ("status", "message", "is_one"),
    [
        (
            400,
            "client version 1.41 is too old. Minimum supported API version is 1.44, please upgrade your client",
            True,
        ),
        (400, "client version 1.52 is too new. Maximum supported API version is 1.41", True),
        (400, "given version is not supported", True),
        (500, "client version 1.41 is too old", False),
        (400, "invalid mount config", False),
        (404, "No such image: version:1", False),
        (409, "the version of this volume is too old", False),
    ],
)
def test_a_refusal_for_the_version_is_told_from_others(status: int, message: str, is_one: bool) -> None:
    assert responses.is_version_refusal(status, message) is is_one


def test_what_an_engine_warns_of_is_read() -> None:
    assert responses.read_warnings({"Id": "1", "Warnings": ["no swap limit"]}) == ("no swap limit",)
    assert responses.read_warnings({"Id": "1", "Warnings": None}) == responses.read_warnings({"Id": "1"}) == ()


def test_an_image_names_its_processor_and_entrypoint() -> None:
    image = responses.parse_image(
        {"Id": "1", "Architecture": "arm", "Variant": "v7", "Config": {"Entrypoint": ["/entry.sh", "-x"]}}
    )
    assert (image.architecture, image.entrypoint) == ("arm/v7", ("/entry.sh", "-x"))
    assert responses.parse_image({"Id": "1"}).entrypoint == ()
