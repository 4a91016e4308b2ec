"""Scheduled evaluation: each checkpoint once, whoever looks; crashes are retried and shown; the leaderboard tells."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from featgan.config.loading import to_yaml, validate
from featgan.config.schema import Config, EvaluationConfig
from featgan.errors import UserError
from featgan.run.checkpoint import newest_step
from featgan.run.evaluation_claims import Claim, claimed, take_by_hand
from featgan.run.paths import MANIFEST, evaluation_path
from featgan.run.schedule import MOST_ATTEMPTS, protected_steps, with_judges
from featgan.system.file_lease import Holder, compose
from launch import __main__ as launcher
from launch import watch
from launch.cluster import load_cluster
from launch.jobs import EvaluateJob


def make_run(folder: Path, steps: tuple[int, ...] = (100, 200)) -> Path:
    """A run's folder with committed checkpoints, due every 100 steps."""
    for step in steps:
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / MANIFEST).write_text('{"files": {}}')
    config = validate({"run": str(folder), "evaluation": {"every": 100}}, "test")
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def finish(claim: Claim, value: float = 0.5) -> None:
    """As an evaluation does."""
    document = {"measures": {"ccc": {"value": value + claim.step / 1000}, "frechet_edited": {"value": None}}}
    claim.result.write_text(json.dumps(document))
    claim.give_back()


def test_a_look_evaluates_what_is_due_and_the_next_finds_nothing(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", (100, 150))
    (tmp_path / "no run").mkdir()
    assert watch.tick(tmp_path, finish) == 4
    assert watch.tick(tmp_path, finish) == 0
    rows = list(csv.DictReader((tmp_path / "leaderboard.csv").open()))
    assert [(row["run"], row["step"], row["state"]) for row in rows] == [
        ("a", "100", "done"), ("a", "200", "best"), ("b", "100", "done"), ("b", "150", "best")
    ]  # fmt: skip
    evaluation_path(tmp_path / "a", 200, "standard").write_text('{"measures": {"ccc": {"value": 0.9}}}')
    watch.tick(tmp_path, finish)
    rows = list(csv.DictReader((tmp_path / "leaderboard.csv").open()))
    assert [(row["step"], row["suite"], row["state"]) for row in rows if row["run"] == "a"] == [
        ("100", "quick", "done"), ("200", "quick", "best"), ("200", "standard", "done")
    ]  # fmt: skip
    assert list(rows[0]) == ["run", "step", "suite", "state", "ccc"], "measures that nobody has are left out"
    page = (tmp_path / "leaderboard.html").read_text()
    assert page.count("<polyline") == page.count("<circle") == 2 and "http" not in page


def test_a_claim_is_one_evaluators_at_a_time(tmp_path: Path) -> None:
    first, second = Claim(tmp_path, 100, "quick"), Claim(tmp_path, 100, "quick")
    assert first.take() and not second.take()
    first.give_back()
    assert second.take() and Claim(tmp_path, 100, "standard").take(), "each suite is apart"


def test_a_claim_of_what_is_gone_is_taken_over_and_counted(tmp_path: Path) -> None:
    claim = Claim(tmp_path, 100, "quick")
    assert claim.take()
    claim.hold.path.write_bytes(compose(replace(Holder.here(claim.token), started="1")))
    assert Claim(tmp_path, 100, "quick").take() and claim.attempts() == 1
    assert not claim.adopt(), "the job that was submitted with it finds that it is another's"


def test_a_claim_of_a_finished_job_is_not_made_again(tmp_path: Path) -> None:
    claim = Claim(tmp_path, 100, "quick")
    assert claim.take() and claim.adopt()
    claim.give_back()  # the job was faster than the watch that submitted it
    claim.pass_to_job("17")
    claim.pass_to_process(1)
    assert not claim.hold.path.exists()


def test_an_evaluation_whose_claim_is_anothers_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "featgan.evaluation.evaluate.evaluate_run", lambda *arguments, **options: pytest.fail("evaluated twice")
    )
    lost, held = Claim(tmp_path, 100, "quick"), Claim(tmp_path, 100, "quick")
    assert held.take()
    EvaluateJob(str(tmp_path), 100, "quick", token=lost.token, scheduled=True).run()
    assert "is another's by now" in capsys.readouterr().err and held.hold.holder() is not None


