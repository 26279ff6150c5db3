"""Images built on the host: of a folder here or there, of a git repository; by BuildKit and by the classic builder."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kernelbridge.config import load
from kernelbridge.config.schema import Environment
from kernelbridge.errors import BuildFailed
from kernelbridge.hosts.docker.engine import Engine, open_engine
from kernelbridge.hosts.docker.images.built_image import built_image
from kernelbridge.hosts.docker.responses import ImageFacts
from kernelbridge.hosts.progress import WorkProgress
from kernelbridge.hosts.transport.ssh import open_link
from tests.clients.notebook import notebook
from tests.rig.daemon import SLOW
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

# A docker command as that of release 23 and later is without its plugin for BuildKit.
WITHOUT_BUILDX = """#!/bin/sh
[ "$1" = --version ] && echo 'Docker version 28.2.2, build e6534b4'
echo "docker: 'buildx' is not a docker command." >&2
exit 1
"""
DOCKERFILE = """\
FROM {image} AS base
USER root
ARG WORD=none
COPY . /ctx
RUN echo $WORD > /word && find /ctx -mindepth 1 | sort > /list
FROM base AS wanted
ENV STAGE=wanted
FROM base AS unwanted
RUN false
"""
FAILS = "FROM {image}\nUSER root\nRUN sleep 2; echo what it needs is not there && exit 3\n"


def docker_with_buildkit() -> str:
    """A docker command of this machine that builds with BuildKit."""
    for path in filter(None, ("/usr/bin/docker", shutil.which("docker"))):
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.match(r"Docker version (\d+)", said)
        has_buildx = subprocess.run([path, "buildx", "version"], capture_output=True, check=False).returncode == 0
        if has_buildx or (found is not None and int(found[1]) < 23):
            return path
    pytest.skip("no docker command here builds with BuildKit (Debian: docker.io of release 20.10, or docker-buildx)")


@pytest.fixture
def builders(rig: Rig) -> Iterator[dict[str, str]]:
    """The login on the host has two docker commands, each in a folder: with BuildKit, and without."""
    shims = {
        "buildkit/docker": f'#!/bin/sh\nexec {docker_with_buildkit()} "$@"\n',
        "classic/docker": WITHOUT_BUILDX,
    }
    with rig.lab.home_files("kbtest", shims):
        yield {name: str(rig.lab.home("kbtest") / name) for name in ("buildkit", "classic")}
    with rig.engine.client() as client:
        for image in client.images.list(filters={"label": "kernelbridge.build"}):
            client.images.remove(str(image.id), force=True)


def write_context(rig: Rig, folder: Path) -> None:
    """A folder as people have them, with what is not to be sent."""
    for name, text in {
        "docker/gpu.Dockerfile": DOCKERFILE.format(image=rig.image),
        ".dockerignore": "*\n!src\n**/*.log\n!src/kept.log\n",
        "src/run.sh": "#!/bin/sh\necho it runs\n",
        "src/kept.log": "kept",
        "src/deep/left.log": "left out",
        "secret.txt": "left out",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "src/run.sh").chmod(0o755)
    (folder / "src/link").symlink_to("run.sh")


def environment(laptop: Laptop, builder: str, build: str, **keys: str) -> Environment:
    more = "".join(f"{key} = {value}\n" for key, value in keys.items())
    laptop.write_config(
        f'[hosts.lab]\nssh = "lab"\npath = ["{builder}"]\n\n[environments.test]\nbuild = {build}\n{more}'
    )
    return load.load(laptop.config).environment("test")


@asynccontextmanager
async def engine_of(laptop: Laptop) -> AsyncIterator[Engine]:
    host = load.load(laptop.config).host("lab")
    async with await open_link(host) as link, await open_engine(link, host) as opened:
        yield opened


def test_a_kernel_runs_in_what_a_folder_of_this_machine_is_built_to_and_a_restart_in_what_it_is_by_then(
    rig: Rig, bridge_env: Laptop, builders: dict[str, str]
) -> None:
    folder = bridge_env.home / "project"
    write_context(rig, folder)
    (folder / "Dockerfile").write_text(FAILS.format(image=rig.image))
    environment(bridge_env, builders["buildkit"], '"~/project"')
    with notebook(bridge_env) as kernel:
        reply = kernel.client.execute_interactive("1", output_hook=lambda _: None, timeout=60 * SLOW, allow_stdin=False)
        shown = reply["content"]["traceback"]
    assert shown[0].startswith("BuildFailed: lab: the image of test could not be built (")
    assert shown.index("The build's last lines:") < shown.index("  what it needs is not there")

    keys = 'context = "~/project", dockerfile = "docker/gpu.Dockerfile", target = "wanted", args = { WORD = "a b" }'
    environment(bridge_env, builders["buildkit"], f"{{ {keys} }}")
    with notebook(bridge_env) as kernel:
        kernel.run("import os, subprocess, pathlib")
        assert kernel.value("pathlib.Path('/word').read_text()") == "a b\n"
        assert kernel.value("os.environ['STAGE']") == "wanted"
        listed = set(kernel.value("pathlib.Path('/list').read_text().split()"))
        # The Dockerfile is always sent; whether it is in the context then is the builder's.
        assert listed - {"/ctx/docker", "/ctx/docker/gpu.Dockerfile", "/ctx/.dockerignore"} == {
            "/ctx/src", "/ctx/src/deep", "/ctx/src/kept.log", "/ctx/src/link", "/ctx/src/run.sh",
        }  # fmt: skip
        assert kernel.value("subprocess.run('/ctx/src/link', capture_output=True).stdout") == b"it runs\n"
        (container,) = rig.engine.kernels()
        assert container.labels["kernelbridge.image"].startswith("kernelbridge/build:")
        (folder / "src/run.sh").write_text("#!/bin/sh\necho it runs anew\n")
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=60 * SLOW)
        said = kernel.run("import subprocess; print(subprocess.run('/ctx/src/link', capture_output=True).stdout)")
        assert "this is a new container, because what its image is built of has changed" in said
        assert "it runs anew" in said


@pytest.mark.parametrize("builder", ["buildkit", "classic"])
async def test_what_is_unchanged_is_not_built_and_a_changed_file_gives_another_image(
    rig: Rig, bridge_env: Laptop, builders: dict[str, str], builder: str
) -> None:
    folder = bridge_env.home / "project"
    write_context(rig, folder)
    wanted = environment(
        bridge_env,
        builders[builder],
        f'{{ context = "{folder}", dockerfile = "docker/gpu.Dockerfile", target = "wanted" }}',
    )
    said: list[str] = []

    def say(news: str | WorkProgress) -> None:
        said.append(str(news))

    async with engine_of(bridge_env) as engine:
        first, is_new = await built_image(engine, wanted, say)
        assert is_new
        (folder / "secret.txt").write_text("what is not sent is no change")
        (folder / "src/run.sh").touch()
        assert await built_image(engine, wanted, say) == (first, False)
        (folder / "src/run.sh").write_text("#!/bin/sh\necho changed\n")
        second, is_new = await built_image(engine, wanted, say)
        assert is_new
        assert second.id != first.id
        builds = {one.id: (one.kind, one.names) for one in await engine.images.list()}
        assert builds[second.id] == ("build", (wanted.image,))
        assert builds[first.id] == ("build", ()), "it is found when nothing needs it any more"

        # Its last lines are told, and why.
        (folder / "docker/gpu.Dockerfile").write_text(FAILS.format(image=rig.image))
        with pytest.raises(BuildFailed, match=r"lab: the image of test could not be built \(.*(code: 3|did not)") as it:
            await built_image(engine, wanted.model_copy(update={"build": without_target(wanted)}), say)
        assert any("what it needs is not there" in line for line in it.value.parts[2:])
        assert [line for line in said if line.startswith("building the image: ")], "a build that takes a while is told"
        (folder / "docker/gpu.Dockerfile").write_text(f"FROM {rig.image}\nRUN --mount=type=cache,target=/c ls /c\n")
        mounting = wanted.model_copy(update={"build": without_target(wanted)})
        if builder == "buildkit":
            await built_image(engine, mounting, say)
        else:
            with pytest.raises(BuildFailed) as refused:
                await built_image(engine, mounting, say)
            assert "Install Docker's buildx on lab" in refused.value.remedy
        (folder / "docker/gpu.Dockerfile").unlink()
        with pytest.raises(BuildFailed, match=r"there is no docker/gpu.Dockerfile in "):
            await built_image(engine, wanted, say)


def without_target(environment: Environment) -> object:
    assert environment.build is not None
    return environment.build.model_copy(update={"target": None})


@pytest.mark.parametrize("builder", ["buildkit", "classic"])
async def test_a_folder_and_a_repository_of_the_host_are_built_there(
    rig: Rig, bridge_env: Laptop, builders: dict[str, str], builder: str
) -> None:
    home = rig.lab.home("kbtest")
    dockerfile = f"FROM {rig.image}\nUSER root\nCOPY . /ctx\nRUN test ! -e /ctx/b.log && cat /ctx/word\n"
    files = {"repo/sub/Dockerfile": dockerfile, "repo/sub/.dockerignore": "*.log\n", "repo/sub/word": "one"}

    def commit(branch: str) -> None:
        git = ["git", "-C", str(home / "repo"), "-c", "user.name=a", "-c", "user.email=a@b"]
        for words in (["init", "-q"], ["checkout", "-q", "-B", branch], ["add", "-A"], ["commit", "-q", "-m", "x"]):
            rig.lab.run(["setpriv", "--reuid=kbtest", "--regid=kbtest", "--clear-groups", *git, *words])

    async def image(engine: Engine, build: str) -> tuple[ImageFacts, bool]:
        return await built_image(engine, environment(bridge_env, builders[builder], build), lambda _: None)

    with rig.lab.home_files("kbtest", {**files, "repo/sub/b.log": "left out"}):
        in_folder = '"host:~/repo/sub"'
        in_git = f'{{ git = "{home}/repo#work:sub" }}'
        environment(bridge_env, builders[builder], in_folder)
        async with engine_of(bridge_env) as engine:
            first, _ = await image(engine, in_folder)
            commit("work")
            fetched, is_new = await image(engine, in_git)
            assert is_new
            assert await image(engine, in_git) == (fetched, False)
            (home / "repo/sub/word").write_text("two")
            second, _ = await image(engine, in_folder)
            assert second.id != first.id
            commit("work")
            again, is_new = await image(engine, in_git)
            assert is_new
            assert again.id != fetched.id
            if builder == "buildkit":
                told = await engine.link.run(["git", "-C", f"{home}/repo", "rev-parse", "work^"], seconds=10)
                _, is_new = await image(engine, f'{{ git = "{home}/repo#{told.stdout.decode().strip()}:sub" }}')
                assert is_new
            for address, words in (
                (f"{home}/repo#gone", "there is no gone in"),
                (f"{home}/none", "does not appear to be a git repository"),
                (f"{home}/repo#work:none", "Dockerfile"),
            ):
                with pytest.raises(BuildFailed, match=words):
                    await image(engine, f'{{ git = "{address}" }}')
            # What a killed process has left goes with the next, once it is old.
            made = "mkdir -p /tmp/kernelbridge-build.old/x && touch -d '25 hours ago' /tmp/kernelbridge-build.old"
            assert (await engine.link.run(["sh", "-c", made], seconds=10)).exit_code == 0
            (home / "repo/sub/word").write_text("three")
            commit("work")
            await image(engine, in_git)
            left = await engine.link.run(["sh", "-c", "ls -d /tmp/kernelbridge-build.*", "ls"], seconds=10)
            assert left.stdout == b"", "what git fetched is removed"
