"""The baseline as a kernel spec's argv: docker run on the host and ssh -L to it, until SIGTERM.

python tunnel_kernel.py FACTS CONTAINER CONNECTION_FILE
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

NAMES = ("shell", "iopub", "stdin", "control", "hb")


def main() -> None:
    """Run the container and the tunnel."""
    facts, name, file = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    connection = json.loads(Path(file).read_text())
    docker = {**os.environ, "DOCKER_HOST": facts["socket"]}
    ports = {one: int(connection[f"{one}_port"]) for one in NAMES}
    publish = [f"-p127.0.0.1:{port}:{port}" for port in ports.values()]
    kernel = ["python3", "-m", "ipykernel_launcher", "--ip=0.0.0.0", f"--Session.key={connection['key']}"]
    inside = [f"--{one}={port}" for one, port in ports.items()]
    run = ["docker", "run", "-d", "--init", "--name", name, *publish, facts["image"], *kernel, *inside]
    subprocess.run(run, env=docker, check=True, stdout=subprocess.DEVNULL)
    *ssh, alias = facts["ssh"]
    forwards = [f"-L127.0.0.1:{port}:127.0.0.1:{port}" for port in ports.values()]
    tunnel = subprocess.Popen([*ssh, "-oControlMaster=no", "-oControlPath=none", *forwards, alias, "sleep", "600"])
    signal.signal(signal.SIGTERM, lambda *_: tunnel.terminate())
    try:
        tunnel.wait()
    finally:
        subprocess.run(["docker", "rm", "-f", name], env=docker, check=False, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
