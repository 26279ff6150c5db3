"""Ask a host for its GPUs and what runs on them: parse `nvidia-smi -q -x` and `-L` into cards and processes."""

from __future__ import annotations

import html
import re
import time
import xml.etree.ElementTree as ET  # of text without entities only: see _root()
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from kernelbridge.hosts.transport.single_flight import SingleFlight
from kernelbridge.hosts.transport.stream import AnyLink
from kernelbridge.plain_text import printable

# Without persistence mode the first nvidia-smi wakes every card up.
QUERY_SECONDS = 30.0

_MARK: Final = "kernelbridge gpus "
# One login runs all of it. The clocks that a card supports are nine tenths of the XML and of no use here.
SCRIPT: Final = r"""
echo 'kernelbridge gpus xml'
command -v nvidia-smi >/dev/null 2>&1 || { echo 'kernelbridge gpus none'; echo 'kernelbridge gpus end'; exit 0; }
xml=$(nvidia-smi -q -x | sed -e 's/^kernelbridge/ &/' \
  -e '/<supported_clocks>.*<\/supported_clocks>/d' -e '/<supported_clocks>/,/<\/supported_clocks>/d')
printf '%s\n' "$xml"
echo 'kernelbridge gpus list'
# It alone names MIG devices, and tells the numbers of cards where one does not answer; else they are counted.
case $xml in
  *'<current_mig>Enabled'*) nvidia-smi -L 2>/dev/null ;;
  *) [ "$(printf '%s\n' "$xml" | grep -c '<gpu id=')" = "$(printf '%s\n' "$xml" |
       sed -n 's/.*<attached_gpus>\([0-9]*\)<.*/\1/p')" ] || nvidia-smi -L 2>/dev/null ;;
esac
echo 'kernelbridge gpus processes'
pids=$(printf '%s\n' "$xml" | sed -n 's/.*<pid>\([0-9][0-9]*\)<\/pid>.*/\1/p' | sort -u | tr '\n' ',')
[ -z "$pids" ] || LC_ALL=C ps -o pid=,user:32=,etimes=,comm= -p "${pids%,}" 2>/dev/null
echo 'kernelbridge gpus end'
"""

# "GPU 0: NVIDIA H200 (UUID: GPU-...)" and, indented below it, "  MIG 3g.20gb     Device  0: (UUID: MIG-...)".
_CARD_LINE: Final = re.compile(r"^GPU (\d+): .*\(UUID: (GPU-[0-9A-Za-z-]+)\)\s*$")
_MIG_LINE: Final = re.compile(r"^\s+MIG (\S+)\s+Device\s+(\d+):\s+\(UUID: (MIG-[0-9A-Za-z/-]+)\)\s*$")
_PROCESS_NAME, _PROCESS_NAME_END = "<process_name>", "</process_name>"
# Far beyond what any host's cards and processes take.
_MOST_CHARACTERS: Final = 4 << 20


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A process on a GPU, of whomever. `user` is empty and `seconds` (since its start) None where ps does not tell."""

    pid: int
    name: str
    # C computes, G draws, M goes through MPS: "C", "G", "C+G", "M+C".
    kind: str
    memory_mib: int
    user: str = ""
    seconds: int | None = None

    @property
    def computes(self) -> bool:
        """Whether it does more than draw a screen."""
        return "C" in self.kind


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A card, or a MIG device of one."""

    uuid: str
    # "0"; a MIG device is "0:1".
    index: str
    name: str
    # 0 where the driver does not say: a GB10 shares its memory with the machine.
    memory_mib: int
    used_mib: int
    # What the driver keeps for itself of a card's memory.
    reserved_mib: int = 0
    utilization: int | None = None
    brand: str = ""
    processes: tuple[GpuProcess, ...] = ()
    # The card's UUID, of a MIG device.
    parent: str = ""
    # A card in MIG mode: its MIG devices can be used, itself it cannot.
    is_split: bool = False

    @property
    def usable_mib(self) -> int:
        """What programs could have of the memory if nobody else were there."""
        return max(0, self.memory_mib - self.reserved_mib)

    @property
    def free_mib(self) -> int:
        """What of that is free now."""
        return max(0, self.usable_mib - self.used_mib)

    def __str__(self) -> str:
        memory = f"{self.memory_mib / 1024:.0f} GiB" if self.memory_mib else "memory unknown"
        return f"{self.index} ({self.name}, {memory})"


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """A host's GPUs: cards by index, each followed by its MIG devices. All empty without a driver."""

    driver: str = ""
    # The newest CUDA that the driver runs, such as "12.4".
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    # What nvidia-smi said instead of an answer; empty where there is none on the host.
    trouble: str = ""


