"""hosts/gpus/selection.py: which GPUs a start gets while others hold, use, claim and wait for them.

Rows of starts: test_selection_in_a_row.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Environment
from kernelbridge.errors import GpusBusy, GpuUnavailable
from kernelbridge.hosts.gpus import nvidia_smi
from kernelbridge.hosts.gpus.holders import Holding
from kernelbridge.hosts.gpus.nvidia_smi import Gpu, GpuFacts, GpuProcess
from kernelbridge.hosts.gpus.selection import GpuRequest, Others, not_found, pick

GIB = 1 << 30
SAMPLES = Path(__file__).parents[2] / "samples" / "nvidia-smi"
NOON = datetime(2025, 7, 1, 12, 4).astimezone()


def card(number: int, *, free: int = 80, total: int = 80, name: str = "NVIDIA A100", kind: str = "") -> Gpu:
    """Card `number` with so many GiB; `kind` is that of a process on it."""
    process = GpuProcess(pid=4000 + number, name="python", kind=kind, memory_mib=1024, user="bob", seconds=11111)
    return Gpu(
        uuid=f"GPU-{number}",
        index=str(number),
        name=name,
        memory_mib=total * 1024,
        used_mib=(total - free) * 1024,
        processes=(process,) if kind else (),
    )


def split(number: int, *devices: int) -> list[Gpu]:
    """A card in MIG mode with devices of so many GiB."""
    whole = replace(card(number), is_split=True)
    return [whole] + [
        replace(
            card(number, free=size, total=size, name=f"NVIDIA A100 MIG {size}gb"),
            uuid=f"MIG-{number}-{place}",
            index=f"{number}:{place}",
            parent=whole.uuid,
        )
        for place, size in enumerate(devices)
    ]


def held(*uuids: str, environment: str = "pytorch", who: str = "ada@laptop") -> Holding:
    return Holding(gpus=uuids, kernel_id="k1", environment=environment, who=who, since=NOON)


FOUR = [card(0), card(1), card(2), card(3)]
MIXED = [card(0), card(1, name="NVIDIA H200", total=141, free=141), card(2, total=40, free=40)]
SPLIT = [*split(0, 40, 20, 10), card(1)]


def take(cards: Sequence[Gpu], wish: GpuRequest, others: Others | None = None, **more: Any) -> tuple[str, ...]:
    return pick(GpuFacts(gpus=tuple(cards)), wish, others or Others(), host="lab", now=NOON, **more)


def one(**keys: Any) -> GpuRequest:
    return GpuRequest(number=1, **keys)


def ids(*names: str, **keys: Any) -> GpuRequest:
    return GpuRequest(number=names, **keys)


# What the host has, what is wished for, what the others do, and the numbers of the cards that are taken.
TAKEN: dict[str, tuple[Sequence[Gpu], GpuRequest, Others, tuple[str, ...]]] = {
    "none": (FOUR, GpuRequest(number=0), Others(), ()),
    "none where there is none": ([], GpuRequest(number=0), Others(), ()),
    "the first of equals": (FOUR, one(), Others(), ("GPU-0",)),
    "two in the order of their index": (FOUR, GpuRequest(number=2), Others(), ("GPU-0", "GPU-1")),
    "all": (FOUR, GpuRequest(number="all"), Others(), ("GPU-0", "GPU-1", "GPU-2", "GPU-3")),
    "the one with most memory free": ([card(0, free=70), card(1, free=75)], one(), Others(), ("GPU-1",)),
    "the two with most memory free": (
        [card(0, free=75), card(1, free=10), card(2, free=80)],
        GpuRequest(number=2),
        Others(),
        ("GPU-0", "GPU-2"),
    ),
    "by index, in the order asked for": (FOUR, ids("2", "0"), Others(), ("GPU-2", "GPU-0")),
    "by UUID": (FOUR, ids("GPU-3"), Others(), ("GPU-3",)),
    "by a shortened UUID": ([replace(card(0), uuid="GPU-ab1"), card(1)], ids("GPU-a"), Others(), ("GPU-ab1",)),
    "a whole UUID, though another begins with it": (
        [replace(card(0), uuid="GPU-12"), card(1)],
        ids("GPU-1"),
        Others(),
        ("GPU-1",),
    ),
    "once, what is named twice": (FOUR, ids("1", "GPU-1"), Others(), ("GPU-1",)),
    "not the one that is held": (FOUR, one(), Others(held=[held("GPU-0")]), ("GPU-1",)),
    "what no host has is nobody's": (FOUR, one(), Others(held=[held("GPU-9")]), ("GPU-0",)),
    "not the one on which a stranger computes": ([card(0, kind="C"), card(1)], one(), Others(), ("GPU-1",)),
    "nor through MPS": ([card(0, kind="M+C"), card(1)], one(), Others(), ("GPU-1",)),
    "the one that draws a screen": ([card(0, kind="G"), card(1, free=1)], one(), Others(), ("GPU-0",)),
    "a busy one where that is allowed": ([card(0, kind="C")], one(avoids_busy=False), Others(), ("GPU-0",)),
    "a busy one by id where that is allowed": ([card(0, kind="C")], ids("0", avoids_busy=False), Others(), ("GPU-0",)),
    "one of the model": (MIXED, one(model="h200"), Others(), ("GPU-1",)),
    "all of the model": (MIXED, GpuRequest(number="all", model="A100"), Others(), ("GPU-0", "GPU-2")),
    "one with the memory": (MIXED, GpuRequest(number=2, memory_bytes=60 * GIB), Others(), ("GPU-0", "GPU-1")),
    "exactly the memory": ([card(0, free=60)], one(memory_bytes=60 * GIB), Others(), ("GPU-0",)),
    "one that nobody claimed": (FOUR, one(), Others(claimed={"GPU-0", "GPU-1"}), ("GPU-2",)),
    "a claimed one when nothing else is left": (
        FOUR,
        GpuRequest(number=3),
        Others(claimed={"GPU-0", "GPU-1"}),
        ("GPU-0", "GPU-2", "GPU-3"),
    ),
    "a claimed one by id": (FOUR, ids("0"), Others(claimed={"GPU-0"}), ("GPU-0",)),
    "what those before leave": (FOUR, one(), Others(ahead=[one(), GpuRequest(number=2)]), ("GPU-3",)),
    "nothing of what one before named": (FOUR, GpuRequest(number=2), Others(ahead=[ids("1")]), ("GPU-0", "GPU-2")),
    "one that the large wish before cannot use": (
        MIXED,
        one(),
        Others(ahead=[GpuRequest(number=2, model="A100")]),
        ("GPU-1",),
    ),
    "any, when the wish before can never be given": (FOUR, one(), Others(ahead=[GpuRequest(number=9)]), ("GPU-0",)),
    "any, when the model before is not there": (FOUR, one(), Others(ahead=[one(model="B300")]), ("GPU-0",)),
    "any, when all that was named before is held": (
        FOUR,
        one(),
        Others(held=[held("GPU-0")], ahead=[ids("0")]),
        ("GPU-1",),
    ),
    "beside one before who wants none": (FOUR, one(), Others(ahead=[GpuRequest(number=0)]), ("GPU-0",)),
    "the whole card, though a MIG device would do": (SPLIT, one(memory_bytes=15 * GIB), Others(), ("GPU-1",)),
    "a MIG device with the memory": (
        SPLIT,
        one(memory_bytes=15 * GIB),
        Others(held=[held("GPU-1"), held("MIG-0-0")]),
        ("MIG-0-1",),
    ),
    "a MIG device of the model": (split(0, 20, 10), one(model="a100"), Others(), ("MIG-0-0",)),
    "a MIG device by its UUID": (SPLIT, ids("MIG-0-2"), Others(), ("MIG-0-2",)),
    "a MIG device by its index": (SPLIT, ids("0:2", "1"), Others(), ("MIG-0-2", "GPU-1")),
    "two MIG devices by a shortened UUID each": (SPLIT, ids("MIG-0-0", "MIG-0-1"), Others(), ("MIG-0-0", "MIG-0-1")),
    "beside another's MIG device": (SPLIT, ids("MIG-0-2"), Others(held=[held("MIG-0-0")]), ("MIG-0-2",)),
    "no MIG device where all are asked for": (SPLIT, GpuRequest(number="all"), Others(), ("GPU-1",)),
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_start_takes(case: str) -> None:
    cards, wish, others, expected = TAKEN[case]
    assert take(cards, wish, others) == expected


ADA = "pytorch of ada@laptop since 12:04"
# What the host has, what is wished for, what the others do, and who is named.
BUSY: dict[str, tuple[Sequence[Gpu], GpuRequest, Others, tuple[str, ...]]] = {
    "all are held": (
        FOUR[:2],
        one(),
        Others(held=[held("GPU-0"), held("GPU-1", environment="jax", who="")]),
        (f"GPU 0: {ADA}", "GPU 1: jax of another since 12:04"),
    ),
    "too few are left": (FOUR[:2], GpuRequest(number=2), Others(held=[held("GPU-1")]), (f"GPU 1: {ADA}",)),
    "one of all is held": (FOUR, GpuRequest(number="all"), Others(held=[held("GPU-2")]), (f"GPU 2: {ADA}",)),
    "the named one is held": (FOUR, ids("3", "1"), Others(held=[held("GPU-1")]), (f"GPU 1: {ADA}",)),
    "a stranger computes": (
        [card(0, kind="C+G")],
        one(),
        Others(),
        ("GPU 0: process 4000 (python) of bob since 3 h",),
    ),
    "a holder is named before its own process": (
        [card(0, kind="C")],
        one(),
        Others(held=[held("GPU-0")]),
        (f"GPU 0: {ADA}",),
    ),
    "too little memory is free": (
        [card(0, free=10)],
        one(memory_bytes=20 * GIB),
        Others(),
        ("GPU 0: 10.0 GiB of 80.0 GiB free",),
    ),
    "one waits for the last": (FOUR[:1], one(), Others(ahead=[one()]), ("GPU 0: reserved for a waiting kernel",)),
    "two wait for what is left": (
        FOUR[:3],
        one(),
        Others(held=[held("GPU-0")], ahead=[one(), one()]),
        (f"GPU 0: {ADA}", "GPU 1: reserved for 2 waiting kernels", "GPU 2: reserved for 2 waiting kernels"),
    ),
    "a large wish before keeps the little there is": (
        FOUR,
        one(),
        Others(held=[held("GPU-0", "GPU-1")], ahead=[GpuRequest(number=4)]),
        (
            f"GPU 0: {ADA}",
            f"GPU 1: {ADA}",
            "GPU 2: reserved for a waiting kernel",
            "GPU 3: reserved for a waiting kernel",
        ),
    ),
    "one before wants all": (
        FOUR[:2],
        one(),
        Others(held=[held("GPU-0")], ahead=[GpuRequest(number="all")]),
        (f"GPU 0: {ADA}", "GPU 1: reserved for a waiting kernel"),
    ),
    "the named one is kept": (FOUR, ids("2"), Others(ahead=[ids("2")]), ("GPU 2: reserved for a waiting kernel",)),
    "of two before only one can use what is left": (
        FOUR[:2],
        one(),
        Others(held=[held("GPU-0")], ahead=[ids("0"), one()]),
        (f"GPU 0: {ADA}", "GPU 1: reserved for a waiting kernel"),
    ),
    "its card is held": (SPLIT, ids("MIG-0-1"), Others(held=[held("GPU-0")]), (f"GPU 0:1: {ADA}",)),
}


@pytest.mark.parametrize("case", BUSY)
def test_a_start_is_told_who_has_what_it_wants(case: str) -> None:
    cards, wish, others, holders = BUSY[case]
    with pytest.raises(GpusBusy) as caught:
        take(cards, wish, others)
    assert caught.value.holders == holders


def test_a_card_whose_mig_device_is_held_kept_or_claimed_is_not_free_either() -> None:
    whole, device = split(0, 40)
    # As between the driver's two answers, when MIG mode is just being left.
    cards = [replace(whole, is_split=False), device, card(1)]
    with pytest.raises(GpusBusy) as caught:
        take(cards, ids("0"), Others(held=[held("MIG-0-0")]))
    assert caught.value.holders == (f"GPU 0: {ADA}",)
    with pytest.raises(GpusBusy) as caught:
        take(cards, ids("0"), Others(ahead=[ids("MIG-0-0")]))
    assert caught.value.holders == ("GPU 0: reserved for a waiting kernel",)
    assert take(cards, one(), Others(claimed=["MIG-0-0"])) == ("GPU-1",)


A100 = "NVIDIA A100, 80 GiB"
NOWHERE = not_found("lab")
IN_MIG_MODE = f"0 ({A100}; in MIG mode: name one of MIG-0-0, MIG-0-1, MIG-0-2)"
# What the host has, what is wished for, and the words on both.
NEVER: dict[str, tuple[Sequence[Gpu], GpuRequest, str, str]] = {
    "no GPU at all": ([], one(), "1 GPU", f"no GPU (nvidia-smi: {NOWHERE})"),
    "all of none": ([], GpuRequest(number="all"), "all GPUs", f"no GPU (nvidia-smi: {NOWHERE})"),
    "more than there are": (FOUR[:2], GpuRequest(number=3), "3 GPUs", f"2 GPUs: 0 ({A100}), 1 ({A100})"),
    "an index that is not there": (FOUR[:1], ids("7"), "GPU 7", f"1 GPU: 0 ({A100})"),
    "a UUID that is not there": (FOUR[:1], ids("0", "GPU-7"), "GPU GPU-7", f"1 GPU: 0 ({A100})"),
    "a shortened UUID of two": (FOUR[:2], ids("GPU-"), "GPU GPU-", f"2 GPUs: 0 ({A100}), 1 ({A100})"),
    "another model": (FOUR[:1], one(model="H200"), "1 GPU of H200", f"1 GPU: 0 ({A100}; not H200)"),
    "too few of the model": (
        MIXED,
        GpuRequest(number=2, model="H200"),
        "2 GPUs of H200",
        f"3 GPUs: 0 ({A100}; not H200), 1 (NVIDIA H200, 141 GiB), 2 (NVIDIA A100, 40 GiB; not H200)",
    ),
    "the named one is another model": (FOUR, ids("1", model="H200"), "GPU 1 of H200", f"1 GPU: 1 ({A100}; not H200)"),
    "more memory than it has": (
        [replace(card(0), reserved_mib=512)],
        one(memory_bytes=80 * GIB),
        "1 GPU with 80g free",
        f"1 GPU: 0 ({A100}; 79.5 GiB usable)",
    ),
    "memory of which nothing is told": (
        [card(0, total=0, free=0, name="NVIDIA GB10")],
        one(memory_bytes=8 * GIB),
        "1 GPU with 8g free",
        "1 GPU: 0 (NVIDIA GB10, memory unknown; so `gpu_memory` cannot be checked)",
    ),
    "a card in MIG mode": (SPLIT, ids("0"), "GPU 0", f"1 GPU: {IN_MIG_MODE}"),
    "a card in MIG mode without devices": (
        split(0),
        one(),
        "1 GPU",
        f"1 GPU: 0 ({A100}; in MIG mode without a MIG device)",
    ),
    "two, of which one is in MIG mode": (
        SPLIT,
        GpuRequest(number=2, memory_bytes=GIB),
        "2 GPUs with 1g free",
        f"2 GPUs: {IN_MIG_MODE}, 1 ({A100})",
    ),
    "one, where all is in MIG mode": (SPLIT[:4], one(), "1 GPU", f"1 GPU: {IN_MIG_MODE}"),
    "all, where all is in MIG mode": (SPLIT[:4], GpuRequest(number="all"), "all GPUs", f"1 GPU: {IN_MIG_MODE}"),
    "a MIG device that is too small": (
        split(0, 10),
        one(memory_bytes=20 * GIB),
        "1 GPU with 20g free",
        f"2 GPUs: 0 ({A100}; in MIG mode: name one of MIG-0-0), 0:0 (NVIDIA A100 MIG 10gb, 10 GiB; 10.0 GiB usable)",
    ),
}


@pytest.mark.parametrize("case", NEVER)
def test_what_the_host_can_never_give_is_told_apart_from_what_is_taken(case: str) -> None:
    cards, wish, wanted, found = NEVER[case]
    with pytest.raises(GpuUnavailable) as caught:
        take(cards, wish, Others(held=[held("GPU-0", "GPU-1", "GPU-2", "GPU-3")]))
    assert caught.value.sentence == f"lab: {wanted} requested, found {found}."


def test_a_driver_that_does_not_answer_is_told_in_its_own_words() -> None:
    facts = GpuFacts(trouble="Failed to initialize NVML: Driver/library version mismatch")
    with pytest.raises(GpuUnavailable, match=r"no GPU \(nvidia-smi: Failed to initialize NVML: Driver/library"):
        pick(facts, one(), Others(), host="lab")
    with pytest.raises(GpuUnavailable, match=r"GPU 0 requested, found no GPU \(nvidia-smi: Failed to initialize NVML"):
        pick(facts, ids("0"), Others(), host="lab")


def test_how_long_one_waited_is_told() -> None:
    with pytest.raises(GpusBusy) as caught:
        take(FOUR[:1], one(), Others(held=[held("GPU-0")]), waited="30m")
    assert caught.value.sentence == f"lab: 1 GPU requested, but not free after 30m in the queue: GPU 0: {ADA}."


@pytest.mark.parametrize(
    ("since", "words"),
    [(NOON, "since 12:04"), (NOON.replace(day=28, month=6, hour=9), "since 28 Jun 09:04")],
)
def test_a_moment_of_another_day_is_told_with_its_day(since: datetime, words: str) -> None:
    with pytest.raises(GpusBusy) as caught:
        take(FOUR[:1], one(), Others(held=[replace(held("GPU-0"), since=since)]))
    assert caught.value.holders[0].endswith(words)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "process 7 (python) of bob"),
        (0, "process 7 (python) of bob since 0 s"),
        (59, "process 7 (python) of bob since 59 s"),
        (60, "process 7 (python) of bob since 1 min"),
        (3599, "process 7 (python) of bob since 59 min"),
        (3600, "process 7 (python) of bob since 1 h"),
        (7199, "process 7 (python) of bob since 1 h"),
        (86400, "process 7 (python) of bob since 1 d"),
        (172800, "process 7 (python) of bob since 2 d"),
    ],
)
def test_a_strangers_age_is_told_in_its_largest_unit(seconds: int | None, words: str) -> None:
    process = GpuProcess(pid=7, name="python", kind="C", memory_mib=1, user="bob", seconds=seconds)
    with pytest.raises(GpusBusy) as caught:
        take([replace(card(0), processes=(process,))], one())
    assert caught.value.holders == (f"GPU 0: {words}",)


def test_of_several_strangers_the_largest_is_named_and_the_others_are_counted() -> None:
    small = GpuProcess(pid=7, name="python", kind="C", memory_mib=1)
    screen = GpuProcess(pid=9, name="Xorg", kind="G", memory_mib=99999)
    large = GpuProcess(pid=8, name="", kind="C", memory_mib=2)
    again = replace(large, kind="C+G", memory_mib=0)
    with pytest.raises(GpusBusy) as caught:
        take([replace(card(0), processes=(small, screen, large, again))], one())
    assert caught.value.holders == ("GPU 0: process 8 and 1 more",)


def test_no_control_character_of_a_label_reaches_a_terminal() -> None:
    with pytest.raises(GpusBusy) as caught:
        take(FOUR[:1], one(), Others(held=[held("GPU-0", environment="\x1b[2J", who="x" * 500)]))
    assert caught.value.holders == (f"GPU 0: ?[2J of {'x' * 80} since 12:04",)


def test_real_answers_are_picked_from() -> None:
    def uuids(name: str, wish: GpuRequest) -> list[str]:
        return [uuid[:8] for uuid in pick(nvidia_smi.parse((SAMPLES / name).read_text()), wish, Others(), host="lab")]

    assert uuids("four-h200.txt", GpuRequest(number=2)) == ["GPU-aaaa", "GPU-cccc"]
    assert uuids("four-h200.txt", GpuRequest(number=4, avoids_busy=False, model="h200"))[1:3] == [
        "GPU-bbbb",
        "GPU-cccc",
    ]
    assert uuids("mig-a100.txt", one()) == ["GPU-ffff"]
    assert uuids("mig-a100.txt", ids("MIG-2")) == ["MIG-2222"]
    assert uuids("gb10.txt", one(avoids_busy=False)) == ["GPU-9999"]


# -- as many as there are


def up_to(number: int, least: int, **keys: Any) -> GpuRequest:
    return GpuRequest(number=number, least=least, **keys)


@pytest.mark.parametrize(
    ("cards", "wish", "taken"),
    [
        (FOUR, up_to(2, 1), ("GPU-0", "GPU-1")),
        (FOUR, up_to(9, 1), ("GPU-0", "GPU-1", "GPU-2", "GPU-3")),
        (FOUR[:1], up_to(2, 1), ("GPU-0",)),
        ([], up_to(2, 0), ()),
        (FOUR, up_to(0, 0), ()),
        (MIXED, up_to(2, 0, model="H200"), ("GPU-1",)),
        (MIXED, up_to(2, 0, model="B200"), ()),
        (MIXED, up_to(3, 1, memory_bytes=60 * GIB), ("GPU-0", "GPU-1")),
    ],
)
def test_of_a_range_as_many_are_taken_as_the_host_has(
    cards: list[Gpu], wish: GpuRequest, taken: tuple[str, ...]
) -> None:
    assert take(cards, wish) == taken


def test_fewer_than_the_least_are_never_enough() -> None:
    with pytest.raises(GpuUnavailable, match="lab: 2 GPUs requested"):
        take(FOUR[:1], up_to(4, 2))


def test_what_others_have_is_waited_for_and_not_done_without() -> None:
    with pytest.raises(GpusBusy, match="lab: 1 GPU requested, but not free"):
        take(FOUR[:1], up_to(1, 0), Others(held=[held("GPU-0")]))
    with pytest.raises(GpusBusy, match="lab: 4 GPUs requested, but not free"):
        take(FOUR, up_to(9, 1), Others(held=[held("GPU-0")]))


def test_without_a_driver_none_are_enough_where_the_range_says_so() -> None:
    assert pick(GpuFacts(), up_to(1, 0), Others(), host="lab") == ()
    with pytest.raises(GpuUnavailable):
        pick(GpuFacts(), up_to(1, 1), Others(), host="lab")


def test_a_driver_that_fails_is_told_where_none_would_be_enough() -> None:
    facts = GpuFacts(trouble="Failed to initialize NVML: Driver/library version mismatch")
    with pytest.raises(GpuUnavailable) as caught:
        pick(facts, up_to(1, 0), Others(), host="lab")
    found = "no GPU (nvidia-smi: Failed to initialize NVML: Driver/library version mismatch)"
    assert caught.value.sentence == f"lab: 1 GPU requested, found {found}."
    assert pick(facts, up_to(0, 0), Others(), host="lab") == (), "none were asked for"


def test_a_range_is_read_from_its_environment_and_is_a_number_to_others() -> None:
    environment = Environment.model_validate({"name": "a", "image": "x", "gpus": {"wanted": 2, "min": 1}})
    wish = GpuRequest.of_environment(environment)
    assert (wish.number, wish.least) == (2, 1)
    assert GpuRequest.of_text(wish.to_text()) == GpuRequest(number=2)
    assert GpuRequest.of_text('{"number":{"wanted":2,"min":1}}') is None
