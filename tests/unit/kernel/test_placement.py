"""kernel/placement.py: where one kernel is, from the first wish to its end, and what is written down of it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Workspace
from kernelbridge.files.project import Checkout, Project
from kernelbridge.kernel.placement import Placement
from kernelbridge.kernel.process_mark import own_mark
from kernelbridge.kernel.records import ImageRecord, KernelRecord, Records, SessionRecord
from kernelbridge.kernel.request import KernelServices, LaunchRequest
from kernelbridge.kernel.start.preflight import Candidates
from kernelbridge.protocol.handshake import Owner
from tests.made_engines import LAB, MINE, TWO, image, launch_request

# Of a process that is no more, and of another one that lives.
DEAD = "1@0.00"
INFO = {"banner": "hello"}


class Scene:
    """A kernel's placement, as this process knows them; `news` has what it heard of the image."""

    def __init__(self, folder: Path, request: LaunchRequest) -> None:
        self.records = Records(folder)
        self.news: list[tuple[dict[str, Any], str | None]] = []
        nothing: Any = None
        self.services = KernelServices(
            poller=nothing,
            records=self.records,
            owner=Owner(mark="m:1@1.00:x", who="ada@laptop"),
            mark=own_mark(),
            config="/kernelbridge.toml",
            limits=None,
            labels=nothing,
            engine=nothing,
            cluster=nothing,
            backend=nothing,
            rest=nothing,
            observe=nothing,
        )
        self.placement = Placement(
            request, self.services, session="s", image_known=lambda info, widgets: self.news.append((info, widgets))
        )

    @property
    def record(self) -> KernelRecord:
        found = self.records.kernel(MINE)
        assert found is not None
        return found

    def another_has_it(self, process: str = DEAD) -> None:
        self.placement.remember()
        self.records.keep(replace(self.record, process=process))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path, launch_request(hosts=(LAB, TWO)))


def test_before_anything_is_known_the_first_host_stands_for_all(scene: Scene) -> None:
    where = scene.placement
    assert (where.host, where.hosts, where.gpu_ids, where.job) == (LAB, (LAB, TWO), (), "")
    assert repr(where) == "<Placement lab, 0 GPUs>"
    assert scene.records.kernels() == []


def test_the_check_leaves_the_hosts_that_may_have_it(scene: Scene) -> None:
    scene.placement.set_candidates(Candidates(hosts=(TWO,), image=image("sha256:1")))
    assert (scene.placement.host, scene.placement.hosts) == (TWO, (TWO,))
    assert scene.placement.image.has_id


def test_what_an_image_is_known_for_is_told_as_soon_as_its_id_is_known(scene: Scene) -> None:
    known = ImageRecord(kernel_info=INFO, widgets="8.1")
    scene.records.keep_image(name="torch:2 python3", image_id="sha256:1 python3", record=known)
    scene.placement.set_image(image("sha256:2"))
    scene.placement.set_image(None)
    assert scene.news == []
    scene.placement.set_image(image("sha256:1"))
    assert scene.news == [(INFO, "8.1")]


def test_a_host_that_has_it_is_written_down_with_its_gpus(scene: Scene) -> None:
    before = time.time()
    scene.placement.settle(LAB, ["GPU-0", "GPU-1"])
    assert repr(scene.placement) == "<Placement lab, 2 GPUs>"
    record = scene.record
    assert (record.host, record.gpus, record.holder) == ("lab", ("GPU-0", "GPU-1"), own_mark())
    assert (record.environment, record.image, record.session) == ("torch", "torch:2", "s")
    assert (record.config, record.left) == ("/kernelbridge.toml", None)
    assert before <= record.started <= time.time()
    assert scene.placement.is_held


def test_a_job_is_known_by_its_number(scene: Scene) -> None:
    scene.placement.settle(LAB, (), job="7")
    assert scene.placement.job == "7"
    scene.placement.settle(LAB, ("GPU-0",))
    assert scene.placement.job == "", "what another try had is not this one's"


