"""The watch: each checkpoint is evaluated once, and failures are retried and shown."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from featgan.config.loading import parse_config, to_yaml
from featgan.config.schema import Config, EvaluationConfig
from featgan.errors import UserError
from featgan.run.checkpoint import newest_step
from featgan.run.evaluation_claims import EvaluationClaim, claim_checkpoint, claim_interactively
from featgan.run.evaluation_options import EvaluationOptions
from featgan.run.evaluation_schedule import MAX_ATTEMPTS, protected_steps, with_default_classifiers
from featgan.run.paths import CHECKPOINT_MANIFEST, evaluation_path
from featgan.system.file_lease import LeaseOwner, serialize_owner
from launch import __main__ as launcher
from launch import watch
from launch.cluster import load_cluster
from launch.job_folder import write_job_info
from launch.jobs import EvaluateJob
from launch.status import status_lines


def make_run(folder: Path, steps: tuple[int, ...] = (100, 200)) -> Path:
    """Create a run folder with committed checkpoints, due every 100 steps."""
    for step in steps:
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / CHECKPOINT_MANIFEST).write_text('{"files": {}}')
    config = parse_config({"run_dir": str(folder), "evaluation": {"every": 100}}, "test")
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def write_evaluation(claim: EvaluationClaim, value: float = 0.5) -> None:
    """Write a result and release the claim, as an evaluation does."""
    document = {"metrics": {"ccc": {"value": value + claim.step / 1000}, "frechet_distance": {"value": None}}}
    claim.result_path.write_text(json.dumps(document))
    claim.release()


def test_due_checkpoints_are_evaluated_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", (100, 150))
    (tmp_path / "not a run").mkdir()
    assert watch.poll_once(tmp_path, write_evaluation) == 4
    assert watch.poll_once(tmp_path, write_evaluation) == 0
    rows = list(csv.DictReader((tmp_path / "leaderboard.csv").open()))
    assert [(row["run"], row["step"], row["state"]) for row in rows] == [
        ("a", "100", "done"), ("a", "200", "best"), ("b", "100", "done"), ("b", "150", "best")
    ]  # fmt: skip
    evaluation_path(tmp_path / "a", 200, "standard").write_text('{"metrics": {"ccc": {"value": 0.9}}}')
    watch.poll_once(tmp_path, write_evaluation)
    rows = list(csv.DictReader((tmp_path / "leaderboard.csv").open()))
    assert [(row["step"], row["suite"], row["state"]) for row in rows if row["run"] == "a"] == [
        ("100", "quick", "done"), ("200", "quick", "best"), ("200", "standard", "done")
    ]  # fmt: skip
    assert list(rows[0]) == ["run", "step", "suite", "state", "ccc"], "metrics without any value are left out"
    page = (tmp_path / "leaderboard.html").read_text()
    assert "concordance (CCC)" in page and "higher is better" in page
    assert page.count("<polyline") == page.count("<circle") == 2 and "http" not in page


def test_claim_has_one_owner_at_a_time(tmp_path: Path) -> None:
    first, second = EvaluationClaim(tmp_path, 100, "quick"), EvaluationClaim(tmp_path, 100, "quick")
    assert first.acquire() and not second.acquire()
    first.release()
    assert second.acquire() and EvaluationClaim(tmp_path, 100, "standard").acquire(), "suites are independent"


def test_claim_of_a_dead_process_is_taken_over_and_counted_as_a_failure(tmp_path: Path) -> None:
    claim = EvaluationClaim(tmp_path, 100, "quick")
    assert claim.acquire()
    claim.lease.path.write_bytes(serialize_owner(replace(LeaseOwner.current_process(claim.token), started="1")))
    assert EvaluationClaim(tmp_path, 100, "quick").acquire() and claim.num_failures() == 1
    assert not claim.take_over(), "the job that was submitted with the claim has lost it"


def test_released_claim_is_not_transferred(tmp_path: Path) -> None:
    claim = EvaluationClaim(tmp_path, 100, "quick")
    assert claim.acquire() and claim.take_over()
    claim.release()  # the job was faster than the watch that submitted it
    claim.transfer_to_job("17")
    claim.transfer_to_process(1)
    assert not claim.lease.path.exists()


def test_job_that_has_lost_its_claim_does_not_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "featgan.evaluation.evaluate.evaluate_run", lambda *arguments, **options: pytest.fail("evaluated twice")
    )
    lost, held = EvaluationClaim(tmp_path, 100, "quick"), EvaluationClaim(tmp_path, 100, "quick")
    assert held.acquire()
    EvaluateJob(str(tmp_path), 100, "quick", token=lost.token, scheduled=True).execute()
    assert (
        "has since been claimed by another process" in capsys.readouterr().err and held.lease.read_owner() is not None
    )


def test_claim_of_a_local_job_is_transferred_to_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeping = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(launcher, "submit_or_print", lambda *arguments, **options: str(sleeping.pid))
    claim = EvaluationClaim(make_run(tmp_path / "a"), 100, "quick")
    assert claim.acquire()
    launcher.submit_evaluation(load_cluster("local", {}), claim)
    assert not EvaluationClaim(claim.run, 100, "quick").acquire(), "its process is alive"
    sleeping.kill()
    sleeping.wait()
    assert EvaluationClaim(claim.run, 100, "quick").acquire()


def test_evaluators_default_to_those_of_the_configuration(tmp_path: Path) -> None:
    evaluation = {"classifiers": ["classifiers/a"], "factor_probe": "classifiers/probe"}
    config = parse_config({"run_dir": str(tmp_path), "evaluation": evaluation}, "test")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    defaults = EvaluationOptions(("classifiers/a",), "classifiers/probe", None)
    assert with_default_classifiers(tmp_path, EvaluationOptions()) == defaults
    options = EvaluationOptions(("other",), max_pairs=9)
    assert with_default_classifiers(tmp_path, options) == EvaluationOptions(
        ("other",), "classifiers/probe", max_pairs=9
    )


def test_checkpoint_of_an_interactive_evaluation_is_kept_and_claimed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", (100, 200, 300))
    with claim_checkpoint(run, 100, "full"):
        assert 100 in protected_steps(run, EvaluationConfig())
        with pytest.raises(UserError, match=rf"step 100 \(full\) is already being evaluated by process {os.getpid()}"):
            claim_interactively(run, 100, "full")
    assert 100 not in protected_steps(run, EvaluationConfig())
    assert newest_step(run) == 300
    (run / "checkpoints" / "step-00000300" / CHECKPOINT_MANIFEST).write_text("corrupted")
    assert newest_step(run) == 200
    with claim_checkpoint(run, 200, "quick"):
        assert not EvaluationClaim(run, 200, "quick").acquire() and EvaluationClaim(run, 300, "quick").acquire()
    with claim_checkpoint(tmp_path / "nowhere", 100, "quick"):
        assert not (tmp_path / "nowhere").exists()


def test_best_checkpoint_is_evaluated_with_the_best_suite(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", (100, 200))
    config = parse_config({"run_dir": str(run), "evaluation": {"every": 100, "best_suite": "full"}}, "test")
    (run / "config.yaml").write_text(to_yaml(config))
    assert watch.poll_once(tmp_path, write_evaluation) == 2
    assert watch.poll_once(tmp_path, write_evaluation) == 1 and evaluation_path(run, 200, "full").exists()
    assert watch.poll_once(tmp_path, write_evaluation) == 0


@pytest.mark.slow
def test_failed_evaluation_is_retried_and_then_shown_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a", (100,))
    # The checkpoint contains no model, so every evaluation fails.
    for attempt in range(MAX_ATTEMPTS):
        assert watch.poll_once(tmp_path, watch.evaluate_in_subprocess) == 1, attempt
    assert watch.poll_once(tmp_path, watch.evaluate_in_subprocess) == 0
    claim = EvaluationClaim(tmp_path / "a", 100, "quick")
    assert claim.num_failures() == MAX_ATTEMPTS and not claim.result_path.exists() and not claim.lease.path.exists()
    assert ",failed" in (tmp_path / "leaderboard.csv").read_text()
    assert "no result" not in (tmp_path / "leaderboard.html").read_text()


def test_process_that_the_watch_starts_prints_its_messages(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    command = [sys.executable, "-m", "launch.claimed_evaluation", str(run), "100", "quick", "token", str(os.getpid())]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr.startswith("warning: ") and "has since been claimed" in result.stderr


def test_rejected_submission_does_not_stop_the_check(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")

    def reject(claim: EvaluationClaim) -> None:
        claim.release()
        raise UserError("the queue is full")

    assert watch.poll_once(tmp_path, reject) == 4
    assert watch.poll_once(tmp_path, write_evaluation) == 4, "every checkpoint is still due"


def test_dead_claim_with_a_result_is_released_without_a_failure(tmp_path: Path) -> None:
    claim = EvaluationClaim(make_run(tmp_path / "a"), 100, "quick")
    assert claim.acquire()
    claim.lease.path.write_bytes(serialize_owner(replace(LeaseOwner.current_process(), started="1")))
    claim.result_path.write_text("{}")
    assert not claim.acquire()
    assert not claim.lease.path.exists() and claim.num_failures() == 0


def test_invalid_runs_do_not_stop_the_check(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (make_run(tmp_path / "b") / "config.yaml").write_text("unknown: 1\n")
    (make_run(tmp_path / "0") / "evaluations").write_text("a file instead of a folder")
    (make_run(tmp_path / "1") / "config.yaml").unlink()
    (tmp_path / "1" / "config.yaml").mkdir()
    assert watch.poll_once(tmp_path, write_evaluation) == 2
    assert (tmp_path / "leaderboard.csv").read_text().count("\na,") == 2


def test_unreadable_run_has_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")

    def fail_for_run_b(run: Path, config: Config) -> dict[str, object]:
        if run.name == "b":
            raise PermissionError(run)
        return {"points": "", "label": "concordance (CCC)"}

    monkeypatch.setattr("launch.leaderboard.metric_curve", fail_for_run_b)
    watch.poll_once(tmp_path, write_evaluation)
    page = (tmp_path / "leaderboard.html").read_text()
    assert "<strong>a</strong>" in page and "<strong>b</strong>" not in page


def test_dead_claim_of_a_suite_that_is_never_due_is_released(tmp_path: Path) -> None:
    claim = EvaluationClaim(make_run(tmp_path / "a", (100, 200)), 100, "full")
    assert claim.acquire() and 100 in protected_steps(claim.run, EvaluationConfig())
    watch.poll_once(tmp_path, write_evaluation)
    assert claim.lease.path.exists(), "this process is alive"
    claim.lease.path.write_bytes(serialize_owner(replace(LeaseOwner.current_process(), started="1")))
    watch.poll_once(tmp_path, write_evaluation)
    assert 100 not in protected_steps(claim.run, EvaluationConfig(selection_metric="target_progress"))


def use_fake_squeue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a squeue with an empty queue on the PATH: every job has ended."""
    script = folder / "bin" / "squeue"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")


