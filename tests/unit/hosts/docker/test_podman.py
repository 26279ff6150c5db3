"""hosts/docker/podman.py: what Podman takes otherwise than Docker. Against a real one: tests/real/test_podman.py."""

from __future__ import annotations

from kernelbridge.hosts.docker.podman import container_body


def test_only_the_log_is_another_and_what_was_given_stays_as_it_was() -> None:
    given = {"Image": "i", "HostConfig": {"Init": True, "LogConfig": {"Type": "local", "Config": {"max-file": "2"}}}}
    assert container_body(given) == {
        "Image": "i",
        "HostConfig": {"Init": True, "LogConfig": {"Type": "k8s-file", "Config": {"max-size": "4m"}}},
    }
    assert given["HostConfig"]["LogConfig"]["Type"] == "local"  # type: ignore[index]
    assert container_body({"Image": "i"})["HostConfig"]["LogConfig"]["Type"] == "k8s-file"
