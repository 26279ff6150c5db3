"""hosts/docker/container_spec.py: the engine's create body, and the labels that say which containers are ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Environment, Mount
from kernelbridge.errors import ConfigInvalid
from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.docker import container_spec
from kernelbridge.hosts.docker.container_spec import GpuAsk
from kernelbridge.hosts.docker.gpu_access import GpuWay
from kernelbridge.hosts.docker.images.prepared_image import PreparedImage
from kernelbridge.hosts.docker.responses import ImageFacts
from kernelbridge.hosts.docker.users import ContainerUser
from kernelbridge.hosts.labels import Labels, config_mark, container_name, parse_labels

KERNEL_ID = "0d9f1c5e-6a1b-4f0e-9d55-0a6f5b7c2e11"
LABELS = Labels(kernel=KERNEL_ID, environment="pytorch", owner="machine-1", user="ada@laptop")


LOCKS = {
    "Type": "volume",
    "Source": "kernelbridge-locks",
    "Target": "/var/lib/kernelbridge.locks",
    "ReadOnly": True,
    "VolumeOptions": {"NoCopy": True},
}


IMAGE = PreparedImage(
    name="kernelbridge/derived:1",
    facts=ImageFacts(id="sha256:1", env={}, user="", labels={}, size_bytes=1),
    python="/opt/venv/bin/python",
)


def spec_of(
    *,
    gpu_ids: tuple[str, ...] = (),
    way: GpuWay = "gpus",
    found: tuple[Mount, ...] = (),
    chosen: ContainerUser = ContainerUser(),  # noqa: B008 - frozen
    **written: Any,
) -> dict[str, Any]:
    return container_spec.spec(
        environment=Environment(name="pytorch", image="pytorch:2", **written),
        image=IMAGE,
        labels=LABELS,
        gpus=GpuAsk(ids=gpu_ids, way=way),
        mounts=found,
        user=chosen,
    )


def test_the_whole_body_of_a_plain_environment() -> None:
    assert spec_of() == {
        "Image": "kernelbridge/derived:1",
        "Entrypoint": ["/opt/venv/bin/python"],
        "Cmd": bootstrap.boot_argv("python3")[1:],
        "Env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "Labels": LABELS.to_dict(),
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "Volumes": {"/var/lib/kernelbridge": {}},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "Init": True,
            "PidsLimit": 4096,
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
            "IpcMode": "private",
            "NetworkMode": "bridge",
            "Mounts": [],
            "Tmpfs": {"/run/kernelbridge": "rw,nosuid,nodev,mode=1777,size=64m"},
            "CapDrop": ["ALL"],
            "CapAdd": ["CHOWN", "DAC_OVERRIDE", "FOWNER"],
            "SecurityOpt": ["no-new-privileges"],
            "GroupAdd": [],
            "LogConfig": {"Type": "local", "Config": {"max-size": "4m", "max-file": "2"}},
            "RestartPolicy": {"Name": "no"},
            "ShmSize": 1 << 30,
        },
    }


@pytest.mark.parametrize(
    ("written", "key", "wanted"),
    [
        ({"shm_size": 8 << 30}, "ShmSize", 8 << 30),
        ({"memory": "2g"}, "Memory", 2 << 30),
        ({"memory": "2g"}, "MemorySwap", 2 << 30),
        ({"cpus": 1.5}, "NanoCpus", 1_500_000_000),
        ({"pids_limit": 100}, "PidsLimit", 100),
        ({"network": "none"}, "NetworkMode", "none"),
        ({"ipc": "host"}, "IpcMode", "host"),
        ({"groups": ("video", "44")}, "GroupAdd", ["video", "44"]),
        ({"cap_add": ()}, "CapAdd", []),
        ({"core_dumps": True}, "Ulimits", []),
        (
            {"ulimits": {"nofile": (1024, 4096), "memlock": -1}},
            "Ulimits",
            [
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "memlock", "Soft": -1, "Hard": -1},
                {"Name": "nofile", "Soft": 1024, "Hard": 4096},
            ],
        ),
    ],
)
def test_each_limit_reaches_the_engine(written: dict[str, Any], key: str, wanted: object) -> None:
    assert spec_of(**written)["HostConfig"][key] == wanted


def test_an_option_of_the_engines_reaches_it_only_where_it_is_written() -> None:
    body = spec_of(
        devices=("/dev/fuse", "/dev/video0:/dev/video1:r"),
        dns=("10.0.0.2",),
        extra_hosts=("here:host-gateway",),
        sysctls={"net.core.somaxconn": "1024"},
        container_runtime="runsc",
        security_opt=("apparmor=lab",),
        read_only=True,
        hostname="box",
        stop_timeout=3,
        engine_config={"Domainname": "lab", "HostConfig": {"CpusetCpus": "0-3", "Mounts": [{"Type": "tmpfs"}]}},
    )
    assert (body["Hostname"], body["StopTimeout"], body["Domainname"]) == ("box", 3, "lab")
    host_config = body["HostConfig"]
    assert host_config["Devices"] == [
        {"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"},
        {"PathOnHost": "/dev/video0", "PathInContainer": "/dev/video1", "CgroupPermissions": "r"},
    ]
    assert (host_config["Dns"], host_config["ExtraHosts"]) == (["10.0.0.2"], ["here:host-gateway"])
    assert (host_config["Sysctls"], host_config["Runtime"]) == ({"net.core.somaxconn": "1024"}, "runsc")
    assert host_config["SecurityOpt"] == ["no-new-privileges", "apparmor=lab"]
    assert (host_config["ReadonlyRootfs"], host_config["Tmpfs"]["/tmp"]) == (True, "rw,exec,nosuid,nodev,mode=1777")
    assert (host_config["CpusetCpus"], host_config["Mounts"]) == ("0-3", [{"Type": "tmpfs"}])


def test_a_runtime_of_the_users_does_not_take_the_place_of_the_one_that_gives_gpus() -> None:
    assert spec_of(gpu_ids=("GPU-1",), container_runtime="runsc")["HostConfig"]["Runtime"] == "runsc"
    with pytest.raises(ConfigInvalid, match="does not go with GPUs"):
        spec_of(gpu_ids=("GPU-1",), way="runtime", container_runtime="runsc")


def test_with_the_hosts_shared_memory_no_size_is_asked_for() -> None:
    assert "ShmSize" not in spec_of(ipc="host", shm_size="8g")["HostConfig"]


@pytest.mark.parametrize("key", ["AutoRemove", "Privileged", "PortBindings", "PublishAllPorts", "Binds"])
def test_what_would_lose_output_or_open_a_port_is_never_written(key: str) -> None:
    assert key not in spec_of(gpus=1, gpu_ids=("GPU-1",), mounts=("/a:/b",), memory="1g")["HostConfig"]


GPUS = {"Capabilities": [["gpu", "utility", "compute"]]}
BOTH = ("GPU-1", "GPU-2")


@pytest.mark.parametrize(
    ("way", "gpu_ids", "env", "asked"),
    [
        ("gpus", (), ["NVIDIA_VISIBLE_DEVICES=void"], {}),
        ("gpus", ("GPU-1",), ["NVIDIA_VISIBLE_DEVICES=GPU-1"], {"DeviceRequests": [{"DeviceIDs": ["GPU-1"], **GPUS}]}),
        (
            "gpus",
            BOTH,
            ["NVIDIA_VISIBLE_DEVICES=GPU-1,GPU-2"],
            {"DeviceRequests": [{"DeviceIDs": list(BOTH), **GPUS}]},
        ),
        ("runtime", (), ["NVIDIA_VISIBLE_DEVICES=void"], {}),
        (
            "runtime",
            BOTH,
            ["NVIDIA_DRIVER_CAPABILITIES=compute,utility", "NVIDIA_VISIBLE_DEVICES=GPU-1,GPU-2"],
            {"Runtime": "nvidia"},
        ),
        ("cdi", (), ["NVIDIA_VISIBLE_DEVICES=void"], {}),
        (
            "cdi",
            BOTH,
            # The hook of an engine whose default runtime is nvidia would put them in once more.
            ["NVIDIA_VISIBLE_DEVICES=void"],
            {
                "DeviceRequests": [
                    {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"]},
                ]
            },
        ),
    ],
)
def test_the_kernel_sees_its_own_cards_and_no_others(
    way: GpuWay, gpu_ids: tuple[str, ...], env: list[str], asked: dict[str, object]
) -> None:
    body = spec_of(gpu_ids=gpu_ids, way=way)
    assert body["Env"] == env
    assert {key: body["HostConfig"][key] for key in ("DeviceRequests", "Runtime") if key in body["HostConfig"]} == asked


@pytest.mark.parametrize(
    ("way", "image_has", "env", "written", "kinds"),
    [
        ("gpus", False, {}, None, ["gpu", "utility", "compute"]),
        ("gpus", True, {}, None, ["gpu"]),
        ("gpus", True, {"NVIDIA_DRIVER_CAPABILITIES": "compute,video"}, "compute,video", ["gpu"]),
        ("gpus", False, {"NVIDIA_DRIVER_CAPABILITIES": "all"}, "all", ["gpu"]),
        # No text but NVIDIA's own words stands where `docker inspect` shows it.
        ("gpus", False, {"NVIDIA_DRIVER_CAPABILITIES": "a b=C"}, None, ["gpu", "utility", "compute"]),
        ("runtime", False, {}, "compute,utility", None),
        ("runtime", True, {}, None, None),
        ("runtime", True, {"NVIDIA_DRIVER_CAPABILITIES": "graphics"}, "graphics", None),
        ("cdi", True, {}, None, None),
    ],
)
def test_what_of_the_driver_a_container_gets_is_the_environments_word_then_the_images(
    way: GpuWay, image_has: bool, env: dict[str, str], written: str | None, kinds: list[str] | None
) -> None:
    body = container_spec.spec(
        environment=Environment(name="pytorch", image="pytorch:2", gpus=1, env=env),
        image=IMAGE,
        labels=LABELS,
        gpus=GpuAsk(ids=("GPU-1",), way=way, image_has_capabilities=image_has),
        mounts=(),
        user=ContainerUser(),
    )
    variables = dict(line.split("=", 1) for line in body["Env"])
    assert variables.get("NVIDIA_DRIVER_CAPABILITIES") == written
    assert variables["NVIDIA_VISIBLE_DEVICES"] == ("void" if way == "cdi" else "GPU-1")
    (asked,) = body["HostConfig"].get("DeviceRequests", [{}])
    assert asked.get("Capabilities") == ([kinds] if kinds else None)


@pytest.mark.parametrize(
    ("gpu_ids", "lock", "mounts"),
    [
        ((), "flock", []),
        (("GPU-1",), "flock", [LOCKS]),
        (("GPU-1",), "advisory", []),
    ],
)
def test_who_has_cards_sees_their_locks_and_cannot_change_them(
    gpu_ids: tuple[str, ...], lock: str, mounts: list[object]
) -> None:
    assert spec_of(gpus=1, gpu_ids=gpu_ids, gpu_lock=lock)["HostConfig"]["Mounts"] == mounts


def test_the_locks_come_beside_the_users_mounts() -> None:
    found = (Mount(source="/a", target="/b"),)
    mounts = spec_of(gpus=1, gpu_ids=("GPU-1",), mounts=("/a:/b",), found=found)["HostConfig"]["Mounts"]
    assert [mount["Target"] for mount in mounts] == ["/b", "/var/lib/kernelbridge.locks"]


def test_volumes_and_folders_in_memory_are_the_engines() -> None:
    host_config = spec_of(
        mounts=("models:/m", "data:/d:ro", "tmp-files:/tmp"), tmpfs=("/scratch:1g", "/b"), read_only=True
    )["HostConfig"]
    assert host_config["Mounts"] == [
        {"Type": "volume", "Source": name, "Target": at, "ReadOnly": is_fixed, "VolumeOptions": {"NoCopy": True}}
        for name, at, is_fixed in (("models", "/m", False), ("data", "/d", True), ("tmp-files", "/tmp", False))
    ]
    assert host_config["Tmpfs"] == {
        "/run/kernelbridge": "rw,nosuid,nodev,mode=1777,size=64m",
        "/scratch": "rw,exec,nosuid,nodev,mode=1777,size=1073741824",
        "/b": "rw,exec,nosuid,nodev,mode=1777",
    }


def test_a_mount_that_selinux_labels_is_said_in_the_only_form_that_can() -> None:
    found = (
        Mount(source="/a", target="/x", relabel="z"),
        Mount(source="/b", target="/y", read_only=True, relabel="Z"),
        Mount(source="/c", target="/z"),
    )
    host_config = spec_of(found=found)["HostConfig"]
    assert host_config["Binds"] == ["/a:/x:rw,z", "/b:/y:ro,Z"]
    assert [mount["Source"] for mount in host_config["Mounts"]] == ["/c"]
    with pytest.raises(ConfigInvalid, match="`z` does not go with the colon in /a:b"):
        spec_of(found=(Mount(source="/a:b", target="/x", relabel="z"),))


def test_no_variable_of_the_users_stands_where_docker_inspect_shows_it() -> None:
    body = spec_of(env={"HF_HOME": "/cache", "A": "1"}, secrets=("HF_TOKEN",), pass_env=("WANDB_MODE",))
    assert body["Env"] == ["NVIDIA_VISIBLE_DEVICES=void"]
    assert not [name for name in ("HF_HOME", "HF_TOKEN", "WANDB_MODE") if name in json.dumps(body)]


def test_the_user_and_its_groups_are_as_chosen_and_nothing_of_it_is_a_variable() -> None:
    assert "User" not in spec_of()
    body = spec_of(chosen=ContainerUser(text="1000:100", groups=("27", "44"), name="ada"), groups=("44", "render"))
    assert (body["User"], body["HostConfig"]["GroupAdd"]) == ("1000:100", ["27", "44", "render"])
    assert body["Env"] == ["NVIDIA_VISIBLE_DEVICES=void"]


def test_the_working_folder_is_the_images_unless_named() -> None:
    assert "WorkingDir" not in spec_of()
    assert spec_of(workdir="/work")["WorkingDir"] == "/work"


def test_mounts_are_binds_of_what_was_found_on_the_host() -> None:
    found = (Mount(source="/data", target="/data", read_only=True), Mount(source="/home/ada", target="/home/me"))
    mounts = spec_of(mounts=("/link:/data:ro", "~:/home/me"), found=found)["HostConfig"]["Mounts"]
    assert mounts == [
        {"Type": "bind", "Source": "/data", "Target": "/data", "ReadOnly": True},
        {"Type": "bind", "Source": "/home/ada", "Target": "/home/me", "ReadOnly": False},
    ]


def test_labels_of_the_user_stand_beside_ours() -> None:
    written = spec_of(labels={"team": "vision"})["Labels"]
    assert written == {"team": "vision", **LABELS.to_dict()}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        pytest.param("other", LABELS.to_dict(), id="another name: a copy of our image, run by somebody"),
        pytest.param("kernelbridge-evil", LABELS.to_dict(), id="another id in the name"),
        pytest.param(container_name(KERNEL_ID), {}, id="no labels"),
        pytest.param("kernelbridge-", {**LABELS.to_dict(), "kernelbridge.kernel": ""}, id="an empty id"),
        pytest.param(container_name(KERNEL_ID), {"kernelbridge.kernel": KERNEL_ID}, id="not all our keys"),
    ],
)
def test_a_container_is_not_ours_if_name_and_labels_do_not_agree(name: str, labels: dict[str, str]) -> None:
    assert parse_labels(name, labels) is None


def test_the_configs_path_does_not_stand_in_a_label() -> None:
    mark = config_mark(Path("/home/ada/kernelbridge.toml"))
    assert "ada" not in mark
    assert len(mark) == 16
    assert mark == config_mark("/home/ada/kernelbridge.toml")
    assert mark != config_mark("/home/bob/kernelbridge.toml")


def test_the_body_is_json() -> None:
    body = spec_of(gpus=2, gpu_ids=("GPU-1",), mounts=("/a:/b",), cpus=2, memory="1g", ulimits={"memlock": -1})
    assert json.loads(json.dumps(body)) == body
