"""hosts/gpus/selection.py: what must hold for any row of starts, and a wish as it is written on a label.

Single picks: test_selection.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelbridge.config.schema import Environment
from kernelbridge.errors import GpusBusy, GpuUnavailable
from kernelbridge.hosts.gpus.holders import Holding
from kernelbridge.hosts.gpus.nvidia_smi import Gpu
from kernelbridge.hosts.gpus.selection import GpuRequest, Others
from tests.unit.hosts.gpus.test_selection import GIB, card, held, ids, one, split, take

# -- a wish as a label


WISHES = [
    (GpuRequest(number=2), '{"number":2}'),
    (GpuRequest(number=0), '{"number":0}'),
    (GpuRequest(number="all", avoids_busy=False), '{"number":"all","busy":true}'),
    (ids("0", "MIG-1"), '{"number":["0","MIG-1"]}'),
    (one(memory_bytes=20 * GIB, model="H200"), '{"number":1,"memory":21474836480,"model":"H200"}'),
]


@pytest.mark.parametrize(("wish", "text"), WISHES)
def test_a_wish_is_written_shortly_and_read_back(wish: GpuRequest, text: str) -> None:
    assert wish.to_text() == text
    assert GpuRequest.of_text(text) == wish


NO_WISHES = ["", "2", "null", "[]", "{}", '{"number":-1}', '{"number":true}', '{"number":1.5}', '{"number":[]}']
NO_WISHES += ['{"number":["rm -rf"]}', '{"number":1,"memory":"20g"}', '{"number":1,"memory":0}', "[" * 10000]
NO_WISHES += ['{"number":1,"memory":true}', '{"number":1,"memory":1e400}', '{"number":1,"model":""}', "\x00"]
NO_WISHES += [
    '{"number":1,"model":7}',
    '{"number":1,"busy":1}',
    '{"number":1,"more":1}',
    '{"number":' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("text", NO_WISHES)
def test_a_label_that_is_no_wish_is_none(text: str) -> None:
    assert GpuRequest.of_text(text) is None


@settings(max_examples=200)
@given(st.text())
def test_no_label_is_a_fault(text: str) -> None:
    wish = GpuRequest.of_text(text)
    assert wish is None or GpuRequest.of_text(wish.to_text()) == wish


def test_a_wish_is_what_the_environment_says() -> None:
    plain = Environment(name="a", image="x", gpus=2)
    assert GpuRequest.of_environment(plain) == GpuRequest(number=2)
    written = {"name": "a", "image": "x", "gpus": ["0"], "gpu_memory": "20g", "gpu_model": "H200", "busy_gpus": "use"}
    full = Environment.model_validate(written)
    assert GpuRequest.of_environment(full) == ids("0", memory_bytes=20 * GIB, model="H200", avoids_busy=False)


# -- whatever happens


def hosts() -> st.SearchStrategy[list[Gpu]]:
    kinds = st.sampled_from(["", "", "C", "G"])
    whole: st.SearchStrategy[dict[str, Any]] = st.builds(
        dict, free=st.integers(0, 80), kind=kinds, name=st.sampled_from(["NVIDIA A100", "NVIDIA H200"])
    )
    devices = st.lists(st.sampled_from([10, 20, 40]), max_size=3).map(tuple)

    def built(specs: list[Any]) -> list[Gpu]:
        cards: list[Gpu] = []
        for number, spec in enumerate(specs):
            cards += split(number, *spec) if isinstance(spec, tuple) else [card(number, **spec)]
        return cards

    return st.lists(whole | devices, max_size=6).map(built)


NAMES = [str(number) for number in range(6)] + [f"MIG-{number}-{place}" for number in range(3) for place in range(3)]


def wishes() -> st.SearchStrategy[GpuRequest]:
    number: Any = (
        st.integers(0, 4) | st.just("all") | st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)
    )
    return st.builds(
        GpuRequest,
        number=number,
        memory_bytes=st.none() | st.integers(1, 60).map(lambda gib: gib * GIB),
        model=st.sampled_from([None, "a100", "H200"]),
        avoids_busy=st.booleans(),
    )


def family(cards: Sequence[Gpu], uuids: Sequence[str]) -> set[str]:
    """These, the cards of those that are MIG devices, and the MIG devices of those that are cards."""
    named = [gpu for gpu in cards if gpu.uuid in uuids]
    return (
        {gpu.uuid for gpu in named}
        | {gpu.parent for gpu in named if gpu.parent}
        | {gpu.uuid for gpu in cards if gpu.parent in uuids}
    )


@settings(max_examples=200)
@given(cards=hosts(), row=st.lists(wishes(), max_size=6), claimed=st.sets(st.sampled_from(["GPU-0", "GPU-1"])))
def test_no_gpu_is_given_to_two_of_a_row_of_starts(cards: list[Gpu], row: list[GpuRequest], claimed: set[str]) -> None:
    holdings: list[Holding] = []
    for wish in row:
        try:
            taken = take(cards, wish, Others(held=holdings, claimed=claimed))
        except (GpuUnavailable, GpusBusy):
            continue
        assert len(set(taken)) == len(taken)
        if isinstance(wish.number, int):
            assert len(taken) == wish.number
        before = [uuid for holding in holdings for uuid in holding.gpus]
        assert not family(cards, before) & set(taken)
        by_uuid = {gpu.uuid: gpu for gpu in cards}
        for uuid in taken:
            gpu = by_uuid[uuid]
            assert not gpu.is_split
            assert not wish.avoids_busy or not any(process.computes for process in gpu.processes)
            assert gpu.free_mib << 20 >= (wish.memory_bytes or 0)
            assert (wish.model or "").lower() in gpu.name.lower()
        holdings.append(held(*taken))


@settings(max_examples=200)
@given(cards=hosts(), first=wishes(), second=wishes())
def test_nobody_takes_what_the_one_before_would_get(cards: list[Gpu], first: GpuRequest, second: GpuRequest) -> None:
    try:
        taken = take(cards, second, Others(ahead=[first]))
    except (GpuUnavailable, GpusBusy):
        return
    try:
        expected = take(cards, first)
    except (GpuUnavailable, GpusBusy):
        return
    assert not set(taken) & family(cards, expected)
    # And the one before still gets the same, now that this one has its own.
    assert take(cards, first, Others(held=[held(*taken)])) == expected


@settings(max_examples=200)
@given(cards=hosts(), wish=wishes())
def test_a_start_that_is_told_to_wait_gets_its_gpus_once_all_are_free(cards: list[Gpu], wish: GpuRequest) -> None:
    holder = held(*(gpu.uuid for gpu in cards))
    try:
        take(cards, wish, Others(held=[holder]))
    except GpuUnavailable:
        return
    except GpusBusy as busy:
        assert busy.holders
        idle = [replace(gpu, used_mib=0, processes=()) for gpu in cards]
        assert len(take(idle, wish)) > 0
    else:
        assert wish.number == 0