def test_local_jobs_are_handed_over_as_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeping = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(launcher, "send", lambda *arguments, **options: str(sleeping.pid))
    claim = Claim(make_run(tmp_path / "a"), 100, "quick")
    assert claim.take()
    launcher.submit_evaluation(load_cluster("local", {}), claim)
    assert not Claim(claim.run, 100, "quick").take(), "it is alive, whatever a queue says"
    sleeping.kill()
    sleeping.wait()
    assert Claim(claim.run, 100, "quick").take()


def test_judges_are_those_of_the_run_unless_others_are_named(tmp_path: Path) -> None:
    evaluation = {"blackboxes": ["boxes/judge"], "probe": "boxes/probe"}
    config = validate({"run": str(tmp_path), "evaluation": evaluation}, "test")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert with_judges(tmp_path, {"probe": None, "blackboxes": ()}) == {
        "blackboxes": ("boxes/judge",), "probe": "boxes/probe", "witness": None
    }  # fmt: skip
    assert with_judges(tmp_path, {"blackboxes": ("mine",)})["blackboxes"] == ("mine",)


def test_what_a_person_evaluates_is_kept_and_left_alone_by_the_watch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", (100, 200, 300))
    with claimed(run, 100, "full"):
        assert 100 in protected_steps(run, EvaluationConfig())
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* evaluates step 100 \(full\) already"):
            take_by_hand(run, 100, "full")
    assert 100 not in protected_steps(run, EvaluationConfig())
    assert newest_step(run) == 300
    (run / "checkpoints" / "step-00000300" / MANIFEST).write_text("damaged")
    assert newest_step(run) == 200
    with claimed(run, 200, "quick"):
        assert not Claim(run, 200, "quick").take() and Claim(run, 300, "quick").take()
    with claimed(tmp_path / "nowhere", 100, "quick"):
        assert not (tmp_path / "nowhere").exists()


def test_the_best_so_far_is_evaluated_with_its_own_suite(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", (100, 200))
    config = validate({"run": str(run), "evaluation": {"every": 100, "best_suite": "full"}}, "test")
    (run / "config.yaml").write_text(to_yaml(config))
    assert watch.tick(tmp_path, finish) == 2
    assert watch.tick(tmp_path, finish) == 1 and evaluation_path(run, 200, "full").exists()
    assert watch.tick(tmp_path, finish) == 0


@pytest.mark.slow
def test_a_crash_is_tried_again_three_times_and_then_shown_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "a", (100,))
    # No model lies in the checkpoint, so every evaluation breaks; one is killed before it can say so.
    for look in range(MOST_ATTEMPTS):
        assert watch.tick(tmp_path, watch.evaluate_here) == 1, look
    assert watch.tick(tmp_path, watch.evaluate_here) == 0
    claim = Claim(tmp_path / "a", 100, "quick")
    assert claim.attempts() == MOST_ATTEMPTS and not claim.result.exists() and not claim.hold.path.exists()
    assert ",failed" in (tmp_path / "leaderboard.csv").read_text()
    assert "no result" not in (tmp_path / "leaderboard.html").read_text()


