"""Real SLURM jobs on two nodes of two tasks: signalled, killed, moved to one node, and as good as undisturbed.

`slurm/practice-cluster start` gives a SLURM of two nodes on one machine; without one they say why they are skipped.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from featgan.config.loading import to_yaml
from featgan.config.schema import Config
from featgan.run.paths import committed_steps, evaluated_steps
from featgan.training.train import train
from tests.conftest import World, tensors_of


def nodes_answer() -> bool:
    """Whether two nodes run what they are given."""
    command = ["srun", "--nodes=2", "--ntasks-per-node=2", "--immediate=30", "hostname"]
    try:
        return subprocess.run(command, capture_output=True, timeout=60).stdout.count(b"\n") == 4
    except (OSError, subprocess.TimeoutExpired):
        return False


SLURM_ANSWERS = nodes_answer()
REASON = "no SLURM of two nodes; start one with slurm/practice-cluster start"
is_skipped = not SLURM_ANSWERS and not os.environ.get("FEATGAN_NEEDS_SLURM")
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.skipif(is_skipped, reason=REASON)]
STEPS, PATIENCE = 200, 240
submitted_here: list[str] = []
ROOT = Path(__file__).parent.parent.parent
LAUNCH = [sys.executable, "-m", "launch"]


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s until {what}"
        time.sleep(0.2)


def launch(*arguments: object) -> str:
    """Run a launch command; returns what it printed."""
    found = subprocess.run([*LAUNCH, *map(str, arguments)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    submitted_here.extend(job_numbers(found.stdout))
    return found.stdout


def look(runs: Path, table: str = "slurm/evaluate.scrontab") -> str:
    """What scrontab or cron would run, with a user's paths in the place of the file's; cron gives no environment."""
    lines = (ROOT / table).read_text().splitlines()
    entry = next(line.strip() for line in lines if line.strip().startswith("*/10 * * * * "))
    command = entry.split(maxsplit=5)[5].replace("/path/to/featgan", str(ROOT)).replace("/path/to/runs", str(runs))
    command = command.replace(".venv/bin/python", sys.executable).replace("--cluster slurm", "--cluster practice")
    command = command.replace("/etc/slurm/slurm.conf", os.environ["SLURM_CONF"])
    known = ("PATH", "HOME", "SLURM_CONF") if "scrontab" in table else ("HOME",)
    bare = {name: os.environ[name] for name in known}
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=bare)
    assert found.returncode == 0, found.stderr
    log = runs / "watch.log"
    printed = found.stdout + (log.read_text() if log.exists() else "")
    submitted_here.extend(job_numbers(printed))
    return printed


def job_numbers(printed: str) -> list[str]:
    return [line.split("job ")[1].split(",")[0] for line in printed.splitlines() if ": job " in line]


def is_queued(job: str) -> bool:
    return bool(subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True).stdout.strip())


def last_step(run: Path) -> int:
    """From the journal, which is written every few steps."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def processes(folder: Path, rank: int) -> list[int]:
    """The job's main process of a rank, on this machine that plays both nodes."""
    wanted = f"(submitit.core._submit|launch.sbatch_entry --run) {folder}"
    listed = subprocess.run(["pgrep", "-f", wanted], capture_output=True, text=True).stdout.split()
    found = []
    for number in map(int, listed):
        try:
            environment = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_PROCID={rank}".encode() in environment and b"-m" in command and b"srun" not in command[0]:
            found.append(number)
    return sorted(found)[:1]


@pytest.fixture
def submitted(world: World, tmp_path: Path) -> Iterator[Callable[[str], Config]]:
    """Makes a configuration of a run; at the end nothing of the test stays in the queue, and all else does."""

    def make(name: str) -> Config:
        config = world.config(
            tmp_path / "runs" / name,
            dataset={"shards": str(world.shards.path), "condition": {"kind": "valence_arousal"}},
            evaluation={"every": 100},
            training={
                "steps": STEPS, "batch_size": 8, "save_every": 50, "report_every": 5, "preview_every": 10_000,
                "keep_checkpoints": 20,
            },
            distribution={"hang_timeout": 120},
        )  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(to_yaml(config))
        return config

    yield make
    if submitted_here:
        subprocess.run(["scancel", *submitted_here])
    submitted_here.clear()


