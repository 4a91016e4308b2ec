"""Decoded images in memory: the same bytes, shared with forked workers, kept only where it pays and fits."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch

from featgan.config.loading import validate
from featgan.data import image_cache
from featgan.data.conditions import build_condition
from featgan.data.image_cache import DecodedImages, free_memory, keep_where_it_pays, needed_bytes
from featgan.data.loader import BatchStream, Source, open_loader
from featgan.data.shards.shard_set import Split
from featgan.errors import UserError
from tests.conftest import World


@pytest.fixture
def split(world: World) -> Split:
    return world.shards.split("train")


def test_kept_images_are_the_decoded_ones(split: Split) -> None:
    kept, generator = DecodedImages(split), np.random.default_rng()
    for _ in range(8):
        rows = generator.integers(0, len(split), 9)  # some twice in a batch
        mirrored = generator.random(9) < 0.5
        assert torch.equal(kept.decode(rows, mirrored), split.decode(rows, mirrored))
    assert 0 < kept.known.sum() <= len(split)


def test_a_batch_does_not_share_the_kept_memory(split: Split) -> None:
    kept, rows, upright = DecodedImages(split), np.arange(4), np.zeros(4, bool)
    kept.decode(rows, upright).zero_()
    assert torch.equal(kept.decode(rows, upright), split.decode(rows))


def test_what_is_known_is_not_decoded_again(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, upright = DecodedImages(split), np.zeros(3, bool)
    first = kept.decode(np.arange(3), upright)
    monkeypatch.setattr(split, "decode", lambda *rows: pytest.fail("decoded again"))
    assert torch.equal(kept.decode(np.arange(3), upright), first)


def test_a_forked_worker_fills_the_same_memory(split: Split) -> None:
    kept = DecodedImages(split)
    worker = multiprocessing.get_context("fork").Process(
        target=kept.decode, args=(np.array([5, 2]), np.array([True, False]))
    )
    worker.start()
    worker.join()
    assert worker.exitcode == 0 and np.flatnonzero(kept.known).tolist() == [2, 5]
    assert torch.equal(torch.from_numpy(kept.images[5].copy()), split.decode([5])[0])


def test_a_spawned_worker_decodes_by_itself(split: Split) -> None:
    copy = pickle.loads(pickle.dumps(DecodedImages(split)))
    rows, mirrored = np.arange(3), np.array([True, False, True])
    assert copy.known is None and torch.equal(copy.decode(rows, mirrored), split.decode(rows, mirrored))


def test_a_damaged_image_is_not_kept(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, read = DecodedImages(split), split.read
    monkeypatch.setattr(split, "read", lambda row: read(row)[:100])
    with pytest.raises(UserError):
        kept.decode(np.arange(2), np.zeros(2, bool))
    monkeypatch.undo()
    assert torch.equal(kept.decode(np.arange(2), np.zeros(2, bool)), split.decode(range(2)))


def test_images_are_kept_where_it_pays_and_fits(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    count, needed = len(split), needed_bytes(split)
    monkeypatch.setattr(image_cache, "free_memory", lambda: 4.0 * needed)
    assert isinstance(keep_where_it_pays(split, count + 1), DecodedImages)
    assert keep_where_it_pays(split, count) is split  # one epoch shows nothing twice
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert keep_where_it_pays(split, count + 1) is split
    monkeypatch.setattr(image_cache, "free_memory", lambda: 8.0 * needed)
    assert isinstance(keep_where_it_pays(split, count + 1), DecodedImages)


def test_the_tightest_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/proc/meminfo": "MemTotal: 900 kB\nMemAvailable:     500 kB\n", image_cache.CGROUP_LIMITS[0]: "max\n"}
    monkeypatch.setattr(image_cache, "read", lambda path: texts.get(path, ""))
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    assert free_memory() == 500 * 1024
    texts[image_cache.CGROUP_LIMITS[1]] = "400000\n"
    assert free_memory() == 400000
    texts.clear()
    assert free_memory() == 0
    monkeypatch.undo()
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    assert not os.path.exists("/proc/meminfo") or free_memory() == 2**20


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_sees_the_same_batches_epoch_after_epoch(
    world: World, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {"shards": str(world.shards.path), "features": "stand-in"}
    condition = build_condition(validate({"dataset": tree}, "test").dataset, world.shards, "train")
    batches = BatchStream([Source(world.shards.split("train"), condition, True)], 16, 1, 1)
    plain = [batches[step].images for step in range(12)]
    with open_loader(batches, 0, 12, num_workers) as loader:
        assert isinstance(batches.images[0], DecodedImages)
        for batch, expected in zip(loader, plain, strict=True):
            assert torch.equal(batch.images, expected)
    assert batches.images[0].known.all()
