"""Take the pictures of the running thing, in light and dark: `python docs/screenshots.py`, as root on Linux.

JupyterLab in Chromium, and `kernelbridge` in a terminal, with a real sshd and a real engine (tests/rig). No GPU is
there: the cards are stand-ins, and their names say so. VS Code is in no picture, because it is not there either.
"""

from __future__ import annotations

import ctypes
import io
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI, TerminalTheme
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.clients.lab import IMAGES, LabPage, lab_page
from tests.clients.server import JupyterServer
from tests.rig.laptop import Laptop
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig, open_rig

IMAGE = "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"
CONFIG = f"""\
[hosts.lab]
ssh = "lab"

[environments.pytorch]
image = "{IMAGE}"
gpus = 1
workspace = "."

[environments.large]
display_name = "Docker-GPU, two cards"
image = "{IMAGE}"
gpus = 2
workspace = "."
"""
FUNCTION = "def twice(value):\n    result = value * 2\n    return result\n\nanswer = twice(21)\nprint(answer)"
TRAIN = "import time\nfor step in range(1000):\n    print('step', step, flush=True)\n    time.sleep(1)\n"
# How wide the terminal is for each command: as narrow as its lines allow, for the page makes the picture smaller.
COLUMNS = {"ps": 118, "gpus": 108, "doctor": 100}
# Black, red, green, yellow, blue, magenta, cyan and white on paper.
COLORS = ("1f2933", "b91c1c", "15803d", "a16207", "1d4ed8", "86198f", "0e7490", "4b5563")


def rgb(color: str) -> tuple[int, int, int]:
    """The three numbers of a color."""
    red, green, blue = bytes.fromhex(color)
    return red, green, blue


LIGHT = TerminalTheme(rgb("ffffff"), rgb("1f2933"), [rgb(color) for color in COLORS])
DARK = DIMMED_MONOKAI
# The newest namespace of host names: of this process and its children alone.
CLONE_NEWUTS = 0x04000000
# What rich's pictures ask another site for.
FONT_FACES = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


@contextmanager
def user(rig: Rig) -> Iterator[Laptop]:
    """A user's folders, with a project that has two files."""
    folder = Path(tempfile.mkdtemp(prefix="kbd-"))
    try:
        laptop = rig.laptop(folder)
        laptop.write_config(CONFIG)
        project = folder / "project"
        project.mkdir()
        (project / "train.py").write_text(TRAIN)
        (project / "pyproject.toml").write_text("")
        os.environ.update(laptop.variables)
        yield laptop
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(laptop: Laptop) -> dict[str, str]:
    """The user's, with `kernelbridge` on the PATH and a name that is nobody's."""
    programs = str(Path(sys.executable).parent)
    names = dict.fromkeys(("USER", "LOGNAME"), "ada")
    return laptop.env | names | {"PATH": f"{programs}:{os.environ['PATH']}", "TERM": "xterm-256color"}


def printed(laptop: Laptop, line: str, *, columns: int = 80) -> str:
    """What a line of commands prints on a terminal."""
    shown: str = pexpect.run(
        f"bash -c '{line}'",
        cwd=str(laptop.home / "project"),
        env=environment(laptop),
        timeout=120,
        encoding="utf-8",
        dimensions=(50, columns),
    )
    return shown.replace("\r\n", "\n")


def terminal_picture(command: str, shown: str) -> None:
    """Draw what a command printed, in light and dark."""
    name = f"terminal-{command}"
    for scheme, theme in (("light", LIGHT), ("dark", DARK)):
        console = Console(record=True, width=COLUMNS[command], file=io.StringIO(), force_terminal=True)
        console.print(Text(f"$ kernelbridge {command}", style="bold"))
        console.print(Text.from_ansi(shown.strip()), overflow="fold")
        svg = console.export_svg(title="", theme=theme, unique_id=f"{name}-{scheme}")
        # The outline is one for dark pages only.
        svg = FONT_FACES.sub("", svg).replace("rgba(255,255,255,0.35)", "#9aa5b1")
        (IMAGES / f"{name}-{scheme}.svg").write_text(svg, "utf-8")


def terminal_pictures(rig: Rig, laptop: Laptop) -> None:
    """Run each command, and draw what it printed; this run's own folders are written as those of a user."""
    programs = str(Path(sys.executable).parent)
    folders = {str(laptop.home): "~", programs: "~/venv/bin", str(rig.engine.data): "/var/lib/docker"}
    for command, columns in COLUMNS.items():
        shown = printed(laptop, f"kernelbridge {command}", columns=columns)
        for folder, usual in folders.items():
            shown = shown.replace(folder, usual)
        terminal_picture(command, shown)


def debugged(lab: LabPage) -> None:
    """The launcher, then a notebook whose second cell stands at a breakpoint."""
    lab.picture("lab-launcher", height=456)
    lab.choose_kernel("Docker-GPU (remote)")
    lab.write(0, "import platform\nprint('in the container', platform.node())")
    lab.run(0)
    lab.expect_output(0, "in the container", seconds=60)
    lab.write(1, FUNCTION)
    lab.debugger()
    lab.set_breakpoint(1, 5)
    lab.run(1)
    lab.expect_stopped("answer = twice(21)")
    lab.press("debugger:next")
    lab.expect_stopped("print(answer)")
    lab.expect_variable("answer", "42")
    lab.hide_files()
    lab.picture("lab-debug", height=632)


def waiting(lab: LabPage) -> None:
    """A cell that waits for an image to which ipykernel is being added."""
    lab.choose_kernel("Docker-GPU (remote)")
    lab.write(0, "import platform\nprint('in the container', platform.node())")
    lab.run(0)
    lab.expect_output(0, "fetching", seconds=60)
    lab.picture("lab-progress", height=360)
    lab.expect_output(0, "in the container", seconds=300)


def main() -> None:
    """Called by scripts/docs."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUTS) != 0:
        raise SystemExit("This needs root on Linux.")
    socket.sethostname("laptop")
    os.environ.update(USER="ada", LOGNAME="ada")
    with open_rig() as rig, user(rig) as laptop:
        root, names = laptop.home / "project", laptop.variables
        rig.engine.cli("tag", rig.image, IMAGE)
        with (
            JupyterServer(laptop.home / "one", lab=True, env=names, root=root) as server,
            lab_page(server, "screenshots") as lab,
        ):
            debugged(lab)
            printed(laptop, "kernelbridge run --detach large -- python train.py")
            rig.engine.gpus.occupy(UUIDS[3])
            time.sleep(2)
            terminal_pictures(rig, laptop)
        rig.engine.gpus.occupy()
        rig.engine.sweep()
        rig.engine.cli("tag", rig.bare_image, IMAGE)
        with (
            JupyterServer(laptop.home / "two", lab=True, env=names, root=root) as server,
            lab_page(server, "screenshots") as lab,
        ):
            waiting(lab)


if __name__ == "__main__":
    main()
