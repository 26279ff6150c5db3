"""Which suites, which of their tests apply, and what is known of those that fail."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One project's tests. Patterns are fnmatch's, for pytest's names of tests, or Playwright's `FILE: TITLE`."""

    name: str
    version: str
    # Where the tests are: a package of the index whose source has them, or a repository of which there must be a copy.
    sdist: str = ""
    repository: str = ""
    # What its environment has beside kernelbridge.
    packages: tuple[str, ...]
    # From which folder of the source, and what is collected.
    start: str = "."
    tests: tuple[str, ...] = ("tests",)
    # For pytest, and for its environment; `{folder}` is the folder that the kernel sees too.
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    # A notebook whose cells are compared with what they show with a kernel of this machine; beside the tests.
    notebook: str = ""
    # Keys of the environment in kernelbridge.toml, and the names of its kernel specs.
    environment: Mapping[str, object] = field(default_factory=dict)
    kernels: tuple[str, ...] = ("python3",)
    # What tests look for on the page; kernelbridge.toml may not say it, for VS Code hides kernels of this name.
    display_name: str = ""
    # Whether its own environment has kernelbridge; where not, the server that it wants is the checkout's.
    has_kernelbridge: bool = True
    server: Literal["", "alone", "lab"] = ""
    # False where kernels are started by a server of the suite's own: then all that is selected counts.
    counts_kernels: bool = True
    # Tests whose kernels are started by processes of their own, which nobody counts.
    uncounted: tuple[str, ...] = ()
    # What does not apply, and what fails: {pattern: why}.
    left_out: Mapping[str, str] = field(default_factory=dict)
    misses: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """A short name for a folder: sockets lie below it."""
        return "".join(word[:3] for word in re.split("[-_]", self.name))

    @property
    def variable(self) -> str:
        """Names a folder to take the source from instead."""
        return f"KERNELBRIDGE_FOREIGN_{self.name.replace('-', '_').upper()}"


# A start takes longer than here: the suites' own limits per test are for local kernels.
_PATIENT = ("--timeout=300",)
_ASYNCIO = (*_PATIENT, "-o", "asyncio_default_fixture_loop_scope=function")

_CELL_SAYS_WHY = (
    "A kernel that dies is an error of its cell, which says why; nbclient's own DeadKernelError has no room for it."
)
_PROGRESS = (
    "A start of more than 2 s shows its progress in the cell that waits, and wipes it; this test counts what was wiped "
    "too. It passes where a start is faster."
)
_SHORT = "Its {seconds} s are for a cell, and with ours for the kernel's start too. It passes where a start is faster."
_OWN_KERNEL = "a kernel of the suite's own, which runs from this machine's files"
_OWN_SOCKETS = "asks for TCP, or for sockets of a certain name: ours are Unix sockets in a private folder, always"
_NO_FILES_HERE = "asks where a file of the kernel lies on the server's disk: it lies in the container"

