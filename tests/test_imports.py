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


def layer_of(module: str) -> int:
    """Return the index of the layer of the module `featgan.X.Y`."""
    return LAYERS.index(module.split(".")[1])


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def module_name(path: Path) -> str:
    """Return the dotted name of a file's module."""
    return "featgan." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    module = module_name(path)
    above = {name for name in imported_modules(path) if layer_of(name) < layer_of(module)}
    assert not above, f"{module} imports from a layer above it: {above}"


def test_independent_packages_do_not_import_each_other() -> None:
    for path in FILES:
        package = module_name(path).split(".")[1]
        imported = {name.split(".")[1] for name in imported_modules(path)}
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
        if module_name(path).split(".")[1] in LAZY_PACKAGES:
            continue
        nested = [
            inner.lineno
            for outer in ast.walk(ast.parse(path.read_text()))
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in ast.walk(outer)
            if isinstance(inner, ast.ImportFrom) and (inner.module or "").startswith("featgan")
        ]
        assert not nested, f"{path}: imports inside a function, line {nested[0]}"


def test_package_root_has_at_most_six_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_featgan_does_not_import_launch_and_one_module_imports_deepspeed() -> None:
    imported = {path.name: path.read_text() for path in FILES}
    assert not [name for name, text in imported.items() if re.search(r"^\s*(from|import) launch\b", text, re.M)]
    users = [name for name, text in imported.items() if re.search(r"^\s*(from|import) deepspeed\b", text, re.M)]
    assert users == ["deepspeed.py"]


def test_only_the_distributed_context_imports_accelerate() -> None:
    users = [
        path.name for path in FILES if "import accelerate" in path.read_text() or "from accelerate" in path.read_text()
    ]
    assert users == ["context.py"]


def test_configuration_and_command_line_import_no_torch() -> None:
    code = (
        "import sys, featgan.cli.main, featgan.config.loading, featgan.run.schedule; sys.exit('torch' in sys.modules)"
    )
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
            assert unsafe_call not in text, f"{path.name}: {unsafe_call}"
