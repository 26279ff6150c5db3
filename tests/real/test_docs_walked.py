"""The how-to guides, walked: each does what it says, with each of its blocks as it is printed, in order.

The reader is new, the host is the made machine under the name that the pages use, and the image that they name is one
of the tests'. How a block is done: see tests/clients/walk.py.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import nbformat
import pytest

from kernelbridge import errors
from tests.clients.driver import NodeClient
from tests.clients.launched import launched
from tests.clients.rest import started_by
from tests.clients.server import JupyterServer
from tests.clients.specs import installed_spec
from tests.clients.walk import DOCS, Walk, blocks
from tests.rig.daemon import SLOW, wait_until
from tests.rig.lab import PREFIX
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(360)

IMAGE = "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"
WALKED: dict[str, Callable[[Walk], None]] = {}
# Pages without a guide in them.
NOT_A_GUIDE = ("how-to/index.md",)


def walked(page: str) -> Callable[[Callable[[Walk], None]], Callable[[Walk], None]]:
    """The function is how its page is walked."""

    def keep(walk: Callable[[Walk], None]) -> Callable[[Walk], None]:
        WALKED[page] = walk
        return walk

    return keep


@pytest.fixture
def image(rig: Rig) -> Iterator[str]:
    """The image that the pages name, on the host already: no registry is here to have it from."""
    rig.engine.cli("tag", rig.image, IMAGE)
    yield IMAGE
    rig.engine.cli("image", "rm", "-f", IMAGE)


@walked("getting-started.md")
def getting_started(walk: Walk) -> None:
    walk.laptop.config.unlink()
    with walk.terminal("kernelbridge init") as screen:
        screen.expect("Which machine runs the containers")
        screen.sendline("lab")
        screen.expect("Which image do kernels run in")
        screen.sendline(IMAGE)
        screen.expect("Wrote ")
    asked = walk.laptop.config.read_text()
    walk.laptop.config.unlink()
    walk.type("kernelbridge init --yes")
    assert walk.laptop.config.read_text() == asked
    with walk.notebook():
        assert "3f2a91c0" in walk.type("kernelbridge ps")
        assert "pytorch of " in walk.type("kernelbridge gpus")
    walk.laptop.config.unlink()
    walk.config()
    assert IMAGE in walk.type("kernelbridge config")
    walk.type("kernelbridge trust lab")
    walk.type("kernelbridge install")
    with walk.notebook() as kernel:
        assert "GPU 0" in kernel.run("!nvidia-smi -L")


@walked("from-by-hand.md")
def from_by_hand(walk: Walk) -> None:
    walk.laptop.config.unlink()
    walk.type("kernelbridge init --yes")
    # As a kernel has it; a cell after `init`: see the page above.
    kernel_id = walk.run("kernelbridge up pytorch").strip()
    assert kernel_id[:12] in walk.type("kernelbridge ps")
    assert kernel_id[:12] in walk.type("kernelbridge gpus")
    assert walk.type("kernelbridge shell", keys="echo in the container\n") == "in the container\n"
    walk.type("kernelbridge stop --all")
    assert walk.rig.engine.kernels() == []


@walked("how-to/build-an-image.md")
def build_an_image(walk: Walk) -> None:
    project = walk.folder
    (project / "docker").mkdir()
    (project / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY Dockerfile /of-here\n")
    staged = f"FROM {IMAGE} AS notebook\nARG CUDA\nENV CUDA=$CUDA\nFROM notebook\nRUN false\n"
    (project / "docker/gpu.Dockerfile").write_text(staged)
    there = {"project/Dockerfile": f"FROM {IMAGE}\nENV BUILT=there\n"}
    # The host's git takes the repository that the page names from a folder: no server is here.
    repository = walk.rig.lab.home("kbtest") / "repository"
    there["repository/docker/Dockerfile"] = f"FROM {IMAGE}\nENV BUILT=of-git\n"
    there[".gitconfig"] = f'[url "{repository}"]\n\tinsteadOf = git@example.org:team/project.git\n'
    with walk.rig.lab.home_files("kbtest", there):
        for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "one"]):
            git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b", *words]
            walk.rig.lab.run(["setpriv", "--reuid=kbtest", "--regid=kbtest", "--clear-groups", *git])
        walk.config()
        assert walk.run("kernelbridge run mine -- cat /of-here").startswith("FROM ")
        walk.config()
        assert walk.run("kernelbridge run mine -- printenv CUDA") == "12.8\n"
        walk.config()
        assert walk.run("kernelbridge run there -- printenv BUILT") == "there\n"
        walk.config()
        assert walk.run("kernelbridge run repository -- printenv BUILT") == "of-git\n"
        shutil.rmtree(repository / ".git")
    walk.start_config()
    assert " build " in walk.run("kernelbridge clean --images")


@walked("how-to/commands-and-runs.md")
def commands_and_runs(walk: Walk) -> None:
    (walk.folder / "results.csv").write_text("1,2\n")
    (walk.folder / "train.py").write_text("import sys\nprint('trained', *sys.argv[1:])\n")
    cells = [("lr = 1", ["parameters"]), ("print('lr', lr)", [])]
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(text, metadata={"tags": tags}) for text, tags in cells]
    nbformat.write(book, walk.folder / "train.ipynb")
    with walk.notebook() as kernel:
        kernel.run("open('/tmp/model.pt', 'w').write('model')")
        assert walk.type("kernelbridge shell", keys="echo from the shell\nexit\n") == "from the shell\n"
        assert "Stand-in GPU" in walk.type("kernelbridge exec")
        walk.type("kernelbridge cp results.csv")
        assert kernel.value("open('/tmp/results.csv').read()") == "1,2\n"
        walk.type("kernelbridge cp 3f2a91c0:/tmp/model.pt .")
        assert (walk.folder / "model.pt").read_text() == "model"
    walk.config()
    assert walk.type("kernelbridge run pytorch -- python") == "trained --lr 1\n"
    walk.type("kernelbridge run pytorch -- nvidia-smi")
    begun = walk.type("kernelbridge run --detach").strip()
    walk.call(begun[:8])
    assert begun[:12] in walk.type("kernelbridge ps")
    assert walk.type("kernelbridge logs") == "trained\n"
    assert walk.type("kernelbridge attach") == "trained\n"
    walk.call(walk.run("kernelbridge run --detach pytorch -- sleep 1000").strip())
    walk.type("kernelbridge stop")
    walk.type("kernelbridge run pytorch train.ipynb")
    done = nbformat.read(walk.folder / "done.ipynb", 4)
    assert done.cells[-1].outputs[0].text == "lr 0.1\n"
    walk.type("kernelbridge up")
    assert "train.py" in walk.type("kernelbridge shell", keys="ls\n").split()
    walk.run("kernelbridge stop --all")
    text = walk.config()
    engine = f'[hosts.local]\nssh = "local"\nsocket = "{walk.rig.engine.socket}"\n'
    walk.laptop.write_config(f'{engine}\n{text}workspace = "."\n')
    # The engine takes the folder as it is here: one that the made machine sees.
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir="/var/tmp") as folder:
        walk.folder = Path(shutil.copytree(walk.folder, folder, dirs_exist_ok=True))
        assert walk.type("kernelbridge run --host local") == "trained\n"


@walked("how-to/docker-options.md")
def docker_options(walk: Walk) -> None:
    walk.config()
    with walk.notebook("kernelbridge-train"):
        (container,) = walk.rig.engine.kernels()
        container.reload()
        asked = container.attrs["HostConfig"]
        assert (asked["CpusetCpus"], asked["OomScoreAdj"]) == ("0,1", 100)
        assert asked["PortBindings"]["6006/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "6006"}]
    walk.config()
    with walk.notebook():
        assert "unsafe" in walk.run("kernelbridge ps")
    walk.config()
    with walk.notebook() as kernel:
        kernel.run("open('/tmp/kept', 'w').write('by a cell')")
        walk.type("kernelbridge ps")
        walk.type("kernelbridge snapshot")
        assert "team/model:1" in walk.type("kernelbridge images")
        walk.type("kernelbridge clean --images --dry-run")
    walk.laptop.write_config(walk.laptop.config.read_text().replace(IMAGE, "team/model:1"))
    assert walk.run("kernelbridge run pytorch -- cat /tmp/kept") == "by a cell"
    walk.rig.engine.cli("image", "rm", "-f", "team/model:1")


@walked("how-to/hosts-that-ask.md")
def hosts_that_ask(walk: Walk) -> None:
    walk.laptop.write_config(walk.laptop.config.read_text().replace("[hosts.lab]", "[hosts.cluster]"))
    walk.run("kernelbridge install")
    with walk.rig.sshd.asking() as codes, walk.terminal("kernelbridge doctor cluster") as screen:
        screen.expect("Password: ")
        screen.sendline(codes.new())
        screen.expect("second factor +.*asked for, and given")


@walked("how-to/install.md")
def install(walk: Walk) -> None:
    walk.type("kernelbridge install")


@walked("how-to/images.md")
def images(walk: Walk) -> None:
    """What is added to an image without ipykernel: test_any_image.py."""
    walk.config()
    assert walk.type("kernelbridge pull") == f"lab has {IMAGE}\n"
    (walk.laptop.config_dir / "requirements.txt").write_text("colorama\n")
    walk.config()
    assert walk.run("kernelbridge run pytorch -- python -c 'import einops, tqdm, colorama; print(6 * 7)'") == "42\n"
    walk.rig.engine.cli("tag", walk.rig.bare_image, IMAGE)
    walk.config()
    assert "has no ipykernel" in walk.failed_start()
    walk.start_config()
    walk.run("kernelbridge clean --images")


@walked("how-to/jupyterlab.md")
def jupyterlab(walk: Walk) -> None:
    """What a server does, without a browser: test_lab_browser.py has the clicks."""
    with JupyterServer(walk.laptop.home / "server", lab=False, env=walk.laptop.variables) as server:
        wait_until(lambda: "kernelbridge-pytorch" in server.get("api/kernelspecs")["kernelspecs"], "its spec", 20)
        walk.laptop.write_config(walk.laptop.config.read_text().replace("pytorch]", "renamed]"))
        wait_until(lambda: "kernelbridge-renamed" in server.get("api/kernelspecs")["kernelspecs"], "the new spec", 20)
        with started_by(server, "kernelbridge-renamed") as kernel:
            assert kernel.finish(kernel.send("print(6 * 7)")).text == "42\n"
            listed = [row["kernel_id"] for row in server.get("kernelbridge/kernels")["kernels"]]
            assert listed == [kernel.id]
            assert kernel.id[:12] in walk.run("kernelbridge ps")
            assert len(server.get("kernelbridge/gpus")["gpus"]) == 4


@walked("how-to/persist-and-attach.md")
def persist_and_attach(walk: Walk) -> None:
    walk.config()
    with launched(walk.laptop, "pytorch") as editor:
        with editor.client() as client:
            client.run("x = 41")
        (container,) = walk.rig.engine.kernels()
        walk.call(str(container.labels["kernelbridge.kernel"])[:8])
        editor.end()
    walk.type("kernelbridge logs 3f2a91c0 --output")
    assert "detached since" in walk.type("kernelbridge ps")
    with walk.terminal("kernelbridge attach") as screen:
        screen.expect("Ctrl-D leaves the console and the kernel running")
        screen.expect("In \\[")
        screen.sendline("print('the answer', x + 1)")
        screen.expect("the answer 42")
        screen.expect("In \\[")
        time.sleep(1)
        screen.sendeof()
        screen.expect("exit")
        screen.sendline("y")
        screen.expect("The kernel runs on")
    walk.type("kernelbridge stop")
    walk.type("kernelbridge stop --all")
    walk.type("kernelbridge stop --all --host lab --env pytorch")
    walk.type("kernelbridge logs", code=errors.KernelNotFound.exit_code)
    walk.type("kernelbridge clean --dry-run")
    walk.type("kernelbridge clean")


@walked("how-to/ports-and-tensorboard.md")
def ports_and_tensorboard(walk: Walk) -> None:
    walk.config()
    serve = "import subprocess, sys; [subprocess.Popen([sys.executable, '-m', 'http.server', port, '-b', '127.0.0.1'])"
    with walk.notebook() as kernel:
        told = kernel.run(f"{serve} for port in ('6006', '80')]; None")
        # Others on this machine may have the port; then a line says which it is.
        moved = re.search(r"port 6006 is at (http://127.0.0.1:\d+/)", told)
        expect_page(moved[1] if moved else "http://127.0.0.1:6006/")
        with walk.until_ctrl_c("kernelbridge forward") as said:
            found = re.search(r"http://127.0.0.1:\d+/", said)
            assert found, said
            expect_page(found[0])


def expect_page(address: str) -> None:
    """A page is there, soon."""

    def is_there() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=10 * SLOW) as answer:
            return bool(answer.status == 200)
        return False

    wait_until(is_there, f"a page at {address}", 20)


@walked("how-to/secrets-and-users.md")
def secrets_and_users(walk: Walk) -> None:
    lab = walk.rig.lab
    uid = (lab.home("kbtest").stat()).st_uid
    walk.config()
    with walk.notebook(env={"HF_TOKEN": "t0ken", "WANDB_MODE": "offline"}) as kernel:
        kernel.run("import os")
        names = "'HF_TOKEN', 'WANDB_MODE', 'HF_HOME'"
        assert kernel.value(f"[os.environ[name] for name in ({names})]") == ["t0ken", "offline", "/cache/hf"]
    lab.run(["mount", "-t", "tmpfs", "tmpfs", "/srv"])
    try:
        lab.run(["install", "-d", "-o", str(uid), "/srv/data", "/srv/work", f"{lab.home('kbtest')}/.cache"])
        lab.run(["install", "-d", "-o", str(uid), f"{lab.home('kbtest')}/.cache/huggingface"])
        walk.config()
        with walk.notebook() as kernel:
            assert kernel.run("import os; os.getcwd()") == "'/data'"
            kernel.run("open('/cache/hf/mine', 'w').write('x')")
            assert (lab.home("kbtest") / ".cache/huggingface/mine").stat().st_uid == uid
        walk.config()
        with walk.notebook() as kernel:
            kernel.run("open('/models/mine', 'w').write('x'); open('/scratch/mine', 'w').write('x')")
            size = "os.statvfs('/scratch').f_blocks * os.statvfs('/scratch').f_frsize"
            assert kernel.run(f"import os; {size}") == str(8 << 30)
        walk.rig.engine.cli("volume", "rm", "models", "datasets")
        walk.config()
        with walk.notebook() as kernel:
            assert kernel.run("import os; os.getuid()") == "0"
        walk.config()
        with walk.notebook() as kernel:
            kernel.run("import os; open('/work/mine', 'w').write('x')")
            assert kernel.value("[os.environ[name] for name in ('WANDB_PROJECT', 'OMP_NUM_THREADS')]") == ["team", "8"]
    finally:
        lab.run(["umount", "/srv"])


@walked("how-to/shared-gpus.md")
def shared_gpus(walk: Walk) -> None:
    with walk.rig.engine.gpus.named("NVIDIA H200"):
        walk.config()
        with walk.notebook() as kernel:
            assert kernel.run("!nvidia-smi -L | wc -l").strip() == "2"
            listed = walk.type("kernelbridge gpus")
            assert (listed.count("NVIDIA H200"), listed.count("pytorch of ")) == (4, 2)
        # What it printed is there until somebody fetches it.
        ended = walk.run("kernelbridge run --detach pytorch -- echo done").strip()
        walk.type_on_host("docker system prune", keys="y\n")
        assert walk.run(f"kernelbridge attach {ended}") == "done\n"


@walked("how-to/slurm.md")
def slurm(walk: Walk) -> None:
    """Nothing of it can be done here, and its block says why."""


@walked("how-to/ssh-and-editors.md")
def ssh_and_editors(walk: Walk) -> None:
    walk.type("kernelbridge ssh-config --write")
    walk.type("kernelbridge up")
    # OpenSSH takes ~ from the user database, not from HOME.
    folder = walk.laptop.ssh_folder
    text = (folder / "config").read_text().replace("Include kernelbridge.conf", f"Include {folder}/kernelbridge.conf")
    (folder / "config").write_text(text)
    assert walk.run(f"ssh -F {folder}/config -o BatchMode=yes kb-pytorch pwd").startswith("/")


@walked("how-to/troubleshooting.md")
def troubleshooting(walk: Walk) -> None:
    with walk.notebook():
        looked = walk.type("kernelbridge doctor")
        assert "kbtest at lab" in looked
        assert "3f2a91c0" in walk.type("kernelbridge ps")
        walk.type("kernelbridge logs")
    walk.type("kernelbridge report")
    (report,) = walk.folder.glob("kernelbridge-report-*.md")
    assert "pytorch: ok" in report.read_text() or "HOST-1: ok" in report.read_text()


@walked("how-to/vscode.md")
def vscode(walk: Walk) -> None:
    """VS Code is not here: the libraries of its extension do the same steps, see tests/clients/vscode_raw.mjs."""
    walk.config()
    walk.config()
    walk.type("kernelbridge install")
    with NodeClient("vscode_raw.mjs", installed_spec(walk.laptop, "pytorch").settings()) as code:
        code.ask("start")
        assert code.execute("x = 1; 6 * 7")["screen"] == "42"
        hit = code.ask("debug", cells=["x = 1", "y = x + 1\nprint(y)"], debug=1, lines=[2])
        assert (hit["line"], hit["variables"]["y"]) == (2, "2")
        assert code.ask("continue")["finished"]
        code.ask("disconnect")
        before = [one.id for one in walk.rig.engine.kernels()]
        code.ask("restart")
        assert code.execute("'y' in globals()")["screen"] == "False"
        assert [one.id for one in walk.rig.engine.kernels()] == before
        code.ask("stop")


@walked("how-to/workspace.md")
def workspace(walk: Walk) -> None:
    root = walk.folder
    (root / "train.py").write_text("import os\nprint(os.getcwd())\n")
    for words in ("init -q -b main", "add -A", "-c user.name=a -c user.email=a@b commit -qm one"):
        walk.run(f"git {words}")
    shutil.copytree(root, walk.laptop.home / "proj")
    run = "kernelbridge run pytorch -- python train.py"
    walk.config()
    assert walk.run(run) == "/workspace\n"
    walk.config()
    assert walk.run(run) == "/code\n"
    walk.config()
    walk.run("kernelbridge run pytorch -- sh -c 'mkdir -p runs; echo 1 >runs/out; echo 2 >made'")
    assert (root / "runs/out").read_text() == "1\n"
    assert not (root / "made").exists()
    walk.start_config()
    walk.laptop.write_config(walk.laptop.config.read_text() + 'workspace = "."\n')
    assert "to pull: made" in walk.type("kernelbridge files status")
    walk.type("kernelbridge files push")
    walk.type("kernelbridge files pull")
    assert (root / "made").read_text() == "2\n"
    walk.config()
    assert walk.run(run) == f"{walk.laptop.home}/proj\n"
    with walk.rig.lab.home_files("kbtest", {"proj/train.py": "print('the host has it')\n"}):
        walk.config()
        assert walk.run(run) == "the host has it\n"
    walk.start_config()
    walk.laptop.write_config(walk.laptop.config.read_text() + 'workspace = "."\n')
    (root / "train.py").write_text("raise ValueError\n")
    assert walk.type("kernelbridge run --git main") == "/workspace\n"


@pytest.mark.parametrize("page", WALKED)
def test_each_page_does_what_it_says(page: str, rig: Rig, bridge_env: Laptop, image: str) -> None:
    walk = Walk(page, rig, bridge_env)
    walk.start_config()
    with ExitStack() as undo:
        undo.callback(rig.engine.sweep)
        WALKED[page](walk)
        walk.end()


def test_each_guide_is_walked() -> None:
    guides = {path.relative_to(DOCS).as_posix() for path in DOCS.glob("how-to/*.md")}
    assert {*WALKED, *NOT_A_GUIDE} == {*guides, "getting-started.md", "from-by-hand.md"}


def test_what_is_not_done_says_why() -> None:
    for page in WALKED:
        for block in blocks(page):
            assert block.why == "" or len(block.why.split()) > 4, f"{page}: {block}"
