"""The ranking: what matters, what is visible, what is pushed, on constructed cases whose answer is known."""

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
from featgan.metrics.bootstrap import Floats, as_floats
from featgan.report.analysis.component_ranking import Component, Ranking, rank_components
from featgan.report.analysis.predictions import Answer, most_pushed
from featgan.report.analysis.visibility import Change, name_places, typical_source
from featgan.report.component_names import keep_names, merge_names, read_names
from featgan.report.edits.rendering import Rendering, Seen
from featgan.report.edits.sweeps import Sweep
from featgan.report.html import summary_text
from featgan.report.html.cards import ComponentFacts
from featgan.report.run_files import parse_evaluation
from tests.helpers.report import evaluation

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


Paint = Callable[[Tensor, float], None]


def patch(image: Tensor, value: float) -> None:
    """The lower centre gets brighter as the value rises."""
    image[:, 48:60, 26:38] += 20 * value


def texture(image: Tensor, value: float) -> None:
    """Every second pixel gets brighter, the others darker: large in pixels, nothing to a patch."""
    signs = 1 - 2 * ((torch.arange(SIZE)[:, None] + torch.arange(SIZE)[None]) % 2)
    image += 20 * value * signs


def nothing(image: Tensor, value: float) -> None:
    return


def sweep_of(
    space: FeatureSpace,
    component: int,
    paint: Paint,
    gain: float = 1.0,
    outputs: Callable[[Floats], Floats] | None = None,
) -> Rendering:
    """A rendering whose box sees `gain` times what was asked of the component, and nothing else change."""
    frames = torch.full((SOURCES, len(VALUES), 3, SIZE, SIZE), 128.0)
    for source in range(SOURCES):
        for place, value in enumerate(VALUES):
            paint(frames[source, place], value)
    own = torch.zeros(SOURCES, space.feature_dim) + space.mean
    features = as_floats(component_sweep(space, own, component, [gain * value for value in VALUES]))
    seen = Seen(features, outputs(features) if outputs else np.zeros((SOURCES, len(VALUES), 3)))
    sweep = Sweep(
        f"component-{component + 1:02d}", "quantiles", f"Component {component + 1}",
        tuple(map(str, VALUES)), torch.zeros(SOURCES, len(VALUES), 1), component=component, values=VALUES,
    )  # fmt: skip
    return Rendering(sweep, frames.clamp(0, 255).byte(), frames[:, 2].clamp(0, 255).byte(), seen)


def answer_of(training: Tensor, head: Tensor) -> Answer:
    answer = Answer("expression", CLASSES)
    return replace(answer, deviations=answer.comparable(as_floats(training @ head.T)).std(0))


def test_shares_of_all_components_are_the_whole_variation_of_the_answer(
    training: Tensor, space: FeatureSpace, head: Tensor
) -> None:
    answer = answer_of(training, head)
    weights = answer.weigh(answer.comparable(ComponentFacts(space, head).pushes()))
    assert weights is not None and weights.sum() == pytest.approx(1, abs=1e-3)
    # What is added to all classes alike changes no decision.
    shifted = answer_of(training, head + torch.arange(5.0))
    same = shifted.weigh(shifted.comparable(ComponentFacts(space, head + torch.arange(5.0)).pushes()))
    assert same == pytest.approx(weights, abs=1e-3)


def test_outputs_with_units_of_their_own_count_alike(training: Tensor, space: FeatureSpace, head: Tensor) -> None:
    scaled = head * torch.tensor([[1.0], [1000.0], [0.001]])
    answer = Answer("other", CLASSES, as_floats(training @ scaled.T).std(0))
    plain = Answer("other", CLASSES, as_floats(training @ head.T).std(0))
    weights = answer.weigh(ComponentFacts(space, scaled).pushes())
    assert weights == pytest.approx(plain.weigh(ComponentFacts(space, head).pushes()))
    assert weights is not None and weights.sum() == pytest.approx(1, abs=1e-3)