SUITES = (
    Suite(
        name="nbclient",
        version="0.11.0",
        sdist="nbclient",
        packages=("nbclient[test]==0.11.0", "ipykernel", "pytest-timeout"),
        arguments=_ASYNCIO,
        environment={
            "workdir": "{folder}/source/tests/files",
            "pass_env": ["IPYKERNEL_CELL_NAME", "COLUMNS", "LINES", "NBEXECUTE_TEST_PARALLEL_TMPDIR"],
        },
        misses={
            "*::test_kernel_death_during_execution": _CELL_SAYS_WHY,
            "*::test_error_notebook_hook": _CELL_SAYS_WHY,
            "*::test_process_message_wrapper": _PROGRESS,
            "*::test_many_*parallel_notebooks": _SHORT.format(seconds=5),
        },
    ),
    Suite(
        name="jupyter_server",
        version="2.21.1",
        sdist="jupyter_server",
        packages=("jupyter_server[test]==2.21.1",),
        tests=("tests/services/kernels", "tests/services/sessions"),
        # Warnings of a newer Tornado than theirs, which the suite takes for errors.
        arguments=(
            *_PATIENT,
            *("-W", "ignore:The method, uri, and version arguments:DeprecationWarning"),
            *("-W", "ignore:The start_line argument:DeprecationWarning"),
        ),
        left_out={
            "*::test_resolve_path_kernel*": _NO_FILES_HERE,
            "*::test_resolve_path_server_and_kernel*": _NO_FILES_HERE,
        },
        misses={
            "*::test_transport_encryption_provisions_curve_keys*": (
                "CurveZMQ is for TCP. Our channels are Unix sockets in a private folder, and go on by ssh; "
                "`transport_encryption = required` refuses such kernels."
            ),
            "*::test_cull_idle[[]*": _SHORT.format(seconds=6).replace("a cell", "its culling"),
            "*::test_cull_connected*": _SHORT.format(seconds=12).replace("a cell", "a cell and its culling"),
        },
    ),
    Suite(
        name="jupyter_client",
        version="8.10.0",
        sdist="jupyter_client",
        packages=("jupyter_client[test]==8.10.0",),
        arguments=_PATIENT,
        # Tornado's own limit of each test is 5 s; nice to a kernel that is here.
        env={"ASYNC_TEST_TIMEOUT": "60"},
        # The other files start no kernel, or an echo and a broken one of their own.
        tests=tuple(f"tests/test_{name}.py" for name in ("kernelmanager", "multikernelmanager", "kernelapp", "runapp")),
        uncounted=("*test_kernelapp.py*", "*test_runapp.py::test_runapp*"),
        left_out={
            "*::TestKernelManagerShutDownGracefully::*": _OWN_KERNEL,
            "*::test_signal_kernel_subprocesses*": _OWN_KERNEL,
            "*::test_start_new_*": _OWN_KERNEL,
            "*::test_templated_kspec_env*": _OWN_KERNEL,
            "*::TestParallel::*": _OWN_KERNEL,
            "*::test_*_cinfo": _OWN_SOCKETS,
            "*::test_subclass_callables*": "counts signals; a spec with `interrupt_mode: message` needs none",
        },
        misses={"*::test_runapp": _PROGRESS},
    ),
    Suite(
        name="papermill",
        version="2.7.0",
        sdist="papermill",
        packages=("papermill==2.7.0", "pytest", "pytest-mock", "pytest-env", "pytest-timeout", "requests", "ipykernel"),
        # The rest, test_abs, _adl, _gcs, _hdfs and _s3, is about stores of files and wants their libraries.
        tests=tuple(
            f"papermill/tests/test_{name}.py"
            for name in (
                "autosave",
                "cli",
                "clientwrap",
                "conf",
                "engines",
                "exceptions",
                "execute",
                "inspect",
                "iorw",
                "parameterize",
                "translators",
                "utils",
            )
        ),
        arguments=_PATIENT,
        environment={"workspace": "."},
        uncounted=("*test_cli.py::test_pipe_*", "*test_cli.py::test_stdout_file"),
        misses={
            "*::test_stdout_file": _PROGRESS,
            "*::test_nb_convert_log_outputs": _PROGRESS,
            "*::test_end2end_autosave_slow_notebook": (
                "It counts how often a notebook is saved in 2.5 s; its first cell takes longer by the kernel's start."
            ),
        },
    ),
    Suite(
        name="jupyter-kernel-client",
        version="0.6.0",
        sdist="jupyter-kernel-client",
        packages=("jupyter-kernel-client[test]==0.6.0", "ipykernel"),
        tests=("jupyter_kernel_client/tests",),
        # It gives a server 5 s to end with its kernels, and takes a longer end for an error of its next test.
        arguments=(*_ASYNCIO, "-W", "ignore::pytest.PytestUnraisableExceptionWarning"),
        # Its tests ask the kernel for the name of the machine and its user.
        environment={"hostname": platform.node(), "pass_env": ["USER"]},
        counts_kernels=False,
    ),
    Suite(
        name="jupyter-resource-usage",
        version="1.3.0",
        sdist="jupyter-resource-usage",
        packages=("jupyter-resource-usage==1.3.0", "pytest", "mock", "pytest-timeout"),
        tests=("jupyter_resource_usage/tests",),
    ),
    Suite(
        name="enterprise_gateway",
        version="3.3.0",
        sdist="jupyter_enterprise_gateway",
        # Its client alone: the gateway itself is of Jupyter Server 1, which kernelbridge does not know.
        packages=("pytest", "pytest-timeout", "requests", "websocket-client", "tornado"),
        has_kernelbridge=False,
        server="alone",
        tests=("enterprise_gateway/itests",),
        arguments=(*_PATIENT, "-c", "/dev/null", "--rootdir=."),
        # What the kernel's machine is called, as it is asked.
        env={"ITEST_HOSTNAME_PREFIX": "itest"},
        environment={"hostname": "itest-1"},
        kernels=("python3", "python_distributed"),
        counts_kernels=False,
        left_out={
            "*TestPythonKernelClient*": "Spark on a cluster",
            "*TestPythonKernelCluster*": "Spark on a cluster",
            "*test_r_kernel*": "R",
            "*test_scala_kernel*": "Scala",
            "*test_authorization*": "the gateway's own list of users",
        },
    ),
    Suite(
        name="galata",
        version="4.6.4",
        sdist="jupyterlab",
        packages=("jupyterlab==4.6.4", "ipykernel", "ipywidgets"),
        server="lab",
        start="galata/test/jupyterlab",
        tests=(
            "debugger",
            "debugger-console",
            "kernel",
            "notebook-run",
            "notebook-run-vega",
            "outputarea-stdin",
        ),
        environment={"workspace": "."},
        display_name="Python 3 (ipykernel)",
        counts_kernels=False,
    ),
    Suite(
        name="ipywidgets",
        version="8.1.8",
        repository="jupyter-widgets/ipywidgets",
        packages=("jupyterlab==4.6.4", "ipykernel", "ipywidgets"),
        server="lab",
        start="ui-tests/tests",
        tests=("widgets",),
        notebook="notebooks/widgets.ipynb",
        environment={"workspace": "."},
        display_name="Python 3 (ipykernel)",
        counts_kernels=False,
    ),
)
