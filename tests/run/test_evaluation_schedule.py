"""The evaluation schedule: which checkpoints are evaluated, which is the best, and which are kept."""

import json
from pathlib import Path

import pytest
import torch

from featgan.config.loading import parse_config
from featgan.config.metric_specs import SELECTION_METRICS
from featgan.config.schema import EvaluationConfig
from featgan.errors import UserError
from featgan.run.checkpoint import save_checkpoint
from featgan.run.evaluation_schedule import (
    best_step,
    due_evaluations,
    due_steps,
    protected_steps,
    scheduled_steps,
    warn_dropped_checkpoints,
)
from featgan.run.paths import checkpoint_steps, evaluation_path

EVERY_100_STEPS = EvaluationConfig(every=100)


def save_step(run: Path, step: int, config: EvaluationConfig, max_checkpoints: int = 2) -> None:
    """Save a small checkpoint and remove old ones."""
    tensors = {"generator_ema": {"w": torch.zeros(1)}}
    save_checkpoint(run, step, tensors, {}, max_checkpoints, protected_steps(run, config))


def write_result(run: Path, step: int, **metrics: float | None) -> None:
    """Write the result of a quick evaluation."""
    path = evaluation_path(run, step, "quick")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"metrics": {name: {"value": value} for name, value in metrics.items()}}))


def test_scheduled_and_newest_steps_are_due_until_they_have_a_result(tmp_path: Path) -> None:
    assert scheduled_steps([50, 100, 150, 200, 250], EVERY_100_STEPS) == [100, 200, 250]
    assert scheduled_steps([50, 100, 150], EvaluationConfig()) == [150]
    assert scheduled_steps([], EVERY_100_STEPS) == []
    for step in (100, 150, 200):
        save_step(tmp_path, step, EVERY_100_STEPS, max_checkpoints=9)
    assert due_steps(tmp_path, EVERY_100_STEPS) == [100, 200]
    write_result(tmp_path, 100, ccc=0.5)
    assert due_steps(tmp_path, EVERY_100_STEPS) == [200]
    assert due_steps(tmp_path / "nothing", EVERY_100_STEPS) == []


def test_pending_claimed_and_best_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(50, 501, 50):
        save_step(tmp_path, step, EVERY_100_STEPS)
    # 50, 150 ... are not scheduled: of these, only the two newest checkpoints are kept.
    assert checkpoint_steps(tmp_path) == [100, 200, 300, 400, 450, 500]
    write_result(tmp_path, 100, ccc=0.3)
    write_result(tmp_path, 200, ccc=0.9)
    write_result(tmp_path, 300, ccc=None)
    evaluation_path(tmp_path, 300, "quick").with_suffix(".claim").write_text("{}")
    save_step(tmp_path, 550, EVERY_100_STEPS)
    assert checkpoint_steps(tmp_path) == [200, 300, 400, 500, 550]
    failed = evaluation_path(tmp_path, 400, "quick").with_suffix(".failed")
    failed.write_text('{"failures": [{}, {}]}')
    save_step(tmp_path, 570, EVERY_100_STEPS)
    assert 400 in checkpoint_steps(tmp_path), "the evaluation will be tried again"
    failed.write_text('{"failures": [{}, {}, {}]}')
    save_step(tmp_path, 600, EVERY_100_STEPS)
    assert checkpoint_steps(tmp_path) == [200, 300, 500, 570, 600], "failed evaluations do not protect a checkpoint"


def test_number_of_pending_checkpoints_is_limited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = EvaluationConfig(every=100, max_pending=4)
    for step in range(100, 1000, 100):
        save_step(tmp_path, step, config)
        if step < 400:
            warn_dropped_checkpoints(tmp_path, config, protected_steps(tmp_path, config))
    assert len(checkpoint_steps(tmp_path)) <= 4 + 2
    assert capsys.readouterr().err == ""
    warn_dropped_checkpoints(tmp_path, config, protected_steps(tmp_path, config))
    output = " ".join(capsys.readouterr().err.split())
    assert "more than 4 checkpoints wait for evaluation" in output and "(steps 500)" in output


def test_best_step_is_due_with_the_best_suite(tmp_path: Path) -> None:
    config = EvaluationConfig(every=100, best_suite="full")
    for step in (100, 200, 300):
        save_step(tmp_path, step, config, max_checkpoints=9)
    assert due_evaluations(tmp_path, config) == [(300, "quick"), (200, "quick"), (100, "quick")]
    write_result(tmp_path, 100, ccc=0.9)
    write_result(tmp_path, 200, ccc=0.3)
    assert due_evaluations(tmp_path, config) == [(300, "quick"), (100, "full")]
    save_step(tmp_path, 400, config, max_checkpoints=1)
    assert 100 in checkpoint_steps(tmp_path), "kept for the evaluation with the best suite"
    evaluation_path(tmp_path, 100, "full").write_text("{}")
    assert due_evaluations(tmp_path, config) == [(400, "quick"), (300, "quick")]


def test_selection_metric_must_be_known_and_documented() -> None:
    with pytest.raises(UserError, match=r"evaluation.selection_metric: 'cccc' is not a metric .* did you mean 'ccc'"):
        parse_config({"evaluation": {"selection_metric": "cccc"}}, "test")
    with pytest.raises(UserError, match=r"evaluation.selection_metric: '-kid': remove the minus sign"):
        parse_config({"evaluation": {"selection_metric": "-kid"}}, "test")
    name = "second_dataset_reconstruction_l1"
    assert parse_config({"evaluation": {"selection_metric": name}}, "test").evaluation.selection_metric == name
    documentation = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert not [name for name in SELECTION_METRICS if f"`{name}`" not in documentation]


@pytest.mark.parametrize(
    ("selection_metric", "expected"),
    [("ccc", 200), ("frechet_distance", 100), ("second_dataset_reconstruction_l1", 100), ("r2", None)],
)
def test_best_step_follows_the_direction_of_the_metric(
    tmp_path: Path, selection_metric: str, expected: int | None
) -> None:
    write_result(tmp_path, 100, ccc=0.3, frechet_distance=1.0, second_dataset_reconstruction_l1=0.1)
    write_result(tmp_path, 200, ccc=0.9, frechet_distance=2.0, second_dataset_reconstruction_l1=0.2)
    evaluation_path(tmp_path, 300, "quick").write_text("corrupted")
    evaluation_path(tmp_path, 400, "quick").write_text("[]")
    assert best_step(tmp_path, EvaluationConfig(selection_metric=selection_metric)) == expected
