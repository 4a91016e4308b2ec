"""Evaluation end to end on the tiny data set, with a fake classifier and generators whose metrics are known."""

import io
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from featgan.blackbox.loading import BlackBox
from featgan.config.metric_specs import METRICS, TERMINAL_TABLES, find_metric
from featgan.data.packing.pack import pack_shards
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.evaluation import evaluate as module
from featgan.evaluation import optional_models
from featgan.evaluation.console import print_evaluation
from featgan.evaluation.evaluate import evaluate_run
from featgan.evaluation.evaluator import MAX_SHARED_TARGET_SOURCES, MAX_SHARED_TARGETS, EvaluationPairs
from featgan.evaluation.subgroups import decision_scores
from featgan.inference import training_data
from featgan.inference.model import EditingModel
from featgan.metrics.baselines import nearest_rows
from featgan.metrics.bootstrap import Floats
from featgan.metrics.decisions import decision_metrics
from featgan.metrics.factors import FactorNames, factor_metrics
from featgan.metrics.predictions import Predictions
from featgan.run.evaluation_document import EstimateRecord, EvaluationDocument, read_evaluation
from featgan.system.console import PlainConsole
from featgan.system.images import to_float
from featgan.training.train import train
from tests.conftest import FakeLinearClassifier, World, write_features

Metrics = Mapping[str, EstimateRecord]


@pytest.fixture(scope="module")
def trained_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(world.make_config(tmp_path_factory.mktemp("runs") / "run"))


class EquivalentClassifier(FakeLinearClassifier):
    """Predicts exactly as the fake classifier, with another hash."""

    spec = "equivalent"
    sha256 = "2" * 64


class DifferentClassifier(EquivalentClassifier):
    """Predicts the same classes from other directions of the image."""

    spec = "different"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(self.weight.shape, generator=torch.Generator().manual_seed(6))


class FakeAffectClassifier(FakeLinearClassifier):
    """Predicts valence and arousal."""

    sha256 = "3" * 64
    output_dim = 2
    task = "valence_arousal"
    class_names = ("valence", "arousal")

    def __init__(self) -> None:
        super().__init__()
        self.head = (self.head[0][:2], self.head[1][:2])


def make_loader(classifiers: Mapping[str, FakeLinearClassifier]) -> Callable[..., FakeLinearClassifier]:
    """Return a replacement of `load_blackbox`."""
    return lambda spec, layer=None, device=None, trusted=None: classifiers[spec]


@pytest.fixture
def fake_classifiers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    classifiers = {
        "linear": world.classifier,
        "equivalent": EquivalentClassifier(),
        "different": DifferentClassifier(),
    }
    for opener in (module, training_data, optional_models):
        monkeypatch.setattr(opener, "load_blackbox", make_loader(classifiers))


def metric_values(document: EvaluationDocument) -> dict[str, float]:
    """Return the values of the generator's metrics; NaN if a metric was not measured."""
    return entry_values(document.metrics)


def entry_values(metrics: Metrics) -> dict[str, float]:
    return {name: float("nan") if entry.value is None else entry.value for name, entry in metrics.items()}


def conclusion_texts(document: EvaluationDocument) -> list[str]:
    return [conclusion.text for conclusion in document.conclusions]


def assert_matches_baseline(metrics: Mapping[str, float], baseline: Metrics) -> None:
    """Assert that a generator that does what a baseline does has the scores of the baseline."""
    assert baseline
    for name, entry in baseline.items():
        if name != "retrieval_mrr" and not name.endswith("psnr") and entry.value is not None:
            assert metrics[name] == pytest.approx(entry.value, abs=2e-3, rel=1e-3), name


def test_evaluation_writes_json_and_tensorboard_and_is_repeatable(trained_run: Path, fake_classifiers: None) -> None:
    first = evaluate_run(trained_run, suite="quick", num_components=3)
    assert first.path is not None and read_evaluation(first.path) == first
    assert first.step == 4 and first.suite == "quick" and first.headline and first.conclusions
    assert {
        "target_progress_pooled",
        "ccc",
        "label_agreement",
        "reconstruction_l1",
        "cycle_ssim",
        "frechet_distance",
    } <= first.metrics.keys()
    assert first.pairs == first.swept_images == first.metrics["ccc"].count
    assert first.arguments == ("--suite", "quick", "--num-components", "3")
    assert len(first.components) == 3 and np.asarray(first.crosstalk, np.float64).shape == (3, 3)
    assert list((trained_run / "tensorboard" / "evaluation").glob("events*"))
    assert evaluate_run(trained_run, suite="quick", num_components=3).metrics == first.metrics


