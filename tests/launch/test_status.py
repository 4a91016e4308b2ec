"""What status says of a job, with the queue's word and without: from the files that the job left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.jobs import AGAIN, ENDED, MISTAKE
from launch.snapshot import DONE, write_card
from launch.status import Place, queue, settled_state, status_table

CARD = {"id": "17", "cluster": {"executor": "slurm"}}


def use_squeue(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "bin" / "squeue"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


def test_the_queue_is_asked_for_our_jobs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_squeue(tmp_path, "echo '17|RUNNING|9:30|n[1-2]'; echo '18|PENDING|1:00|(Resources)'", monkeypatch)
    assert queue(["17", "19"]) == {"17": Place("running", "n[1-2]", "9:30")}


def test_a_queue_that_does_not_answer_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_squeue(tmp_path, "exit 1", monkeypatch)
    assert queue(["17"]) is None
    use_squeue(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr("featgan.system.slurm.SECONDS", 0.2)
    assert queue(["17"]) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queue(["17"]) is None


def test_figures_of_a_run_are_its_newest_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_squeue(tmp_path, "echo '18|RUNNING|9:30|n1'", monkeypatch)
    for name, number in (("001-train", "17"), ("002-train", "18"), ("003-evaluate", "19")):
        folder = tmp_path / "run" / "jobs" / name
        folder.mkdir(parents=True)
        write_card(folder, CARD | {"id": number, "kind": name[4:]})
    (tmp_path / "run" / "jobs" / "001-train" / "attempts.jsonl").write_text('{"code": 1, "step": 40}\n')
    (tmp_path / "run" / "config.yaml").write_text("training: {steps: 200, batch_size: 8}\n")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 120, "speed/images_per_second": 2.0}\n')
    columns = [list(column.cells) for column in status_table(tmp_path / "run").columns]
    rows = list(zip(*columns, strict=True))
    assert rows[0][4:8] == ("", "40", "", "")
    assert rows[1][2:8] == ("running", "n1", "9:30", "120 of 200", "2", "0:05 h")
    assert rows[2][4:8] == ("", "", "", "")


@pytest.mark.parametrize(
    ("left", "answered", "state"),
    [
        ((), True, "cancelled"),
        ((), False, "not started"),
        (("17_0_log.out",), True, "cancelled, out of time or lost"),
        (("17_0_log.out",), False, "running or lost"),
        (("17_0_log.out", "attempts.jsonl"), True, "failed or cancelled"),
        (("17_0_log.out", "attempts.jsonl", "17_0_result.pkl"), True, "done"),
        ((DONE,), True, "done"),
        (("17_0_log.out", "attempts.jsonl", "verdict.txt"), True, "given up"),
    ],
)
def test_files_tell_what_became_of_a_job(tmp_path: Path, left: tuple[str, ...], answered: bool, state: str) -> None:
    for name in left:
        (tmp_path / name).write_text(json.dumps({}))
    assert settled_state(tmp_path, CARD, answered) == state
    local = settled_state(tmp_path, {"id": str(os.getpid()), "cluster": {"executor": "local"}}, answered)
    alone = settled_state(tmp_path, CARD | {"id": str(os.getpid())}, answered=False)
    assert local == alone or "result" in str(left), "a queue knows nothing of jobs without it"


def test_a_local_job_is_its_process(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "17_0_log.out").write_text("")
    for number, state in ((os.getpid(), "running or lost"), (ended.pid, "failed or lost")):
        assert settled_state(tmp_path, {"id": str(number), "cluster": {"executor": "local"}}, True) == state


@pytest.mark.parametrize(("code", "state"), [(AGAIN, "cancelled"), (MISTAKE, "failed")])
def test_what_a_job_left_by_tells_what_became_of_it(tmp_path: Path, code: int, state: str) -> None:
    (tmp_path / ENDED).write_text(str(code))
    assert settled_state(tmp_path, {"id": "1", "cluster": {"executor": "local"}}, False) == state
