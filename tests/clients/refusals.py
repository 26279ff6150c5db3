"""How an impossible start looks to a user: in a terminal, from jupyter_client's manager, from VS Code's launcher."""

from __future__ import annotations

import pytest
from jupyter_client.manager import KernelManager

from kernelbridge.errors import KernelBridgeError
from tests.clients.notebook import NAME, CellFailed, fleet_closed_after, notebook, write_specs
from tests.clients.terminal import Ended, begin, launched
from tests.printed import lines_of, told_by_launcher
from tests.rig.laptop import Laptop


def refusal_of_manager(laptop: Laptop) -> KernelBridgeError:
    """What `KernelManager.start_kernel` raises, as nbclient and papermill hand it on."""
    with fleet_closed_after(laptop):
        manager = KernelManager(kernel_name=NAME)
        with pytest.raises(KernelBridgeError) as caught:
            manager.start_kernel()
        assert not manager.has_kernel
    return caught.value


def expect_launcher(ended: Ended, expected: KernelBridgeError) -> None:
    """Stderr is the error, which VS Code shows, and nothing else."""
    assert (ended.code, ended.out, ended.err) == (1, "", told_by_launcher(expected))


def expect_command(ended: Ended, expected: KernelBridgeError) -> None:
    """Sentence, remedy and page are all there is on stderr, nothing is on stdout, and the exit code is its own."""
    assert ended.err.splitlines() == [line for line in lines_of(expected) if line]
    assert (ended.code, ended.out) == (expected.exit_code, "")


def expect_everywhere(laptop: Laptop, expected: KernelBridgeError) -> None:
    """`ps` in a terminal, a KernelManager and VS Code's launcher all tell this error, and nothing else."""
    write_specs(laptop)
    with begin(laptop, "ps") as command, launched(laptop) as launcher:
        refusal = refusal_of_manager(laptop)
        assert (type(refusal), str(refusal)) == (type(expected), str(expected))
        expect_launcher(launcher.finish(), expected)
        expect_command(command.finish(), expected)


def expect_at_start(laptop: Laptop, expected: KernelBridgeError) -> None:
    """The same for what is no fault of the host: only starts meet it."""
    write_specs(laptop)
    with launched(laptop) as launcher:
        refusal = refusal_of_manager(laptop)
        assert (type(refusal), str(refusal)) == (type(expected), str(expected))
        expect_launcher(launcher.finish(), expected)


def expect_in_first_cell(laptop: Laptop, expected: KernelBridgeError) -> None:
    """What only the container's start can tell: the first cell ends with it, and so does the launcher."""
    with launched(laptop) as launcher:
        with notebook(laptop) as kernel, pytest.raises(CellFailed) as caught:
            kernel.run("1")
        assert (caught.value.name, caught.value.text) == (type(expected).__name__, str(expected))
        expect_launcher(launcher.finish(), expected)
