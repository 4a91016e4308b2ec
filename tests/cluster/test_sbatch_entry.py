"""The sbatch files of slurm/ on real nodes, as people use them by hand: a signal, a dependency, a watch."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featgan.config.loading import to_yaml
from featgan.config.schema import Config
from featgan.run.paths import committed_steps, evaluated_steps
from launch.snapshot import read_card
from launch.status import settled_state
from tests.cluster.test_slurm import attempts, is_queued, last_step, processes, pytestmark, wait_until
from tests.conftest import World

__all__ = ["pytestmark"]
ROOT = Path(__file__).parent.parent.parent
STEPS = 100


class Queue:
    """Submits from a folder; what it has submitted can be taken back, and nothing else is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[str] = []

    def sbatch(self, script: str, *arguments: object, wishes: tuple[str, ...] = ()) -> str:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        where = {"PATH": path, "PYTHONPATH": str(ROOT), "FEATGAN_WATCH_SCRIPT": str(ROOT / "slurm" / "watch.sbatch")}
        command = ["sbatch", "--parsable", *wishes, str(ROOT / "slurm" / script), *map(str, arguments)]
        environment = os.environ | where | {"FEATGAN_WATCH_EVERY": "1"}
        found = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        self.jobs.append(found.stdout.strip())
        return self.jobs[-1]

    def successors(self) -> list[str]:
        """Jobs that the watch has submitted by itself, by its log."""
        log = self.folder / "featgan-watch.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.split()[-1] for line in lines if line.startswith("Submitted batch job")]


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    queue = Queue(tmp_path)
    yield queue
    subprocess.run(["scancel", *queue.jobs, *queue.successors()])


def small(world: World, run: Path, steps: int) -> Config:
    return world.config(
        run,
        dataset={"shards": str(world.shards.path), "condition": {"kind": "valence_arousal"}},
        evaluation={"every": 50},
        training={"steps": steps, "batch_size": 8, "save_every": 50, "report_every": 5, "preview_every": 10_000},
    )


def restarts(job: str) -> int:
    shown = subprocess.run(["scontrol", "show", "job", job, "-o"], capture_output=True, text=True).stdout
    return int(shown.split("Restarts=")[1].split()[0])


def test_a_training_by_hand_is_signalled_and_goes_on_and_the_next_jobs_wait_for_it(
    world: World, queue: Queue, tmp_path: Path
) -> None:
    config = small(world, tmp_path / "runs" / "hand", STEPS)
    (tmp_path / "hand.yaml").write_text(to_yaml(config))
    shape = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=10")
    train = queue.sbatch("train.sbatch", tmp_path / "hand.yaml", wishes=shape)
    following = ("--cpus-per-task=1", f"--dependency=afterok:{train}", "--kill-on-invalid-dep=yes")
    queue.sbatch("evaluate.sbatch", config.run, "--suite", "quick", wishes=following)
    render = queue.sbatch("render.sbatch", config.run, wishes=following)
    wait_until(lambda: last_step(config.run) >= 10, "10 steps")
    subprocess.run(["scancel", "--signal=USR2", train], check=True)
    wait_until(lambda: restarts(train) == 1, "it is queued again")
    saved = committed_steps(config.run)[-1]
    assert 10 <= saved < STEPS, "saved where the signal came"
    (tmp_path / "hand.yaml").write_text(to_yaml(small(world, config.run, 7)))  # the job goes on as it was submitted
    wait_until(lambda: last_step(config.run) >= min(saved + 10, STEPS - 15), "some steps more")
    folder = config.run / "jobs" / "001-train"
    (victim,) = processes(folder, 3)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: restarts(train) == 2, "it is queued again after a crash as well")
    codes = [code for code, _ in attempts(folder)]
    assert codes[0] == 75 and codes[1] not in (0, 75)
    wait_until(lambda: not is_queued(render), "the last job is done")
    assert committed_steps(config.run)[-1] == STEPS and (config.run / "report.html").is_file()
    wait_until(lambda: evaluated_steps(config.run, "quick") == [STEPS], "the evaluation")
    assert settled_state(folder, read_card(folder), answered=True) == "done"


def test_a_look_after_a_training_that_failed(world: World, queue: Queue, tmp_path: Path) -> None:
    from featgan.training.train import train

    config = small(world, tmp_path / "runs" / "watched", 2)
    train(config)
    failed = queue.sbatch("train.sbatch", "no-such-preset", wishes=("--hold",))
    looking = queue.sbatch("watch.sbatch", tmp_path / "runs", wishes=(f"--dependency=afterany:{failed}",))
    subprocess.run(["scontrol", "release", failed], check=True)
    wait_until(lambda: not is_queued(looking), "the look is done")
    assert evaluated_steps(config.run, "quick") == [2]
    assert "no-such-preset: no such file" in next(tmp_path.glob(f"*-{failed}.log")).read_text()


def test_a_watch_looks_and_submits_its_successor(world: World, queue: Queue, tmp_path: Path) -> None:
    from featgan.training.train import train

    config = small(world, tmp_path / "runs" / "watched", 2)
    train(config)
    queue.sbatch("watch.sbatch", tmp_path / "runs")
    wait_until(lambda: evaluated_steps(config.run, "quick") == [2], "the first look has evaluated")
    wait_until(lambda: (tmp_path / "runs" / "leaderboard.csv").is_file(), "and written the leaderboard")
    wait_until(lambda: len(queue.successors()) == 2, "the second look has submitted a third")
    wait_until(lambda: not is_queued(queue.successors()[0]), "the second look is done")
    assert (tmp_path / "featgan-watch.log").read_text().count("evaluating step") == 1, "and found nothing to do"