def test_pending_evaluation_that_is_canceled_is_not_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_squeue(tmp_path, monkeypatch)
    run = make_run(tmp_path / "runs" / "a", (100,))
    for _ in range(MAX_ATTEMPTS + 1):
        assert watch.poll_once(run.parent, lambda claim: claim.transfer_to_job("17")) == 1, "submitted again"
    claim = EvaluationClaim(run, 100, "quick")
    assert claim.num_failures() == 0 and claim.release_if_dead()
    assert claim.num_failures() == 0, "also without the watch"


@pytest.mark.parametrize(
    ("files", "failures"),
    [
        ({}, 0),
        ({"17_0_log.out": ""}, 1),
        ({"17_0_log.out": "", "state-0": "running"}, 1),
        ({"17_0_log.out": "", "state-0": "75"}, 0),
        ({"17_0_log.out": "", "state-0": "75", "verdict.txt": "interrupted 10 times"}, 1),
    ],
)
def test_ended_evaluation_job_is_a_failure_if_it_failed_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], failures: int
) -> None:
    use_fake_squeue(tmp_path, monkeypatch)
    claim = EvaluationClaim(make_run(tmp_path / "runs" / "a", (100,)), 100, "quick")
    folder = claim.run / "jobs" / "001-evaluate"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    assert claim.acquire()
    claim.transfer_to_job("17")
    watch.release_dead_claims(claim.run)
    assert claim.num_failures() == failures and not claim.lease.path.exists()


