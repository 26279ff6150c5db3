"""What is loaded at each point of a start: nothing heavy before it is needed. Each point is a fresh interpreter."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kernelbridge
from kernelbridge.channels.endpoints import NAMES
from tests.clients.ports import free_port

PACKAGE = Path(kernelbridge.__file__).parent
SECONDS = 60.0

# Runs the program whose words follow and prints what is loaded at its end.
AT_THE_END = """
import json, sys
before = set(sys.modules)
from kernelbridge.__main__ import main
code = main()
print(json.dumps({"code": code, "loaded": sorted(set(sys.modules) - before)}), file=sys.stderr)
"""
# Runs the launcher until it reaches for a host, and prints what is loaded then, and which ports accept.
AT_THE_FIRST_HOST = """
import json, os, socket, sys
before = set(sys.modules)

def accepts(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0

def heard(event, words):
    if event == "import" and words[0] in ("asyncssh", "docker"):
        loaded = sorted(set(sys.modules) - before - {words[0]})
        with open(sys.argv[2], encoding="utf-8") as file:
            ports = [value for key, value in json.load(file).items() if key.endswith("_port")]
        found = {"loaded": loaded, "bound": sum(map(accepts, ports))}
        print(json.dumps(found), file=sys.stderr, flush=True)
        os._exit(0)

sys.addaudithook(heard)
from kernelbridge.jupyter.entry import main
main()
"""

# -- what may be loaded: of others, with what these may bring; of ours, by room

TYPER = {"typer", "click", "annotated_doc", "typing_extensions", "shellingham", "colorama"}
PYDANTIC = {"pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions"}
JUPYTER_PATHS = {"jupyter_core", "platformdirs"}
CONFIG = TYPER | PYDANTIC | JUPYTER_PATHS
DOCKER = {"docker", "requests", "urllib3", "charset_normalizer", "chardet", "idna", "certifi"} | {
    # What requests and urllib3 take where it is there.
    *("simplejson", "brotli", "brotlicffi", "zstandard", "h2", "socks", "OpenSSL", "win32con"),
}
LAUNCHER = PYDANTIC | JUPYTER_PATHS | {"psutil", "zmq"}
BARE = {"__main__", "cli", "errors", "plain_text"}
READING = BARE | {"config"}
LISTING = (
    READING | {"fleet", "hosts", "kernel", "channels", "protocol", "mailbox", "atomic_files", "jupyter"} | {"files"}
)


# Our imports inside functions: what loads a module late, and may; a reason stands beside each.
LATE = {
    ("__init__.py", "_jupyter_server_extension_points"),
    ("__main__.py", "_list_quickly"),
    ("__main__.py", "_open_fleet"),
    ("__main__.py", "main"),
    ("cli/app.py", "note_text"),
    ("cli/app.py", "_options"),
    # These are loaded while the hosts answer.
    ("cli/commands/gpus.py", "list_all"),
    ("cli/commands/gpus.py", "tell"),
    ("cli/commands/kernels.py", "offer"),
    ("cli/context.py", "out"),
    # What a listing in the time of an ssh command does without, mostly or always.
    ("cli/listings/memory.py", "keep"),
    ("cli/listings/quick.py", "_draw"),
    ("cli/listings/quick.py", "_gpus"),
    ("cli/listings/quick.py", "_kernels"),
    ("cli/listings/quick.py", "_load_tables"),
    ("cli/listings/quick.py", "_offer"),
    ("cli/listings/quick.py", "_start"),
    ("config/remembered.py", "_write"),
    ("fleet/gpu_listing.py", "tickets_waiting"),
    ("hosts/listed_engine.py", "gpus"),
    ("kernel/records.py", "__init__"),
    ("kernel/records.py", "_is_python"),
    ("kernel/records.py", "_is_no_wheel"),
    ("kernel/records.py", "default_folder"),
    ("kernel/records.py", "forget_unreadable"),
    ("cli/context.py", "show_table"),
    ("cli/context.py", "wait"),
    ("cli/status_line.py", "__rich_console__"),
    ("cli/status_line.py", "_draw"),
    # asyncssh, nbclient: few commands need them.
    ("cli/notebook.py", "run"),
    ("cli/commands/ssh.py", "_serve"),
    ("cli/commands/ssh.py", "host_key"),
    ("fleet/fleet.py", "_services"),
    ("fleet/fleet.py", "_workspace_sync"),
    ("fleet/fleet.py", "bind"),
    ("fleet/doctor/trials.py", "container"),
    ("fleet/fleet.py", "board"),
    ("fleet/fleet.py", "make_run"),
    ("fleet/fleet.py", "offered_images"),
    ("fleet/fleet.py", "partitions"),
    ("fleet/fleet.py", "open_terminal"),
    ("fleet/fleet.py", "examine"),
    ("fleet/fleet.py", "list_gpus"),
    ("fleet/fleet.py", "pull"),
    ("hosts/docker/images/prepared_image.py", "_load_fetch"),
    ("hosts/docker/images/prepared_image.py", "_load_fetch_all"),
    ("hosts/pool.py", "cluster"),
    ("hosts/pool.py", "load_ask_ahead"),
    ("hosts/pool.py", "load_docker"),
    ("hosts/transport/lazy.py", "_load_dial"),
    ("hosts/transport/lazy.py", "load_ssh"),
    ("jupyter/entry.py", "main"),
    ("kernel/workspace.py", "_of"),
    # These run in the container, where the image's own packages come late or not at all.
    ("relay/ipykernel_launcher.py", "keep_pipe_private"),
    ("relay/ipykernel_launcher.py", "main"),
    ("relay/kernel_client.py", "load"),
}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A login whose config has this machine's engine, which is not there, for all kernels but one."""
    config = tmp_path / "kernelbridge.toml"
    config.write_text(
        f'[hosts.here]\nssh = "local"\nsocket = "{(tmp_path / "docker.sock").as_posix()}"\n'
        '[environments.here]\nimage = "x"\n',
        "utf-8",
    )
    names = {"KERNELBRIDGE_CONFIG": config, "JUPYTER_DATA_DIR": tmp_path / "data", "JUPYTER_RUNTIME_DIR": tmp_path}
    return {**os.environ, "KERNELBRIDGE_ENVIRONMENT": "far", **{name: str(path) for name, path in names.items()}}


def loaded(program: str, *words: str, environ: dict[str, str]) -> dict[str, Any]:
    """What the program says of itself in its last line."""
    ended = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    said: dict[str, Any] = json.loads(ended.stderr.splitlines()[-1])
    return said


def others(names: list[str]) -> set[str]:
    """The packages that are neither Python's nor ours; cython_runtime is none, but what compiled ones share."""
    tops = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"kernelbridge", "cython_runtime"}
    return {top for top in tops if not top.startswith("_")}


