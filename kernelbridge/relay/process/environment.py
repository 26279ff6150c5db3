"""Make the variables of the kernel process: a home, a name and a temporary folder that last, and its own Python first.

All of it is the same at each launch in one container: a restart finds its files.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import tempfile
from typing import Dict, List, Mapping, Optional

from . import packages

USER_NAME = "kernelbridge"
PASSWD = "/etc/passwd"  # noqa: S105 - a file
# Commands that people take for the kernel's own, and what they run; pip may not be installed beside its Python.
_COMMANDS: Dict[str, List[str]] = {"python": [], "python3": [], "pip": ["-m", "pip"], "pip3": ["-m", "pip"]}


def scratch_folder(otherwise: str) -> str:
    """Make the folder for TMPDIR and what else the kernel lacks; below `otherwise` where no temporary one is writable.

    Its name is no other container's: debuggers name a cell's file by it (jupyterlab issue 17836).
    """
    try:
        return tempfile.mkdtemp(prefix="kernelbridge-")
    except OSError:
        return tempfile.mkdtemp(prefix="kernelbridge-", dir=otherwise)


def kernel_environment(
    inherited: Mapping[str, str], wanted: Mapping[str, str], scratch: str, python: str
) -> Dict[str, str]:
    """Return the variables: the container's, what it lacks, and over all the user's own. `python` runs the kernel."""
    environment = dict(inherited)
    environment.pop("JPY_PARENT_PID", None)
    temporary = _folder(scratch, "tmp")
    environment["TMPDIR"] = temporary
    environment["PYDEVD_IPYTHON_COMPATIBLE_DEBUGGING"] = "1"
    if not is_home(environment.get("HOME", "")):
        # The image names another user's.
        environment["HOME"] = _own_home() or _folder(scratch, "home")
    environment.update(_names(environment))
    environment.update(_python_home(python))
    path = environment.get("PATH") or os.defpath
    commands = packages.user_site({**environment, **wanted})
    if commands is not None:
        path = commands + os.pathsep + path
    if python != sys.executable:
        # Programs that are none of Python's are in the image's environment alone.
        path = search_path(path, sys.executable, "")
    environment["PATH"] = search_path(path, python, scratch)
    environment.update(wanted)
    return environment


def _own_home() -> str:
    """Return the home of this user by the container's list; empty where that is none."""
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""
    return home if is_home(home) else ""


def enterable(folder: str, home: str) -> str:
    """Return the folder where the kernel starts: as wanted, empty for this process's own, or the home."""
    return folder if os.access(folder or ".", os.X_OK) else home


def _folder(scratch: str, name: str) -> str:
    """Return a folder of the scratch folder, made anew where the user has removed it."""
    path = os.path.join(scratch, name)
    os.makedirs(path, 0o700, exist_ok=True)
    return path


def is_home(path: str) -> bool:
    """Whether programs can keep their files there."""
    return os.path.isabs(path) and os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


def _names(environment: Mapping[str, str]) -> Dict[str, str]:
    """Return variables that name a user whom the image does not know, and enter it where it may be entered."""
    uid = os.getuid()
    try:
        pwd.getpwuid(uid)
        return {}
    except KeyError:
        name = next((environment[key] for key in ("LOGNAME", "USER") if environment.get(key)), USER_NAME)
    _enter(PASSWD, "%s:x:%d:%d:%s:%s:/bin/sh\n" % (name, uid, os.getgid(), USER_NAME, environment["HOME"]))
    return {"USER": name, "LOGNAME": name}


def _enter(passwd: str, line: str) -> None:
    """Add a user where the image lets its users do so, for programs that ask for no variable (whoami, ssh)."""
    if not os.access(passwd, os.W_OK):
        return
    try:
        with open(passwd, "a+") as file:
            file.seek(0)
            text = file.read()
            if not any(other.startswith(line.partition(":")[0] + ":") for other in text.splitlines()):
                file.write(("" if not text or text.endswith("\n") else "\n") + line)
    except OSError:
        pass  # A full disk, for one: the variables are there all the same.


def _python_home(python: str) -> Dict[str, str]:
    """Return the variables by which tools find the environment of the kernel's Python."""
    if python != sys.executable:
        return {"VIRTUAL_ENV": os.path.dirname(os.path.dirname(python))}
    if os.path.isdir(os.path.join(sys.prefix, "conda-meta")):
        is_base = os.path.isdir(os.path.join(sys.prefix, "condabin"))
        return {"CONDA_PREFIX": sys.prefix, "CONDA_DEFAULT_ENV": "base" if is_base else os.path.basename(sys.prefix)}
    if sys.prefix != sys.base_prefix:
        return {"VIRTUAL_ENV": sys.prefix}
    return {}


def search_path(path: str, python: str, scratch: str) -> str:
    """Return PATH so that `python` and `pip` in a cell are the kernel's.

    An environment's own folder comes first. One that the system shares with other programs keeps its place, lest it
    hides those; the commands that would be another Python's are then written as scripts, unless `scratch` is empty.
    """
    folder = os.path.dirname(python)
    if not folder:
        return path
    folders = path.split(os.pathsep)
    if _is_environments(folder) or folder not in folders:
        folders = [folder, *(one for one in folders if one != folder)]
    path = os.pathsep.join(folders)
    if not scratch:
        return path
    scripts = [
        _script(scratch, name, [python, *rest]) for name, rest in _COMMANDS.items() if _is_others(name, folder, path)
    ]
    if any(scripts):
        path = os.path.join(scratch, "bin") + os.pathsep + path
    return path


def _is_environments(folder: str) -> bool:
    """Whether the folder belongs to a virtual or conda environment."""
    prefix = os.path.dirname(folder)
    return any(os.path.exists(os.path.join(prefix, name)) for name in ("pyvenv.cfg", "conda-meta"))


def _is_others(name: str, folder: str, path: str) -> bool:
    """Whether a command is there, and in another folder than the kernel's Python."""
    found = shutil.which(name, path=path)
    own = os.path.join(folder, name)
    return found is not None and not (os.path.exists(own) and os.path.samefile(os.path.dirname(found), folder))


def _script(scratch: str, name: str, words: List[str]) -> Optional[str]:
    """Write a command that runs the kernel's Python; None where that cannot be run from the scratch folder."""
    path = os.path.join(_folder(scratch, "bin"), name)
    try:
        packages.write_script(path, words)
    except OSError:
        return None
    return path if os.access(path, os.X_OK) else None
