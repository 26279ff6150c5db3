"""fleet/redaction.py: no secret and, where that is wanted, no name gets through; and what is useful does."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.config import load
from kernelbridge.fleet.redaction import Names, redacted, redacted_config, without_lines

SECRET = "s3cr3t-0123456789"
# GitHub's, and others', in pieces: this file has no token.
GITHUB, FACE = "ghp_" + "a1B2" * 9, "hf_" + "aB3d" * 8


@pytest.mark.parametrize(
    "text",
    [
        f"https://ada:{SECRET}@registry.example.com/v2/",
        f"http://{SECRET}@proxy:3128",
        f"git+https://oauth2:{SECRET}@git.example.com/x.git",
        f"ssh://ada:{SECRET}@lab",
        f"HF_TOKEN={SECRET}",
        f"export WANDB_API_KEY='{SECRET}'",
        f'{{"password": "{SECRET}"}}',
        f"Authorization: Bearer {SECRET}",
        f"docker login --password {SECRET} registry",
        f"the header was bearer {SECRET}",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}",
        f"it was {GITHUB}",
        f"{FACE}",
        f"my_secret: {SECRET}, and more",
        f"aws_access_key = {SECRET}",
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str) -> None:
    made = redacted(text)
    assert SECRET not in made
    assert GITHUB not in made
    assert FACE not in made
    assert "***" in made


@pytest.mark.parametrize(
    "text",
    [
        "[lab k=3f2a] link lost, retry in 2.0 s",
        "lab: the login as ada was refused (offered: ~/.ssh/id_ed25519; skipped: none).",
        "ssh://ada@lab:22",
        "/usr/lib/python3.11/site-packages/kernelbridge/kernel/kernel.py",
        "image pytorch/pytorch:2.5 sha256:0123456789abcdef0123456789abcdef",
        "the author of it is Ada; the pass took 3 s; passes: 4",
        'pass_env = ["EDITOR"]',
        "GPU-11111111-2222-3333-4444-555555555555",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


CONFIG = """
[hosts.hopkins]
ssh = "ada@gpu.hopkins.edu:2222"
[hosts.lab]
ssh = "lab"
[environments.torch]
image = "registry.corp.example:5000/team/torch:2"
hosts = ["hopkins"]
env = { EDITOR = "vim-MARKER", HF_HOME = "/x-MARKER" }
labels = { note = "label-MARKER" }
setup = ["echo setup-MARKER"]
packages = ["torch==2.5", "git+https://ada:MARKER@git.example.com/x.git"]
secrets = ["HF_TOKEN"]
shm_size = "8g"
mounts = ["/data:/data:ro"]
engine_config = { HostConfig = { CgroupParent = "cgroup-MARKER" } }
[environments.made]
build = { context = "~/made", args = { PIP_INDEX = "arg-MARKER" } }
"""


def test_of_a_config_the_values_that_may_be_secret_are_left_out_and_the_rest_is_there(tmp_path: Path) -> None:
    text = redacted_config(load.parse(CONFIG, tmp_path / "kernelbridge.toml"))
    assert "MARKER" not in text
    for part in (
        "[hosts.hopkins]",
        'image = "registry.corp.example:5000/team/torch:2"',
        "env = { EDITOR = ***, HF_HOME = *** }",
        "setup = *** (1 of them)",
        'secrets = ["HF_TOKEN"]',
        "args = { PIP_INDEX = *** }",
        "shm_size = ",
        "torch==2.5",
        "CgroupParent = ***",
    ):
        assert part in text
    assert "gpus" not in text, "what is a default says nothing"


def test_names_of_people_and_machines_are_the_same_others_throughout(tmp_path: Path) -> None:
    names = Names(
        load.parse(CONFIG, tmp_path / "k.toml"), home=Path("/home/adalovelace"), login="ada", machine="desk.lan"
    )
    text = (
        "/home/adalovelace/x of ada on desk, hopkins at gpu.hopkins.edu:2222 (10.1.2.3:22, fe80:1:2:3:4:5:6:7), "
        "127.0.0.1:8888, adapter, Docker 27.1.0.2, registry.corp.example:5000/team"
    )
    made = names.masked(text)
    assert made == (
        "~/x of LOGIN on THIS-MACHINE, HOST-1 at HOST-1:2222 (ADDRESS:22, ADDRESS), "
        "127.0.0.1:8888, adapter, Docker ADDRESS, REGISTRY-1/team"
    )


def test_of_many_lines_the_last_are_there_and_their_number() -> None:
    assert without_lines(["a", "b", "c"], 2) == ["(1 lines before these)", "b", "c"]
    assert without_lines(["a"], 2) == ["a"]
