"""A registry in the made machine: Debian's docker-registry, with a login or without. Docker takes HTTP on loopback."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.rig.daemon import Daemon, RigError
from tests.rig.lab import Lab
from tests.rig.next_debian import REGISTRY, next_debians_usr, with_usr
from tests.rig.whole import Rig

ADDRESS = "127.0.0.1:5055"
# An image that is no kernel's, and small.
TINY = f"{ADDRESS}/tiny:1"
LOGIN = base64.b64encode(b"ada:s3cret").decode()
# The same as `htpasswd -B` writes it.
_HTPASSWD = "ada:$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n"


@contextmanager
def registry(rig: Rig, *, has_login: bool = False, images: Sequence[str] = ()) -> Iterator[None]:
    """It runs, and has TINY and these images of the engine's, each as ADDRESS/NAME; the engine has none of them so."""
    folder = rig.lab.path / "registry"
    with ExitStack() as undo:
        folder.mkdir()
        undo.callback(shutil.rmtree, folder)
        daemon = _started(rig.lab, folder, has_login=has_login)
        undo.callback(daemon.stop, seconds=5)
        daemon.wait_until(lambda: _answers(rig.lab), "the registry's first answer", 20)
        tar = folder / "tiny.tar"
        tar.write_bytes(_tiny())
        rig.engine.cli("import", tar, TINY)
        names = [f"{ADDRESS}/{image}" for image in images]
        for image, name in zip(images, names, strict=True):
            rig.engine.cli("tag", image, name)
        for name in (TINY, *names):
            rig.engine.cli("--config", folder, "push", name)
            rig.engine.cli("image", "rm", name)
        yield


def _started(lab: Lab, folder: Path, *, has_login: bool) -> Daemon:
    usr = next_debians_usr(lab, REGISTRY, f"{folder.name}/usr")
    config = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "blobs")}},
        "http": {"addr": ADDRESS},
        **({"auth": {"htpasswd": {"realm": "rig", "path": str(folder / "htpasswd")}}} if has_login else {}),
    }
    (folder / "htpasswd").write_text(_HTPASSWD)
    # JSON is YAML.
    (folder / "config.yml").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"auths": {ADDRESS: {"auth": LOGIN}}}))
    return lab.start("registry", with_usr(usr, ["docker-registry", "serve", str(folder / "config.yml")]))


def _tiny() -> bytes:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        entry = tarfile.TarInfo("hello")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"hello"))
    return tar.getvalue()


def _answers(lab: Lab) -> bool:
    host, _, port = ADDRESS.partition(":")
    code = f"import socket; socket.create_connection(({host!r}, {port}), 1).close()"
    try:
        lab.run(["python3", "-I", "-c", code])
    except RigError:
        return False
    return True
