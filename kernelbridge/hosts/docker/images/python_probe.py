"""Find the Pythons of an image and what each has: the program that runs in the image, and what that says. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from kernelbridge.errors import ImageUnusable

# What `python` of an environment is where the user has not written it.
ANY_PYTHON: Final = "python3"
OLDEST: Final = (3, 8)
# Where images keep a Python that is not on PATH; the first of two that are equally good wins.
FOLDERS: Final = (
    "$CONDA_PREFIX/bin",
    "$VIRTUAL_ENV/bin",
    "/opt/conda/bin",
    "/opt/miniconda3/bin",
    "/opt/miniforge3/bin",
    "/opt/anaconda3/bin",
    "/opt/mamba/bin",
    "/root/miniconda3/bin",
    "/opt/conda/envs/*/bin",
    "/opt/venv/bin",
    "/venv/bin",
    "/.venv/bin",
    "/app/.venv/bin",
    "/workspace/.venv/bin",
    "/opt/*/bin",
    "/usr/local/bin",
    "/usr/bin",
)
_NAMES: Final = ("python3", "python")
# Where somebody has put one of these, there is the Python that the image was made for.
FRAMEWORKS: Final = ("torch", "tensorflow", "jax")
_MARK: Final = "kernelbridge has found "

# Runs in each Python of an image, 2.7 among them.
_FACTS: Final = f"""\
import sys
sys.path[:] = [p for p in sys.path if p]
import json, os, platform
facts = {{"path": sys.argv[1], "prefix": sys.prefix, "version": "%d.%d.%d" % sys.version_info[:3]}}
if sys.version_info >= (3, 8):
    import importlib.metadata, importlib.util, sysconfig
    facts["cache_tag"] = str(sys.implementation.cache_tag)
    facts["soabi"] = str(sysconfig.get_config_var("SOABI") or "")
    facts["libc"] = ""
    try:
        facts["libc"] = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError, AttributeError):
        import glob, subprocess
        for loader in glob.glob("/lib/ld-musl-*.so.1"):
            said = subprocess.run([loader], stderr=subprocess.PIPE).stderr.decode("utf-8", "replace")
            facts["libc"] = "musl " + said.partition("Version ")[2].split("\\n")[0].strip()
    facts["frameworks"] = [name for name in {FRAMEWORKS!r} if importlib.util.find_spec(name)]
    facts["packages"] = {{}}
    for one in importlib.metadata.distributions():
        if one.metadata["Name"]:
            facts["packages"].setdefault(one.metadata["Name"].lower().replace("_", "-").replace(".", "-"), one.version)
    info = sys.implementation.version
    facts["markers"] = {{
        "implementation_name": sys.implementation.name,
        "implementation_version": "%d.%d.%d" % info[:3],
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_full_version": platform.python_version(),
        "platform_python_implementation": platform.python_implementation(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
    }}
print({_MARK!r} + json.dumps(facts))
"""

# Runs in the first Python that can be found, and asks all of them. Everything of the image may be odd.
PROGRAM: Final = f"""\
import sys
sys.path[:] = [p for p in sys.path if p]
import glob, os, subprocess
folders = [p for p in (os.getenv("PATH") or "").split(":") if p]
for folder in {FOLDERS!r}:
    folder = os.path.expandvars(folder)
    folders += sorted(glob.glob(folder)) if "$" not in folder else []
asked = [sys.executable] if len(sys.argv) > 1 else []
seen = set()
for folder in [] if asked else folders:
    for name in {_NAMES!r}:
        path = os.path.join(folder, name)
        # A venv's Python is a link to another one: its folder tells them apart.
        where = (os.path.realpath(os.path.dirname(path)), os.path.realpath(path))
        if os.access(path, os.X_OK) and where not in seen and len(asked) < 16:
            seen.add(where)
            asked.append(path)
for path in asked:
    try:
        process = subprocess.Popen([path, "-c", {_FACTS!r}, path])
        process.wait(20) if sys.version_info[0] > 2 else process.wait()
    except Exception:
        sys.stderr.write("%s cannot be asked\\n" % path)
"""


@dataclass(frozen=True, kw_only=True)
class FoundPython:
    """One Python of an image; of one that is too old no more than its version is known."""

    path: str
    prefix: str = ""
    version: str
    # As in the names of its .pyc files and of its compiled modules: cpython-311, cpython-311-x86_64-linux-gnu.
    cache_tag: str = ""
    soabi: str = ""
    # `glibc 2.36` or `musl 1.2.4`.
    libc: str = ""
    frameworks: tuple[str, ...] = ()
    # Version by normalized name.
    packages: Mapping[str, str]
    # What requirements ask of their surroundings; see PEP 508.
    markers: Mapping[str, str]

    @property
    def number(self) -> tuple[int, ...]:
        """Its version in a form that compares."""
        return tuple(int(part) for part in self.version.split(".") if part.isdecimal())

    def to_dict(self) -> dict[str, Any]:
        """Return it as parse_python() takes it."""
        return asdict(self)


def probe_argv(python: str, *, is_only: bool) -> list[str]:
    """Return the command that asks the Pythons of an image, or this one only."""
    return [python, "-c", PROGRAM, *(["only"] if is_only else [])]


# What an image says ends in paths and command lines of this machine: what is not so is refused, or counts as not said.
_NEEDED: Final = {
    "path": re.compile(r"[^-\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,4095}"),
    "prefix": re.compile(r"[^\x00-\x1f\x7f]{0,4096}"),
    "version": re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}"),
}
_SAID: Final = {
    "cache_tag": re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"),
    "soabi": re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"),
    # What musl has between two releases goes on with letters: 1.2.4_git20230717.
    "libc": re.compile(r"(glibc|musl) [0-9]{1,2}(\.[0-9]{1,3})+(_[A-Za-z0-9_.-]{0,40})?"),
}
_MOST_WORDS, _MOST_WORD = 5000, 200


def parse_python(told: object) -> FoundPython:
    """Read what a Python, or an older record of it, says. Raises ValueError."""
    if not isinstance(told, dict):
        raise ValueError("no object")
    texts = {name: told.get(name, "") for name in (*_NEEDED, *_SAID)}
    frameworks = told.get("frameworks") or []
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(frameworks, list | tuple):
        raise ValueError("a value is of another type")
    if any(not pattern.fullmatch(texts[name]) for name, pattern in _NEEDED.items()):
        raise ValueError("there is no path or version")
    texts |= {name: "" for name, pattern in _SAID.items() if not pattern.fullmatch(texts[name])}
    return FoundPython(
        **texts,
        frameworks=tuple(one for one in FRAMEWORKS if one in frameworks),
        packages=_words(told.get("packages") or {}, "packages"),
        markers=_words(told.get("markers") or {}, "markers"),
    )


def _words(table: object, what: str) -> dict[str, str]:
    """Return an object of short texts without those that are none. Raises ValueError."""
    if not isinstance(table, dict) or not all(isinstance(word, str) for word in table.values()):
        raise ValueError(f"{what} is of another type")
    kept = list(table.items())[:_MOST_WORDS]
    return {key: word for key, word in kept if max(len(key), len(word)) <= _MOST_WORD and (key + word).isprintable()}


def parse_probe(log: str) -> list[FoundPython]:
    """Read what the program said, in order; one environment that two paths lead to counts once."""
    found: dict[str, FoundPython] = {}
    for line in log.splitlines():
        before, mark, text = line.partition(_MARK)
        if not mark or before:
            continue
        try:
            python = parse_python(json.loads(text))
        except (ValueError, RecursionError):
            continue
        found.setdefault(python.prefix or python.path, python)
    return list(found.values())


def choose(found: Sequence[FoundPython], *, image: str) -> tuple[FoundPython, str]:
    """Return the Python that kernels get, and why it is this one where there are several. Raises ImageUnusable."""
    usable = [python for python in found if python.number[:2] >= OLDEST]
    if not usable:
        remedy = "Use an image with Python 3.8 or newer, or set `python` of the environment to such a one in it."
        if not found:
            raise no_python(image)
        has = " and ".join(f"{python.version} ({python.path})" for python in found[:3])
        raise ImageUnusable(image=image, fault=f"has Python {has}; kernelbridge needs 3.8", remedy=remedy)
    best = next((python for python in usable if python.frameworks), None)
    best = best or next((python for python in usable if "ipykernel" in python.packages), usable[0])
    if len(usable) == 1:
        return best, ""
    why = f"which has {' and '.join(best.frameworks)}" if best.frameworks else "the first that was found"
    if not best.frameworks and "ipykernel" in best.packages:
        why = "which has ipykernel"
    return best, f"of its {len(usable)} Pythons {best.path}, {why}"


def no_python(image: str) -> ImageUnusable:
    """Return the error for an image in which no Python was found."""
    return ImageUnusable(
        image=image,
        fault="has no Python: there is none on its PATH, in a conda or virtual environment, or in /usr",
        remedy="Use an image with Python 3.8 or newer, or set `python` of the environment to the path of one in it.",
    )


def possible_paths(env: Mapping[str, str]) -> list[str]:
    """Return where a Python may be in an image with these variables, without a look into it."""
    folders = [folder for folder in env.get("PATH", "").split(":") if folder]
    for folder in FOLDERS:
        name, _, rest = folder.removeprefix("$").partition("/")
        if not folder.startswith("$"):
            folders.append(folder)
        elif env.get(name):
            folders.append(f"{env[name]}/{rest}")
    paths = [
        f"{folder}/{name}" for folder in folders if folder.startswith("/") and "*" not in folder for name in _NAMES
    ]
    return list(dict.fromkeys(paths))
