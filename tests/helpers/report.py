"""A small report for the tests: images of color blocks, a generator that paints, and a classifier that measures it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featgan.features.space import FeatureSpace
from featgan.metrics.bootstrap import to_float64
from featgan.metrics.predictions import Predictions
from featgan.report.analysis.component_facts import ComponentFacts
from featgan.report.analysis.component_ranking import rank_components
from featgan.report.analysis.predictions import OutputSpec
from featgan.report.edits.rendering import difference_scale, render_sweep, split_frame_predictions
from featgan.report.edits.sources import SourceImages
from featgan.report.edits.sweeps import Sweep, SweepInputs, class_sweeps, quantile_sweeps, transfer_sweeps
from featgan.report.html.page import Report
from featgan.system.images import to_float, to_uint8

SIZE = 32
UNSAFE_TEXT = "<b>x</b>'\"&"
CLASS_NAMES = ("calm", UNSAFE_TEXT)
HEAD_WEIGHT = torch.eye(4)[:2]


def edit_images(images: Tensor, condition: Tensor) -> Tensor:
    """Add the first condition to the red channel, and the second to a bar at the left."""
    edited = to_float(images)
    edited[:, 0] += 0.3 * condition[:, :1, None]
    edited[:, :, :, :8] += 0.3 * condition[:, 1, None, None, None]
    return to_uint8(edited)


@dataclass(frozen=True)
class ReportInputs:
    """Three sources with their features, and the feature space."""

    space: FeatureSpace
    training_features: Tensor  # [200, 4]
    sources: SourceImages

    def predict(self, images: Tensor) -> Predictions:
        """Predict with a classifier whose first features are the mean red and the brightness of the bar."""
        pixels = images.float() / 255
        red, bar = pixels[:, 0, :, 8:].mean((1, 2)), pixels[:, :, :, :8].mean((1, 2, 3))
        features = torch.stack([4 * red - 2, 4 * bar - 2, 0 * red, 0 * red], 1)
        return Predictions(to_float64(features), to_float64(features @ HEAD_WEIGHT.T))


def build_report_inputs() -> ReportInputs:
    generator = torch.Generator().manual_seed(0)
    training = torch.randn(200, 4, generator=generator)
    training[:, 1] += 3 * training[:, 0]  # the first component is what these two share
    images = torch.randint(0, 256, (3, 3, 4, 4), generator=generator, dtype=torch.uint8)
    images = images.repeat_interleave(SIZE // 4, 2).repeat_interleave(SIZE // 4, 3)
    features = torch.randn(3, 4, generator=generator)
    sources = SourceImages(images, ("one", UNSAFE_TEXT, "three"), features, "validation images")
    return ReportInputs(FeatureSpace.fit(training), training, sources)


def build_report(inputs: ReportInputs | None = None, names: dict[int, str] | None = None) -> Report:
    """Build a report with three components, a film of classes and a grid of transfers, without an evaluation."""
    inputs = inputs or build_report_inputs()
    space, sources = inputs.space, inputs.sources
    assert sources.values is not None
    sweep_inputs = SweepInputs(
        "features",
        sources.values,
        sources.images,
        lambda target, source: space.standardize(target),
        space,
        3,
        CLASS_NAMES,
        dict(zip(CLASS_NAMES, torch.eye(4), strict=False)),
        component_names=names or {},
    )
    sweeps = [*quantile_sweeps(sweep_inputs), *class_sweeps(sweep_inputs), *transfer_sweeps(sweep_inputs)]
    source_sweep = Sweep("reconstruction", "", "", ("",), space.standardize(sources.values)[:, None])
    reconstruction = render_sweep(edit_images, sources, source_sweep, None).frames[:, 0]
    renderings = [render_sweep(edit_images, sources, sweep, reconstruction, inputs.predict) for sweep in sweeps]
    output_spec = OutputSpec("expression", CLASS_NAMES)
    output_spec = OutputSpec(
        "expression",
        CLASS_NAMES,
        output_spec.center_outputs(to_float64(inputs.training_features @ HEAD_WEIGHT.T)).std(0),
    )
    facts = ComponentFacts(space, HEAD_WEIGHT, CLASS_NAMES, names=names or {})
    return Report(
        run=f"run {UNSAFE_TEXT}",
        kind="features",
        step=30,
        facts=[("Black box", UNSAFE_TEXT)],
        sources=sources,
        renderings=renderings,
        scale=difference_scale(renderings),
        ranking=rank_components(renderings, facts, output_spec),
        output_spec=output_spec,
        source_predictions=split_frame_predictions(inputs.predict(sources.images), 3),
        num_features=4,
        metrics={f"loss/{UNSAFE_TEXT}": [(1, 2.0), (2, 1.0)]},
        config=f"run: {UNSAFE_TEXT}",
        commands=[f"featgan train {UNSAFE_TEXT}"],
        hashes={"shards": "ab" * 32},
    )


def metric_entries(**values: float) -> dict[str, dict[str, float]]:
    """Return metrics as an evaluation writes them."""
    return {
        name: {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 50} for name, value in values.items()
    }


def evaluation_document(step: int = 30) -> dict[str, Any]:
    """Return an evaluation in which no part is empty."""
    matrix = (np.eye(3) * [0.6, 0.4, 0.05] + 0.02).tolist()
    component_rows = [
        {"index": index, "slope": matrix[index][index], "dominance": 0.9, "monotonicity": 0.8} for index in range(3)
    ]
    return {
        "step": step,
        "suite": "quick",
        "components": component_rows,
        "crosstalk": matrix,
        "headline": [{"label": "target progress", "value": 0.8125, "low": 0.7, "high": 0.9, "note": "N 200"}],
        "conclusions": [
            {"family": "second_classifier", "kind": "supports", "text": "The second classifier confirms the edits."},
            {"family": "traversal", "kind": "limits", "text": "Component 3 is not visible."},
        ],
        "tables": [{"title": "Faithfulness", "columns": ["metric", "generator"], "rows": [["ccc_a", -0.25]]}],
        "metrics": metric_entries(ccc=0.75, slope=0.35, second_classifier_agreement=0.8, classifier_agreement=0.9),
        "baselines": {"copy_source": metric_entries(ccc=0.05), "nearest_real": metric_entries(ccc=0.97)},
        "subgroups": [
            {"group": "class", "name": "calm", "pairs": 40, "metrics": metric_entries(validity=0.9)},
            {"group": "class", "name": "glad", "pairs": 3, "metrics": {}},
            {
                "group": "component 1",
                "name": "below 10 %",
                "pairs": 12,
                "metrics": metric_entries(component_progress=1.25),
            },
        ],
    }
