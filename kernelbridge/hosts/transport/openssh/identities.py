"""Collect the keys to offer, in OpenSSH's order: of files, agents and certificates. Those passed over have a reason."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh

from kernelbridge.hosts.transport.openssh.settings import Settings
from kernelbridge.plain_text import printable

AGENT_SECONDS = 10.0
# Of a key file; what is larger is something else.
_MOST_BYTES = 1 << 20
_ABSENT = "its private half is neither there nor in the agent"
_LOCKED = "it has a passphrase, and the agent does not hold it"
_FOREIGN = "not a key that OpenSSH reads"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A key that can be offered, and how users know it."""

    name: str
    # None: of its file not even the public half can be read without the passphrase.
    pair: asyncssh.SSHKeyPair | None
    # Reads the key from its file by the passphrase; None where it needs none. Raises asyncssh.KeyEncryptionError.
    unlock: Callable[[str], asyncssh.SSHKey] | None = None


@dataclass(kw_only=True)
class Identities:
    """The keys to offer, best first, and those passed over, each with its reason."""

    found: list[Identity] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    # Gives a key to the agent that was opened by its passphrase, where AddKeysToAgent says so; works inside the block.
    keep: Callable[[asyncssh.SSHKey], Awaitable[None]] | None = None


@dataclass(kw_only=True)
class _KeyFile:
    """An IdentityFile: what of it could be read."""

    name: str
    public: asyncssh.SSHKey | None = None
    pair: asyncssh.SSHKeyPair | None = None
    # As Identity has it.
    unlock: Callable[[str], asyncssh.SSHKey] | None = None
    # Why there is no pair.
    reason: str = ""

    @property
    def public_data(self) -> bytes:
        """The public half, as agents name it; empty where it is not known."""
        if self.pair is not None:
            own: bytes = self.pair.key_public_data
            return own
        return b"" if self.public is None else bytes(self.public.public_data)


@contextlib.asynccontextmanager
async def collect_identities(settings: Settings) -> AsyncIterator[Identities]:
    """Read files and ask the agent, whose keys can sign inside the block.

    Raises: ValueError: a path cannot be expanded.
    """
    made = Identities()
    if (reason := _why_no_keys(settings)) is not None:
        made.skipped.append(f"all keys ({reason})")
        yield made
        return
    files = await asyncio.to_thread(_read_files, settings)
    certificates = await asyncio.to_thread(_read_certificates, settings, made)
    async with contextlib.AsyncExitStack() as stack:
        if (agent := _agent(settings)) is not None:
            await stack.enter_async_context(agent)
        held = await _held(agent, settings, made)
        if agent is not None and (terms := _terms_of_keeping(settings)) is not None:
            made.keep = partial(_keep, agent, terms)
        _put_in_order(made, files, certificates, held, settings)
        yield made


def _terms_of_keeping(settings: Settings) -> dict[str, Any] | None:
    """Return under which terms the agent is to have keys, as AddKeysToAgent says; None: it is not.

    `ask` is taken for no: whoever has typed a passphrase was asked enough.
    """
    words = (settings.one("addkeystoagent") or "no").lower().split()
    seconds = [int(word) for word in words if word.isdecimal()]
    if not all(word.isdecimal() or word in ("yes", "true", "confirm") for word in words) or 0 in seconds:
        return None
    return {"confirm": "confirm" in words, "lifetime": seconds[0] if seconds else None}


async def _keep(agent: asyncssh.SSHAgentClient, terms: dict[str, Any], key: asyncssh.SSHKey) -> None:
    # An agent may take no keys: the login goes on.
    with contextlib.suppress(ValueError, OSError, asyncssh.Error, TimeoutError):
        async with asyncio.timeout(AGENT_SECONDS):
            await agent.add_keys([key], **terms)


def _why_no_keys(settings: Settings) -> str | None:
    # PubkeyAuthentication may also be `unbound` or `host-bound`.
    if (settings.one("pubkeyauthentication") or "yes").lower() in ("no", "false"):
        return "PubkeyAuthentication is off"
    preferred = settings.one("preferredauthentications")
    return (
        None
        if preferred is None or "publickey" in preferred.split(",")
        else "PreferredAuthentications has no publickey"
    )


def _put_in_order(
    made: Identities,
    files: Sequence[_KeyFile],
    certificates: Sequence[tuple[str, asyncssh.SSHCertificate]],
    held: Sequence[asyncssh.SSHKeyPair],
    settings: Settings,
) -> None:
    """Put certificates first, then the agent's keys that are named, its others, keys that are in files alone."""
    by_data = {pair.key_public_data: pair for pair in held if not pair.has_cert}
    named, alone = [], []
    for file in files:
        if (pair := by_data.get(file.public_data)) is not None:
            named.append(Identity(name=f"{file.name} (agent)", pair=pair))
        elif file.pair is not None:
            alone.append(Identity(name=file.name, pair=file.pair))
        elif file.unlock is not None and not settings.is_batch:
            alone.append(Identity(name=file.name, pair=_half(file.public), unlock=file.unlock))
        elif file.reason:
            made.skipped.append(f"{file.name} ({file.reason})")
    offered = {one.pair.public_data for one in named if one.pair is not None}
    others = [] if settings.is_on("identitiesonly") else [one for one in held if one.public_data not in offered]
    keys = [*named, *(Identity(name=_agents_name(one), pair=one) for one in others), *alone]
    certified = []
    for name, certificate in certificates:
        key = next((one for one in [*keys, *_hidden(held)] if _fits(one.pair, certificate)), None)
        if key is None or key.pair is None:
            made.skipped.append(f"{name} (its private key is not here)")
        else:
            certified.append(Identity(name=name, pair=_with(key.pair, certificate), unlock=key.unlock))
    made.found = [*certified, *keys]


