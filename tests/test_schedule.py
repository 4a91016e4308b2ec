"""Which checkpoints are evaluated, which is best, and which must be kept."""

import json
from pathlib import Path

import pytest
import torch

from featgan.checkpoint import save_checkpoint
from featgan.config import EvaluationConfig
from featgan.schedule import (
    MOST_WAITING,
    best_step,
    committed_steps,
    due_steps,
    evaluation_path,
    protected_steps,
    scheduled_steps,
)

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


def test_waiting_checkpoints_do_not_fill_the_disk(tmp_path: Path) -> None:
    for step in range(100, 100 * (MOST_WAITING + 10), 100):
        save(tmp_path, step, EVERY)
    assert len(committed_steps(tmp_path)) <= MOST_WAITING + 2


@pytest.mark.parametrize(("best", "expected"), [("ccc", 200), ("-frechet_edited", 100), ("unknown", None)])
def test_the_best_is_the_largest_or_with_a_minus_the_smallest(tmp_path: Path, best: str, expected: int | None) -> None:
    write_result(tmp_path, 100, ccc=0.3, frechet_edited=1.0)
    write_result(tmp_path, 200, ccc=0.9, frechet_edited=2.0)
    evaluation_path(tmp_path, 300, "quick").write_text("damaged")
    evaluation_path(tmp_path, 400, "quick").write_text("[]")
    assert best_step(tmp_path, EvaluationConfig(best=best)) == expected
