"""hosts/gpus/nvidia_smi.py: what it says of a host's GPUs, read; and that all who ask at a time share one question."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kernelbridge.errors import LinkLost
from kernelbridge.hosts.gpus import nvidia_smi
from kernelbridge.hosts.gpus.nvidia_smi import Gpu, GpuFacts, GpuProcess, Inventory
from kernelbridge.hosts.transport.facts import HostFacts
from kernelbridge.hosts.transport.sftp import Sftp
from kernelbridge.hosts.transport.stream import AnyLink, Completed, LoginEntry, Receiver, Stream

SAMPLES = Path(__file__).parents[2] / "samples" / "nvidia-smi"


def sample(name: str) -> str:
    return (SAMPLES / f"{name}.txt").read_text("utf-8")


# -- what is read


def test_cards_are_read_with_their_memory_and_their_processes() -> None:
    facts = nvidia_smi.parse(sample("four-h200"))
    assert (facts.driver, facts.cuda, facts.trouble) == ("570.133.20", "12.8", "")
    assert [(gpu.index, gpu.uuid[:8], gpu.utilization) for gpu in facts.gpus] == [
        ("0", "GPU-aaaa", 0),
        ("1", "GPU-bbbb", 97),
        ("2", "GPU-cccc", 0),
        ("3", "GPU-dddd", 3),
    ]
    assert {
        (gpu.name, gpu.brand, gpu.memory_mib, gpu.reserved_mib, gpu.parent, gpu.is_split) for gpu in facts.gpus
    } == {("NVIDIA H200", "NVIDIA", 143771, 619, "", False)}
    assert [gpu.free_mib for gpu in facts.gpus] == [143148, 81708, 143148, 142250]
    assert facts.gpus[0].processes == (
        GpuProcess(pid=2211, name="Xorg", kind="G", memory_mib=18, user="root", seconds=864000),
    )
    assert facts.gpus[1].processes == (
        GpuProcess(pid=4242, name="python", kind="C", memory_mib=61420, user="bob", seconds=11111),
        GpuProcess(pid=4300, name="nvidia-cuda-mps-server", kind="M+C", memory_mib=30, user="root", seconds=86400),
    )
    assert facts.gpus[3].processes == (GpuProcess(pid=5151, name="", kind="C+G", memory_mib=890),)
    assert [[one.computes for one in gpu.processes] for gpu in facts.gpus] == [[False], [True, True], [], [True]]


def test_mig_devices_stand_behind_their_card_with_their_own_memory_and_processes() -> None:
    split, *devices, whole = nvidia_smi.parse(sample("mig-a100")).gpus
    assert (split.index, split.is_split, split.utilization) == ("0", True, None)
    assert (whole.index, whole.is_split, whole.parent) == ("1", False, "")
    assert [(one.index, one.uuid, one.name[-7:], one.memory_mib, one.free_mib) for one in devices] == [
        ("0:0", "MIG-11111111-aaaa-5000-8000-000000000001", "3g.40gb", 40192, 29915),
        ("0:1", "MIG-22222222-aaaa-5000-8000-000000000002", "2g.20gb", 19968, 19956),
        ("0:2", "MIG-33333333-aaaa-5000-8000-000000000003", "1g.10gb", 9728, 9716),
    ]
    assert {(one.parent, one.is_split, one.brand) for one in devices} == {(split.uuid, False, "NVIDIA")}
    assert [[process.pid for process in one.processes] for one in devices] == [[7007], [], []]
    assert str(devices[1]) == "0:1 (NVIDIA A100-SXM4-80GB MIG 2g.20gb, 20 GiB)"


def test_a_mig_device_that_has_no_uuid_in_the_list_is_left_out() -> None:
    unnamed = sample("mig-a100").replace("  MIG 2g.20gb ", "  strange ")
    assert [gpu.index for gpu in nvidia_smi.parse(unnamed).gpus] == ["0", "0:0", "0:2", "1"]


def test_a_card_that_shares_the_machines_memory_says_nothing_of_it() -> None:
    facts = nvidia_smi.parse(sample("gb10"))
    (card,) = facts.gpus
    assert (facts.driver, facts.cuda) == ("580.126.09", "13.0")
    assert (card.name, card.memory_mib, card.used_mib, card.free_mib, card.utilization) == ("NVIDIA GB10", 0, 0, 0, 96)
    assert [(one.pid, one.kind, one.memory_mib, one.user, one.seconds) for one in card.processes] == [
        (2553, "G", 18, "", None),
        (415592, "C", 69564, "", None),
        (415592, "G", 0, "", None),
    ]
    assert str(card) == "0 (NVIDIA GB10, memory unknown)"


@pytest.mark.parametrize(
    ("name", "used_mib", "utilization", "processes"),
    [
        ("h100-idle", 0, 0, ()),
        ("h100-busy", 2575, 2, (GpuProcess(pid=1152, name="python3", kind="C", memory_mib=2566),)),
        ("h100-kernel", 847, 0, (GpuProcess(pid=1912, name="python3", kind="C", memory_mib=838),)),
    ],
)
def test_a_real_h100_is_read(name: str, used_mib: int, utilization: int, processes: tuple[GpuProcess, ...]) -> None:
    xml, listed = ((SAMPLES / file).read_text("utf-8") for file in (f"{name}.xml", "h100-L.txt"))
    facts = nvidia_smi.parse(f"kernelbridge gpus xml\n{xml}kernelbridge gpus list\n{listed}kernelbridge gpus end\n")
    (card,) = facts.gpus
    assert (facts.driver, facts.cuda, facts.trouble) == ("580.159.04", "13.0", "")
    assert (card.index, card.name, card.brand) == ("0", "NVIDIA H100 80GB HBM3", "NVIDIA")
    assert card.uuid == "GPU-0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
    assert (card.used_mib, card.utilization, card.processes) == (used_mib, utilization, processes)
    assert (card.memory_mib, card.parent, card.is_split) == (81559, "", False)


@pytest.mark.parametrize(
    "unknown",
    ["N/A", "[N/A]", "[Not Supported]", "Requested functionality has been deprecated", "[Unknown Error]", "", "ERR!"],
)
def test_what_the_driver_does_not_tell_is_unknown_in_all_its_words(unknown: str) -> None:
    text = sample("four-h200").replace("97 %", unknown).replace("<total>143771 MiB", f"<total>{unknown}")
    card = nvidia_smi.parse(text).gpus[1]
    assert (card.utilization, card.memory_mib, card.free_mib) == (None, 0, 0)


def test_a_card_that_the_list_does_not_have_is_numbered_as_it_comes() -> None:
    text = sample("four-h200").replace("GPU 2: NVIDIA", "what: NVIDIA").replace("GPU 3: NVIDIA", "GPU 7: NVIDIA")
    assert [gpu.index for gpu in nvidia_smi.parse(text).gpus] == ["0", "1", "2", "7"]


NO_DRIVER = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."


@pytest.mark.parametrize(
    ("answer", "complaint", "trouble"),
    [
        ("kernelbridge gpus xml\nkernelbridge gpus none\nkernelbridge gpus end\n", "", ""),
        (f"kernelbridge gpus xml\n{NO_DRIVER}\n\nkernelbridge gpus list\nkernelbridge gpus end\n", "", NO_DRIVER),
        ("kernelbridge gpus xml\n\nkernelbridge gpus end\n", "nvidia-smi: I/O error\n", "nvidia-smi: I/O error"),
        ("", "'sh' is not recognized", "'sh' is not recognized"),
        ("", "", "no answer"),
        ("kernelbridge gpus xml\n<nvidia_smi_log><gpu></nvidia_smi_log>\nkernelbridge gpus end\n", "", None),
    ],
)
def test_an_answer_without_cards_keeps_what_was_said_instead(answer: str, complaint: str, trouble: str | None) -> None:
    facts = nvidia_smi.parse(answer, complaint)
    expected = "<nvidia_smi_log><gpu></nvidia_smi_log>" if trouble is None else trouble
    assert facts == GpuFacts(trouble=expected)


def test_an_answer_that_was_cut_is_no_answer() -> None:
    text = sample("four-h200").removesuffix("kernelbridge gpus end\n")
    assert nvidia_smi.parse(text).gpus == ()
    assert nvidia_smi.parse(text).trouble == "WARNING: infoROM is corrupted at gpu 0000:3A:00.0"


def test_entities_are_never_expanded() -> None:
    laughs = '<!DOCTYPE nvidia_smi_log [<!ENTITY a "NVIDIA"><!ENTITY b "&a;&a;&a;&a;">]>'
    plain = '<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">'
    text = sample("four-h200")
    assert plain in text
    assert len(nvidia_smi.parse(text.replace(plain, laughs)).gpus) == 4
    named = text.replace(plain, laughs).replace("<product_name>NVIDIA H200", "<product_name>&b;")
    assert nvidia_smi.parse(named).gpus == ()


def test_the_names_of_other_peoples_processes_do_no_harm() -> None:
    def with_name(name: str) -> str:
        (process,) = nvidia_smi.parse(sample("four-h200").replace("/usr/lib/xorg/Xorg", name)).gpus[0].processes
        return process.name

    assert with_name("/opt/a&b<c") == "a&b<c"
    assert with_name("\x1b[31mred") == "?[31mred"
    assert with_name("a\x00\x07b") == "a??b"
    assert with_name("VLLM::EngineCore") == "VLLM::EngineCore"


def test_gpus_are_shown_with_what_speaks_against_them() -> None:
    facts = nvidia_smi.parse(sample("four-h200"))
    two = facts.gpus[:2]
    assert nvidia_smi.shown(two) == "2 GPUs: 0 (NVIDIA H200, 140 GiB), 1 (NVIDIA H200, 140 GiB)"
    assert nvidia_smi.shown(two[:1], notes={two[0].uuid: "not B200"}) == "1 GPU: 0 (NVIDIA H200, 140 GiB; not B200)"
    assert (nvidia_smi.shown([]), nvidia_smi.shown([], trouble="lost")) == ("no GPU", "no GPU (nvidia-smi: lost)")


# -- the script


def run_script(folder: Path, script: str) -> nvidia_smi.GpuFacts:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    ended = subprocess.run(
        ["/bin/sh", "-c", nvidia_smi.SCRIPT], capture_output=True, text=True, env={"PATH": f"{folder}:/usr/bin:/bin"}
    )
    assert ended.returncode == 0
    return nvidia_smi.parse(ended.stdout, ended.stderr)


def test_the_script_tells_the_words_of_an_nvidia_smi_that_fails(tmp_path: Path) -> None:
    assert run_script(tmp_path, "echo 'Failed to initialize NVML: Unknown Error'; exit 255") == GpuFacts(
        trouble="Failed to initialize NVML: Unknown Error"
    )
    assert run_script(tmp_path, "echo 'no such library' >&2; exit 127") == GpuFacts(trouble="no such library")


def test_the_script_leaves_out_the_clocks_and_nobodys_name_reads_as_a_mark_of_ours(tmp_path: Path) -> None:
    xml = sample("four-h200").partition("kernelbridge gpus xml\n")[2].partition("WARNING")[0]
    clocks = "<supported_clocks>\n<value>1 MHz</value>\n</supported_clocks>\n<supported_clocks>N/A</supported_clocks>\n"
    xml = xml.replace("\t\t<processes>\n", f"{clocks}\t\t<processes>\n")
    (tmp_path / "log.xml").write_text(xml.replace("/usr/lib/xorg/Xorg", "x\nkernelbridge gpus none\n"))
    facts = run_script(tmp_path, f'[ "$1" = -q ] && cat {tmp_path}/log.xml')
    assert [gpu.index for gpu in facts.gpus] == ["0", "1", "2", "3"]
    assert [len(gpu.processes) for gpu in facts.gpus] == [1, 2, 0, 1]
    ended = subprocess.run(
        ["/bin/sh", "-c", nvidia_smi.SCRIPT], capture_output=True, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}
    )
    assert "supported_clocks" not in ended.stdout
    assert "MHz" not in ended.stdout


@pytest.mark.parametrize(
    ("attached", "mig", "asks"),
    [(1, "Disabled", False), (2, "Disabled", True), ("", "Disabled", True), (1, "Enabled", True)],
)
def test_the_script_asks_for_numbers_only_where_the_log_alone_does_not_tell_them(
    tmp_path: Path, attached: object, mig: str, asks: bool
) -> None:
    uuid = "GPU-00000000-0000-0000-0000-000000000001"
    log = (
        f'<nvidia_smi_log><attached_gpus>{attached}</attached_gpus>\n<gpu id="0"><uuid>{uuid}</uuid>'
        f"<mig_mode><current_mig>{mig}</current_mig></mig_mode></gpu></nvidia_smi_log>"
    )
    (tmp_path / "log.xml").write_text(log)
    listed = f"GPU 3: NVIDIA X (UUID: {uuid})"
    facts = run_script(tmp_path, f'case $1 in -q) cat {tmp_path}/log.xml ;; *) echo "{listed}" ;; esac')
    assert [gpu.index for gpu in facts.gpus] == (["3"] if asks else ["0"])


# -- asking


class SlowLink:
    """A link whose commands answer when the test lets them, or fail."""

    name = "lab"
    facts: HostFacts
    shell_seconds = 0.0
    entry = LoginEntry()

    def __init__(self, answer: str) -> None:
        self.login_shells = 0
        self.answer = answer
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.failure: Exception | None = None

    @property
    def is_open(self) -> bool:
        return True

    async def look_again(self) -> HostFacts:
        return self.facts

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float) -> Completed:
        assert list(argv) == ["sh", "-c", nvidia_smi.SCRIPT, "nvidia-smi"]
        self.asked += 1
        await self.may_answer.wait()
        if self.failure is not None:
            raise self.failure
        return Completed(exit_code=0, stdout=self.answer.encode(), stderr=b"")

    async def try_socket(self, path: str, receiver: Receiver) -> Stream | None:
        return None

    async def open_socket(self, path: str, receiver: Receiver) -> Stream:
        raise FileNotFoundError(path)

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        raise FileNotFoundError(argv[0])

    async def open_sftp(self) -> Sftp:
        raise NotImplementedError

    async def ask_login_shell(self) -> bool:
        self.login_shells += 1
        return self.login_shells == 1

    async def jump(self, name: str, *, seconds: float) -> AnyLink:
        raise NotImplementedError

    async def wait_lost(self) -> None:
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        return


class Clock:
    """A clock that stands until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_young_answer_is_given_again_and_an_old_one_is_not() -> None:
    link, clock = SlowLink(sample("four-h200")), Clock()
    inventory = Inventory(link, clock=clock)
    assert repr(inventory) == "<Inventory lab not asked>"
    first = await inventory.look()
    clock.now += 2.0
    assert await inventory.look() is first
    assert (link.asked, repr(inventory)) == (1, "<Inventory lab 4 GPUs>")
    clock.now += 0.1
    assert await inventory.look() == first
    assert link.asked == 2
    clock.now += 0.1
    await inventory.look(max_age_seconds=0)
    assert link.asked == 3


