"""config/engine_options.py: what of the engine's own options is taken, and what would break a promise."""

from __future__ import annotations

from typing import Any

import pytest

from kernelbridge.config import engine_options, load
from tests.unit.config.test_load import PATH, problems_of

UNSAFE = "only with `allow_unsafe = true`"


def refused(written: dict[str, Any], *, allows_unsafe: bool = False, network: str = "bridge") -> dict[str, str]:
    return dict(engine_options.engine_config_problems(written, network=network, allows_unsafe=allows_unsafe))


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"Domainname": "lab", "MacAddress": "02:00:00:00:00:01", "ExposedPorts": {"80/tcp": {}}},
        {"Volumes": {"/scratch": {}}, "NetworkingConfig": {"EndpointsConfig": {"bridge": {"IPAMConfig": {}}}}},
        {"HostConfig": {"CpusetCpus": "0-7", "OomScoreAdj": 5, "Annotations": {"a": "b"}, "MemorySwap": -1}},
        {"HostConfig": {"PidMode": "", "Privileged": False, "UsernsMode": "keep-id", "CgroupnsMode": "private"}},
        {"HostConfig": {"Mounts": [{"Type": "volume", "Source": "models", "Target": "/models"}]}},
        {"HostConfig": {"Binds": ["models:/models:ro"], "Tmpfs": {"/scratch": "size=1g"}}},
        {"HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]}}},
        {"HostConfig": {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["vendor.com/npu=0"]}]}},
    ],
    ids=str,
)
def test_what_breaks_no_promise_is_taken(written: dict[str, Any]) -> None:
    assert refused(written) == {}


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("Cmd", ["sh"], "is set by kernelbridge itself"),
        ("Entrypoint", [], "is set by kernelbridge itself"),
        ("OpenStdin", False, "is set by kernelbridge itself"),
        ("Tty", True, "is set by kernelbridge itself"),
        ("Name", "mine", "is set by kernelbridge itself"),
        ("Labels", {"kernelbridge.kernel": "x"}, "write `labels` of the environment"),
        ("Env", ["NVIDIA_VISIBLE_DEVICES=all"], "write `env`, `pass_env` or `secrets`"),
        ("User", "0", "write `user`"),
        ("Hostnme", "x", "the engine has no such key; did you mean `Hostname`?"),
        ("CpuShares", 2, "the engine has no such key; did you mean `CpuShares` of `HostConfig`?"),
        ("Qqqqq", 2, "the engine has no such key"),
        ("Volumes", {"/run/kernelbridge": {}}, "nothing may be mounted at /run/kernelbridge in the container"),
        ("NetworkingConfig", {"EndpointsConfig": {"other": {}}}, "the network of `network` (bridge) alone"),
        ("HostConfig", 1, "must be a table"),
        ("HostConfig.AutoRemove", True, "is set by kernelbridge itself"),
        ("HostConfig.RestartPolicy", {"Name": "always"}, "is set by kernelbridge itself"),
        ("HostConfig.LogConfig", {"Type": "none"}, "is set by kernelbridge itself"),
        ("HostConfig.CapDrop", [], "is set by kernelbridge itself"),
        ("HostConfig.CapAdd", ["SYS_ADMIN"], "write `cap_add` of the environment"),
        ("HostConfig.NetworkMode", "host", "write `network` of the environment"),
        ("HostConfig.Entrypoint", [], "did you mean `Entrypoint` outside of `HostConfig`?"),
        ("HostConfig.cpu_shares", 2, "did you mean `CpuShares`?"),
        ("HostConfig.DeviceRequests", [{"Count": -1, "Capabilities": [["gpu"]]}], "GPUs are leased: write `gpus`"),
        ("HostConfig.Tmpfs", {"/proc/x": ""}, "nothing may be mounted at /proc/x"),
        ("HostConfig.Tmpfs", ["/a"], "must be a table"),
        ("HostConfig.Mounts", [{"Source": "kernelbridge-locks", "Target": "/x"}], "such names are kernelbridge's own"),
        ("HostConfig.Binds", ["kernelbridge-locks:/x"], "such names are kernelbridge's own"),
        ("HostConfig.Binds", ["models:/run/kernelbridge"], "nothing may be mounted at /run/kernelbridge"),
    ],
)
def test_what_is_ours_or_has_a_key_of_its_own_is_refused_whatever_is_allowed(
    key: str, value: object, sentence: str
) -> None:
    table, _, name = key.rpartition(".")
    written = {table: {name: value}} if table else {name: value}
    for allows_unsafe in (False, True):
        found = refused(written, allows_unsafe=allows_unsafe)
        assert list(found) == [key]
        assert sentence in found[key]


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("Privileged", True, "as good as root on the host"),
        ("PidMode", "host", "the processes of others"),
        ("PidMode", "container:x", "the processes of others"),
        ("UsernsMode", "host", "user numbers"),
        ("UTSMode", "host", "the host's own name"),
        ("CgroupnsMode", "host", "cgroups"),
        ("DeviceCgroupRules", ["c 195:* rwm"], "opens devices"),
        ("MaskedPaths", [], "/proc and /sys"),
        ("ReadonlyPaths", [], "/proc and /sys"),
        ("VolumesFrom", ["other"], "another container"),
        ("PublishAllPorts", True, "opens ports"),
        ("PortBindings", {"80/tcp": [{"HostPort": "80"}]}, "opens a port"),
        ("PortBindings", {"80/tcp": None}, "opens a port"),
        ("Binds", ["/:/host"], "write `mounts`"),
        ("Binds", ["/var/run/docker.sock:/d.sock"], "write `mounts`"),
        ("Mounts", [{"Type": "bind", "Source": "/var/run", "Target": "/x"}], "write `mounts`"),
        (
            "Mounts",
            [
                {
                    "Type": "volume",
                    "Target": "/x",
                    "VolumeOptions": {"DriverConfig": {"Options": {"o": "bind", "device": "/"}}},
                }
            ],
            "write `mounts`",
        ),
    ],
)
def test_what_breaks_a_promise_needs_a_word_of_the_users(key: str, value: object, why: str) -> None:
    found = refused({"HostConfig": {key: value}})
    assert list(found) == [f"HostConfig.{key}"]
    assert why in found[f"HostConfig.{key}"]
    assert found[f"HostConfig.{key}"].endswith(UNSAFE)
    assert refused({"HostConfig": {key: value}}, allows_unsafe=True) == {}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("/dev/fuse", ("/dev/fuse", "/dev/fuse", "rwm")),
        ("/dev/video0:/dev/video1", ("/dev/video0", "/dev/video1", "rwm")),
        ("/dev/video0:/dev/video1:rw", ("/dev/video0", "/dev/video1", "rw")),
        ("/dev/kvm:r", ("/dev/kvm", "/dev/kvm", "r")),
    ],
)
def test_a_device_is_taken_apart_as_docker_does(text: str, parsed: tuple[str, str, str]) -> None:
    assert engine_options.parse_device(text) == parsed


