"""Several processes write the same evaluation as one, and an error in one of them ends all with one line."""

import logging
from pathlib import Path

import pytest

from featgan.distributed.work_group import WorkGroup
from featgan.evaluation.evaluate import evaluate_in_group, evaluate_run
from featgan.inference import editor, training_data
from featgan.run.evaluation_options import EvaluationOptions
from featgan.training.train import train
from tests.conftest import World
from tests.helpers.groups import KILLED, run_group


@pytest.fixture
def run(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose evaluation has several batches."""
    monkeypatch.setattr(training_data, "load_blackbox", lambda *arguments, **options: world.classifier)
    monkeypatch.setattr(editor, "BATCH_SIZE", 3)
    return train(world.make_config(tmp_path / "run"))


def evaluate(group: WorkGroup, run: Path) -> None:
    evaluate_in_group(run, None, "quick", EvaluationOptions(), group)


def read_evaluations(run: Path) -> dict[str, bytes]:
    """Return the files of the evaluations, and remove them."""
    contents = {path.name: path.read_bytes() for path in (run / "evaluations").glob("*.json")}
    for name in contents:
        (run / "evaluations" / name).unlink()
    return contents


def test_document_does_not_depend_on_the_number_of_processes(run: Path, tmp_path: Path) -> None:
    evaluate_run(run, suite="quick")
    expected = read_evaluations(run)
    assert len(expected) == 1
    num_lines = len((run / "metrics.jsonl").read_text().splitlines())
    for count in (2, 3):
        assert run_group(count, lambda group: evaluate(group, run), tmp_path / "results") == [""] * count
        assert read_evaluations(run) == expected
        num_lines += 1  # written once
        assert len((run / "metrics.jsonl").read_text().splitlines()) == num_lines


@pytest.mark.parametrize("failing_rank", [0, 1])
def test_error_in_one_process_ends_all(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_rank: int
) -> None:
    def fail(group: WorkGroup) -> None:
        if group.rank == failing_rank:
            monkeypatch.setattr(editor, "to_uint8", lambda images: images.unknown_attribute)
        logging.disable(logging.ERROR)
        evaluate(group, run)

    messages = run_group(2, fail, tmp_path / "results")
    assert messages[failing_rank] == KILLED  # it printed a traceback, since this is not an error of the user
    assert f"rank {failing_rank}" in messages[1 - failing_rank] and "\n" not in messages[1 - failing_rank]
    assert read_evaluations(run) == {}
