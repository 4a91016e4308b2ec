"""Background jobs on this machine, the command line of the launcher, and the watch script."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featgan.config.loading import parse_config, to_yaml
from featgan.run.paths import checkpoint_steps, step_folder
from featgan.system.yaml_files import read_yaml_mapping
from tests.conftest import World
from tests.helpers.limits import measure_command

LAUNCH_COMMAND = [sys.executable, "-m", "launch"]


@pytest.mark.slow
def test_local_job_trains_with_two_processes(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [*LAUNCH_COMMAND, "train", str(tmp_path / "config.yaml"), "--cluster", "local", "--tasks-per-node", "2"]
    start = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "run" / "jobs" / "001-train"
    assert result.stdout.endswith(f"in {folder}\n")
    # The launcher has written the job folder into the run folder before the run started.
    while checkpoint_steps(config.run_dir)[-1:] != [4] or not list(folder.glob("*_result.pkl")):
        assert time.monotonic() - start < 120, "\n".join(log.read_text() for log in folder.glob("*_log.err"))
        time.sleep(0.1)
    assert json.loads((step_folder(config.run_dir, 4) / "state.json").read_text())["world_size"] == 2
    status = [*LAUNCH_COMMAND, "status", str(config.run_dir)]
    output = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    assert "001-train" in output and "4 of 4" in output and "done" in output and "last checkpoint: 4" in output
    assert parse_config(read_yaml_mapping(folder / "config.yaml"), "submitted") == config


CLASSIFIER_CODE = """
def build():
    return lambda images: (images.mean((2, 3)), images.amax((2, 3)))
"""


@pytest.mark.slow
def test_local_job_extracts_with_two_processes(world: World, tmp_path: Path) -> None:
    (tmp_path / "code_under_study.py").write_text(CLASSIFIER_CODE)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    out = tmp_path / "features"
    command = [*LAUNCH_COMMAND, "extract", "--shards", str(world.shards.path), "--out", str(out), "--cluster", "local",
               "--tasks-per-node", "2", "--blackbox", "code_under_study:build"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    folder, start = out / "jobs" / "001-extract", time.monotonic()
    while len(list(folder.glob("*_result.pkl"))) < 2:
        assert time.monotonic() - start < 120, "\n".join(log.read_text() for log in folder.glob("*_log.err"))
        time.sleep(0.1)
    assert (out / "manifest.json").is_file()


def test_submission_takes_less_than_one_second_of_cpu_time(world: World, tmp_path: Path) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho Submitted batch job 17\n")
    sbatch.chmod(0o755)
    (sbatch.parent / "srun").symlink_to(sbatch)
    config = world.make_config(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [*LAUNCH_COMMAND, "train", str(tmp_path / "config.yaml"), "--gpus-per-node", "2"]
    environment = os.environ | {"PATH": f"{sbatch.parent}:/usr/bin:/bin"}
    result, seconds = measure_command(command, environment)
    assert result.stdout.startswith("train: job 17, in "), result.stderr
    assert seconds < 1  # CPU time depends little on the load of the machine


FAKE_COMMANDS = {
    "sbatch": 'echo "sbatch $*" >> log; [ $(grep -c ^sbatch log) = 3 ] && echo Submitted batch job 17',
    "python": 'echo "python $*" >> log; exit 3',
    "sleep": 'echo "sleep $*" >> log',
}


def test_watch_script_retries_until_its_successor_is_submitted(tmp_path: Path) -> None:
    for name, body in FAKE_COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = Path(__file__).parents[2] / "slurm" / "watch.sbatch"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["bash", str(script), "runs", "--as-jobs"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert result.returncode == 3, "the exit code of the check"
    submission = "sbatch --begin=now+10minutes slurm/watch.sbatch runs --as-jobs"
    check = "python -u -m launch watch runs --as-jobs --once"
    assert (tmp_path / "log").read_text().splitlines() == [
        submission, check, "sleep 60", submission, "sleep 60", submission
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere"], "no such file, and no preset"),
        (["train", "debug", "--cluster", "nowhere"], "--cluster nowhere"),
        (["train", "debug", "--cluster", "local", "--after-job", "17"], "cannot wait for other jobs"),
        (
            ["train", "debug", "training.batch_size=6", "--nodes", "4"],
            "training.batch_size: 6 cannot be split between 4",
        ),
        (["pipeline", "debug", "--cluster", "local"], "local jobs cannot wait"),
        (["status", "nowhere"], "no run with jobs"),
        (["watch", "nowhere", "--once"], "no such folder"),
        (["render", "nowhere", "--time", "soon"], "time: 'soon'"),
        (["render", "nowhere"], "nowhere: no such run"),
        (["evaluate", "nowhere", "--dry-run"], "nowhere: no such run"),
        (["extract", "--shards", "nowhere", "--blackbox", "classifier"], "nowhere: no shards"),
        (["train", "debug", "--init-from", "nowhere"], "--init-from nowhere: not a checkpoint folder"),
        (["train", "debug", "--reset-optimizer"], "--reset-optimizer: no checkpoint given; name it with --init-from"),
        (["train", "debug", "evaluation.selection_metric=cccc"], "did you mean 'ccc'?"),
        (["watch", ".", "--once", "--after-job", "17"], "watch: starts at once and cannot wait for a job"),
        (
            ["watch", ".", "--once", "--cpus-per-task", "2"],
            "watch: --cpus-per-task applies to jobs only; add --as-jobs",
        ),
        (["watch", ".", "--once", "--dependency", "singleton"], "watch: starts at once and cannot wait for a job"),
    ],
)
def test_user_errors_are_one_line_and_write_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    root = Path(__file__).parent.parent.parent
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    command = [*LAUNCH_COMMAND, *arguments]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("featgan: ") and result.stderr.count("\n") == 1 and message in result.stderr
    assert list(tmp_path.iterdir()) == []
