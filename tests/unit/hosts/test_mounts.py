"""hosts/mounts.py: a mount's `~` is the login's home on the host, and what it turns out to be may be refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kernelbridge.config.schema import Environment, Mount
from kernelbridge.errors import ConfigInvalid, MountMissing
from kernelbridge.hosts import mounts

TORCH = Environment(name="torch", image="x")


@pytest.mark.parametrize(
    ("source", "host_home", "path"),
    [
        ("/data", "/home/ada", "/data"),
        ("~", "/home/ada", "/home/ada"),
        ("~/", "/home/ada", "/home/ada"),
        ("~/a/b", "/home/ada/", "/home/ada/a/b"),
        ("/~/a", "/home/ada", "/~/a"),
    ],
)
def test_a_path_with_a_tilde_is_one_of_the_logins_home(source: str, host_home: str, path: str) -> None:
    assert mounts.host_path(source, host_home) == path


def test_a_mount_is_resolved_whole() -> None:
    mount = Mount(source="~/a", target="/x", read_only=True)
    assert mounts.resolved(mount, TORCH, "/home/ada") == Mount(source="/home/ada/a", target="/x", read_only=True)


def test_a_source_that_leads_to_what_is_forbidden_is_refused_with_its_key() -> None:
    mount = Mount.model_construct(source="~", target="/x", read_only=True)
    with pytest.raises(ConfigInvalid, match=r"~: environments\.torch\.mounts: the whole host"):
        mounts.resolved(mount, TORCH, "/")


def test_a_volume_is_nothing_that_the_host_is_asked_about() -> None:
    environment = Environment.model_validate({"name": "torch", "image": "x", "mounts": ["models:/m", "./a:/a"]})
    assert mounts.sources(environment, "/home/ada", socket="/s") == ["/home/ada/a", "/s"]
    (found,) = mounts.parse_resolved(b"=/disk/a\0-\0", environment, host="lab", host_home="/home/ada", socket="/s")
    assert (found.source, found.target) == ("/disk/a", "/a")


# -- links


def resolve(tmp_path: Path, *sources: str, socket: str = "/run/docker.sock") -> tuple[Mount, ...]:
    """Ask the script here, as a host would be asked."""
    environment = Environment.model_validate(
        {"name": "torch", "image": "x", "mounts": [f"{source}:/{index}" for index, source in enumerate(sources)]}
    )
    words = ["sh", "-c", mounts.RESOLVE_SCRIPT, "sh", *mounts.sources(environment, str(tmp_path), socket=socket)]
    answer = subprocess.run(words, capture_output=True, check=True).stdout
    return mounts.parse_resolved(answer, environment, host="lab", host_home=str(tmp_path), socket=socket)


@pytest.mark.parametrize("source", ["~/real/engine.sock", "~/real", "~", "~/link", "~/named", "~/above/real"])
@pytest.mark.parametrize("named", ["real/engine.sock", "link/engine.sock", "named"])
def test_the_engines_own_socket_and_the_folders_above_it_are_refused_by_whatever_name(
    tmp_path: Path, source: str, named: str
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "beside").mkdir()
    (tmp_path / "real" / "engine.sock").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "above").symlink_to(tmp_path)
    (tmp_path / "named").symlink_to("real/engine.sock")
    with pytest.raises(ConfigInvalid, match="may not be mounted"):
        resolve(tmp_path, "~/beside", source, socket=str(tmp_path / named))
    assert resolve(tmp_path, "~/beside", socket=str(tmp_path / named))


def test_a_socket_that_the_login_cannot_see_is_where_the_engine_says_it_is(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir()
    with pytest.raises(ConfigInvalid, match="the engine's socket is there"):
        resolve(tmp_path, "~/shut", socket=str(tmp_path / "shut" / "engine.sock"))


def test_what_is_mounted_is_where_the_links_lead(tmp_path: Path) -> None:
    (tmp_path / "real data").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "one").symlink_to("real data")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (tmp_path / "odd\nname").mkdir()
    (tmp_path / "odd").symlink_to("odd\nname")
    found = resolve(tmp_path, "~/two", "~/file", str(tmp_path / "one"), "~/odd", "~")
    ends = ["real data", "file", "real data", "odd\nname", ""]
    assert [mount.source for mount in found] == [str(tmp_path / end) for end in ends]
    assert [mount.target for mount in found] == ["/0", "/1", "/2", "/3", "/4"]


@pytest.mark.parametrize("end", ["/", "/proc", "/proc/1", "/run", "/var/run"])
def test_a_link_may_not_lead_to_what_is_forbidden(tmp_path: Path, end: str) -> None:
    (tmp_path / "link").symlink_to(end)
    (tmp_path / "over").symlink_to("link")
    with pytest.raises(ConfigInvalid, match="may not be mounted"):
        resolve(tmp_path, "~/over")


def test_a_source_that_is_not_there_is_named_as_it_is_on_the_host(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to("nowhere")
    for source in ("~/none", "~/broken"):
        with pytest.raises(MountMissing, match=f"the mount source {tmp_path}/"):
            resolve(tmp_path, source)


def test_a_login_node_refuses_what_it_knows_and_leaves_the_rest_to_the_nodes() -> None:
    environment = Environment.model_validate({"name": "torch", "image": "x", "mounts": ["/a:/a", "/b:/b", "/c:/c"]})
    for answer in (b"", b"-\0?\0=/data\0-\0", b"=/a\0"):
        mounts.check_resolved(answer, environment)
    for answer in (b"-\0=/\0", b"=/run\0", b"?\0-\0=/x/docker.sock\0"):
        with pytest.raises(ConfigInvalid, match="may not be mounted"):
            mounts.check_resolved(answer, environment)


@pytest.mark.parametrize("answer", [b"", b"?\0", b"=/data", b"/data\n"])
def test_an_answer_that_is_cut_or_unsure_lets_nothing_through(answer: bytes) -> None:
    environment = Environment.model_validate({"name": "torch", "image": "x", "mounts": ["/data:/data"]})
    with pytest.raises(ConfigInvalid, match="cannot tell where the source leads"):
        mounts.parse_resolved(answer, environment, host="lab", host_home="/h", socket="/s")
