"""A job submitted with sbatch has one job folder for all its attempts, like the jobs of the launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featgan.config.loading import load_config
from featgan.errors import UserError
from launch.job_folder import read_job_info
from launch.sbatch_entry import find_or_create_job_folder

ROOT = Path(__file__).parent.parent.parent


def test_all_attempts_of_a_job_have_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    arguments = ("debug", (f"run_dir={tmp_path / 'run'}", "training.steps=7"), Path("checkpoint"), True)
    folder = find_or_create_job_folder(*arguments)
    assert folder == tmp_path / "run" / "jobs" / "001-train"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert find_or_create_job_folder(*arguments) == folder
    assert load_config(str(folder / "config.yaml")).training.steps == 7
    job_info = read_job_info(folder)
    assert (job_info["id"], job_info["reset_optimizer"]) == ("17", True)
    assert job_info["init_from"] == str(tmp_path / "checkpoint")
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert find_or_create_job_folder(*arguments).name == "002-train"
    # Two trainings that are started by hand in one job, for example in a notebook, do not share a folder.
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert find_or_create_job_folder(*arguments).name == "003-train"


def test_entry_outside_a_job_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="not in a job; submit it with `sbatch slurm/train.sbatch"):
        find_or_create_job_folder("debug", (f"run_dir={tmp_path / 'run'}",))
    assert list(tmp_path.iterdir()) == []


FAKE_SRUN = """#!/bin/sh
echo "$@"
exit 1
"""


@pytest.mark.parametrize("is_batch_script", [True, False])
def test_script_that_is_run_by_hand_in_a_job_does_not_requeue_the_job(tmp_path: Path, is_batch_script: bool) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "srun": FAKE_SRUN,
        "scontrol": f"#!/bin/sh\necho $@ >> {tmp_path}/calls\necho JobState=RUNNING\n",
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    script = tmp_path / ("slurm_script" if is_batch_script else "train.sbatch")
    script.write_text((ROOT / "slurm" / "train.sbatch").read_text())
    environment = os.environ | {
        "PATH": f"{programs}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "17",
    }  # fmt: skip
    environment.pop("SLURM_CPUS_PER_TASK", None)
    command = ["bash", str(script), "debug", f"run_dir={tmp_path / 'run'}"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and result.stdout.startswith("--export=ALL --kill-on-bad-exit=1"), result.stderr
    calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
    assert ("requeue 17" in calls) == is_batch_script, result.stderr
    assert ("not started by sbatch" in result.stderr) != is_batch_script


def run_entry(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the entry in a folder, as a job script does."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "17"}
    command = [sys.executable, "-m", "launch.sbatch_entry", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_job_folder_is_created_and_printed(tmp_path: Path) -> None:
    result = run_entry(tmp_path, "debug", f"run_dir={tmp_path / 'run'}", "--init-from", "x", "--reset-optimizer")
    folder = tmp_path / "run" / "jobs" / "001-train"
    assert result.stdout == f"{folder}\n" and result.returncode == 0, result.stderr
    assert read_job_info(folder)["reset_optimizer"]


def test_user_error_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    result = run_entry(tmp_path, "nowhere")
    assert result.returncode == 2 and result.stderr.startswith("featgan: nowhere: no such file") and not result.stdout
    assert result.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--dry-run", "--profile"])
def test_options_without_meaning_in_a_job_are_rejected(tmp_path: Path, option: str) -> None:
    result = run_entry(tmp_path, "debug", f"run_dir={tmp_path / 'run'}", option)
    assert result.returncode == 2 and f"No such option '{option}'" in result.stderr.replace(":", "")
    assert not result.stdout and list(tmp_path.iterdir()) == []


def test_folder_that_is_not_a_run_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        find_or_create_job_folder("debug", (f"run_dir={tmp_path}",))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.parametrize(("required", "outcome"), [("1", "1 failed"), ("", "1 skipped")])
def test_cluster_tests_fail_without_slurm_if_it_is_required(required: str, outcome: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "tests/cluster/test_slurm.py::test_two_nodes_respond"]
    environment = os.environ | {"PATH": "/nowhere", "FEATGAN_NEEDS_SLURM": required}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert outcome in result.stdout
