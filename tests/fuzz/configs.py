"""What is written into files: ssh's config, held against `ssh -G`; known_hosts; our own TOML, read and edited."""

from __future__ import annotations

import functools
import logging
import re
import shutil
import socket
import subprocess
import tempfile
import tomllib
from functools import partial
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st

from kernelbridge.config import edit, fields, load, requirements_file
from kernelbridge.errors import ConfigInvalid
from kernelbridge.hosts.transport.openssh import known_hosts
from kernelbridge.hosts.transport.openssh.address import parse_address
from kernelbridge.hosts.transport.openssh.reader import ConfigReader, Values, aliases, default_paths
from kernelbridge.hosts.transport.openssh.tokens import Around
from tests.fuzz.mutations import mutated_text, refused

# -- ssh's config

_KEYWORDS: Final = (
    *("HostName", "User", "Port", "IdentityFile", "ProxyJump", "ProxyCommand", "HostKeyAlias", "ConnectTimeout"),
    *("IdentitiesOnly", "SendEnv", "SetEnv", "ServerAliveInterval", "Compression", "user", "PORT", "Tag"),
)
_VALUES: Final = (
    *(
        "box",
        "ada",
        "22",
        "2222",
        "~/.ssh/id_a",
        "jump",
        "none",
        "yes",
        "no",
        "10",
        "1m30s",
        "%h.example",
        "A=b",
        "LC_*",
    ),
    *(
        '"a b"',
        "'x'",
        "a b",
        "a # b",
        "a#b",
        r"a\ b",
        "ssh -W %h:%p jump",
        "u@j:2,k",
        "",
        '""',
        "0",
        "65536",
        "-1",
        '"',
        "%%",
    ),
    *('"box" # c', "=box", "= box", "é", "BOX", "a\\b", "1h2", "2w", "none ", "\tbox\t", '"a"b', "j1,j2"),
)
_BLOCKS: Final = (
    *(
        "Host lab",
        "Host *",
        "Host l?b",
        "Host other",
        "Host lab !lab",
        "Host !other *",
        "Host LAB",
        'Host "lab"',
        "Host=lab",
    ),
    *(
        "Host other,lab",
        "Match all",
        "Match host lab",
        "Match host box",
        "Match originalhost lab",
        "Match user ada",
        "Match",
    ),
    *(
        "Match host lab,other",
        "Match !host lab",
        "Match host=lab",
        "Match user root",
        "Match exec true",
        "Match exec false",
    ),
    *("Match localuser root", "Match host l* user ada", "Match tagged x", 'Match host "lab"', "Match all user ada"),
)
_LINE: Final = st.one_of(
    st.builds(
        lambda word, mark, value: word + mark + value,
        st.sampled_from(_KEYWORDS),
        st.sampled_from((" ", "=", " = ", "\t")),
        st.sampled_from(_VALUES),
    ),
    st.sampled_from(_BLOCKS),
    st.sampled_from(
        ("", "# a", "  # b", "\r", "Include nowhere/*", "UseKeychain yes", "Bogus x", "IgnoreUnknown Bogus")
    ),
)
SSH: Final = st.one_of(
    st.lists(_LINE, max_size=9).map("\n".join),
    st.lists(_LINE, max_size=9).map("\r\n".join),
    mutated_text(
        [
            "Host lab\n HostName box\n User ada\n Port 2222\n"
            "Match user ada\n IdentityFile ~/.ssh/a\nHost *\n ProxyJump j\n"
        ]
    ),
)
# What a login is made of. `ssh -G` prints more, and of these also what stands in no file.
_COMPARED: Final = (
    "hostname",
    "user",
    "port",
    "proxyjump",
    "proxycommand",
    "hostkeyalias",
    "connecttimeout",
    "sendenv",
    "setenv",
)


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="kernelbridge-fuzz-"))


def _oracle(config: Path) -> dict[str, list[str]] | None:
    """Return what `ssh -G` says; None where it refuses."""
    said = subprocess.run(["ssh", "-G", "-F", str(config), "lab"], capture_output=True, stdin=subprocess.DEVNULL)
    if said.returncode:
        return None
    values: dict[str, list[str]] = {}
    for line in said.stdout.decode("utf-8", "surrogateescape").splitlines():
        keyword, _, value = line.partition(" ")
        values.setdefault(keyword, []).append(value)
    return values


def check_ssh(text: str) -> None:
    """Our own reader says what `ssh -G` says, wherever that says anything; it refuses in one way."""
    folder = _folder()
    config = folder / ".ssh" / "config"
    config.parent.mkdir(exist_ok=True)
    config.write_text(text, "utf-8", newline="")
    around = Around(home=folder, database_home=folder, user="root", uid="0", machine="box", environ={})
    reader = ConfigReader("lab", user=None, port=None, around=around, exec_seconds=5)
    logging.disable(logging.CRITICAL)
    try:
        ours = refused(lambda: reader.read([config]), ValueError)
        aliases(around, default_paths(around)[:1])
    finally:
        logging.disable(logging.NOTSET)
    theirs = _oracle(config) if shutil.which("ssh") else None
    if theirs is not None:
        assert ours is not None, "ssh takes it, and we refuse"
        assert _compared(ours) == _compared(theirs)


