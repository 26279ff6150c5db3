"""jupyter/extension.py: what the events of a Jupyter server say of GPUs and of progress, by kernel_progress.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jupyter_events import EventLogger

from kernelbridge.hosts.progress import Unit, WorkProgress
from kernelbridge.jupyter.extension import PROGRESS_SCHEMA

EVENT = {"kernel_id": "k1", "state": "idle", "text": "", "since": "2026-11-20T12:00:00+00:00", "host": "lab"}


@pytest.fixture
def logger() -> Iterator[EventLogger]:
    made = EventLogger()
    made.register_event_schema(Path(str(resources.files("kernelbridge.jupyter") / "kernel_progress.yaml")))
    yield made


@pytest.mark.parametrize("more", [{}, {"gpus": [], "job": ""}, {"gpus": ["GPU-1", "MIG-2"]}, {"job": "11"}])
def test_an_event_of_version_2_may_have_gpus_and_a_job_and_need_not(logger: EventLogger, more: dict[str, Any]) -> None:
    logger.schemas.validate_event(PROGRESS_SCHEMA, {**EVENT, **more})


@pytest.mark.parametrize("more", [{"gpus": "GPU-1"}, {"gpus": [1]}, {"job": 11}])
def test_an_event_with_gpus_of_another_kind_is_none(logger: EventLogger, more: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="is not of type"):
        logger.schemas.validate_event(PROGRESS_SCHEMA, {**EVENT, **more})


@pytest.mark.parametrize(
    "made",
    [
        WorkProgress(what="pulling a", done=1e9, total=2e9, per_second=31e6),
        WorkProgress(what="pulling a", done=1e9, total=2e9, grows=True),
        WorkProgress(what="building the image", done=3, total=9, unit=Unit.STEPS, detail="RUN x"),
        WorkProgress(what="waiting", place=2, waited_seconds=1.5, known_left_seconds=60.0),
    ],
)
def test_an_event_may_say_how_far_it_is(logger: EventLogger, made: WorkProgress) -> None:
    logger.schemas.validate_event(PROGRESS_SCHEMA, {**EVENT, "progress": made.to_json()})
    with pytest.raises(Exception, match="is not of type"):
        logger.schemas.validate_event(PROGRESS_SCHEMA, {**EVENT, "progress": {**made.to_json(), "what": 1}})
