"""What a wheel holds: modules, presets and the report's template, so that an installed featgan is whole."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_presets_and_templates_travel_with_the_package(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib"]
    subprocess.run([*command, str(tmp_path / "lib")], cwd=ROOT, check=True, capture_output=True)
    package = tmp_path / "lib" / "featgan"
    presets, packed = ROOT / "configs", package / "configs"
    wanted = {path.relative_to(presets) for path in presets.rglob("*.yaml")}
    assert Path("cluster/slurm.yaml") in wanted
    assert {path.relative_to(packed) for path in packed.rglob("*") if path.is_file()} == wanted
    assert (tmp_path / "lib" / "launch" / "leaderboard.html.j2").is_file()
    assert (package / "report/html/templates/report.html.j2").is_file()
    assert (package / "report/html/static/report.css").is_file()
    assert {"explore.html.j2", "explore.css", "explore.js"} <= {path.name for path in (package / "explore").rglob("*")}
    code = (
        "import featgan.config.loading as c, launch.cluster as l; l.load_cluster('slurm', {}); "
        "print(c.__file__, c.load_config('debug').generator.dim)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(package / "config" / "loading.py"), "8"], done.stderr
