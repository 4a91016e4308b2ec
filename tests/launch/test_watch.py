"""Scheduled evaluation: each checkpoint once, whoever looks; crashes are retried and shown; the leaderboard tells."""

import csv
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from featgan.config import Config, to_yaml, validate
from featgan.errors import UserError
from featgan.schedule import MANIFEST, MOST_ATTEMPTS, evaluation_path
from launch import claims, watch
from launch.claims import Claim


def make_run(folder: Path, steps: tuple[int, ...] = (100, 200)) -> Path:
    """A run's folder with committed checkpoints, due every 100 steps."""
    for step in steps:
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / MANIFEST).write_text("{}")
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
    assert page.count("<polyline") == 2 and "http" not in page


def race(folder: str, results: Any, start: Any, end: Any) -> None:
    start.wait()
    results.put(sum(Claim(Path(folder), step, "quick").take() for step in range(200)))
    end.wait()  # the claims of a process that has ended are stale


def test_looks_at_once_never_share_a_checkpoint(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results, start, end = context.Queue(), context.Event(), context.Event()
    processes = [context.Process(target=race, args=(str(tmp_path), results, start, end)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    assert sum(results.get(timeout=60) for _ in processes) == 200
    end.set()
    for process in processes:
        process.join()
    assert {path.suffix for path in (tmp_path / "evaluations").iterdir()} == {".claim"}


def test_a_claim_holds_while_its_owner_lives_and_not_longer(tmp_path: Path) -> None:
    claim = Claim(tmp_path, 100, "quick")
    assert claim.take() and not claim.take()
    holder = json.loads(claim.path.read_text())
    dead = subprocess.Popen(["true"])
    dead.wait()
    claim.path.write_text(json.dumps(holder | {"pid": dead.pid}))
    assert claim.take(), "its process is gone"
    assert claim.attempts() == 1
    claim.path.write_text("")
    assert claim.take(), "what cannot be read is nobody's"
    claim.path.write_text(json.dumps(holder | {"host": "elsewhere", "pid": dead.pid}))
    assert not claim.take(), "another machine's process cannot be seen"


def test_a_claim_that_another_has_just_taken_over_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claim(tmp_path, 100, "quick")
    assert claim.take()
    alive = claim.path.read_text()
    dead = json.dumps(json.loads(alive) | {"pid": 2**22 + 1})
    claim.path.write_text(dead)
    looks = iter([json.loads(dead)])  # what it held when we looked; since then another has cleared and claimed it
    monkeypatch.setattr(claims, "read", lambda path: next(looks, None) or json.loads(path.read_text()))
    claim.path.write_text(alive)
    assert not claim.clear_stale()
    assert claim.path.read_text() == alive


def test_a_claim_of_a_job_holds_while_the_queue_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\n[ "$3" = 17 ] && echo "17 running"\nexit 0\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert claims.job_is_alive("17") and not claims.job_is_alive("18")
    away = tmp_path / "away"
    away.mkdir()
    (away / "squeue").write_text('#!/bin/sh\necho "Unable to contact slurm controller" >&2\nexit 1\n')
    (away / "squeue").chmod(0o755)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PATH", f"{away}:/usr/bin:/bin")
        assert claims.job_is_alive("18"), "no answer is no word about the job"
    claim = Claim(tmp_path, 100, "quick")
    assert claim.take()
    claim.pass_to("17")
    assert not claim.take()
    claim.pass_to("18")
    assert claim.take()


def test_a_crash_is_tried_again_three_times_and_then_shown_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "a", (100,))
    # No model lies in the checkpoint, so every evaluation breaks; one is killed before it can say so.
    for look in range(MOST_ATTEMPTS):
        assert watch.tick(tmp_path, watch.evaluate_here) == 1, look
    assert watch.tick(tmp_path, watch.evaluate_here) == 0
    claim = Claim(tmp_path / "a", 100, "quick")
    assert claim.attempts() == MOST_ATTEMPTS and not claim.result.exists() and not claim.path.exists()
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
    holder = json.loads(claim.path.read_text())
    claim.path.write_text(json.dumps(holder | {"pid": 2**22 + 1}))
    claim.result.write_text("{}")
    assert not claim.take()
    assert not claim.path.exists() and claim.attempts() == 0


def test_broken_runs_do_not_stop_the_others(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (make_run(tmp_path / "b") / "config.yaml").write_text("nonsense: 1\n")
    assert watch.tick(tmp_path, finish) == 2


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