def test_generator_that_copies_scores_as_copy_source(
    trained_run: Path, fake_classifiers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EditingModel, "edit_images", lambda self, images, condition: images)
    document = evaluate_run(trained_run, suite="quick", num_components=2, second_classifier="different")
    metrics = metric_values(document)
    assert metrics["target_progress_pooled"] == pytest.approx(0, abs=1e-3) and metrics["reconstruction_l1"] < 1e-3
    assert metrics["diversity_ratio"] == pytest.approx(1)
    assert metrics["second_classifier_edit_cosine"] == pytest.approx(1)
    assert_matches_baseline(metrics, document.baselines["copy_source"])
    assert {table.family for table in document.tables} == {
        "faithfulness", "sufficiency", "second_classifier", "traversal", "preservation", "realism", "diversity",
        "subgroups_class", "subgroups_octant", "subgroups_component",
    }  # fmt: skip
    for table in document.tables:
        family_columns = ("metric", "generator", "95 %", "images")
        subgroup_columns = ("subgroup", "metric", "generator", "95 %", "pairs")
        assert table.columns[:4] == family_columns or table.columns[:5] == subgroup_columns
        assert all(len(row) == len(table.columns) for row in table.rows)
    for subgroup in document.subgroups:
        assert_matches_baseline(entry_values(subgroup.metrics), subgroup.baselines["copy_source"])
    assert any("hardly reach the targets" in text for text in conclusion_texts(document))
    assert any(
        text.startswith("Sweeping components 1 (slope 0.00), 2 (slope 0.00) has hardly any effect")
        for text in conclusion_texts(document)
    )


