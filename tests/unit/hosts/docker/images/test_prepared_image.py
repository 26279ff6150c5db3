"""hosts/docker/images/prepared_image.py: from an environment's image to the one that is started."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Environment
from kernelbridge.errors import ImageUnusable, PackagesFailed
from kernelbridge.hosts.backend import ContainerState, Exited
from kernelbridge.hosts.docker.images import additions, derived_image
from kernelbridge.hosts.docker.images.prepared_image import Preparation, PreparedImage
from kernelbridge.hosts.docker.images.python_probe import FoundPython
from kernelbridge.hosts.docker.responses import ImageFacts
from tests.made_engines import image
from tests.made_pythons import made_python

WHOLE = {"ipykernel": "6.29.5", "debugpy": "1.8.21", "pyzmq": "27.1.0"}
FLOORS = derived_image.FLOORS


class Bench:
    """An engine with one image, `torch:2`, and a container at a time; its Pythons by the path that starts them."""

    name = "lab"

    def __init__(self, **pythons: Sequence[FoundPython]) -> None:
        self.pythons = {name.replace("_", "/"): found for name, found in pythons.items()}
        self.images = {"torch:2": image()}
        self.log: list[str] = []
        self.specs: list[Mapping[str, Any]] = []
        self.there: set[str] = set()
        self.archives: list[bytes] = []
        self.kept: dict[str, Any] = {}
        self.said: list[str] = []
        # What an installation was told, ends with and has said.
        self.stdin = b""
        self.config: Mapping[str, Any] | None = None
        self.code, self.words = 0, ""

    @property
    def link(self) -> Bench:
        return self

    @property
    def workshop(self) -> Bench:
        return self

    async def image(self, name: str) -> ImageFacts | None:
        self.log.append(f"look {name.partition(':')[0]}")
        return self.images.get(name)

    async def create(self, name: str, spec: Mapping[str, Any]) -> str:
        self.there.add(name)
        self.specs.append(spec)
        return "id"

    async def start(self, name: str) -> None:
        python = self.specs[-1]["Entrypoint"][0]
        self.log.append(f"run {python}")
        if python not in self.pythons and not self.specs[-1].get("OpenStdin"):
            raise ImageUnusable(image="torch:2", lacks=f"`{python}`")

    async def state(self, name: str) -> ContainerState:
        code = self.code if self.specs[-1].get("OpenStdin") else 0
        return Exited(code=code, oom_killed=False, error="", finished_at="")

    async def logs(self, name: str, tail: int) -> str:
        if self.specs[-1].get("OpenStdin"):
            return self.words
        found = self.pythons[self.specs[-1]["Entrypoint"][0]]
        return "hello\n" + "".join(f"kernelbridge has found {json.dumps(one.to_dict())}\n" for one in found)

    async def open_stdin(self, name: str) -> Bench:
        return self

    def write(self, line: bytes) -> None:
        self.stdin = line

    def write_eof(self) -> None:
        pass

    async def proxies(self) -> dict[str, str]:
        return {"http_proxy": "http://proxy:1"}

    async def present(self, name: str, paths: Sequence[str]) -> list[str]:
        return [path for path in paths if path in self.pythons]

    async def put(self, name: str, folder: str, archive: bytes | Path) -> None:
        self.log.append(f"put into {folder}")

    async def commit(self, name: str, tag: str, config: Mapping[str, Any] | None = None) -> ImageFacts:
        self.log.append("commit")
        self.config = config
        self.images[tag] = image("sha256:2")
        return self.images[tag]

    async def remove(self, name: str) -> None:
        self.there.discard(name)

    async def prepare(self, cache: Path, *, examine: bool = True, **keys: Any) -> PreparedImage:
        engine: Any = self
        environment = Environment(name="torch", image="torch:2", **keys)
        preparation = Preparation(
            engine=engine,
            environment=environment,
            base=self.images["torch:2"],
            additions=additions.read_additions(environment, cache),
            worker="m1:7@1:s~b",
            recall=self.kept.get,
            keep=lambda key, found: self.kept.update({key: found}),
            cache=cache,
            say=lambda news: self.said.append(str(news)),
        )
        try:
            return await preparation.prepare(examine=examine)
        finally:
            assert self.there == set(), "whatever happened, no container is left"


def fetched(cache: Path, python: FoundPython) -> Path:
    """What that Python needs was fetched before, and is nothing."""
    (cache / derived_image.cache_name(python)).mkdir(parents=True)
    return cache


async def test_an_image_of_which_nothing_is_known_is_started_as_it_is_without_a_question(tmp_path: Path) -> None:
    bench = Bench()
    prepared = await bench.prepare(tmp_path, examine=False)
    assert prepared == PreparedImage(name="torch:2", facts=image(), python="python3", floors=FLOORS)
    assert (bench.log, bench.kept, bench.said) == ([], {}, [])
    assert (await bench.prepare(tmp_path, examine=False, add_ipykernel=False)).floors == {}


async def test_what_it_lacks_is_added_once_and_found_again_by_its_name(tmp_path: Path) -> None:
    bench = Bench(python3=[made_python(packages={"numpy": "2.1"})])
    cache = fetched(tmp_path, made_python())
    prepared = await bench.prepare(cache)
    tag = derived_image.kernel_recipe("sha256:1", made_python()).tag
    assert prepared == PreparedImage(
        name=tag, facts=image("sha256:2"), python="/usr/bin/python3", floors=FLOORS, is_examined=True, is_new=True
    )
    assert bench.log == ["run python3", "look kernelbridge/derived", "put into /", "put into /", "commit"]
    probe, made = bench.specs
    assert probe["HostConfig"]["NetworkMode"] == made["HostConfig"]["NetworkMode"] == "none"
    assert made["Image"] == "sha256:1"
    assert made["Labels"]["kernelbridge.base"] == "sha256:1"
    # Who has died leaves a container that says whose it was; the image says nothing of that.
    assert probe["Labels"] == {"kernelbridge.work": "m1:7@1:s~b"}
    assert made["Labels"]["kernelbridge.work"] == "m1:7@1:s~b"
    assert bench.config == {"Labels": {"kernelbridge.work": ""}}
    # Command, user and variables are the image's own; this one has no command, and needs one.
    assert set(made) == {"Image", "Labels", "HostConfig", "Cmd"}
    bench.log.clear()
    again = await bench.prepare(cache, examine=False)
    assert (again.name, again.is_new, bench.log) == (tag, False, ["look kernelbridge/derived"])
    # Whoever has removed it gets it again; what else the image has is looked for anew for that.
    del bench.images[tag]
    bench.log.clear()
    assert (await bench.prepare(cache, examine=False)).is_new
    assert bench.log[:2] == ["look kernelbridge/derived", "run python3"]


async def test_a_python_off_the_path_is_found_and_one_that_has_all_is_started_as_it_is(tmp_path: Path) -> None:
    whole = made_python("/opt/conda/bin/python3", packages=WHOLE)
    bench = Bench(_opt_conda_bin_python3=[whole])
    prepared = await bench.prepare(tmp_path)
    assert (prepared.name, prepared.python, prepared.is_new) == ("torch:2", whole.path, False)
    assert bench.log == ["run python3", f"run {whole.path}"]
    assert (await bench.prepare(tmp_path, examine=False)).python == whole.path


async def test_an_image_without_python_is_told(tmp_path: Path) -> None:
    with pytest.raises(ImageUnusable, match="has no Python: there is none on its PATH"):
        await Bench().prepare(tmp_path)
    # What the user names is not looked for elsewhere.
    with pytest.raises(ImageUnusable, match="`/my/python`"):
        await Bench(python3=[made_python()]).prepare(tmp_path, python="/my/python")


async def test_what_is_remembered_and_makes_no_sense_is_looked_for_again(tmp_path: Path) -> None:
    bench = Bench(python3=[made_python(packages=WHOLE)])
    bench.kept["sha256:1 python3"] = {"path": 7}
    assert (await bench.prepare(tmp_path, examine=False)).python == "python3"
    assert (await bench.prepare(tmp_path)).python == "/usr/bin/python3"
    assert bench.kept["sha256:1 python3"]["version"] == "3.11.2"


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine's pip finds nothing."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))


async def test_what_cannot_be_fetched_is_told_in_the_words_of_pip(tmp_path: Path, no_index: None) -> None:
    with pytest.raises(PackagesFailed) as caught:
        await Bench(python3=[made_python()]).prepare(tmp_path / "cache")
    assert caught.value.sentence.startswith(
        "lab: ipykernel, debugpy and pyzmq could not be added to the image torch:2 (ERROR: Could not find a version"
    )


async def test_a_kernel_that_lacks_the_debugger_alone_starts_without(tmp_path: Path, no_index: None) -> None:
    bench = Bench(python3=[made_python(packages={**WHOLE, "debugpy": "0.1"})])
    prepared = await bench.prepare(tmp_path / "cache")
    assert (prepared.name, prepared.floors, prepared.is_examined) == ("torch:2", {}, True)
    assert bench.said[-1].endswith("It starts without debugpy")


async def test_what_the_environment_adds_comes_first_and_is_made_once(tmp_path: Path) -> None:
    bench = Bench(python3=[made_python(packages={**WHOLE, "pip": "25.0"})])
    prepared = await bench.prepare(tmp_path, examine=False, packages=["six"])
    assert bench.log == ["run python3", "look kernelbridge/derived", "run /usr/bin/python3", "commit"]
    work = bench.specs[-1]
    assert (work["Image"], work["HostConfig"]["NetworkMode"]) == ("sha256:1", "bridge")
    assert not {"User", "Env"} & set(work), "the image's own are right"
    assert "six" not in json.dumps(work)
    assert json.loads(bench.stdin)["environ"]["http_proxy"] == "http://proxy:1"
    assert (prepared.python, prepared.is_new) == ("/usr/bin/python3", True)
    bench.log.clear()
    again = await bench.prepare(tmp_path, examine=False, packages=["six"])
    assert (again.name, again.is_new, bench.log) == (prepared.name, False, ["look kernelbridge/derived"])
    # No card's driver gets into an image that asks for all cards, and what it says stays.
    bench.images["torch:2"] = replace(image(NVIDIA_VISIBLE_DEVICES="all"), id="sha256:3", user="1000", command=("sh",))
    await bench.prepare(tmp_path, examine=False, packages=["six"])
    assert (bench.specs[-1]["User"], bench.specs[-1]["Env"]) == ("0", ["NVIDIA_VISIBLE_DEVICES=void"])
    assert bench.config == {
        "Entrypoint": [],
        "Cmd": ["sh"],
        "User": "1000",
        "Env": ["NVIDIA_VISIBLE_DEVICES=all"],
        "Labels": {"kernelbridge.work": ""},
    }


@pytest.mark.parametrize(
    ("code", "keys", "error", "words"),
    [
        (1, {"apt": ["git"]}, PackagesFailed, "`apt` could not be added to the image torch:2 (E: Unable to locate"),
        (70, {"apt": ["git"]}, ImageUnusable, "has no apt-get for `apt`"),
        (1, {"packages": ["six"]}, PackagesFailed, "`packages` could not be added to the image torch:2 (E: Unable"),
    ],
)
async def test_what_cannot_be_installed_is_told_in_the_words_of_pip_or_apt(
    tmp_path: Path, no_index: None, code: int, keys: dict[str, Any], error: type[Exception], words: str
) -> None:
    bench = Bench(python3=[made_python(packages={**WHOLE, "pip": "25.0"})])
    bench.code, bench.words = code, "Reading package lists...\nE: Unable to locate package git\n"
    with pytest.raises(error) as caught:
        await bench.prepare(tmp_path, **keys)
    assert words in str(caught.value)
    assert "commit" not in bench.log
