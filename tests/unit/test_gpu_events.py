"""What events and REST of a Jupyter server say of GPUs: handlers.py, kernel_progress.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jupyter_events import EventLogger
from tornado.web import HTTPError

from kernelbridge.errors import ConfigMissing
from kernelbridge.fleet import Fleet
from kernelbridge.jupyter import handlers
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


async def test_a_config_that_cannot_be_read_is_an_error_500_with_its_sentence(tmp_path: Path) -> None:
    missing = tmp_path / "k.toml"
    with pytest.raises(HTTPError) as caught:
        await handlers._asked(missing, Fleet.list_gpus)
    assert (caught.value.status_code, caught.value.reason) == (
        500,
        ConfigMissing(path=str(missing), reason="there is no such file").sentence,
    )