def attempts(folder: Path) -> list[tuple[int, int]]:
    """Code and step of every ended attempt of a job."""
    path = folder / "attempts.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(entry["code"], entry["step"]) for entry in map(json.loads, lines)]


def journal(run: Path) -> dict[int, dict[str, float]]:
    """What training has written, by step; evaluations write lines as well."""
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {int(entry["step"]): entry for entry in entries if "discriminator/loss" in entry}


@pytest.mark.parametrize("tasks", [1, 2])
def test_disturbed_trainings_end_as_an_undisturbed_one(
    submitted: Callable[[str], Config], tmp_path: Path, tasks: int
) -> None:
    site = ("--cluster", "practice", "--tasks-per-node", tasks)
    calm, shaken = submitted("calm"), submitted("shaken")
    launch("train", tmp_path / "calm.yaml", *site)
    wait_until(lambda: committed_steps(calm.run)[-1:] == [STEPS], "the undisturbed run is done")
    (job,) = job_numbers(launch("train", tmp_path / "shaken.yaml", *site))
    folder = shaken.run / "jobs" / "001-train"

    # A signal to all processes: they save at the same step, and nothing is lost.
    wait_until(lambda: last_step(shaken.run) >= 25, "25 steps")
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    wait_until(lambda: len(attempts(folder)) == 1, "the signalled job has ended")
    code, saved = attempts(folder)[0]
    assert code == 75 and saved >= 25

    # A process of the second node is killed: the others notice, and the job goes on from its last checkpoint.
    wait_until(lambda: last_step(shaken.run) >= 110, "110 steps")
    (victim,) = processes(folder, 2 * tasks - 1)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(attempts(folder)) == 2, "the killed job has ended")
    code, kept = attempts(folder)[1]
    assert code not in (0, 75) and kept >= 100
    wait_until(lambda: committed_steps(shaken.run)[-1:] == [STEPS], "the disturbed run is done")
    log = next(folder.glob("*_0_log.err")).read_text()
    assert f"from step {saved}" in log and f"from step {kept}" in log
    for name in ("average", "discriminator", "optimizer-generator", "optimizer-discriminator"):
        one, two = tensors_of(calm.run, STEPS, name), tensors_of(shaken.run, STEPS, name)
        for key in one if tasks == 1 else ():
            assert np.array_equal(one[key], two[key]), (name, key)
    # Four processes add up in an order that DDP chooses anew at every start, and a GAN makes rounding grow: what is
    # exact for two is here equal to rounding soon after the first restart, and near at the end.
    assert distance(calm.run, shaken.run, 50) < 1e-4
    assert distance(calm.run, shaken.run, STEPS) < 0.05


def distance(first: Path, second: Path, step: int) -> float:
    """Of the discriminators of two runs, relative to what training has changed since step 50, or to their size."""
    one, two = (tensors_of(run, step, "discriminator") for run in (first, second))
    start = tensors_of(first, 50, "discriminator")
    apart = sum(float(((one[key] - two[key]) ** 2).sum()) for key in one)
    moved = sum(float(((one[key] - start[key]) ** 2).sum()) for key in one) if step > 50 else 0
    return (apart / (moved or sum(float((value**2).sum()) for value in one.values()))) ** 0.5


