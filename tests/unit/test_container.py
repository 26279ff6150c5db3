"""container.py: the engine's create body, and the labels that say which containers are ours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge import container
from kernelbridge.config import Environment, Mount
from kernelbridge.container import GpuAsk, Labels
from kernelbridge.errors import ConfigInvalid
from kernelbridge.host.requirements import Way

KERNEL_ID = "0d9f1c5e-6a1b-4f0e-9d55-0a6f5b7c2e11"
LABELS = Labels(kernel=KERNEL_ID, environment="pytorch", owner="machine-1", user="ada@laptop")


LOCKS = {
    "Type": "volume",
    "Source": "kernelbridge-locks",
    "Target": "/var/lib/kernelbridge.locks",
    "ReadOnly": True,
    "VolumeOptions": {"NoCopy": True},
}


def spec_of(
    *, gpu_ids: tuple[str, ...] = (), way: Way = "gpus", host_home: str = "/home/ada", **written: Any
) -> dict[str, Any]:
    return container.spec(
        environment=Environment(name="pytorch", image="pytorch:2", **written),
        labels=LABELS,
        command=["python3", "-c", "boot"],
        gpus=GpuAsk(ids=gpu_ids, way=way),
        host_home=host_home,
        host_user=(1000, 1001),
    )


def test_the_whole_body_of_a_plain_environment() -> None:
    assert spec_of() == {
        "Image": "pytorch:2",
        "Entrypoint": ["python3"],
        "Cmd": ["-c", "boot"],
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
    way: Way, gpu_ids: tuple[str, ...], env: list[str], asked: dict[str, object]
) -> None:
    body = spec_of(gpu_ids=gpu_ids, way=way)
    assert body["Env"] == env
    assert {key: body["HostConfig"][key] for key in ("DeviceRequests", "Runtime") if key in body["HostConfig"]} == asked


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
    mounts = spec_of(gpus=1, gpu_ids=("GPU-1",), mounts=("/a:/b",))["HostConfig"]["Mounts"]
    assert [mount["Target"] for mount in mounts] == ["/b", "/var/lib/kernelbridge.locks"]


def test_no_variable_of_the_users_stands_where_docker_inspect_shows_it() -> None:
    body = spec_of(env={"HF_HOME": "/cache", "A": "1"}, secrets=("HF_TOKEN",), pass_env=("WANDB_MODE",))
    assert body["Env"] == ["NVIDIA_VISIBLE_DEVICES=void"]
    assert not [name for name in ("HF_HOME", "HF_TOKEN", "WANDB_MODE") if name in json.dumps(body)]


@pytest.mark.parametrize(
    ("user", "written", "env"),
    [
        (None, None, []),
        ("1000", "1000", []),
        ("jovyan:users", "jovyan:users", []),
        ("host", "1000:1001", ["HOME=/tmp", "USER=kernelbridge"]),
    ],
)
def test_the_user_is_the_images_unless_named(user: str | None, written: str | None, env: list[str]) -> None:
    body = spec_of(user=user)
    assert body.get("User") == written
    assert [text for text in body["Env"] if not text.startswith("NVIDIA")] == env


def test_the_working_folder_is_the_images_unless_named() -> None:
    assert "WorkingDir" not in spec_of()
    assert spec_of(workdir="/work")["WorkingDir"] == "/work"


def test_mounts_are_binds_and_the_home_is_the_hosts() -> None:
    mounts = spec_of(mounts=("/data:/data:ro", "~/.cache:/cache", "~:/home/me"))["HostConfig"]["Mounts"]
    assert mounts == [
        {"Type": "bind", "Source": "/data", "Target": "/data", "ReadOnly": True},
        {"Type": "bind", "Source": "/home/ada/.cache", "Target": "/cache", "ReadOnly": False},
        {"Type": "bind", "Source": "/home/ada", "Target": "/home/me", "ReadOnly": False},
    ]


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
    assert container.host_path(source, host_home) == path


@pytest.mark.parametrize(("source", "host_home"), [("~", "/"), ("~/1000", "/run/user"), ("~/docker.sock", "/run")])
def test_a_home_that_turns_out_to_be_refused_is_refused(source: str, host_home: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"environments\.pytorch\.mounts: .*may not be mounted"):
        container.spec(
            environment=Environment.model_construct(
                **{
                    **Environment(name="pytorch", image="x").__dict__,
                    "mounts": (Mount.model_construct(source=source, target="/x", read_only=True),),
                }
            ),
            labels=LABELS,
            command=["x"],
            gpus=GpuAsk(),
            host_home=host_home,
            host_user=(1, 1),
        )


def test_labels_of_the_user_stand_beside_ours() -> None:
    written = spec_of(labels={"team": "vision"})["Labels"]
    assert written == {"team": "vision", **LABELS.to_dict()}


def test_all_our_label_keys_are_written_the_empty_ones_too() -> None:
    assert LABELS.to_dict() == {
        "kernelbridge.kernel": KERNEL_ID,
        "kernelbridge.environment": "pytorch",
        "kernelbridge.owner": "machine-1",
        "kernelbridge.process": "",
        "kernelbridge.user": "ada@laptop",
        "kernelbridge.image": "",
        "kernelbridge.version": "",
        "kernelbridge.config": "",
        "kernelbridge.gpus": "",
        "kernelbridge.keep_exited": "",
    }


def test_labels_are_read_back_as_they_were_written() -> None:
    whole = replace(LABELS, process="12@99", image="sha256:1", version="0.1", config="ab", gpus="GPU-1,GPU-2")
    for name in (container.name(KERNEL_ID), f"/{container.name(KERNEL_ID)}"):
        assert container.parse(name, {"team": "vision", **whole.to_dict()}) == whole


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        pytest.param("other", LABELS.to_dict(), id="another name: a copy of our image, run by somebody"),
        pytest.param("kernelbridge-evil", LABELS.to_dict(), id="another id in the name"),
        pytest.param(container.name(KERNEL_ID), {}, id="no labels"),
        pytest.param("kernelbridge-", {**LABELS.to_dict(), "kernelbridge.kernel": ""}, id="an empty id"),
        pytest.param(container.name(KERNEL_ID), {"kernelbridge.kernel": KERNEL_ID}, id="not all our keys"),
    ],
)
def test_a_container_is_not_ours_if_name_and_labels_do_not_agree(name: str, labels: dict[str, str]) -> None:
    assert container.parse(name, labels) is None


def test_the_configs_path_does_not_stand_in_a_label() -> None:
    mark = container.config_mark(Path("/home/ada/kernelbridge.toml"))
    assert "ada" not in mark
    assert len(mark) == 16
    assert mark == container.config_mark("/home/ada/kernelbridge.toml")
    assert mark != container.config_mark("/home/bob/kernelbridge.toml")


def test_the_body_is_json() -> None:
    body = spec_of(gpus=2, gpu_ids=("GPU-1",), mounts=("/a:/b",), cpus=2, memory="1g", ulimits={"memlock": -1})
    assert json.loads(json.dumps(body)) == body
