"""Break the code by hand, one way after the other, and see that the worlds find each: `python -m tests.world.mutants`.

Each mutant is a change of a file's text, applied to a copy of the project; the worlds run there until one fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 60.0


class Mutant(NamedTuple):
    """A way to break the code: a file of the package, a text in it, and what stands there instead."""

    name: str
    path: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "an acknowledgement counts for one frame more",
        "protocol/session.py",
        "while self._sent and self._sent[0].number <= number:",
        "while self._sent and self._sent[0].number <= number + 1:",
    ),
    Mutant(
        "a new line is sent from where the old one was",
        "protocol/session.py",
        "self._again = deque(sent for sent in frames if sent.number > number)",
        "self._again = deque(sent for sent in frames if sent.number > number + 1)",
    ),
    Mutant(
        "what was acknowledged is not kept",
        "protocol/session.py",
        "if self._keeps and not last.flags & MORE:",
        "if False:",
    ),
    Mutant(
        "what was acknowledged is kept for ever",
        "protocol/session.py",
        "lane_out.forget_kept(now - REPLAY_SECONDS)",
        "lane_out.forget_kept(now - 60.0)",
    ),
    Mutant(
        "a take-over goes on with the numbers of before",
        "relay/server.py",
        "                self.session.hand_over()",
        "                pass",
    ),
    Mutant(
        "a take-over forgets what was begun",
        "protocol/session.py",
        "            lacking.add(self._begun)",
        "            pass",
    ),
    Mutant(
        "the last acknowledgement is not said again on a new line",
        "protocol/session.py",
        "            self._told, self.acknowledge_at, self.repeat_at = None, 0.0, None",
        "            pass",
    ),
    Mutant(
        "the journal gives the newest first",
        "relay/journal.py",
        "next(region for region in reversed(self._regions) if region)",
        "next(region for region in self._regions if region)",
    ),
    Mutant(
        "the journal counts what it trims as gone from the disk",
        "relay/journal.py",
        "        self.memory_bytes += block.batch.held_bytes\n        return",
        "        return",
    ),
    Mutant(
        "a write that is cut short is not gone on with",
        "relay/spool.py",
        "                while rest:",
        "                while False:",
    ),
    Mutant(
        "who comes back after a take-over goes on with its old numbers",
        "relay/server.py",
        "        if hello.stream in self._former:",
        "        if False:",
    ),
    Mutant(
        "a relay that is alone wakes up for an acknowledgement that is due",
        "relay/supervisor.py",
        "if self.stream.acknowledge_at is not None and self.server.takes_more:",
        "if self.stream.acknowledge_at is not None:",
    ),
    Mutant(
        "a silent line is never given up",
        "relay/server.py",
        "elif now - connection.heard > SILENCE_SECONDS:",
        "elif False:",
    ),
    Mutant(
        "a silent relay is waited for",
        "kernel/relay_client.py",
        "if loop.time() - line.heard >= SILENCE_SECONDS:",
        "if False:",
    ),
    Mutant(
        "lost_grace counts while output waits",
        "relay/supervisor.py",
        "is_delivered=not self._has_output)",
        "is_delivered=True)",
    ),
    Mutant(
        "a kernel that nobody comes back to lives for ever",
        "relay/lifetime.py",
        "        if self.detached_since is None or self.terms.persist:\n            return None",
        "        return None",
    ),
    Mutant(
        "what failed here is answered again by the relay",
        "channels/proxy.py",
        "        if self._early.is_second_answer(parent):",
        "        if False:",
    ),
    Mutant(
        "those who wait are not told of the kernel's end",
        "channels/proxy.py",
        "failure_answers(outstanding, error))",
        "[])",
    ),
    Mutant(
        "a queued request is sent twice as the kernel comes",
        "channels/waiting.py",
        "        queue, self.queue = self.queue, []\n        return answers, queue, had_busy",
        "        queue = self.queue + self.queue\n        return answers, queue, had_busy",
    ),
    Mutant(
        "a line that has no room loses what it did not take",
        "relay/server.py",
        "            del self.unsent[:done]",
        "            del self.unsent[: done + 1]",
    ),
    Mutant(
        "output overtakes output that waits",
        "channels/output_queue.py",
        "        self._queue.append(entry)\n",
        "        self._queue.appendleft(entry)\n",
    ),
    Mutant(
        "a card's lock is not taken",
        "relay/gpus/gpu_lock.py",
        "        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "        pass",
    ),
    Mutant(
        "who died in the queue is waited for",
        "hosts/docker/gpu_queue.py",
        "return now - self.beat <= ASLEEP_AFTER",
        "return True",
    ),
    Mutant(
        "a kernel that ended keeps its cards",
        "relay/gpus/gpu_lock.py",
        "            os.close(self._locks.popitem()[1])",
        "            self._locks.popitem()",
    ),
    Mutant(
        "a ticket is not given back",
        "kernel/start/gpu_allocator.py",
        "                    await place.leave()",
        "                    pass",
    ),
)


def run(mutant: Mutant, folder: Path) -> tuple[bool, float, str]:
    """Return whether the worlds found it, after how many seconds, and what they said."""
    path = folder / "kernelbridge" / mutant.path
    text = path.read_text("utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: its text is {text.count(mutant.old)} times in {mutant.path}")
    path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
    began = time.monotonic()
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.world",
                "--schedules",
                "100000",
                "--seconds",
                str(MOST_SECONDS),
                "--no-table",
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.write_text(text, "utf-8")
    said = [line for line in done.stdout.splitlines() if line]
    return done.returncode == 1, time.monotonic() - began, said[0] if said else done.stderr[-200:]


def main(names: list[str]) -> int:
    """Run all, or those whose names hold one of the words."""
    missed = 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for part in ("kernelbridge", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for mutant in MUTANTS:
            if names and not any(name in mutant.name for name in names):
                continue
            is_found, seconds, said = run(mutant, folder)
            missed += not is_found
            print(f"{'found' if is_found else 'MISSED'} in {seconds:5.1f} s: {mutant.name}: {said[:110]}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
