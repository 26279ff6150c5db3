"""values.py: what one value of the config may look like, and what is said of those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from kernelbridge import config, values
from kernelbridge.config import Environment
from kernelbridge.errors import ConfigInvalid

PATH = Path("/home/ada/kernelbridge.toml")


def problems_of(text: str) -> dict[str, str]:
    with pytest.raises(ConfigInvalid) as caught:
        config.parse(text, PATH)
    found = {problem.key: problem.sentence for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "each key is complained about once"
    assert caught.value.exit_code == 10
    return found


def environment_problems(line: str) -> dict[str, str]:
    return problems_of(f'[hosts.lab]\nssh = "lab"\n[environments.a]\nimage = "x"\n{line}\n')


def with_environment(line: str) -> Environment:
    return config.parse(f'[hosts.lab]\nssh = "lab"\n[environments.a]\nimage = "x"\n{line}\n', PATH).environment("a")


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("8g", 8 << 30),
        ("512m", 512 << 20),
        ("64K", 64 << 10),
        ("1t", 1 << 40),
        ("1.5g", 3 << 29),
        ("8 GiB", 8 << 30),
        ("8gb", 8 << 30),
        ("100", 100),
        (4096, 4096),
    ],
)
def test_a_size_is_bytes_whatever_its_unit(written: object, size_bytes: int) -> None:
    assert values.parse_size(written) == size_bytes


@pytest.mark.parametrize("written", ["8q", "", "g", "-1g", "0", 0, -5, True, 1.5, None, "1e3", ["8g"]])
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        values.parse_size(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("24h", 86400), ("30m", 1800), ("90s", 90), ("2 d", 172800), ("1.5H", 5400), ("7", 7), (90, 90), (0.5, 0.5)],
)
def test_a_time_is_seconds_whatever_its_unit(written: object, seconds: float) -> None:
    assert values.parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    ["24x", "", "h", "-1h", "0", "0s", 0, 0.0, -5, True, None, "1e3", ["24h"], "inf", float("inf"), float("nan")],
)
def test_what_is_no_time_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        values.parse_duration(written)


@pytest.mark.parametrize(("seconds", "text"), [(86400.0, "24h"), (5400.0, "90m"), (90.0, "90s"), (0.5, "0.5s")])
def test_a_time_is_written_with_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert values.duration_text(seconds) == text
    assert values.parse_duration(text) == seconds


@pytest.mark.parametrize(("size_bytes", "text"), [(8 << 30, "8g"), (3 << 29, "1536m"), (1 << 40, "1t"), (1000, "1000")])
def test_a_size_is_written_with_its_largest_whole_unit(size_bytes: int, text: str) -> None:
    assert values.size_text(size_bytes) == text
    assert values.parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0", 0),
        ("2", 2),
        ('"all"', "all"),
        ('["0", "3"]', ("0", "3")),
        ("[0, 3]", ("0", "3")),
        ('["GPU-5ce4e7c2-0c4b"]', ("GPU-5ce4e7c2-0c4b",)),
        ('["MIG-GPU-1/2/3"]', ("MIG-GPU-1/2/3",)),
    ],
)
def test_gpus_are_a_number_all_or_ids(written: str, meant: object) -> None:
    assert with_environment(f"gpus = {written}").gpus == meant


@pytest.mark.parametrize("written", ["-1", "true", "1.5", '"two"', "[]", '["x y"]', '["0", "0"]', '[""]'])
def test_what_names_no_gpus_is_refused(written: str) -> None:
    assert list(environment_problems(f"gpus = {written}")) == ["environments.a.gpus"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [("-1", (-1, -1)), ("65536", (65536, 65536)), ('"1024:65536"', (1024, 65536)), ('"1024:-1"', (1024, -1))],
)
def test_a_limit_is_one_number_or_two(written: str, meant: tuple[int, int]) -> None:
    assert with_environment(f"ulimits = {{ nofile = {written} }}").ulimits == {"nofile": meant}


@pytest.mark.parametrize(
    ("line", "key", "sentence"),
    [
        ('shm_size = "8q"', "shm_size", 'must be a size like "8g"'),
        ("image2 = 1", "image2", "did you mean `image`?"),
        ("gpu = 1", "gpu", "unknown key; did you mean `gpus`?"),
        ('ssh = "lab"', "ssh", "unknown key; did you mean `ssh` of a host?"),
        ("qqqqqq = 1", "qqqqqq", "unknown key"),
        ('name = "x"', "name", "unknown key"),
        ("python = 3", "python", "is no value for this key; wanted: command"),
        ('python = ""', "python", "wanted: command"),
        ('pull = "sometimes"', "pull", 'wanted: "missing", "always" or "never"'),
        ("memory = true", "memory", "must be a size"),
        ("cpus = 0", "cpus", "wanted: number of cores, above 0"),
        ("cpus = inf", "cpus", "wanted: number of cores"),
        ('cpus = "2"', "cpus", "wanted: number of cores"),
        ("pids_limit = 2", "pids_limit", "wanted: number, at least 16"),
        ("start_seconds = nan", "start_seconds", "wanted: seconds"),
        ("core_dumps = 1", "core_dumps", "wanted: true or false"),
        ('persist = "yes"', "persist", "wanted: true or false"),
        ('lost_grace = "24x"', "lost_grace", 'must be a time like "24h", "30m" or "90s"'),
        ("max_lifetime = -1", "max_lifetime", "must be a time"),
        ("idle_timeout = 0", "idle_timeout", "must be more than 0 seconds"),
        ("keep_exited = true", "keep_exited", "must be a time"),
        ('journal_size = "8q"', "journal_size", 'must be a size like "8g"'),
        ('ipc = "shareable"', "ipc", 'wanted: "private" or "host"'),
        ('network = "container:x"', "network", "a network's name"),
        ("cull_idle_timeout = -1", "cull_idle_timeout", "wanted: seconds, at least 0"),
        ("ulimits = { core = 1 }", "ulimits.core", "use `core_dumps = true`"),
        ("ulimits = { memlok = 1 }", "ulimits.memlok", "is no limit; there are"),
        ('ulimits = { nofile = "9:3" }', "ulimits.nofile", "the soft limit is above the hard one"),
        ("ulimits = { nofile = 1.5 }", "ulimits.nofile", 'must be a number, or "SOFT:HARD"'),
        ('hosts = ["lob"]', "hosts.0", "there is no host `lob`; did you mean `lab`?"),
        ("hosts = [3]", "hosts.0", "wanted: list of host names"),
        ('hosts = "lab"', "hosts", "wanted: list of host names"),
        ('mounts = "/a:/b"', "mounts", "wanted: list of"),
        ("mounts = [3]", "mounts.0", "wanted: list of"),
        ('mounts = ["/a"]', "mounts.0", 'must be "SOURCE:TARGET"'),
        ('mounts = ["/a:/b:rx"]', "mounts.0", 'must be "SOURCE:TARGET"'),
        ('mounts = ["a:/b"]', "mounts.0", "must be a path of the host that begins with / or ~/"),
        ('mounts = ["~ada/x:/b"]', "mounts.0", "must be a path of the host that begins with / or ~/"),
        ('mounts = ["/a:b"]', "mounts.0", "must be a path that begins with /"),
        ('mounts = ["/a:/b", "/c:/b/"]', "mounts", "two mounts have the target /b"),
        ('env = { NVIDIA_VISIBLE_DEVICES = "all" }', "env.NVIDIA_VISIBLE_DEVICES", "choose cards with `gpus`"),
        ('env = { TMPDIR = "/x" }', "env.TMPDIR", "is written by kernelbridge itself"),
        ('env = { KERNELBRIDGE_X = "1" }', "env.KERNELBRIDGE_X", "is written by kernelbridge itself"),
        ('env = { "A B" = "1" }', "env.A B", "is no name for an environment variable"),
        ("env = { N = 1 }", "env.N", "wanted: table of texts"),
        ('secrets = ["JPY_PARENT_PID"]', "secrets.0", "is written by kernelbridge itself"),
        ('pass_env = ["NVIDIA_VISIBLE_DEVICES"]', "pass_env.0", "choose cards with `gpus`"),
        ('secrets = ["A"]\nenv = { A = "x" }', "secrets", "A is written more than once"),
        ('labels = { "kernelbridge.kernel" = "1" }', "labels.kernelbridge.kernel", "begin with kernelbridge"),
        ('user = "a b"', "user", 'wanted: name, UID[:GID] or "host"'),
        ('workdir = "work"', "workdir", "must be a path that begins with /"),
        ('display_name = "Python 3"', "display_name", "VS Code hides such kernels"),
        ('display_name = " "', "display_name", "must be text that can be shown"),
    ],
)
def test_each_wrong_value_is_named_with_its_key_and_what_is_wanted(line: str, key: str, sentence: str) -> None:
    found = environment_problems(line)
    assert list(found) == [f"environments.a.{key}"]
    assert sentence in found[f"environments.a.{key}"]


@pytest.mark.parametrize(
    "source",
    [
        "/",
        "//",
        "/.",
        "/proc",
        "/proc/1/root",
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/podman/podman.sock",
        "/run/user/1000/docker.sock",
        "/run/user/1000/podman/podman.sock",
        "~/.docker/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run",
        "/var/run/",
        "/run/user/1000",
        "/run/podman",
        "/data/../proc",
        "~/..",
    ],
)
def test_a_mount_that_gives_more_than_files_is_refused(source: str) -> None:
    assert list(environment_problems(f'mounts = ["{source}:/x:ro"]')) == ["environments.a.mounts.0"]


@pytest.mark.parametrize("target", ["/", "/proc", "/sys/x", "/run/kernelbridge", "/run/kernelbridge/a", "/run", "/dev"])
def test_a_mount_over_what_the_kernel_needs_is_refused(target: str) -> None:
    assert list(environment_problems(f'mounts = ["/data:{target}"]')) == ["environments.a.mounts.0"]


def test_the_socket_that_a_host_names_may_not_be_mounted() -> None:
    found = problems_of(
        '[hosts.lab]\nssh = "lab"\nsocket = "/srv/engine"\n'
        '[environments.a]\nimage = "x"\nmounts = ["/srv/engine:/engine"]\n'
    )
    assert found == {
        "environments.a.mounts.0": "the engine's socket may not be mounted: whoever has it is root on the host"
    }


def test_plain_mounts_are_taken_as_written() -> None:
    environment = with_environment('mounts = ["~:/home/me", "/data//a/:/data", "/dev/shm:/dev/shm:rw"]')
    assert [(mount.source, mount.target, mount.read_only) for mount in environment.mounts] == [
        ("~", "/home/me", False),
        ("/data/a", "/data", False),
        ("/dev/shm", "/dev/shm", False),
    ]


def test_a_value_never_stands_in_a_complaint_about_env() -> None:
    assert "hf_secret" not in str(environment_problems('env = { TMPDIR = "hf_secret" }'))
    assert "hf_secret" not in repr(with_environment('env = { TOKEN = "hf_secret" }'))


def test_objects_made_without_a_file_are_checked_too() -> None:
    assert Environment(name="a", image="x", ulimits={"nofile": (3, 4)}).ulimits == {"nofile": (3, 4)}
    for wrong in ({"name": "A"}, {"mounts": ({"source": "/", "target": "/x"},)}, {"labels": {"": "x"}}):
        with pytest.raises(ValidationError):
            Environment.model_validate({"name": "a", "image": "x", **wrong})
