"""What an evaluation does with a model: edit images, show them to the black box, hand both to the metrics."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.load import BlackBox
from featgan.data.features import FeatureCache
from featgan.data.shards import ShardSet, Split
from featgan.data.synthetic import EXPRESSION_FACTORS, NUISANCE_FACTORS
from featgan.directions import component_sweep, projections
from featgan.errors import UserError
from featgan.images import to_float, to_uint8
from featgan.metrics import controls, decisions, faithfulness, preservation, realism, traversal
from featgan.metrics.factors import FactorNames, factor_response, factor_table
from featgan.metrics.intervals import Floats, Measure, as_floats
from featgan.metrics.response import Response, project
from featgan.model import Model
from featgan.progress import track

SWEEP = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Whitened values that a component is swept over: deviations of the training features."""
BATCH = 64

Table = dict[str, Measure]


@dataclass(frozen=True)
class Pairs:
    """Source images and the features asked of them: those of other validation images, fixed by a seed."""

    source_rows: np.ndarray  # [N]
    target_rows: np.ndarray  # [N]
    gallery_rows: np.ndarray  # [G], nobody's targets

    @classmethod
    def draw(cls, num_images: int, count: int, seed: int = 0) -> "Pairs":
        """At most `count` pairs of `num_images` images; no image is its own target."""
        order = np.random.default_rng([seed, num_images]).permutation(num_images)
        source = order[:count]
        target = source[controls.derangement(len(source), seed)]
        return cls(source, target, order[count : count + 1000])


class FeatureSubject:
    """A model whose condition is a black box's features, with that box and its validation data."""

    def __init__(self, model: Model, box: BlackBox, shards: ShardSet, cache: FeatureCache) -> None:
        assert model.space is not None
        self.model = model
        self.box = box
        self.shards = shards
        self.cache = cache
        self.space = model.space
        self.split: Split = shards.split("validation")

    def cached(self, split: str, rows: np.ndarray, mirrored: bool = False) -> Response:
        """What the box said of real images."""
        return Response.of(self.cache.features(split, rows, mirrored), self.cache.outputs(split, rows, mirrored))

    def images(self, rows: np.ndarray) -> Tensor:
        """Real images in [-1, 1]."""
        return to_float(self.split.decode(rows))

    def edit(self, images: Tensor, features: Tensor | Floats) -> Tensor:
        """G(x, c), rounded to the 256 levels a picture has: what is measured is what can be saved and seen."""
        wanted = torch.as_tensor(np.asarray(features), dtype=torch.float32)
        return to_float(to_uint8(self.model.edit(images, self.model.encode(wanted))))

    def see(self, images: Tensor) -> Response:
        """What the box says of images."""
        return ask(self.box, images)


def ask(box: BlackBox, images: Tensor) -> Response:
    """What a box says of images, a batch at a time."""

    def on_host(batch: Tensor) -> tuple[Tensor, Tensor]:
        features, outputs = box(batch)
        return features.cpu(), outputs.cpu()

    return controls.respond(images, on_host, BATCH)


@dataclass(frozen=True)
class Obedience:
    """Faithfulness and decisions of the generator and of every control, and the images they were taken from."""

    tables: dict[str, Table]
    images: Tensor
    edited: Tensor
    source: Response
    measured: Response


def measure_obedience(subject: FeatureSubject, pairs: Pairs) -> Obedience:
    """Does the box see what was asked? The generator first, then the controls, on the same pairs."""
    source = subject.cached("validation", pairs.source_rows)
    target = subject.cached("validation", pairs.target_rows)
    gallery = subject.cached("validation", pairs.gallery_rows).features
    images = subject.images(pairs.source_rows)
    edited = subject.edit(images, target.features)
    measured = subject.see(edited)
    shuffled = subject.see(subject.edit(images, target.features[controls.derangement(len(images), 1)]))
    training = subject.cached("train", np.arange(len(subject.shards.split("train"))))
    ceiling = {
        "jpeg": subject.see(controls.jpeg_round_trip(subject.split.decode(pairs.target_rows))),
        "mirror": subject.cached("validation", pairs.target_rows, mirrored=True),
    }
    others = controls.feature_controls(
        subject.space, source, target, training, subject.cache.head, shuffled, ceiling
    )  # fmt: skip
    tables = {}
    for name, response in track({"generator": measured, **others}.items(), "faithfulness", 1 + len(others)):
        tables[name] = faithfulness.faithfulness_table(subject.space, source, target, response, gallery)
        tables[name] |= decisions.decision_table(
            subject.cache.output_kind, source, target, response, subject.cache.class_names
        )
    return Obedience(tables, images, edited, source, measured)


def measure_preservation(subject: FeatureSubject, seen: Obedience) -> Table:
    """Does what need not change stay? Self-reconstruction, the way back, and the size of the edit."""
    features = seen.source.features
    return preservation.preservation_table(
        seen.images, subject.edit(seen.images, features), subject.edit(seen.edited, features), seen.edited
    )


