"""Imports point down the rows of the design, only the engine knows accelerate, and the command line starts light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "featgan"

ROWS = (
    {"__main__"},
    {"cli"},
    {"demo"},
    {"train", "evaluate", "render", "explore", "dry_run", "info", "reference", "bench"},
    {"plain"},
    {"families", "findings", "remarks"},
    {
        "measure",
        "measure_factors",
        "measure_labels",
        "measure_regions",
        "measure_sweeps",
        "measure_witness",
        "observers",
    },
    {"objective", "editing", "material", "record", "start", "profiling"},
    {"game"},
    {"engine", "sharded", "metrics", "blackbox", "report"},
    {"data.loader", "model"},
    {"conditions"},
    {"networks", "losses", "data", "directions", "checkpoint", "ema", "stats"},
    {"distributed"},
    {"claims"},
    {"schedule"},
    {"settings"},
    {"allocation", "config", "images", "interruption", "progress"},
    {"holder"},
    {"section", "errors", "slurm"},
)
"""From the top: a module imports from its own row and the rows below."""


def row_of(module: str) -> int:
    """The row of `featgan.X.Y`: the longest name that a row holds."""
    parts = module.removeprefix("featgan.").split(".")
    for length in (2, 1):
        for index, row in enumerate(ROWS):
            if ".".join(parts[:length]) in row:
                return index
    raise AssertionError(f"{module} is in no row")


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, at the top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" if node.module == "featgan" else node.module for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.startswith("featgan.") and not name.endswith("__version__")}


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    module = "featgan." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    above = {name for name in imports_of(path) if row_of(name) < row_of(module)}
    assert not above, f"{module} imports from above: {above}"


def test_nothing_knows_its_launcher_and_one_file_knows_deepspeed() -> None:
    imported = {path.name: path.read_text() for path in FILES}
    assert not [name for name, text in imported.items() if re.search(r"^\s*(from|import) launch\b", text, re.M)]
    users = [name for name, text in imported.items() if re.search(r"^\s*(from|import) deepspeed\b", text, re.M)]
    assert users == ["sharded.py"]


def test_only_the_engine_knows_accelerate() -> None:
    users = [
        path.name for path in FILES if "import accelerate" in path.read_text() or "from accelerate" in path.read_text()
    ]
    assert users == ["engine.py"]


def test_configuration_and_command_line_import_no_torch() -> None:
    code = "import sys, featgan.cli, featgan.settings, featgan.schedule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("module", ["featgan", "launch"])
def test_the_list_of_commands_waits_for_nothing_heavy(module: str) -> None:
    code = f"""
import runpy, sys
sys.argv = ["{module}", "--help"]
try:
    runpy.run_module("{module}", run_name="__main__")
finally:
    print([name for name in ("torch", "numpy", "pydantic", "yaml", "rich", "submitit") if name in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent).stdout
    assert "Commands:" in shown and shown.rstrip().endswith("[]")


def test_nothing_unpickles() -> None:
    for path in FILES:
        text = path.read_text()
        for danger in ("pickle.load", "Unpickler", "allow_pickle=True", "weights_only=False", "yaml.load("):
            assert danger not in text, f"{path.name}: {danger}"
