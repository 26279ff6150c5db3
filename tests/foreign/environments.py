"""An environment per suite: its tests from the index, packages of its own, a user whose `python3` is our kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.foreign import plugin
from tests.foreign.results import Result, read_lines
from tests.foreign.servers import server
from tests.foreign.suites import Suite
from tests.rig.daemon import RigError, run, tail
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

ROOT = Path(__file__).parents[2]
PLUGIN = "kernelbridge_foreign_plugin"
SUITE_SECONDS = 3600.0
_PIP = ["-m", "pip", "--disable-pip-version-check", "-q"]


class MissingTests(RuntimeError):
    """A suite's tests are not there; the sentence says where they are looked for."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders of one run."""

    # Virtual environments, downloads.
    scratch: Path
    # At the same path on the host, so that a kernel sees what the suite sees.
    shared: Path

    def wheel(self) -> Path:
        """The checkout as a package; made once."""
        folder = self.scratch / "wheel"
        if not folder.exists():
            folder.mkdir()
            run([sys.executable, *_PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT])
        (wheel,) = folder.glob("kernelbridge-*.whl")
        return wheel

    def environment(self, suite: Suite) -> Path:
        """The Python of the suite's own virtual environment; made once."""
        folder = self.scratch / suite.folder / "venv"
        python = folder / "bin" / "python"
        done = folder / "done"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            ours: list[str | Path] = [self.wheel()] if suite.has_kernelbridge else []
            words: list[str | Path] = [python, *_PIP, "install", "--no-compile", *ours, *suite.packages]
            run(words)
            done.touch()
        return python

    def log(self, suite: Suite, *, is_local: bool, is_again: bool) -> Path:
        """Where a run of it writes what it prints."""
        return self.scratch / suite.folder / ("local.log" if is_local else "again.log" if is_again else "first.log")

    def source(self, suite: Suite) -> Path:
        """The suite's tests: from the folder that its variable names, else from the index.

        Raises: MissingTests.
        """
        target = self.shared / suite.folder / "source"
        if target.exists():
            return target
        given = os.environ.get(suite.variable)
        if given:
            if not Path(given).is_dir():
                raise MissingTests(f"{suite.variable}={given} is no folder")
            shutil.copytree(given, target, symlinks=True)
            return target
        if not suite.sdist:
            raise MissingTests(
                f"its tests are in no package: set {suite.variable} to a copy of {suite.repository} at {suite.version}"
            )
        folder = self.scratch / suite.folder / "sdist"
        if not any(folder.glob("*.tar.gz")):
            wanted = f"{suite.sdist}=={suite.version}"
            run([sys.executable, *_PIP, "download", "--no-deps", "--no-binary", suite.sdist, "-d", folder, wanted])
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as file, tempfile.TemporaryDirectory(dir=folder) as unpacked:
            file.extractall(unpacked, filter="data")
            (top,) = Path(unpacked).iterdir()
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(top, target)
        return target


def user_of(suite: Suite, places: Places, rig: Rig) -> Laptop:
    """A home whose kernel specs are ours alone: under the names that the suite asks for."""
    folder = places.shared / suite.folder
    home = folder / "home"
    if home.exists():
        shutil.rmtree(home)
    laptop = rig.laptop(home)
    keys = {name: _filled(value, folder) for name, value in suite.environment.items()}
    # As root, whose tests write what the kernel reads, and the other way round.
    laptop.write_environment(rig.image, host={"ssh": "lab-root"}, mounts=[f"{folder}:{folder}"], **keys)
    run([sys.executable, "-m", "kernelbridge", "install"], env=laptop.env)
    # It is root's machine, and some suites start a server of their own.
    (laptop.config_dir / "jupyter_server_config.json").write_text('{"ServerApp": {"allow_root": true}}')
    written = laptop.data_dir / "kernels/kernelbridge-test"
    for name in suite.kernels:
        shutil.copytree(written, home / "specs/kernels" / name)
        if suite.display_name:
            path = home / "specs/kernels" / name / "kernel.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "display_name": suite.display_name}))
    return laptop


def local_specs(suite: Suite, laptop: Laptop, python: str) -> Path:
    """A folder with kernels of this machine under the suite's other names; `python3` is there without one."""
    folder = laptop.home / "local"
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    for name in suite.kernels[1:]:
        path = folder / "kernels" / name / "kernel.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"argv": argv, "display_name": name, "language": "python"}))
    return folder


def _filled(value: object, folder: Path) -> object:
    return value.format(folder=folder) if isinstance(value, str) else value


def run_logged(words: Sequence[object], log: Path, *, cwd: Path, env: Mapping[str, str]) -> int:
    """Run a suite's own runner to its end; returns its exit code."""
    with log.open("w") as sink:
        return subprocess.run(
            list(map(str, words)),
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            timeout=SUITE_SECONDS,
            check=False,
        ).returncode


def run_pytest(
    suite: Suite, places: Places, rig: Rig, *, only: list[str] | None = None, is_local: bool = False
) -> list[Result]:
    """Run the suite, or some of its tests, with our kernel or with one of this machine.

    Raises: RigError where pytest itself fails, UnreadableResults.
    """
    python, source = places.environment(suite), places.source(suite)
    laptop = user_of(suite, places, rig)
    folder = places.shared / suite.folder
    shutil.copy(Path(plugin.__file__), folder / f"{PLUGIN}.py")
    noted = {plugin.RESULTS: folder / "results.jsonl", plugin.STARTS: folder / "starts.jsonl"}
    for path in noted.values():
        path.unlink(missing_ok=True)
    words = [python, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", f"--basetemp={folder / 't'}"]
    words += [*suite.arguments, *(only or suite.tests)]
    environ = {
        **laptop.env,
        **{name: str(path) for name, path in noted.items()},
        plugin.LEFT_OUT: json.dumps(suite.left_out),
        plugin.HOME: str(laptop.home),
        "PYTHONPATH": str(folder),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        **{name: str(_filled(value, folder)) for name, value in suite.env.items()},
    }
    # The Python that starts kernels; its own `python3` is there without a spec.
    starts = sys.executable if suite.server else str(python)
    environ["JUPYTER_PATH"] = str(local_specs(suite, laptop, starts) if is_local else laptop.home / "specs")
    log = places.log(suite, is_local=is_local, is_again=bool(only))
    with ExitStack() as undo:
        if suite.server == "alone":
            address = undo.enter_context(server(folder, sys.executable, env=environ, has_lab=False))
            environ["GATEWAY_HOST"] = address
        ended = run_logged(words, log, cwd=source / suite.start, env=environ)
    # Beyond 1, `some tests failed`, pytest could not run them.
    if ended not in (0, 1):
        raise RigError(f"pytest ended with {ended}:\n{tail(log)}")
    counts = suite.counts_kernels and not is_local
    return read_lines(noted[plugin.RESULTS].read_text(), counts_kernels=counts, uncounted=suite.uncounted)
