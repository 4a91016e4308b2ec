"""The scripts of slurm/ on a SLURM cluster: a signal, a crash, dependent jobs, and the watch."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featgan.config.loading import to_yaml
from featgan.config.schema import Config
from featgan.run.paths import checkpoint_steps, evaluated_steps
from launch.job_folder import read_job_info
from launch.status import finished_state
from tests.cluster.test_slurm import (
    find_job_processes,
    is_queued,
    pytestmark,
    read_attempts,
    read_last_step,
    wait_until,
)
from tests.conftest import World

__all__ = ["pytestmark"]
ROOT = Path(__file__).parent.parent.parent
STEPS = 100


class SubmittedJobs:
    """Submits scripts from a folder and records the job IDs, so that the fixture can cancel them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[str] = []

    def submit_script(self, script: str, *arguments: object, sbatch_options: tuple[str, ...] = ()) -> str:
        """Submit a script of slurm/ and return the job ID."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = {
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "FEATGAN_WATCH_SCRIPT": str(ROOT / "slurm" / "watch.sbatch"),
        }
        command = ["sbatch", "--parsable", *sbatch_options, str(ROOT / "slurm" / script), *map(str, arguments)]
        environment = os.environ | variables | {"FEATGAN_WATCH_EVERY": "1"}
        result = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        self.jobs.append(result.stdout.strip())
        return self.jobs[-1]

    def successor_jobs(self) -> list[str]:
        """Return the jobs that the watch has submitted, from its log."""
        log = self.folder / "featgan-watch.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.split()[-1] for line in lines if line.startswith("Submitted batch job")]


@pytest.fixture
def submitted_jobs(tmp_path: Path) -> Iterator[SubmittedJobs]:
    submitted_jobs = SubmittedJobs(tmp_path)
    yield submitted_jobs
    subprocess.run(["scancel", *submitted_jobs.jobs, *submitted_jobs.successor_jobs()], check=False)


def small_config(world: World, run: Path, steps: int) -> Config:
    return world.make_config(
        run,
        dataset={"shards": str(world.shards.path), "condition": {"kind": "valence_arousal"}},
        evaluation={"every": 50},
        training={"steps": steps, "batch_size": 8, "checkpoint_every": 50, "log_every": 5, "sample_every": 10_000},
    )


def count_restarts(job: str) -> int:
    command = ["scontrol", "show", "job", job, "-o"]
    job_text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return int(job_text.split("Restarts=")[1].split()[0])


def test_training_script_resumes_after_a_signal_and_a_crash_and_dependent_jobs_wait(
    world: World, submitted_jobs: SubmittedJobs, tmp_path: Path
) -> None:
    config = small_config(world, tmp_path / "runs" / "sbatch", STEPS)
    (tmp_path / "sbatch.yaml").write_text(to_yaml(config))
    resources = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=10")
    train = submitted_jobs.submit_script("train.sbatch", tmp_path / "sbatch.yaml", sbatch_options=resources)
    dependent = ("--cpus-per-task=1", f"--dependency=afterok:{train}", "--kill-on-invalid-dep=yes")
    submitted_jobs.submit_script("evaluate.sbatch", config.run_dir, "--suite", "quick", sbatch_options=dependent)
    render = submitted_jobs.submit_script("render.sbatch", config.run_dir, sbatch_options=dependent)
    wait_until(lambda: read_last_step(config.run_dir) >= 10, "10 steps")
    subprocess.run(["scancel", "--signal=USR2", train], check=True)
    wait_until(lambda: count_restarts(train) == 1, "the job is requeued after a signal")
    saved = checkpoint_steps(config.run_dir)[-1]
    assert 10 <= saved < STEPS, "a checkpoint is saved at the signal"
    # The restarted job uses the stored configuration, not the file.
    (tmp_path / "sbatch.yaml").write_text(to_yaml(small_config(world, config.run_dir, 7)))
    wait_until(lambda: read_last_step(config.run_dir) >= min(saved + 10, STEPS - 15), "some more steps")
    folder = config.run_dir / "jobs" / "001-train"
    (process_id,) = find_job_processes(folder, 3)
    os.kill(process_id, signal.SIGKILL)
    wait_until(lambda: count_restarts(train) == 2, "the job is requeued after a crash")
    codes = [code for code, _ in read_attempts(folder)]
    assert codes[0] == 75 and codes[1] not in (0, 75)
    wait_until(lambda: not is_queued(render), "the last job has ended")
    assert checkpoint_steps(config.run_dir)[-1] == STEPS and (config.run_dir / "report.html").is_file()
    wait_until(lambda: evaluated_steps(config.run_dir, "quick") == [STEPS], "the evaluation")
    assert finished_state(folder, read_job_info(folder), has_queue=True) == "done"


def test_watch_script_starts_after_a_failed_training(
    world: World, submitted_jobs: SubmittedJobs, tmp_path: Path
) -> None:
    from featgan.training.train import train

    config = small_config(world, tmp_path / "runs" / "watched", 2)
    train(config)
    failed = submitted_jobs.submit_script("train.sbatch", "no-such-preset", sbatch_options=("--hold",))
    check = submitted_jobs.submit_script(
        "watch.sbatch", tmp_path / "runs", sbatch_options=(f"--dependency=afterany:{failed}",)
    )
    subprocess.run(["scontrol", "release", failed], check=True)
    wait_until(lambda: not is_queued(check), "the check has ended")
    assert evaluated_steps(config.run_dir, "quick") == [2]
    assert "no-such-preset: no such file" in next(tmp_path.glob(f"*-{failed}.log")).read_text()


def test_watch_script_evaluates_and_submits_its_successor(
    world: World, submitted_jobs: SubmittedJobs, tmp_path: Path
) -> None:
    from featgan.training.train import train

    config = small_config(world, tmp_path / "runs" / "watched", 2)
    train(config)
    submitted_jobs.submit_script("watch.sbatch", tmp_path / "runs")
    wait_until(lambda: evaluated_steps(config.run_dir, "quick") == [2], "the first check has evaluated")
    wait_until((tmp_path / "runs" / "leaderboard.csv").is_file, "the leaderboard is written")
    wait_until(lambda: len(submitted_jobs.successor_jobs()) == 2, "the second job has submitted a third")
    wait_until(lambda: not is_queued(submitted_jobs.successor_jobs()[0]), "the second check has ended")
    assert (tmp_path / "featgan-watch.log").read_text().count("evaluating step") == 1, (
        "the second check found nothing to evaluate"
    )