async def test_where_no_nvidia_smi_is_found_a_login_shell_is_asked_for_its_path_once() -> None:
    link = SlowLink("kernelbridge gpus xml\nkernelbridge gpus none\nkernelbridge gpus end\n")
    inventory = Inventory(link)
    assert await inventory.look() == nvidia_smi.GpuFacts()
    assert (link.login_shells, link.asked) == (1, 2)
    await inventory.look(max_age_seconds=0)
    assert link.asked == 3
    # One that fails is found.
    failing = SlowLink("kernelbridge gpus xml\nFailed to initialize NVML\nkernelbridge gpus end\n")
    assert (await Inventory(failing).look()).trouble == "Failed to initialize NVML"
    assert (failing.login_shells, failing.asked) == (0, 1)


async def test_an_answer_is_as_old_as_its_question() -> None:
    link, clock = SlowLink(sample("gb10")), Clock()
    inventory = Inventory(link, clock=clock)
    link.may_answer.clear()
    looking = asyncio.create_task(inventory.look())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert repr(inventory) == "<Inventory lab not asked, asking>"
    clock.now += 5
    link.may_answer.set()
    assert len((await looking).gpus) == 1
    await inventory.look()
    assert link.asked == 2


async def test_all_who_ask_at_a_time_share_one_question_and_one_may_give_up() -> None:
    link = SlowLink(sample("mig-a100"))
    inventory = Inventory(link)
    link.may_answer.clear()
    hasty, *patient = (asyncio.create_task(inventory.look(max_age_seconds=0)) for _ in range(4))
    await asyncio.sleep(0)
    hasty.cancel()
    await asyncio.sleep(0)
    link.may_answer.set()
    answers = await asyncio.gather(*patient)
    assert hasty.cancelled()
    assert (link.asked, len({id(answer) for answer in answers}), len(answers[0].gpus)) == (1, 1, 5)


