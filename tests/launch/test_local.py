"""A job in the background of this machine: two processes that train together on a copy of the code."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featgan.config.loading import read_yaml, to_yaml, validate
from featgan.run.paths import committed_steps, step_folder
from tests.conftest import World

LAUNCH = [sys.executable, "-m", "launch"]


@pytest.mark.slow
def test_two_processes_train_in_the_background(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [*LAUNCH, "train", str(tmp_path / "config.yaml"), "--cluster", "local", "--tasks-per-node", "2"]
    start = time.monotonic()
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    folder = tmp_path / "run" / "jobs" / "001-train"
    assert found.stdout.endswith(f"in {folder}\n")
    # featgan passes over what a launcher has put into the run's folder before the run began.
    while committed_steps(config.run)[-1:] != [4] or not list(folder.glob("*_result.pkl")):
        assert time.monotonic() - start < 120, "\n".join(log.read_text() for log in folder.glob("*_log.err"))
        time.sleep(0.1)
    assert json.loads((step_folder(config.run, 4) / "state.json").read_text())["world_size"] == 2
    shown = subprocess.run([*LAUNCH, "status", str(config.run)], capture_output=True, text=True).stdout
    assert "001-train" in shown and "4 of 4" in shown and "done" in shown and "last checkpoint: 4" in shown
    assert validate(read_yaml(folder / "config.yaml"), "submitted") == config


def test_submitting_takes_less_than_a_second_of_a_core(world: World, tmp_path: Path) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho Submitted batch job 17\n")
    sbatch.chmod(0o755)
    (sbatch.parent / "srun").symlink_to(sbatch)
    config = world.config(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [*LAUNCH, "train", str(tmp_path / "config.yaml"), "--gpus-per-node", "2"]
    where = os.environ | {"PATH": f"{sbatch.parent}:/usr/bin:/bin"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run(command, capture_output=True, text=True, env=where)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found.stdout.startswith("train: job 17, in "), found.stderr
    # Time of the processor, not of the wall: what a busy machine takes longer for is not the launcher's.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1


STANDING_IN = {
    "sbatch": 'echo "sbatch $*" >> log; [ $(grep -c ^sbatch log) = 3 ] && echo Submitted batch job 17',
    "python": 'echo "python $*" >> log; exit 3',
    "sleep": 'echo "sleep $*" >> log',
}


def test_a_watch_outlives_a_scheduler_that_does_not_answer(tmp_path: Path) -> None:
    for name, body in STANDING_IN.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = Path(__file__).parents[2] / "slurm" / "watch.sbatch"
    where = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    ended = subprocess.run(["bash", str(script), "runs", "--submit"], cwd=tmp_path, env=where, capture_output=True)
    assert ended.returncode == 3, "the look's own end"
    submitting = "sbatch --begin=now+10minutes slurm/watch.sbatch runs --submit"
    looking = "python -u -m launch watch runs --submit --once"
    assert (tmp_path / "log").read_text().splitlines() == [
        submitting, looking, "sleep 60", submitting, "sleep 60", submitting
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "nowhere"], "no such file, and no preset"),
        (["train", "debug", "--cluster", "nowhere"], "--cluster nowhere"),
        (["train", "debug", "--cluster", "local", "--after", "17"], "wait for no others"),
        (["train", "debug", "training.batch_size=6", "--nodes", "4"], "training.batch_size: 6 cannot be shared by 4"),
        (["pipeline", "debug", "--cluster", "local"], "local jobs cannot wait"),
        (["status", "nowhere"], "no run with jobs"),
        (["watch", "nowhere", "--once"], "no such folder"),
        (["render", "nowhere", "--time", "soon"], "time: 'soon'"),
        (["render", "nowhere"], "nowhere: no run"),
        (["evaluate", "nowhere", "--dry-run"], "nowhere: no run"),
        (["extract", "--shards", "nowhere", "--blackbox", "box"], "nowhere: no shards"),
        (["train", "debug", "--resume-from", "nowhere"], "--resume-from nowhere: no checkpoint folder"),
        (["train", "debug", "--fresh-optimizer"], "--fresh-optimizer: is for the checkpoint that --resume-from names"),
        (["train", "debug", "evaluation.best=cccc"], "did you mean 'ccc'?"),
        (["watch", ".", "--once", "--after", "17"], "watch: looks at once and waits for no job"),
        (["watch", ".", "--once", "--cpus-per-task", "2"], "watch: --cpus-per-task is for jobs, and without --submit"),
        (["watch", ".", "--once", "--dependency", "singleton"], "watch: looks at once and waits for no job"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path, arguments: list[str], said: str) -> None:
    root = Path(__file__).parent.parent.parent
    where = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    found = subprocess.run([*LAUNCH, *arguments], cwd=tmp_path, env=where, capture_output=True, text=True)
    assert found.returncode == 2, found.stderr
    assert found.stderr.startswith("featgan: ") and found.stderr.count("\n") == 1 and said in found.stderr
    assert list(tmp_path.iterdir()) == []
