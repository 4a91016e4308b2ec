"""Damaged files of a run are skipped with one message: training continues, and other runs are not affected."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from featgan.cli.info import describe_path
from featgan.config.loading import parse_config, to_yaml
from featgan.errors import UserError
from featgan.run.checkpoint import newest_checkpoint, save_checkpoint
from featgan.run.evaluation_claims import EvaluationClaim
from featgan.run.evaluation_schedule import best_step, count_failures
from featgan.run.metrics_log import MetricsLog, append_metrics_line
from featgan.run.paths import checkpoint_steps, evaluated_steps, evaluation_path, step_folder
from featgan.system.os_errors import user_error_message
from featgan.training.train import train
from launch import watch
from launch.attempts import read_attempts, read_job_file, read_state
from launch.job_folder import read_job_info
from launch.leaderboard import collect_rows
from launch.status import read_progress, status_lines, status_table
from tests.conftest import World
from tests.helpers.limits import measure_call

DAMAGED_CONTENTS = {
    "nested": b'{"metrics":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not UTF-8": b'{"metrics": {"\xff": 1}}',
    "digits": b'{"metrics": {"ccc": {"value": ' + b"1" * 5000 + b"}}}",
    "truncated": b'{"metrics": {"ccc',
    "list": b"[1, 2]",
    "empty": b"",
    "binary": bytes(range(256)),
}

damaged_contents = pytest.mark.parametrize("content", DAMAGED_CONTENTS.values(), ids=DAMAGED_CONTENTS)


def make_run(folder: Path, steps: tuple[int, ...] = (100, 200)) -> Path:
    """Create a run folder with checkpoints, due every 100 steps."""
    for step in steps:
        save_checkpoint(folder, step, {}, {"state": {"step": step}}, 9)
    config = parse_config({"run_dir": str(folder), "evaluation": {"every": 100}}, "test")
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def write_result(claim: EvaluationClaim) -> None:
    """Write a result and release the claim, as an evaluation does."""
    claim.result_path.write_text(json.dumps({"metrics": {"ccc": {"value": 0.5}}}))
    claim.release()


def damage_side_files(run: Path, content: bytes, step: int) -> None:
    """Write the content to every file of a run that work can continue without."""
    (run / "evaluations").mkdir(exist_ok=True)
    (run / "jobs" / "001-train").mkdir(parents=True, exist_ok=True)
    for path in (
        evaluation_path(run, step, "quick"),
        evaluation_path(run, step, "quick").with_suffix(".failed"),
        run / "metrics.jsonl",
        run / "jobs" / "001-train" / "job.json",
        run / "jobs" / "001-train" / "attempts.jsonl",
        run / "jobs" / "001-train" / "verdict.txt",
    ):
        path.write_bytes(content)


@damaged_contents
def test_training_continues_with_damaged_side_files(
    content: bytes, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = world.make_config(tmp_path / "run", training={"steps": 2}, evaluation={"every": 1})
    train(config)
    damage_side_files(config.run_dir, content, 1)
    good_line = b'{"step": 1, "a": 1.0}\n'
    (config.run_dir / "metrics.jsonl").write_bytes(good_line + content + b"\n" + good_line.replace(b"1,", b"2,"))
    config = world.make_config(tmp_path / "run", training={"steps": 4}, evaluation={"every": 1})
    train(config)
    assert checkpoint_steps(config.run_dir)[-1] == 4
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[0]["a"] == 1.0
    reports = [record.getMessage() for record in caplog.records if "skipped: " in record.getMessage()]
    assert all("\n" not in report for report in reports)
    assert sum("evaluations/step-00000001-quick.json: skipped" in report for report in reports) == 1


@damaged_contents
def test_one_damaged_run_does_not_affect_the_others(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, intact = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    damage_side_files(damaged, content, 200)
    assert evaluated_steps(damaged, "quick") == []
    assert watch.poll_once(tmp_path, write_result) == 4, "the damaged result is written again"
    assert watch.poll_once(tmp_path, write_result) == 0
    rows = (tmp_path / "leaderboard.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["a", "100"], ["a", "200"], ["b", "100"], ["b", "200"]]
    assert best_step(damaged, parse_config({}, "test").evaluation) == 200
    reports = [message for message in caplog.messages if "step-00000200-quick.json: skipped" in message]
    assert len(reports) == 1
    assert count_failures(damaged, 200, "quick") == 0
    assert status_table(damaged, None).row_count == 1 and status_lines(damaged)
    assert read_job_info(damaged / "jobs" / "001-train") == {} == read_job_info(intact)
    assert read_attempts(damaged / "jobs" / "001-train") == []


@damaged_contents
def test_run_with_a_damaged_configuration_is_skipped_with_one_line(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    (tmp_path / "a" / "config.yaml").write_bytes(content)
    # An empty configuration has the default of every field, so that the newest checkpoint is due.
    assert watch.poll_once(tmp_path, write_result) == (2 if content else 3)
    assert read_progress(tmp_path / "a").steps is None
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert all("\n" not in warning for warning in warnings) and bool(warnings) == bool(content)


def test_unexpected_error_in_one_run_does_not_stop_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    release_dead_claims = watch.release_dead_claims

    def fail_for_the_first_run(run_dir: Path) -> None:
        if run_dir == runs[0]:
            raise RecursionError("first line\nsecond line")
        release_dead_claims(run_dir)

    monkeypatch.setattr(watch, "release_dead_claims", fail_for_the_first_run)
    assert watch.poll_once(tmp_path, write_result) == 2
    assert f"{runs[0]}: skipped: RecursionError: first line\\nsecond line" in caplog.messages


def test_failures_that_are_not_a_list_are_replaced(tmp_path: Path) -> None:
    claim = EvaluationClaim(make_run(tmp_path / "a"), 100, "quick")
    claim.failures_path.parent.mkdir()
    claim.failures_path.write_text('{"failures": 3}')
    assert claim.num_failures() == 0
    claim.record_failure("a reason")
    assert claim.num_failures() == 1


@pytest.mark.parametrize("content", [*DAMAGED_CONTENTS.values(), b'{"files": []}', b'{"files": {"a": 3}}'])
def test_damaged_checkpoint_manifest_falls_back_to_the_previous_checkpoint(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "a")
    (step_folder(run, 200) / "manifest.json").write_bytes(content)
    assert newest_checkpoint(run) == step_folder(run, 100)
    assert [f"{step_folder(run, 200)}: corrupted" in message for message in caplog.messages] == [True]


def test_good_lines_of_a_damaged_log_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\n{"step": 2, "a": "\xc3\xa9"}\r\n' + b"[" * 9999 + b'\n{"step": NaN}\n{"step"')
    MetricsLog(tmp_path, 5).close()
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2, "a": "\xc3\xa9"}\n'


def test_long_log_is_not_kept_in_memory(tmp_path: Path) -> None:
    lines = [f'{{"step": {step}, "name": "{step:0180d}"}}\n' for step in range(300_000)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join([*lines, *lines[:10], "[\n"]))
    setup = "from pathlib import Path\nfrom featgan.run.metrics_log import MetricsLog"
    measured = measure_call(setup, f"MetricsLog(Path({str(tmp_path)!r}), 299_000).close()")
    assert path.read_text() == "".join(lines[:299_001]) and measured.megabytes < 100, measured


def test_log_that_is_a_pipe_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="not a file"):
        MetricsLog(tmp_path, 0)


def test_damaged_result_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", (100,))
    path = evaluation_path(run, 100, "quick")
    path.parent.mkdir()
    path.write_bytes(b"{")
    contents = []

    def fail(claim: EvaluationClaim) -> None:
        contents.append(path.read_bytes())
        claim.record_failure("a reason")
        claim.release()

    assert watch.poll_once(tmp_path, fail) == 1
    assert contents == [b"{"] == [path.read_bytes()] and count_failures(run, 100, "quick") == 1
    assert watch.poll_once(tmp_path, write_result) == 1 and evaluated_steps(run, "quick") == [100]


def test_result_that_the_file_system_cannot_read_is_not_written_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", (100,))
    path = evaluation_path(run, 100, "quick")
    path.parent.mkdir()
    path.symlink_to(path)  # an error of the file system, as after a failure of its server
    assert evaluated_steps(run, "quick") == [100] and watch.poll_once(tmp_path, write_result) == 0


def test_job_files_that_are_pipes_or_huge_are_not_read_completely(tmp_path: Path) -> None:
    for name in ("attempts.jsonl", "job.json", "state-0"):
        os.mkfifo(tmp_path / name)
    assert read_attempts(tmp_path) == [] and read_job_file(tmp_path) == {} and read_state(tmp_path, "0") == ""
    (tmp_path / "attempts.jsonl").unlink()
    with (tmp_path / "attempts.jsonl").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file of 1 TiB
        file.seek(1 << 40)
        file.write(b'\n{"code": 1, "step": 3}\n')
    assert read_attempts(tmp_path) == [{"code": 1, "step": 3}]


def test_run_without_files_is_in_the_leaderboard_of_the_others(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    config = parse_config({}, "test")
    shutil.rmtree(runs[0])
    for run in runs:
        evaluation_path(run, 100, "quick").parent.mkdir(parents=True)
        evaluation_path(run, 100, "quick").write_text('{"metrics": {"ccc": {"value": 1e400}}}')
    assert [row.run for row in collect_rows([(run, config) for run in runs])] == ["a", "b"]


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "the memory of a process", "a link to itself"])
def test_log_that_is_not_a_regular_file_is_one_line_and_never_waits(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "metrics.jsonl"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to({"a device": "/dev/full", "the memory of a process": "/proc/self/mem"}.get(kind, path))
    with pytest.raises((UserError, OSError)) as caught:
        append_metrics_line(tmp_path, 1, {"a": 1.0})
    message = user_error_message(caught.value)
    assert message is not None and "metrics.jsonl" in message and "; " in message


@pytest.mark.parametrize(
    "content",
    [b"[]", b'{"files": 3}', b'{"files": {"a": 1}}', b"{}", b"\xff", b'{"files": {"%s": 1}}' % (b"a" * 5000)],
    ids=["list", "number", "entry", "empty", "not UTF-8", "long name"],
)
def test_checkpoint_with_a_damaged_manifest_is_described(world: World, tmp_path: Path, content: bytes) -> None:
    run = tmp_path / "run"
    train(world.make_config(run))
    (step_folder(run, 4) / "manifest.json").write_bytes(content)
    assert describe_path(step_folder(run, 4)).row_count > 5
    assert newest_checkpoint(run) == step_folder(run, 2)
