"""What an evaluation does with a model of features: edit images, show them to the black box, hand both to the metrics.

Every family of measures is a table for the generator and one for each control, taken from the same images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.shards.shard_set import ShardSet, Split
from featgan.inference.editor import Editor, ask
from featgan.inference.model import Model
from featgan.metrics import baselines, decisions, faithfulness, preservation, realism
from featgan.metrics.bootstrap import Booleans, Floats, Integers, Measure
from featgan.metrics.inception import Inception
from featgan.metrics.predictions import Response, standardize
from featgan.metrics.preservation import Distance, EditSizes
from featgan.system.progress import track

MOST_KNOWN = 50_000
"""Training images, evenly spread, among which the nearest real image is sought."""

Table = dict[str, Measure]
Family = dict[str, Table]
"""Measures of the generator, first, and of every control, by name."""


@dataclass(frozen=True)
class Pairs:
    """Source images and the features asked of them: those of other validation images, fixed by a seed."""

    source_rows: Integers  # [N]
    others: Integers  # [N], the place of each pair's target among the sources
    gallery_rows: Integers  # [G], nobody's targets

    @property
    def target_rows(self) -> Integers:
        return np.take(self.source_rows, self.others)

    @classmethod
    def draw(cls, num_images: int, count: int, seed: int = 0) -> "Pairs":
        """At most `count` pairs of `num_images` images; no image is its own target."""
        order = np.random.default_rng([seed, num_images]).permutation(num_images)
        source = order[:count]
        return cls(source, baselines.derangement(len(source), seed), order[count : count + 1000])


class FeatureSubject:
    """A model whose condition is a black box's features, with that box and its validation data."""

    def __init__(self, model: Model, box: BlackBox, shards: ShardSet, cache: FeatureCache) -> None:
        assert model.space is not None
        self.model = model
        self.editor = Editor(model)
        self.box = box
        self.shards = shards
        self.cache = cache
        self.space = model.space
        self.split: Split = shards.split("validation")

    def cached(self, split: str, rows: np.ndarray, mirrored: bool = False) -> Response:
        """What the box said of real images."""
        return Response.of(self.cache.features(split, rows, mirrored), self.cache.outputs(split, rows, mirrored))

    @cached_property
    def known_rows(self) -> Integers:
        """The training images among which the nearest real one is sought."""
        count = len(self.shards.split("train"))
        return np.unique(np.linspace(0, count - 1, min(count, MOST_KNOWN)).round().astype(np.int64))

    @cached_property
    def known(self) -> Response:
        """What the box said of them."""
        return self.cached("train", self.known_rows)

    def nearest(self, features: Floats) -> Integers:
        """The row in `known` nearest to each features vector: [N, F] => [N]."""
        return baselines.nearest_rows(self.space, features, self.known.features)

    def known_images(self, nearest: Integers) -> Tensor:
        """The training images in given rows of `known`, uint8."""
        return self.shards.split("train").decode(self.known_rows[nearest])

    def images(self, rows: np.ndarray) -> Tensor:
        """Real validation images, uint8."""
        return self.split.decode(rows)

    def edit(self, images: Tensor, features: Tensor | Floats, own: Tensor | Floats) -> Tensor:
        """G(x, c) for wanted features [N, F] of the box, from the images' own."""
        vectors = (torch.as_tensor(np.asarray(each), dtype=torch.float32) for each in (features, own))
        wanted, before = map(self.model.encode, vectors)
        return self.editor.edit(images, self.model.ask(wanted, before))

    def see(self, images: Tensor) -> Response:
        """What the box says of images."""
        return ask(self.box, images)


@dataclass(frozen=True)
class Edits:
    """N source images edited to the features of N others, and what the box sees there and in every control."""

    pairs: Pairs
    images: dict[str, Tensor]  # uint8 [N, 3, S, S]: what stands for the edit in each column that has pictures
    kept: Tensor  # G(x, c0)
    returned: Tensor  # G(G(x, c), c0)
    source: Response
    target: Response
    nearest: Integers  # row in `known` of the training image nearest to each request
    seen: dict[str, Response]  # the generator's, then each control's
    sizes: dict[str, EditSizes]
    asked: Booleans | None  # pairs of which another decision is asked

    @property
    def sources(self) -> Tensor:
        return self.images["identity_copy"]


