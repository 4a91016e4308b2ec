"""What an evaluation asks beside pairs: sweeps of one component, projections, few components, one request of many."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox
from featgan.evaluation.edit_metrics import Edits, Family, FeatureSubject, live_features
from featgan.features.directions import component_sweep, projections
from featgan.inference.editor import ask
from featgan.metrics import decisions, traversal
from featgan.metrics.bootstrap import Floats, Integers, as_floats
from featgan.metrics.diversity import diversity_table, pairwise_l1
from featgan.metrics.predictions import project, standardize
from featgan.metrics.preservation import in_floats

SWEEP = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Whitened values that a component is swept over: deviations of the training features."""

EQUAL_REQUESTS, EQUAL_SOURCES = 4, 64
"""Requests that many sources get alike, and the sources at most."""


@dataclass(frozen=True)
class Sweeps:
    """Each of K components swept over the S values of `SWEEP` on N images, and what was seen in M components."""

    rows: Integers  # [N]
    images: Tensor  # uint8 [N, 3, S, S]
    nearest: Integers  # [N, K, S], row in `known` of the training image nearest to each request
    measured: Floats  # whitened [N, K, S, M]
    factors: Floats | None  # [N, K, S, number of the probe's outputs], where there is a probe


def sweep_components(subject: FeatureSubject, rows: Integers, count: int, probe: BlackBox | None) -> Sweeps:
    """Sweep each of the first components, all others as in the source."""
    images, features = subject.images(rows), torch.from_numpy(subject.cache.features("validation", rows))
    shape = (len(rows), len(SWEEP), -1)
    nearest, measured, factors = [], [], []
    with subject.editor.showing("sweeping components", count * len(SWEEP) * len(rows)):
        for component in range(count):
            wanted = component_sweep(subject.space, features, component, SWEEP).flatten(0, 1)
            repeated, own = (each.repeat_interleave(len(SWEEP), 0) for each in (images, features))
            frames = subject.edit(repeated, wanted, own)
            nearest.append(subject.nearest(as_floats(wanted)).reshape(shape[:2]))
            measured.append(project(subject.space, subject.see(frames).features)[:, :count].reshape(shape))
            if probe is not None:
                factors.append(outputs_of(probe, frames).reshape(shape))
    return Sweeps(
        rows, images, np.stack(nearest, 1), np.stack(measured, 1), np.stack(factors, 1) if probe is not None else None
    )


def outputs_of(box: BlackBox, images: Tensor) -> Floats:
    """A box's outputs alone [N, O]."""
    outputs = ask(box, images).outputs
    assert outputs is not None
    return outputs


def measure_traversal(subject: FeatureSubject, sweeps: Sweeps) -> tuple[Family, Floats]:
    """Does a slider do one thing? And the cross-talk matrix [K, M] of the generator."""
    requested, count = np.array(SWEEP), sweeps.measured.shape[-1]
    own = project(subject.space, subject.cached("validation", sweeps.rows).features)[:, None, None, :count]
    known = project(subject.space, subject.known.features)[:, :count]
    found = {
        "generator": traversal.traversal_table(requested, sweeps.measured),
        "identity_copy": traversal.traversal_table(requested, np.broadcast_to(own, sweeps.measured.shape)),
        "nearest_real": traversal.traversal_table(requested, known[sweeps.nearest]),
    }
    return found, traversal.crosstalk(requested, sweeps.measured)


def measure_projections(subject: FeatureSubject, rows: Integers) -> Family:
    """How much of the source arrives when it keeps its first 0, 1, 2, 4, ... components, the rest at their mean?"""
    images, seen = subject.images(rows), subject.cached("validation", rows)
    counts = [0, *(2**power for power in range(subject.space.num_components.bit_length()))]
    own = torch.from_numpy(seen.features).float()
    asked = {count: projections(subject.space, own, [count])[:, 0] for count in counts}
    with subject.editor.showing("projecting", len(counts) * len(rows)):
        edited = {count: subject.see(subject.edit(images, wanted, own)) for count, wanted in asked.items()}
    nearest = {count: subject.known.take(subject.nearest(as_floats(wanted))) for count, wanted in asked.items()}
    wishes = {count: standardize(subject.space, as_floats(wanted)) for count, wanted in asked.items()}
    responses = {"generator": edited, "identity_copy": dict.fromkeys(counts, seen), "nearest_real": nearest}
    return {
        name: traversal.projection_table(
            wishes, {count: live_features(subject, each) for count, each in by_count.items()}
        )
        for name, by_count in responses.items()
    }


def measure_sufficiency(subject: FeatureSubject, edits: Edits, counts: tuple[int, ...] = (1, 2, 5, 10)) -> Family:
    """How many of the target's first components make the box decide as asked? Expression boxes only."""
    if subject.cache.output_kind != "expression":
        return {}
    assert edits.source.outputs is not None and edits.target.outputs is not None and subject.known.outputs is not None
    space = subject.space
    own, asked = (torch.from_numpy(each.features).float() for each in (edits.source, edits.target))
    before, wanted = edits.source.outputs.argmax(1), edits.target.outputs.argmax(1)
    possible = [count for count in counts if count <= space.num_components]
    decided: dict[str, dict[int, Integers]] = {"generator": {}, "identity_copy": {}, "nearest_real": {}}
    with subject.editor.showing("setting components", len(possible) * len(own)):
        for count in possible:
            # The components' difference is added, so that what lies outside them stays the source's own.
            mixed = own + projections(space, asked, [count])[:, 0] - projections(space, own, [count])[:, 0]
            outputs = subject.see(subject.edit(edits.sources, mixed, own)).outputs
            assert outputs is not None
            decided["generator"][count] = outputs.argmax(1)
            decided["identity_copy"][count] = before
            decided["nearest_real"][count] = subject.known.outputs[subject.nearest(as_floats(mixed))].argmax(1)
    return {name: decisions.sufficiency_table(before, wanted, labels) for name, labels in decided.items()}


@dataclass(frozen=True)
class EqualRequests:
    """The first sources, each asked for the same features, several times."""

    sources: Tensor  # uint8 [S, 3, H, W]
    edited: list[Tensor]  # one such set for each request


def ask_all_the_same(subject: FeatureSubject, edits: Edits) -> EqualRequests:
    """Edit many sources to the features of one target, and of the next."""
    requests, images = edits.target.features[:EQUAL_REQUESTS], edits.sources[:EQUAL_SOURCES]
    own = edits.source.features[:EQUAL_SOURCES]
    with subject.editor.showing("asking all for the same", len(requests) * len(images)):
        edited = [subject.edit(images, np.tile(request, (len(images), 1)), own) for request in requests]
    return EqualRequests(images, edited)


def measure_diversity(equal: EqualRequests) -> Family:
    """Do different sources stay different, in pixels, when the same is asked of all?"""
    return diversity_family(pixel_distances(equal.sources), [pixel_distances(images) for images in equal.edited])


def pixel_distances(pictures: Tensor) -> Floats:
    """Mean |difference| of every two pictures [N, 3, S, S], of a range of 2 => [N, N]."""
    return pairwise_l1(as_floats(in_floats(pictures).flatten(1)))


def diversity_family(source: Floats, edited: list[Floats]) -> Family:
    """Distances [N, N] of sources and of their edits to each request => the measures of the generator and two controls.

    The nearest real image to a request is one picture, whatever the source.
    """
    return {
        "generator": diversity_table(source, edited),
        "identity_copy": diversity_table(source, [source]),
        "nearest_real": diversity_table(source, [np.zeros_like(source)]),
    }