def test_last_failure_names_the_command_that_repeats_the_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    claim = EvaluationClaim(make_run(tmp_path / "a b", (100,)), 100, "quick")
    claim.record_failure("no memory")
    assert not caplog.messages
    for _ in range(MAX_ATTEMPTS - 1):
        claim.record_failure("no memory")
    command = f"python -m launch evaluate '{claim.run}' --step 100 --suite quick"
    assert command in caplog.text and len(caplog.messages) == 1
    (claim.run / "jobs" / "001-evaluate").mkdir(parents=True)
    write_job_info(claim.run / "jobs" / "001-evaluate", {"id": "17", "kind": "evaluate"})
    assert any(command in line for line in status_lines(claim.run))


def test_success_of_an_interactive_evaluation_clears_the_failures(tmp_path: Path) -> None:
    claim = EvaluationClaim(make_run(tmp_path / "a", (100,)), 100, "quick")
    for _ in range(MAX_ATTEMPTS):
        claim.record_failure("failed")
    with claim_checkpoint(claim.run, 100, "quick"):
        claim.result_path.write_text(json.dumps({"metrics": {}}))
    watch.poll_once(tmp_path, write_evaluation)
    assert [row["state"] for row in csv.DictReader((tmp_path / "leaderboard.csv").open())] == ["done"]


