"""SLURM jobs on two nodes with two tasks each: after signals and crashes, the results equal an undisturbed run.

`slurm/practice-cluster start` starts a SLURM cluster of two nodes on one machine; without one, the tests are skipped.
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
from featgan.run.paths import checkpoint_steps, evaluated_steps
from featgan.training.train import train
from tests.conftest import World, read_checkpoint_tensors


def are_two_nodes_up() -> bool:
    """Return whether a job on two nodes can start."""
    command = ["srun", "--nodes=2", "--ntasks-per-node=2", "--immediate=30", "hostname"]
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).stdout.count(b"\n") == 4
    except (OSError, subprocess.TimeoutExpired):
        return False


IS_SLURM_UP = are_two_nodes_up()
SKIP_REASON = "no SLURM cluster with two nodes; start one with slurm/practice-cluster start"
is_skipped = not IS_SLURM_UP and not os.environ.get("FEATGAN_NEEDS_SLURM")
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.skipif(is_skipped, reason=SKIP_REASON)]
STEPS, TIMEOUT_SECONDS = 200, 240
submitted_jobs: list[str] = []
ROOT = Path(__file__).parent.parent.parent
LAUNCH_COMMAND = [sys.executable, "-m", "launch"]


def wait_until(is_reached: Callable[[], bool], description: str) -> None:
    """Wait until a condition is true; fail after TIMEOUT_SECONDS."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not is_reached():
        assert time.monotonic() < deadline, f"waited {TIMEOUT_SECONDS} s until {description}"
        time.sleep(0.2)


def run_launch(*arguments: object, **variables: str) -> str:
    """Run a launch command, with additional environment variables, and return its output."""
    command = [*LAUNCH_COMMAND, *map(str, arguments)]
    environment = os.environ | variables
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    submitted_jobs.extend(parse_job_ids(result.stdout))
    return result.stdout


def run_scheduled_watch(runs: Path, table: str = "slurm/evaluate.scrontab") -> str:
    """Run the command of a scrontab file or of the docs, with the paths replaced and the environment of cron."""
    lines = (ROOT / table).read_text().splitlines()
    entry = next(line.strip() for line in lines if line.strip().startswith("*/10 * * * * "))
    command = entry.split(maxsplit=5)[5].replace("/path/to/featgan", str(ROOT)).replace("/path/to/runs", str(runs))
    command = command.replace(".venv/bin/python", sys.executable).replace("--cluster slurm", "--cluster practice")
    command = command.replace("/etc/slurm/slurm.conf", os.environ["SLURM_CONF"])
    variable_names = ("PATH", "HOME", "SLURM_CONF") if "scrontab" in table else ("HOME",)
    environment = {name: os.environ[name] for name in variable_names}
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    log = runs / "watch.log"
    printed = result.stdout + (log.read_text() if log.exists() else "")
    submitted_jobs.extend(parse_job_ids(printed))
    return printed


def parse_job_ids(printed: str) -> list[str]:
    return [line.split("job ")[1].split(",")[0] for line in printed.splitlines() if ": job " in line]


def is_queued(job: str) -> bool:
    command = ["squeue", "-h", "-j", job]
    return bool(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())