def measure_realism(subject: FeatureSubject, seen: Obedience) -> Table:
    """Frechet distance of edited images in the box's space; the floor is one half of the real ones to the other."""
    real, generated = (live_features(subject, each) for each in (seen.source, seen.measured))
    half = len(real) // 2
    first, second = real[:half], real[half : 2 * half]
    return realism.realism_table({"edited": (first, generated[half : 2 * half]), "real_floor": (first, second)})


def live_features(subject: FeatureSubject, seen: Response) -> Floats:
    """Standardised features without the dead ones."""
    return as_floats(subject.space.encode(torch.as_tensor(seen.features).float(), "standardized"))


@dataclass(frozen=True)
class Sweeps:
    """Every component swept over `SWEEP` on the same images, and what the box saw."""

    images: Tensor  # [N, 3, H, W]
    rows: np.ndarray  # [N]
    edited: list[Tensor]  # K times [N, S, 3, H, W]
    measured: Floats  # whitened [N, K, S, M]
    table: Table
    crosstalk: Floats  # [K, M]


def measure_sweeps(subject: FeatureSubject, rows: np.ndarray, num_components: int) -> Sweeps:
    """Sweep each of the first components, all others as in the source."""
    images = subject.images(rows)
    features = torch.from_numpy(subject.cache.features("validation", rows))
    count = min(num_components, subject.space.num_components)
    edited, measured = [], []
    for component in track(range(count), "traversal"):
        wanted = component_sweep(subject.space, features, component, SWEEP)
        frames = subject.edit(images.repeat_interleave(len(SWEEP), 0), wanted.flatten(0, 1))
        seen = project(subject.space, subject.see(frames).features)[:, :count]
        edited.append(frames.unflatten(0, (len(rows), len(SWEEP))))
        measured.append(seen.reshape(len(rows), len(SWEEP), -1))
    stacked = np.stack(measured, 1)
    table = traversal.traversal_table(np.array(SWEEP), stacked)
    return Sweeps(images, rows, edited, stacked, table, traversal.crosstalk(np.array(SWEEP), stacked))


def measure_sufficiency(subject: FeatureSubject, pairs: Pairs, counts: tuple[int, ...] = (1, 2, 5, 10)) -> Table:
    """How many of the target's first components make the box decide as asked? Expression boxes only."""
    if subject.cache.output_kind != "expression":
        return {}
    source, target = (subject.cached("validation", rows) for rows in (pairs.source_rows, pairs.target_rows))
    assert source.outputs is not None and target.outputs is not None
    images, space = subject.images(pairs.source_rows), subject.space
    own, asked = (torch.as_tensor(each.features).float() for each in (source, target))
    decided = {}
    for count in (count for count in counts if count <= space.num_components):
        # The components' difference is added, so that what lies outside them stays the source's own.
        first = projections(space, asked, [count])[:, 0] - projections(space, own, [count])[:, 0]
        outputs = subject.see(subject.edit(images, own + first)).outputs
        assert outputs is not None
        decided[count] = outputs.argmax(1)
    return decisions.sufficiency_table(source.outputs.argmax(1), target.outputs.argmax(1), decided)


def measure_factors(subject: FeatureSubject, probe: BlackBox, sweeps: Sweeps) -> tuple[Table, Floats]:
    """On drawn faces: how much each component moves the true factors, as a probe reads them off the pictures.

    Returns the table and the change of each factor per unit of each component [K, F], expression factors first.
    """
    names, columns = factor_columns(subject.shards, probe)
    deviations = subject.shards.split("train").factors[:, columns[0]].std(0)
    true = subject.split.factors[sweeps.rows][:, columns[0]]

    def read(images: Tensor) -> Floats:
        outputs = ask(probe, images).outputs
        assert outputs is not None
        return outputs[:, columns[1]]

    features = subject.cache.features("validation", sweeps.rows)
    swept = np.stack([read(frames.flatten(0, 1)).reshape(*frames.shape[:2], -1) for frames in sweeps.edited], 1)
    requested = np.array(SWEEP)
    table = factor_table(
        names, as_floats(true), read(sweeps.images), read(subject.edit(sweeps.images, features)), requested, swept,
        as_floats(deviations),
    )  # fmt: skip
    return table, factor_response(requested, swept, as_floats(deviations))


def factor_columns(shards: ShardSet, probe: BlackBox) -> tuple[FactorNames, tuple[list[int], list[int]]]:
    """The factors that shards and probe share, and their columns in each."""
    held, read = list(shards.factor_names), list(probe.class_names)
    expression = [name for name in EXPRESSION_FACTORS if name in held and name in read]
    nuisance = [name for name in NUISANCE_FACTORS if name in held and name in read]
    if not expression or not nuisance:
        raise UserError(
            f"{probe.spec}: reads none of the factors that {shards.path} holds; "
            "make a probe on shards of drawn faces with `featgan blackbox fit --target factors`"
        )
    names = FactorNames(expression, nuisance)
    return names, ([held.index(name) for name in names.all], [read.index(name) for name in names.all])