def test_job_waits_for_a_watch_that_evaluates_the_same_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = EvaluationClaim(make_run(tmp_path / "a", (100,)), 100, "standard")
    assert claim.acquire()
    monkeypatch.setattr("launch.jobs.time.sleep", lambda seconds: write_evaluation(claim))
    monkeypatch.setattr(
        "featgan.evaluation.evaluate.evaluate_run", lambda *arguments, **options: pytest.fail("evaluated twice")
    )
    EvaluateJob(str(claim.run)).execute()
    assert claim.result_path.exists() and not claim.lease.path.exists()


def test_evaluation_with_max_pairs_does_not_count_as_a_complete_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", (100,))
    (run / "evaluations").mkdir()
    evaluation_path(run, 100, "quick", 64).write_text('{"metrics": {"ccc": {"value": 0.9}}}')
    assert watch.poll_once(tmp_path, write_evaluation) == 1 and evaluation_path(run, 100, "quick").exists()


def test_label_runs_have_a_default_selection_metric() -> None:
    dataset = {"condition": {"kind": "valence_arousal"}}
    assert parse_config({"dataset": dataset}, "test").evaluation.selection_metric == "valence_ccc"
    assert (
        parse_config(
            {"dataset": dataset, "evaluation": {"selection_metric": "reconstruction_ssim"}}, "test"
        ).evaluation.selection_metric
        == "reconstruction_ssim"
    )
    assert parse_config({}, "test").evaluation.selection_metric == "ccc"


def test_run_names_are_escaped_in_the_page(tmp_path: Path) -> None:
    make_run(tmp_path / "<script>alert(1)")
    watch.poll_once(tmp_path, write_evaluation)
    assert "<script>alert" not in (tmp_path / "leaderboard.html").read_text()


def test_number_of_evaluations_is_limited_and_the_newest_come_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", (100, 200, 300))
    assert watch.poll_once(tmp_path, write_evaluation, max_evaluations=1) == 1
    assert evaluation_path(run, 300, "quick").exists() and not evaluation_path(run, 100, "quick").exists()


def test_launcher_does_not_import_torch() -> None:
    code = "import sys, launch.__main__, launch.submit, launch.watch, launch.status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert Config().evaluation.every == 0 and os.name == "posix"