def test_a_box_without_a_linear_layer_is_measured_in_the_frames(
    training: Tensor, space: FeatureSpace, head: Tensor
) -> None:
    def outputs(features: Floats) -> Floats:
        return features @ as_floats(head).T

    swept = [sweep_of(space, index, patch, outputs=outputs) for index in (0, 1)]
    answer = answer_of(training, head)
    known = rank_components(swept, ComponentFacts(space, head), answer)
    found = rank_components(swept, ComponentFacts(space), answer)
    assert [each.index for each in found.components] == [each.index for each in known.components]
    for one, other in zip(found.components, known.components, strict=True):
        assert one.pushes == pytest.approx(other.pushes, abs=1e-4)
        assert one.matters == pytest.approx(other.matters, abs=1e-4)


def test_numbers_of_the_pages_pictures(space: FeatureSpace) -> None:
    swept = [sweep_of(space, 0, patch, gain=0.5), sweep_of(space, 1, patch, gain=0.0)]
    ranking = rank_components(swept, ComponentFacts(space), None)
    first, second = sorted(ranking.components, key=lambda each: each.index)
    assert first.slope == pytest.approx(0.5, abs=1e-3) and first.crosstalk == pytest.approx(0, abs=1e-3)
    assert first.numbers["monotonicity"] == pytest.approx(1) and first.numbers["linearity"] == pytest.approx(1)
    assert second.slope == 0 and second.crosstalk == 1 and second.numbers["monotonicity"] == 0
    assert first.matters is None and first.counts and ranking.covered is None and ranking.measured_on is None


def test_an_evaluation_comes_before_the_pages_own_numbers(space: FeatureSpace) -> None:
    measured = parse_evaluation(evaluation()).components
    facts = ComponentFacts(space, measured=measured, measured_on=50)
    ranking = rank_components([sweep_of(space, 0, patch)], facts, None)
    assert ranking.components[0].slope == pytest.approx(0.62) and ranking.measured_on == 50
    assert ranking.components[0].crosstalk == pytest.approx(0.1)
    # One that was not measured: all are taken from the page, so that they can be compared.
    swept = [sweep_of(space, 0, patch), sweep_of(space, 4, patch)]
    assert [each.slope for each in rank_components(swept, facts, None).components] == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("paint", "gain", "grade", "doubt"),
    [(patch, 1.0, "clear", ""), (texture, 1.0, "none", "person"), (patch, 0.02, "clear", "classifier"),
     (nothing, 0.0, "none", "both")],
)  # fmt: skip
def test_a_person_and_the_classifier_must_both_see_it(
    space: FeatureSpace, paint: Paint, gain: float, grade: str, doubt: str
) -> None:
    component = rank_components([sweep_of(space, 0, paint, gain)], ComponentFacts(space), None).components[0]
    assert (component.change.grade, component.doubt) == (grade, doubt)
    assert component.is_shown == (not doubt)


def change_at(rows: slice, columns: slice, amount: float = 40) -> Change:
    signed = torch.zeros(SOURCES, 3, SIZE, SIZE)
    signed[:, :, rows, columns] = amount / 255
    return Change(signed)


def test_places_are_named() -> None:
    lower, third, all_of_it = slice(46, 60), slice(22, 42), slice(0, SIZE)
    assert change_at(lower, third).place == "mostly in the lower centre"
    assert change_at(third, third).place == "mostly in the centre"
    assert change_at(slice(0, 18), slice(0, 14)).place == "mostly in the upper left"
    assert change_at(slice(0, 20), all_of_it).place == "mostly in the upper left and upper centre"
    assert name_places([(0, 0), (0, 1), (0, 2)]) == "upper third"
    assert name_places([(0, 1), (1, 1), (2, 1)]) == "middle from top to bottom"
    assert name_places([(2, 1), (1, 1), (2, 0)]) == "centre, lower left and lower centre"
    assert change_at(all_of_it, all_of_it).place == "all over"
    assert change_at(all_of_it, all_of_it).tint == pytest.approx(40 / 255)
    assert change_at(lower, third, 0).place and change_at(lower, third, 0).coarse == 0


