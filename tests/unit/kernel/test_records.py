"""kernel/records.py: what this machine remembers; a hint that is broken or cannot be written does no harm."""

from __future__ import annotations

import dataclasses
import errno
import json
import stat
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.kernel.process_mark import Liveness, ProcessMark, is_local, own_mark
from kernelbridge.kernel.records import ImageRecord, KernelRecord, Records, SessionRecord

INFO = {"status": "ok", "implementation": "ipython"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kernelbridge"


def test_the_machine_id_is_made_once_and_kept(folder: Path) -> None:
    made = Records(folder).machine_id()
    assert len(made) == 16
    assert Records(folder).machine_id() == made
    assert Records(folder.with_name("another")).machine_id() != made


def test_of_two_who_make_the_machine_id_at_once_both_have_the_same(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: Records(folder).machine_id(), range(64)))
    assert len(made) == 1
    (folder / "machine-id").write_text("")
    assert len(Records(folder).machine_id()) == 16, "an empty file, of a full disk, is replaced"
    (folder / "machine-id").write_bytes(b"\xff\xfe")
    made = {Records(folder).machine_id() for _ in range(2)}
    assert [len(one) for one in made] == [16], "so is one that is no text"


def test_the_folder_is_closed_to_others(folder: Path) -> None:
    Records(folder).machine_id()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_image_is_known_by_its_id_and_by_the_name_it_last_had(folder: Path) -> None:
    records = Records(folder)
    assert records.image("torch:2") is None
    records.keep_image(name="torch:2", image_id="sha256:a", record=ImageRecord(kernel_info=INFO, widgets="8.1"))
    assert Records(folder).image("torch:2") == ImageRecord(kernel_info=INFO, widgets="8.1")
    assert Records(folder).image("sha256:a") == ImageRecord(kernel_info=INFO, widgets="8.1")
    newer = ImageRecord(kernel_info={**INFO, "banner": "new"})
    records.keep_image(name="torch:2", image_id="sha256:b", record=newer)
    assert records.image("torch:2") == newer
    assert records.image("sha256:a") == ImageRecord(kernel_info=INFO, widgets="8.1")


def test_the_oldest_images_are_forgotten(folder: Path) -> None:
    records = Records(folder)
    for number in range(70):
        records.keep_image(name=f"image:{number}", image_id=f"sha256:{number}", record=ImageRecord(kernel_info=INFO))
    assert records.image("sha256:5") is None
    assert records.image("sha256:6") is not None
    assert records.image("image:69") is not None


def test_what_was_found_in_images_is_kept_beside_what_their_kernels_said(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    records = Records(folder)
    assert records.image_python("sha256:a python3") is None
    records.keep_image_python("sha256:a python3", {"path": "/p"})
    records.keep_image(name="torch:2", image_id="sha256:a", record=ImageRecord(kernel_info={"status": "ok"}))
    for number in range(100):
        records.keep_image_python(f"sha256:{number} python3", {"path": "/q"})
    records.keep_image_python("sha256:99 python3", {"path": "/r"})
    known = json.loads((folder / "images.json").read_text())
    assert len(known["pythons"]) == 64
    assert records.image_python("sha256:99 python3") == {"path": "/r"}
    assert records.image_python("sha256:a python3") is None, "the oldest goes"
    assert known["names"] == {"torch:2": "sha256:a"}
    (folder / "images.json").write_text('{"names": {}, "images": {}, "pythons": []}')
    assert records.image_python("sha256:99 python3") is None
    assert records.wheels_folder.parent == folder


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"names": 1, "images": {}}', '{"names": {}}'])
def test_a_broken_file_is_no_hint_and_no_error(folder: Path, broken: str) -> None:
    folder.mkdir()
    (folder / "images.json").write_text(broken)
    records = Records(folder)
    assert records.image("torch:2") is None
    records.keep_image(name="torch:2", image_id="sha256:a", record=ImageRecord(kernel_info=INFO))
    assert records.image("torch:2") == ImageRecord(kernel_info=INFO)
    assert json.loads((folder / "images.json").read_text())["names"] == {"torch:2": "sha256:a"}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    records = Records(tmp_path / "file")
    assert len(records.machine_id()) == 16
    assert "cannot be written" in caplog.text


# -- kernels


