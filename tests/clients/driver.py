"""Drives a client stand-in (vscode_raw.mjs, services.mjs): a JSON line asks for a step, one answers. Lab: lab.py."""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
Answer = dict[str, Any]


class StepFailed(AssertionError):
    """A step of the client went wrong; `answer` is what it said of it."""

    def __init__(self, answer: Answer, stderr: str) -> None:
        self.answer = answer
        facts = json.dumps(answer, indent=1)
        super().__init__(f"{answer['do']}: {answer.get('error')}\n{facts}\n-- the client's stderr\n{stderr}")


class NodeClient:
    """One stand-in process. The end of the `with` block closes it as its user would."""

    def __init__(self, script: str, settings: dict[str, Any]) -> None:
        if not (HERE / "node_modules").is_dir():
            raise AssertionError("the clients' libraries are missing: run `npm ci` in tests/clients")
        # The client's own log, shown when a step fails; closed with the client.
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            ["node", str(HERE / script), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        # Answers in the order of the questions; None when the client has ended.
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    @property
    def stderr(self) -> str:
        """The last lines that the client and its libraries logged."""
        self._stderr.seek(0)
        return "".join(self._stderr.readlines()[-40:])

    def ask(self, do: str, *, timeout: float = 75, check: bool = True, **step: Any) -> Answer:
        """The answer to one step. With `check` a failed step, or a message lost or refused there, is an error."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **step}) + "\n")
        self.process.stdin.flush()
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise StepFailed({"do": do, "error": f"no answer within {timeout} s"}, self.stderr) from None
        if line is None:
            raise StepFailed({"do": do, "error": "the client has ended"}, self.stderr)
        answer: Answer = json.loads(line)
        if check and (not answer["ok"] or answer.get("faults")):
            raise StepFailed(answer, self.stderr)
        return answer

    def begin(self, do: str, **step: Any) -> int:
        """Start a step and return its job number; its answer comes from `finish`."""
        return int(self.ask(do, background=True, **step)["job"])

    def finish(self, job: int, *, timeout: float = 60, check: bool = True) -> Answer:
        """The answer of a step that `begin` started."""
        return self.ask("wait", timeout=timeout, check=check, job=job)

    def execute(self, code: str, *, timeout: float = 60, check: bool = True, **step: Any) -> Answer:
        """Run a cell; `screen` of the answer is the text that stands under it at the end."""
        return self.ask("execute", timeout=timeout + 5, check=check, code=code, timeout_ms=int(timeout * 1000), **step)

    def kill(self) -> None:
        """SIGKILL: the client is gone without a word to anybody."""
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        """End as when the window is closed. Safe to call twice."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if self.process.poll() is None:
            try:
                self.process.stdin.close()
                self.process.wait(15)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                self.kill()
        self._reader.join(10)
        self.process.stdout.close()
        if not self.process.stdin.closed:
            with suppress(BrokenPipeError):  # What it had not read died with it.
                self.process.stdin.close()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<NodeClient {self.process.args!r} exit={self.process.poll()}>"
