"""Tests of the summary of a feature cache: the same values as from all training images, and caches without it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from featgan.data.feature_cache import summary as summary_module
from featgan.data.feature_cache.cache import SUMMARY_FILE, FeatureCache
from featgan.data.feature_cache.storage import ShardArrays
from featgan.data.feature_cache.summary import LABEL_MEANS, evenly_spaced_rows, mean_of_labels, select_class_rows
from featgan.data.remote.shard_files import LocalFiles
from featgan.data.shards.manifest import MANIFEST_FILE
from featgan.errors import UserError
from featgan.features.directions import class_means
from featgan.inference import training_data as training_data_module
from featgan.inference.training_data import (
    TrainingData,
    mean_features_by_prediction,
    training_class_means,
    untrained_outputs,
)
from tests.conftest import FakeLinearClassifier, World, write_features
from tests.helpers.limits import measure_call


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use at most 4 images of each class, and read 3 images at once."""
    monkeypatch.setattr(summary_module, "MAX_IMAGES_PER_CLASS", 4)
    monkeypatch.setattr(summary_module, "CHUNK_ROWS", 5)
    monkeypatch.setattr(training_data_module, "MAX_BLOCK_VALUES", 3 * 8)
    monkeypatch.setattr(training_data_module, "MIN_IMAGES_PER_PREDICTION", 3)
    monkeypatch.setattr(summary_module, "MAX_BLOCK_VALUES", 3 * 8)


def remove_summary(cache: FeatureCache) -> None:
    """Change a cache to one of a release without summaries."""
    manifest = json.loads((cache.path / MANIFEST_FILE).read_text())
    del manifest["files"][SUMMARY_FILE]
    (cache.path / MANIFEST_FILE).write_text(json.dumps(manifest))
    (cache.path / SUMMARY_FILE).unlink()


def are_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.usefixtures("few_images")
def test_summary_gives_the_values_of_all_training_images(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = write_features(world.shards, world.classifier, str(tmp_path / "cache"))
    data, num_classes = TrainingData(world.shards, cache), len(world.shards.classes)
    with monkeypatch.context() as patches:
        patches.setattr(ShardArrays, "gather_rows", None)  # nothing but the summary is read
        by_prediction, by_label = mean_features_by_prediction(data), training_class_means(data, num_classes)
        untrained = untrained_outputs(data)
    remove_summary(cache)
    data = replace(data, cache=FeatureCache.open(world.shards, str(cache.path)))
    assert by_prediction and are_equal(by_prediction, mean_features_by_prediction(data))
    assert untrained == untrained_outputs(data)
    expected = training_class_means(data, num_classes)
    assert by_label is not None and expected is not None
    assert torch.allclose(by_label, expected, rtol=1e-6)


def test_summary_of_other_classes_is_not_used(world: World) -> None:
    assert len(world.cache.summary[LABEL_MEANS]) == len(world.shards.classes)
    means = training_class_means(TrainingData(world.shards, world.cache), len(world.shards.classes) + 1)
    assert means is not None and len(means) == len(world.shards.classes) + 1


@pytest.mark.usefixtures("few_images")
def test_class_without_images_has_the_mean_of_the_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (50, 2, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", features)
    arrays = ShardArrays(LocalFiles([tmp_path / "a.npy"]), [50], 3)
    labels = rng.choice([-1, 0, 2], 50).astype(np.int16)
    rows = np.concatenate([evenly_spaced_rows(np.flatnonzero(labels == label), 4) for label in (0, 2)])
    expected = class_means(torch.from_numpy(features[rows, 0]), torch.from_numpy(labels[rows].astype(np.int64)), 4)
    assert torch.allclose(mean_of_labels(arrays, labels, 4), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_rows", [1 << 20, 777])
def test_rows_of_a_class_are_evenly_spaced(monkeypatch: pytest.MonkeyPatch, chunk_rows: int) -> None:
    monkeypatch.setattr(summary_module, "CHUNK_ROWS", chunk_rows)
    classes = np.random.default_rng(0).integers(-1, 4, 30_000)
    selected = dict(select_class_rows(classes, 6))
    assert list(selected) == [0, 1, 2, 3]
    for number, rows in selected.items():
        assert np.array_equal(rows, evenly_spaced_rows(np.flatnonzero(classes == number), 2000))


MANY_IMAGES_SETUP = """
import numpy as np
from types import SimpleNamespace
from featgan.blackbox.output_check import has_class, has_values, select_labeled_rows
from featgan.data.feature_cache import summary
from featgan.data.row_selection import AllRows
from featgan.inference import training_data
count = 3_000_000
labels = np.tile(np.arange(1000, dtype=np.int16), count // 1000)
values = np.zeros(count, np.float32)
class Split(SimpleNamespace):
    def __len__(self): return count
split = Split(expression=labels, valence=values, arousal=values)
shards = SimpleNamespace(get_split=lambda name: split, classes=tuple(map(str, range(1001))))
scores = np.zeros((summary.MAX_BLOCK_VALUES // 100, 100), np.float32)
cache = SimpleNamespace(output_dim=100, outputs=lambda split, rows: scores[:len(rows)], summary={})
def run():
    assert summary.count_classes(labels, 1000).tolist() == [3000] * 1000
    assert training_data.untrained_classes(shards) == ("1000",)
    assert training_data.count_predictions(cache, count)[0] == count
    assert all(len(rows) == 2000 for _, rows in summary.select_class_rows(labels, 1000))
    assert len(summary.evenly_spaced_rows(AllRows(count), 2000)) == 2000
    assert len(select_labeled_rows(split, has_class)) == len(select_labeled_rows(split, has_values)) == 10_000
"""


def test_memory_for_millions_of_images_is_bounded() -> None:
    # One int64 for each image would need 24 MB, several times, and all outputs would need 1.2 GB.
    assert measure_call(MANY_IMAGES_SETUP, "run()").megabytes < 80


class Regressor(FakeLinearClassifier):
    task = "other"
    class_names = ()


def test_other_tasks_have_no_predicted_classes(world: World, tmp_path: Path) -> None:
    cache = write_features(world.shards, Regressor(), str(tmp_path / "cache"))
    assert set(cache.summary) == {LABEL_MEANS}


def test_large_summaries_are_not_stored(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "MAX_SUMMARY_VALUES", 10)
    cache = write_features(world.shards, world.classifier, str(tmp_path / "cache"))
    assert set(cache.summary) == {"prediction_counts"}
    data = TrainingData(world.shards, cache)
    assert are_equal(mean_features_by_prediction(data), mean_features_by_prediction(replace(data, cache=world.cache)))


def test_damaged_summary_is_one_line(world: World, tmp_path: Path) -> None:
    cache = write_features(world.shards, world.classifier, str(tmp_path / "cache"))
    path = cache.path / SUMMARY_FILE
    tensors = load_file(path)
    for damaged in ({**tensors, "other": torch.zeros(1)}, {"prediction_means": tensors["prediction_means"]}):
        save_file(damaged, path)
        with pytest.raises(
            UserError, match=r"summary\.safetensors: its tensors do not fit the manifest; remove"
        ) as error:
            assert FeatureCache(world.shards, cache.path, cache.manifest, cache.location).summary
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"summary\.safetensors: \d+ bytes, but"):
        FeatureCache.open(world.shards, str(cache.path))
