"""A small report for the tests: blocks of colour, edited by hand, and a box that sees exactly what was painted."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featgan.features.space import FeatureSpace
from featgan.metrics.bootstrap import as_floats
from featgan.metrics.predictions import Response
from featgan.report.analysis.component_ranking import rank_components
from featgan.report.analysis.predictions import Answer
from featgan.report.edits.rendering import as_frames, difference_scale, render_sweep
from featgan.report.edits.sources import Sources
from featgan.report.edits.sweeps import Subject, Sweep, class_sweeps, quantile_sweeps, transfer_sweeps
from featgan.report.html.cards import ComponentFacts
from featgan.report.html.page import Report
from featgan.system.images import to_float, to_uint8

SIZE = 32
NASTY = "<b>x</b>'\"&"
NAMES = ("calm", NASTY)
HEAD = torch.eye(4)[:2]


def edit(images: Tensor, condition: Tensor) -> Tensor:
    """Red follows the first number of the condition, a bar at the left the second."""
    edited = to_float(images)
    edited[:, 0] += 0.3 * condition[:, :1, None]
    edited[:, :, :, :8] += 0.3 * condition[:, 1, None, None, None]
    return to_uint8(edited)


@dataclass(frozen=True)
class World:
    """Three sources, their features, and the space that they lie in."""

    space: FeatureSpace
    training: Tensor  # [200, 4]
    sources: Sources

    def look(self, images: Tensor) -> Response:
        """A box whose first features are the mean red and the brightness of the bar."""
        shares = images.float() / 255
        red, bar = shares[:, 0, :, 8:].mean((1, 2)), shares[:, :, :, :8].mean((1, 2, 3))
        features = torch.stack([4 * red - 2, 4 * bar - 2, 0 * red, 0 * red], 1)
        return Response(as_floats(features), as_floats(features @ HEAD.T))


def build_world() -> World:
    generator = torch.Generator().manual_seed(0)
    training = torch.randn(200, 4, generator=generator)
    training[:, 1] += 3 * training[:, 0]  # the first component is what these two share
    images = torch.randint(0, 256, (3, 3, 4, 4), generator=generator, dtype=torch.uint8)
    images = images.repeat_interleave(SIZE // 4, 2).repeat_interleave(SIZE // 4, 3)
    features = torch.randn(3, 4, generator=generator)
    sources = Sources(images, ("one", NASTY, "three"), features, "of the validation set")
    return World(FeatureSpace.fit(training), training, sources)


def build_report(world: World | None = None, names: dict[int, str] | None = None) -> Report:
    """Three components, a film of classes and a grid of transfers, evaluated nowhere."""
    world = world or build_world()
    space, sources = world.space, world.sources
    assert sources.values is not None
    subject = Subject(
        "features", sources.values, sources.images, lambda wanted, own: space.standardize(wanted), space, 3, NAMES,
        dict(zip(NAMES, torch.eye(4), strict=False)),
        component_names=names or {},
    )  # fmt: skip
    sweeps = [*quantile_sweeps(subject), *class_sweeps(subject), *transfer_sweeps(subject)]
    own = Sweep("own", "", "", ("",), space.standardize(sources.values)[:, None])
    reconstruction = render_sweep(edit, sources, own, None).frames[:, 0]
    renderings = [render_sweep(edit, sources, sweep, reconstruction, world.look) for sweep in sweeps]
    answer = Answer("expression", NAMES)
    answer = Answer("expression", NAMES, answer.comparable(as_floats(world.training @ HEAD.T)).std(0))
    facts = ComponentFacts(space, HEAD, NAMES, names=names or {})
    return Report(
        run=f"run {NASTY}", kind="features", step=30, facts=[("Black box", NASTY)], sources=sources,
        renderings=renderings, scale=difference_scale(renderings),
        ranking=rank_components(renderings, facts, answer), answer=answer,
        source_seen=as_frames(world.look(sources.images), 3), num_features=4,
        metrics={f"loss/{NASTY}": [(1, 2.0), (2, 1.0)]}, config=f"run: {NASTY}", commands=[f"featgan train {NASTY}"],
        hashes={"shards": "ab" * 32},
    )  # fmt: skip


def measures(**values: float) -> dict[str, dict[str, float]]:
    """Measures as an evaluation writes them."""
    return {
        name: {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 50} for name, value in values.items()
    }


def evaluation(step: int = 30) -> dict[str, object]:
    """An evaluation with everything in it."""
    matrix = (np.eye(3) * [0.6, 0.4, 0.05] + 0.02).tolist()
    slopes = [
        {"index": index, "slope": matrix[index][index], "dominance": 0.9, "monotonicity": 0.8} for index in range(3)
    ]
    return {
        "step": step, "suite": "quick", "components": slopes, "crosstalk": matrix,
        "headline": [{"label": "Relative shift", "value": 0.8125, "low": 0.7, "high": 0.9, "note": "N 200"}],
        "remarks": [
            {"about": "witness", "verdict": "supports", "text": "The witness sees the change."},
            {"about": "traversal", "verdict": "limits", "text": "Component 3 is not visible."},
        ],
        "statements": ["Component 3 is not visible."],
        "tables": [{"title": "Faithfulness", "columns": ["measure", "generator"], "rows": [["ccc_a", -0.25]]}],
        "measures": measures(ccc=0.75, slope=0.35, witness_agreement=0.8, box_agreement=0.9),
        "controls": {"identity_copy": measures(ccc=0.05), "nearest_real": measures(ccc=0.97)},
        "regions": [
            {"by": "class", "region": "calm", "pairs": 40, "measures": measures(flip_success=0.9)},
            {"by": "class", "region": "glad", "pairs": 3, "measures": {}},
            {"by": "component 1", "region": "below 10 %", "pairs": 12, "measures": measures(own_shift=1.25)},
        ],
    }  # fmt: skip
