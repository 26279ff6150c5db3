"""hosts/bootstrap.py: how the relay's code and its order get into a container."""

from __future__ import annotations

import ast
import io
import json
import signal
import subprocess
import sys
import token
import tokenize
from pathlib import Path

import pytest

from kernelbridge.hosts import bootstrap
from kernelbridge.kernel.command.terminal import TERMINAL_MODULE
from kernelbridge.protocol.exit_codes import EXIT_OLD_PYTHON, OLD_PYTHON_SAYS
from tests.made_relay import moved


def test_no_word_of_a_user_stands_in_the_commands_that_the_host_can_see() -> None:
    assert bootstrap.boot_argv("python3")[:2] == ["python3", "-c"]
    assert bootstrap.bridge_argv("/opt/py")[:4] == ["/opt/py", "-I", "-S", "-c"]
    beside = bootstrap.beside_argv("/opt/py", "beside.terminal")
    assert beside[:4] == ["/opt/py", "-I", "-S", "-c"]
    forward = bootstrap.forward_argv("python3")
    for argv in (bootstrap.boot_argv("python3"), bootstrap.bridge_argv("python3"), beside, forward):
        compile(argv[argv.index("-c") + 1], "<argv>", "exec")


def test_the_line_for_the_container_has_the_whole_relay_and_the_order() -> None:
    spawn = bootstrap.spawn_order(launch=1, session="s", env={"TOKEN": "x"}, cwd="/w")
    line = bootstrap.order_line("k1", spawn, {"persist": True}, {"folder": "/j", "bytes": 9})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    said = json.loads(line)
    assert (said["kernel"], said["spawn"]["env"]) == ("k1", {"TOKEN": "x"})
    assert (said["terms"], said["journal"]) == ({"persist": True}, {"folder": "/j", "bytes": 9})
    package = Path(bootstrap.__file__).parents[1]
    shipped = {
        f"{room}/{path.name}"
        for room in ("protocol", "relay", "relay/beside", "relay/gpus", "relay/process")
        for path in (package / room).glob("*.py")
    }
    by_path = {"bridge.py", "ipykernel_launcher.py"}
    assert set(said["files"]) == shipped | by_path | {"__init__.py"}
    assert {said["files"][name] == said["files"][f"relay/{name}"] for name in by_path} == {True}
    for name, text in said["files"].items():
        compile(text, name, "exec")


