"""Tests of classes without training images: report, page and evaluation make no edits toward them, and say why."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from featgan.data.packing.pack import pack_shards
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.evaluation.evaluate import evaluate_run
from featgan.evaluation.label_evaluator import classifier_fits
from featgan.evaluation.second_classifier import SecondPredictions, second_classifier_decisions
from featgan.explore.page import build_explore_page
from featgan.explore.session import load_session
from featgan.features.space import FeatureSpace
from featgan.inference.training_data import TrainingData, correctly_classified_rows, untrained_outputs
from featgan.metrics.predictions import Predictions
from featgan.report.edits.registry import build_sweeps
from featgan.report.edits.sweeps import SweepInputs
from featgan.report.render import render_run
from featgan.training.train import train
from tests.conftest import World
from tests.helpers.explore import make_edit_request

SIZE = 16


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack three classes, of which `missing` occurs in the validation split only."""
    folder = tmp_path_factory.mktemp("untrained")
    generator = np.random.default_rng(0)
    for split, names in (("train", ("calm-face", "smug")), ("validation", ("calm-face", "missing", "smug"))):
        for name in names:
            (folder / "source" / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
                Image.fromarray(pixels).save(folder / "source" / split / name / f"{number}.png")
    pack_shards("folder", folder / "source", folder / "shards", image_size=SIZE, workers=1)
    assert ShardSet.open(folder / "shards").classes == ("calm-face", "missing", "smug")
    return folder / "shards"


@pytest.fixture(scope="module")
def run(world: World, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run that is conditioned on these classes, for two steps."""
    dataset = {"shards": str(shards), "condition": {"kind": "expression"}}
    run_dir = tmp_path_factory.mktemp("runs") / "expression"
    return train(world.make_config(run_dir, dataset=dataset, training={"steps": 2, "num_workers": 0}))


REASON = "missing: no training image has this class"


def test_report_has_no_edits_toward_a_class_without_training_images(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = render_run(run, num_images=2).read_text()
    assert f"no edits toward {REASON}" in " ".join(capfd.readouterr().err.split())
    assert "There are no edits toward missing, because no training image has this class." in page
    with Image.open(run / "renders" / "step-00000002" / "expressions.png") as grid:
        columns = grid.text["Columns"]  # type: ignore[attr-defined]
    assert "smug" in columns and "missing" not in columns


def test_page_offers_no_edits_toward_a_class_without_training_images(run: Path) -> None:
    session = load_session([run])
    page = build_explore_page(session)
    assert f"No edits toward {REASON}" in page
    assert 'value="1" disabled' in page and 'value="2" disabled' not in page
    session.edit_with_all_runs(make_edit_request(session, labels=[0.0, 0.0, 1.0]))
    with pytest.raises(UserError, match="no edits toward missing, because no training image has this class"):
        session.edit_with_all_runs(make_edit_request(session, labels=[0.0, 1.0, 0.0]))


def test_evaluation_has_no_pairs_with_a_class_without_training_images(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    document = evaluate_run(run, suite="quick")
    assert document.pairs == 12
    assert f"no edits toward {REASON}" in " ".join(capfd.readouterr().err.split())


def test_output_that_is_neither_predicted_nor_a_label_has_no_direction() -> None:
    train_labels = np.array([0, 0, 1, 1], np.int16)
    outputs = np.eye(4)[[0, 0, 1, 1]]

    class Labels(list[int]):
        expression, name = train_labels, "train"

    data = TrainingData(
        SimpleNamespace(get_split=lambda name: Labels(range(4)), classes=("sad", "happy")),  # type: ignore[arg-type]
        SimpleNamespace(  # type: ignore[arg-type]
            task="expression", output_dim=4, class_names=("sadness", "Happiness", "fear", "anger"),
            outputs=lambda split, rows: outputs[rows], summary={},
        ),
    )  # fmt: skip
    assert untrained_outputs(data) == ("fear", "anger")
    rows = correctly_classified_rows(data, Labels(range(4)))  # type: ignore[arg-type]
    assert rows.tolist() == [0, 1, 2, 3]


def test_head_and_class_sweeps_leave_out_untrained_classes() -> None:
    features = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    names = ("sad", "happy", "fear")
    inputs = SweepInputs(
        kind="features",
        values=features[:2],
        images=torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8),
        encode=lambda target, source: target,
        space=FeatureSpace.fit(features),
        class_means={name: features[index] for index, name in enumerate(names)},
        head_weight=torch.eye(3, 5),
        output_names=names,
        untrained=frozenset({"happy"}),
    )
    for direction in ("class", "head"):
        (sweep,) = build_sweeps(inputs, [direction])
        assert sweep.headings == ("sad", "fear")
        assert "There are no edits toward happy" in sweep.note
        (complete,) = build_sweeps(SweepInputs(**{**vars(inputs), "untrained": frozenset()}), [direction])
        torch.testing.assert_close(
            sweep.conditions[:, 1] - sweep.conditions[:, 0], (complete.conditions[:, 2] - complete.conditions[:, 0])
        )


FIRST_NAMES = ("neutral", "happy", "sad", "anger")


def evaluate_second(names: tuple[str, ...], order: list[int]) -> dict[str, float]:
    """Return the metrics of a second classifier with these names, whose outputs are in this order of the first's."""
    generator = np.random.default_rng(3)
    source, target, edited = (generator.normal(size=(40, 4)) for _ in range(3))
    evaluator = SimpleNamespace(
        task="expression",
        class_names=FIRST_NAMES,
        source_predictions=Predictions(source, source),
        target_predictions=Predictions(target, target),
        target_differs=source.argmax(1) != target.argmax(1),
    )
    edits = SimpleNamespace(predictions={"generator": Predictions(edited, edited)})
    noisy = [
        values[:, order] + 0.5 * np.random.default_rng(1).normal(size=(40, 4))[:, order] for values in (source, edited)
    ]
    padding = np.full((40, len(names) - len(order)), -99.0)
    second_source, second_edited = (Predictions(v, np.concatenate([v, padding], 1)) for v in noisy)
    classifier = SimpleNamespace(classifier=SimpleNamespace(task="expression"), class_names=names)
    second = SecondPredictions(classifier, second_source, {"generator": second_edited}, second_edited)  # type: ignore[arg-type]
    metrics = second_classifier_decisions(evaluator, edits, second, "generator")  # type: ignore[arg-type]
    return {name: estimate.value for name, estimate in metrics.items()}


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("Neutral", "Happiness", "Sadness", "Angry"), [0, 1, 2, 3]),
        (("angry", "sadness", "happiness", "neutrality"), [3, 2, 1, 0]),
        (("anger", "sad", "happy", "neutral", "contempt"), [3, 2, 1, 0]),
    ],
)
def test_second_classifier_is_matched_by_synonyms_in_any_order_and_count(
    names: tuple[str, ...], order: list[int]
) -> None:
    expected = evaluate_second(FIRST_NAMES, [0, 1, 2, 3])
    found = evaluate_second(names, order)
    assert expected["second_classifier_agreement"] > 0
    for name, value in expected.items():
        if name != "change_cosine" or len(names) == 4:
            assert found[name] == pytest.approx(value), name


@pytest.mark.parametrize(
    ("names", "fits"),
    [
        (("happy", "sad"), True),
        (("Sadness", "Happiness"), True),
        (("contempt", "Sadness", "Happiness"), True),
        (("happy", "fear"), False),
        ((), False),
    ],
)
def test_evaluation_classifier_is_matched_by_synonyms(names: tuple[str, ...], fits: bool) -> None:
    condition = SimpleNamespace(config=SimpleNamespace(kind="expression"), names=("happy", "sad"))
    classifier = SimpleNamespace(task="expression", class_names=names)
    assert classifier_fits(classifier, condition) == fits  # type: ignore[arg-type]
