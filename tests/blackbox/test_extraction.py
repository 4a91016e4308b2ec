"""Tests of extraction: flips have their own features, finished shards are kept, changed shards are rejected."""

import csv
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from featgan.blackbox import extraction
from featgan.blackbox.prefetch import prefetch_map
from featgan.config.trusted_callables import ALL_CALLABLES
from featgan.data.feature_cache.cache import FeatureCache, PendingShard
from featgan.data.packing.pack import pack_shards
from featgan.data.remote.access import DataAccess
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.system.images import to_float
from featgan.system.progress import progress_bar
from tests.conftest import World
from tests.helpers.servers import serve_folder

SIZE = 16
extract_features = partial(extraction.extract_features, trusted=ALL_CALLABLES)

CALLABLE_SPEC = "code_under_study:build"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Pack 14 images of random colors, dark on the left, in shards of four."""
    source = tmp_path / "source"
    source.mkdir()
    generator = np.random.default_rng(5)
    with (source / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "split", "expression"))
        for number in range(14):
            color = generator.uniform(60, 255, 3)
            shade = np.linspace(0.2, 1, SIZE)[None, :, None]
            pixels = np.broadcast_to(color * shade, (SIZE, SIZE, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(source / f"{number:02d}.png")
            writer.writerow((f"{number:02d}.png", "validation" if number > 9 else "train", "happy"))
    pack_shards("csv", source, tmp_path / "shards", image_size=SIZE, images_per_shard=4, workers=1)
    return tmp_path / "shards"


def half_image_colors(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean colors of the left and right half as features, and their brightness difference as output."""
    left, right = images[..., : SIZE // 2].mean((2, 3)), images[..., SIZE // 2 :].mean((2, 3))
    return torch.cat([left, right], 1), (right - left).mean(1, keepdim=True)


@pytest.fixture
def register_classifier(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], str]:
    """Return a function that registers a module or function and returns its SPEC."""

    def register(classifier: object) -> str:
        module = types.ModuleType("code_under_study")
        module.build = lambda: classifier  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return CALLABLE_SPEC

    return register


def test_features_of_flips_are_computed_from_flipped_images(
    shards: Path, register_classifier: Callable[[object], str]
) -> None:
    cache = extract_features(shards, register_classifier(half_image_colors), "halves", batch_size=3)
    for name in ("train", "validation"):
        split = ShardSet.open(shards).get_split(name)
        rows = range(len(split))
        images = to_float(split.decode(rows))
        np.testing.assert_allclose(cache.features(name, rows), half_image_colors(images)[0], atol=1e-5)
        np.testing.assert_allclose(cache.features(name, rows, True), half_image_colors(images.flip(3))[0], atol=1e-5)
        np.testing.assert_allclose(cache.outputs(name, rows, True), half_image_colors(images.flip(3))[1], atol=1e-5)
        assert (cache.outputs(name, rows) > 0.2).all()
        assert (cache.outputs(name, rows, True) < -0.2).all()


def test_cache_stores_the_classifiers_identity_and_head(
    shards: Path, register_classifier: Callable[[object], str]
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 8))
    cache = extract_features(shards, register_classifier(network), "classifier", num_components=3, task="expression")
    assert cache.blackbox["layer"] == "4:input"
    assert cache.blackbox["spec"] == f"{CALLABLE_SPEC}?task=expression"
    assert (cache.feature_dim, cache.output_dim, cache.num_components) == (5, 8, 3)
    assert (cache.task, cache.class_names) == ("expression", ())
    assert cache.space.num_components == 3
    assert cache.head is not None
    weight, bias = cache.head
    rows = range(10)
    np.testing.assert_allclose(
        cache.features("train", rows) @ weight.numpy().T + bias.numpy(), cache.outputs("train", rows), atol=1e-5
    )


def test_a_classifier_with_a_constant_prediction_causes_a_warning(
    shards: Path, register_classifier: Callable[[object], str], capfd: pytest.CaptureFixture[str]
) -> None:
    hidden, head = nn.Linear(12, 5), nn.Linear(5, 8)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), hidden, nn.Tanh(), head)
    with torch.no_grad():
        head.bias[3] = 1000.0
    extract_features(shards, register_classifier(network), "classifier", task="expression")
    assert "the classifier predicts 'output 4' for 100% of the images" in " ".join(capfd.readouterr().err.split())
    with torch.no_grad():
        head.bias[3] = 0.0
        head.weight[:] = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)) * 100
        hidden.weight *= 100
    extract_features(shards, register_classifier(network), "other", task="expression")
    assert "the classifier predicts" not in capfd.readouterr().err