def test_a_refused_submission_does_not_stop_the_look(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")

    def refuse(claim: Claim) -> None:
        claim.give_back()
        raise UserError("the queue is full")

    assert watch.tick(tmp_path, refuse) == 4
    assert watch.tick(tmp_path, finish) == 4, "nothing was lost by it"


def test_a_dead_claim_beside_a_result_is_cleared_and_no_failure(tmp_path: Path) -> None:
    claim = Claim(make_run(tmp_path / "a"), 100, "quick")
    assert claim.take()
    claim.hold.path.write_bytes(compose(replace(Holder.here(), started="1")))
    claim.result.write_text("{}")
    assert not claim.take()
    assert not claim.hold.path.exists() and claim.attempts() == 0


def test_broken_runs_do_not_stop_the_others(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (make_run(tmp_path / "b") / "config.yaml").write_text("nonsense: 1\n")
    (make_run(tmp_path / "0") / "evaluations").write_text("in the way")
    (make_run(tmp_path / "1") / "config.yaml").unlink()
    (tmp_path / "1" / "config.yaml").mkdir()
    assert watch.tick(tmp_path, finish) == 2
    assert (tmp_path / "leaderboard.csv").read_text().count("\na,") == 2


def test_a_run_that_cannot_be_read_has_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")

    def refuse(run: Path, config: Config) -> dict[str, object]:
        if run.name == "b":
            raise PermissionError(run)
        return {"points": "", "name": "ccc"}

    monkeypatch.setattr("launch.leaderboard.curve", refuse)
    watch.tick(tmp_path, finish)
    page = (tmp_path / "leaderboard.html").read_text()
    assert "<strong>a</strong>" in page and "<strong>b</strong>" not in page


def test_a_dead_claim_of_a_suite_that_is_never_due_lets_its_checkpoint_go(tmp_path: Path) -> None:
    claim = Claim(make_run(tmp_path / "a", (100, 200)), 100, "full")
    assert claim.take() and 100 in protected_steps(claim.run, EvaluationConfig())
    watch.tick(tmp_path, finish)
    assert claim.hold.path.exists(), "this process lives"
    claim.hold.path.write_bytes(compose(replace(Holder.here(), started="1")))
    watch.tick(tmp_path, finish)
    assert 100 not in protected_steps(claim.run, EvaluationConfig(best="shift"))


def test_success_by_hand_ends_the_story_of_failures(tmp_path: Path) -> None:
    claim = Claim(make_run(tmp_path / "a", (100,)), 100, "quick")
    for _ in range(MOST_ATTEMPTS):
        claim.count_failure("broken")
    with claimed(claim.run, 100, "quick"):
        claim.result.write_text(json.dumps({"measures": {}}))
    watch.tick(tmp_path, finish)
    assert [row["state"] for row in csv.DictReader((tmp_path / "leaderboard.csv").open())] == ["done"]


def test_a_job_waits_for_the_watch_that_evaluates_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claim(make_run(tmp_path / "a", (100,)), 100, "standard")
    assert claim.take()
    monkeypatch.setattr("launch.jobs.time.sleep", lambda seconds: finish(claim))
    monkeypatch.setattr("featgan.evaluation.evaluate.evaluate_run", lambda *given, **options: pytest.fail("twice"))
    EvaluateJob(str(claim.run)).run()
    assert claim.result.exists() and not claim.hold.path.exists()


def test_an_evaluation_that_was_cut_short_does_not_stand_for_the_whole_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", (100,))
    (run / "evaluations").mkdir()
    evaluation_path(run, 100, "quick", 64).write_text('{"measures": {"ccc": {"value": 0.9}}}')
    assert watch.tick(tmp_path, finish) == 1 and evaluation_path(run, 100, "quick").exists()


def test_runs_on_labels_have_a_best_of_their_own() -> None:
    dataset = {"condition": {"kind": "valence_arousal"}}
    assert validate({"dataset": dataset}, "test").evaluation.best == "valence_ccc"
    assert validate({"dataset": dataset, "evaluation": {"best": "self_ssim"}}, "test").evaluation.best == "self_ssim"
    assert validate({}, "test").evaluation.best == "ccc"


def test_names_cannot_write_into_the_page(tmp_path: Path) -> None:
    make_run(tmp_path / "<script>alert(1)")
    watch.tick(tmp_path, finish)
    assert "<script>alert" not in (tmp_path / "leaderboard.html").read_text()


def test_at_most_so_many_and_the_newest_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", (100, 200, 300))
    assert watch.tick(tmp_path, finish, most=1) == 1
    assert evaluation_path(run, 300, "quick").exists() and not evaluation_path(run, 100, "quick").exists()


def test_the_command_line_starts_without_torch(tmp_path: Path) -> None:
    code = "import sys, launch.__main__, launch.submit, launch.watch, launch.status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert Config().evaluation.every == 0 and os.name == "posix"
