"""Write a git revision of a project into a folder of its own; the project's files, index and HEAD stay as they are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from kernelbridge.errors import KernelBridgeError

CHECKOUT_SECONDS = 600.0


def check_out(root: Path, revision: str, into: Path) -> str:
    """Write a project's files of a revision into an empty or missing folder; return its commit.

    The project may be a folder of a repository: its own files alone are written. Raises KernelBridgeError.
    """
    named = _hash_of(root, revision)
    # In two steps: `:/text` takes all that follows for the text.
    commit = _hash_of(root, f"{named}^{{commit}}") if named else ""
    if not commit:
        raise KernelBridgeError(f"{root} has no git revision {revision!r}.", "`git branch --all` lists the branches.")
    folder = _git(root, ["rev-parse", "--show-prefix"]).removesuffix("\n")
    tree = _hash_of(root, f"{commit}:./") if folder else commit
    if not tree or not _hash_of(root, f"{tree}^{{tree}}"):
        sentence = f"The git revision {revision!r} has no folder {folder.rstrip('/')}, which is the workspace."
        raise KernelBridgeError(sentence, "Name a revision that has it, or leave `--git` out.")
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    index, whole = into.with_name(f"{into.name}.index"), into.with_name(f"{into.name}.whole")
    environ = {**os.environ, "GIT_INDEX_FILE": str(index)}
    try:
        _git(root, ["read-tree", commit], environ=environ)
        # All of the commit is in the index: the attributes of a folder above count.
        _git(root, ["checkout-index", "--all", "--force", f"--prefix={whole}{os.sep}"], environ=environ)
        written = whole / folder
        for made in list(written.iterdir()) if written.is_dir() else ():
            made.rename(into / made.name)
    finally:
        index.unlink(missing_ok=True)
        shutil.rmtree(whole, ignore_errors=True)
    return commit


def paths_of(root: Path, commit: str) -> frozenset[str]:
    """Return the paths of the files that a commit has in a project. Raises KernelBridgeError."""
    return frozenset(filter(None, _git(root, ["ls-tree", "-r", "-z", "--name-only", commit]).split("\0")))


def _hash_of(root: Path, revision: str) -> str:
    """Return what one revision is; empty for none, and for what names several or leaves some out."""
    found = _git(root, ["rev-parse", "--verify", "--quiet", "--end-of-options", revision]).strip()
    return found if re.fullmatch("[0-9a-f]+", found) else ""


def _git(root: Path, words: list[str], *, environ: dict[str, str] | None = None) -> str:
    """Run git in a project; return what it prints, nothing where it finds no such revision."""
    remedy = "Run it in a git repository, or without `--git`."
    try:
        done = subprocess.run(  # noqa: S603 - the words are ours, and a revision that cannot be an option
            ["git", "-C", str(root), *words],  # noqa: S607 - the user's own git
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            # Names come as this machine's own calls have them.
            encoding="utf-8",
            errors="surrogateescape",
            timeout=CHECKOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError as exc:
        raise KernelBridgeError("There is no git on this machine.", "Install it, or leave `--git` out.") from exc
    except subprocess.TimeoutExpired as exc:
        raise KernelBridgeError(f"git in {root} took longer than {CHECKOUT_SECONDS:g} s.", remedy) from exc
    if done.returncode and (done.stderr.strip() or "rev-parse" not in words):
        raise KernelBridgeError(f"git in {root}: {done.stderr.strip()}.", remedy)
    return done.stdout
