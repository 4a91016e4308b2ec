"""A job that ended is requeued, not restarted with a verdict, or left alone because it was canceled."""

import json
from pathlib import Path

import pytest

from launch import requeue
from launch.job_folder import read_attempts
from launch.jobs import EXIT_CODE_FILE, EXIT_REQUEUE, EXIT_USER_ERROR

FAKE_SCONTROL = """#!/bin/sh
echo "$@" >> {calls}
[ "$1" = show ] && echo "JobId=17 JobState={state} Requeue=1"
[ -z "{error}" ] || [ "$1" = show ] || {{ echo "{error}" >&2; exit 1; }}
exit 0
"""


@pytest.fixture
def job_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a job folder in a run at step 20, and a fake scontrol that reports a running job."""
    folder = tmp_path / "run" / "jobs" / "001-train"
    folder.mkdir(parents=True)
    commit_checkpoint(folder, 20)
    use_fake_scontrol(tmp_path, "RUNNING", monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return folder


def commit_checkpoint(folder: Path, step: int) -> None:
    checkpoint = folder.parent.parent / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")


def use_fake_scontrol(folder: Path, state: str, monkeypatch: pytest.MonkeyPatch, error: str = "") -> None:
    script = folder / "bin" / "scontrol"
    script.parent.mkdir(exist_ok=True)
    script.write_text(FAKE_SCONTROL.format(calls=folder / "calls", state=state, error=error))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")


def count_requeues(folder: Path) -> int:
    calls = folder.parents[2] / "calls"
    return calls.read_text().count("requeue 17") if calls.exists() else 0


def test_job_is_requeued_after_a_signal_and_after_a_crash(job_folder: Path) -> None:
    requeue.main(job_folder, EXIT_REQUEUE)
    requeue.main(job_folder, 137)
    assert count_requeues(job_folder) == 2 and not (job_folder / "verdict.txt").exists()
    attempts = [json.loads(line) for line in (job_folder / "attempts.jsonl").read_text().splitlines()]
    assert [(attempt["code"], attempt["step"]) for attempt in attempts] == [(75, 20), (137, 20)]


def test_job_is_not_restarted_after_three_failures_at_one_step(
    job_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requeue.main(job_folder, 1)
    commit_checkpoint(job_folder, 40)
    for _ in range(3):
        requeue.main(job_folder, 1)
    assert count_requeues(job_folder) == 3
    assert "failed 3 times at step 40 (exit code 1)" in (job_folder / "verdict.txt").read_text()
    assert "not restarted" in capsys.readouterr().err


def test_signals_are_not_failures_but_their_number_is_limited(job_folder: Path) -> None:
    for _ in range(requeue.MAX_SIGNALS_PER_FAILURE * 3 - 1):
        requeue.main(job_folder, EXIT_REQUEUE)
    assert not (job_folder / "verdict.txt").exists()
    requeue.main(job_folder, EXIT_REQUEUE)
    assert "its run time is too short for one step" in (job_folder / "verdict.txt").read_text()


def test_stored_exit_code_replaces_the_code_of_srun(job_folder: Path) -> None:
    (job_folder / EXIT_CODE_FILE).write_text(str(EXIT_REQUEUE))
    requeue.main(job_folder, 143)
    requeue.main(job_folder, 143)
    attempts = [json.loads(line) for line in (job_folder / "attempts.jsonl").read_text().splitlines()]
    assert [attempt["code"] for attempt in attempts] == [EXIT_REQUEUE, 143]


def test_stored_user_error_replaces_the_code_of_srun(job_folder: Path) -> None:
    (job_folder / EXIT_CODE_FILE).write_text(str(EXIT_USER_ERROR))
    requeue.main(job_folder, 143)
    assert count_requeues(job_folder) == 0 and "a restart cannot fix" in (job_folder / "verdict.txt").read_text()


def test_job_is_not_restarted_after_a_user_error(job_folder: Path) -> None:
    requeue.main(job_folder, EXIT_USER_ERROR)
    assert count_requeues(job_folder) == 0 and "a restart cannot fix" in (job_folder / "verdict.txt").read_text()


def test_failures_of_an_evaluation_are_counted_while_a_training_progresses(job_folder: Path) -> None:
    evaluation = job_folder.with_name("002-evaluate")
    evaluation.mkdir()
    for step in (40, 60, 80):
        commit_checkpoint(job_folder, step)
        requeue.main(evaluation, 1)
    assert count_requeues(job_folder) == 2 and "failed 3 times" in (evaluation / "verdict.txt").read_text()


def test_rejected_requeue_writes_a_verdict(job_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_scontrol(
        job_folder.parents[2], "RUNNING", monkeypatch, "Requested operation is presently disabled for job 17"
    )
    requeue.main(job_folder, EXIT_REQUEUE)
    assert "cannot requeue the job (Requested operation" in (job_folder / "verdict.txt").read_text()


def test_requeue_is_retried_if_the_controller_is_unavailable(job_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_scontrol(job_folder.parents[2], "RUNNING", monkeypatch, "Unable to contact slurm controller")
    monkeypatch.setattr(requeue, "RETRY_DELAYS", (0, 0))
    requeue.main(job_folder, EXIT_REQUEUE)
    assert count_requeues(job_folder) == 3 and "does not respond" in (job_folder / "verdict.txt").read_text()


@pytest.mark.parametrize(
    ("state", "num_requeues"),
    [("TIMEOUT", 1), ("COMPLETING Reason=TimeLimit", 1), ("COMPLETING Reason=None", 0), ("CANCELLED Reason=None", 0)],
)
def test_job_that_reached_its_time_limit_is_requeued(
    job_folder: Path, monkeypatch: pytest.MonkeyPatch, state: str, num_requeues: int
) -> None:
    # While its last processes end, a job is COMPLETING, whatever ended it.
    use_fake_scontrol(job_folder.parents[2], state, monkeypatch)
    requeue.main(job_folder, 143)
    assert count_requeues(job_folder) == num_requeues


def test_lost_attempts_are_counted(
    job_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert requeue.count_lost_starts(job_folder), "the first start"
    requeue.main(job_folder, 1)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeue.count_lost_starts(job_folder) and len(read_attempts(job_folder)) == 1, (
        "the job script has recorded it"
    )
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert requeue.count_lost_starts(job_folder) and len(read_attempts(job_folder)) == 2, "its node failed"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert not requeue.count_lost_starts(job_folder)
    assert "failed 3 times at step 20" in (job_folder / "verdict.txt").read_text()
    assert "attempt 2 ended without a record" in capsys.readouterr().err


def test_canceled_job_is_not_requeued(job_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_scontrol(job_folder.parents[2], "CANCELLED", monkeypatch)
    requeue.main(job_folder, EXIT_REQUEUE)
    assert count_requeues(job_folder) == 0 and not (job_folder / "verdict.txt").exists()