def test_of_an_image_on_another_host_nothing_is_known(scene: Scene) -> None:
    scene.placement.set_candidates(Candidates(hosts=(LAB, TWO), image=image("sha256:1")))
    scene.placement.settle(LAB, ())
    assert scene.placement.image.has_id
    scene.placement.settle(TWO, ())
    assert not scene.placement.image.has_id
    assert scene.record.host == "two"


def test_what_a_record_had_of_the_kernel_before_stays(scene: Scene) -> None:
    scene.placement.settle(LAB, ("GPU-0",))
    told = SessionRecord(session_id="s1", path="a.ipynb", name="a.ipynb", type="notebook")
    scene.records.keep(replace(scene.record, started=5.0, sessions=(told,), title="a"))
    scene.placement.gpu_ids = ()
    scene.placement.remember()
    record = scene.record
    assert (record.started, record.sessions, record.title, record.gpus) == (5.0, (told,), "a", ("GPU-0",))


def test_a_title_that_was_asked_for_replaces_the_one_before(tmp_path: Path) -> None:
    scene = Scene(tmp_path, replace(launch_request(), title="new", claim="c", server="/home/ada"))
    scene.placement.remember()
    scene.records.keep(replace(scene.record, title="old"))
    scene.placement.remember()
    assert (scene.record.title, scene.record.claim, scene.record.server) == ("new", "c", "/home/ada")


def test_another_wish_starts_from_nothing(scene: Scene) -> None:
    scene.placement.set_candidates(Candidates(hosts=(LAB,), image=image("sha256:1")))
    scene.placement.settle(LAB, ("GPU-0",), job="7")
    wish = launch_request(hosts=(TWO,))
    scene.placement.reset(wish)
    where = scene.placement
    assert (where.request, where.host, where.hosts, where.gpu_ids, where.job) == (wish, TWO, (TWO,), (), "")
    assert not where.image.has_id


def test_a_kernel_is_held_while_the_process_that_wrote_so_lives(scene: Scene) -> None:
    assert not scene.placement.is_held
    scene.another_has_it()
    assert not scene.placement.is_held
    scene.placement.remember()
    assert scene.placement.is_held


def test_who_leaves_a_kernel_says_when_and_that_it_holds_it_no_more(scene: Scene) -> None:
    scene.placement.settle(LAB, ())
    before = time.time()
    scene.placement.record_detached(process="")
    assert before <= (scene.record.left or 0.0) <= time.time()
    assert scene.record.process == ""
    assert not scene.placement.is_held


def test_who_leaves_a_kernel_that_another_has_changes_nothing(scene: Scene) -> None:
    scene.another_has_it()
    scene.placement.record_detached(process="")
    assert (scene.record.process, scene.record.left) == (DEAD, None)


def test_a_kernel_that_is_not_wanted_any_more_is_for_whoever_reaches_its_host(scene: Scene) -> None:
    scene.placement.settle(LAB, ())
    scene.records.change(MINE, claim="a restart's")
    scene.placement.record_stop_wanted()
    assert scene.record.stop_wanted
    assert scene.record.left is not None
    # And for no restart, which would join what is being removed.
    assert scene.record.claim == ""


def test_a_kernel_that_is_gone_is_forgotten_unless_another_has_it(scene: Scene) -> None:
    scene.placement.settle(LAB, ())
    scene.placement.forget()
    assert scene.records.kernel(MINE) is None
    scene.another_has_it()
    scene.placement.forget()
    assert scene.record.process == DEAD
    scene.placement.forget(whoever_has_it=True)
    assert scene.records.kernel(MINE) is None


def test_where_it_was_started_and_of_which_commit_is_kept_by_who_joins_it(tmp_path: Path) -> None:
    checkout = Checkout(commit="1a2b", paths=frozenset())
    project = Project(
        workspace=Workspace(),
        local_root=tmp_path,
        container_root="/workspace",
        container_folder="/workspace",
        name="x",
        checkout=checkout,
    )
    started = Scene(tmp_path, replace(launch_request(), project=project, folder="/proj"))
    started.placement.remember()
    assert (started.record.folder, started.record.commit) == ("/proj", "1a2b")
    joined = Scene(tmp_path, launch_request())
    joined.placement.remember()
    assert (joined.record.folder, joined.record.commit) == ("/proj", "1a2b")
