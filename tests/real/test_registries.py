"""Registries as people have them: questions that are refused, mirrors, logins of the host, helpers that keep them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kernelbridge.errors import ImageMissing
from kernelbridge.hosts.docker.engine import Engine
from kernelbridge.hosts.docker.registry_auth import find_login
from tests.clients.notebook import notebook
from tests.real.conftest import require
from tests.real.test_any_image import config, derived, remove_derived
from tests.real.test_engine import engine_of
from tests.rig.laptop import Laptop
from tests.rig.next_debian import missing_next_debian
from tests.rig.registry import ADDRESS, LOGIN, TINY, registry
from tests.rig.whole import Rig

# Said to the question for an image whose pull works.
ANSWERS = {
    403: "Forbidden",
    404: "manifest unknown",
    429: "toomanyrequests: You have reached your pull rate limit",
    500: "Get https://registry-1.docker.io/v2/: dial tcp: i/o timeout",
}
HELPER = """#!/bin/sh
[ "$1" = get ] && read -r registry
[ "$registry" = ADDRESS ] || { echo 'credentials not found in native keychain'; exit 1; }
echo '{"ServerURL": "ADDRESS", "Username": "ada", "Secret": "s3cret"}'
""".replace("ADDRESS", ADDRESS)


@pytest.fixture(autouse=True, scope="module")
def registrys_programs() -> None:
    """They are there, or the reason why not is told."""
    require(missing_next_debian())


@asynccontextmanager
async def docker_config(engine: Engine, config: dict[str, Any], helper: str = "") -> AsyncIterator[None]:
    """The login on the host has this config, and this credential helper."""
    home = engine.facts.home
    await engine.link.run(["mkdir", "-p", f"{home}/.docker", f"{home}/.local/bin"], seconds=10)
    await engine.link.run(["tee", f"{home}/.docker/config.json"], stdin=json.dumps(config).encode(), seconds=10)
    if helper:
        program = f"{home}/.local/bin/docker-credential-rig"
        await engine.link.run(["tee", program], stdin=helper.encode(), seconds=10)
        await engine.link.run(["chmod", "755", program], seconds=10)
    try:
        yield
    finally:
        await engine.link.run(["rm", "-r", f"{home}/.docker", f"{home}/.local/bin"], seconds=10)


async def pulled(engine: Engine, image: str) -> None:
    await engine.check_pullable(image, seconds=30)
    await engine.pull(image, lambda _: None)
    assert await engine.image(image) is not None


async def test_what_a_registry_answers_to_a_question_refuses_no_image_that_can_be_pulled(
    rig: Rig, bridge_env: Laptop
) -> None:
    with registry(rig), rig.slow_engine() as slow:
        async with engine_of("lab", str(slow.path)) as engine:
            for status, words in ANSWERS.items():
                with slow.answers(status, "GET /distribution", words):
                    await pulled(engine, TINY)
                rig.engine.cli("image", "rm", TINY)
            with slow.answers(403, "GET /distribution", "Forbidden"), pytest.raises(ImageMissing) as caught:
                await engine.check_pullable(TINY.replace("tiny", "none"), seconds=30)
    assert "manifest unknown" in caught.value.sentence, "the pull's own words"


async def test_an_image_that_only_a_mirror_of_docker_hub_has_is_pulled(rig: Rig, bridge_env: Laptop) -> None:
    """Docker Hub itself cannot be reached: it answers no question."""
    name = "kernelbridge-test-mirrored:1"
    rig.engine.restart(options=[f"--registry-mirror=http://{ADDRESS}"])
    try:
        rig.engine.cli("tag", rig.bare_image, f"library/{name}")
        with registry(rig, images=[f"library/{name}"]):
            rig.engine.cli("image", "rm", name)
            async with engine_of() as engine:
                await pulled(engine, name)
            rig.engine.cli("image", "rm", name)
    finally:
        rig.engine.restart()


async def test_a_login_of_the_host_is_brought_along_wherever_it_is_kept(rig: Rig, bridge_env: Laptop) -> None:
    auth = {"auth": LOGIN}
    with registry(rig, has_login=True):
        async with engine_of() as engine:
            with pytest.raises(ImageMissing, match=r"run `docker login` on lab"):
                await engine.check_pullable(TINY, seconds=30)
            for config, helper in (
                ({"auths": {ADDRESS: auth}}, ""),
                ({"auths": {f"http://{ADDRESS}/v2/": auth}}, ""),
                # As `docker login` writes it beside a helper.
                ({"auths": {ADDRESS: {}}, "credsStore": "rig"}, HELPER),
                ({"credHelpers": {ADDRESS: "rig"}}, HELPER),
            ):
                async with docker_config(engine, config, helper):
                    await pulled(engine, TINY)
                rig.engine.cli("image", "rm", TINY)
            async with docker_config(engine, {"credsStore": "rig"}, HELPER):
                assert (await find_login(engine.link, "python:3.12")).trouble == "", "nothing for it is no fault"
            for helper, words in (
                ("", "docker-credential-rig: not found"),
                ("#!/bin/sh\necho 'error: the keyring is locked'\nexit 1\n", "rig: error: the keyring is locked"),
            ):
                async with docker_config(engine, {"credsStore": "rig"}, helper):
                    with pytest.raises(ImageMissing) as caught:
                        await engine.pull(TINY, lambda _: None)
                assert words in caught.value.sentence


def test_a_private_image_without_ipykernel_is_pulled_by_the_hosts_login_and_gets_what_it_lacks(
    rig: Rig, bridge_env: Laptop
) -> None:
    image = f"{ADDRESS}/{rig.bare_image}"
    login = {".docker/config.json": json.dumps({"auths": {ADDRESS: {"auth": LOGIN}}})}
    bridge_env.write_environment(image, pull="always")
    remove_derived(rig)
    with registry(rig, has_login=True, images=[rig.bare_image]):
        with pytest.raises(ImageMissing, match="run `docker login` on lab"), notebook(bridge_env):
            pass
        try:
            with rig.lab.home_files("kbtest", login), notebook(bridge_env) as kernel:
                assert kernel.value("6 * 7") == 42
                (made,) = derived(rig)
                assert LOGIN not in json.dumps(config(rig, made))
        finally:
            rig.engine.cli("image", "rm", "--force", image)
            remove_derived(rig)