def record(kernel_id: str = "k-1", **facts: Any) -> KernelRecord:
    made_up: dict[str, Any] = {"environment": "torch", "config": "/k.toml", "host": "lab", "image": "x"}
    made_up |= {"python": "python3", "session": "s", "started": 5.0}
    return KernelRecord(kernel_id=kernel_id, **{**made_up, **facts})


def test_a_kernel_is_remembered_with_all_its_facts(folder: Path) -> None:
    sessions = (SessionRecord(session_id="1", path="a/train.ipynb", name="train.ipynb", type="notebook"),)
    kept = record(left=7.0, process="1@2.00", server="/home/ada", sessions=sessions, title="train.ipynb", persist=True)
    kept = replace(kept, claim="c", stop_wanted=True, connection_file="/run/k.json", gpus=("GPU-1", "MIG-2"))
    Records(folder).keep(kept)
    assert Records(folder).kernel("k-1") == kept
    assert Records(folder).kernel("k-2") is None
    assert stat.S_IMODE((folder / "kernels" / "k-1.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "kernels").stat().st_mode) == 0o700


def test_a_record_of_the_first_release_has_a_holder_too(folder: Path) -> None:
    records = Records(folder)
    records.keep(record(process="1@2.00", birth="a.b.c.d.1"))
    path = folder / "kernels" / "k-1.json"
    written = json.loads(path.read_text())
    assert records.holder_liveness(record(process="1@2.00", birth="a.b.c.d.1")) is Liveness.UNKNOWN
    path.write_text(json.dumps({key: value for key, value in written.items() if key not in ("birth", "who")}))
    found = records.kernel("k-1")
    assert found is not None
    assert found.holder == ProcessMark("1@2.00")
    assert records.holder_liveness(found) is Liveness.ENDED


def test_a_record_changes_only_while_the_same_process_has_it(folder: Path) -> None:
    records = Records(folder)
    mine, others = ProcessMark("1@2.00", "a.b.c.d.1"), ProcessMark("1@2.00", "a2.b.c.d.1")
    records.keep(record(process=others.process, birth=others.birth))
    records.change("k-1", of=mine, title="mine")
    records.forget("k-1", of=mine)
    assert records.kernel("k-1") == record(process=others.process, birth=others.birth)
    records.change("k-1", of=others, title="theirs")
    records.forget("k-1", of=others)
    assert records.kernel("k-1") is None


def test_a_file_that_another_machine_replaces_meanwhile_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(folder)
    records.keep(record())
    failures = [OSError(errno.ESTALE, "Stale file handle")]
    plain = Path.read_text

    def read(self: Path, encoding: str) -> str:
        if failures:
            raise failures.pop()
        return plain(self, encoding)

    monkeypatch.setattr(Path, "read_text", read)
    assert records.kernel("k-1") == record()


def test_who_writes_that_it_has_a_kernel_holds_the_lock_of_its_life(folder: Path) -> None:
    records, mine = Records(folder), own_mark()
    records.keep(record(process="1@2.00", birth="a.b.c.d.1"))
    assert not (folder / "processes").exists()
    records.keep(record("k-2", process=mine.process, birth=mine.birth))
    assert [path.name for path in (folder / "processes").iterdir()] == ([mine.lock_name] if is_local(folder) else [])
    assert records.holder_liveness(record(process=mine.process, birth=mine.birth)) is Liveness.ALIVE


def test_two_processes_that_began_in_the_same_tick_do_not_wait_for_each_other(folder: Path) -> None:
    mine = own_mark()
    twin = mine._replace(process=f"1{mine.process}")
    (folder / "processes").mkdir(parents=True, mode=0o700)
    holding = """import fcntl, sys; file = open(sys.argv[1], "w"); fcntl.flock(file, fcntl.LOCK_EX); print(); input()"""
    path = folder / "processes" / twin.lock_name
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        keeping = threading.Thread(
            target=Records(folder).keep, args=(record(process=mine.process, birth=mine.birth),), daemon=True
        )
        keeping.start()
        keeping.join(10)
        assert not keeping.is_alive()
        other.kill()


def test_kernels_come_the_oldest_first(folder: Path) -> None:
    records = Records(folder)
    assert records.kernels() == []
    records.keep(record("young", started=9.0))
    records.keep(record("old", started=1.0))
    assert [one.kernel_id for one in records.kernels()] == ["old", "young"]


def test_what_is_remembered_can_change_and_be_forgotten(folder: Path) -> None:
    records = Records(folder)
    records.change("k-1", title="nobody remembers it")
    assert records.kernels() == []
    records.keep(record())
    records.change("k-1", left=7.0, stop_wanted=True)
    assert records.kernel("k-1") == record(left=7.0, stop_wanted=True)
    records.forget("k-1")
    records.forget("k-1")
    assert records.kernel("k-1") is None


def test_a_kernels_id_cannot_leave_the_folder(folder: Path) -> None:
    records = Records(folder)
    records.keep(record("../../outside/x"))
    assert [path.name for path in (folder / "kernels").iterdir()] == ["outsidex.json"]
    assert [path.name for path in folder.iterdir()] == ["kernels"]


@pytest.mark.parametrize(
    "broken", ["", "{", "[]", "{}", '{"kernel_id": "k-1"}', '{"sessions": [1]}', '{"sessions": 3}', '{"gpus": 3}']
)
def test_a_record_that_cannot_be_read_is_none(folder: Path, broken: str) -> None:
    records = Records(folder)
    records.keep(record())
    (folder / "kernels" / "k-1.json").write_text(broken)
    assert records.kernel("k-1") is None
    assert records.kernels() == []


def test_a_record_of_a_newer_version_is_read_as_far_as_it_is_known(folder: Path) -> None:
    records = Records(folder)
    records.keep(record())
    path = folder / "kernels" / "k-1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "green"}))
    assert records.kernel("k-1") == record()


@pytest.mark.parametrize("wrong", [None, True, 7, -1, 1e300, "x", [], [1], {"a": 1}])
def test_a_record_with_any_value_in_any_place_is_read_with_its_types_or_not_at_all(
    tmp_path: Path, wrong: object
) -> None:
    records = Records(tmp_path)
    whole = KernelRecord(
        kernel_id="k", environment="e", config="c", host="h", image="i", python="p", session="s", started=5.0
    )
    for field in dataclasses.fields(KernelRecord):
        records.keep(whole)
        path = tmp_path / "kernels" / "k.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), field.name: wrong}))
        for record in records.kernels():
            assert isinstance(record.started, int | float)
            assert datetime.fromtimestamp(record.started, UTC)
            assert isinstance(record.host, str)
            assert isinstance(record.persist, bool)
    (tmp_path / "kernels" / "deep.json").write_text("[" * 100_000)
    records.kernels()


def test_what_cannot_be_read_is_named_and_thrown_away_and_nothing_else(folder: Path) -> None:
    records = Records(folder)
    assert records.unreadable() == []
    python = {"path": "/usr/bin/python3", "version": "3.11"}
    records.keep_image(name="torch:2", image_id="sha256:a", record=ImageRecord(kernel_info=INFO))
    records.keep_image_python("sha256:a python3", python)
    assert records.unreadable() == []
    known = json.loads((folder / "images.json").read_text())
    known["images"]["sha256:b"] = {"kernel_info": 7}
    known["names"]["jax:1"] = "sha256:b"
    known["pythons"]["sha256:c python3"] = {"path": 3}
    (folder / "images.json").write_text(json.dumps(known))
    (folder / "kernels").mkdir()
    (folder / "kernels/k1.json").write_text('{"kernel_id": ')
    good = folder / "wheels/cpython-312-0/six.whl"
    good.parent.mkdir(parents=True)
    with zipfile.ZipFile(good, "w") as wheel:
        wheel.writestr("six.py", "")
    cut = folder / "wheels/cpython-311-0/six.whl"
    cut.parent.mkdir(parents=True)
    cut.write_bytes(good.read_bytes()[:20])
    assert records.unreadable() == [
        "images.json of sha256:b",
        "images.json of sha256:c",
        "kernels/k1.json",
        "wheels/cpython-311-0/six.whl",
    ]
    records.forget_unreadable()
    assert Records(folder).unreadable() == []
    assert not cut.parent.exists()
    assert good.exists()
    assert Records(folder).image("torch:2") == ImageRecord(kernel_info=INFO)
    assert Records(folder).image_python("sha256:a python3") == python
    assert "jax:1" not in json.loads((folder / "images.json").read_text())["names"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"names": {}}', '{"names": {"a": 1}, "images": {}}'])
def test_a_file_of_images_that_is_none_is_named_once_and_made_anew(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "images.json").write_text(text)
    assert Records(folder).unreadable() == ["images.json"]
    Records(folder).forget_unreadable()
    assert Records(folder).unreadable() == []
