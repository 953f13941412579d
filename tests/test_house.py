"""The shape of the house: imports go down only, one package and no bare twins, a wheel that holds every module."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("agent", "search", "envs", "training", "kernels")
ROOT_FOLDERS = (*FLOORS, "benchmarks")
# Imports go down:
ROOMS = {"config": 0, "policies": 1, "judges": 2, "seedling": 3, "view": 3, "gateway": 3, "runs": 4, "cli": 5}
LONGEST = 450
MAY_IMPORT = {
    "benchmarks": {"benchmarks", "agent", "training", "search", "envs", "kernels"},
    "agent": {"agent", "training", "search", "envs", "kernels"},
    "training": {"training", "search", "envs", "kernels"},
    "search": {"search", "envs"},
    "envs": {"envs"},
    "kernels": {"kernels"},
}
NO_TORCH = ("search", "envs")


def modules(floor: str) -> list[Any]:
    return sorted(p for p in (ROOT / floor).rglob("*.py"))


@functools.cache
def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Every import in a file, in functions and for type checkers too; several tests look at each file."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]


def imported(path: Any) -> Iterator[str]:
    for node in imports(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""


@pytest.mark.parametrize("floor", ROOT_FOLDERS)
def test_imports_only_go_down(floor: str) -> None:
    for path in modules(floor):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "treewright" and len(parts) > 1:
                assert parts[1] in MAY_IMPORT[floor] | {"__version__"}, f"{path} imports {name}"
            assert parts[0] not in FLOORS, f"{path} imports the bare package {parts[0]}"
            assert not (floor in NO_TORCH and parts[0] in ("torch", "transformers")), f"{path} imports {name}"


def test_within_the_agent_imports_only_go_down_from_room_to_room() -> None:
    for path in modules("agent"):
        room = path.relative_to(ROOT / "agent").parts[0].removesuffix(".py")
        for name in imported(path):
            if name.startswith("treewright.agent.") and room != "__init__":
                other = name.split(".")[2]
                below = other == room or ROOMS[other] < ROOMS[room]
                assert below, f"{path} imports {name}: {room} is not above {other}"


def test_the_agent_folder_itself_holds_no_more_than_its_configuration() -> None:
    assert {p.name for p in (ROOT / "agent").glob("*.py")} == {"__init__.py", "config.py"}


def test_no_module_is_imported_in_a_circle() -> None:
    named = {module_name(path): path for floor in ROOT_FOLDERS for path in modules(floor)}
    below = {name: set(imported_modules(path, named)) - {name} for name, path in named.items()}
    sorter = graphlib.TopologicalSorter(below)
    sorter.prepare()  # raises CycleError, which names the circle


def module_name(path: Any) -> str:
    return ".".join(("treewright", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imported_modules(path: Any, named: dict[str, Any]) -> Iterator[str | None]:
    """Every module of ours that a file imports anywhere, in functions and for type checkers too."""
    for node in imports(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in named)
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (full for full in whole if full in named)
            if node.module in named and not all(full in named for full in whole):
                yield node.module


@pytest.mark.parametrize("folder", [*ROOT_FOLDERS, "tests"])
def test_no_file_is_too_long_to_find_ones_way_in(folder: str) -> None:
    long = {str(p.relative_to(ROOT)): n for p in modules(folder) if (n := len(p.read_text().splitlines())) > LONGEST}
    assert not long, f"more than {LONGEST} lines: {long}"


def test_the_kernels_floor_needs_torch_and_triton_alone() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "triton", "numpy", "treewright", "transformers", "matplotlib", "rich"}
    for path in modules("kernels"):
        for name in imported(path):
            assert name.split(".")[0] in allowed, f"{path} imports {name}"


def test_every_floor_has_one_relative_symlink() -> None:
    links = {p.name: os.readlink(p) for p in (ROOT / "pkg" / "treewright").iterdir() if p.is_symlink()}
    assert links == {floor: f"../../{floor}" for floor in ROOT_FOLDERS}


def test_no_floor_is_imported_without_the_package_name() -> None:
    code = (
        "import sys, treewright, treewright.search, treewright.envs, treewright.training, treewright.agent.cli.main;"
        f"print([m for m in {FLOORS!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_a_light_import_does_not_load_torch_or_a_browser() -> None:
    code = (
        "import sys, treewright, treewright.search, treewright.envs, treewright.agent.cli.main;"
        "print([m for m in ('torch', 'transformers', 'playwright', 'langgraph') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_the_package_is_callable_and_its_modules_import_as_usual() -> None:
    import treewright

    assert callable(treewright.search)
    package: Any = treewright
    assert importlib.import_module("treewright.search.tree").Tree is package.search.Tree


def test_the_wheel_holds_every_module_and_every_data_file(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    kept = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT)
    if kept.returncode:
        pytest.skip("not a git checkout: the list of source files comes from git")
    for name in kept.stdout.split():
        source, target = ROOT / name, copy / name
        if source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(os.readlink(source))
        elif source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    subprocess.run(
        [sys.executable, "-P", "-m", "build", "--no-isolation", "--wheel", "--sdist", "-o", str(tmp_path / "dist")],
        cwd=copy, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    assert sdist.stat().st_size > 10_000
    inside = set(zipfile.ZipFile(wheel).namelist())
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*"):
            wanted = path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
            if wanted and path.suffix in (".py", ".json", ".safetensors", ".jinja", ".html", ".js", ".css"):
                assert f"treewright/{path.relative_to(ROOT)}" in inside, path
    assert "treewright/py.typed" in inside
    assert not [name for name in inside if "benchmarks" in name], "measurements stay in the checkout"


def test_nothing_installed_is_named_like_a_floor_on_the_path() -> None:
    for floor in FLOORS:
        if floor == "kernels" and importlib.util.find_spec("kernels") is not None:
            pytest.skip("a package called kernels is installed here")
        assert importlib.util.find_spec(floor) is None, f"{floor} can be imported bare: the repository is on sys.path"


def test_every_target_of_make_is_declared_and_runs_whatever_files_there_are() -> None:
    made = (ROOT / "Makefile").read_text()
    declared = set(re.findall(r"[\w-]+", re.findall(r"^\.PHONY:((?:.*\\\n)*.*)", made, re.M)[0]))
    targets = {name for names in re.findall(r"^(\w[\w -]*):(?!=)", made, re.M) for name in names.split()}
    assert len(targets) > 30 and targets == declared


def test_no_row_of_the_architecture_stands_there_twice() -> None:
    rooms = re.findall(r"^\| (`[\w/]+/`.*?) \|", (ROOT / "ARCHITECTURE.md").read_text(), re.M)
    assert len(rooms) > 10 and len(rooms) == len(set(rooms))
