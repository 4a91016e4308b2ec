"""A job that is submitted from inside an allocation inherits nothing of the allocation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from featgan.config.loading import to_yaml
from featgan.training.train import train
from tests.conftest import World

ROOT = Path(__file__).parent.parent.parent

ALLOCATION = {
    "SLURM_JOB_ID": "99", "SLURM_STEP_ID": "0", "SLURM_CPU_BIND": "quiet,mask_cpu:0x3", "SLURM_CPUS_PER_TASK": "2",
    "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_MEM_PER_CPU": "2000", "SLURM_DISTRIBUTION": "cyclic",
    "SLURMD_NODENAME": "n1", "SRUN_CPUS_PER_TASK": "2", "SUBMITIT_EXECUTOR": "slurm", "PMIX_RANK": "0", "PMI_RANK": "0",
    "SBATCH_MEM_BIND": "none", "SBATCH_CPU_BIND_TYPE": "mask_cpu:", "CUDA_VISIBLE_DEVICES": "0", "RANK": "0",
    "SLURM_EXPORT_ENV": "NONE",
}  # fmt: skip
"""Variables of an allocation."""

OF_THE_USER = {
    "SLURM_CONF": "/etc/slurm.conf", "SLURM_CONF_SERVER": "n0", "SLURM_CLUSTERS": "a", "SBATCH_ACCOUNT": "vision",
    "SBATCH_EXPORT": "NONE", "SBATCH_QOS": "low",
}  # fmt: skip
"""Variables that the user or the site has set for the commands of SLURM."""

BREAKING = {"SBATCH_ARRAY_INX": "0-3", "SBATCH_WAIT": "1", "SBATCH_SIGNAL": "USR1@10", "SBATCH_OUTPUT": "log",
            "SBATCH_TIMELIMIT": "5", "SBATCH_PARTITION": "cpu", "SBATCH_CONTAINER": "/image",
            "SBATCH_NO_KILL": "1"}  # fmt: skip
"""Variables that would replace options of the job script."""

FAKE_SBATCH = f"""#!{sys.executable}
import json, os
json.dump(dict(os.environ), open(os.environ["CAPTURE"], "w"))
print("Submitted batch job 4711")
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a shell in an allocation, with an sbatch that stores what a job would inherit."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"sbatch": FAKE_SBATCH, "srun": "#!/bin/sh\n", "squeue": "#!/bin/sh\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    paths = {"PATH": f"{programs}:/usr/bin:/bin", "CAPTURE": str(tmp_path / "inherited"), "PYTHONPATH": str(ROOT)}
    return os.environ | ALLOCATION | OF_THE_USER | BREAKING | paths


def run_launch(environment: dict[str, str], *arguments: object) -> dict[str, str]:
    """Run the launcher and return the environment that the job would inherit."""
    command = [sys.executable, "-m", "launch", *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "job 4711" in result.stdout, result.stderr
    inherited: dict[str, str] = json.loads(Path(environment["CAPTURE"]).read_text())
    return inherited


def assert_is_clean(inherited: dict[str, str]) -> None:
    assert not {*ALLOCATION, *BREAKING} & set(inherited)
    assert {name: inherited.get(name) for name in OF_THE_USER} == OF_THE_USER


def test_training_submitted_in_an_allocation_inherits_nothing_of_it(
    world: World, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(world.make_config(tmp_path / "run")))
    assert_is_clean(run_launch(environment, "train", tmp_path / "config.yaml", "--partition", "gpu"))


def test_variables_of_the_user_are_kept_unless_the_job_script_sets_the_option(
    world: World, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(world.make_config(tmp_path / "run")))
    inherited = run_launch(environment, "train", tmp_path / "config.yaml", "--account", "other")
    assert "SBATCH_ACCOUNT" not in inherited and inherited["SBATCH_PARTITION"] == "cpu"


def test_evaluation_submitted_by_a_watch_in_a_job_inherits_nothing_of_it(
    world: World, tmp_path: Path, environment: dict[str, str]
) -> None:
    train(world.make_config(tmp_path / "runs" / "one", evaluation={"every": 2}))
    command = [sys.executable, "-m", "launch", "watch", str(tmp_path / "runs"), "--once", "--as-jobs"]
    command += ["--partition", "gpu", "--max-evaluations", "1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert_is_clean(json.loads(Path(environment["CAPTURE"]).read_text()))


def test_successor_of_a_watch_job_inherits_nothing_of_it(tmp_path: Path, environment: dict[str, str]) -> None:
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    command = ["bash", str(ROOT / "slurm" / "watch.sbatch"), "runs"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    inherited = json.loads(Path(environment["CAPTURE"]).read_text())
    assert not {name for name in inherited if name.startswith("SLURM")} - {*OF_THE_USER}
    assert inherited["SBATCH_ACCOUNT"] == "vision" and inherited["SLURM_CONF"] == "/etc/slurm.conf"
