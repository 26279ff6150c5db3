"""The registry's own process: it serves one small image, over HTTP on loopback, and counts nothing. See registry.py."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import sys
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = "tiny"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def image() -> tuple[bytes, dict[str, bytes]]:
    """A manifest, and the blobs that it names."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        entry = tarfile.TarInfo("hello")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"hello"))
    layer = gzip.compress(tar.getvalue(), mtime=0)
    diffs = {"type": "layers", "diff_ids": [digest(tar.getvalue())]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": diffs}).encode()
    kinds = ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip")
    named = [
        {"mediaType": kind, "size": len(data), "digest": digest(data)}
        for kind, data in zip(kinds, (config, layer), strict=True)
    ]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": named[0], "layers": named[1:]}
    return json.dumps(manifest).encode(), {digest(data): data for data in (config, layer)}


def main(port: int, login: str) -> None:
    manifest, blobs = image()
    allowed = f"Basic {base64.b64encode(login.encode()).decode()}"

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if login and self.headers.get("Authorization") != allowed:
                self.answer(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}')
            elif self.path in ("/v2", "/v2/"):
                self.answer(200, b"{}")
            elif self.path.startswith(f"/v2/{NAME}/manifests/"):
                self.answer(200, manifest, MANIFEST)
            elif (wanted := self.path.rpartition("/")[2]) in blobs:
                self.answer(200, blobs[wanted], "application/octet-stream")
            else:
                self.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')

        do_HEAD = do_GET

        def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="rig"')
            if kind == MANIFEST:
                self.send_header("Docker-Content-Digest", digest(body))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", port), Registry).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