def test_task_can_be_added_to_an_existing_cache(shards: Path, register_classifier: Callable[[object], str]) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 8))
    assert extract_features(shards, register_classifier(network), "classifier").task == "other"
    again = extract_features(shards, register_classifier(network), "classifier", task="expression")
    assert (again.task, again.class_names) == ("expression", ())


def test_interrupted_extraction_resumes_where_it_stopped(
    shards: Path, register_classifier: Callable[[object], str]
) -> None:
    batch_sizes: list[int] = []

    def interrupted(images: Tensor) -> tuple[Tensor, Tensor]:
        batch_sizes.append(len(images))
        if sum(batch_sizes) > 3 + 2 * 6:  # the probe images, one complete shard, half of the second
            raise KeyboardInterrupt
        return half_image_colors(images)

    with pytest.raises(KeyboardInterrupt):
        extract_features(shards, register_classifier(interrupted), "halves", batch_size=4)
    folder = shards / "features" / "halves"
    first = folder / "train-00000.features.npy"
    written = first.stat().st_mtime_ns
    with pytest.raises(UserError, match="not complete"):
        FeatureCache.open(ShardSet.open(shards), "halves")
    batch_sizes.clear()

    def counted(images: Tensor) -> tuple[Tensor, Tensor]:
        batch_sizes.append(len(images))
        return half_image_colors(images)

    cache = extract_features(shards, register_classifier(counted), "halves", batch_size=4)
    assert sum(batch_sizes) == 3 + 2 * 10
    assert first.stat().st_mtime_ns == written
    images = to_float(ShardSet.open(shards).get_split("train").decode(range(10)))
    np.testing.assert_allclose(cache.features("train", range(10)), half_image_colors(images)[0], atol=1e-5)


def test_complete_cache_is_not_modified(
    shards: Path, register_classifier: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = extract_features(shards, register_classifier(half_image_colors), "halves")
    before = {path.name: path.stat().st_mtime_ns for path in cache.path.iterdir()}
    extract_features(shards, register_classifier(half_image_colors), "halves")
    assert "already extracted" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in cache.path.iterdir()} == before
    assert (
        extract_features(shards, register_classifier(half_image_colors), "halves", num_components=2).num_components == 2
    )
    assert "halves: changing from all features to 2 components" in " ".join(capsys.readouterr().err.split())