@pytest.mark.parametrize(
    ("key", "value", "at", "sentence"),
    [
        ("devices", '["fuse"]', "devices.0", "must be"),
        ("devices", '["/dev/fuse:x"]', "devices.0", "must be"),
        ("devices", '["/dev/../etc"]', "devices.0", "must be"),
        ("devices", '["/dev/nvidia0"]', "devices.0", "GPUs are leased: write `gpus`"),
        ("devices", '["/dev/fuse", "/dev/sda1"]', "devices.1", UNSAFE),
        ("devices", '["/dev"]', "devices.0", UNSAFE),
        ("devices", '["/dev/mem:/dev/x:r"]', "devices.0", UNSAFE),
        ("devices", '["/dev/mapper/root"]', "devices.0", UNSAFE),
        ("security_opt", '["seccomp=unconfined"]', "security_opt.0", UNSAFE),
        ("security_opt", '["label:disable"]', "security_opt.0", UNSAFE),
        ("security_opt", '["no-new-privileges=false"]', "security_opt.0", UNSAFE),
        ("security_opt", '["seccomp=/etc/x.json"]', "security_opt.0", "not as a path"),
        ("security_opt", '["systempaths=unconfined"]', "security_opt.0", "must be"),
        ("dns", '["example"]', "dns.0", "is not an IP address"),
        ("extra_hosts", '["a"]', "extra_hosts.0", "is not an IP address"),
        ("extra_hosts", '["-a:10.0.0.1"]', "extra_hosts.0", 'must be "NAME:ADDRESS"'),
        ("hostname", '"a b"', "hostname", "expected: name"),
        ("sysctls", "{ x = 1 }", "sysctls.x", "expected: table of strings"),
        ("container_runtime", '"a b"', "container_runtime", "expected: name"),
        ("stop_timeout", "-1", "stop_timeout", "at least 0"),
        ("engine_config", "1", "engine_config", "expected: table"),
        ("engine_config", "{ HostConfig = { CpuShares = nan } }", "engine_config", "texts, numbers"),
        ("engine_config", "{ HostConfig = { CpuShares = 1979-05-27 } }", "engine_config", "texts, numbers"),
        ("engine_config", "{ HostConfig = { Privileged = true } }", "engine_config.HostConfig.Privileged", UNSAFE),
    ],
)
def test_a_config_names_each_option_that_is_refused(key: str, value: str, at: str, sentence: str) -> None:
    found = problems_of(f'[environments.a]\nimage = "x"\n{key} = {value}')
    assert list(found) == [f"environments.a.{at}"]
    assert sentence in found[f"environments.a.{at}"]
    if sentence == UNSAFE:
        assert load.parse(f'[environments.a]\nimage = "x"\nallow_unsafe = true\n{key} = {value}', PATH)


def test_options_of_every_kind_are_taken() -> None:
    text = """
    [environments.a]
    image = "x"
    devices = ["/dev/fuse", "/dev/snd", "/dev/dri"]
    dns = ["10.0.0.2", "fd00::1"]
    extra_hosts = ["data.lab:10.0.0.3", "here:host-gateway"]
    hostname = "box-1"
    sysctls = { "net.core.somaxconn" = "1024" }
    container_runtime = "runc"
    stop_timeout = 30
    security_opt = ["apparmor=lab", "label=type:lab_t", "no-new-privileges=true", "seccomp={}"]
    read_only = true
    """
    assert load.parse(text, PATH).environment("a").devices == ("/dev/fuse", "/dev/snd", "/dev/dri")


def test_tables_are_merged_lists_joined_and_of_all_else_the_added_value_counts() -> None:
    ours = {"HostConfig": {"Mounts": [1], "Memory": 1, "Tmpfs": {"/a": ""}}, "Tty": False}
    added = {"HostConfig": {"Mounts": [2], "MemorySwap": 3, "Memory": 2, "Tmpfs": {"/b": "x"}}, "Domainname": "d"}
    assert engine_options.merged(ours, added) == {
        "HostConfig": {"Mounts": [1, 2], "Memory": 2, "MemorySwap": 3, "Tmpfs": {"/a": "", "/b": "x"}},
        "Tty": False,
        "Domainname": "d",
    }
    assert ours["HostConfig"] == {"Mounts": [1], "Memory": 1, "Tmpfs": {"/a": ""}}