def test_the_source_shown_first_is_neither_the_best_nor_the_worst() -> None:
    signed = torch.zeros(5, 3, SIZE, SIZE)
    for source, amount in enumerate((10.0, 200.0, 60.0, 0.0, 120.0)):
        signed[source, :, 20:40, 20:40] = amount / 255
    assert typical_source([Change(signed), Change(signed / 10)]) == 2
    lost = torch.tensor([0.1, 0.2, 9.0, 0.3, 9.0])
    assert typical_source([Change(signed)], lost) == 0, "of those that repainting keeps"


def test_the_source_shown_first_obeys_as_the_median_one_does() -> None:
    sizes, lost = [1.0, 2.0, 3.0, 4.0, 5.0], torch.tensor([0.1, 0.12, 0.35, 0.3, 0.11])
    change = Change(torch.tensor(sizes)[:, None, None, None].expand(5, 3, 8, 8) / 8)
    assert typical_source([change]) == 2
    assert typical_source([change], lost) == 1  # of 0, 1 and 4
    assert typical_source([change], None, [0, 0, 2, 3, 3]) == 3  # of 2, 3 and 4
    assert typical_source([change], lost, [0, 0, 2, 3, 3]) == 3  # of 3 and 4


def test_pushes_name_the_strongest_on_either_side() -> None:
    assert most_pushed(np.array([3.0, -2.0, 1.6, 1.0]), ("a", "b", "c", "d")) == (["a", "c"], ["b"])
    assert most_pushed(np.array([0.1, -2.0]), ("a", "b")) == ([], ["b"])
    assert most_pushed(np.zeros(2), ("a", "b")) == ([], [])


@pytest.mark.parametrize(
    ("kind", "outputs", "shown"),
    [("expression", [[0.0, np.log(3)]], [[0.25, 0.75]]), ("expression", [[0.25, 0.75]], [[0.25, 0.75]]),
     ("attributes", [[0.0, 50.0]], [[0.5, 1.0]]), ("attributes", [[0.2, 0.9]], [[0.2, 0.9]]),
     ("valence_arousal", [[-0.4, 1.2]], [[-0.4, 1.2]])],
)  # fmt: skip
def test_answers_are_shown_as_a_person_reads_them(
    kind: str, outputs: list[list[float]], shown: list[list[float]]
) -> None:
    answer = Answer(kind, ("a", "b"))
    assert answer.shown(np.array(outputs)) == pytest.approx(np.array(shown))
    assert answer.is_share == (kind != "valence_arousal")


def component(matters: float | None, grade: str = "clear", slope: float = 0.5, crosstalk: float = 0.1) -> Component:
    rendering = Rendering(
        Sweep("component-01", "quantiles", "", ("low", "high"), torch.zeros(1, 2, 1), component=0, values=(-1.0, 1.0)),
        torch.zeros(1, 2, 3, SIZE, SIZE, dtype=torch.uint8), None,
    )  # fmt: skip
    change = change_at(slice(46, 60), slice(22, 42), {"clear": 60, "faint": 25, "none": 1}[grade])
    numbers = {"slope": slope, "cross-talk": crosstalk}
    return Component(0, "<b>smile", rendering, change, np.array([-1.0, 1.0]), ("calm", "glad"), matters, numbers, None)


