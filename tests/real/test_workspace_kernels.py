"""A project's folder in the container: the command and the kernel start in it, edits arrive, breakpoints bind."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clients.driver import NodeClient
from tests.clients.notebook import notebook
from tests.clients.specs import installed_spec
from tests.clients.terminal import Ended
from tests.rig.daemon import SLOW, wait_until
from tests.rig.lab import PREFIX
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def project(bridge_env: Laptop) -> Path:
    """A small project in the user's home."""
    root = bridge_env.home / "proj"
    (root / "pkg").mkdir(parents=True)
    (root / "notebooks").mkdir()
    (root / "pyproject.toml").write_text("")
    (root / "pkg" / "__init__.py").write_text("")
    (root / "pkg" / "model.py").write_text("def answer():\n    value = 41\n    return value + 1\n")
    return root


@pytest.fixture(autouse=True)
def nothing_stays(rig: Rig, bridge_env: Laptop) -> Iterator[None]:
    yield
    rig.engine.sweep()


def kernelbridge_in(folder: Path, laptop: Laptop, *words: str) -> Ended:
    done = subprocess.run(
        [sys.executable, "-m", "kernelbridge", *words],
        env=laptop.env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90 * SLOW,
        check=False,
    )
    return Ended(code=done.returncode, out=done.stdout, err=done.stderr)


def test_a_command_runs_in_the_project_and_its_results_come_back(rig: Rig, bridge_env: Laptop, project: Path) -> None:
    bridge_env.write_environment(rig.image, workspace={"local": ".", "sync": "both", "pull": ["runs/**"]})
    made = "os.makedirs('runs'); open('runs/out', 'w').write(str(pkg.model.answer()))"
    script = f"import pkg.model, os; {made}; print(os.getcwd())"
    ended = kernelbridge_in(project, bridge_env, "run", "test", "--", "python", "-c", script)
    assert (ended.code, ended.out) == (0, "/workspace\n"), ended.err
    assert (project / "runs" / "out").read_text() == "42"
    below = kernelbridge_in(project / "notebooks", bridge_env, "run", "test", "--", "pwd")
    assert below.out == "/workspace/notebooks\n", below.err


def test_vscode_stops_in_the_projects_own_module_steps_into_it_and_sees_edits(
    rig: Rig, bridge_env: Laptop, project: Path
) -> None:
    bridge_env.write_environment(rig.image, workspace=".")
    settings = installed_spec(bridge_env).settings(cwd=str(project / "notebooks"))
    module = str(project / "pkg" / "model.py")
    cell = "import pkg.model\nfound = pkg.model.answer()\nprint(found)"
    with NodeClient("vscode_raw.mjs", settings) as code:
        code.ask("start")
        assert code.execute("import os, sys; sys.path.insert(0, os.path.abspath('..')); print(os.getcwd())")[
            "screen"
        ] == ("/workspace/notebooks\n")
        # A breakpoint in the file here, and one in the cell.
        hit = code.ask("debug", cells=["x = 1", cell], debug=1, lines=[2], files={module: [3]}, just_my_code=True)
        assert all(one["verified"] for one in hit["breakpoints"]), hit["breakpoints"]
        assert (hit["reason"], hit["line"]) == ("breakpoint", 2)
        assert hit["cell_uri"].endswith("#cell-1")
        assert not hit["source"].get("sourceReference")
        stepped = code.ask("stepIn")
        assert (stepped["source"]["path"], stepped["line"]) == (module, 2)
        assert not stepped["source"].get("sourceReference")
        went_on = code.ask("continue")
        assert (went_on["source"]["path"], went_on["line"], went_on["variables"]["value"]) == (module, 3, "41")
        assert code.ask("continue")["cell"]["screen"] == "42\n"
        code.ask("disconnect")
        assert code.execute("print(pkg.model.__file__)")["screen"] == "/workspace/pkg/model.py\n"
        # An edit is there within a second, as a cell sees it.
        (project / "pkg" / "model.py").write_text("def answer():\n    raise ValueError('from here')\n")
        began = time.monotonic()
        read = "print(open('/workspace/pkg/model.py').read().count('from here'))"
        wait_until(lambda: code.execute(read)["screen"] == "1\n", "the edit", 10)
        assert time.monotonic() - began < 1.0 * SLOW
        # The traceback names the file here, of which VS Code makes a link.
        failed = code.execute("import importlib; importlib.reload(pkg.model).answer()")
        assert module in failed["screen"], failed


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=ann", "-c", "user.email=ann@example.org"]
    return subprocess.run(["git", "-C", root, *who, *words], capture_output=True, text=True, check=True).stdout


def commit_all(root: Path) -> None:
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "one")


