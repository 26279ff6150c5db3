"""hosts/docker/images/snapshot.py: an image of a kernel says what its own image said, and nothing of ours."""

from __future__ import annotations

from typing import Any

import pytest

from kernelbridge.hosts.docker.images.snapshot import commit_config, config_of, split_name

OURS = {"kernelbridge.kernel": "k1", "kernelbridge.owner": "m1", "team": "vision"}
CONTAINER: dict[str, Any] = {
    "Env": ["PATH=/bin", "A=changed", "NVIDIA_VISIBLE_DEVICES=GPU-1", "HOME=/tmp", "NVIDIA_DRIVER_CAPABILITIES=all"],
    "Entrypoint": ["python3"],
    "Cmd": ["-c", "boot"],
    "User": "1000:1000",
    "WorkingDir": "/work",
    "Labels": OURS,
    "Healthcheck": {"Test": ["NONE"]},
}


def test_what_the_image_itself_said_is_said_again() -> None:
    base = {
        "Env": ["PATH=/bin", "A=1"],
        "Entrypoint": ["/entry.sh"],
        "Cmd": ["serve"],
        "User": "jovyan",
        "WorkingDir": "/home/jovyan",
        "Healthcheck": {"Test": ["CMD", "true"]},
    }
    assert commit_config(CONTAINER, base, {"kernelbridge.snapshot": "m1"}) == {
        "Env": ["PATH=/bin", "A=1", "NVIDIA_VISIBLE_DEVICES=void", "HOME=", "NVIDIA_DRIVER_CAPABILITIES="],
        "Entrypoint": ["/entry.sh"],
        "Cmd": ["serve"],
        "User": "jovyan",
        "WorkingDir": "/home/jovyan",
        "Healthcheck": {"Test": ["CMD", "true"]},
        "Labels": {"kernelbridge.kernel": "", "kernelbridge.owner": "", "kernelbridge.snapshot": "m1"},
    }


def test_where_it_said_nothing_there_is_the_engines_default_and_not_the_kernels_own() -> None:
    said = commit_config(CONTAINER, {"Env": None}, {})
    assert (said["Entrypoint"], said["Cmd"], said["User"], said["WorkingDir"]) == ([], ["sh"], "0", "/")
    assert "Healthcheck" not in said
    assert commit_config(CONTAINER, {"Cmd": ["bash"]}, {})["Cmd"] == ["bash"]
    assert commit_config(CONTAINER, {"Entrypoint": ["/e"]}, {})["Cmd"] == []


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("model", ("model", "latest")),
        ("team/model:2.1", ("team/model", "2.1")),
        ("registry.lab:5000/team/model:x", ("registry.lab:5000/team/model", "x")),
        ("registry.lab:5000/model", ("registry.lab:5000/model", "latest")),
        ("Model", None),
        ("a b", None),
        ("-x", None),
        ("model:", None),
        ("model@sha256:1", None),
        ("", None),
    ],
)
def test_a_name_is_taken_apart_as_docker_does(name: str, parts: tuple[str, str] | None) -> None:
    assert split_name(name) == parts


def test_an_answer_without_a_config_is_none() -> None:
    assert config_of({"Config": {"Env": []}}) == {"Env": []}
    with pytest.raises(ValueError, match="no object"):
        config_of({"Config": []})
