"""Show in one line of a terminal's stderr what a command waits for; where stderr is no terminal, nothing.

The line is gone at the end, is never longer than the terminal is wide, and leaves stdout alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import typer

from kernelbridge.hosts.progress import WorkProgress, cropped
from kernelbridge.plain_text import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

# What is over sooner needs no line.
LINE_AFTER_SECONDS: Final = 2.0
_REDRAWS_PER_SECOND: Final = 5
# How often a line looks whether another one, or a question, has gone.
_AGAIN_SECONDS: Final = 0.3
# How often a terminal that cannot erase is told what goes on, by a line that stays.
PLAIN_SECONDS: Final = 10.0
# With fewer columns the time is left out; a bar needs so many beside the text.
_LEAST_FOR_TIME: Final = 30
_LEAST_FOR_BAR, _MOST_FOR_BAR = 12, 30
# The line that is shown, if one is; and who wants to have none. Guarded by the lock.
_SHOWN: list[StatusLine] = []
_HIDERS: list[threading.Thread] = []
_LOCK = threading.RLock()


def line_of(news: str | WorkProgress, *, waited_seconds: float, columns: int) -> str:
    """Return what is going on, and how long that takes already, in at most so many columns."""
    took = f" ({int(waited_seconds)} s)" if columns >= _LEAST_FOR_TIME else ""
    room = max(0, columns - len(took))
    text = news.fitted(room) if isinstance(news, WorkProgress) else cropped(news, room)
    return f"{printable(text)}{took}"


def bar_of(percent: int | None, *, columns: int, is_ascii: bool) -> tuple[str, str]:
    """Return the parts of a bar that is done and that is not, for the columns that are left; else two empty ones."""
    width = min(columns - 2, _MOST_FOR_BAR)
    if percent is None or width < _LEAST_FOR_BAR:
        return "", ""
    done = width * percent // 100
    marks = "#-" if is_ascii else "━─"
    return marks[0] * done, marks[1] * (width - done)


class StatusLine:
    """One line, shown from start() to stop(); both may be called again. May be used from any thread."""

    def __init__(self, ask: Callable[[], str | WorkProgress], *, after_seconds: float = LINE_AFTER_SECONDS) -> None:
        """`ask` returns what is going on; it is called several times a second."""
        self._ask = ask
        self._after_seconds = after_seconds
        self._began = time.monotonic()
        # What draws the line, while it is drawn; and what begins that, or tells a terminal that cannot erase.
        self._live: Live | None = None
        self._timer: threading.Timer | None = None
        # What a terminal that cannot erase was told last.
        self._told = ""

    def __repr__(self) -> str:
        return f"<StatusLine{' drawn' if self._live else ''}>"

    def start(self) -> None:
        """Show it, after a while."""
        if sys.stderr is None or not sys.stderr.isatty():
            return
        with _LOCK:
            self._began = time.monotonic()
            self._set_timer(self._after_seconds)

    def _set_timer(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._due)
        self._timer.daemon = True
        self._timer.start()

    def _due(self) -> None:
        with _LOCK:
            if self._timer is None or threading.current_thread() is not self._timer:
                return  # It was stopped meanwhile.
            if _SHOWN or _HIDERS:
                self._set_timer(_AGAIN_SECONDS)
            elif os.environ.get("TERM", "") in ("dumb", "unknown"):
                self._tell_plainly()
                self._set_timer(PLAIN_SECONDS)
            else:
                self._draw()

    def _tell_plainly(self) -> None:
        news = self._ask()
        text = printable(str(news))
        if text != self._told:
            self._told = text
            with contextlib.suppress(OSError):
                typer.echo(text, err=True)

    def _draw(self) -> None:
        from rich.live import Live

        from kernelbridge.cli.tables import console

        self._live = Live(
            self,
            console=console(of_stderr=True),
            refresh_per_second=_REDRAWS_PER_SECOND,
            transient=True,
            # What a command prints is its own: it may be going into a file.
            redirect_stdout=False,
        )
        _SHOWN.append(self)
        self._live.start(refresh=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Called by rich for each drawing."""
        from rich.text import Text

        # Some terminals begin a new line with the last column.
        columns = max(0, options.max_width - 1)
        news = self._ask()
        text = Text(
            line_of(news, waited_seconds=time.monotonic() - self._began, columns=columns),
            no_wrap=True,
            overflow="ellipsis",
        )
        percent = news.percent if isinstance(news, WorkProgress) else None
        done, rest = bar_of(percent, columns=columns - text.cell_len, is_ascii=options.ascii_only)
        if done or rest:
            text.append("  ").append(done, "green").append(rest, "dim")
        yield from console.render(text, options.update(width=columns, no_wrap=True))

    def erase(self) -> None:
        """Take it away for now: it is drawn again when nobody wants to have none any more."""
        with _LOCK:
            live = self._let_go()
            if live is not None:
                self._set_timer(_AGAIN_SECONDS)
        self._end(live)

    def stop(self) -> None:
        """Take it away."""
        with _LOCK:
            timer, self._timer = self._timer, None
            live = self._let_go()
        if timer is not None:
            timer.cancel()
        self._end(live)

    def _let_go(self) -> Live | None:
        live, self._live = self._live, None
        if self in _SHOWN:
            _SHOWN.remove(self)
        return live

    def _end(self, live: Live | None) -> None:
        if live is not None:
            # A terminal that is gone is its reader's to tell.
            with contextlib.suppress(OSError):
                live.stop()


@contextlib.contextmanager
def status_line(ask: Callable[[], str | WorkProgress], *, after_seconds: float = LINE_AFTER_SECONDS) -> Iterator[None]:
    """Show a line while the block runs."""
    made = StatusLine(ask, after_seconds=after_seconds)
    made.start()
    try:
        yield
    finally:
        made.stop()


class News:
    """The newest word on what goes on, set on one thread and read on another."""

    def __init__(self, first: str | WorkProgress) -> None:
        self._newest = first

    def __repr__(self) -> str:
        return f"<News {self._newest}>"

    def say(self, news: str | WorkProgress) -> None:
        """Take the next."""
        self._newest = news

    def newest(self) -> str | WorkProgress:
        """Return it."""
        return self._newest


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Have the terminal without any line while the block runs, as for a question to the user; from any thread."""
    with _LOCK:
        _HIDERS.append(threading.current_thread())
        shown = list(_SHOWN)
    for one in shown:
        one.erase()
    try:
        yield
    finally:
        with _LOCK:
            _HIDERS.remove(threading.current_thread())