def test_generator_of_the_nearest_real_image_scores_as_nearest_real(
    trained_run: Path, world: World, fake_classifiers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = world.shards.get_split("train")
    training_features = world.cache.features("train", np.arange(len(training))).astype(np.float64)

    def edit_images(self: EditingModel, images: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        assert self.space is not None
        target_features = self.space.decode(condition, self.metadata.encoding).double().numpy()
        return to_float(training.decode(nearest_rows(self.space, target_features, training_features)))

    monkeypatch.setattr(EditingModel, "edit_images", edit_images)
    document = evaluate_run(trained_run, suite="quick", num_components=2, second_classifier="equivalent")
    actual, baseline = metric_values(document), document.baselines["nearest_real"]
    assert {"slope", "sufficiency_at_1", "second_classifier_agreement", "reconstruction_l1", "kid"} <= baseline.keys()
    assert_matches_baseline(actual, baseline)
    assert actual["diversity_ratio"] == 0 and actual["target_progress_pooled"] > 0.1
    for subgroup in document.subgroups:
        assert_matches_baseline(entry_values(subgroup.metrics), subgroup.baselines["nearest_real"])
    assert any("to the same target become similar" in text for text in conclusion_texts(document))


def test_generator_that_ignores_the_condition_scores_as_shuffled_target(
    trained_run: Path, fake_classifiers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EditingModel, "edit_images", lambda self, images, condition: (images + 0.5).clamp(-1, 1))
    document = evaluate_run(trained_run, suite="quick", num_components=2, second_classifier="different")
    metrics = metric_values(document)
    assert_matches_baseline(metrics, document.baselines["shuffled_target"])
    assert metrics["slope"] == metrics["monotonicity"] == 0
    for subgroup in document.subgroups:
        assert_matches_baseline(entry_values(subgroup.metrics), subgroup.baselines["shuffled_target"])
    color_shifts = [subgroup.metrics["color_shift"] for subgroup in document.subgroups if subgroup.group == "class"]
    assert min(shift.low or 0.0 for shift in color_shifts) > 1, "all edits are brighter, toward every class"
    assert not any(
        conclusion.family == "faithfulness" and conclusion.kind == "supports" for conclusion in document.conclusions
    )


def test_nearest_real_images_change_but_preserve_nothing(trained_run: Path, fake_classifiers: None) -> None:
    baseline = entry_values(evaluate_run(trained_run, suite="quick", num_components=2).baselines["nearest_real"])
    assert baseline["reconstruction_l1"] > 0.05 < baseline["edit_l1"]
    assert baseline["target_progress_pooled"] > 0.1 < baseline["slope"]


def test_metrics_are_also_a_line_of_metrics_jsonl(trained_run: Path, fake_classifiers: None) -> None:
    document = evaluate_run(trained_run, suite="quick", num_components=2)
    line = json.loads((trained_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 4 and line["evaluation/ccc"] == metric_values(document)["ccc"]


@pytest.mark.parametrize("condition_input", ["target", "target_and_difference"])
def test_perfect_generator_reaches_the_targets(
    trained_run: Path,
    world: World,
    fake_classifiers: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    condition_input: str,
) -> None:
    # The fake classifier is linear in the image: adding its pseudo-inverse times the target change is a perfect edit.
    inverse = torch.linalg.pinv(world.classifier.weight)
    if condition_input == "target_and_difference":
        trained_run = train(world.make_config(tmp_path / "run", generator={"condition_input": condition_input}))

    def edit_images(self: EditingModel, images: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        num_features = world.classifier.feature_dim
        # The difference must be that of the image itself, because this generator does not use the image.
        feature_change = (
            condition[:, :num_features] - world.classifier(images)[0]
            if condition_input == "target"
            else condition[:, num_features:]
        )
        change = feature_change @ inverse.T
        return images + torch.nn.functional.interpolate(change.view(-1, 3, 8, 8), size=(16, 16))

    monkeypatch.setattr(EditingModel, "edit_images", edit_images)
    # Without rounding and clamping: small images have few levels, and a large change exceeds their range.
    monkeypatch.setattr("featgan.inference.editor.to_uint8", lambda images: images)
    floats = lambda images: images if images.is_floating_point() else images.float() / 127.5 - 1  # noqa: E731
    monkeypatch.setattr("featgan.inference.editor.to_float", floats)
    document = evaluate_run(trained_run, suite="quick", num_components=3, second_classifier="equivalent")
    metrics = metric_values(document)
    assert metrics["target_progress_pooled"] == pytest.approx(1, abs=1e-3)
    assert metrics["ccc"] == pytest.approx(1, abs=1e-3)
    assert metrics["label_agreement"] == pytest.approx(1) and metrics["retrieval_top1"] == pytest.approx(1)
    assert metrics["monotonicity"] == pytest.approx(1) and metrics["diagonal_dominance"] > 0.99
    assert metrics["slope"] == pytest.approx(1, abs=1e-2)
    assert metrics["projection_02_ccc"] == pytest.approx(1, abs=1e-2)
    assert metrics["projection_00_distance"] == pytest.approx(0, abs=1e-2)
    for subgroup in document.subgroups:
        name = "component_progress" if subgroup.group.startswith("component") else "target_progress_pooled"
        assert entry_values(subgroup.metrics)[name] == pytest.approx(1, abs=1e-2), subgroup.name
    # An equivalent second classifier confirms all edits; one that uses other directions of the image does not.
    agreement = metrics["second_classifier_agreement"]
    assert agreement == metrics["classifier_agreement"] == metrics["change_agreement"] == pytest.approx(1)
    assert metrics["agreement_gap"] == 0
    assert metrics["second_classifier_target_progress_pooled"] == pytest.approx(1, abs=1e-2)
    different = metric_values(evaluate_run(trained_run, suite="quick", num_components=1, second_classifier="different"))
    assert different["classifier_agreement"] == pytest.approx(1) and different["second_classifier_agreement"] < 0.7
    assert abs(different["second_classifier_target_progress_pooled"]) < 0.3


def test_second_classifier_must_differ_and_is_rejected_for_label_conditioned_runs(
    trained_run: Path, world: World, tmp_path: Path, fake_classifiers: None
) -> None:
    with pytest.raises(UserError, match="--second-classifier linear: is the classifier of the run"):
        evaluate_run(trained_run, suite="quick", second_classifier="linear")
    dataset = {"shards": str(world.shards.path), "condition": {"kind": "expression"}}
    run = train(world.make_config(tmp_path / "run", dataset=dataset))
    with pytest.raises(UserError, match="--second-classifier: only for feature-conditioned runs"):
        evaluate_run(run, suite="quick", second_classifier="equivalent")


def test_second_classifier_predicts_each_set_of_images_once(
    trained_run: Path, world: World, fake_classifiers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_sizes: list[int] = []

    class CountingClassifier(EquivalentClassifier):
        def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            batch_sizes.append(len(images))
            return super().__call__(images)

    monkeypatch.setattr(optional_models, "load_blackbox", make_loader({"counting": CountingClassifier()}))
    num_images = len(world.shards.get_split("validation"))
    document = evaluate_run(trained_run, suite="quick", num_components=1, second_classifier="counting")
    # Sources, edits, shuffled edits, reconstructions and nearest real images, and the edits to the shared targets.
    assert sum(batch_sizes) == 5 * num_images + MAX_SHARED_TARGETS * min(num_images, MAX_SHARED_TARGET_SOURCES)
    assert document.second_classifier == {
        "spec": "equivalent", "layer": "hidden", "sha256": "2" * 64, "feature_cache": None,
    }  # fmt: skip


def test_second_classifier_reads_predictions_for_real_images_from_its_feature_cache(world: World) -> None:
    second_classifier = optional_models.SecondClassifier(cast(BlackBox, world.classifier), world.shards)
    assert second_classifier.cache is not None and second_classifier.cache.name.startswith("linear")
    rows = np.array([3, 1])
    cached = second_classifier.predict_real("validation", rows)
    second_classifier.cache = None
    computed = second_classifier.predict_real("validation", rows)
    assert cached.features == pytest.approx(computed.features, rel=1e-4)


def test_second_classifier_finds_its_feature_cache_next_to_that_of_the_run(world: World, tmp_path: Path) -> None:
    second = FakeLinearClassifier()
    second.sha256 = "3" * 64
    cache = write_features(world.shards, second, str(tmp_path / "second"))
    (tmp_path / "unrelated").mkdir()
    (tmp_path / "unrelated" / "manifest.json").write_text("{}")
    find = partial(optional_models.find_feature_cache, world.shards, cast(BlackBox, second))
    assert find() is None and find("linear") is None and find("https://127.0.0.1/caches/run") is None
    found = find(str(tmp_path / "run"))
    assert found is not None and found.path == cache.path


def test_valence_arousal_classifier_is_evaluated_by_octant_and_with_second_classifiers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, equivalent = FakeAffectClassifier(), FakeAffectClassifier()
    equivalent.sha256 = "2" * 64
    write_features(world.shards, classifier, "affect")
    dataset = {"shards": str(world.shards.path), "feature_cache": "affect"}
    run = train(world.make_config(tmp_path / "run", dataset=dataset))
    monkeypatch.setattr(training_data, "load_blackbox", lambda spec, layer=None, device=None, trusted=None: classifier)
    second_classifiers = {"equivalent": equivalent, "expression": world.classifier}
    monkeypatch.setattr(optional_models, "load_blackbox", make_loader(second_classifiers))
    document = evaluate_run(run, suite="quick", num_components=1, second_classifier="equivalent")
    metrics = metric_values(document)
    assert metrics["second_classifier_valence_ccc"] == pytest.approx(metrics["valence_ccc"], abs=1e-3)
    target_real = entry_values(document.baselines["target_real"])
    assert target_real["second_classifier_valence_ccc"] == pytest.approx(1, abs=1e-3)
    assert metrics["edit_l1_when_changed"] > 0 and "second_classifier_agreement" not in metrics
    octants = [subgroup for subgroup in document.subgroups if subgroup.group == "octant"]
    assert octants and all("valence_arousal_rmse" in subgroup.metrics for subgroup in octants)
    document = evaluate_run(run, suite="quick", num_components=1, second_classifier="expression")
    assert {
        "second_classifier_target_progress_pooled",
        "second_classifier_frechet_distance",
        "second_classifier_edit_cosine",
    } <= document.metrics.keys()
    assert any("cannot be compared" in text for text in conclusion_texts(document))
    assert_specified(document)


def test_optional_weights_add_their_metrics_and_all_tables_fit_the_terminal(
    trained_run: Path, tmp_path: Path, fake_classifiers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mean_colors(images: torch.Tensor) -> Floats:
        return images.double().mean((2, 3)).numpy()

    def color_distance(first: torch.Tensor, second: torch.Tensor) -> Floats:
        return np.abs(mean_colors(first) - mean_colors(second)).mean(1)

    monkeypatch.setattr(optional_models, "Inception", lambda path, device: mean_colors)
    monkeypatch.setattr(optional_models, "Lpips", lambda path, device: color_distance)
    (tmp_path / "weights").write_bytes(b"weights")
    document = evaluate_run(
        trained_run,
        suite="quick",
        num_components=2,
        second_classifier="equivalent",
        inception=tmp_path / "weights",
        lpips=tmp_path / "weights",
    )
    assert {"fid", "fid_real", "inception_kid", "reconstruction_lpips", "edit_lpips"} <= document.metrics.keys()
    assert {"fid", "inception_kid", "edit_lpips"} <= document.baselines["nearest_real"].keys()
    assert document.baselines["copy_source"]["edit_lpips"].value == 0
    assert {entry["file"] for entry in document.weights.values()} == {"weights"}
    assert_specified(document)
    assert_computes_every_metric(document)
    output = PlainConsole(width=80, file=io.StringIO(), record=True)
    print_evaluation(document, output)
    text = output.export_text()
    assert all(len(line) <= 80 for line in text.splitlines()) and "…" not in text
    titles = [title for title in TERMINAL_TABLES.values() if re.search(rf"^ {title}  ", text, re.M)]
    assert titles == list(TERMINAL_TABLES.values())


def assert_specified(document: EvaluationDocument) -> None:
    """Assert that the registry has every metric of a document."""
    missing = {name for name in document_metric_names(document) if find_metric(name) is None}
    assert not missing


def document_metric_names(document: EvaluationDocument) -> set[str]:
    """Return the names of the metrics of a document, its baselines and its subgroups."""
    tables = [document.metrics, *document.baselines.values()]
    for subgroup in document.subgroups:
        tables += [subgroup.metrics, *subgroup.baselines.values()]
    return {name for table in tables for name in table}


def assert_computes_every_metric(document: EvaluationDocument) -> None:
    """Assert that the metrics of a document with all optional models, and of other outputs, are the whole registry."""
    values = np.random.default_rng(0).normal(size=(3, 30, 2))
    source, target, measured = (Predictions(array, array) for array in values)
    factor_names = FactorNames(("mouth_opening",), ("skin_tone",))
    sweep = np.tile(values[0][:, None, None], (1, 2, 2, 1))
    computed = {
        *document_metric_names(document),
        *decision_metrics("attributes", source, target, measured, ("Smiling", "Young")),
        *decision_metrics("valence_arousal", source, target, measured, ("valence", "arousal")),
        *decision_scores("valence_arousal", source, target, measured),
        *factor_metrics(factor_names, values[0], values[1], values[2], np.array([-1.0, 1.0]), sweep, np.ones(2)),
    }
    assert set(METRICS) <= computed, set(METRICS) - computed


def test_max_pairs_limits_pairs_and_swept_images() -> None:
    assert module.suite_size("quick", None) == (2000, 128)
    assert module.suite_size("quick", 256) == (256, 32)
    assert module.suite_size("standard", 5) == (5, 1)
    assert module.suite_size("quick", 100_000) == (2000, 128)


def test_limited_evaluation_is_named_after_its_number_of_pairs(trained_run: Path, fake_classifiers: None) -> None:
    paths = [evaluate_run(trained_run, suite="quick", max_pairs=count).path for count in (4, 2_000, 100_000)]
    assert [path.name for path in paths if path is not None] == [
        "step-00000004-quick-4.json",
        "step-00000004-quick.json",
        "step-00000004-quick.json",
    ]
    assert all(module.find_evaluation(trained_run, 4, "quick", count) for count in (4, 100_000, None))
    assert module.find_evaluation(trained_run, 4, "quick", 5) is None


def test_classifier_with_other_weights_is_rejected(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = type("Other", (), {"sha256": "2" * 64})()
    monkeypatch.setattr(training_data, "load_blackbox", lambda spec, layer=None, device=None, trusted=None: other)
    with pytest.raises(UserError, match="not the classifier that the features were extracted with"):
        evaluate_run(trained_run, suite="quick")


def test_shards_that_differ_from_training_are_rejected(
    trained_run: Path, world: World, tmp_path: Path, fake_classifiers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {}
    for name, size, limit in (("larger", 32, None), ("fewer", 16, 50)):
        pack_shards("affectnet", world.source, tmp_path / name, image_size=size, max_images=limit, workers=1)
        others[name] = ShardSet.open(tmp_path / name)
    for other in others.values():
        monkeypatch.setattr(ShardSet, "open", lambda *arguments, other=other: other)
        with pytest.raises(UserError, match="not the shards that the run was trained on"):
            evaluate_run(trained_run, suite="quick")


def test_label_conditioned_runs_are_evaluated_with_and_without_a_classifier(
    world: World, tmp_path: Path, fake_classifiers: None
) -> None:
    dataset = {"shards": str(world.shards.path), "condition": {"kind": "expression"}}
    run = train(world.make_config(tmp_path / "run", dataset=dataset))
    without_classifier = evaluate_run(run, suite="quick")
    num_labeled = int((world.shards.get_split("validation").expression >= 0).sum())
    assert without_classifier.pairs == num_labeled and without_classifier.swept_images is None
    assert "reconstruction_l1" in without_classifier.metrics
    assert any("no evaluation classifier" in text for text in conclusion_texts(without_classifier))
    document = evaluate_run(run, suite="quick", classifiers=["linear"])
    assert "label_agreement" in document.metrics
    assert_specified(document)


def test_each_of_two_data_sets_is_evaluated_by_its_classifier(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = str(world.shards.path)
    run = train(
        world.make_config(
            tmp_path / "run",
            dataset={"shards": shards, "condition": {"kind": "expression"}},
            second_dataset={"shards": shards, "condition": {"kind": "valence_arousal"}},
        )
    )
    classifiers = {"classes": world.classifier, "affect": FakeAffectClassifier()}
    monkeypatch.setattr(module, "load_blackbox", make_loader(classifiers))
    without_classifier = evaluate_run(run, suite="quick").metrics
    assert {"reconstruction_l1", "second_dataset_reconstruction_l1"} <= without_classifier.keys()
    assert "label_agreement" not in without_classifier
    document = evaluate_run(run, suite="quick", classifiers=["affect", "classes"])
    assert {
        "label_agreement",
        "second_dataset_valence_ccc",
        "frechet_distance",
        "second_dataset_frechet_distance",
    } <= document.metrics.keys()
    assert_specified(document)
    table = document.tables[0]
    baselines = ("copy_source", "shuffled_target", "target_real")
    assert table.columns == ("metric", "generator", "95 %", "images", *baselines)
    assert {"label_agreement", "second_dataset_valence_ccc"} <= {row[0] for row in table.rows}
    with pytest.raises(UserError, match="predicts expression.*the labels of this run are.*valence_arousal"):
        evaluate_run(run, suite="quick", classifiers=["classes", "classes"])


def test_perfect_label_conditioned_generator_reaches_the_upper_bound(
    world: World, tmp_path: Path, fake_classifiers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = {"shards": str(world.shards.path), "condition": {"kind": "expression"}}
    run = train(world.make_config(tmp_path / "run", dataset=dataset))
    split = world.shards.get_split("validation")
    real = split.decode(np.arange(len(split))).float() / 127.5 - 1
    predicted = world.classifier(real)[1].argmax(1)
    # The labels are the predictions of the classifier, and the generator returns a real image of the target class.
    monkeypatch.setattr(split, "expression", predicted.numpy())
    image_by_class = {int(label): real[int((predicted == label).nonzero()[0])] for label in predicted.unique()}
    monkeypatch.setattr(
        EditingModel,
        "edit_images",
        lambda self, images, condition: torch.stack([image_by_class[int(row.argmax())] for row in condition]),
    )
    monkeypatch.setattr(ShardSet, "open", lambda *arguments: world.shards)
    document = evaluate_run(run, suite="quick", classifiers=["linear"])
    table = document.tables[0]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    agreement = rows["label_agreement"]
    assert agreement["generator"] == agreement["target_real"] == "1.000"
    assert float(str(agreement["copy_source"])) < 0.6 > float(str(agreement["shuffled_target"]))


def test_pairs_are_fixed_and_no_image_is_its_own_target() -> None:
    pairs, again = EvaluationPairs.sample(50, 20), EvaluationPairs.sample(50, 20)
    assert np.array_equal(pairs.target_rows, again.target_rows)
    assert (pairs.source_rows != pairs.target_rows).all()
    assert not set(pairs.gallery_rows) & set(pairs.target_rows)


def test_classifier_of_other_labels_and_probe_without_factors_are_rejected(
    world: World, trained_run: Path, tmp_path: Path, fake_classifiers: None
) -> None:
    dataset = {"shards": str(world.shards.path), "condition": {"kind": "valence_arousal"}}
    run = train(world.make_config(tmp_path / "run", dataset=dataset))
    with pytest.raises(UserError, match="--classifier linear: predicts expression"):
        evaluate_run(run, suite="quick", classifiers=["linear"])
    with pytest.raises(UserError, match="--factor-probe linear: predicts none of the true factors"):
        evaluate_run(trained_run, suite="quick", factor_probe="linear", num_components=1)