def _hidden(held: Sequence[asyncssh.SSHKeyPair]) -> list[Identity]:
    """Return the agent's keys, for a certificate that names one of them."""
    return [Identity(name=_agents_name(pair), pair=pair) for pair in held]


def _half(key: asyncssh.SSHKey | None) -> asyncssh.SSHKeyPair | None:
    """Return a public half as what a host can be asked with whether it would take the key."""
    if key is None:
        return None
    kinds = key.sig_algorithms
    return asyncssh.SSHKeyPair(key.algorithm, key.algorithm, kinds, kinds, key.public_data, None)


def _fits(pair: asyncssh.SSHKeyPair | None, certificate: asyncssh.SSHCertificate) -> bool:
    return pair is not None and not pair.has_cert and pair.key_public_data == certificate.key.public_data


def _with(pair: asyncssh.SSHKeyPair, certificate: asyncssh.SSHCertificate) -> asyncssh.SSHKeyPair:
    certified = copy.copy(pair)
    certified.set_certificate(certificate)
    return certified


def _agents_name(pair: asyncssh.SSHKeyPair) -> str:
    return f"{printable(pair.get_comment(errors='replace') or pair.get_algorithm())} (agent)"


def _agent(settings: Settings) -> asyncssh.SSHAgentClient | None:
    """Return the agent that IdentityAgent means; not yet connected."""
    written = settings.values.get("identityagent", ["SSH_AUTH_SOCK"])[0]
    if written.lower() == "none":
        return None
    if written == "SSH_AUTH_SOCK":
        path = settings.around.environ.get(written, "")
    elif written.startswith("$") and not written.startswith("${"):
        path = settings.around.environ.get(written[1:], "")
    else:
        path = str(settings.around.moved(settings.path(written)))
    # Without a path asyncssh finds Windows' own agents.
    return asyncssh.SSHAgentClient(path) if path or sys.platform == "win32" else None


async def _held(
    agent: asyncssh.SSHAgentClient | None, settings: Settings, made: Identities
) -> Sequence[asyncssh.SSHKeyPair]:
    if settings.one("pkcs11provider"):
        made.skipped.append("PKCS11Provider (add it to the agent with `ssh-add -s`)")
    if agent is None:
        return []
    try:
        async with asyncio.timeout(AGENT_SECONDS):
            keys: Sequence[asyncssh.SSHKeyPair] = await agent.get_keys()
    except TimeoutError:
        made.skipped.append(f"the ssh agent (no answer in {AGENT_SECONDS:g} s)")
    except (ValueError, OSError, asyncssh.Error) as exc:
        made.skipped.append(f"the ssh agent ({exc})")
    else:
        return keys
    return []


def _read_files(settings: Settings) -> list[_KeyFile]:
    are_defaults = settings.changed("identityfile") is None
    files, seen = [], set()
    for path in settings.paths("identityfile"):
        name = _short(path, settings)
        file = _read_file(path, name)
        if path not in seen and not (are_defaults and file.reason == "not there"):
            files.append(file)
        seen.add(path)
    return files


def _short(path: Path, settings: Settings) -> str:
    home = settings.around.home
    return printable(f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path))


def _read_file(path: Path, name: str) -> _KeyFile:
    public = _public_of(path.with_name(f"{path.name}.pub"))
    try:
        data = _read_bytes(path)
    except OSError as exc:
        return _KeyFile(name=name, public=public, reason=_why(exc) if public is None else _ABSENT)
    try:
        pair = asyncssh.load_keypairs(asyncssh.import_private_key(data))[0]
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError, NotImplementedError) as exc:
        # Of a locked key in OpenSSH's own format the public half can be read.
        itself = _public_of(path)
        is_locked = "passphrase" in str(exc).lower()
        reason = _LOCKED if is_locked else _FOREIGN if itself is None else _ABSENT
        unlock = partial(asyncssh.import_private_key, data) if is_locked else None
        return _KeyFile(name=name, public=itself or public, unlock=unlock, reason=reason)
    return _KeyFile(name=name, pair=pair)


def _why(exc: OSError) -> str:
    return "not there" if isinstance(exc, FileNotFoundError) else (exc.strerror or str(exc)).lower()


def _read_bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise OSError("not a file")
    with path.open("rb") as file:
        return file.read(_MOST_BYTES)


def _public_of(path: Path) -> asyncssh.SSHKey | None:
    """Return the public key in a file; None where there is none."""
    try:
        return asyncssh.import_public_key(_read_bytes(path))
    except (OSError, ValueError, asyncssh.KeyImportError):
        return None


def _read_certificates(settings: Settings, made: Identities) -> list[tuple[str, asyncssh.SSHCertificate]]:
    """Read those that CertificateFile names, and those beside the keys."""
    named = settings.paths("certificatefile")
    beside = [path.with_name(f"{path.name}-cert.pub") for path in settings.paths("identityfile")]
    found = []
    for path in [*named, *(path for path in beside if path not in named)]:
        try:
            certificate = asyncssh.import_certificate(_read_bytes(path))
        except OSError as exc:
            if path in named:
                made.skipped.append(f"{_short(path, settings)} ({_why(exc)})")
        except (ValueError, asyncssh.KeyImportError):
            made.skipped.append(f"{_short(path, settings)} (not a certificate)")
        else:
            found.append((_short(path, settings), certificate))
    return found