def rooms(names: list[str]) -> set[str]:
    """Our folders, and the files beside them."""
    return {name.split(".")[1] for name in names if name.startswith("kernelbridge.")}


@pytest.mark.parametrize(
    ("words", "packages", "ours"),
    [
        pytest.param(["--help"], TYPER, BARE, id="help"),
        pytest.param(["--version"], TYPER, BARE, id="version"),
        pytest.param(["config"], CONFIG, READING, id="config"),
        pytest.param(["ps"], CONFIG | {"psutil"} | DOCKER, LISTING, id="ps without a host that needs SSH"),
    ],
)
def test_a_command_loads_only_what_it_needs(
    environ: dict[str, str], words: list[str], packages: set[str], ours: set[str]
) -> None:
    found = loaded(AT_THE_END, *words, environ=environ)["loaded"]
    assert others(found) - packages == set()
    assert rooms(found) - ours == set()
    # Of other commands nothing.
    assert {name for name in found if name.startswith("kernelbridge.cli.")} <= {
        *("kernelbridge.cli.app", "kernelbridge.cli.output", "kernelbridge.cli.commands"),
        *("kernelbridge.cli.listings", "kernelbridge.cli.listings.plain"),
        *("kernelbridge.cli.completion", "kernelbridge.cli.commands.setup"),
        *(("kernelbridge.cli.context",) if "config" in rooms(found) else ()),
        *(("kernelbridge.cli.commands.setup.config", "kernelbridge.cli.reference") if words == ["config"] else ()),
        *(
            (
                "kernelbridge.cli.commands.kernels",
                "kernelbridge.cli.filters",
                "kernelbridge.cli.listings.early",
                "kernelbridge.cli.listings.kernel_rows",
                "kernelbridge.cli.listings.memory",
                "kernelbridge.cli.login_prompt",
                "kernelbridge.cli.status_line",
            )
            if words == ["ps"]
            else ()
        ),
    }


