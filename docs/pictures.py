"""Draw the diagrams of the architecture page as SVG: `python docs/pictures.py` writes them to docs/images/.

Pictures of the running thing: screenshots.py.

Each has a light background of its own, so that it can be read in a dark theme too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"

INK, FAINT, LINE = "#1f2933", "#52606d", "#9aa5b1"
OUT, BACK, PAPER = "#1d4ed8", "#15803d", "#ffffff"
ZONES = ("#eef4ff", "#f3f4f6", "#ecfdf3")
FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""

# What each layer of the package is for; which there are, and in which order, is read from pyproject.toml.
LAYERS = {
    "__main__": "the command kernelbridge",
    "cli": "asked by a terminal",
    "jupyter": "asked by Jupyter or an editor",
    "fleet": "all kernels of this process",
    "kernel": "one kernel's life",
    "files": "the workspace, here and there",
    "hosts": "one machine: SSH, Docker, Slurm, GPUs",
    "config": "what the user wrote",
    "channels": "five ZMQ sockets",
    "relay": "runs in the container",
    "protocol": "the relay's stream, pure",
    "errors": "every error",
    "mailbox": "calls into a loop",
    "atomic_files": "whole or not at all",
    "plain_text": "fit for a terminal",
}


@dataclass(frozen=True, kw_only=True)
class Actor:
    """One column of a sequence diagram: its name, what it is, and in which zone it stands."""

    name: str
    detail: str
    zone: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """An arrow from one column to another, or, within one column, a note."""

    start: int
    end: int
    text: str
    is_back: bool = False


@dataclass(frozen=True, kw_only=True)
class Trip:
    """A sequence diagram."""

    title: str
    zones: tuple[str, ...]
    actors: tuple[Actor, ...]
    steps: tuple[Step, ...]


EXECUTE = Trip(
    title="One execute_request out, and its output back",
    zones=("your machine", "the host", "the container"),
    actors=(
        Actor(name="Client", detail="VS Code, Lab", zone=0),
        Actor(name="channels/", detail="ZMQ thread", zone=0),
        Actor(name="kernel/", detail="loop thread", zone=0),
        Actor(name="hosts/", detail="SSH, exec stream", zone=0),
        Actor(name="sshd, dockerd", detail="not ours", zone=1),
        Actor(name="relay/", detail="under init", zone=2),
        Actor(name="ipykernel", detail="the kernel process", zone=2),
    ),
    steps=(
        Step(start=0, end=1, text="execute_request"),
        Step(start=1, end=1, text="sockets.py, messages.py (signature), proxy.py"),
        Step(start=1, end=2, text="to the loop (mailbox.py)"),
        Step(start=2, end=2, text="relay_client.py; protocol/session.py numbers the frames"),
        Step(start=2, end=3, text="frames"),
        Step(start=3, end=4, text="transport/ssh.py"),
        Step(start=4, end=5, text="stdin of bridge"),
        Step(start=5, end=5, text="server.py reads; supervisor.py passes on"),
        Step(start=5, end=6, text="kernel_client.py"),
        Step(start=6, end=5, text="output, reply", is_back=True),
        Step(start=5, end=5, text="batching.py; journal.py keeps it until acknowledged"),
        Step(start=5, end=4, text="stdout of bridge", is_back=True),
        Step(start=4, end=3, text="docker/hijack.py", is_back=True),
        Step(start=3, end=2, text="frames", is_back=True),
        Step(start=2, end=1, text="messages, in batches", is_back=True),
        Step(start=1, end=1, text="output_queue.py and rate_limit.py: when it may go"),
        Step(start=1, end=0, text="signed, client's key", is_back=True),
        Step(start=2, end=5, text="acknowledgement: the journal forgets, 2 s later"),
    ),
)

START = Trip(
    title="One start",
    zones=("your machine", "the host", "the container"),
    actors=(
        Actor(name="jupyter/ or cli/", detail="who asks", zone=0),
        Actor(name="fleet/", detail="fleet.py", zone=0),
        Actor(name="channels/", detail="five sockets", zone=0),
        Actor(name="kernel/", detail="kernel.py", zone=0),
        Actor(name="hosts/", detail="one link", zone=0),
        Actor(name="sshd, dockerd", detail="or Slurm", zone=1),
        Actor(name="relay/", detail="and the kernel", zone=2),
    ),
    steps=(
        Step(start=0, end=1, text="start this environment"),
        Step(start=1, end=2, text="bind, and wait"),
        Step(start=2, end=2, text="waiting.py answers kernel_info, queues the rest, shows progress"),
        Step(start=1, end=3, text="check (preflight.py)"),
        Step(start=3, end=4, text="host, engine, image?"),
        Step(start=4, end=5, text="log in, ask"),
        Step(start=3, end=0, text="errors so far are raised; else the sockets are handed out", is_back=True),
        Step(start=3, end=3, text="gpu_allocator.py picks free GPUs, or queues for them"),
        Step(start=3, end=4, text="launch.py, an undo stack"),
        Step(start=4, end=5, text="pull, create, start"),
        Step(start=4, end=6, text="bootstrap.py, over stdin: the relay's code, what to start, secrets"),
        Step(start=6, end=6, text="gpu_lock.py: all cards or exit 75"),
        Step(start=6, end=6, text="kernel_process.py"),
        Step(start=3, end=6, text="HELLO, by an exec stream (relay_client.py)"),
        Step(start=6, end=3, text="WELCOME; later the event ready, with kernel_info", is_back=True),
        Step(start=3, end=2, text="open", is_back=True),
        Step(start=2, end=6, text="the queue, in order"),
    ),
)


def _text(
    x: float, y: float, text: str, *, size: int = 13, fill: str = INK, anchor: str = "middle", **more: str
) -> str:
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{fill}"{extra}>{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str, **more: str) -> str:
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"{extra}/>'


def _svg(width: float, height: float, title: str, body: Sequence[str]) -> str:
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" {FONT}>',
        f"<title>{escape(title)}</title>",
        _rect(0, 0, width, height, PAPER, rx="8"),
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


COLUMN, MARGIN, HEAD, ROW = 124, 12, 92, 42


def sequence(trip: Trip) -> str:
    """Return a sequence diagram as SVG."""
    width = 2 * MARGIN + COLUMN * len(trip.actors)
    height = HEAD + ROW * (len(trip.steps) + 1)
    centers = [MARGIN + COLUMN * (index + 0.5) for index in range(len(trip.actors))]
    body = ["<defs>", *(_tip(color) for color in (OUT, BACK)), "</defs>"]
    for zone, name in enumerate(trip.zones):
        columns = [index for index, actor in enumerate(trip.actors) if actor.zone == zone]
        left, right = MARGIN + COLUMN * columns[0], MARGIN + COLUMN * (columns[-1] + 1)
        body.append(_rect(left + 3, 8, right - left - 6, height - 16, ZONES[zone], rx="6"))
        body.append(_text((left + right) / 2, 27, name, fill=FAINT, font_style="italic"))
    for x, actor in zip(centers, trip.actors, strict=True):
        body.append(_text(x, 52, actor.name, size=14, font_weight="600"))
        body.append(_text(x, 69, actor.detail, size=11, fill=FAINT))
        body.append(f'<path d="M{x:g},80 V{height - 16:g}" stroke="{LINE}" stroke-dasharray="3 4"/>')
    for row, step in enumerate(trip.steps):
        body += _step(step, centers, HEAD + ROW * (row + 0.75), width)
    return _svg(width, height, trip.title, body)


def _tip(color: str) -> str:
    return (
        f'<marker id="tip{color[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{color}"/></marker>'
    )


def _step(step: Step, centers: Sequence[float], y: float, width: float) -> list[str]:
    # About the width of a text in this font; a label stays within the picture.
    long = 6.9 * len(step.text) + 16
    if step.start == step.end:
        x = min(max(centers[step.start], MARGIN + long / 2), width - MARGIN - long / 2)
        box = _rect(x - long / 2, y - 18, long, 24, PAPER, stroke=LINE, rx="4")
        return [box, _text(x, y - 2, step.text)]
    start, end = centers[step.start], centers[step.end]
    color = BACK if step.is_back else OUT
    x = min(max((start + end) / 2, MARGIN + long / 2), width - MARGIN - long / 2)
    tip = f'marker-end="url(#tip{color[1:]})"'
    arrow = f'<path d="M{start:g},{y:g} H{end:g}" stroke="{color}" stroke-width="1.6" fill="none" {tip}/>'
    # The outline keeps the text apart from the lines that it crosses.
    label = _text(x, y - 9, step.text, paint_order="stroke", stroke=PAPER, stroke_width="4", stroke_linejoin="round")
    return [arrow, label]


def layers() -> str:
    """Return the layers of the package as SVG, as the contract in pyproject.toml has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    contract = next(one for one in settings["contracts"] if one.get("containers") == ["kernelbridge"])
    rows = [[name.strip() for name in row.split("|")] for row in contract["layers"]]
    width, row_height, top = 860, 58, 14
    height = top + row_height * len(rows) + 30
    body = []
    for number, names in enumerate(rows):
        y, share = top + row_height * number, (width - 2 * MARGIN) / len(names)
        for index, name in enumerate(names):
            x = MARGIN + share * index
            body.append(_rect(x + 3, y, share - 6, row_height - 8, ZONES[0], stroke=LINE, rx="6"))
            middle = x + share / 2
            is_folder = (ROOT / "kernelbridge" / name).is_dir()
            body.append(_text(middle, y + 21, name + ("/" if is_folder else ".py"), size=14, font_weight="600"))
            body.append(_text(middle, y + 39, LAYERS[name], size=12, fill=FAINT))
    body.append(_text(width / 2, height - 14, "each imports from the layers below it, never from above", fill=FAINT))
    return _svg(width, height, "The layers of the package", body)


def drawn() -> dict[Path, str]:
    """Return every picture with the text of its file."""
    return {
        IMAGES / "layers.svg": layers(),
        IMAGES / "execute-trip.svg": sequence(EXECUTE),
        IMAGES / "start-trip.svg": sequence(START),
    }


if __name__ == "__main__":
    for path, text in drawn().items():
        path.write_text(text, "utf-8")