def parse(answer: str, complaint: str = "") -> GpuFacts:
    """Read SCRIPT's stdout and stderr; what a login's shell printed before it is left out."""
    if len(answer) > _MOST_CHARACTERS:
        return GpuFacts(trouble=f"its answer is longer than {_MOST_CHARACTERS >> 20} MiB")
    sections = _sections(answer)
    if "none" in sections:
        return GpuFacts()
    xml = sections.get("xml", "")
    root = _root(xml)
    if root is None or "end" not in sections:
        return GpuFacts(trouble=_last_line(xml) or _last_line(complaint) or "no answer")
    indexes, mig = _listed(sections.get("list", ""))
    owners = _owners(sections.get("processes", ""))
    gpus: list[Gpu] = []
    for number, element in enumerate(root.findall("gpu")):
        uuid = _text(element, "uuid")
        if uuid.startswith("GPU-"):
            card = _card(element, indexes.get(uuid, str(number)), owners)
            gpus += [card, *_mig_devices(element, card, listed=mig.get(uuid, {}), owners=owners)]
    return GpuFacts(driver=_text(root, "driver_version"), cuda=_text(root, "cuda_version"), gpus=tuple(gpus))


def _sections(answer: str) -> dict[str, str]:
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in answer.splitlines():
        if line.startswith(_MARK):
            lines = sections.setdefault(line.removeprefix(_MARK).strip(), [])
        else:
            lines.append(line)
    return {name: "\n".join(text) for name, text in sections.items()}


def _root(text: str) -> ET.Element | None:
    """Find the XML's first element; None if there is none. Warnings around it are left out."""
    begin, end = text.find("<nvidia_smi_log"), text.rfind("</nvidia_smi_log>")
    # From the first element on there is no DOCTYPE, so no entity can be declared: a billion laughs cannot be told.
    if begin < 0 or end < begin:
        return None
    before, *names = text[begin : end + len("</nvidia_smi_log>")].split(_PROCESS_NAME)
    try:
        return ET.fromstring(before + "".join(map(_escaped, names)))  # noqa: S314
    except ET.ParseError:
        return None


def _escaped(rest: str) -> str:
    """Names of processes are other people's text; nothing says that every driver escapes them."""
    name, end, after = rest.partition(_PROCESS_NAME_END)
    return _PROCESS_NAME + (printable(html.escape(html.unescape(name))) if end else name) + end + after


def _listed(text: str) -> tuple[dict[str, str], dict[str, dict[str, tuple[str, str]]]]:
    """Read `nvidia-smi -L`: each card's index, and of its MIG devices by number the profile and the UUID."""
    indexes: dict[str, str] = {}
    mig: dict[str, dict[str, tuple[str, str]]] = {}
    card = ""
    for line in text.splitlines():
        if found := _CARD_LINE.match(line):
            card = found[2]
            indexes[card] = found[1]
        elif found := _MIG_LINE.match(line):
            mig.setdefault(card, {})[found[2]] = (found[1], found[3])
    return indexes, mig


def _owners(text: str) -> dict[int, tuple[str, int]]:
    """Read ps: by process its user and age in seconds."""
    owners = {}
    for line in text.splitlines():
        words = line.split(None, 3)
        if len(words) >= 3 and all(re.fullmatch(r"[0-9]{1,18}", word) for word in (words[0], words[2])):
            owners[int(words[0])] = (words[1], int(words[2]))
    return owners


def _card(element: ET.Element, index: str, owners: Mapping[int, tuple[str, int]]) -> Gpu:
    return Gpu(
        uuid=_text(element, "uuid"),
        index=index,
        name=_text(element, "product_name") or "GPU",
        memory_mib=_number(element, "fb_memory_usage/total") or 0,
        used_mib=_number(element, "fb_memory_usage/used") or 0,
        reserved_mib=_number(element, "fb_memory_usage/reserved") or 0,
        utilization=_number(element, "utilization/gpu_util"),
        brand=_text(element, "product_brand"),
        processes=tuple(_process(one, owners) for one in _process_elements(element)),
        is_split=_text(element, "mig_mode/current_mig") == "Enabled",
    )


def _mig_devices(
    element: ET.Element, card: Gpu, *, listed: Mapping[str, tuple[str, str]], owners: Mapping[int, tuple[str, int]]
) -> list[Gpu]:
    """Return the card's MIG devices. One that `nvidia-smi -L` does not name is left out: nobody can ask for it."""
    devices = []
    for device in element.findall("mig_devices/mig_device"):
        number = _text(device, "index")
        if number not in listed:
            continue
        profile, uuid = listed[number]
        instance = _instance(device)
        own = [one for one in _process_elements(element) if _instance(one) == instance]
        devices.append(
            replace(
                card,
                uuid=uuid,
                index=f"{card.index}:{number}",
                name=f"{card.name} MIG {profile}",
                memory_mib=_number(device, "fb_memory_usage/total") or 0,
                used_mib=_number(device, "fb_memory_usage/used") or 0,
                reserved_mib=_number(device, "fb_memory_usage/reserved") or 0,
                utilization=None,
                processes=tuple(_process(one, owners) for one in own),
                parent=card.uuid,
                is_split=False,
            )
        )
    return devices