def _compared(values: Values) -> dict[str, list[str]]:
    plain: dict[str, list[str]] = {}
    for keyword in _COMPARED:
        found = [value for value in values.get(keyword, ()) if value.lower() not in ("none", "")]
        if keyword in ("hostname", "hostkeyalias"):
            found = [_plain(value.lower()) for value in found]
        # ssh puts what could be an address into brackets.
        plain[keyword] = sorted(found) if keyword.endswith("env") else [re.sub(r"[][]", "", one) for one in found]
    return plain


def _plain(value: str) -> str:
    """Return a value as ssh prints it, which writes `22` as the address that it is."""
    try:
        return socket.inet_ntoa(socket.inet_aton(value)) if value.isdecimal() else value
    except OSError:
        return value


KNOWN: Final = mutated_text(
    [
        "lab ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIMxHzcyMNwCQrV2rWDEUZvWGc4F0yDHqsTLdXZ6sH2p\n"
        "[lab]:2222,*.lab,!x.lab ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIMxHzcyMNwCQrV2rWDEUZvWGc4F0yDHqsTLdXZ6sH2p c\n"
        "@revoked lab ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIMxHzcyMNwCQrV2rWDEUZvWGc4F0yDHqsTLdXZ6sH2p\n"
        "@cert-authority * ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIMxHzcyMNwCQrV2rWDEUZvWGc4F0yDHqsTLdXZ6sH2p\n"
        "|1|3ux0CoZTpTO1ZdRZ4OoVzbUVGYY=|zWNhBGAbIJ2kpZ3+oj0RwUv3pUQ= ssh-ed25519 AAAA\n# no\n"
    ]
)


def check_known(text: str) -> None:
    """Lines that cannot be read are nobody's; addresses are read or refused."""
    for port in (22, 2222):
        assert known_hosts._match(text, "lab", port) is not None
    for line in text.splitlines()[:3]:
        refused(partial(parse_address, line), ValueError)


# -- ours

_TOML: Final = """\
# mine
[hosts.lab]
ssh = "ada@lab:22"   # the one
gpus = ["0"]

[hosts.cluster]
ssh = "login"
scheduler = "slurm"
runtime = "apptainer"

[defaults]
shm_size = "8g"
env = { HF_HOME = "/cache" }

[environments.torch]
display_name = "Torch"
hosts = ["lab", "local"]
image = "a/b:1"
gpus = { wanted = 1, min = 0 }
mounts = ["/data:/data:ro", "~/x:/y"]
cpus = 2.5
memory = "8 GiB"
time_limit = "4h"
forwards = [8888, "8080:80"]
persist = true
ulimits = { nofile = 1024 }
workspace = "."
wait = "30m"

[environments."with blank"]
image = "c"
build = { context = ".", args = { A = "b" } }
packages = ["numpy>=1"]
"""
TOML: Final = mutated_text(
    [_TOML, _TOML, 'hosts = { lab = { ssh = "lab" } }\nenvironments = {}\n', "[hosts]\n[environments]\n"]
)


def check_toml(text: str) -> None:
    """Any file is a config, or all that is wrong with it; what is added leaves the rest as it was."""
    path = Path("/nowhere/kernelbridge.toml")
    config = refused(lambda: load.parse(text, path), ConfigInvalid)
    if config is None:
        return
    load.warnings(config)
    load.display_names(config)
    before = tomllib.loads(text)
    written, host = edit.with_host(text, "lab", "ada@fresh")
    written, name = edit.with_environment(written, "torch", {"image": "fresh:1", "hosts": [host], "gpus": 1})
    after = tomllib.loads(written)
    assert after["hosts"].pop(host)["ssh"] == "ada@fresh"
    assert after["environments"].pop(name)["image"] == "fresh:1"
    for section, table in before.items():
        assert {key: one for key, one in after[section].items() if key in table} == table or section not in (
            "hosts",
            "environments",
        )
    keyed = edit.with_host_keys(written, host, {"scheduler": "slurm"})
    assert tomllib.loads(keyed)["hosts"][host] == {"ssh": "ada@fresh", "scheduler": "slurm"}


FIELDS: Final = mutated_text(
    [
        *(
            "8 GiB",
            "4h",
            "1d 2h",
            "0.5",
            "1.5g",
            "8080:80",
            "/a:/b:ro",
            "name:/b:rw,z",
            "/scratch:size=1g",
            "GPU-1",
            "a-b",
        ),
        *(
            "torch>=2 ; python_version<'4'\n-r x\n",
            "a[b,c] == 1.*, < 2",
            "x @ https://r.example/x.whl",
            "lab:10.0.0.1",
            "2:4",
        ),
    ]
)


def check_fields(text: str) -> None:
    """Values of one line are read or refused; sizes and times come back as they were."""
    for read, write in ((fields.parse_size, fields.size_text), (fields.parse_duration, fields.duration_text)):
        value: Any = refused(partial(read, text), ValueError)
        if value is not None:
            assert 0 <= value < float("inf")
            assert read(write(value)) == value
    for check in (
        *(fields.parse_gpus, fields.parse_ulimit, fields.parse_mount, fields.parse_tmpfs, fields.parse_forward),
        *(
            fields.check_source,
            fields.check_mount_source,
            fields.check_mount_target,
            fields.check_git,
            fields.check_ssh,
        ),
        *(fields.check_path_inside, fields.check_environment_name, fields.check_extra_host, fields.check_command),
    ):
        refused(partial(check, text), ValueError)
    fields.looks_secret("HF_TOKEN", text)
    for line in text.splitlines():
        requirements_file._wrong(line)
