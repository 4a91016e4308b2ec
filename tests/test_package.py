"""The installed package contains the modules, the presets and the templates."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_package_contains_presets_and_templates(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib"]
    subprocess.run([*command, str(tmp_path / "lib")], cwd=ROOT, check=True, capture_output=True)
    package = tmp_path / "lib" / "featgan"
    presets, packed = ROOT / "configs", package / "configs"
    expected = {path.relative_to(presets) for path in presets.rglob("*.yaml")}
    assert Path("cluster/slurm.yaml") in expected
    assert {path.relative_to(packed) for path in packed.rglob("*") if path.is_file()} == expected
    assert (tmp_path / "lib" / "launch" / "leaderboard.html.j2").is_file()
    assert (tmp_path / "lib" / "launch" / "requeue.sh").is_file()
    assert (package / "report/html/templates/report.html.j2").is_file()
    assert (package / "report/html/static/report.css").is_file()
    assert {"explore.html.j2", "explore.css", "explore.js"} <= {path.name for path in (package / "explore").rglob("*")}
    code = (
        "import featgan.config.loading as c, launch.cluster as l; l.load_cluster('slurm', {}); "
        "print(c.__file__, c.load_config('debug').generator.dim)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.split() == [str(package / "config" / "loading.py"), "8"], result.stderr