def test_a_run_takes_a_branch_as_it_is_there_and_leaves_the_project_alone(
    rig: Rig, bridge_env: Laptop, project: Path
) -> None:
    bridge_env.write_environment(rig.image, workspace=".")
    commit_all(project)
    (project / "pkg" / "model.py").write_text("def answer():\n    return 'not committed'\n")
    before = git(project, "status", "--porcelain")
    words = ["python", "-c", "import pkg.model; print(pkg.model.answer())"]
    ended = kernelbridge_in(project, bridge_env, "run", "--git", "main", "test", "--", *words)
    assert (ended.code, ended.out) == (0, "42\n"), ended.err
    assert kernelbridge_in(project, bridge_env, "run", "test", "--", *words).out == "not committed\n"
    assert git(project, "status", "--porcelain") == before
    unknown = kernelbridge_in(project, bridge_env, "run", "--git", "nonesuch", "test", "--", "true")
    assert "has no git revision 'nonesuch'" in unknown.err
    assert list((bridge_env.data_dir / "kernelbridge" / "checkouts").iterdir()) == []


BOTH = {"local": ".", "sync": "both", "pull": ["runs/**", "pkg/**"]}
WRITES = "mkdir -p runs; echo $1 > runs/out; echo changed > pkg/model.py; pwd"


def test_results_of_a_branch_come_into_the_project_whose_code_stays(
    rig: Rig, bridge_env: Laptop, project: Path
) -> None:
    # The project is a folder of the repository, and the repository has more.
    (project / "notebooks" / "pyproject.toml").write_text("")
    (project / "notebooks" / "pkg").mkdir()
    (project / "notebooks" / "pkg" / "model.py").write_text("committed")
    commit_all(project)
    inner = project / "notebooks"
    (inner / "pkg" / "model.py").write_text("not committed")
    bridge_env.write_environment(rig.image, workspace=BOTH)
    script = f"cat pkg/model.py; ls; {WRITES}"
    ended = kernelbridge_in(inner, bridge_env, "run", "--git", "main", "test", "--", "sh", "-c", script, "sh", "one")
    assert (ended.code, ended.out) == (0, "committedpkg\npyproject.toml\n/workspace\n"), ended.err
    assert (inner / "runs" / "out").read_text() == "one\n"
    assert (inner / "pkg" / "model.py").read_text() == "not committed"
    # Another result of that name is the user's own by now.
    (inner / "runs" / "out").write_text("mine")
    again = kernelbridge_in(inner, bridge_env, "run", "--git", "main", "test", "--", "sh", "-c", WRITES, "sh", "two!")
    assert again.code == 0, again.err
    assert (inner / "runs" / "out").read_text() == "mine"
    (beside,) = (inner / "runs").glob("out.of-*-on-lab")
    assert beside.read_text() == "two!\n"
    assert beside.name in again.err


@pytest.mark.parametrize("of_branch", [False, True], ids=["the project", "a branch"])
def test_results_of_a_run_that_was_left_come_to_whoever_attaches(
    rig: Rig, bridge_env: Laptop, project: Path, of_branch: bool
) -> None:
    bridge_env.write_environment(rig.image, workspace=BOTH)
    commit_all(project)
    words = ["--git", "main"] if of_branch else []
    script = "mkdir -p runs; echo first > runs/first; until [ -e /tmp/go ]; do sleep 0.1; done; echo last > runs/last"
    begun = kernelbridge_in(project, bridge_env, "run", "-d", *words, "test", "--", "sh", "-c", script)
    assert begun.code == 0, begun.err
    kernel = begun.out.strip()
    assert not (project / "runs").exists()
    # From another folder: the project is that of the run.
    attaching = subprocess.Popen(
        [sys.executable, "-m", "kernelbridge", "attach", kernel], env=bridge_env.env, cwd=bridge_env.home
    )
    try:
        wait_until((project / "runs" / "first").exists, "the first result", 30)
        assert kernelbridge_in(project, bridge_env, "exec", kernel, "--", "touch", "/tmp/go").code == 0
        assert attaching.wait(60 * SLOW) == 0
    finally:
        attaching.kill()
        attaching.wait()
    assert (project / "runs" / "last").read_text() == "last\n"
    assert (project / "pkg" / "model.py").read_text().startswith("def answer")
    assert rig.engine.kernels() == []


def test_a_run_that_ended_while_nobody_was_there_still_gives_its_results(
    rig: Rig, bridge_env: Laptop, project: Path
) -> None:
    bridge_env.write_environment(rig.image, workspace=BOTH)
    script = "sleep 1; mkdir -p runs; echo late > runs/out"
    kernel = kernelbridge_in(project, bridge_env, "run", "-d", "test", "--", "sh", "-c", script).out.strip()
    wait_until(lambda: '"exited"' in kernelbridge_in(project, bridge_env, "ps", "--json").out, "its end", 30)
    ended = kernelbridge_in(bridge_env.home, bridge_env, "attach", kernel)
    assert ended.code == 0, ended.err
    assert (project / "runs" / "out").read_text() == "late\n"