def truncate_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip_bit(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


@pytest.mark.parametrize("corrupt", [truncate_file, flip_bit, Path.unlink])
@pytest.mark.parametrize("file", ["train-00001.features.npy", "train-00001.outputs.npy", "space.safetensors"])
def test_extracting_again_repairs_only_corrupted_files(
    shards: Path, register_classifier: Callable[[object], str], corrupt: Callable[[Path], None], file: str
) -> None:
    cache = extract_features(shards, register_classifier(half_image_colors), "halves", num_components=2)
    before = {path.name: path.read_bytes() for path in cache.path.iterdir()}
    kept = {path: path.stat().st_mtime_ns for path in cache.path.glob("*.npy") if "train-00001" not in path.name}
    corrupt(cache.path / file)
    batch_sizes: list[int] = []

    def counted(images: Tensor) -> tuple[Tensor, Tensor]:
        batch_sizes.append(len(images))
        return half_image_colors(images)

    extract_features(shards, register_classifier(counted), "halves", num_components=2).verify()
    assert sum(batch_sizes) == 3 + (2 * 4 if file.endswith(".npy") else 0)  # probe images, and the shard's 4 images
    assert {path.name: path.read_bytes() for path in cache.path.iterdir()} == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_interrupted_repair_resumes(shards: Path, register_classifier: Callable[[object], str]) -> None:
    cache = extract_features(shards, register_classifier(half_image_colors), "halves")
    before = {path.name: path.read_bytes() for path in cache.path.iterdir()}
    flip_bit(cache.path / "train-00002.features.npy")
    calls: list[int] = []

    def interrupted(images: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(images))
        if len(calls) > 1:  # after the probe images
            raise KeyboardInterrupt
        return half_image_colors(images)

    with pytest.raises(KeyboardInterrupt):
        extract_features(shards, register_classifier(interrupted), "halves")
    with pytest.raises(UserError, match="not complete"):
        FeatureCache.open(ShardSet.open(shards), "halves")
    extract_features(shards, register_classifier(half_image_colors), "halves")
    assert {path.name: path.read_bytes() for path in cache.path.iterdir()} == before


def test_another_classifier_does_not_repair_a_corrupted_cache(
    shards: Path, register_classifier: Callable[[object], str]
) -> None:
    cache = extract_features(shards, register_classifier(half_image_colors), "halves")
    flip_bit(cache.path / "train-00000.features.npy")
    before = {path.name: path.read_bytes() for path in cache.path.iterdir()}
    with pytest.raises(UserError, match="features of a different black box"):
        extract_features(shards, register_classifier(half_image_colors), "halves", preprocessing={"range": (0, 1)})
    assert {path.name: path.read_bytes() for path in cache.path.iterdir()} == before


def test_another_classifier_under_the_same_name_is_rejected(
    shards: Path, register_classifier: Callable[[object], str]
) -> None:
    cache = extract_features(shards, register_classifier(half_image_colors), "halves")
    before = cache.features("train", range(10))
    with pytest.raises(UserError, match="features of a different black box"):
        extract_features(
            shards,
            register_classifier(nn.Sequential(nn.Flatten(), nn.Linear(768, 2))),
            "halves",
            preprocessing={"image_size": 16},
        )
    with pytest.raises(UserError, match="features of a different black box"):
        extract_features(shards, register_classifier(half_image_colors), "halves", preprocessing={"range": (0, 1)})
    np.testing.assert_array_equal(
        FeatureCache.open(ShardSet.open(shards), "halves").features("train", range(10)), before
    )


def test_modified_shards_are_rejected_before_anything_is_written(
    shards: Path, register_classifier: Callable[[object], str]
) -> None:
    path = shards / "train-00001.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="train-00001.tar"):
        extract_features(shards, register_classifier(half_image_colors), "halves")
    assert not (shards / "features").exists()


def test_error_about_non_finite_features_names_the_image(
    shards: Path, register_classifier: Callable[[object], str]
) -> None:
    with pytest.raises(UserError, match="not finite"):
        extract_features(
            shards, register_classifier(lambda images: (images.mean((2, 3)) / 0, images.mean((1, 2, 3)))), "broken"
        )


def test_prefetch_map_keeps_the_order_and_raises_when_a_result_is_due() -> None:
    assert list(prefetch_map(lambda number: number**2, range(7))) == [0, 1, 4, 9, 16, 25, 36]
    results = prefetch_map(lambda number: 1 // (3 - number), range(5))
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_shards_behind_a_url_are_downloaded_once(world: World, tmp_path: Path) -> None:
    pending = [
        PendingShard(split.name, name, range(start, start + count))
        for split in map(world.shards.get_split, world.shards.split_names)
        for name, count, start in zip(
            split.shard_names, split.shard_counts, np.cumsum([0, *split.shard_counts]), strict=False
        )
    ]
    with serve_folder(world.shards.path) as server, progress_bar("extracting", 1, "images") as bar:
        shards = ShardSet.open(server.url, DataAccess(tmp_path / "cache", 0.01))
        progress = extraction.ExtractionProgress(bar, tmp_path)
        extracted = extraction.FeatureExtractor(shards, world.classifier, 4, progress).extract_shards(pending)  # type: ignore[arg-type]
        for (shard, features, outputs), expected in zip(extracted, pending, strict=True):
            assert shard == expected
            for flipped in (0, 1):
                rows = np.array(shard.rows)
                expected_features = world.cache.features(shard.split, rows, bool(flipped))
                assert np.allclose(features[:, flipped], expected_features, atol=1e-5)
                expected_outputs = world.cache.outputs(shard.split, rows, bool(flipped))
                assert np.allclose(outputs[:, flipped], expected_outputs, atol=1e-4)
        assert sorted(path for path in server.requests if path.endswith(".tar")) == sorted(
            f"/{shard.shard}.tar" for shard in pending
        )
