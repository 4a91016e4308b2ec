"""What status says of a job, with the queue's word and without: from the files that the job left."""

import json
from pathlib import Path

import pytest

from launch.jobs import ENDED
from launch.status import queue, settled_state

CARD = {"id": "17", "cluster": {"executor": "slurm"}}


def use_squeue(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "bin" / "squeue"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


def test_the_queue_is_asked_for_our_jobs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_squeue(tmp_path, "echo '17|RUNNING|n[1-2]'; echo '18|PENDING|(Resources)'", monkeypatch)
    assert queue(["17", "19"]) == {"17": ("running", "n[1-2]")}


def test_a_queue_that_does_not_answer_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_squeue(tmp_path, "exit 1", monkeypatch)
    assert queue(["17"]) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queue(["17"]) is None


@pytest.mark.parametrize(
    ("left", "answered", "state"),
    [
        ((), True, "cancelled"),
        ((), False, "not started"),
        (("17_0_log.out",), True, "cancelled or lost"),
        (("17_0_log.out",), False, "running or lost"),
        (("17_0_log.out", ENDED), False, "cancelled"),
        (("17_0_log.out", "attempts.jsonl"), True, "failed or cancelled"),
        (("17_0_log.out", "attempts.jsonl", "17_0_result.pkl"), True, "done"),
        (("17_0_log.out", "attempts.jsonl", "verdict.txt"), True, "given up"),
    ],
)
def test_files_tell_what_became_of_a_job(tmp_path: Path, left: tuple[str, ...], answered: bool, state: str) -> None:
    for name in left:
        (tmp_path / name).write_text(json.dumps({}))
    assert settled_state(tmp_path, CARD, answered) == state
    local = settled_state(tmp_path, CARD | {"cluster": {"executor": "local"}}, answered)
    assert local == settled_state(tmp_path, CARD, answered=False), "a queue knows nothing of jobs without it"