def _instance(element: ET.Element) -> tuple[str, str]:
    return _text(element, "gpu_instance_id"), _text(element, "compute_instance_id")


def _process_elements(element: ET.Element) -> list[ET.Element]:
    return [one for one in element.findall("processes/process_info") if _number(one, "pid") is not None]


def _process(element: ET.Element, owners: Mapping[int, tuple[str, int]]) -> GpuProcess:
    pid = _number(element, "pid") or 0
    user, seconds = owners.get(pid, ("", None))
    return GpuProcess(
        pid=pid,
        # A path, sometimes with arguments behind it.
        name=(_text(element, "process_name").split() or [""])[0].rpartition("/")[2],
        # Not told: taken for one that computes, so that nobody's work is disturbed.
        kind=_text(element, "type") or "C",
        memory_mib=_number(element, "used_memory") or 0,
        user=user,
        seconds=seconds,
    )


def _text(element: ET.Element, path: str) -> str:
    """Return an element's text; empty where the driver does not tell it."""
    # Others choose the names of their processes: no control character of theirs reaches a terminal.
    text = printable(element.findtext(path) or "", instead=" ").strip()
    # "N/A", "[N/A]", "[Not Supported]", "Requested functionality has been deprecated".
    plain = text.strip("[]").lower()
    unknown = (
        "n/a",
        "not found",
        "not supported",
        "unknown error",
        "insufficient permissions",
        "requested func",
        "err!",
    )
    return "" if plain.startswith(unknown) else text


def _number(element: ET.Element, path: str) -> int | None:
    """Return the number that "143771 MiB" or "0 %" begins with; None where there is none."""
    found = re.match(r"\d{1,18}\b", _text(element, path))
    return int(found[0]) if found else None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[-1], instead=" ")[:200] if lines else ""


def counted(number: int) -> str:
    """Write "1 GPU", "2 GPUs"."""
    return f"{number} GPU" if number == 1 else f"{number} GPUs"


def shown(gpus: Sequence[Gpu], *, notes: Mapping[str, str] | None = None, trouble: str = "") -> str:
    """Name the GPUs in one line, each with its note, by UUID: "2 GPUs: 0 (NVIDIA A100, 80 GiB; not H200), ..."."""
    if not gpus:
        return f"no GPU (nvidia-smi: {trouble})" if trouble else "no GPU"
    notes = notes or {}
    texts = (f"{str(gpu)[:-1]}; {notes[gpu.uuid]})" if gpu.uuid in notes else str(gpu) for gpu in gpus)
    return f"{counted(len(gpus))}: {', '.join(texts)}"


class Inventory:
    """Asks one host for its GPUs, again when the answer is too old. All who ask at a time share one question."""

    def __init__(self, link: AnyLink, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._clock = clock
        # The question under way.
        self._asking: SingleFlight[GpuFacts] = SingleFlight()
        # The last answer, and when its question was sent; set by _ask() alone.
        self._answer: tuple[float, GpuFacts] | None = None

    async def look(self, *, max_age_seconds: float = 2.0) -> GpuFacts:
        """Return the host's GPUs as they were at most so long ago, or when a question under way was sent.

        Raises: LinkLost, SshFailed, StartTimeout.
        """
        known = self._answer
        if not self._asking.is_under_way and known is not None and self._clock() - known[0] <= max_age_seconds:
            return known[1]
        return await self._asking.join(self._ask)

    async def aclose(self) -> None:
        """End the question under way. Safe to call twice."""
        await self._asking.aclose()

    async def _ask(self) -> GpuFacts:
        asked_at = self._clock()
        facts = await self._facts()
        if facts == GpuFacts() and await self._link.ask_login_shell():
            facts = await self._facts()
        self._answer = (asked_at, facts)
        return facts

    async def _facts(self) -> GpuFacts:
        answer = await self._link.run(["sh", "-c", SCRIPT, "nvidia-smi"], seconds=QUERY_SECONDS)
        return parse(answer.stdout.decode("utf-8", "replace"), answer.stderr.decode("utf-8", "replace"))

    def __repr__(self) -> str:
        known = counted(len(self._answer[1].gpus)) if self._answer else "not asked"
        return f"<Inventory {self._link.name} {known}{', asking' if self._asking.is_under_way else ''}>"
