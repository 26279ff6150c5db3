"""hosts/hardening.py: a container is hardened alike, by an engine's API or by the command line inside a Slurm job."""

from __future__ import annotations

from typing import Any

import pytest

from kernelbridge.config.schema import Environment
from kernelbridge.hosts import hardening
from kernelbridge.hosts.docker import container_spec
from kernelbridge.hosts.docker.container_spec import GpuAsk
from kernelbridge.hosts.docker.images.prepared_image import PreparedImage
from kernelbridge.hosts.docker.responses import ImageFacts
from kernelbridge.hosts.docker.users import ContainerUser
from kernelbridge.hosts.labels import Labels
from kernelbridge.hosts.slurm.runtimes import docker, podman
from kernelbridge.hosts.slurm.runtimes.spec import Spec

KEYS: list[dict[str, Any]] = [
    {},
    {"core_dumps": True, "ulimits": {"memlock": (-1, -1), "cpu": (1, 2)}},
    {"cap_add": ("SETUID",), "groups": ("render", "44"), "pids_limit": 99},
    {"ipc": "host", "network": "none"},
    {"shm_size": 1 << 20, "labels": {"team": "x"}, "workdir": "/w"},
    {"security_opt": ("apparmor=lab",), "read_only": True, "hostname": "box", "stop_timeout": 3},
    {"security_opt": ("no-new-privileges=false",), "dns": ("10.0.0.2",), "sysctls": {"net.core.somaxconn": "9"}},
    {"devices": ("/dev/fuse", "/dev/a:/dev/b:r"), "extra_hosts": ("a:10.0.0.3",), "container_runtime": "runsc"},
]


def by_api(environment: Environment) -> dict[str, Any]:
    labels = Labels(kernel="k1", environment="torch", owner="x")
    facts = ImageFacts(id="1", env={}, user="", labels={}, size_bytes=1)
    image = PreparedImage(name="x", facts=facts, python="python3")
    return container_spec.spec(
        environment=environment, image=image, labels=labels, gpus=GpuAsk(), mounts=(), user=ContainerUser()
    )


def device_text(device: dict[str, str]) -> str:
    inside, rights = device["PathInContainer"], device["CgroupPermissions"]
    is_plain = inside == device["PathOnHost"] and rights == "rwm"
    return inside if is_plain else f"{device['PathOnHost']}:{inside}:{rights}"


def said_by(body: dict[str, Any], *, by_job: bool) -> set[str]:
    """What the body of an API call asks for, as options; those left out that the job itself sees to with Podman."""
    host = body["HostConfig"]
    words = [f"--cap-drop={name}" for name in host["CapDrop"]]
    words += [f"--cap-add={name}" for name in host["CapAdd"]]
    words += [f"--security-opt={option}" for option in host["SecurityOpt"]]
    words += [f"--ulimit={one['Name']}={one['Soft']}:{one['Hard']}" for one in host["Ulimits"]]
    words += [f"--tmpfs={folder}:{options}" for folder, options in host["Tmpfs"].items()]
    words += [f"--volume={folder}" for folder in body["Volumes"]]
    words += [f"--group-add={name}" for name in host["GroupAdd"]]
    words += [f"--network={host['NetworkMode']}", f"--ipc={host['IpcMode']}"]
    words += [f"--shm-size={host['ShmSize']}"] if "ShmSize" in host else []
    words += [f"--workdir={body['WorkingDir']}"] if "WorkingDir" in body else []
    words += [f"--hostname={body['Hostname']}"] if "Hostname" in body else []
    words += [f"--stop-timeout={body['StopTimeout']}"] if "StopTimeout" in body else []
    words += [f"--runtime={host['Runtime']}"] if "Runtime" in host else []
    words += ["--read-only"] if host.get("ReadonlyRootfs") else []
    words += [f"--dns={address}" for address in host.get("Dns", [])]
    words += [f"--add-host={text}" for text in host.get("ExtraHosts", [])]
    words += [f"--sysctl={name}={value}" for name, value in host.get("Sysctls", {}).items()]
    words += [f"--device={text}" for text in map(device_text, host.get("Devices", []))]
    if not by_job:
        words += [f"--pids-limit={host['PidsLimit']}", f"--restart={host['RestartPolicy']['Name']}"]
        words += [f"--log-driver={host['LogConfig']['Type']}"]
        words += [f"--log-opt={key}={text}" for key, text in host["LogConfig"]["Config"].items()]
        words += ["--init"] if host["Init"] else []
        words += ["--no-healthcheck"] if body["Healthcheck"] == {"Test": ["NONE"]} else []
    return set(words)


@pytest.mark.parametrize("keys", KEYS, ids=str)
@pytest.mark.parametrize("runtime", [docker, podman], ids=["docker", "podman"])
def test_a_jobs_command_line_says_all_that_an_engine_is_asked(runtime: Any, keys: dict[str, Any]) -> None:
    environment = Environment(name="torch", image="x", **keys)
    made = Spec(
        kernel="k1", environment=environment, command=("python3",), wants_gpus=False, home="/h", user_numbers=(1, 1)
    )
    words = runtime.run_argv(made)
    wanted = said_by(by_api(environment), by_job=runtime is podman)
    assert wanted - set(words) == set()
    # And nothing more of what takes rights away or gives them.
    kinds = (
        "--device",
        "--runtime",
        "--sysctl",
        "--cap-",
        "--security-opt",
        "--ulimit",
        "--tmpfs",
        "--volume",
        "--group-add",
        "--privileged",
        "--shm-size",
    )
    assert {word for word in words if word.startswith(kinds)} - wanted == set()


def test_core_files_are_forbidden_unless_the_environment_asks_for_them() -> None:
    assert hardening.ulimits(Environment(name="a", image="x")) == {"core": (0, 0)}
    assert hardening.ulimits(Environment(name="a", image="x", core_dumps=True)) == {}


def test_podman_gets_a_log_that_it_knows() -> None:
    assert hardening.log_config()["Type"] == "local"
    assert hardening.log_config(is_podman=True) == {"Type": "k8s-file", "Config": {"max-size": "4m"}}
