"""config/fields.py: what one value of the config may look like, and what is said of those that do not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from kernelbridge.config import fields, load
from kernelbridge.config.schema import Environment
from kernelbridge.errors import ConfigInvalid

PATH = Path("/home/ada/kernelbridge.toml")


def problems_of(text: str) -> dict[str, str]:
    with pytest.raises(ConfigInvalid) as caught:
        load.parse(text, PATH)
    found = {problem.key: problem.sentence for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "each key is complained about once"
    assert caught.value.exit_code == 10
    return found


def environment_problems(line: str) -> dict[str, str]:
    return problems_of(f'[hosts.lab]\nssh = "lab"\n[environments.a]\nimage = "x"\n{line}\n')


def with_environment(line: str) -> Environment:
    return load.parse(f'[hosts.lab]\nssh = "lab"\n[environments.a]\nimage = "x"\n{line}\n', PATH).environment("a")


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
    assert fields.parse_size(written) == size_bytes


@pytest.mark.parametrize("written", ["8q", "", "g", "-1g", "0", 0, -5, True, 1.5, None, "1e3", ["8g"]])
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        fields.parse_size(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("24h", 86400), ("30m", 1800), ("90s", 90), ("2 d", 172800), ("1.5H", 5400), ("7", 7), (90, 90), (0.5, 0.5)],
)
def test_a_time_is_seconds_whatever_its_unit(written: object, seconds: float) -> None:
    assert fields.parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    ["24x", "", "h", "-1h", "0", "0s", 0, 0.0, -5, True, None, "1e3", ["24h"], "inf", float("inf"), float("nan")],
)
def test_what_is_no_time_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        fields.parse_duration(written)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (86400.0, "24h"),
        (5400.0, "90m"),
        (90.0, "90s"),
        (0.5, "0.5s"),
        (1234567.0, "1234567s"),
        (0.0000125, "0.0000125s"),
    ],
)
def test_a_time_is_written_with_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert fields.duration_text(seconds) == text
    assert fields.parse_duration(text) == seconds


@pytest.mark.parametrize(("size_bytes", "text"), [(8 << 30, "8g"), (3 << 29, "1536m"), (1 << 40, "1t"), (1000, "1000")])
def test_a_size_is_written_with_its_largest_whole_unit(size_bytes: int, text: str) -> None:
    assert fields.size_text(size_bytes) == text
    assert fields.parse_size(text) == size_bytes


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
        ('["0:1", "10:12"]', ("0:1", "10:12")),
    ],
)
def test_gpus_are_a_number_all_or_ids(written: str, meant: object) -> None:
    assert with_environment(f"gpus = {written}").gpus == meant


@pytest.mark.parametrize(
    "written", ["-1", "true", "1.5", '"two"', "[]", '["x y"]', '["0", "0"]', '[""]', '["0:"]', '[":1"]', '["0:1:2"]']
)
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
        ("python = 3", "python", "is not a valid value for this key; expected: command"),
        ('python = ""', "python", "expected: command"),
        ('pull = "sometimes"', "pull", 'expected: "missing", "always" or "never"'),
        ("memory = true", "memory", "must be a size"),
        ("cpus = 0", "cpus", "expected: number of cores, at least 0.01"),
        ("cpus = 1e308", "cpus", "expected: number of cores, at most 65536"),
        (f'shm_size = "{"9" * 400}"', "shm_size", 'must be at most "1024t"'),
        (f"memory = {1 << 62}", "memory", 'must be at most "1024t"'),
        ('gpu_memory = "9999999t"', "gpu_memory", 'must be at most "1024t"'),
        (f'journal_size = "{"9" * 400}t"', "journal_size", 'must be at most "1024t"'),
        ('max_lifetime = "3000000d"', "max_lifetime", "must be at most 100 years"),
        ('keep_exited = "1000000000d"', "keep_exited", "must be at most 100 years"),
        (f'lost_grace = "{"9" * 400}"', "lost_grace", "must be at most 100 years"),
        ("idle_timeout = 1e11", "idle_timeout", "must be a"),
        ('time_limit = "36501d"', "time_limit", "must be at most 100 years"),
        ('wait = "36501d"', "wait", "must be at most 100 years"),
        ("start_seconds = 1e300", "start_seconds", "expected: seconds, at most 3153600000"),
        (f"cull_idle_timeout = {10**400}", "cull_idle_timeout", "expected: seconds, at most 3153600000"),
        (f"pids_limit = {1 << 40}", "pids_limit", "expected: number, at most 4194304"),
        (f"gpus = {10**30}", "gpus", "must be a number of GPUs"),
        (f'gpus = ["{"1" * 400}"]', "gpus", "is not a valid GPU id"),
        (f"ulimits = {{ nofile = {1 << 63} }}", "ulimits.nofile", "must be a number"),
        (f'ulimits = {{ nofile = "1:{"9" * 19}" }}', "ulimits.nofile", "must be at most 9223372036854775807"),
        (f'ulimits = {{ nofile = "1:{"9" * 400}" }}', "ulimits.nofile", "must be a number"),
        ("cpus = inf", "cpus", "expected: number of cores"),
        ('cpus = "2"', "cpus", "expected: number of cores"),
        ("pids_limit = 2", "pids_limit", "expected: number, at least 16"),
        ("start_seconds = nan", "start_seconds", "expected: seconds"),
        ("core_dumps = 1", "core_dumps", "expected: true or false"),
        ('persist = "yes"', "persist", "expected: true or false"),
        ('lost_grace = "24x"', "lost_grace", 'must be a time like "24h", "30m" or "90s"'),
        ("max_lifetime = -1", "max_lifetime", "must be a time"),
        ("idle_timeout = 0", "idle_timeout", "must be more than 0 seconds"),
        ("keep_exited = true", "keep_exited", "must be a time"),
        ('journal_size = "8q"', "journal_size", 'must be a size like "8g"'),
        ('ipc = "shareable"', "ipc", 'expected: "private" or "host"'),
        ('network = "container:x"', "network", "a network's name"),
        ("cull_idle_timeout = -1", "cull_idle_timeout", "expected: seconds, at least 0"),
        ("ulimits = { core = 1 }", "ulimits.core", "use `core_dumps = true`"),
        ("ulimits = { memlok = 1 }", "ulimits.memlok", "is not a known limit; use one of"),
        ('ulimits = { nofile = "9:3" }', "ulimits.nofile", "the soft limit is above the hard one"),
        ("ulimits = { nofile = 1.5 }", "ulimits.nofile", 'must be a number, or "SOFT:HARD"'),
        ('hosts = ["lob"]', "hosts.0", "there is no host `lob`; did you mean `lab`?"),
        ("hosts = [3]", "hosts.0", "expected: list of host names"),
        ('hosts = "lab"', "hosts", "expected: list of host names"),
        ('mounts = "/a:/b"', "mounts", "expected: list of"),
        ("mounts = [3]", "mounts.0", "expected: list of"),
        ('mounts = ["/a"]', "mounts.0", 'must be "SOURCE:TARGET"'),
        ('mounts = ["/a:/b:rx"]', "mounts.0", 'must be "SOURCE:TARGET"'),
        ('mounts = ["a:/b"]', "mounts.0", "must be a path on the host that begins with / or ~/"),
        ('mounts = ["~ada/x:/b"]', "mounts.0", "must be a path on the host that begins with / or ~/"),
        ('mounts = ["data/x:/b"]', "mounts.0", "in your home there it is './data/x'"),
        ('mounts = ["./../x:/b"]', "mounts.0", "may not contain .."),
        ('mounts = [".data:/b"]', "mounts.0", "or a volume's name of two characters or more"),
        ('mounts = ["kernelbridge-locks:/b"]', "mounts.0", "such names are kernelbridge's own"),
        ('mounts = ["models:/b:z"]', "mounts.0", "the engine labels the volume models itself"),
        ('mounts = ["models:/proc/x"]', "mounts.0", "nothing may be mounted at /proc/x"),
        ('mounts = ["/a:/b:z,Z"]', "mounts.0", 'must be "SOURCE:TARGET"'),
        ('mounts = ["/a:/b:ro,rw"]', "mounts.0", 'must be "SOURCE:TARGET"'),
        ('mounts = ["/a:/b:"]', "mounts.0", 'must be "SOURCE:TARGET"'),
        ('mounts = ["models:/b", "/c:/b"]', "mounts", "two mounts have the target /b"),
        ('tmpfs = "/a"', "tmpfs", "expected: list of"),
        ('tmpfs = ["a"]', "tmpfs.0", "must be a path that begins with /"),
        ('tmpfs = ["/a:lots"]', "tmpfs.0", 'must be a size like "8g"'),
        ('tmpfs = ["/a:8g:ro"]', "tmpfs.0", 'must be a size like "8g"'),
        ('tmpfs = ["/run/kernelbridge"]', "tmpfs.0", "nothing may be mounted at /run/kernelbridge"),
        ('tmpfs = ["/dev/shm:8g"]', "tmpfs.0", "its size is `shm_size`"),
        ('tmpfs = ["/a", "/a/:1g"]', "tmpfs", "/a is named twice in `mounts` and `tmpfs`"),
        ('mounts = ["/c:/a"]\ntmpfs = ["/a"]', "tmpfs", "/a is named twice in `mounts` and `tmpfs`"),
        ('mounts = ["/a:b"]', "mounts.0", "must be a path that begins with /"),
        ('mounts = ["/a:/b", "/c:/b/"]', "mounts", "two mounts have the target /b"),
        ('env = { NVIDIA_VISIBLE_DEVICES = "all" }', "env.NVIDIA_VISIBLE_DEVICES", "choose GPUs with `gpus`"),
        ('env = { TMPDIR = "/x" }', "env.TMPDIR", "is set by kernelbridge itself"),
        ('env = { KERNELBRIDGE_X = "1" }', "env.KERNELBRIDGE_X", "is set by kernelbridge itself"),
        ('env = { "A B" = "1" }', "env.A B", "is not a valid name for an environment variable"),
        ("env = { N = 1 }", "env.N", "expected: table of strings"),
        ('secrets = ["JPY_PARENT_PID"]', "secrets.0", "is set by kernelbridge itself"),
        ('pass_env = ["NVIDIA_VISIBLE_DEVICES"]', "pass_env.0", "choose GPUs with `gpus`"),
        ('secrets = ["A"]\nenv = { A = "x" }', "secrets", "A is set in more than one of env, pass_env and secrets"),
        ('labels = { "kernelbridge.kernel" = "1" }', "labels.kernelbridge.kernel", "begin with kernelbridge"),
        ('user = "a b"', "user", 'expected: "host", "image", name or UID[:GID]'),
        ('setup = ["make", " "]', "setup.1", "a command may not be empty"),
        ('setup = "make"', "setup", "expected: list of commands"),
        ('workdir = "work"', "workdir", "must be a path that begins with /"),
        ('display_name = "Python 3"', "display_name", "VS Code hides such kernels"),
        ('display_name = " "', "display_name", "must be printable text, and not blank"),
    ],
)
def test_each_wrong_value_is_named_with_its_key_and_what_is_wanted(line: str, key: str, sentence: str) -> None:
    found = environment_problems(line)
    assert list(found) == [f"environments.a.{key}"]
    assert sentence in found[f"environments.a.{key}"]


CONTROLS = ["\\u0000", "\\n", "\\r", "\\t", "\\u001b", "\\u007f", "\\u0085", "\\u2028"]


@pytest.mark.parametrize("mark", CONTROLS)
@pytest.mark.parametrize(
    "line",
    [
        'python = "a@"',
        'image = "a@"',
        'workdir = "/a@"',
        'mounts = ["/a@:/b"]',
        'mounts = ["/a:/b@"]',
        'gpus = ["0@"]',
        'gpu_model = "a@"',
        'gres = "gpu:1@"',
        'user = "a@"',
        'groups = ["a@"]',
        'cap_add = ["A@"]',
        'network = "a@"',
        'display_name = "a@"',
        'shm_size = "8g@"',
        'lost_grace = "8h@"',
        'ulimits = { nofile = "1:2@" }',
        'ulimits = { "nofile@" = 1 }',
        'labels = { a = "b@" }',
        'labels = { "a@" = "b" }',
        'env = { "A@" = "b" }',
        'pass_env = ["A@"]',
        'secrets = ["A@"]',
        'hosts = ["lab@"]',
    ],
)
def test_no_value_may_end_a_line_or_a_string_for_another_program(line: str, mark: str) -> None:
    text = f'[hosts.lab]\nssh = "lab"\n[environments.a]\n{line.replace("@", mark)}\n'
    found = problems_of(text if line.startswith("image") else text + 'image = "x"\n')
    assert all("control character" in sentence for key, sentence in found.items() if "hosts.0" not in key)


@pytest.mark.parametrize("mark", CONTROLS)
@pytest.mark.parametrize("line", ['ssh = "a@"', 'socket = "/a@"', 'sbatch_args = ["--qos=a@"]', 'partition = "a@"'])
def test_no_value_of_a_host_may_either(line: str, mark: str) -> None:
    text = f'[hosts.lab]\n{line.replace("@", mark)}\n[environments.a]\nimage = "x"\n'
    found = problems_of(text if line.startswith("ssh") else text.replace("[hosts.lab]", '[hosts.lab]\nssh = "lab"'))
    assert ["control character" in sentence for sentence in found.values()] == [True]


@pytest.mark.parametrize("mark", CONTROLS)
def test_names_of_tables_may_not_either(mark: str) -> None:
    assert problems_of(f'[hosts."lab{mark}"]\nssh = "lab"\n[environments.a]\nimage = "x"\n')
    assert problems_of(f'[environments."a{mark}"]\nimage = "x"\n')


def test_a_variable_may_hold_any_text_but_the_byte_0() -> None:
    assert with_environment('env = { A = "1\\n\\t\\u001b[0m" }').env["A"] == "1\n\t\x1b[0m"
    found = environment_problems('env = { A = "hf_secret\\u0000" }')
    assert list(found) == ["environments.a.env"]
    assert "hf_secret" not in str(found)


@pytest.mark.parametrize(
    "text", [f"a = {'9' * 5000}", "a = " + "[" * 5000, "a = " + "{a=" * 5000, "a = 2020-13-45", "a = 0x" + "f" * 5000]
)
def test_toml_that_python_cannot_take_is_the_files_problem(text: str) -> None:
    assert problems_of(text)


@pytest.mark.parametrize(
    "ssh",
    [
        "lab",
        "ada@lab",
        "ada@lab:2222",
        "ada@[::1]:22",
        "::1",
        "fe80::1%eth0",
        "local",
        "i-0abc",
        "DOM\\ada@lab",
        "lab_2.x",
    ],
)
def test_addresses_that_openssh_takes(ssh: str) -> None:
    assert fields.check_ssh(ssh) == ssh


@pytest.mark.parametrize("mark", list("'\"`$;&<>|(){}*?!, \n\0\x1b\x7f\u2028"))
def test_addresses_that_a_shell_or_known_hosts_reads_as_more_are_refused(mark: str) -> None:
    for ssh in (f"i-{mark}id", f"{mark}lab", f"lab{mark}", f"a{mark}@lab", f"{mark}a@lab", f"lab{mark}:22"):
        with pytest.raises(ValueError, match="must be an alias"):
            fields.check_ssh(ssh)


@pytest.mark.parametrize(
    "ssh",
    [
        "",
        "-oProxyCommand=x",
        "-x@lab",
        "ada@-lab",
        "@lab",
        "ada@",
        "a\\b",
        "ada\\@lab",
        "i-1,*",
        "i-$(id>/tmp/x)",
        "#a",
    ],
)
def test_addresses_that_openssh_refuses(ssh: str) -> None:
    with pytest.raises(ValueError, match="must be an alias"):
        fields.check_ssh(ssh)


@pytest.mark.parametrize(
    "word",
    [
        "--wra=x",
        "--wrap=x",
        "--w=x",
        "--arr=1-5",
        "--array=1",
        "-a1-5",
        "-o/tmp/x",
        "-o",
        "-e/x",
        "-ix",
        "-JX",
        "-W",
        "-HW",
        "-Ho/tmp/x",
        "-vvo/x",
        "-koff",
        "--out=/x",
        "--err=x",
        "--in",
        "--job=x",
        "--com=x",
        "--pars",
        "--test",
        "--req",
        "--no-req",
        "--wai",
        "--help",
        "--vers",
        "-V",
        "-h",
        "-Q-o/x",
    ],
)
def test_what_sbatch_reads_as_an_option_of_ours_is_refused_however_it_is_written(word: str) -> None:
    with pytest.raises(ValueError, match=r"is set by kernelbridge itself"):
        fields.check_sbatch_args((word,))


@pytest.mark.parametrize(
    "word",
    [
        "--qos=debug",
        "--constraint=a&b",
        "-pgpu",
        "-Ahome",
        "-Coahu",
        "-wnode1",
        "--exclusive",
        "-H",
        "-t60",
        "--mem=1G",
        "--no-kill=off",
        "--wait-all-nodes=1",
        "--nice=5",
        "-xo1",
        "--comment-x=1",
        "--export=NONE",
        "--time=1-0",
    ],
)
def test_other_options_of_sbatch_pass(word: str) -> None:
    assert fields.check_sbatch_args((word,)) == (word,)


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


@pytest.mark.parametrize("folder", ["/srv", "/srv/", "/srv/a/..", "/srv/engine/", "/"])
def test_no_folder_above_it_either(folder: str) -> None:
    found = problems_of(
        '[hosts.lab]\nssh = "lab"\nsocket = "/srv/engine"\n'
        f'[environments.a]\nimage = "x"\nmounts = ["/srvx:/b", "{folder}:/engine"]\n'
    )
    assert list(found) == ["environments.a.mounts.1"]


def test_plain_mounts_are_taken_as_written() -> None:
    environment = with_environment('mounts = ["~:/home/me", "/data//a/:/data", "/dev/shm:/dev/shm:rw"]')
    assert [(mount.source, mount.target, mount.read_only) for mount in environment.mounts] == [
        ("~", "/home/me", False),
        ("/data/a", "/data", False),
        ("/dev/shm", "/dev/shm", False),
    ]


def test_a_bare_name_is_a_volume_and_a_path_with_a_dot_is_one_of_the_home_on_the_host() -> None:
    environment = with_environment('mounts = ["models:/m:ro", "./data:/d:Z,ro", ".:/h:z"]\ncache = true')
    shown = [(mount.source, mount.target, mount.read_only, mount.relabel) for mount in environment.mounts]
    assert shown == [("models", "/m", True, ""), ("~/data", "/d", True, "Z"), ("~", "/h", False, "z")]
    assert [mount.source for mount in environment.volumes] == ["models"]
    assert [mount.source for mount in environment.host_mounts] == ["~/data", "~", "~/.cache/kernelbridge/shared"]


@pytest.mark.parametrize("text", ["models:/m", "/a:/b:ro,z", "~:/h", "./data:/d:Z", ".:/h", "a.b-c_d:/x:rw"])
def test_an_editor_takes_for_a_mount_what_is_one(text: str) -> None:
    assert re.search(fields.MOUNT_PATTERN, text)
    fields.check_source(fields.parse_mount(text)[0])


def test_folders_in_memory_are_kept_in_their_plain_form() -> None:
    environment = with_environment('tmpfs = ["/scratch//a/:2048m", "/b"]')
    assert environment.tmpfs == ("/scratch/a:2g", "/b")
    assert [re.search(fields.TMPFS_PATTERN, text) is None for text in (*environment.tmpfs, "a", "/a:x")] == [
        False,
        False,
        True,
        True,
    ]
    assert [fields.parse_tmpfs(text) for text in environment.tmpfs] == [("/scratch/a", 2 << 30), ("/b", None)]


def test_a_value_never_stands_in_a_complaint_about_env() -> None:
    assert "hf_secret" not in str(environment_problems('env = { TMPDIR = "hf_secret" }'))
    assert "hf_secret" not in repr(with_environment('env = { TOKEN = "hf_secret" }'))


def test_objects_made_without_a_file_are_checked_too() -> None:
    assert Environment(name="a", image="x", ulimits={"nofile": (3, 4)}).ulimits == {"nofile": (3, 4)}
    for wrong in ({"name": "A"}, {"mounts": ({"source": "/", "target": "/x"},)}, {"labels": {"": "x"}}):
        with pytest.raises(ValidationError):
            Environment.model_validate({"name": "a", "image": "x", **wrong})


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        (6006, (6006, 6006, False)),
        ("6006", (6006, 6006, False)),
        ("8080:80", (8080, 80, False)),
        ("raw:5555", (5555, 5555, True)),
        ("raw:1:65535", (1, 65535, True)),
    ],
)
def test_a_forward_is_a_port_here_and_one_of_the_container(written: object, parts: tuple[int, int, bool]) -> None:
    assert fields.parse_forward(written) == parts


@pytest.mark.parametrize(
    "written", [0, 65536, -1, True, None, 1.5, "", "80:", ":80", "a", "tcp:80", "1:2:3", "80:0", " 80"]
)
def test_what_is_no_forward_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"must be a port"):
        fields.parse_forward(written)


@pytest.mark.parametrize(
    ("line", "key", "words"),
    [
        ("forwards = [6006, 0]", "forwards.1", "must be a port"),
        ('forwards = [80, "80:81"]', "forwards", "two forwards have the port 80 here"),
        ('forwards = ["80:6006", "raw:81:6006"]', "forwards", "the container's port 6006 is forwarded twice"),
        ('forwards = "6006"', "forwards", "is not a valid value"),
    ],
)
def test_a_wrong_forward_is_told_with_its_place(line: str, key: str, words: str) -> None:
    (found,) = environment_problems(line).items()
    assert found[0] == f"environments.a.{key}"
    assert words in found[1]


# -- as many GPUs as there are


def test_gpus_may_be_as_many_as_there_are_up_to_a_number() -> None:
    gpus = with_environment("gpus = { wanted = 2, min = 0 }").gpus
    assert gpus == fields.GpuRange(wanted=2, min=0)
    assert fields.parse_gpu_range({"wanted": 1, "min": 1}) == fields.GpuRange(wanted=1, min=1)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{ wanted = 2 }", "two keys"),
        ("{ min = 0 }", "two keys"),
        ("{}", "two keys"),
        ("{ wanted = 2, min = 0, max = 3 }", "two keys"),
        ("{ wanted = 1, min = 2 }", "may not be more"),
        ("{ wanted = -1, min = -1 }", "numbers of GPUs"),
        ("{ wanted = 2000, min = 0 }", "numbers of GPUs"),
        ("{ wanted = true, min = false }", "numbers of GPUs"),
        ('{ wanted = "all", min = 0 }', "numbers of GPUs"),
        ("{ wanted = 1.5, min = 0 }", "numbers of GPUs"),
    ],
)
def test_a_range_of_gpus_that_is_none_is_told(written: str, told: str) -> None:
    found = environment_problems(f"gpus = {written}")
    assert list(found) == ["environments.a.gpus"]
    assert told in found["environments.a.gpus"]
