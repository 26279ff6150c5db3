"""Podman's Docker-compatible socket on the made machine: the next Debian's Podman 5, run as root, with our images."""

from __future__ import annotations

import os
from pathlib import Path

from tests.rig.lab import DOCKER_GID
from tests.rig.next_debian import PODMAN, next_debians_usr, with_usr
from tests.rig.whole import Rig

SOCKET = "/run/podman/podman.sock"
_FILES = {
    "registries.conf": 'unqualified-search-registries = ["localhost"]\n',
    "storage.conf": '[storage]\ndriver = "overlay"\ngraphroot = "{folder}/storage"\nrunroot = "/run/podman-storage"\n',
    # Neither systemd nor cgroup v2 is promised here.
    "containers.conf": '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n',
}
# By what Podman has each from; its policy of signatures is the machine's.
_PLACES = {
    "CONTAINERS_REGISTRIES_CONF": "registries.conf",
    "CONTAINERS_STORAGE_CONF": "storage.conf",
    "CONTAINERS_CONF": "containers.conf",
}


class PodmanRig:
    """Its service; the logins that may use Docker may use it."""

    def __init__(self, rig: Rig) -> None:
        self._lab = rig.lab
        self._folder = rig.lab.path / "podman"
        self._folder.mkdir()
        config = self._folder / "config"
        config.mkdir()
        for name, text in _FILES.items():
            (config / name).write_text(text.replace("{folder}", str(self._folder)))
        self._usr = next_debians_usr(rig.lab, PODMAN, "podman/usr")
        self._variables = {name: str(config / file) for name, file in _PLACES.items()}
        self._variables |= {"PODMAN_IGNORE_CGROUPSV1_WARNING": "1", "TMPDIR": "/var/tmp"}
        self._lab.run(["mkdir", "-p", str(Path(SOCKET).parent)])
        saved = self._folder / "images.tar"
        rig.engine.cli("save", "--output", saved, rig.image, rig.bare_image)
        self.run("load", "--quiet", "--input", str(saved))
        saved.unlink()
        words = ["podman", "system", "service", "--time=0", f"unix://{SOCKET}"]
        self._daemon = self._lab.start("podman", with_usr(self._usr, words), env={**os.environ, **self._variables})
        try:
            self._daemon.wait_until((self._lab.root / SOCKET[1:]).exists, "podman's socket")
            self._lab.run(["chgrp", str(DOCKER_GID), SOCKET])
            self._lab.run(["chmod", "660", SOCKET])
        except BaseException:
            self._daemon.stop()
            raise

    def __repr__(self) -> str:
        return f"<PodmanRig {self._daemon!r}>"

    def run(self, *words: str) -> str:
        """What the podman command says, as root of the machine."""
        variables = [f"{name}={text}" for name, text in self._variables.items()]
        return self._lab.run(["env", *variables, *with_usr(self._usr, ["podman", *words])], seconds=300)

    def containers(self) -> list[str]:
        """The names of all containers, running or not."""
        return self.run("ps", "--all", "--format={{.Names}}").split()

    def close(self) -> None:
        """Remove every container and stop."""
        try:
            self.run("rm", "--all", "--force", "--time=0")
        finally:
            self._daemon.stop()
