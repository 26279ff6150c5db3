"""The rules of the house, where a test can hold them: names, folders, Protocols, imports, a test beside each file."""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kernelbridge"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text("utf-8")) for path in FILES}
MOST_ENTRIES = 15

# Files whose logic is tested elsewhere than in tests/unit/<their folder>/test_<their name>*.py: which test covers them.
COVERED_BY: dict[str, str] = {
    "__main__.py": "tests/unit/test_imports.py",
    "fleet/doctor/trials.py": "tests/real/test_doctor.py",
    "cli/listings/gpu_rows.py": "tests/unit/cli/commands/test_gpus.py",
    "cli/listings/gpu_view.py": "tests/unit/cli/commands/test_gpus.py",
    "cli/listings/kernel_rows.py": "tests/unit/cli/commands/test_kernels.py",
    "cli/listings/memory.py": "tests/real/test_quick_listings.py",
    "cli/listings/quick.py": "tests/real/test_quick_listings.py",
    "files/one_pass.py": "tests/real/test_workspace.py",
    "files/transfer/rsync.py": "tests/real/test_workspace.py",
    "files/transfer/sftp_copy.py": "tests/real/test_workspace.py",
    "hosts/backend.py": "tests/unit/kernel/test_relay_client.py",
    "hosts/docker/engine.py": "tests/real/test_engine.py",
    "hosts/docker/images/workshop.py": "tests/real/test_any_image.py",
    "hosts/transport/openssh/control_link.py": "tests/real/test_quick_listings.py",
    "hosts/transport/local.py": "tests/real/test_local.py",
    "jupyter/checks/conversation.py": "tests/real/test_doctor.py",
    "jupyter/forward_pages.py": "tests/real/test_forwards.py",
    "hosts/transport/ssh_config.py": "tests/unit/hosts/transport/test_dial.py",
    "hosts/transport/sftp.py": "tests/real/test_workspace.py",
    "kernel/state.py": "tests/unit/kernel/test_lifecycle.py",
    "relay/__main__.py": "tests/unit/relay/gpus/test_gpu_lock.py",
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def is_protocol(node: ast.AST) -> bool:
    """Whether it is one of typing's; asyncio's are classes like others."""
    return isinstance(node, ast.ClassDef) and "Protocol" in [ast.unparse(base).partition("[")[0] for base in node.bases]


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield path, node


def members(node: ast.ClassDef | ast.Module) -> set[str]:
    """What a class or module has, by name: methods, attributes of its body, what its methods set on self."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(inner.name)
        elif isinstance(inner, ast.AnnAssign | ast.Assign):
            targets = [inner.target] if isinstance(inner, ast.AnnAssign) else inner.targets
            for target in targets:
                if isinstance(target, ast.Name):
                    found.add(target.id)
                elif isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    found.add(target.attr)
    return found


PROTOCOLS = {node.name: members(node) - {"__init__"} for _, node in classes() if is_protocol(node)}


def implementers(protocol: str) -> list[str]:
    """Classes and modules of the package that have all that a Protocol names."""
    wanted = PROTOCOLS[protocol]
    found = [node.name for _, node in classes() if not is_protocol(node) and wanted <= members(node)]
    modules = [
        name_of(path)
        for path, tree in TREES.items()
        if wanted <= {name for node in tree.body for name in defined(node)}
    ]
    return [*found, *modules]


def defined(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_a_class_and_a_public_constant_have_their_name_once() -> None:
    """Except for what modules have in common because they implement one Protocol."""
    places = defaultdict(set)
    shared = {name for names in PROTOCOLS.values() for name in names}
    for path, tree in TREES.items():
        for node in tree.body:
            for name in defined(node):
                is_class = isinstance(node, ast.ClassDef)
                if is_class or (name.isupper() and not name.startswith("_") and name not in shared):
                    places[name].add(name_of(path))
    assert {name: sorted(paths) for name, paths in places.items() if len(paths) > 1} == {}


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda path: path.name)
def test_a_folder_has_no_more_entries_than_a_reader_can_hold(folder: Path) -> None:
    # A type checker looks for py.typed there and nowhere else.
    entries = {path.name for path in folder.iterdir()} - {"__init__.py", "__pycache__", "py.typed"}
    assert len(entries) <= MOST_ENTRIES


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_a_protocol_has_two_implementers_in_the_package(protocol: str) -> None:
    assert len(implementers(protocol)) >= 2


def test_imports_are_checked_for_every_room_and_also_where_only_types_are_meant() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    assert not settings.get("exclude_type_checking_imports", False)
    layers = [contract for contract in settings["contracts"] if contract["type"] == "layers"]
    assert "kernelbridge" in [container for contract in layers for container in contract["containers"]]
    assert "kernelbridge.hosts" in [container for contract in layers for container in contract["containers"]]
    for contract in layers:
        assert contract["exhaustive"]
        assert not contract.get("exhaustive_ignores")
        assert not contract.get("ignore_imports")


def has_logic(path: Path) -> bool:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return path.name != "__init__.py" and any(isinstance(node, kinds) for node in TREES[path].body)


@pytest.mark.parametrize("path", [path for path in FILES if has_logic(path)], ids=name_of)
def test_each_file_with_logic_has_a_test_of_its_name_or_one_that_is_said_to_cover_it(path: Path) -> None:
    name = name_of(path)
    folder = (ROOT / "tests/unit" / name).parent
    others = {f"test_{other.name}" for other in path.parent.glob(f"{path.stem}_*.py")}
    parts = [one for one in folder.glob(f"test_{path.stem}_*.py") if one.name not in others]
    beside = [*folder.glob(f"test_{path.stem}.py"), *parts]
    assert bool(beside) != (name in COVERED_BY), "a test beside it, or a line in COVERED_BY; not both"
    if name in COVERED_BY:
        assert path.stem in (ROOT / COVERED_BY[name]).read_text("utf-8")


def test_nothing_is_said_to_cover_a_file_that_is_gone() -> None:
    assert set(COVERED_BY) <= {name_of(path) for path in FILES}
