"""kernel/request.py: what the kernel process gets of this machine's variables, and how long a step may take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Forward, Workspace
from kernelbridge.files.project import Project
from kernelbridge.kernel.request import ALWAYS_PASSED, RunCommand, launch_order, secret_values
from kernelbridge.protocol.terminal import WindowSize
from tests.made_engines import LAB, TWO, launch_request

HERE = {"TOKEN": "hunter2", "LANG": "de", "PATH": "/bin", "HOME": "/home/ada", "AWS_KEY": "not asked for"}


def env_of(**keys: Any) -> Any:
    environ = keys.pop("environ", HERE)
    return launch_order(launch_request(environ=environ, **keys), launch=1, session="s")["env"]


def test_of_this_machines_variables_a_kernel_gets_those_that_its_environment_names_and_nothing_else() -> None:
    assert env_of() == {}
    assert env_of(pass_env=("LANG",), secrets=("TOKEN",)) == {"LANG": "de", "TOKEN": "hunter2"}


def test_what_jupyter_and_the_clock_need_is_passed_unasked() -> None:
    assert ALWAYS_PASSED == ("JPY_SESSION_NAME", "TZ")
    here = {**HERE, "TZ": "Europe/Vienna", "JPY_SESSION_NAME": "work.ipynb"}
    assert env_of(environ=here) == {"TZ": "Europe/Vienna", "JPY_SESSION_NAME": "work.ipynb"}


def test_a_variable_that_is_not_set_here_is_left_out() -> None:
    assert env_of(pass_env=("MISSING", "LANG"), secrets=("GONE",)) == {"LANG": "de"}


def test_an_empty_variable_is_passed_as_it_is() -> None:
    assert env_of(pass_env=("EMPTY",), environ={"EMPTY": ""}) == {"EMPTY": ""}


def test_a_variable_of_this_machine_comes_before_the_environments_own_value() -> None:
    assert env_of(env={"LANG": "C", "MODE": "fast"}, pass_env=("LANG",)) == {"LANG": "de", "MODE": "fast"}
    assert env_of(env={"LANG": "C", "PATH": "/opt"}) == {"LANG": "C", "PATH": "/opt"}


def test_an_order_names_the_launch_the_session_the_folder_and_the_clients_arguments() -> None:
    request = launch_request(workdir="/work")
    order = launch_order(request, launch=3, session="abc")
    assert (order["do"], order["launch"], order["session"], order["cwd"]) == ("spawn", 3, "abc", "/work")
    assert launch_order(launch_request(), launch=1, session="s")["cwd"] == ""


def test_caches_have_their_variables_where_they_are_wanted_and_the_environments_own_win() -> None:
    got = env_of(cache=True, env={"HF_HOME": "/mine"})
    assert (got["HF_HOME"], got["PIP_CACHE_DIR"]) == ("/mine", "/var/cache/kernelbridge/pip")
    assert {"TORCH_HOME", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"} < set(got)


def test_a_setup_is_part_of_the_order_and_of_no_argv() -> None:
    order = launch_order(launch_request(setup=("make it",), setup_every="restart"), launch=1, session="s")
    assert (order["setup"], order["setup_every"]) == (["make it"], "restart")
    assert "setup" not in launch_order(launch_request(), launch=1, session="s")
    assert not [word for word in order["argv"] if "make" in word]


def test_a_clients_arguments_come_last_on_the_command_line() -> None:
    plain = launch_request()
    more = type(plain)(**{**vars(plain), "arguments": ("--a", "--b=c")})
    argv = launch_order(more, launch=1, session="s")["argv"]
    assert argv == [*launch_order(plain, launch=1, session="s")["argv"], "--a", "--b=c"]


def test_a_request_that_is_printed_shows_no_variable_of_this_machine() -> None:
    assert "hunter2" not in repr(launch_request(environ=HERE, secrets=("TOKEN",)))


def test_a_cell_finds_its_board_on_this_machine_where_its_port_has_the_same_number() -> None:
    board = {"TENSORBOARD_PROXY_URL": "http://localhost:%PORT%/"}
    assert env_of(forwards=(Forward(here=6006, there=6006),)) == board
    assert env_of(forwards=(Forward(here=80, there=6006), Forward(here=5, there=5, is_raw=True))) == {}
    written = {"TENSORBOARD_PROXY_URL": "https://boards.lab/%PORT%/"}
    assert env_of(forwards=(Forward(here=6006, there=6006),), env=written) == written


# -- a command in the place of a kernel


def command_order(command: RunCommand, **keys: Any) -> dict[str, Any]:
    return launch_order(replace(launch_request(**keys), command=command), launch=1, session="s")


def test_a_command_is_ordered_with_its_words_its_folder_and_all_that_a_kernel_would_have() -> None:
    order = command_order(RunCommand(argv=("ls", "-l")), workdir="/work", env={"A": "b"}, setup=("make it",))
    assert (order["argv"], order["cwd"], order["env"], order["needs"]) == (["ls", "-l"], "/work", {"A": "b"}, [])
    assert (order["setup"], order["command"]) == (["make it"], {"window": None, "waits": False})
    assert command_order(RunCommand(argv=("ls",), folder="/mine"), workdir="/work")["cwd"] == "/mine"


def test_a_container_that_waits_is_ordered_as_such() -> None:
    assert command_order(RunCommand(), workdir="/work")["command"] == {"window": None, "waits": True}
    assert [RunCommand().kind, RunCommand(argv=("ls",)).kind] == ["up", "run"]
    assert RunCommand(argv=None).kind == "run", "it is joined"


@pytest.mark.parametrize(
    ("command", "name"), [(None, "kernel"), (RunCommand(argv=("ls",)), "command"), (RunCommand(), "container")]
)
def test_what_runs_has_a_name_for_people(command: RunCommand | None, name: str) -> None:
    assert replace(launch_request(), command=command).workload == name


def test_a_command_on_a_terminal_is_told_its_size_and_kind_unless_the_environment_says_another() -> None:
    shown = RunCommand(argv=("vim",), window=WindowSize(80, 24))
    order = command_order(shown, environ={"TERM": "xterm-kitty"})
    assert order["command"]["window"] == {"columns": 80, "rows": 24}
    assert order["env"] == {"TERM": "xterm-kitty"}
    assert command_order(shown, environ={"A": "b"})["env"] == {"TERM": "xterm-256color"}
    assert command_order(shown, env={"TERM": "dumb"})["env"] == {"TERM": "dumb"}
    assert command_order(RunCommand(argv=("ls",)), environ={"TERM": "xterm-kitty"})["env"] == {}


def test_a_request_can_be_for_other_hosts_and_last_and_is_else_as_it_was() -> None:
    asked = launch_request(workdir="/work")
    changed = asked.changed(hosts=(TWO,), persist=True)
    assert (changed.hosts, changed.environment.persist, changed.environment.workdir) == ((TWO,), True, "/work")
    assert asked.changed(persist=True).hosts == (LAB,)
    assert not asked.environment.persist
    assert asked.changed(persist=False) == asked


# -- where it starts


PROJECT = Project(
    workspace=Workspace(local="."),
    local_root=Path("/home/ada/thing"),
    container_root="/workspace",
    container_folder="/workspace/notebooks",
    name="thing-0123456789",
)


@pytest.mark.parametrize(
    ("project", "command_folder", "workdir", "folder"),
    [
        (None, "", None, ""),
        (PROJECT, "", None, "/workspace/notebooks"),
        (PROJECT, "", "/work", "/work"),
        (PROJECT, "/data", "/work", "/data"),
        (None, "/data", None, "/data"),
    ],
)
def test_it_starts_where_the_command_the_environment_or_the_workspace_says(
    project: Project | None, command_folder: str, workdir: str | None, folder: str
) -> None:
    request = replace(launch_request(workdir=workdir), project=project)
    run = replace(request, command=RunCommand(argv=("true",), folder=command_folder))
    assert launch_order(run, launch=1, session="s")["cwd"] == folder
    if not command_folder:
        assert launch_order(request, launch=1, session="s")["cwd"] == folder


def test_a_request_names_the_folder_that_it_came_from_to_no_container() -> None:
    request = replace(launch_request(), folder="/home/ada/secret project")
    assert "secret project" not in str(launch_order(request, launch=1, session="s"))


def test_what_nobody_may_read_is_what_secrets_and_passed_variables_have_the_longest_first() -> None:
    environ = {"TOKEN": "s3cr3t", "WANDB": "s3cr3t-and-more", "ONE": "1", "EDITOR": "nano"}
    request = launch_request(environ=environ, secrets=["TOKEN", "ABSENT"], pass_env=["WANDB", "ONE"])
    assert secret_values(request) == ["s3cr3t-and-more", "s3cr3t"]
