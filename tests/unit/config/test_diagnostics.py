"""config/diagnostics.py: every problem of a config, each with its key and the nearest right name."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from kernelbridge.config import diagnostics, load
from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.errors import UnknownEnvironment, UnknownHost
from tests.unit.config.test_load import PATH, README_EXAMPLE, problems_of


@pytest.mark.parametrize(
    ("text", "key", "sentence"),
    [
        ("a = 1\nb = = 2\n", "line 2, column 5", "is not TOML"),
        ('[hosts.lab\nssh = "lab"\n', "line 1, column 11", "is not TOML"),
        ("[hosts.a]\n[hosts.a]\n", "line 2, column 9", "is not TOML"),
        ("a = [", "end of document", "is not TOML"),
        ("hots = 1", "hots", "unknown key; did you mean `hosts`?"),
        ('path = "x"', "path", "unknown key"),
        ("hosts = 1", "hosts", "must be tables: [hosts.NAME]"),
        ("environments = []", "environments", "must be tables: [environments.NAME]"),
        ("[hosts]\nlab = 1", "hosts.lab", "must be a table: [hosts.lab]"),
        ("[hosts.lab]", "hosts.lab.ssh", "is missing; expected: string"),
        ('[hosts.lab]\nssh = "-oProxyCommand=x"', "hosts.lab.ssh", "must be an alias"),
        ('[hosts.lab]\nssh = "a b"', "hosts.lab.ssh", "must be an alias"),
        ('[hosts.lab]\nssh = "lab"\ngpu = 1', "hosts.lab.gpu", "unknown key; did you mean `gpus` of an environment?"),
        ('[hosts.lab]\nssh = "lab"\nsokcet = 1', "hosts.lab.sokcet", "unknown key; did you mean `socket`?"),
        ('[hosts.lab]\nssh = "lab"\nsocket = "x"', "hosts.lab.socket", "must be a path that begins with /"),
        ('[hosts.lab]\nssh = "lab"\npath = ["/a", "b"]', "hosts.lab.path.1", "'b' is not a folder of the host"),
        ('[hosts.lab]\nssh = "lab"\npath = ["/a:/b"]', "hosts.lab.path.0", "begins with / and has no colon"),
        ('[hosts.lab]\nssh = "lab"\nlogin_seconds = 0', "hosts.lab.login_seconds", "seconds, above 0"),
        ('[hosts."a b"]\nssh = "lab"', "hosts.a b", "is not a valid host name"),
        ('[environments.python3]\nimage = "x"', "environments.python3", "may not be called python..."),
        ('[environments.Torch]\nimage = "x"', "environments.Torch", "is not a valid environment name"),
        ('[environments.-a]\nimage = "x"', "environments.-a", "is not a valid environment name"),
        ("[environments.a]", "environments.a.image", "is missing; expected: image name, or `build` in its place"),
        ('[environments.a]\nimage = "x"\nbuild = "~/x"', "environments.a.build", "may not be set beside `image`"),
        ('[environments.a]\nbuild = "x"', "environments.a.build.context", "must be a folder"),
        ('[environments.a]\nbuild = "host:x"', "environments.a.build.context", 'one of the host is "host:~/project"'),
        ("[environments.a]\nbuild = {}", "environments.a.build", "needs either `context`, a folder, or `git`"),
        ('[environments.a.build]\ncontext = "~/x"\ngit = "y"', "environments.a.build", "needs either `context`"),
        ('[environments.a.build]\ncontext = "~/x"\nfile = "y"', "environments.a.build.file", "unknown key"),
        ('[environments.a.build]\ncontext = "~"\nargz = {}', "environments.a.build.argz", "did you mean `args`?"),
        ('[environments.a.build]\ncontext = "~"\ndockerfile = "../D"', "environments.a.build.dockerfile", "inside"),
        ('[environments.a.build]\ncontext = "~"\ntarget = "-x"', "environments.a.build.target", "not a valid value"),
        (
            f'[environments.a.build]\ncontext = "~"\nargs = {{ A = "hf_{"x" * 10}" }}',
            "environments.a.build.args",
            "A looks like a secret, which everybody who has the image could read in it",
        ),
        ('[environments.a.build]\ngit = "ext::sh -c x"', "environments.a.build.git", "the address of a git"),
        ('[environments.a.build]\ngit = "--upload-pack=x"', "environments.a.build.git", "the address of a git"),
        ('[environments.a.build]\ngit = "u#-x"', "environments.a.build.git", "the address of a git"),
        ('[environments.a.build]\ngit = "u#x:../y"', "environments.a.build.git", "must be a path inside"),
        ('[environments.a.build]\ngit = "https://a:b@c/d"', "environments.a.build.git", "may not contain a login"),
        (
            '[hosts.a]\nssh = "a"\nscheduler = "slurm"\n[environments.a]\nbuild = "~/x"',
            "environments.a.build",
            "does not work on a, a Slurm cluster",
        ),
        ('[environments.a]\nimage = "-x"', "environments.a.image", "expected: image name"),
        ('[environments.a]\nimage = "x"\nhosts = ["lab"]', "environments.a.hosts.0", "there is no host `lab`"),
    ],
)
def test_each_wrong_table_is_named_with_its_place(text: str, key: str, sentence: str) -> None:
    found = problems_of(text)
    assert list(found) == [key]
    assert sentence in found[key]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    found = problems_of(
        """
        hots = 1
        [hosts.lab]
        ssh = "lab"
        gpu = 1
        [environments.python3]
        image = "x"
        shm_size = "8q"
        hosts = ["lob"]
        [environments.b]
        display_name = "Two"
        [environments.c]
        display_name = "Two"
        image = "x"
        mounts = ["/:/x", "a:/y"]
        """
    )
    assert list(found) == [
        "hots",
        "hosts.lab.gpu",
        "environments.python3",
        "environments.python3.shm_size",
        "environments.c.mounts.0",
        "environments.c.mounts.1",
        "environments.python3.hosts.0",
        "environments.b.image",
        "environments.b.display_name",
        "environments.c.display_name",
    ]


def test_unknown_names_come_with_the_nearest_known_one() -> None:
    loaded = load.parse(README_EXAMPLE, PATH)
    with pytest.raises(UnknownEnvironment, match=r"no environment `pytroch`. Did you mean `pytorch`\?"):
        loaded.environment("pytroch")
    with pytest.raises(UnknownHost, match=r"no host `lib`. Did you mean `lab`\?"):
        loaded.host("lib")
    with pytest.raises(UnknownHost) as caught:
        loaded.host("zzzzz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "is_warned_of"),
    [
        ("X", "hf_abcdefghijkl", True),
        ("X", "ghp_abcdefghijkl", True),
        ("X", "sk-abcdefghijkl", True),
        ("X", "AKIAABCDEFGH", True),
        ("WANDB_API_KEY", "0123456789abcdef", True),
        ("db_password", "correct horse", True),
        ("MY_SECRET", "0123456789", True),
        ("HF_HOME", "/cache/hf", False),
        ("SSL_KEY", "/certs/key.pem", False),
        ("TOKEN", "short", False),
        ("MONKEY", "0123456789", False),
        ("MODE", "sk-", False),
    ],
)
def test_a_literal_that_looks_like_a_token_is_a_warning(name: str, text: str, is_warned_of: bool) -> None:
    environment = Environment(name="a", image="x", env={name: text})
    found = load.warnings(Config(path=PATH, environments={"a": environment}))
    assert bool(found) is is_warned_of
    assert all(f'secrets = ["{name}"]' in sentence and text not in sentence for sentence in found)


def test_words_that_slurm_does_not_hear_are_told() -> None:
    environment = Environment(name="a", image="x", gpus=1, gpu_model="H200")
    login = Host(name="login", ssh="login", scheduler="slurm")
    found = load.warnings(Config(path=PATH, hosts={"login": login}, environments={"a": environment}))
    assert found == (
        "environments.a.gpu_model has no effect on login, where Slurm assigns the GPUs: "
        "write Slurm's own syntax in `gres`.",
    )
    told = environment.model_copy(update={"gres": "gpu:h200:1"})
    assert load.warnings(Config(path=PATH, hosts={"login": login}, environments={"a": told})) == ()


@pytest.mark.parametrize(("runtime", "count"), [("apptainer", 1), ("pyxis", 1), ("podman", 0), ("docker", 0)])
def test_memory_that_a_runtime_of_slurm_does_not_give_is_told(runtime: Any, count: int) -> None:
    environment = Environment(name="a", image="x", tmpfs=("/scratch",))
    login = Host(name="login", ssh="login", scheduler="slurm", runtime=runtime)
    found = load.warnings(Config(path=PATH, hosts={"login": login}, environments={"a": environment}))
    assert len(found) == count
    assert all(f"tmpfs has no effect on login, where {runtime} runs" in sentence for sentence in found)


def test_a_forward_that_nobody_guards_is_told() -> None:
    environment = Environment.model_validate({"name": "a", "image": "x", "forwards": [6006, "raw:5555"]})
    assert load.warnings(Config(path=PATH, environments={"a": environment})) == (
        "environments.a.forwards: any program of this machine (on Linux: of your login) can connect to "
        "raw:5555, and any web page can send to it.",
    )


class Odd(tomllib.TOMLDecodeError):
    """One that says less than Python's own."""

    def __init__(self) -> None:
        ValueError.__init__(self, "odd")


def test_a_syntax_error_without_a_place_is_a_problem_of_the_file() -> None:
    assert str(diagnostics.of_syntax(Odd())) == "file: is not TOML: odd"
