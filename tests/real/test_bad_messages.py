"""What a kernel says that is no message costs itself alone, through everything real."""

from __future__ import annotations

import re

import pytest

from tests.clients.notebook import notebook
from tests.clients.terminal import kernelbridge
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(300)

BAD = """
import sys
from IPython import get_ipython
iopub = get_ipython().kernel.iopub_socket
D = b"<IDS|MSG>"
bad = [
    [b"garbage"], [b""], [b"x.status"], [b"x.status", D], [b"x.status", D, b"", b"{}", b"nojson", b"{}", b'"busy"'],
    [b"x.status", D, b"", b"{}", b"[1]", b"{}", b'"busy"'],
    [b"stream", D, b"", b"nojson", b"{}", b"{}", b'"execution_state"'],
    [b"stream", D, b"", b"{}", b"[]", b"{}", b'{"execution_state": "busy"}'],
    [b"stream", D, b"", b"{}", b"{}", b"{}", b"{}", *[b""] * 70_000],
]
for number in range(400):
    print(number)
    if number % 100 == 50:
        sys.stdout.flush()
        for parts in bad:
            iopub.send_multipart(parts)
"""


def test_bad_messages_cost_themselves_alone_and_the_kernel_lives(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image)
    with notebook(bridge_env) as kernel:
        shown = kernel.run(BAD)
        notices = re.findall(r"\[kernelbridge: dropped .*: the kernel sent what is no Jupyter message\]\n?", shown)
        assert notices
        for notice in notices:
            shown = shown.replace(notice, "")
        assert shown.split() == [str(number) for number in range(400)]
        assert kernel.run("6 * 7") == "42"
        (row,) = kernelbridge(bridge_env, "ps", "--json").json["kernels"]
        assert row["state"] == "idle"
