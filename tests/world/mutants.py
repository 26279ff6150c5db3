"""Break the code by hand, one way after the other, and see that the worlds find each: `python -m tests.world.mutants`.

Each mutant is a change of a file's text, applied to a copy of the project; the worlds run there until one fails.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# Of a processor.
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
    Mutant(
        "the queue's newest ticket comes first",
        "hosts/docker/gpu_queue.py",
        "return sorted(found, key=lambda ticket: (ticket.created, ticket.kernel_id))",
        "return sorted(found, key=lambda ticket: (ticket.created, ticket.kernel_id), reverse=True)",
    ),
    Mutant(
        "who waits is ahead of itself",
        "hosts/docker/gpu_queue.py",
        "for ticket in tickets[:place] if",
        "for ticket in tickets[: place + 1] if",
    ),
    Mutant(
        "signs of life come too seldom",
        "hosts/docker/gpu_queue.py",
        "BEAT_SECONDS: Final = 10.0",
        "BEAT_SECONDS: Final = 200.0",
    ),
    Mutant(
        "old signs of life stay",
        "hosts/docker/gpu_queue.py",
        "        if number > 1:\n",
        "        if False:\n",
    ),
    Mutant(
        "who keeps its container is not asked whether it holds cards",
        "kernel/start/gpu_allocator.py",
        "if time.monotonic() - queue.asked_at > ASK_AGAIN_SECONDS:",
        "if False:",
    ),
    Mutant(
        "who gets one card of two keeps it",
        "relay/gpus/gpu_lock.py",
        "        except Refused:\n            self.give_back()\n",
        "        except Refused:\n",
    ),
    Mutant(
        "what those ahead could use is given away",
        "hosts/gpus/selection.py",
        "        kept |= _with_families(board.families, (gpu.uuid for gpu in share))\n",
        "",
    ),
    Mutant(
        "a container that was only made holds its cards",
        "kernel/start/gpu_holders.py",
        '        if facts.state == "created":\n            claimed.update(gpus)\n        elif facts.state in _HOLDING:',
        '        if facts.state == "created" or facts.state in _HOLDING:',
    ),
    Mutant(
        "a block that was read keeps its place on the disk",
        "relay/journal.py",
        "        self._spool.free(slot)\n        block.batch",
        "        block.batch",
    ),
    Mutant(
        "a block is written over the first of its file",
        "relay/spool.py",
        "        offset = segment.end\n",
        "        offset = 0\n",
    ),
    Mutant(
        "a read that is cut short is taken for all",
        "relay/spool.py",
        "offset, size_bytes = offset + len(piece), size_bytes - len(piece)",
        "offset, size_bytes = offset + len(piece), 0",
    ),
    Mutant(
        "a notice counts the last of what was dropped",
        "relay/eviction.py",
        "        notice.messages += messages\n",
        "        notice.messages = messages\n",
    ),
    Mutant(
        "the journal has no bound",
        "relay/journal.py",
        "is_over = is_full or self.held_bytes > self._limit_bytes",
        "is_over = is_full",
    ),
    Mutant(
        "lost_grace counts from before the owner was lost",
        "relay/lifetime.py",
        "max(self.idle_since, self.detached_since) + self.terms.lost_grace",
        "self.idle_since + self.terms.lost_grace",
    ),
    Mutant(
        "a kernel that is to be kept ends as any",
        "relay/lifetime.py",
        "if self.detached_since is None or self.terms.persist:",
        "if self.detached_since is None:",
    ),
    Mutant(
        "a kernel that is to run on ends with its owner",
        "relay/lifetime.py",
        "if ends and not (self.terms.persist",
        "if not (self.terms.persist",
    ),
    Mutant(
        "max_lifetime counts from the last launch",
        "relay/lifetime.py",
        "Deadline(self.started_at + self.terms.max_lifetime,",
        "Deadline(self.idle_since + self.terms.max_lifetime,",
    ),
    Mutant(
        "an end of the launch before is taken for the kernel's",
        "kernel/lifecycle.py",
        "isinstance(event, Joined) or event.launch == life.launch",
        "True",
    ),
    Mutant(
        "a restart has the number of the launch before",
        "kernel/lifecycle.py",
        "    life.launch += 1\n",
        "    life.launch += 0\n",
    ),
    Mutant(
        "the limiter forgets what went",
        "channels/rate_limit.py",
        "        self._sent_messages += one.messages\n        self._sent_bytes += one.stream_bytes\n",
        "",
    ),
    Mutant(
        "a shutdown leaves in the queue what it has answered",
        "channels/waiting.py",
        "                answers += messages.aborted_answer(request)\n        self.queue.clear()\n",
        "                answers += messages.aborted_answer(request)\n",
    ),
    Mutant(
        "an interrupt leaves in the queue what it has answered",
        "channels/waiting.py",
        "        self.queue = [request for request in self.queue if not self._is_open_execute(request)]\n",
        "",
    ),
    Mutant(
        "another owner is let in without taking it",
        "relay/server.py",
        "self.connection.owner != hello.owner and not hello.take:",
        "False:",
    ),
    Mutant(
        "nobody notes that the owner's line has ended",
        "relay/server.py",
        "            self.close_connection()\n            self._supervisor.left()\n",
        "            self.close_connection()\n",
    ),
    Mutant(
        "a piece of a message goes for all of it",
        "protocol/session.py",
        "                    flags |= MORE\n",
        "",
    ),
    Mutant(
        "what cannot be handed on is acknowledged",
        "kernel/relay_client.py",
        "outgoing(now, acknowledges=self._listener.acknowledges())",
        "outgoing(now)",
    ),
)


def processor_seconds() -> float:
    """How long all that was started and has ended has computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(mutant: Mutant, folder: Path) -> tuple[bool, float, str]:
    """Return whether the worlds found it, after how many seconds, and what they said."""
    path = folder / "kernelbridge" / mutant.path
    text = path.read_text("utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: its text is {text.count(mutant.old)} times in {mutant.path}")
    path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
    began = processor_seconds()
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
    return done.returncode == 1, processor_seconds() - began, said[0] if said else done.stderr[-200:]


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
