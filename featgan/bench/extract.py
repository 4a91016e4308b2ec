"""`featgan bench extract`: feature extraction and evaluation against their forward passes alone."""

import io
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as transforms

from featgan.bench.forward_passes import (
    UNTRAINED_CLASSIFIER,
    ForwardPassRecorder,
    make_run,
    make_shards,
    synchronize_device,
)
from featgan.bench.results import BenchmarkResults, BenchmarkRow, Goal
from featgan.bench.timing import time_interleaved
from featgan.blackbox.extraction import extract_features
from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.blackbox.weights import choose_device
from featgan.config.trusted_callables import trust_given_specs
from featgan.data.shards.shard_set import ShardSet
from featgan.evaluation.evaluate import evaluate_run

BATCH_SIZE = 64

MAX_EVALUATION_REPEATS = 3
"""Maximum number of timed repetitions of the evaluation, which is slow."""


def run_benchmark(
    image_size: int, num_images: int, blackbox: str | None, dim: int, num_pairs: int, repeats: int
) -> BenchmarkResults:
    """Measure extraction into a new cache, and the evaluation of a generator after one training step."""
    spec = blackbox or UNTRAINED_CLASSIFIER
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        shards = make_shards(Path(folder), num_images, image_size)
        rows = [measure_extraction(shards, spec, repeats)]
        if num_pairs:
            rows.append(measure_evaluation(make_run(Path(folder), shards, spec, dim), spec, num_pairs, repeats))
    settings = {
        "image_size": image_size,
        "num_images": num_images,
        "blackbox": spec,
        "dim": dim,
        "num_pairs": num_pairs,
    }
    return BenchmarkResults("extract", rows, settings)


def measure_extraction(shards: ShardSet, spec: str, repeats: int) -> BenchmarkRow:
    """Measure `featgan extract` on all images and their horizontal flips."""
    blackbox, cache_numbers = (
        load_blackbox(spec, device=choose_device(None), trusted=trust_given_specs([spec])),
        count(),
    )
    splits = [shards.get_split(name) for name in shards.split_names]
    num_images = sum(len(split) for split in splits)
    batch = (
        torch.rand(min(BATCH_SIZE, num_images), 3, shards.image_size, shards.image_size, device=blackbox.device) * 2 - 1
    )
    sizes = [min(BATCH_SIZE, num_images - start) for start in range(0, num_images, BATCH_SIZE) for _ in range(2)]
    samples = time_interleaved(
        {
            "naive": lambda: [extract_naively(shards, name, blackbox) for name in shards.split_names],
            "fast": lambda: extract_features(
                shards.path, spec, f"cache-{next(cache_numbers)}", trusted=trust_given_specs([spec])
            ),
            "upper bound": lambda: run_forward_passes(blackbox, batch, sizes),
        },
        repeats,
    )
    return BenchmarkRow(
        "extract: images and their horizontal flips",
        samples["fast"],
        samples["naive"],
        samples["upper bound"],
        (Goal("efficiency", 0.8),),
        num_items=num_images,
        upper_bound_name="the classifier's forward passes of all images and flips, on float tensors",
        note="decoding, loading the classifier, hashing, fitting the feature space, writing",
    )


def extract_naively(shards: ShardSet, split_name: str, blackbox: BlackBox) -> Tensor:
    """Return the features [N, 2, F] of the images of a split and of their flips, decoded one by one with PIL."""
    split, views = shards.get_split(split_name), []
    for is_flipped in (False, True):
        feature_batches = []
        for start in range(0, len(split), BATCH_SIZE):
            rows = range(start, min(start + BATCH_SIZE, len(split)))
            images = [Image.open(io.BytesIO(split.read_jpeg(row))).convert("RGB") for row in rows]
            batch = torch.stack([transforms.to_tensor(image) * 2 - 1 for image in images])
            feature_batches.append(blackbox(batch.flip(3) if is_flipped else batch)[0].cpu())
        views.append(torch.cat(feature_batches))
    return torch.stack(views, 1)


def run_forward_passes(blackbox: BlackBox, batch: Tensor, sizes: list[int]) -> None:
    """Run the classifier on batches of the given sizes."""
    for size in sizes:
        blackbox(batch[:size])
    synchronize_device(blackbox.device)


def measure_evaluation(run_dir: Path, spec: str, num_pairs: int, repeats: int) -> BenchmarkRow:
    """Measure an evaluation against its forward passes alone, which a first evaluation counts."""
    recorder = ForwardPassRecorder()
    evaluate = partial(evaluate_run, run_dir, None, "quick", max_pairs=num_pairs, trusted=trust_given_specs([spec]))
    with recorder.record_passes():
        evaluate()
    variants: dict[str, Callable[[], object]] = {
        "fast": evaluate,
        "upper bound": recorder.prepare_replay(run_dir, spec),
    }
    samples = time_interleaved(variants, min(repeats, MAX_EVALUATION_REPEATS), warmups=0)
    return BenchmarkRow(
        f"evaluate: {num_pairs} pairs, edited, classified and measured",
        samples["fast"],
        upper_bound=samples["upper bound"],
        goals=(Goal("efficiency", 0.8),),
        num_items=sum(recorder.call_sizes["edit"]),
        item_name="edits",
        upper_bound_name=str(recorder),
        note="metrics with their confidence intervals, JPEG compression of baselines, decoding",
    )
