"""Give `pip` a place to write to where the image's own folder of packages is another user's; it lasts as the container.

A Python that has a user site gets that, in the home. One that has none, as in a virtual environment, gets another laid
over it: what is installed there comes first, and all else is the image's.
"""

from __future__ import annotations

import os
import shutil
import site
import sys
import sysconfig
from typing import Dict, List, Mapping, Optional


def is_own() -> bool:
    """Whether this user may add to the packages of the kernel's Python."""
    folder = sysconfig.get_path("purelib")
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return os.access(folder, os.W_OK | os.X_OK)


def kernel_python(scratch: str) -> str:
    """Return the Python that runs the kernel: the image's, or one laid over it below the scratch folder."""
    if not sys.executable or site.ENABLE_USER_SITE or is_own():
        return sys.executable
    folder = os.path.join(scratch, "venv")
    python = os.path.join(folder, "bin", "python3")
    if not os.access(python, os.X_OK):
        try:
            _lay_over(folder, python)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            return sys.executable
    return python


def user_site(environment: Mapping[str, str]) -> Optional[str]:
    """Make the folder where pip installs for this user, lest the kernel looks there only after a restart.

    Return where its commands come; None where pip installs elsewhere.
    """
    if not site.ENABLE_USER_SITE or is_own():
        return None
    base = environment.get("PYTHONUSERBASE") or os.path.join(environment["HOME"], ".local")
    variables: Dict[str, str] = {"userbase": base}
    try:
        os.makedirs(sysconfig.get_path("purelib", "posix_user", variables), exist_ok=True)
    except OSError:
        return None
    return os.path.join(base, "bin")


def _lay_over(folder: str, python: str) -> None:
    """Make the environment, as the module venv does, which not every image has."""
    commands = os.path.dirname(python)
    version = "python%d.%d" % sys.version_info[:2]
    packages = os.path.join(folder, "lib", version, "site-packages")
    os.makedirs(commands)
    os.makedirs(packages)
    if getattr(sys, "platlibdir", "lib") != "lib":
        os.symlink("lib", os.path.join(folder, sys.platlibdir))
    base = os.path.realpath(sys.executable)
    with open(os.path.join(folder, "pyvenv.cfg"), "w") as file:
        file.write("home = %s\ninclude-system-site-packages = false\n" % os.path.dirname(base))
        file.write("version = %d.%d.%d\n" % sys.version_info[:3])
    with open(os.path.join(packages, "kernelbridge.pth"), "w") as file:
        # With what their own .pth files say, where a bare path would not do.
        file.writelines("import site; site.addsitedir(%r)\n" % one for one in site.getsitepackages())
    _lead_here(os.path.dirname(sys.executable), commands, python)
    # The last of all: by it the environment counts as made.
    for name in ("python", version, "python3"):
        os.symlink(base, os.path.join(commands, name))


def _lead_here(theirs: str, ours: str, python: str) -> None:
    """Have the image's own commands run with these packages too: torchrun trains what the kernel imports."""
    for name in os.listdir(theirs):
        path = os.path.join(theirs, name)
        if name.startswith(("python", "pip")) or not os.path.isfile(path):
            continue
        with open(path, "rb") as file:
            first = os.fsdecode(file.readline(512))
        if first.startswith("#!" + theirs + os.sep + "python"):
            write_script(os.path.join(ours, name), [python, path])


def write_script(path: str, words: List[str]) -> None:
    """Write a command that runs these words, and what follows them. Raises OSError."""
    with open(path, "w") as file:
        file.write('#!/bin/sh\nexec %s "$@"\n' % " ".join("'%s'" % word.replace("'", "'\\''") for word in words))
    os.chmod(path, 0o700)