def read_last_step(run: Path) -> int:
    """Return the last step in metrics.jsonl, which is written every few steps."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def find_job_processes(folder: Path, rank: int) -> list[int]:
    """Return the main process of a rank; both nodes run on this machine."""
    pattern = f"(submitit.core._submit|launch.sbatch_entry --job-folder) {folder}"
    command = ["pgrep", "-f", pattern]
    process_ids = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    matches = []
    for number in map(int, process_ids):
        try:
            environment = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
            arguments = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_PROCID={rank}".encode() in environment and b"-m" in arguments and b"srun" not in arguments[0]:
            matches.append(number)
    return sorted(matches)[:1]


@pytest.fixture
def make_job_config(world: World, tmp_path: Path) -> Iterator[Callable[[str], Config]]:
    """Return a function that makes the configuration of a run; afterwards, the jobs of the test are canceled."""

    def make(name: str) -> Config:
        config = world.make_config(
            tmp_path / "runs" / name,
            dataset={"shards": str(world.shards.path), "condition": {"kind": "valence_arousal"}},
            evaluation={"every": 100},
            training={
                "steps": STEPS, "batch_size": 8, "checkpoint_every": 50, "log_every": 5, "sample_every": 10_000,
                "max_checkpoints": 20,
            },
            distributed={"hang_timeout": 120},
        )  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(to_yaml(config))
        return config

    yield make
    if submitted_jobs:
        subprocess.run(["scancel", *submitted_jobs], check=False)
    submitted_jobs.clear()


def read_attempts(folder: Path) -> list[tuple[int, int]]:
    """Return exit code and step of every attempt of a job that has ended."""
    path = folder / "attempts.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(entry["code"], entry["step"]) for entry in map(json.loads, lines)]


def read_training_metrics(run: Path) -> dict[int, dict[str, float]]:
    """Return the training metrics by step; evaluations write lines as well."""
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {int(entry["step"]): entry for entry in entries if "discriminator/loss" in entry}


@pytest.mark.parametrize("tasks", [1, 2])
def test_disturbed_run_equals_an_undisturbed_one(
    make_job_config: Callable[[str], Config], tmp_path: Path, tasks: int
) -> None:
    cluster = ("--cluster", "practice", "--tasks-per-node", tasks)
    undisturbed, disturbed = make_job_config("undisturbed"), make_job_config("disturbed")
    run_launch("train", tmp_path / "undisturbed.yaml", *cluster)
    wait_until(lambda: checkpoint_steps(undisturbed.run_dir)[-1:] == [STEPS], "the undisturbed run is complete")
    (job,) = parse_job_ids(run_launch("train", tmp_path / "disturbed.yaml", *cluster))
    folder = disturbed.run_dir / "jobs" / "001-train"

    # After a signal to all processes, they save a checkpoint at the same step.
    wait_until(lambda: read_last_step(disturbed.run_dir) >= 25, "25 steps")
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    wait_until(lambda: len(read_attempts(folder)) == 1, "the signaled job has ended")
    code, saved = read_attempts(folder)[0]
    assert code == 75 and saved >= 25

    # After a process of the second node is killed, the others end, and the job resumes from its last checkpoint.
    wait_until(lambda: read_last_step(disturbed.run_dir) >= 110, "110 steps")
    (process_id,) = find_job_processes(folder, 2 * tasks - 1)
    os.kill(process_id, signal.SIGKILL)
    wait_until(lambda: len(read_attempts(folder)) == 2, "the killed job has ended")
    code, kept = read_attempts(folder)[1]
    assert code not in (0, 75) and kept >= 100
    wait_until(lambda: checkpoint_steps(disturbed.run_dir)[-1:] == [STEPS], "the disturbed run is complete")
    log = next(folder.glob("*_0_log.err")).read_text()
    assert f"from step {saved}" in log and f"from step {kept}" in log
    for name in ("generator_ema", "discriminator", "optimizer-generator", "optimizer-discriminator"):
        one, two = (
            read_checkpoint_tensors(undisturbed.run_dir, STEPS, name),
            read_checkpoint_tensors(disturbed.run_dir, STEPS, name),
        )
        for key in one if tasks == 1 else ():
            assert np.array_equal(one[key], two[key]), (name, key)
    # DDP chooses the order of its sums at every start, which does not matter for two processes. With four, the weights
    # are equal up to rounding soon after the first restart. The rounding errors then grow, as in any GAN.
    assert relative_distance(undisturbed.run_dir, disturbed.run_dir, 50) < 1e-4
    assert relative_distance(undisturbed.run_dir, disturbed.run_dir, STEPS) < 0.05


def relative_distance(first: Path, second: Path, step: int) -> float:
    """Return the distance of two discriminators, relative to the change since step 50, or to the norm at step 50."""
    one, two = (read_checkpoint_tensors(run, step, "discriminator") for run in (first, second))
    start = read_checkpoint_tensors(first, 50, "discriminator")
    distance = sum(float(((one[key] - two[key]) ** 2).sum()) for key in one)
    change = sum(float(((one[key] - start[key]) ** 2).sum()) for key in one) if step > 50 else 0
    return (distance / (change or sum(float((value**2).sum()) for value in one.values()))) ** 0.5


def test_training_resumes_on_fewer_nodes_and_is_evaluated_and_rendered(
    make_job_config: Callable[[str], Config], tmp_path: Path
) -> None:
    config = make_job_config("moved")
    (first,) = parse_job_ids(run_launch("train", tmp_path / "moved.yaml", "--cluster", "practice"))
    wait_until(lambda: checkpoint_steps(config.run_dir)[-1:] >= [50], "50 steps")
    subprocess.run(["scancel", first], check=True)
    wait_until(lambda: not is_queued(first), "the canceled job has ended")
    printed = run_launch("pipeline", tmp_path / "moved.yaml", "--cluster", "practice", "--nodes", 1)
    moved, evaluated, rendered = parse_job_ids(printed)
    wait_until(lambda: not is_queued(rendered), "the pipeline has ended")
    assert checkpoint_steps(config.run_dir)[-1] == STEPS and (config.run_dir / "report.html").is_file()
    assert evaluated_steps(config.run_dir, "standard") == [STEPS]
    # The metrics equal those of one process without an interruption, up to rounding.
    log = next((config.run_dir / "jobs" / "002-train").glob("*_0_log.err")).read_text()
    start = int(log.split("from step ")[1].split(",")[0])
    curve = read_training_metrics(config.run_dir)
    assert start >= 50 and [step for step in curve if step % 5 == 0] == list(range(5, STEPS + 1, 5))
    single = config.model_copy(update={"run_dir": tmp_path / "single"})
    train(single)
    steps = [step for step in curve if step > start]
    single_losses, losses = (
        np.array([metrics[step]["discriminator/loss"] for step in steps])
        for metrics in (read_training_metrics(single.run_dir), curve)
    )
    assert len(steps) > 10 and np.abs(single_losses - losses).mean() < 0.1 * single_losses.std()

    # The first check submits what is due; the next finds it claimed or complete.
    submissions = parse_job_ids(run_scheduled_watch(config.run_dir.parent))
    assert len(submissions) == 2, "steps 100 and 200 with the suite of the configuration"
    assert not parse_job_ids(run_scheduled_watch(config.run_dir.parent, "docs/cluster.md"))
    wait_until(lambda: not any(map(is_queued, submissions)), "the evaluations have ended")
    assert not parse_job_ids(run_scheduled_watch(config.run_dir.parent))
    assert evaluated_steps(config.run_dir, "quick") == [100, 200]
    assert (config.run_dir.parent / "leaderboard.csv").read_text().count("\n") == 4, (
        "a header, these two and that of the pipeline"
    )
    table = run_launch("status", config.run_dir)
    assert all(number in table for number in (first, moved, evaluated, rendered)) and "last checkpoint: 200" in table


@pytest.mark.parametrize("srun_args", [(), ("--srun-args", "--comment=container")])
def test_job_in_a_container_that_is_submitted_inside_a_job_is_requeued(
    make_job_config: Callable[[str], Config], tmp_path: Path, srun_args: tuple[str, ...]
) -> None:
    config = make_job_config("container")
    # A container: it has Python, but not SLURM's commands. With srun_args, it starts only in a step.
    container = tmp_path / "container"
    required = "SLURM_STEP_ID" if srun_args else "SLURM_JOB_ID"
    container.write_text(f'#!/bin/sh\n[ -n "${required}" ] || exit 127\nPATH=/nowhere exec "$@"\n')
    container.chmod(0o755)
    # On some sites, sbatch exports nothing. The variables are those of a shell in an allocation.
    leaked = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_CPU_BIND": "mask_cpu:0x3", "SLURM_MEM_PER_CPU": "2000",
              "SLURM_NTASKS": "1", "SLURM_DISTRIBUTION": "cyclic", "SBATCH_EXPORT": "NONE"}  # fmt: skip
    options = ("--cluster", "practice", "--mem", "1", "--python", f"{container} {sys.executable}", *srun_args)
    (job,) = parse_job_ids(run_launch("train", tmp_path / "container.yaml", *options, **leaked))
    folder = config.run_dir / "jobs" / "001-train"
    wait_until(lambda: read_last_step(config.run_dir) >= 10, "10 steps")
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    wait_until(lambda: len(read_attempts(folder)) == 1, "the signaled job has ended")
    assert read_attempts(folder)[0][0] == 75
    wait_until(lambda: "from step" in next(folder.glob("*_0_log.err")).read_text(), "the job has resumed")
    assert not (folder / "verdict.txt").exists()


def test_two_nodes_respond() -> None:
    assert IS_SLURM_UP, SKIP_REASON


def test_job_survives_a_hanging_process_and_a_lost_node(
    make_job_config: Callable[[str], Config], tmp_path: Path
) -> None:
    config = make_job_config("hung")
    (job,) = parse_job_ids(
        run_launch("train", tmp_path / "hung.yaml", "--cluster", "practice", "distributed.hang_timeout=20")
    )
    folder = config.run_dir / "jobs" / "001-train"
    wait_until(lambda: read_last_step(config.run_dir) >= 10, "10 steps")
    (hanging_process,) = find_job_processes(folder, 3)
    os.kill(hanging_process, signal.SIGSTOP)
    wait_until(lambda: len(read_attempts(folder)) == 1, "the attempt has ended")
    assert read_attempts(folder)[0][0] not in (0, 75)
    logs = [next(folder.glob(f"*_{rank}_log.err")).read_text() for rank in range(3)]
    assert all("Timeout (0:00:20)!" in log and "run_steps" in log for log in logs), "every other rank prints its stacks"
    step = max(checkpoint_steps(config.run_dir), default=0)
    wait_until(lambda: read_last_step(config.run_dir) >= step + 20, "the job has resumed")
    subprocess.run(["scontrol", "update", "nodename=n2", "state=down", "reason=test"], check=True)
    try:
        wait_until(lambda: "PENDING" in query_job_state(job), "SLURM has requeued the job")
    finally:
        # The node may be back already, because its daemon is still alive; the command then fails.
        subprocess.run(["scontrol", "update", "nodename=n2", "state=resume"], capture_output=True, check=False)
    wait_until(lambda: checkpoint_steps(config.run_dir)[-1:] == [STEPS], "the run is complete")
    # SLURM may start the job again before the node responds, and then ends this attempt too.
    assert len(read_attempts(folder)) >= 2, "the attempt that the node lost is recorded"


def query_job_state(job: str) -> str:
    command = ["squeue", "-h", "-j", job, "-o", "%T"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