def test_a_training_moves_to_fewer_nodes_and_is_evaluated_and_rendered(
    submitted: Callable[[str], Config], tmp_path: Path
) -> None:
    config = submitted("moved")
    (first,) = job_numbers(launch("train", tmp_path / "moved.yaml", "--cluster", "practice"))
    wait_until(lambda: committed_steps(config.run)[-1:] >= [50], "50 steps")
    subprocess.run(["scancel", first], check=True)
    wait_until(lambda: not is_queued(first), "the cancelled job is gone")
    printed = launch("pipeline", tmp_path / "moved.yaml", "--cluster", "practice", "--nodes", 1)
    moved, evaluated, rendered = job_numbers(printed)
    wait_until(lambda: not is_queued(rendered), "the pipeline is done")
    assert committed_steps(config.run)[-1] == STEPS and (config.run / "report.html").is_file()
    assert evaluated_steps(config.run, "standard") == [STEPS]
    # The curve goes on as if nothing had happened: it is that of one process from beginning to end, but for rounding.
    log = next((config.run / "jobs" / "002-train").glob("*_0_log.err")).read_text()
    start = int(log.split("from step ")[1].split(",")[0])
    after = journal(config.run)
    assert start >= 50 and [step for step in after if step % 5 == 0] == list(range(5, STEPS + 1, 5))
    alone = config.model_copy(update={"run": tmp_path / "alone"})
    train(alone)
    steps = [step for step in after if step > start]
    one, moved_on = (
        np.array([curve[step]["discriminator/loss"] for step in steps]) for curve in (journal(alone.run), after)
    )
    assert len(steps) > 10 and np.abs(one - moved_on).mean() < 0.1 * one.std()

    # One look submits what the schedule names, the next finds it claimed or done.
    submissions = job_numbers(look(config.run.parent))
    assert len(submissions) == 2, "steps 100 and 200 with the suite of the schedule"
    assert not job_numbers(look(config.run.parent, "docs/cluster.md"))
    wait_until(lambda: not any(map(is_queued, submissions)), "the evaluations are done")
    assert not job_numbers(look(config.run.parent))
    assert evaluated_steps(config.run, "quick") == [100, 200]
    assert (config.run.parent / "leaderboard.csv").read_text().count("\n") == 4, "those two, and the pipeline's"
    table = launch("status", config.run)
    assert all(number in table for number in (first, moved, evaluated, rendered)) and "last checkpoint: 200" in table


def test_two_nodes_answer() -> None:
    assert SLURM_ANSWERS, REASON


def test_a_hung_process_and_a_lost_node_end_the_start_and_not_the_job(
    submitted: Callable[[str], Config], tmp_path: Path
) -> None:
    config = submitted("hung")
    (job,) = job_numbers(
        launch("train", tmp_path / "hung.yaml", "--cluster", "practice", "distribution.hang_timeout=20")
    )
    folder = config.run / "jobs" / "001-train"
    wait_until(lambda: last_step(config.run) >= 10, "10 steps")
    (hung,) = processes(folder, 3)
    os.kill(hung, signal.SIGSTOP)
    wait_until(lambda: len(attempts(folder)) == 1, "the others have noticed")
    assert attempts(folder)[0][0] not in (0, 75)
    logs = [next(folder.glob(f"*_{rank}_log.err")).read_text() for rank in range(3)]
    assert all("Timeout (0:00:20)!" in log and "run_steps" in log for log in logs), (
        "every rank that can shows its stacks"
    )
    step = max(committed_steps(config.run), default=0)
    wait_until(lambda: last_step(config.run) >= step + 20, "it goes on")
    subprocess.run(["scontrol", "update", "nodename=n2", "state=down", "reason=test"], check=True)
    try:
        wait_until(lambda: "PENDING" in state_of(job), "SLURM has queued it again by itself")
    finally:
        # It may have come back by itself: its daemon has been alive all the time.
        subprocess.run(["scontrol", "update", "nodename=n2", "state=resume"], capture_output=True)
    wait_until(lambda: committed_steps(config.run)[-1:] == [STEPS], "the run is done")
    assert len(attempts(folder)) == 2, "the start that the node took with it is counted"


def state_of(job: str) -> str:
    return subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True).stdout