def test_a_listing_without_kernels_loads_the_engine_and_neither_tables_nor_ssh_nor_sockets(
    environ: dict[str, str],
) -> None:
    found = loaded(AT_THE_END, "ps", environ=environ)["loaded"]
    assert "docker" in found
    assert {"rich", "zmq", "asyncssh", "jupyter_client", "jupyter_server", "tornado"} & set(found) == set()


# Runs the program whose words follow until asyncssh is reached for, and prints what is loaded then.
AT_THE_FIRST_LOGIN = """
import json, os, sys
before = set(sys.modules)

def heard(event, words):
    if event == "import" and words[0] == "asyncssh":
        print(json.dumps({"loaded": sorted(set(sys.modules) - before)}), file=sys.stderr, flush=True)
        os._exit(0)

sys.addaudithook(heard)
from kernelbridge.__main__ import main
main()
"""


@pytest.mark.parametrize("word", ["ps", "gpus"])
def test_a_listing_logs_in_before_it_loads_what_it_lists_with(environ: dict[str, str], word: str) -> None:
    Path(environ["KERNELBRIDGE_CONFIG"]).write_text('[hosts.far]\nssh = "nobody@127.0.0.1:1"\n', "utf-8")
    found = loaded(AT_THE_FIRST_LOGIN, word, environ=environ)["loaded"]
    assert "kernelbridge.hosts.pool" in found
    assert others(found) & {"docker", "rich", "psutil", "zmq", "jupyter_client"} == set()
    assert {"kernelbridge.fleet.fleet", "kernelbridge.fleet.kernel_listing"} & set(found) == set()


def test_the_launcher_binds_its_ports_before_it_loads_anything_for_its_host(
    environ: dict[str, str], tmp_path: Path
) -> None:
    Path(environ["KERNELBRIDGE_CONFIG"]).write_text(
        '[hosts.far]\nssh = "nobody@127.0.0.1:1"\n[environments.far]\nimage = "x"\n', "utf-8"
    )
    file = tmp_path / "connection.json"
    ports = {f"{name}_port": free_port() for name in NAMES}
    file.write_text(json.dumps({**ports, "ip": "127.0.0.1", "transport": "tcp", "key": "k"}), "utf-8")
    said = loaded(AT_THE_FIRST_HOST, "-f", str(file), environ=environ)
    assert said["bound"] == len(NAMES)
    assert others(said["loaded"]) - LAUNCHER == set()
    assert rooms(said["loaded"]) - (LISTING - {"__main__", "cli"}) == set()


def test_an_import_inside_a_function_is_one_of_those_that_may_be_late() -> None:
    assert set(_late_imports()) == LATE


def _late_imports() -> Iterator[tuple[str, str]]:
    for path in PACKAGE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and any(
                isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(function)
            ):
                yield path.relative_to(PACKAGE).as_posix(), function.name