@pytest.fixture
def laptop_on_disk(bridge_env: Laptop) -> Iterator[Laptop]:
    """The same user, whose data the made machine's engine sees: it has a /tmp of its own."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir="/var/tmp") as folder:
        yield replace(bridge_env, data_dir=Path(folder))


def test_a_branch_stays_for_a_run_on_this_machine_that_was_left(
    rig: Rig, laptop_on_disk: Laptop, project: Path
) -> None:
    bridge_env = laptop_on_disk
    commit_all(project)
    (project / "pkg" / "model.py").write_text("not committed")
    bridge_env.write_config(
        f'[hosts.here]\nssh = "local"\nsocket = "{rig.engine.socket}"\n\n'
        f'[environments.test]\nimage = "{rig.image}"\nworkspace = "."\n'
    )
    script = "until [ -e go ]; do sleep 0.1; done; cat pkg/model.py; echo made > out"
    begun = kernelbridge_in(project, bridge_env, "run", "-d", "--git", "main", "test", "--", "sh", "-c", script)
    assert begun.code == 0, begun.err
    (path,) = (bridge_env.data_dir / "kernelbridge" / "workspaces").glob("proj-*")
    assert f"The command works in {path}" in begun.err
    (path / "go").touch()
    ended = kernelbridge_in(project, bridge_env, "attach", begun.out.strip())
    assert (ended.code, ended.out[:11]) == (0, "def answer("), ended.err
    assert (path / "out").read_text() == "made\n"
    assert not (project / "out").exists()


def test_jupyterlabs_debugger_stops_in_the_projects_module_under_the_containers_path(
    rig: Rig, bridge_env: Laptop, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge_env.write_environment(rig.image, workspace=".")
    monkeypatch.chdir(project)
    module = "/workspace/pkg/model.py"
    with notebook(bridge_env) as kernel:
        assert kernel.value("__import__('os').getcwd()") == "/workspace"
        kernel.debug("initialize", clientID="jupyterlab", adapterID="", pathFormat="path")
        assert kernel.debug("attach")["success"]
        bound = kernel.debug("setBreakpoints", source={"path": module}, breakpoints=[{"line": 3}])
        assert bound["body"]["breakpoints"][0]["verified"], bound
        assert kernel.debug("configurationDone")["success"]
        kernel.client.execute("import debugpy; debugpy.debug_this_thread(); import pkg.model; pkg.model.answer()")

        def is_stopped() -> bool:
            message = kernel.client.get_iopub_msg(timeout=20 * SLOW)
            return bool(message["msg_type"] == "debug_event" and message["content"]["event"] == "stopped")

        wait_until(is_stopped, "the stop", 20)
        thread = kernel.debug("threads")["body"]["threads"][0]["id"]
        top = kernel.debug("stackTrace", threadId=thread)["body"]["stackFrames"][0]
        assert (top["source"]["path"], top["line"]) == (module, 3)
        # Lab shows the text that the kernel gives for that path.
        assert "value = 41" in kernel.debug("source", source={"path": module})["body"]["content"]
        kernel.debug("continue", threadId=thread)
        kernel.debug("disconnect", restart=False)


def test_a_workspace_is_pushed_compared_and_pulled_without_a_kernel(
    rig: Rig, bridge_env: Laptop, project: Path
) -> None:
    bridge_env.write_environment(rig.image, workspace=".")
    compared = kernelbridge_in(project, bridge_env, "files", "status")
    assert "to push: pkg/model.py\n" in compared.out, compared.err
    pushed = kernelbridge_in(project, bridge_env, "files", "push")
    assert (pushed.code, pushed.err) == (0, "")
    assert "are in step" in kernelbridge_in(project, bridge_env, "files", "status").out
    script = (
        "import pathlib; pathlib.Path('made.txt').write_text('there'); pathlib.Path('pkg/model.py').write_text('new')"
    )
    assert kernelbridge_in(project, bridge_env, "run", "test", "--", "python", "-c", script).code == 0
    assert not (project / "made.txt").exists()
    told = kernelbridge_in(project, bridge_env, "files", "status").out
    assert told == "to pull: made.txt\nto pull: pkg/model.py\n"
    assert kernelbridge_in(project, bridge_env, "files", "pull").code == 0
    assert ((project / "made.txt").read_text(), (project / "pkg" / "model.py").read_text()) == ("there", "new")


def test_a_folder_may_have_its_own_path_in_the_container_or_be_on_the_host_already(
    rig: Rig, bridge_env: Laptop, project: Path
) -> None:
    bridge_env.write_environment(rig.image, workspace={"local": ".", "container": "same"})
    path = project / "pkg" / "model.py"
    ended = kernelbridge_in(project, bridge_env, "run", "test", "--", "sh", "-c", f"pwd; wc -l < {path}")
    assert (ended.code, ended.out) == (0, f"{project}\n3\n"), ended.err
    with rig.lab.home_files("kbtest", {"there/only.txt": "on the host"}):
        bridge_env.write_environment(rig.image, workspace={"local": ".", "host": "~/there"})
        read = kernelbridge_in(project, bridge_env, "run", "test", "--", "cat", "only.txt")
        assert (read.code, read.out) == (0, "on the host"), read.err
        compared = kernelbridge_in(project, bridge_env, "files", "status")
        assert "by itself: nothing is copied" in compared.out
