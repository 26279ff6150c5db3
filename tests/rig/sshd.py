"""The made machine's SSH server: OpenSSH's own sshd, its users, and the ways in which it can turn one away."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.rig.daemon import Daemon, run, tail
from tests.rig.lab import USERS, Lab

PORT = 2222


def missing_sshd() -> str | None:
    """Why no SSH server can run here; None where it can."""
    if sshd_path() is None:
        return "sshd is missing (Debian: openssh-server); scripts/test installs it"
    if shutil.which("ssh-keygen") is None or shutil.which("ssh") is None:
        return "the ssh command is missing (Debian: openssh-client); scripts/test installs it"
    return None


def sshd_path() -> str | None:
    """Where sshd is; it needs an absolute path to start."""
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


class SshRig:
    """A real sshd in the made machine, at `address`:`port`. The one public key opens every login."""

    def __init__(self, lab: Lab, *, public_key: str, gpu_path: Path) -> None:
        self.lab = lab
        self.address = lab.address
        self.port = PORT
        self.folder = lab.path / "sshd"
        self.folder.mkdir()
        self.folder.chmod(0o755)
        self._public_key = public_key
        self._gpu_path = gpu_path
        self._daemon: Daemon | None = None
        # Extra lines of sshd_config, changed by the context managers below.
        self._extra: tuple[str, ...] = ()
        self._host_key = self.folder / "host_key"
        make_key(self._host_key)
        self.start()

    def __repr__(self) -> str:
        return f"<SshRig {self.address}:{self.port} {len(self.sessions())} processes {self._daemon!r}>"

    @property
    def log(self) -> str:
        """The last lines of sshd's log."""
        return tail(self.lab.log_folder / "sshd.log")

    @property
    def arrivals(self) -> int:
        """How many have come so far, let in or turned away; who leaves, perhaps later, changes nothing."""
        lines = (self.lab.log_folder / "sshd.log").read_text(errors="replace").splitlines()
        return len([line for line in lines if "Accepted " in line or "[preauth]" in line])

    @property
    def host_key(self) -> str:
        """The public host key: its type and its base64."""
        return " ".join(self._host_key.with_suffix(".pub").read_text().split()[:2])

    def known_hosts_line(self, address: str, port: int) -> str:
        """The line of known_hosts that makes this server known under an address."""
        return f"[{address}]:{port} {self.host_key}\n"

    def _config(self) -> Path:
        keys = self.folder / "authorized_keys"
        keys.write_text(self._public_key + "\n")
        keys.chmod(0o644)
        lines = [
            *self._extra,  # sshd takes the first value of a keyword
            f"Port {self.port}",
            f"ListenAddress {self.address}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self._host_key}",
            f"AuthorizedKeysFile {keys}",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            "PermitRootLogin prohibit-password",
            "AllowUsers root " + " ".join(user.name for user in USERS),
            "PrintMotd no",
            "LogLevel INFO",
            "MaxStartups 100:30:200",
            # A second one would be an error.
            *(() if any(line.startswith("Subsystem") for line in self._extra) else ("Subsystem sftp internal-sftp",)),
            f"PidFile {self.folder / 'sshd.pid'}",
            f'SetEnv PATH="{self._gpu_path}:/usr/local/bin:/usr/bin:/bin"',
        ]
        path = self.folder / "sshd_config"
        # OpenSSH 9.8 and later shut the door on an address that failed often; the refusals are the tests' own.
        path.write_text("\n".join([*lines, "PerSourcePenalties no", ""]))
        sshd = sshd_path() or "sshd"
        check = subprocess.run(self.lab.inside([sshd, "-t", "-f", str(path)]), capture_output=True, check=False)
        if check.returncode != 0:
            path.write_text("\n".join([*lines, ""]))
        return path

    def start(self) -> None:
        """Listen, with the configuration of now. Safe to call twice."""
        if self._daemon is not None:
            return
        config = self._config()
        daemon = self.lab.start("sshd", [sshd_path() or "sshd", "-D", "-e", "-f", str(config)])
        self._daemon = daemon
        daemon.wait_until(self._listens, "sshd to listen", 15)

    def _listens(self) -> bool:
        from_here = ["ssh-keyscan", "-T", "2", "-t", "ed25519", "-p", str(self.port), self.address]
        seen = subprocess.run(from_here, capture_output=True, text=True, check=False).stdout
        return self.host_key in seen

    def stop(self) -> None:
        """Listen no more: a connect is refused. Connections that are open live on."""
        if self._daemon is not None:
            self._daemon.stop()
            self._daemon = None

    def sessions(self) -> list[psutil.Process]:
        """sshd's processes for connections: all of its processes but the listener."""
        listener = self._daemon.main().pid if self._daemon is not None else -1
        found = []
        for process in self.lab.processes():
            with suppress(psutil.Error):
                if process.name().startswith("sshd") and process.pid != listener:
                    found.append(process)
        return found

    def kill_connections(self) -> None:
        """End every connection at the far end, at once."""
        for process in self.sessions():
            with suppress(psutil.Error):
                process.kill()
        deadline = time.monotonic() + 5
        while self.sessions() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _restart(self, *extra: str) -> None:
        self.stop()
        self._extra = extra
        self.start()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Nobody listens and every connection ends; listens again at the end."""
        self.stop()
        self.kill_connections()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def configured(self, *lines: str) -> Iterator[None]:
        """New connections meet these lines of sshd_config; those that are open do not."""
        self._restart(*lines)
        try:
            yield
        finally:
            self._restart()

    @contextmanager
    def forwarding_forbidden(self) -> Iterator[None]:
        """New connections may run commands and forward nothing."""
        with self.configured("DisableForwarding yes"):
            yield

    @contextmanager
    def streamlocal_forbidden(self) -> Iterator[None]:
        """New connections may forward TCP ports and no unix sockets."""
        with self.configured("AllowStreamLocalForwarding no"):
            yield

    @contextmanager
    def login_refused(self) -> Iterator[None]:
        """No key opens any login."""
        with self.configured("AuthorizedKeysFile none"):
            yield

    @contextmanager
    def asking(self, *lines: str, account: str = "permit") -> Iterator[OneTimeCodes]:
        """The server asks for a one-time code after the key, by PAM; `lines` go in front of its configuration.

        `account`: whether PAM lets the account in then, `permit` or `deny` with a word to its user.
        """
        codes = OneTimeCodes(self.folder)
        service = self.folder / "pam-service"
        echo = f"account required pam_echo.so file={codes.last_words}\n" if account == "deny" else ""
        service.write_text(
            f"auth optional pam_echo.so file={codes.first_words}\n"
            f"auth required pam_exec.so quiet expose_authtok {codes.check}\nauth required pam_permit.so\n"
            f"{echo}account required pam_{account}.so\nsession required pam_permit.so\n"
        )
        service.chmod(0o644)
        # sshd asks PAM for the service of its own name.
        self.lab.run(["mount", "--bind", str(service), "/etc/pam.d/sshd"])
        asks = ["UsePAM yes", "KbdInteractiveAuthentication yes", "LogLevel VERBOSE"]
        if not any(line.startswith("AuthenticationMethods") for line in lines):
            asks.append("AuthenticationMethods publickey,keyboard-interactive")
        try:
            with self.configured(*lines, *asks):
                yield codes
        finally:
            self.lab.run(["umount", "/etc/pam.d/sshd"])

    @property
    def connections(self) -> int:
        """How many connections have come from here, while `asking` has it say so."""
        text = (self.lab.log_folder / "sshd.log").read_text(errors="replace")
        return text.count(f"Connection from {self.lab.gateway} ")

    @contextmanager
    def certified(self, authority: Path, *, name: str) -> Iterator[None]:
        """The server shows its key with a certificate for a name, signed with the authority's private key."""
        public = self._host_key.with_suffix(".pub")
        run(["ssh-keygen", "-q", "-s", str(authority), "-h", "-I", name, "-n", name, str(public)])
        certificate = public.with_name(f"{self._host_key.name}-cert.pub")
        try:
            with self.configured(f"HostCertificate {certificate}"):
                yield
        finally:
            certificate.unlink()

    @contextmanager
    def key_changed(self) -> Iterator[None]:
        """The server shows another host key; the old one again at the end."""
        old = self._host_key
        self._host_key = self.folder / "host_key_changed"
        make_key(self._host_key)
        self._restart()
        try:
            yield
        finally:
            self._host_key = old
            self._restart()

    def close(self) -> None:
        """Stop listening and end every connection. Safe to call twice."""
        self.stop()
        self.kill_connections()


class OneTimeCodes:
    """Codes for PAM, each of which lets somebody in once."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "codes"
        self.path.write_text("")
        self.path.chmod(0o600)
        self.check = folder / "check-code"
        self.check.write_text(
            f'#!/bin/sh\nread -r code\ngrep -qx "$code" {self.path} && sed -i "/^$code$/d" {self.path}\n'
        )
        self.check.chmod(0o755)
        self.first_words, self.last_words = folder / "first-words", folder / "last-words"
        self.first_words.write_text("Cluster login\n")
        self.last_words.write_text("Your account has expired, see the desk\n")

    def new(self) -> str:
        """A code that nobody has used."""
        code = f"kbcode{secrets.token_hex(8)}"
        with self.path.open("a") as file:
            file.write(f"{code}\n")
        return code


def make_key(path: Path) -> None:
    """Write a new key pair without a passphrase."""
    path.unlink(missing_ok=True)
    path.with_suffix(".pub").unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "kernelbridge-test", "-f", path])
