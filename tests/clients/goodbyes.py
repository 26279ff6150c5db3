"""What is left on a host when an editor has said goodbye to its kernel, and that nothing is left of it in the end."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta

from kernelbridge.config import load as configs
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.kernel_listing import KernelRow
from kernelbridge.protocol.exit_codes import CLAIM_SECONDS
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig


def swept(laptop: Laptop) -> tuple[KernelRow, ...]:
    """What `kernelbridge ps` of this user shows; it has swept what is done with."""
    with closing(Fleet(configs.load(laptop.config))) as fleet:
        listing = fleet.run(fleet.list_kernels(), 60)
    assert listing.problems == ()
    return listing.kernels


def kernel_processes(rig: Rig) -> list[str]:
    """Command lines of the kernel processes in all containers of ours."""
    found: list[str] = []
    for one in rig.engine.kernels():
        if one.status == "running":
            found += [args for _, args in one.top(ps_args="-eo pid,args")["Processes"]]
    return [line for line in found if "ipykernel" in line]


def expect_left(rig: Rig, laptop: Laptop) -> None:
    """Every kernel was left in good order: no process of it runs, its container ends within the goodbye's seconds.

    Does not wait for that: the containers are removed. `expect_gone` waits.
    """
    if not rig.engine.kernels():
        return
    wait_until(lambda: all(is_leaving(row) for row in swept(laptop)), "the goodbye to be heard", 10)
    assert kernel_processes(rig) == []
    rig.engine.sweep()


def is_leaving(row: KernelRow) -> bool:
    """Whether a kernel's process has ended, and its container is about to."""
    if row.deadline is None or (row.state, row.link, row.deadline_key) != ("exited", "detached", "goodbye"):
        return False
    return not row.held_by and row.deadline - datetime.now(UTC) <= timedelta(seconds=CLAIM_SECONDS)


def expect_gone(rig: Rig, laptop: Laptop) -> None:
    """Every container of ours ends by itself, with exit code 0, and the next listing removes it."""
    wait_until(
        lambda: all(one.status == "exited" for one in rig.engine.kernels()),
        "the containers to end",
        CLAIM_SECONDS + 5 * SLOW,
    )
    assert {one.attrs["State"]["ExitCode"] for one in rig.engine.kernels()} <= {0}
    assert swept(laptop) == ()
    assert rig.engine.kernels() == []
