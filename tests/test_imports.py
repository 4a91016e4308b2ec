"""Imports follow the layers, one module imports accelerate, and the command line starts without heavy imports."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "featgan"

LAYERS = (
    "__main__",
    "cli",
    "bench",
    "explore",
    "report",
    "evaluation",
    "inference",
    "metrics",
    "blackbox",
    "training",
    "run",
    "data",
    "networks",
    "distributed",
    "config",
    "system",
    "features",
    "errors",
)
"""Packages and modules of featgan, from top to bottom; each imports only from itself and from layers below it."""

INDEPENDENT = (
    ("training", "inference"),
    ("training", "blackbox"),
    ("run", "data"),
    ("data", "networks"),
    ("networks", "distributed"),
)
"""Pairs that must not import each other in either direction."""

LAZY_PACKAGES = ("cli", "explore", "bench")
"""Packages that import inside functions, so that `featgan --help` starts fast."""

FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def relative_path(path: Path) -> str:
    """Return the path of a file below the package, for messages and comparisons."""
    return path.relative_to(PACKAGE).as_posix()


def module_name(path: Path) -> str:
    """Return the dotted name of a file's module, or of its package if the file is `__init__.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("featgan", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def package_name(module: str) -> str:
    """Return `X` for the module `featgan.X.Y`."""
    return module.split(".")[1]


def layer_of(module: str) -> int:
    """Return the index of the layer of a module."""
    return LAYERS.index(package_name(module))


MODULES = {module_name(path) for path in FILES}


def imported_modules(path: Path) -> set[str]:
    """Return the modules of featgan that a file imports, at the top or inside functions."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
    return imported & MODULES


def is_featgan_import(statement: ast.Import | ast.ImportFrom) -> bool:
    """Return whether a statement imports a module of featgan."""
    imported = (
        [name.name for name in statement.names] if isinstance(statement, ast.Import) else [statement.module or ""]
    )
    return any(name.split(".")[0] == "featgan" for name in imported)


def files_that_import(package: str) -> list[str]:
    """Return the files of featgan that import a package, at the top or inside functions."""
    statement = re.compile(rf"^\s*(from|import) {package}\b", re.MULTILINE)
    return [relative_path(path) for path in FILES if statement.search(path.read_text())]


def test_layers_are_the_existing_packages() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert len(set(LAYERS)) == len(LAYERS)
    assert set(LAYERS) == packages | modules
    assert {name for pair in INDEPENDENT for name in pair} | set(LAZY_PACKAGES) <= packages


@pytest.mark.parametrize("path", FILES, ids=relative_path)
def test_imports_point_down(path: Path) -> None:
    module = module_name(path)
    above = {name for name in imported_modules(path) if layer_of(name) < layer_of(module)}
    assert not above, f"{module} imports from a layer above it: {above}"


def test_independent_packages_do_not_import_each_other() -> None:
    for path in FILES:
        package = package_name(module_name(path))
        imported = {package_name(name) for name in imported_modules(path)}
        for first, second in INDEPENDENT:
            assert not (package == first and second in imported), f"{path} imports {second}"
            assert not (package == second and first in imported), f"{path} imports {first}"


def test_modules_have_no_import_cycles() -> None:
    modules = {module_name(path): imported_modules(path) for path in FILES}
    try:
        tuple(TopologicalSorter(modules).static_order())
    except CycleError as error:
        raise AssertionError(f"import cycle: {' -> '.join(error.args[1])}") from None


def test_only_entry_points_import_featgan_inside_functions() -> None:
    for path in FILES:
        if package_name(module_name(path)) in LAZY_PACKAGES:
            continue
        nested = [
            inner.lineno
            for outer in ast.walk(ast.parse(path.read_text()))
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in ast.walk(outer)
            if isinstance(inner, ast.Import | ast.ImportFrom) and is_featgan_import(inner)
        ]
        assert not nested, f"{path}: imports inside a function, line {nested[0]}"


def test_package_root_has_at_most_six_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_featgan_does_not_import_launch_and_one_module_imports_deepspeed() -> None:
    assert files_that_import("launch") == []
    assert files_that_import("deepspeed") == ["distributed/deepspeed.py"]


def test_only_the_distributed_context_imports_accelerate() -> None:
    assert files_that_import("accelerate") == ["distributed/context.py"]


def test_only_the_module_for_downloads_imports_fsspec() -> None:
    for package in ("fsspec", "aiohttp"):
        assert files_that_import(package) == ["data/remote/fetching.py"]


def test_webdataset_is_imported_where_tars_are_read_or_written() -> None:
    files = set(files_that_import("webdataset")) - {"bench/peers.py"}
    assert {name for name in files if not name.startswith("data/webdataset/")} == {"data/packing/writer.py"}


def test_configuration_and_command_line_import_no_torch() -> None:
    modules = "featgan.cli.main, featgan.config.loading, featgan.run.evaluation_schedule"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("module", ["featgan", "launch"])
def test_help_imports_no_heavy_packages(module: str) -> None:
    code = f"""
import runpy, sys
sys.argv = ["{module}", "--help"]
try:
    runpy.run_module("{module}", run_name="__main__")
finally:
    print([name for name in ("torch", "numpy", "pydantic", "yaml", "rich", "submitit") if name in sys.modules])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent).stdout
    assert "Commands:" in output and output.rstrip().endswith("[]")


def test_no_module_unpickles() -> None:
    for path in FILES:
        text = path.read_text()
        for unsafe_call in ("pickle.load", "Unpickler", "allow_pickle=True", "weights_only=False", "yaml.load("):
            assert unsafe_call not in text, f"{relative_path(path)}: {unsafe_call}"
