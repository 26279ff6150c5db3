"""Registries as people have them: questions that are refused, mirrors, logins of the host, helpers that keep them."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kernelbridge.errors import ImageMissing
from kernelbridge.hosts.docker.engine import Engine
from kernelbridge.hosts.docker.registry_auth import find_login
from tests.real.test_engine import engine_of
from tests.rig.laptop import Laptop
from tests.rig.registry import registry
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
[ "$registry" = 127.0.0.1:5055 ] || { echo 'credentials not found in native keychain'; exit 1; }
echo '{"ServerURL": "127.0.0.1:5055", "Username": "ada", "Secret": "s3cret"}'
"""


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
    with registry(rig.lab) as image, rig.slow_engine() as slow:
        async with engine_of("lab", str(slow.path)) as engine:
            for status, words in ANSWERS.items():
                with slow.answers(status, "GET /distribution", words):
                    await pulled(engine, image)
                rig.engine.cli("image", "rm", image)
            with slow.answers(403, "GET /distribution", "Forbidden"), pytest.raises(ImageMissing) as caught:
                await engine.check_pullable(image.replace("tiny", "none"), seconds=30)
    assert "manifest unknown" in caught.value.sentence, "the pull's own words"


async def test_a_login_of_the_host_is_brought_along_wherever_it_is_kept(rig: Rig, bridge_env: Laptop) -> None:
    with registry(rig.lab, login="ada:s3cret") as image:
        address = image.partition("/")[0]
        auth = {"auth": base64.b64encode(b"ada:s3cret").decode()}
        async with engine_of() as engine:
            with pytest.raises(ImageMissing, match=r"run `docker login` on lab"):
                await engine.check_pullable(image, seconds=30)
            for config, helper in (
                ({"auths": {address: auth}}, ""),
                ({"auths": {f"http://{address}/v2/": auth}}, ""),
                # As `docker login` writes it beside a helper.
                ({"auths": {address: {}}, "credsStore": "rig"}, HELPER),
                ({"credHelpers": {address: "rig"}}, HELPER),
            ):
                async with docker_config(engine, config, helper):
                    await pulled(engine, image)
                rig.engine.cli("image", "rm", image)
            async with docker_config(engine, {"credsStore": "rig"}, HELPER):
                assert (await find_login(engine.link, "python:3.12")).trouble == "", "nothing for it is no fault"
            for helper, words in (
                ("", "docker-credential-rig: not found"),
                ("#!/bin/sh\necho 'error: the keyring is locked'\nexit 1\n", "rig: error: the keyring is locked"),
            ):
                async with docker_config(engine, {"credsStore": "rig"}, helper):
                    with pytest.raises(ImageMissing) as caught:
                        await engine.pull(image, lambda _: None)
                assert words in caught.value.sentence
