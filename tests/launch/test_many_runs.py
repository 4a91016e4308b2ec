"""`status` and `watch` of 200 runs make one query to SLURM, and read each file at most once."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from featgan.config.loading import parse_config, to_yaml
from featgan.config.metric_specs import METRICS
from featgan.run.evaluation_claims import EvaluationClaim
from featgan.run.paths import CHECKPOINT_MANIFEST, evaluation_path
from launch.job_folder import write_job_info

ROOT = Path(__file__).parent.parent.parent
NUM_RUNS, STEPS = 200, (1000, 2000, 3000, 4000, 5000)
FILES_PER_RUN = 8 + len(STEPS)
"""Files with content in each run: config.yaml, metrics.jsonl, evaluations, a failure, and the files of two jobs."""

COUNTING_PROGRAM = """
import json, os, sys
runs, log = sys.argv.pop(1), sys.argv.pop(1)
opened = []

def record(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(runs + "/"):
        opened.append(arguments[0])

sys.addaudithook(record)
from featgan.cli.click_helpers import run_command
from launch.__main__ import cli
try:
    run_command(cli, "python -m launch", sys.argv[1:])
finally:
    with open(log, "w") as file:
        json.dump(opened, file)
"""


@cache
def make_config_text() -> str:
    return to_yaml(parse_config({"run_dir": "RUN_FOLDER", "evaluation": {"every": 1000}}, "test"))


@cache
def make_document_text(step: int) -> str:
    metrics = {name: {"value": step / 10000, "low": 0.1, "high": 0.9, "count": 64} for name in METRICS}
    return json.dumps({"step": step, "suite": "quick", "metrics": metrics, "baselines": {"copy": metrics}})


def make_run(run: Path, number: int) -> None:
    """Write a run with five evaluated checkpoints, a sixth that fails, a running training and an ended evaluation."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(make_config_text().replace("RUN_FOLDER", str(run)))
    entries = [
        json.dumps({"step": step, "speed/images_per_second": 100.0, "loss": 0.5}) for step in range(1000, 6000, 100)
    ]
    (run / "metrics.jsonl").write_text("\n".join(entries) + "\n")
    (run / "evaluations").mkdir()
    for step in (*STEPS, 6000):
        checkpoint = run / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / CHECKPOINT_MANIFEST).write_text('{"files": {}}')
    for step in STEPS:
        evaluation_path(run, step, "quick").write_text(make_document_text(step))
    failures = [{"time": 0, "reason": "failed"}] * 3
    evaluation_path(run, 6000, "quick").with_suffix(".failed").write_text(json.dumps({"failures": failures}))
    for name, job in (("001-train", 1000 + number), ("002-evaluate", 5000 + number)):
        folder = run / "jobs" / name
        folder.mkdir(parents=True)
        write_job_info(folder, {"id": str(job), "kind": name[4:], "cluster": {"executor": "slurm"}})
        (folder / f"{job}_0_log.err").write_text("")
        (folder / f"{job}_0_log.out").write_text("")
    (run / "jobs" / "002-evaluate" / "verdict.txt").write_text(f"002-evaluate: not restarted: {run.name}\n")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "runs"
    for number in range(NUM_RUNS):
        make_run(folder / f"run-{number:03d}", number)
    return folder


@dataclass
class CountedResult:
    """The result of a command, with the files in the runs that it opened and the calls of squeue."""

    output: str
    opened: Counter[str]
    num_queries: int


def run_counted(runs: Path, tmp_path: Path, *arguments: str) -> CountedResult:
    """Run a launch command with a fake squeue in which every training is running."""
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    lines = "\\n".join(f"{1000 + number}|RUNNING|9:30|n1" for number in range(NUM_RUNS))
    squeue.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/queries\nprintf "{lines}\\n"\n')
    squeue.chmod(0o755)
    environment = os.environ | {"PATH": f"{squeue.parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    command = [sys.executable, "-c", COUNTING_PROGRAM, str(runs), str(tmp_path / "opened"), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    opened = Counter(json.loads((tmp_path / "opened").read_text()))
    queries = tmp_path / "queries"
    return CountedResult(result.stdout, opened, len(queries.read_text().splitlines()) if queries.exists() else 0)


def assert_read_once(result: CountedResult, max_files: int) -> None:
    """Assert that no file was opened twice, and at most `max_files` at all."""
    repeated = {path: count for path, count in result.opened.items() if count > 1}
    assert not repeated, f"{len(repeated)} files were opened more than once, for example {list(repeated.items())[:3]}"
    assert result.opened.total() <= max_files


def test_status_of_many_runs_reads_each_file_once_and_asks_slurm_once(runs: Path, tmp_path: Path) -> None:
    result = run_counted(runs, tmp_path, "status", str(runs))
    assert result.num_queries == 1
    assert_read_once(result, NUM_RUNS * FILES_PER_RUN)
    assert result.output.count("running") == NUM_RUNS and result.output.count("5900 of") == NUM_RUNS
    assert "run-199" in result.output and "002-evaluate: not restarted: run-150" in result.output
    assert result.output.count("--step 6000") == NUM_RUNS, "the command that repeats the failed evaluation"


def test_watch_of_many_runs_reads_each_file_once(runs: Path, tmp_path: Path) -> None:
    result = run_counted(runs, tmp_path, "watch", str(runs), "--once")
    assert result.num_queries == 0, "no claim of a job to check"
    partial_files = [path for path in result.opened if path.endswith(".partial")]
    assert len(partial_files) == 2, "the leaderboard"
    assert_read_once(result, NUM_RUNS * FILES_PER_RUN)
    rows = list(csv.DictReader((runs / "leaderboard.csv").open()))
    assert len(rows) == NUM_RUNS * (len(STEPS) + 1)
    assert [row["state"] for row in rows[:6]] == ["done"] * 4 + ["best", "failed"]


def test_watch_asks_slurm_once_for_the_jobs_of_all_claims(runs: Path, tmp_path: Path) -> None:
    claims = [EvaluationClaim(runs / f"run-{number:03d}", 6000, "standard") for number in range(50)]
    for number, claim in enumerate(claims):
        assert claim.acquire()
        claim.transfer_to_job(str(1000 + number))
    result = run_counted(runs, tmp_path, "watch", str(runs), "--once")
    assert result.num_queries == 1 and all(claim.lease.path.exists() for claim in claims)
    for claim in claims:
        claim.release()