def test_sentences_say_what_can_and_what_cannot_be_concluded() -> None:
    clear, faint, hidden = component(0.4), component(0.2, "faint", crosstalk=0.7), component(0.3, "none")
    weak, small = component(0.06, slope=0.02), component(0.01, "none")
    ranking = Ranking([clear, hidden, faint, weak, small], is_whole=True, measured_on=50)
    said = summary_text.conclude(ranking)
    assert len(said) == 2
    assert said[0] == (
        '<a href="#component-01">&lt;b&gt;smile</a> carries 40\N{NO-BREAK SPACE}% of the variation in its answer, '
        "from <em>calm</em> to <em>glad</em>; it shows clearly, mostly in the lower centre."
    )
    assert "faintly" in said[1] and "variation" not in said[1]
    doubts = [str(text) for text in summary_text.doubt(ranking)]
    assert len(doubts) == 3  # the one that hardly matters is no loss, and 97 % are nearly all
    assert doubts[0].startswith(
        "&lt;b&gt;smile (30\N{NO-BREAK SPACE}%): the classifier sees a change, a person does not"
    )
    assert "(6\N{NO-BREAK SPACE}%): the pictures change, but the classifier" in doubts[1]
    assert doubts[2].startswith("&lt;b&gt;smile does not move alone")
    assert summary_text.conclude(Ranking([hidden], True)) == [
        "No component that matters to the answer can be seen in these pictures."
    ]
    assert "70\N{NO-BREAK SPACE}% of the variation" in summary_text.doubt(Ranking([hidden], True, 50))[1]


def test_a_witness_confirms_or_is_missed() -> None:
    own, measured = Ranking([component(0.4)], True), Ranking([component(0.4)], True, 50)
    agreed = parse_evaluation(evaluation())
    assert "agrees" in summary_text.confirm(agreed)[0] and summary_text.question(agreed, measured, 6) == []
    assert "of the 6 pictures of this page only" in summary_text.question(agreed, own, 6)[0]
    failing = [{"about": "faithfulness", "verdict": "limits", "text": f"Class {n} is not reached."} for n in (1, 2)]
    failed = parse_evaluation(evaluation() | {"remarks": [*evaluation()["remarks"], *failing]})
    assert summary_text.question(failed, measured, 6) == ["Class 1 is not reached."]
    disagreed = parse_evaluation(evaluation() | {"remarks": [{"about": "witness", "verdict": "limits", "text": ""}]})
    assert (
        summary_text.confirm(disagreed) == [] and "does not agree" in summary_text.question(disagreed, measured, 6)[0]
    )
    unasked = parse_evaluation(evaluation() | {"remarks": []})
    assert (
        summary_text.confirm(unasked) == [] and "another classifier" in summary_text.question(unasked, measured, 6)[0]
    )
    assert "beyond the 6 pictures" in summary_text.question(None, own, 6)[0] and summary_text.confirm(None) == []


def test_names_are_kept_in_the_run_and_can_be_taken_back(tmp_path: Path) -> None:
    assert read_names(tmp_path) == {}
    keep_names(tmp_path, merge_names(tmp_path, ["1=smile", "3 = raised  brows"], 4))
    assert (tmp_path / "names.yaml").read_text() == "1: smile\n3: raised brows\n"
    keep_names(tmp_path, merge_names(tmp_path, ["3=", "2=glasses"], 4))
    assert read_names(tmp_path) == {0: "smile", 1: "glasses"}
    keep_names(tmp_path, merge_names(tmp_path, ["1=", "2="], 4))
    assert not (tmp_path / "names.yaml").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [("smile", "is written NUMBER=NAME"), ("0=smile", "numbered from 1"), ("x=smile", "numbered from 1"),
     ("5=smile", "component 5 cannot be named: the run has 4"), ("1=" + "x" * 50, "more than 40 letters"),
     ("1=a\x07", "odd ones")],
)  # fmt: skip
def test_names_that_cannot_be_are_refused(given: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        merge_names(tmp_path, [given], 4)


@pytest.mark.parametrize("content", ["- a\n", "1: [", "\xff", "one: smile\n"])
def test_a_names_file_that_is_none_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"names\.yaml"):
        read_names(tmp_path)
