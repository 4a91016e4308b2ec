"""The ranking of components: importance, visibility and output effects, on cases with known results."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from featgan.errors import UserError
from featgan.features.directions import component_sweep
from featgan.features.space import FeatureSpace
from featgan.metrics.bootstrap import Floats, to_float64
from featgan.report.analysis.component_facts import ComponentFacts
from featgan.report.analysis.component_ranking import ComponentRanking, RankedComponent, rank_components
from featgan.report.analysis.predictions import OutputSpec, most_affected_outputs
from featgan.report.analysis.visibility import PixelChange, choose_typical_source, describe_grid_cells
from featgan.report.component_names import merge_component_names, read_component_names, save_component_names
from featgan.report.edits.rendering import FramePredictions, RenderedSweep
from featgan.report.edits.sweeps import Sweep
from featgan.report.html import summary_text
from featgan.run.evaluation_document import parse_evaluation
from tests.helpers.report import evaluation_document

SIZE, SOURCES, VALUES = 64, 4, (-2.0, -1.0, 0.0, 1.0, 2.0)
CLASSES = ("calm", "glad", "odd")


@pytest.fixture(scope="module")
def training() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4000, 5, generator=generator) @ torch.randn(5, 5, generator=generator)


@pytest.fixture(scope="module")
def space(training: Tensor) -> FeatureSpace:
    return FeatureSpace.fit(training)


@pytest.fixture(scope="module")
def head() -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(2))


PaintFunction = Callable[[Tensor, float], None]


def paint_patch(image: Tensor, value: float) -> None:
    """Brighten the lower center in proportion to the value."""
    image[:, 48:60, 26:38] += 20 * value


def paint_texture(image: Tensor, value: float) -> None:
    """Brighten every second pixel and darken the others: a large change of pixels, but none of a patch."""
    signs = 1 - 2 * ((torch.arange(SIZE)[:, None] + torch.arange(SIZE)[None]) % 2)
    image += 20 * value * signs


def paint_nothing(image: Tensor, value: float) -> None:
    return


def render_component_sweep(
    space: FeatureSpace,
    component: int,
    paint: PaintFunction,
    gain: float = 1.0,
    outputs: Callable[[Floats], Floats] | None = None,
) -> RenderedSweep:
    """Return a sweep whose measured component is `gain` times the target; no other component changes."""
    frames = torch.full((SOURCES, len(VALUES), 3, SIZE, SIZE), 128.0)
    for source in range(SOURCES):
        for frame, value in enumerate(VALUES):
            paint(frames[source, frame], value)
    source_features = torch.zeros(SOURCES, space.feature_dim) + space.mean
    features = to_float64(component_sweep(space, source_features, component, [gain * value for value in VALUES]))
    predictions = FramePredictions(features, outputs(features) if outputs else np.zeros((SOURCES, len(VALUES), 3)))
    sweep = Sweep(
        f"component-{component + 1:02d}",
        "quantiles",
        f"Component {component + 1}",
        tuple(map(str, VALUES)),
        torch.zeros(SOURCES, len(VALUES), 1),
        component=component,
        values=VALUES,
    )
    return RenderedSweep(sweep, frames.clamp(0, 255).byte(), frames[:, 2].clamp(0, 255).byte(), predictions)


def make_output_spec(training: Tensor, head: Tensor) -> OutputSpec:
    output_spec = OutputSpec("expression", CLASSES)
    return replace(output_spec, stds=output_spec.center_outputs(to_float64(training @ head.T)).std(0))


def test_importances_of_all_components_add_up_to_the_output_variance(
    training: Tensor, space: FeatureSpace, head: Tensor
) -> None:
    output_spec = make_output_spec(training, head)
    weights = output_spec.component_importance(output_spec.center_outputs(ComponentFacts(space, head).output_effects()))
    assert weights is not None and weights.sum() == pytest.approx(1, abs=1e-3)
    # A constant added to all class logits does not change the prediction.
    shifted = make_output_spec(training, head + torch.arange(5.0))
    same = shifted.component_importance(
        shifted.center_outputs(ComponentFacts(space, head + torch.arange(5.0)).output_effects())
    )
    assert same == pytest.approx(weights, abs=1e-3)


def test_outputs_with_different_units_count_equally(training: Tensor, space: FeatureSpace, head: Tensor) -> None:
    scaled = head * torch.tensor([[1.0], [1000.0], [0.001]])
    output_spec = OutputSpec("other", CLASSES, to_float64(training @ scaled.T).std(0))
    reference = OutputSpec("other", CLASSES, to_float64(training @ head.T).std(0))
    weights = output_spec.component_importance(ComponentFacts(space, scaled).output_effects())
    assert weights == pytest.approx(reference.component_importance(ComponentFacts(space, head).output_effects()))
    assert weights is not None and weights.sum() == pytest.approx(1, abs=1e-3)


def test_effects_without_a_linear_head_are_measured_in_the_frames(
    training: Tensor, space: FeatureSpace, head: Tensor
) -> None:
    def outputs(features: Floats) -> Floats:
        return features @ to_float64(head).T

    swept = [render_component_sweep(space, index, paint_patch, outputs=outputs) for index in (0, 1)]
    output_spec = make_output_spec(training, head)
    known = rank_components(swept, ComponentFacts(space, head), output_spec)
    ranking = rank_components(swept, ComponentFacts(space), output_spec)
    assert [component.index for component in ranking.components] == [component.index for component in known.components]
    for measured, expected in zip(ranking.components, known.components, strict=True):
        assert measured.output_effects == pytest.approx(expected.output_effects, abs=1e-4)
        assert measured.importance == pytest.approx(expected.importance, abs=1e-4)


def test_metrics_of_the_page_images(space: FeatureSpace) -> None:
    swept = [
        render_component_sweep(space, 0, paint_patch, gain=0.5),
        render_component_sweep(space, 1, paint_patch, gain=0.0),
    ]
    ranking = rank_components(swept, ComponentFacts(space), None)
    first, second = sorted(ranking.components, key=lambda component: component.index)
    assert first.slope == pytest.approx(0.5, abs=1e-3) and first.crosstalk == pytest.approx(0, abs=1e-3)
    assert first.metrics["monotonicity"] == pytest.approx(1) and first.metrics["linearity"] == pytest.approx(1)
    assert second.slope == 0 and second.crosstalk == 1 and second.metrics["monotonicity"] == 0
    assert (
        first.importance is None
        and first.is_important
        and ranking.explained_share is None
        and ranking.num_evaluated_images is None
    )


def test_evaluated_metrics_replace_those_of_the_page_images(space: FeatureSpace) -> None:
    measured = parse_evaluation(evaluation_document()).components_by_index
    facts = ComponentFacts(space, evaluated_metrics=measured, num_evaluated_images=50)
    ranking = rank_components([render_component_sweep(space, 0, paint_patch)], facts, None)
    assert ranking.components[0].slope == pytest.approx(0.62) and ranking.num_evaluated_images == 50
    assert ranking.components[0].crosstalk == pytest.approx(0.1)
    # If one component was not evaluated, all metrics are of the page images, so that they are comparable.
    swept = [render_component_sweep(space, 0, paint_patch), render_component_sweep(space, 4, paint_patch)]
    slopes = [component.slope for component in rank_components(swept, facts, None).components]
    assert slopes == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("paint", "gain", "grade", "limitation"),
    [
        (paint_patch, 1.0, "clear", ""),
        (paint_texture, 1.0, "none", "invisible"),
        (paint_patch, 0.02, "clear", "unresponsive"),
        (paint_nothing, 0.0, "none", "invisible_and_unresponsive"),
    ],
)
def test_change_must_be_visible_and_affect_the_classifier(
    space: FeatureSpace, paint: PaintFunction, gain: float, grade: str, limitation: str
) -> None:
    component = rank_components(
        [render_component_sweep(space, 0, paint, gain)], ComponentFacts(space), None
    ).components[0]
    assert (component.change.visibility_grade, component.limitation) == (grade, limitation)
    assert component.is_conclusive == (not limitation)


def make_pixel_change(rows: slice, columns: slice, amount: float = 40) -> PixelChange:
    signed = torch.zeros(SOURCES, 3, SIZE, SIZE)
    signed[:, :, rows, columns] = amount / 255
    return PixelChange(signed)


def test_locations_are_described() -> None:
    lower, third, all_of_it = slice(46, 60), slice(22, 42), slice(0, SIZE)
    assert make_pixel_change(lower, third).location == "mostly in the lower center"
    assert make_pixel_change(third, third).location == "mostly in the center"
    assert make_pixel_change(slice(0, 18), slice(0, 14)).location == "mostly in the upper left"
    assert make_pixel_change(slice(0, 20), all_of_it).location == "mostly in the upper left and upper center"
    assert describe_grid_cells([(0, 0), (0, 1), (0, 2)]) == "mostly in the upper third"
    assert describe_grid_cells([(0, 1), (1, 1), (2, 1)]) == "mostly in the middle from top to bottom"
    three_cells = describe_grid_cells([(2, 1), (1, 1), (2, 0)])
    assert three_cells == "mostly in the center, lower left and lower center"
    assert make_pixel_change(all_of_it, all_of_it).location == "everywhere"
    assert make_pixel_change(all_of_it, all_of_it).brightness_change == pytest.approx(40 / 255)
    assert make_pixel_change(lower, third, 0).location and make_pixel_change(lower, third, 0).low_frequency_share == 0


def test_first_source_has_the_median_change() -> None:
    signed = torch.zeros(5, 3, SIZE, SIZE)
    for source, amount in enumerate((10.0, 200.0, 60.0, 0.0, 120.0)):
        signed[source, :, 20:40, 20:40] = amount / 255
    assert choose_typical_source([PixelChange(signed), PixelChange(signed / 10)]) == 2
    errors = torch.tensor([0.1, 0.2, 9.0, 0.3, 9.0])
    assert choose_typical_source([PixelChange(signed)], errors) == 0, "among well reconstructed sources"


def test_first_source_reaches_at_least_the_median_number_of_classes() -> None:
    sizes, errors = [1.0, 2.0, 3.0, 4.0, 5.0], torch.tensor([0.1, 0.12, 0.35, 0.3, 0.11])
    change = PixelChange(torch.tensor(sizes)[:, None, None, None].expand(5, 3, 8, 8) / 8)
    assert choose_typical_source([change]) == 2
    assert choose_typical_source([change], errors) == 1  # of 0, 1 and 4
    assert choose_typical_source([change], None, [0, 0, 2, 3, 3]) == 3  # of 2, 3 and 4
    assert choose_typical_source([change], errors, [0, 0, 2, 3, 3]) == 3  # of 3 and 4


def test_most_affected_outputs_are_the_strongest_in_each_direction() -> None:
    assert most_affected_outputs(np.array([3.0, -2.0, 1.6, 1.0]), ("a", "b", "c", "d")) == (["a", "c"], ["b"])
    assert most_affected_outputs(np.array([0.1, -2.0]), ("a", "b")) == ([], ["b"])
    assert most_affected_outputs(np.zeros(2), ("a", "b")) == ([], [])


@pytest.mark.parametrize(
    ("kind", "outputs", "displayed"),
    [
        ("expression", [[0.0, np.log(3)]], [[0.25, 0.75]]),
        ("expression", [[0.25, 0.75]], [[0.25, 0.75]]),
        ("attributes", [[0.0, 50.0]], [[0.5, 1.0]]),
        ("attributes", [[0.2, 0.9]], [[0.2, 0.9]]),
        ("valence_arousal", [[-0.4, 1.2]], [[-0.4, 1.2]]),
    ],
)
def test_class_and_attribute_outputs_are_displayed_as_probabilities(
    kind: str, outputs: list[list[float]], displayed: list[list[float]]
) -> None:
    output_spec = OutputSpec(kind, ("a", "b"))
    assert output_spec.display_values(np.array(outputs)) == pytest.approx(np.array(displayed))
    assert output_spec.is_probability == (kind != "valence_arousal")


def make_component(
    importance: float | None, grade: str = "clear", slope: float = 0.5, crosstalk: float = 0.1
) -> RankedComponent:
    rendering = RenderedSweep(
        Sweep("component-01", "quantiles", "", ("low", "high"), torch.zeros(1, 2, 1), component=0, values=(-1.0, 1.0)),
        torch.zeros(1, 2, 3, SIZE, SIZE, dtype=torch.uint8),
        None,
    )
    change = make_pixel_change(slice(46, 60), slice(22, 42), {"clear": 60, "faint": 25, "none": 1}[grade])
    metrics = {"slope": slope, "cross-talk": crosstalk}
    return RankedComponent(
        0, "<b>smile", rendering, change, np.array([-1.0, 1.0]), ("calm", "glad"), importance, metrics, None
    )


def test_summary_has_conclusions_and_limitations_of_the_components() -> None:
    clear, faint, hidden = make_component(0.4), make_component(0.2, "faint", crosstalk=0.7), make_component(0.3, "none")
    weak, small = make_component(0.06, slope=0.02), make_component(0.01, "none")
    ranking = ComponentRanking([clear, hidden, faint, weak, small], uses_total_variation=True, num_evaluated_images=50)
    conclusions = summary_text.component_conclusions(ranking)
    assert len(conclusions) == 2
    assert conclusions[0] == (
        '<a href="#component-01">&lt;b&gt;smile</a> explains 40\N{NO-BREAK SPACE}% of the output variance. '
        "Increasing it raises the output for <em>glad</em> and lowers the output for <em>calm</em>. "
        "The change is clearly visible (mostly in the lower center)."
    )
    assert "The change is faint (" in conclusions[1] and "explains 20" in conclusions[1]
    limitations = [str(text) for text in summary_text.component_limitations(ranking)]
    assert len(limitations) == 3, "not the unimportant component, and not the 3 % that are unexplained"
    assert limitations[0].startswith(
        "&lt;b&gt;smile (30\N{NO-BREAK SPACE}%): the classifier responds to the edits, but the change is too faint"
    )
    assert "(6\N{NO-BREAK SPACE}%): the image changes, but the classifier's features hardly move" in limitations[1]
    assert limitations[2].startswith(
        "&lt;b&gt;smile does not change alone: more than 50\N{NO-BREAK SPACE}% of the measured change is in other"
    )
    assert summary_text.component_conclusions(ComponentRanking([hidden], True)) == [
        "No important component causes a change that is visible in these images and detected by the classifier."
    ]
    assert (
        "70\N{NO-BREAK SPACE}% of the output variance is not explained"
        in summary_text.component_limitations(ComponentRanking([hidden], True, 50))[1]
    )


def test_summary_has_the_result_of_the_second_classifier() -> None:
    unevaluated = ComponentRanking([make_component(0.4)], True)
    evaluated = ComponentRanking([make_component(0.4)], True, 50)
    agreed = parse_evaluation(evaluation_document())
    assert (
        "confirms the edits" in summary_text.second_classifier_summary(agreed)[0]
        and summary_text.evaluation_limitations(agreed, evaluated, 6) == []
    )
    assert "on the 6 images of this page only" in summary_text.evaluation_limitations(agreed, unevaluated, 6)[0]
    failing = [{"family": "faithfulness", "kind": "limits", "text": f"Class {n} is not reached."} for n in (1, 2)]
    failed = parse_evaluation(
        evaluation_document() | {"conclusions": [*evaluation_document()["conclusions"], *failing]}
    )
    assert summary_text.evaluation_limitations(failed, evaluated, 6) == ["Class 1 is not reached."]
    disagreed = parse_evaluation(
        evaluation_document() | {"conclusions": [{"family": "second_classifier", "kind": "limits", "text": ""}]}
    )
    assert (
        summary_text.second_classifier_summary(disagreed) == []
        and "does not confirm the edits" in summary_text.evaluation_limitations(disagreed, evaluated, 6)[0]
    )
    inconclusive = parse_evaluation(evaluation_document() | {"conclusions": []})
    assert (
        summary_text.second_classifier_summary(inconclusive) == []
        and "whether another classifier would respond"
        in summary_text.evaluation_limitations(inconclusive, evaluated, 6)[0]
    )
    assert (
        "beyond the 6 images" in summary_text.evaluation_limitations(None, unevaluated, 6)[0]
        and summary_text.second_classifier_summary(None) == []
    )


def test_component_names_are_stored_in_the_run_and_can_be_removed(tmp_path: Path) -> None:
    assert read_component_names(tmp_path) == {}
    save_component_names(tmp_path, merge_component_names(tmp_path, ["1=smile", "3 = raised  brows"], 4))
    assert (tmp_path / "names.yaml").read_text() == "1: smile\n3: raised brows\n"
    save_component_names(tmp_path, merge_component_names(tmp_path, ["3=", "2=glasses"], 4))
    assert read_component_names(tmp_path) == {0: "smile", 1: "glasses"}
    save_component_names(tmp_path, merge_component_names(tmp_path, ["1=", "2="], 4))
    assert not (tmp_path / "names.yaml").exists()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("smile", "--component-name 'smile': expected NUMBER=NAME"),
        ("0=smile", "numbered from 1"),
        ("x=smile", "numbered from 1"),
        ("5=smile", "the run has no component 5; name components 1 to 4"),
        ("1=" + "x" * 50, "the name of component 1 is not valid; use at most 40"),
        ("1=a\x07", "printable characters"),
    ],
)
def test_invalid_component_name_is_rejected(assignment: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        merge_component_names(tmp_path, [assignment], 4)


@pytest.mark.parametrize("content", ["- a\n", "1: [", "\xff", "one: smile\n"])
def test_invalid_names_file_raises_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"names\.yaml"):
        read_component_names(tmp_path)
