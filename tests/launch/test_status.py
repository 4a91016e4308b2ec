"""The state of a job, from the SLURM queue or from the files in its folder."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from featgan.errors import UserError
from featgan.system.console import PlainConsole
from launch.attempts import EXIT_REQUEUE, EXIT_USER_ERROR, record_exit
from launch.job_folder import DONE_FILE, make_job_folder, write_job_info
from launch.status import (
    QueueEntry,
    find_job_folders,
    finished_state,
    print_status,
    query_queue,
    status_lines,
    status_table,
)

JOB_INFO = {"id": "17", "cluster": {"executor": "slurm"}}


def use_fake_squeue(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "bin" / "squeue"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


def test_queue_entries_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_squeue(tmp_path, "echo '17|RUNNING|9:30|n[1-2]'; echo '18|PENDING|1:00|(Resources)'", monkeypatch)
    queue = {"17": QueueEntry("running", "n[1-2]", "9:30"), "18": QueueEntry("pending", "(Resources)", "1:00")}
    assert query_queue() == queue


def test_queue_is_none_if_slurm_does_not_respond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_squeue(tmp_path, "exit 1", monkeypatch)
    assert query_queue() is None
    use_fake_squeue(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr("featgan.system.slurm.COMMAND_TIMEOUT", 0.2)
    assert query_queue() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert query_queue() is None


def test_status_without_a_response_of_slurm_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_job_info(make_job_folder(tmp_path / "run" / "jobs", "train"), JOB_INFO | {"kind": "train"})
    for script, num_warnings in (("exit 0", 0), ("exit 1", 1)):
        use_fake_squeue(tmp_path, script, monkeypatch)
        print_status([tmp_path / "run"])
        assert caplog.text.count("squeue fails or does not respond") == num_warnings
    assert "not started" in capsys.readouterr().out


def test_progress_is_shown_for_the_latest_training_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_squeue(tmp_path, "echo '18|RUNNING|9:30|n1'", monkeypatch)
    for name, number in (("001-train", "17"), ("002-train", "18"), ("003-evaluate", "19")):
        folder = tmp_path / "run" / "jobs" / name
        folder.mkdir(parents=True)
        write_job_info(folder, JOB_INFO | {"id": number, "kind": name[4:]})
    (tmp_path / "run" / "jobs" / "001-train" / "attempts.jsonl").write_text('{"code": 1, "step": 40}\n')
    (tmp_path / "run" / "config.yaml").write_text("training: {steps: 200, batch_size: 8}\n")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 120, "speed/images_per_second": 2.0}\n')
    columns = [list(column.cells) for column in status_table(tmp_path / "run", query_queue()).columns]
    rows = list(zip(*columns, strict=True))
    assert rows[0][4:8] == ("", "40", "", "")
    assert rows[1][2:8] == ("running", "n1", "9:30", "120 of 200", "2", "0:05 h")
    assert rows[2][4:8] == ("", "", "", "")


@pytest.mark.parametrize(
    ("files", "has_queue", "state"),
    [
        ((), True, "canceled"),
        ((), False, "not started"),
        (("17_0_log.out",), True, "canceled, timed out or lost"),
        (("17_0_log.out",), False, "running or lost"),
        (("17_0_log.out", "attempts.jsonl"), True, "failed or canceled"),
        (("17_0_log.out", "attempts.jsonl", "17_0_result.pkl"), True, "done"),
        ((DONE_FILE,), True, "done"),
        (("17_0_log.out", "attempts.jsonl", "verdict.txt"), True, "not restarted"),
    ],
)
def test_state_follows_from_the_files_of_a_job(
    tmp_path: Path, files: tuple[str, ...], has_queue: bool, state: str
) -> None:
    for name in files:
        (tmp_path / name).write_text(json.dumps({}))
    assert finished_state(tmp_path, JOB_INFO, has_queue) == state
    local = finished_state(tmp_path, {"id": str(os.getpid()), "cluster": {"executor": "local"}}, has_queue)
    without_queue = finished_state(tmp_path, JOB_INFO | {"id": str(os.getpid())}, has_queue=False)
    assert local == without_queue or "result" in str(files), "a local job is never in the queue"


def test_private_job_folders_of_another_user_are_one_line() -> None:
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        for path in (run.parent, run, run / "jobs"):
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
        folder = make_job_folder(run / "jobs", "train")
        write_job_info(folder, JOB_INFO)
        assert find_job_folders(run) == [folder]
        user = os.geteuid()
        folder.chmod(0o700 if user == 0 else 0)
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(UserError, match="belongs to another user, and job folders are private"):
                find_job_folders(run)
        finally:
            os.seteuid(user)
            folder.chmod(0o700)


def test_local_job_runs_while_its_process_is_alive(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / "17_0_log.out").write_text("")
    for number, state in ((os.getpid(), "running or lost"), (process.pid, "failed or lost")):
        assert finished_state(tmp_path, {"id": str(number), "cluster": {"executor": "local"}}, True) == state


@pytest.mark.parametrize(("code", "state"), [(EXIT_REQUEUE, "canceled"), (EXIT_USER_ERROR, "failed")])
def test_state_follows_from_the_exit_code(tmp_path: Path, code: int, state: str) -> None:
    record_exit(tmp_path, "0", code)
    assert finished_state(tmp_path, {"id": "1", "cluster": {"executor": "local"}}, False) == state


def test_status_fits_80_columns_in_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_squeue(tmp_path, "echo '4712|RUNNING|1-22:10:05|gpu[001-004]'", monkeypatch)
    run = tmp_path / "run"
    for name, number in (("001-train", "4711"), ("002-train", "4712"), ("003-evaluate", "4713")):
        folder = run / "jobs" / name
        folder.mkdir(parents=True)
        write_job_info(folder, JOB_INFO | {"id": number, "kind": name[4:]})
        (folder / f"{number}_0_log.err").write_text("")
    (run / "jobs" / "001-train" / "verdict.txt").write_text("001-train: not restarted: failed 3 times at step 40\n")
    (run / "config.yaml").write_text("training: {steps: 1000000, batch_size: 2048}\n")
    (run / "metrics.jsonl").write_text('{"step": 120000, "speed/images_per_second": 20480.0}\n')
    console = PlainConsole(width=80, record=True)
    console.print(status_table(run, query_queue()))
    output = console.export_text()
    assert max(map(len, output.splitlines())) <= 80
    for text in ("001-train", "4712", "running", "restarted", "canceled", "1-22:10:05", "1000000", "24:26 h"):
        assert text in output, output
    assert "log of 002-train: jobs/002-train/4712_0_log.err" in status_lines(run)
    assert "001-train: not restarted: failed 3 times at step 40" in status_lines(run)
