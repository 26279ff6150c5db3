"""Record what a release gives an engine for one kernel: the container, and the line that its first process reads.

At a new release, from its tag: `python -m tests.rig.record_release > tests/rig/releases/VERSION.json.xz`.
0.1.0 is of commit 4d42706.
"""

from __future__ import annotations

import json
import lzma
import sys

from kernelbridge import __version__
from kernelbridge.config.schema import Environment
from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.docker import container_spec
from kernelbridge.hosts.docker.container_spec import GpuAsk
from kernelbridge.hosts.docker.images.prepared_image import PreparedImage
from kernelbridge.hosts.docker.responses import ImageFacts
from kernelbridge.hosts.docker.users import ContainerUser
from kernelbridge.hosts.labels import Labels

# What is to be replaced by what a test wants.
KERNEL, IMAGE, OWNER, SESSION = "KERNEL-ID", "IMAGE-NAME", "OWNER-ID", "SESSION-ID"


def recorded() -> dict[str, object]:
    """The release, the body that makes its container, and its order to the relay."""
    environment = Environment(name="test", image=IMAGE, persist=True)
    labels = Labels(kernel=KERNEL, environment="test", owner=OWNER, image=IMAGE, version=__version__, keep_exited="60")
    spec = container_spec.spec(
        environment=environment,
        image=PreparedImage(
            name=IMAGE,
            facts=ImageFacts(id="", env={}, user="", labels={}, size_bytes=0),
            python=environment.python or "python3",
        ),
        labels=labels,
        gpus=GpuAsk(),
        mounts=(),
        user=ContainerUser(),
    )
    spawn = bootstrap.spawn_order(launch=1, session=SESSION, env={}, cwd="")
    order = bootstrap.relay_line(KERNEL, environment, spawn, gpus=())
    return {"version": __version__, "container": spec, "order": json.loads(order)}


if __name__ == "__main__":
    sys.stdout.buffer.write(lzma.compress(json.dumps(recorded()).encode(), preset=9 | lzma.PRESET_EXTREME))