def edit_pairs(subject: FeatureSubject, pairs: Pairs) -> Edits:
    """Edit every source to its target's features, to another's (the shuffled control), to its own, and back."""
    source = subject.cached("validation", pairs.source_rows)
    target, images = source.take(pairs.others), subject.images(pairs.source_rows)
    shuffled = target.features[baselines.derangement(len(images), 1)]
    with subject.editor.showing("editing", 4 * len(images)):
        edited = subject.edit(images, target.features, source.features)
        to_others = subject.edit(images, shuffled, source.features)
        kept = subject.edit(images, source.features, source.features)
        returned = subject.edit(edited, source.features, target.features)
    nearest = subject.nearest(target.features)
    shown = {
        "generator": edited,
        "identity_copy": images,
        "shuffled_condition": to_others,
        "nearest_real": subject.known_images(nearest),
    }
    seen = {
        "generator": subject.see(edited),
        "identity_copy": source,
        "shuffled_condition": subject.see(to_others),
        "mean_vector": baselines.mean_vector(subject.space, len(target), subject.cache.head),
        "nearest_real": subject.known.take(nearest),
        "ceiling_jpeg": subject.see(baselines.jpeg_round_trip(images[pairs.others])),
        "ceiling_mirror": subject.cached("validation", pairs.target_rows, mirrored=True),
    }
    sizes = {name: EditSizes.of(images, each) for name, each in shown.items()}
    asked = decisions.asked_to_change(subject.cache.output_kind, source, target)
    return Edits(pairs, shown, kept, returned, source, target, nearest, seen, sizes, asked)


def measure_faithfulness(subject: FeatureSubject, edits: Edits) -> Family:
    """Does the box see what was asked, and decide so?"""
    gallery = subject.cached("validation", edits.pairs.gallery_rows).features
    kind, names = subject.cache.output_kind, subject.cache.class_names
    found = {}
    for name, seen in track(edits.seen.items(), "faithfulness", len(edits.seen)):
        found[name] = faithfulness.faithfulness_table(subject.space, edits.source, edits.target, seen, gallery)
        found[name] |= decisions.decision_table(kind, edits.source, edits.target, seen, names)
    return found


def measure_preservation(subject: FeatureSubject, edits: Edits, lpips: Distance | None = None) -> Family:
    """Does what need not change stay? Self-reconstruction, the way back, and the size of the edit."""
    images, asked = edits.sources, edits.asked
    own = subject.known_images(subject.nearest(edits.source.features))
    triples = {
        "generator": (edits.kept, edits.returned),
        "identity_copy": (images, images),
        "shuffled_condition": (None, None),
        "nearest_real": (own, own),
    }
    found = {
        name: preservation.preservation_table(
            images, kept, returned, edits.images[name], asked, lpips, edits.sizes[name]
        )
        for name, (kept, returned) in triples.items()
    }
    jpeg = baselines.jpeg_round_trip(images)
    return found | {"ceiling_jpeg": preservation.preservation_table(images, jpeg, None, jpeg, asked, lpips)}


def measure_realism(subject: FeatureSubject, edits: Edits) -> Family:
    """Distances of edited images to real ones in the box's space, beside those of real ones to real ones."""
    half = realism.judged_half(len(edits.source))
    seen = {name: live_features(subject, response)[half] for name, response in edits.seen.items()}
    return realism.realism_family(live_features(subject, edits.source), seen)


def measure_inception(inception: Inception, images: Mapping[str, Tensor]) -> Family:
    """The same in Inception's space, for the columns that are worth its time; the sources are `identity_copy`."""
    sources = images["identity_copy"]
    half, real = realism.judged_half(len(sources)), inception(sources)
    seen = {"generator": inception(images["generator"][half]), "identity_copy": real[half]}
    if "nearest_real" in images:
        seen["nearest_real"] = inception(images["nearest_real"][half])
    return realism.realism_family(real, seen)


def live_features(subject: FeatureSubject, seen: Response) -> Floats:
    """Standardised features without the dead ones."""
    return standardize(subject.space, seen.features)