async def test_a_failure_is_told_to_all_and_the_next_asks_anew() -> None:
    link = SlowLink(sample("four-h200"))
    inventory = Inventory(link)
    link.failure = LinkLost(host="lab")
    told = await asyncio.gather(*(inventory.look() for _ in range(3)), return_exceptions=True)
    assert (told, link.asked) == ([link.failure] * 3, 1)
    link.failure = None
    assert len((await inventory.look()).gpus) == 4


async def test_the_question_under_way_ends_with_its_inventory() -> None:
    link = SlowLink(sample("four-h200"))
    inventory = Inventory(link)
    link.may_answer.clear()
    looking = asyncio.create_task(inventory.look())
    await asyncio.sleep(0)
    await inventory.aclose()
    await inventory.aclose()
    with pytest.raises(asyncio.CancelledError):
        await looking


def test_a_gpu_has_never_less_than_no_memory_free() -> None:
    gpu = Gpu(uuid="GPU-1", index="0", name="x", memory_mib=10, used_mib=9, reserved_mib=2)
    assert (gpu.usable_mib, gpu.free_mib) == (8, 0)


@pytest.mark.parametrize(
    "piece", ["<process_name>", "<process_name>x</process_name>", "<a>", "&amp;", "<process_name></process_nam>"]
)
def test_a_hostile_answer_is_read_in_a_moment(piece: str) -> None:
    xml = "<nvidia_smi_log>" + piece * (1_000_000 // len(piece)) + "</nvidia_smi_log>"
    began = time.process_time()
    nvidia_smi.parse(f"kernelbridge gpus xml\n{xml}\nkernelbridge gpus end\n")
    assert time.process_time() - began < 5


def test_an_answer_far_beyond_what_cards_say_is_not_read() -> None:
    facts = nvidia_smi.parse("kernelbridge gpus xml\n" + "x" * (5 << 20))
    assert (facts.gpus, facts.trouble) == ((), "its answer is longer than 4 MiB")


@pytest.mark.parametrize("number", ["²", "9" * 5000, "-1", ""])
def test_what_ps_prints_in_place_of_numbers_is_left_out(number: str) -> None:
    assert nvidia_smi._owners(f"{number} ada 5 python\n7 ada {number} python\n8 ada 5 python") == {8: ("ada", 5)}
