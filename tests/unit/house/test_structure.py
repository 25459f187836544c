"""What the layout promises: arrows that run one way, light clients, small files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PARTS = ("proto", "node", "client", "ops")
MAY_IMPORT = {
    "proto": {"proto"},
    "node": {"node", "proto"},
    "client": {"client", "proto"},
    "ops": {"ops", "client", "proto"},
}
#: A node inside a client's process: the one module, the one function in it, and all that it may import of a node.
EMBEDDED = ("client/cluster/embedded.py", "_node", {"raftstorage.node", "raftstorage.node.embedded"})
#: The core's whole world: no clock, no randomness of its own, no file, no socket, no task.
CORE_MAY_IMPORT = {
    "__future__", "abc", "bisect", "collections", "dataclasses", "enum", "itertools", "json", "typing",
}  # fmt: skip
LONGEST = 400


def sources(folder: str) -> list[Path]:
    """Hand-written Python below `folder`."""
    found = [
        path for path in sorted((ROOT / folder).rglob("*.py")) if not path.stem.endswith(("_pb2", "_pb2_grpc"))
    ]
    assert found, f"no Python in {folder}/"
    return found


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Absolute names of the modules that a module in `package` imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).strip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and dynamic(node) and node.args and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value)


def dynamic(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in ("import_module", "__import__")


def imports_of(path: Path) -> list[str]:
    package = ".".join(["raftstorage", *path.relative_to(ROOT).parent.parts])
    return list(imported(ast.parse(path.read_text(), str(path)), package))


def node_imports(path: Path) -> list[tuple[str, str]]:
    """(function, module of a node) for each import of one; the function is "" at the top of the module."""
    package = ".".join(["raftstorage", *path.relative_to(ROOT).parent.parts])

    def walk(tree: ast.AST, function: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(tree):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, child.name)
                continue
            if isinstance(child, ast.Import | ast.ImportFrom | ast.Call):
                shallow = ast.Module([child if isinstance(child, ast.stmt) else ast.Expr(child)], [])
                yield from ((function, name) for name in imported(shallow, package) if ours([name]) == {"node"})
            if not isinstance(child, ast.Call):
                yield from walk(child, function)

    return list(walk(ast.parse(path.read_text(), str(path)), ""))


def ours(names: list[str]) -> set[str]:
    """The parts of ours among the imported names."""
    return {name.split(".")[1] for name in names if name.startswith("raftstorage.")}


@pytest.mark.parametrize("part", PARTS)
def test_arrows_run_one_way(part: str) -> None:
    wrong = {str(path.relative_to(ROOT)): ours(imports_of(path)) - MAY_IMPORT[part] for path in sources(part)}
    if part == "client":
        assert wrong.pop(EMBEDDED[0]) == {"node"}
    assert {path: parts for path, parts in wrong.items() if parts} == {}


def test_a_client_imports_a_node_in_one_function_and_only_what_is_made_for_it() -> None:
    path, function, modules = EMBEDDED
    assert {name for _, name in node_imports(ROOT / path)} == modules
    assert {where for where, _ in node_imports(ROOT / path)} == {function}


def test_the_core_imports_only_what_is_pure() -> None:
    wrong = {
        (path.name, name)
        for path in sources("node/raft")
        for name in imports_of(path)
        if name.split(".")[0] not in CORE_MAY_IMPORT and not name.startswith("raftstorage.node.raft")
    }
    assert wrong == set()


@pytest.mark.parametrize(
    "source",
    [
        "import raftstorage.node.wal",
        "from raftstorage.node import driver",
        "from raftstorage import node",
        "from ..node import driver",
        "def f():\n    from raftstorage.node.wal import Wal",
        "importlib.import_module('raftstorage.node')",
    ],
)
def test_the_arrow_check_can_fail(source: str) -> None:
    assert ours(list(imported(ast.parse(source), "raftstorage.client"))) - MAY_IMPORT["client"] == {"node"}


@pytest.mark.parametrize("folder", [*PARTS, "tests"])
def test_files_stay_small(folder: str) -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources(folder)}
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}


def test_each_part_says_that_it_is_typed() -> None:
    assert [part for part in PARTS if not (ROOT / part / "py.typed").is_file()] == []


def test_every_package_is_in_the_distribution() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for part in PARTS for path in sources(part)}
    assert {".".join(["raftstorage", *folder.parts]) for folder in folders} == set(settings["packages"])


def test_a_plain_install_is_the_client_and_light() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plain = {re.split(r"[^A-Za-z0-9._-]", each)[0].lower() for each in project["dependencies"]}
    assert plain == {
        "google-crc32c", "grpcio", "persistent", "prometheus-client", "protobuf", "rich", "transaction", "typer",
    }  # fmt: skip
    assert any(each.startswith("rocksdict") for each in project["optional-dependencies"]["node"])


#: What only a node may need.
HEAVY = ("raftstorage.node", "rocksdict", "grpc_health", "grpc_reflection")


@pytest.mark.parametrize("module", ["raftstorage.client", "raftstorage.ops.cli"])
def test_clients_run_without_a_nodes_dependencies(module: str) -> None:
    script = (
        "import importlib, sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"  # an import of these now fails
        f"importlib.import_module({module!r})"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
