"""Examples that failed once, by target; each is checked in the tests."""

from __future__ import annotations

from typing import Any, Final

_INFO: Final = {"Runtimes": {}, "CDISpecDirs": ["/etc/cdi"], "DiscoveredDevices": [None], "SecurityOptions": []}

KEPT: Final[tuple[tuple[str, Any], ...]] = (
    # A page of a registry, or the log of a container: minutes, and a sentence as long as all of it.
    ("engine-errors", "nvidia-container-cli: mount error: " * 7000),
    ("engine-errors", 'bind source path does not exist: config for type "bind": ' * 200),
    ("engine-errors", "lookup " * 3_000),
    # A null among the devices, or among the parts of a version.
    ("engine", _INFO),
    ("engine", {"ApiVersion": "1.41", "Components": [None]}),
    # Python warned of what may come to mean more than one mark.
    ("dockerignore", ("[[a]x\n[a--b]\n", "ax")),
    ("dockerignore", ("**/" * 60 + "x", "a/" * 140)),
    # 1.23457e+06s is no time.
    ("config-values", "1234567s"),
    ("config-values", "0.5555555"),
    # OpenSSH reads all of these otherwise than we did.
    ("ssh-config", "Host LAB\nUser ada"),
    ("ssh-config", "Match host LAB\nUser ada"),
    ("ssh-config", "HostName BOX"),
    ("ssh-config", "SetEnv A=1 A=2\nSetEnv B=3"),
    ("ssh-config", "SendEnv LANG LC_*\nSendEnv -LC_*"),
    ("ssh-config", 'ProxyJump "a b"'),
    ("ssh-config", "ProxyJump jump # the door"),
    ("ssh-config", "Host\rlab\n Port 2222"),
)
