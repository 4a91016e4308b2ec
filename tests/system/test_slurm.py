"""Queries to SLURM: one query for many jobs, and answers that do not end jobs by mistake."""

from pathlib import Path

import pytest

from featgan.system.slurm import job_state, queue_snapshot


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a squeue in which job 17 is running and job 19 is pending; it records its calls in the returned file."""
    script, calls = tmp_path / "bin" / "squeue", tmp_path / "calls"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$*" >> {calls}\n'
        "case $* in *--jobs*19*) echo PENDING ;; *) echo '17|RUNNING'; echo '19|PENDING' ;; esac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    return calls


def test_one_query_answers_for_all_jobs_of_a_snapshot(squeue: Path) -> None:
    with queue_snapshot(["17", "18"]):
        assert [job_state(job) for job in ("17", "18", "17")] == ["running", "", "running"]
        assert len(squeue.read_text().splitlines()) == 1
        # A job that was submitted after the query is not in it, but has not ended.
        assert job_state("19") == "pending" and len(squeue.read_text().splitlines()) == 2
    assert job_state("19") == "pending" and len(squeue.read_text().splitlines()) == 3, "no answer is kept"


def test_snapshot_without_a_response_ends_no_job(squeue: Path) -> None:
    (squeue.parent / "bin" / "squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    with queue_snapshot(["17"]):
        assert job_state("17") is None


QUEUE_OF_A_SITE = """#!/bin/sh
# Lists a task of a job array, part of a heterogeneous job, and a job of a hidden partition, as squeue does.
[ -z "$SQUEUE_STATES" ] || exit 0
case $* in
  *%A*) echo '21|RUNNING'; echo '22|RUNNING'; case $* in *--all*) echo '23|PENDING' ;; esac ;;
  *) echo '20_1|RUNNING'; echo '20+2|RUNNING' ;;
esac
"""


def test_tasks_of_arrays_and_jobs_in_hidden_partitions_are_found(squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (squeue.parent / "bin" / "squeue").write_text(QUEUE_OF_A_SITE)
    monkeypatch.setenv("SQUEUE_STATES", "SUSPENDED")
    with queue_snapshot(["21", "22", "23", "24"]):
        assert [job_state(job) for job in ("21", "22", "23", "24")] == ["running", "running", "pending", ""]


def test_snapshot_of_nothing_makes_no_query(squeue: Path) -> None:
    with queue_snapshot([]):
        assert not squeue.exists()


def test_id_that_slurm_never_gives_is_that_of_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featgan.system.slurm.run_slurm_command", lambda *command: pytest.fail("squeue is called"))
    assert [job_state(job) for job in ("\0", "--help", "17;18", "", "a" * 10**6)] == [""] * 5
