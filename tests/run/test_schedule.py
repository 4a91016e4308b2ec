"""Which checkpoints are evaluated, which is best, and which must be kept."""

import json
from pathlib import Path

import pytest
import torch

from featgan.config.loading import validate
from featgan.config.schema import RANKING, EvaluationConfig
from featgan.errors import UserError
from featgan.run.checkpoint import save_checkpoint
from featgan.run.paths import committed_steps, evaluation_path
from featgan.run.schedule import (
    best_step,
    due_evaluations,
    due_steps,
    protected_steps,
    scheduled_steps,
    warn_of_given_up,
)

UNDOCUMENTED = ("frechet_edited", "kid_edited", "diversity", "diversity_ratio")
"""Named by rule in docs/metrics.md, or not there yet."""

EVERY = EvaluationConfig(every=100)


def save(run: Path, step: int, config: EvaluationConfig, keep: int = 2) -> None:
    save_checkpoint(run, step, {"average": {"w": torch.zeros(1)}}, {}, keep, protected_steps(run, config))


def write_result(run: Path, step: int, **measures: float | None) -> None:
    path = evaluation_path(run, step, "quick")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"measures": {name: {"value": value} for name, value in measures.items()}}))


def test_multiples_and_the_newest_are_due_until_they_have_a_result(tmp_path: Path) -> None:
    assert scheduled_steps([50, 100, 150, 200, 250], EVERY) == [100, 200, 250]
    assert scheduled_steps([50, 100, 150], EvaluationConfig()) == [150]
    assert scheduled_steps([], EVERY) == []
    for step in (100, 150, 200):
        save(tmp_path, step, EVERY, keep=9)
    assert due_steps(tmp_path, EVERY) == [100, 200]
    write_result(tmp_path, 100, ccc=0.5)
    assert due_steps(tmp_path, EVERY) == [200]
    assert due_steps(tmp_path / "nothing", EVERY) == []


def test_retention_keeps_what_waits_what_is_claimed_and_what_is_best(tmp_path: Path) -> None:
    for step in range(50, 501, 50):
        save(tmp_path, step, EVERY)
    # 50, 150 ... are no part of the schedule: only the two newest checkpoints are kept apart from it.
    assert committed_steps(tmp_path) == [100, 200, 300, 400, 450, 500]
    write_result(tmp_path, 100, ccc=0.3)
    write_result(tmp_path, 200, ccc=0.9)
    write_result(tmp_path, 300, ccc=None)
    evaluation_path(tmp_path, 300, "quick").with_suffix(".claim").write_text("{}")
    save(tmp_path, 550, EVERY)
    assert committed_steps(tmp_path) == [200, 300, 400, 500, 550]
    failed = evaluation_path(tmp_path, 400, "quick").with_suffix(".failed")
    failed.write_text('{"failures": [{}, {}]}')
    save(tmp_path, 570, EVERY)
    assert 400 in committed_steps(tmp_path), "it will be tried again"
    failed.write_text('{"failures": [{}, {}, {}]}')
    save(tmp_path, 600, EVERY)
    assert committed_steps(tmp_path) == [200, 300, 500, 570, 600], "what failed is not waited for"


def test_waiting_checkpoints_do_not_fill_the_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = EvaluationConfig(every=100, most_waiting=4)
    for step in range(100, 1000, 100):
        save(tmp_path, step, config)
        if step < 400:
            warn_of_given_up(tmp_path, config, protected_steps(tmp_path, config))
    assert len(committed_steps(tmp_path)) <= 4 + 2
    assert capsys.readouterr().err == ""
    warn_of_given_up(tmp_path, config, protected_steps(tmp_path, config))
    said = " ".join(capsys.readouterr().err.split())
    assert "more than 4 checkpoints wait" in said and "(steps 500)" in said


def test_the_best_so_far_is_due_with_a_suite_of_its_own(tmp_path: Path) -> None:
    config = EvaluationConfig(every=100, best_suite="full")
    for step in (100, 200, 300):
        save(tmp_path, step, config, keep=9)
    assert due_evaluations(tmp_path, config) == [(300, "quick"), (200, "quick"), (100, "quick")]
    write_result(tmp_path, 100, ccc=0.9)
    write_result(tmp_path, 200, ccc=0.3)
    assert due_evaluations(tmp_path, config) == [(300, "quick"), (100, "full")]
    save(tmp_path, 400, config, keep=1)
    assert 100 in committed_steps(tmp_path), "kept for it"
    evaluation_path(tmp_path, 100, "full").write_text("{}")
    assert due_evaluations(tmp_path, config) == [(400, "quick"), (300, "quick")]


def test_a_measure_that_ranks_nothing_cannot_mark_the_best() -> None:
    with pytest.raises(UserError, match=r"evaluation.best: 'cccc' is no measure .* did you mean 'ccc'"):
        validate({"evaluation": {"best": "cccc"}}, "test")
    assert validate({"evaluation": {"best": "-second_self_l1"}}, "test").evaluation.best == "-second_self_l1"
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for name in RANKING:
        stem = name.removeprefix("arousal_").removeprefix("valence_")
        assert f"`{name}`" in documented or f"_{stem}`" in documented or name in UNDOCUMENTED, name


@pytest.mark.parametrize(("best", "expected"), [("ccc", 200), ("-frechet_edited", 100), ("r2", None)])
def test_the_best_is_the_largest_or_with_a_minus_the_smallest(tmp_path: Path, best: str, expected: int | None) -> None:
    write_result(tmp_path, 100, ccc=0.3, frechet_edited=1.0)
    write_result(tmp_path, 200, ccc=0.9, frechet_edited=2.0)
    evaluation_path(tmp_path, 300, "quick").write_text("damaged")
    evaluation_path(tmp_path, 400, "quick").write_text("[]")
    assert best_step(tmp_path, EvaluationConfig(best=best)) == expected