@pytest.mark.parametrize("argv", [bootstrap.boot_argv("python3"), bootstrap.job_boot_argv("python3")])
def test_a_python_that_is_too_old_says_so_before_anything_else(argv: list[str]) -> None:
    old = f"import sys\nsys.version_info = (3, 7, 17)\nexec({argv[2]!r})"
    ended = subprocess.run([sys.executable, "-c", old], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (ended.returncode, ended.stderr) == (EXIT_OLD_PYTHON, f"{OLD_PYTHON_SAYS}3.7\n")


@pytest.mark.parametrize("argv", [bootstrap.boot_argv("python3"), bootstrap.job_boot_argv("python3")])
def test_what_starts_first_in_an_image_parses_in_old_pythons(argv: list[str]) -> None:
    code = argv[2]
    assert code.isascii()
    read = ast.parse(code, feature_version=(3, 4))
    # Nor is there anything that Python 2.7 would not parse: what is in a string is read after the version's check.
    assert new_since_python_2(read, code) == []
    assert "sys.exit" in code.partition("import json")[0]


@pytest.mark.parametrize(
    "code",
    [
        "x: int = 1",
        "def f(a: int): pass",
        "def f() -> int: pass",
        "def f(*, a): pass",
        "f'{x}'",
        "rb'x'",
        "first, *rest = 1, 2",
        "[*first, 2]",
        "{**first}",
        "print('x', file=out)",
        "raise ValueError() from None",
        "def f():\n    x = 1\n    def g():\n        nonlocal x",
        "def f():\n    yield from g()",
        "async def f(): pass",
        "a @ b",
        "class A(metaclass=B): pass",
        "1_000",
    ],
)
def test_what_python_2_does_not_parse_is_seen(code: str) -> None:
    assert new_since_python_2(ast.parse(code), code)


NEW_NODES = (ast.AnnAssign, ast.JoinedStr, ast.Starred, ast.Nonlocal, ast.YieldFrom, ast.AsyncFunctionDef, ast.MatMult)


def new_since_python_2(read: ast.AST, code: str) -> list[str]:
    """Name what of Python code 2.7 does not parse."""
    found = []
    for node in ast.walk(read):
        match node:
            case ast.FunctionDef(returns=returns):
                is_new = returns is not None
            case ast.arguments(kwonlyargs=named, posonlyargs=placed):
                is_new = bool(named or placed)
            case ast.arg(annotation=annotation):
                is_new = annotation is not None
            case ast.ClassDef(keywords=keywords):
                is_new = bool(keywords)
            case ast.Raise(cause=cause):
                is_new = cause is not None
            case ast.Dict(keys=keys):
                is_new = None in keys
            case ast.Name(id=name):
                is_new = name == "print"
            case _:
                is_new = isinstance(node, NEW_NODES)
        found += [ast.unparse(node)] if is_new else []
    words = list(tokenize.generate_tokens(io.StringIO(code).readline))
    found += [word.string for word in words if word.type == token.NUMBER and "_" in word.string]
    return found + [word.string for word in words if word.type == token.STRING and word.string[0] not in "'\""]


def test_an_order_names_gpus_and_what_ends_it_only_where_it_is_said() -> None:
    spawn = bootstrap.spawn_order(launch=1, session="s", env={}, cwd="")
    plain = json.loads(bootstrap.order_line("k1", spawn, {}, {}))
    assert not plain.keys() & {"gpus", "ends_with_stdin", "environ"}
    cards = {"ids": ["GPU-a"], "locks": "/locks"}
    said = json.loads(bootstrap.order_line("k1", spawn, {}, {}, gpus=cards, ends_with_stdin=True, environ={"A": "b"}))
    assert (said["gpus"], said["ends_with_stdin"], said["environ"]) == (cards, True, {"A": "b"})


def test_a_program_beside_a_relay_is_one_of_the_relays_own_and_an_older_relay_has_none(tmp_path: Path) -> None:
    (tmp_path / "kernelbridge_relay").symlink_to(Path(bootstrap.__file__).parents[1])
    for module, has_ended_well in ((TERMINAL_MODULE, True), ("beside.of_tomorrow", False)):
        words = moved(bootstrap.beside_argv(sys.executable, module), tmp_path)
        ended = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True)
        assert (ended.returncode == 0, ended.stdout) == (has_ended_well, b"")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["--HistoryManager.hist_file=:memory:"]),
        (["--colors=NoColor"], ["--HistoryManager.hist_file=:memory:", "--colors=NoColor"]),
        (["--HistoryManager.hist_file=:memory:"], ["--HistoryManager.hist_file=:memory:"]),
        (["--HistoryManager.hist_file=/w/history"], ["--HistoryManager.hist_file=/w/history"]),
    ],
)
def test_a_kernel_hears_once_where_its_history_is(arguments: list[str], said: list[str]) -> None:
    order = bootstrap.spawn_order(launch=1, session="s", env={}, cwd="", arguments=arguments)
    assert order["argv"][-len(said) - 1 :] == ["--Session.session={session}", *said]


def test_an_order_for_a_users_command_has_its_words_as_they_are() -> None:
    window = {"columns": 80, "rows": 24}
    order = bootstrap.command_order(
        launch=2, session="s", env={"A": "b"}, cwd="/w", argv=("sh", "-c", "{python}"), window=window, setup=["make"]
    )
    assert order == {
        "do": "spawn",
        "launch": 2,
        "session": "s",
        "argv": ["sh", "-c", "{python}"],
        "env": {"A": "b"},
        "cwd": "/w",
        "needs": [],
        "command": {"window": window, "waits": False},
        "setup": ["make"],
    }


def test_without_a_command_the_container_waits_until_it_is_ended() -> None:
    order = bootstrap.command_order(launch=1, session="s", env={}, cwd="", argv=(), window=None)
    assert order["command"] == {"window": None, "waits": True}
    *words, code = (word.replace("{python}", sys.executable) for word in order["argv"])
    alarm = "import signal; signal.setitimer(signal.ITIMER_REAL, 0.02)\n"
    assert subprocess.run([*words, alarm + code], timeout=20).returncode == -signal.SIGALRM
