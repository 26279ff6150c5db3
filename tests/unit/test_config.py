"""config.py, complaints.py and values.py: what the user wrote, and every complaint about it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from kernelbridge import complaints, config
from kernelbridge.config import Config, Environment, Host, Mount
from kernelbridge.errors import ConfigInvalid, ConfigMissing, UnknownEnvironment, UnknownHost

PATH = Path("/home/ada/kernelbridge.toml")
README_EXAMPLE = """
[hosts.lab]
ssh = "lab"                      # an alias of ~/.ssh/config

[environments.pytorch]
display_name = "Docker-GPU (remote)"
hosts = ["lab"]
image = "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"
gpus = 1
shm_size = "8g"
mounts = ["/data:/data:ro", "~/.cache/huggingface:/cache/hf"]
env = { HF_HOME = "/cache/hf" }
"""


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


def test_the_example_of_the_design_is_read_as_meant() -> None:
    loaded = config.parse(README_EXAMPLE, PATH)
    assert loaded.path == PATH
    assert loaded.hosts == {"lab": Host(name="lab", ssh="lab")}
    environment = loaded.environment("pytorch")
    assert environment.gpus == 1
    assert environment.shm_size == 8 << 30
    assert environment.mounts == (
        Mount(source="/data", target="/data", read_only=True),
        Mount(source="~/.cache/huggingface", target="/cache/hf"),
    )
    assert environment.env == {"HF_HOME": "/cache/hf"}
    assert loaded.hosts_of(environment) == (Host(name="lab", ssh="lab"),)


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
        ("[hosts.lab]", "hosts.lab.ssh", "is missing; wanted: text"),
        ('[hosts.lab]\nssh = "-oProxyCommand=x"', "hosts.lab.ssh", "must be an alias"),
        ('[hosts.lab]\nssh = "a b"', "hosts.lab.ssh", "must be an alias"),
        ('[hosts.lab]\nssh = "lab"\ngpu = 1', "hosts.lab.gpu", "unknown key; did you mean `gpus` of an environment?"),
        ('[hosts.lab]\nssh = "lab"\nsokcet = 1', "hosts.lab.sokcet", "unknown key; did you mean `socket`?"),
        ('[hosts.lab]\nssh = "lab"\nsocket = "x"', "hosts.lab.socket", "must be a path that begins with /"),
        ('[hosts."a b"]\nssh = "lab"', "hosts.a b", "is no name for a host"),
        ('[environments.python3]\nimage = "x"', "environments.python3", "may not be called python..."),
        ('[environments.Torch]\nimage = "x"', "environments.Torch", "is no name for an environment"),
        ('[environments.-a]\nimage = "x"', "environments.-a", "is no name for an environment"),
        ("[environments.a]", "environments.a.image", "is missing; wanted: image name"),
        ('[environments.a]\nimage = "-x"', "environments.a.image", "wanted: image name"),
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
        "environments.b.image",
        "environments.c.mounts.0",
        "environments.c.mounts.1",
        "environments.python3.hosts.0",
        "environments.b.display_name",
        "environments.c.display_name",
    ]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ({"a": None}, {"a": "Docker-GPU (remote)"}),
        ({"a": "Mine"}, {"a": "Mine"}),
        ({"a": None, "b": None}, {"a": "Docker-GPU (remote), a", "b": "Docker-GPU (remote), b"}),
        ({"a": None, "b": "Mine"}, {"a": "Docker-GPU (remote)", "b": "Mine"}),
        ({"a": None, "b": "Docker-GPU (remote)"}, {"a": "Docker-GPU (remote), a", "b": "Docker-GPU (remote)"}),
    ],
)
def test_display_names_are_short_where_they_can_be_and_never_the_same(
    written: dict[str, str | None], shown: dict[str, str]
) -> None:
    environments = {
        name: Environment(name=name, image="x", display_name=display_name) for name, display_name in written.items()
    }
    assert config.display_names(Config(path=PATH, environments=environments)) == shown


def test_a_written_display_name_may_not_be_what_another_gets_by_default() -> None:
    found = problems_of(
        '[environments.a]\nimage = "x"\n[environments.b]\nimage = "x"\n'
        '[environments.c]\nimage = "x"\ndisplay_name = "Docker-GPU (remote), a"\n'
    )
    assert list(found) == ["environments.a.display_name", "environments.c.display_name"]
    assert "is also the name of c" in found["environments.a.display_name"]


def test_without_a_host_this_machine_is_the_only_one() -> None:
    loaded = config.parse('[environments.a]\nimage = "x"\n', PATH)
    assert list(loaded.hosts) == ["local"]
    assert loaded.host("local").is_local
    assert loaded.hosts_of(loaded.environment("a")) == (Host(name="local", ssh="local"),)


def test_an_environment_without_hosts_may_run_on_all_in_their_order() -> None:
    loaded = config.parse(
        '[hosts.two]\nssh = "b"\n[hosts.one]\nssh = "a"\n[environments.a]\nimage = "x"\n'
        '[environments.b]\nimage = "x"\nhosts = ["one"]\n',
        PATH,
    )
    assert [host.name for host in loaded.hosts_of(loaded.environment("a"))] == ["two", "one"]
    assert [host.name for host in loaded.hosts_of(loaded.environment("b"))] == ["one"]
    assert not loaded.host("two").is_local


def test_unknown_names_come_with_the_nearest_known_one() -> None:
    loaded = config.parse(README_EXAMPLE, PATH)
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
    found = config.warnings(Config(path=PATH, environments={"a": environment}))
    assert bool(found) is is_warned_of
    assert all(f'secrets = ["{name}"]' in sentence and text not in sentence for sentence in found)


def test_words_that_slurm_does_not_hear_are_told() -> None:
    environment = Environment(name="a", image="x", gpus=1, gpu_model="H200")
    login = Host(name="login", ssh="login", scheduler="slurm")
    found = config.warnings(Config(path=PATH, hosts={"login": login}, environments={"a": environment}))
    assert found == (
        "environments.a.gpu_model means nothing on login, where Slurm gives the GPUs: "
        "write Slurm's own words in `gres`.",
    )
    told = environment.model_copy(update={"gres": "gpu:h200:1"})
    assert config.warnings(Config(path=PATH, hosts={"login": login}, environments={"a": told})) == ()


def test_the_config_is_looked_for_where_it_is_named_then_in_the_variable_then_at_jupyter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    environ = {"KERNELBRIDGE_CONFIG": str(tmp_path / "other.toml")}
    assert config.find_path(environ, tmp_path / "named.toml") == tmp_path / "named.toml"
    assert config.find_path(environ) == tmp_path / "other.toml"
    assert config.find_path({}) == tmp_path / "kernelbridge.toml"
    assert config.find_path({"KERNELBRIDGE_CONFIG": ""}) == tmp_path / "kernelbridge.toml"
    assert config.find_path({}, Path("near.toml")).is_absolute()
    assert config.find_path({}, Path("~/x.toml")) == Path.home() / "x.toml"


def test_a_missing_default_file_is_an_empty_config_and_a_missing_named_one_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    empty = config.load(config.find_path({}))
    assert empty.environments == {}
    assert list(empty.hosts) == ["local"]
    with pytest.raises(ConfigMissing, match=r"named\.toml.*there is no such file"):
        config.load(tmp_path / "named.toml")
    with pytest.raises(ConfigMissing, match="directory"):
        config.load(tmp_path)


def test_a_file_that_is_not_utf8_is_a_problem_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "kernelbridge.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigInvalid, match="file: is not UTF-8 text"):
        config.load(path)
    path.write_text(README_EXAMPLE, "utf-8")
    assert list(config.load(path).environments) == ["pytorch"]


def test_what_the_user_wrote_cannot_be_changed() -> None:
    environment = Environment(name="a", image="x")
    with pytest.raises(ValidationError, match="frozen"):
        environment.image = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("network", "asked_for", "has_debugger"),
    [("bridge", False, True), ("none", False, True), ("host", False, False), ("host", True, True)],
)
def test_the_debugger_is_off_on_the_hosts_network_unless_asked_for(
    network: str, asked_for: bool, has_debugger: bool
) -> None:
    environment = Environment(name="a", image="x", network=network, debug_on_host_network=asked_for)
    assert environment.has_debugger is has_debugger


def test_the_schema_accepts_the_example_and_refuses_unknown_keys() -> None:

    schema = json.loads(json.dumps(config.schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    good = tomllib.loads(README_EXAMPLE)
    jsonschema.validate(good, schema)
    mistakes: list[dict[str, Any]] = [
        {"hots": {}},
        {"hosts": {"lab": {}}},
        {"environments": {"a": {"image": "x", "gpu": 1}}},
    ]
    for wrong in mistakes:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    jsonschema.validate({}, schema)


def test_how_long_a_kernel_lives_without_its_owner_is_written_as_people_say_times() -> None:
    given = 'persist = true\nlost_grace = "36h"\nmax_lifetime = "7d"\nidle_timeout = "90m"\nkeep_exited = 60\n'
    environment = with_environment(given + 'journal_size = "1g"')
    assert environment.persist
    assert (environment.lost_grace, environment.max_lifetime) == (129600, 604800)
    assert (environment.idle_timeout, environment.keep_exited) == (5400, 60)
    assert environment.journal_size == 1 << 30
    untold = with_environment("")
    assert (untold.persist, untold.lost_grace, untold.keep_exited) == (False, 86400, 259200)
    assert (untold.max_lifetime, untold.idle_timeout, untold.journal_size) == (None, None, 256 << 20)


@pytest.mark.parametrize(("value", "is_right"), [("24h", True), (90, True), (0.5, True), ("24x", False), (0, False)])
def test_the_schema_knows_what_a_time_is(value: object, is_right: bool) -> None:
    written = {"environments": {"a": {"image": "x", "lost_grace": value}}}
    found = list(jsonschema.Draft202012Validator(config.schema()).iter_errors(written))
    assert (found == []) is is_right


def test_every_key_says_what_it_is() -> None:
    for model in (Host, Environment):
        for name, field in model.model_fields.items():
            if name != "name":
                assert field.title, name
                assert field.description, name
                assert field.description.endswith("."), name


def test_a_syntax_error_without_a_place_is_a_problem_of_the_file() -> None:
    assert str(complaints.of_syntax(tomllib.TOMLDecodeError("odd"))) == "file: is not TOML: odd"
