"""What an engine refuses reaches the user whole, with what helps; a stand-in says what this one does not."""

from __future__ import annotations

from kernelbridge import errors
from kernelbridge.errors import KernelBridgeError
from kernelbridge.hosts.docker.engine import Engine
from tests.real.test_engine import NAME, engine_of, spec
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

HOOK = (
    "OCI runtime create failed: runc create failed: error running prestart hook #0: exit status 1, stdout: , stderr: "
)
PART = f"nvidia-container-cli: mount error: file creation failed: /{'a' * 64}/libnvidia-ml.so.1: file exists"


async def refusal(rig: Rig, engine: Engine, **host_config: object) -> KernelBridgeError:
    try:
        await engine.create(NAME, spec(rig, **host_config))
        await engine.start(NAME)
    except KernelBridgeError as exc:
        return exc
    finally:
        await engine.remove(NAME)
    raise AssertionError("it started")


async def test_an_engine_without_its_init_says_what_the_host_lacks(rig: Rig, bridge_env: Laptop) -> None:
    rig.engine.restart(options=["--init-path", "/nowhere/docker-init"])
    try:
        async with engine_of() as engine:
            told = await refusal(rig, engine)
    finally:
        rig.engine.restart()
    assert type(told) is errors.EngineFailed
    assert "the host has no `docker-init`, under which every kernel's container runs: " in told.sentence
    assert "/nowhere/docker-init" in told.sentence, "the engine's own words"
    assert told.remedy.startswith("Install `docker-init` on lab")


async def test_the_inmost_reason_is_told_and_no_remedy_for_another_fault(rig: Rig, bridge_env: Laptop) -> None:
    with rig.slow_engine() as slow:
        async with engine_of("lab", str(slow.path)) as engine:
            with slow.answers(500, r"POST /containers/\S+/start", f"{HOOK}Auto-detected mode as 'legacy'\\n{PART}"):
                told = await refusal(rig, engine)
            assert type(told) is errors.ImageUnusable
            assert PART in told.sentence
            with slow.answers(
                400, "POST /containers/create", "CDI device injection failed: unresolvable CDI devices x"
            ):
                told = await refusal(rig, engine)
            assert "--device-name-strategy=uuid" in told.remedy
            told = await refusal(rig, engine, NanoCpus=10**15)
            assert told.remedy == "Lower `cpus` of the environment.", told
            told = await refusal(rig, engine, Memory=1 << 20)
            assert told.remedy == "Raise `memory` of the environment.", told
            told = await refusal(rig, engine, NetworkMode="no-such-network")
            assert told.remedy.startswith("Fix `network` of the environment"), told
            told = await refusal(rig, engine, CapAdd=["NO_SUCH"])
            assert told.remedy == "Fix `cap_add` of the environment.", told
            with slow.answers(500, "POST /images/create", "toomanyrequests: You have reached your pull rate limit."):
                limited = await pull_refusal(engine)
            assert limited.remedy.startswith("Run `docker login` on lab: an account may pull more.")
            with slow.answers(
                404, "POST /images/create", "no matching manifest for linux/arm64/v8 in the manifest list"
            ):
                foreign = await pull_refusal(engine)
            assert foreign.sentence.startswith(
                "The image nobody/none:1 is for another architecture than lab (no matching"
            )


async def pull_refusal(engine: Engine) -> KernelBridgeError:
    try:
        await engine.pull("nobody/none:1", lambda _: None)
    except KernelBridgeError as exc:
        return exc
    raise AssertionError("it was pulled")
