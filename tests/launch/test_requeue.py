"""What follows a job that ended: queued again, given up, or left alone when it was cancelled."""

import json
from pathlib import Path

import pytest

from launch import requeue
from launch.snapshot import read_attempts

FAKE = """#!/bin/sh
echo "$@" >> {calls}
[ "$1" = show ] && echo "JobId=17 JobState={state} Requeue=1"
[ -z "{refusal}" ] || [ "$1" = show ] || {{ echo "{refusal}" >&2; exit 1; }}
exit 0
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job's folder in a run at step 20, with a stand-in for scontrol that says the job runs."""
    folder = tmp_path / "run" / "jobs" / "001-train"
    folder.mkdir(parents=True)
    commit(folder, 20)
    use_scontrol(tmp_path, "RUNNING", monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return folder


def commit(folder: Path, step: int) -> None:
    checkpoint = folder.parent.parent / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")


def use_scontrol(folder: Path, state: str, monkeypatch: pytest.MonkeyPatch, refusal: str = "") -> None:
    script = folder / "bin" / "scontrol"
    script.parent.mkdir(exist_ok=True)
    script.write_text(FAKE.format(calls=folder / "calls", state=state, refusal=refusal))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")


def requeues(folder: Path) -> int:
    calls = folder.parents[2] / "calls"
    return calls.read_text().count("requeue 17") if calls.exists() else 0


def test_a_signal_and_a_crash_queue_the_job_again(job: Path) -> None:
    requeue.main(job, requeue.AGAIN)
    requeue.main(job, 137)
    assert requeues(job) == 2 and not (job / "verdict.txt").exists()
    attempts = [json.loads(line) for line in (job / "attempts.jsonl").read_text().splitlines()]
    assert [(attempt["code"], attempt["step"]) for attempt in attempts] == [(75, 20), (137, 20)]


def test_three_failures_at_one_step_are_the_end(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requeue.main(job, 1)
    commit(job, 40)
    for _ in range(3):
        requeue.main(job, 1)
    assert requeues(job) == 3
    assert "failed 3 times at step 40 (code 1)" in (job / "verdict.txt").read_text()
    assert "given up" in capsys.readouterr().err


def test_signals_are_no_failures_but_do_not_loop_for_ever(job: Path) -> None:
    for _ in range(requeue.PATIENCE * 3 - 1):
        requeue.main(job, requeue.AGAIN)
    assert not (job / "verdict.txt").exists()
    requeue.main(job, requeue.AGAIN)
    assert "time limit is too short" in (job / "verdict.txt").read_text()


def test_slower_processes_that_srun_ends_are_no_failure(job: Path) -> None:
    (job / requeue.ENDED).write_text(str(requeue.AGAIN))
    requeue.main(job, 143)
    requeue.main(job, 143)
    attempts = [json.loads(line) for line in (job / "attempts.jsonl").read_text().splitlines()]
    assert [attempt["code"] for attempt in attempts] == [requeue.AGAIN, 143]


def test_a_mistake_is_one_whatever_srun_says(job: Path) -> None:
    (job / requeue.ENDED).write_text(str(requeue.MISTAKE))
    requeue.main(job, 143)
    assert requeues(job) == 0 and "mistake" in (job / "verdict.txt").read_text()


def test_a_users_mistake_is_not_repeated(job: Path) -> None:
    requeue.main(job, requeue.MISTAKE)
    assert requeues(job) == 0 and "mistake" in (job / "verdict.txt").read_text()


def test_a_job_beside_a_training_is_not_tried_for_ever(job: Path) -> None:
    evaluation = job.with_name("002-evaluate")
    evaluation.mkdir()
    for step in (40, 60, 80):
        commit(job, step)
        requeue.main(evaluation, 1)
    assert requeues(job) == 2 and "failed 3 times" in (evaluation / "verdict.txt").read_text()


def test_a_refusal_of_the_scheduler_is_a_verdict(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_scontrol(job.parents[2], "RUNNING", monkeypatch, "Requested operation is presently disabled for job 17")
    requeue.main(job, requeue.AGAIN)
    assert "does not queue it again (Requested operation" in (job / "verdict.txt").read_text()


def test_a_controller_that_is_away_is_asked_again(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_scontrol(job.parents[2], "RUNNING", monkeypatch, "Unable to contact slurm controller")
    monkeypatch.setattr(requeue, "PAUSES", (0, 0))
    requeue.main(job, requeue.AGAIN)
    assert requeues(job) == 3 and "does not answer" in (job / "verdict.txt").read_text()


@pytest.mark.parametrize(
    ("state", "times"),
    [("TIMEOUT", 1), ("COMPLETING Reason=TimeLimit", 1), ("COMPLETING Reason=None", 0), ("CANCELLED Reason=None", 0)],
)
def test_a_job_that_was_not_ready_in_time_goes_on(
    job: Path, monkeypatch: pytest.MonkeyPatch, state: str, times: int
) -> None:
    # While its last processes end, SLURM shows a job as completing, whatever ended it.
    use_scontrol(job.parents[2], state, monkeypatch)
    requeue.main(job, 143)
    assert requeues(job) == times


def test_starts_that_ended_without_a_word_count(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert requeue.start_again(job), "the first start"
    requeue.main(job, 1)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeue.start_again(job) and len(read_attempts(job)) == 1, "it was counted by its script"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert requeue.start_again(job) and len(read_attempts(job)) == 2, "its node died"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert not requeue.start_again(job)
    assert "failed 3 times at step 20" in (job / "verdict.txt").read_text()
    assert "start 2 ended without a word" in capsys.readouterr().err


def test_a_cancelled_job_stays_cancelled(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_scontrol(job.parents[2], "CANCELLED", monkeypatch)
    requeue.main(job, requeue.AGAIN)
    assert requeues(job) == 0 and not (job / "verdict.txt").exists()
