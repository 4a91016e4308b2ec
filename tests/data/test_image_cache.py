"""Tests of the cache of decoded images: content, sharing with forked workers, and when it is used."""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from featgan.config.loading import parse_config
from featgan.data import image_cache
from featgan.data.conditions import build_condition
from featgan.data.image_cache import DecodedImageCache, cache_if_it_fits, required_bytes
from featgan.data.loader import BatchDataset, TrainingSet, open_loader
from featgan.data.shards.split import Split
from featgan.errors import UserError
from tests.conftest import World


@pytest.fixture
def split(world: World) -> Split:
    return world.shards.get_split("train")


def test_cached_images_equal_decoded_images(split: Split) -> None:
    cache, generator = DecodedImageCache(split), np.random.default_rng()
    for _ in range(8):
        rows = generator.integers(0, len(split), 9)  # a row can occur twice in a batch
        flipped = generator.random(9) < 0.5
        assert torch.equal(cache.decode(rows, flipped), split.decode(rows, flipped))
    assert cache.is_decoded is not None
    assert 0 < cache.is_decoded.sum() <= len(split)


def test_batch_does_not_share_memory_with_the_cache(split: Split) -> None:
    cache, rows, not_flipped = DecodedImageCache(split), np.arange(4), np.zeros(4, bool)
    cache.decode(rows, not_flipped).zero_()
    assert torch.equal(cache.decode(rows, not_flipped), split.decode(rows))


def test_cached_images_are_not_decoded_again(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, not_flipped = DecodedImageCache(split), np.zeros(3, bool)
    first = cache.decode(np.arange(3), not_flipped)
    monkeypatch.setattr(split, "decode", lambda *rows: pytest.fail("decoded again"))
    assert torch.equal(cache.decode(np.arange(3), not_flipped), first)


def test_forked_worker_fills_the_shared_memory(split: Split) -> None:
    cache = DecodedImageCache(split)
    worker = multiprocessing.get_context("fork").Process(
        target=cache.decode, args=(np.array([5, 2]), np.array([True, False]))
    )
    worker.start()
    worker.join()
    assert worker.exitcode == 0 and cache.is_decoded is not None
    assert np.flatnonzero(cache.is_decoded).tolist() == [2, 5]
    assert torch.equal(torch.from_numpy(cache.images[5].copy()), split.decode([5])[0])


def test_spawned_worker_decodes_without_the_cache(split: Split) -> None:
    copy = pickle.loads(pickle.dumps(DecodedImageCache(split)))
    rows, flipped = np.arange(3), np.array([True, False, True])
    assert copy.is_decoded is None and torch.equal(copy.decode(rows, flipped), split.decode(rows, flipped))


def test_corrupted_image_is_not_cached(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, read_bytes = DecodedImageCache(split), split.read_bytes
    monkeypatch.setattr(split, "read_bytes", lambda row: read_bytes(row)[:100])
    with pytest.raises(UserError):
        cache.decode(np.arange(2), np.zeros(2, bool))
    monkeypatch.undo()
    assert torch.equal(cache.decode(np.arange(2), np.zeros(2, bool)), split.decode(range(2)))


def test_images_are_cached_if_they_are_used_again_and_fit(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    count, needed = len(split), required_bytes(split)
    monkeypatch.setattr(image_cache, "share_of_memory", lambda: 4 * needed)
    assert isinstance(cache_if_it_fits(split, count + 1), DecodedImageCache)
    assert cache_if_it_fits(split, count) is split  # no image is used twice in one epoch
    for memory in (4 * needed - 1, None):
        monkeypatch.setattr(image_cache, "share_of_memory", lambda memory=memory: memory)
        assert cache_if_it_fits(split, count + 1) is split


@pytest.mark.parametrize("num_workers", [0, 2])
def test_cached_batches_equal_decoded_batches_in_every_epoch(
    world: World, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {"shards": str(world.shards.path), "feature_cache": "linear"}
    condition = build_condition(parse_config({"dataset": tree}, "test").dataset, world.shards, "train")
    batches = BatchDataset([TrainingSet(world.shards.get_split("train"), condition, True)], 16, 1, 1)
    reference = [batches[step].images for step in range(12)]
    with open_loader(batches, 0, 12, num_workers) as loader:
        assert isinstance(batches.images[0], DecodedImageCache)
        for batch, expected in zip(loader, reference, strict=True):
            assert torch.equal(batch.images, expected)
    assert batches.images[0].is_decoded is not None
    assert batches.images[0].is_decoded.all()
