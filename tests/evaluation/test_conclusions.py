"""The conclusions of an evaluation state what its metrics support, and no more."""

import ast
from dataclasses import replace
from inspect import getsource
from string import Formatter

import pytest

from featgan.config.metric_specs import Family
from featgan.evaluation import conclusions as module
from featgan.evaluation.conclusion_texts import CONCLUSION_TEXTS, fill_template
from featgan.evaluation.conclusions import draw_conclusions
from featgan.evaluation.evaluator import MetricsByColumn
from featgan.evaluation.results import EvaluationResults
from featgan.evaluation.subgroups import SubgroupMetrics
from featgan.metrics.bootstrap import Estimate

TEMPLATE_FUNCTIONS = ("draft_support", "draft_limitation", "draft_unknown", "fill_template")


def interval_around(value: float, width: float = 0.02, count: int = 500) -> Estimate:
    return Estimate(value, value - width, value + width, count)


def make_metrics(**columns: dict[str, float]) -> MetricsByColumn:
    return {
        column: {name: interval_around(value) for name, value in values.items()} for column, values in columns.items()
    }


def conclusion_texts(results: EvaluationResults, family: Family) -> list[tuple[str, str]]:
    return [
        (conclusion.kind, conclusion.text) for conclusion in draw_conclusions(results) if conclusion.family == family
    ]


def template_calls() -> list[tuple[str, set[str]]]:
    """Return the template name and the value names of every conclusion in the rules."""
    calls = []
    for node in ast.walk(ast.parse(getsource(module))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TEMPLATE_FUNCTIONS:
            position = 0 if node.func.id == "fill_template" else 1
            template = node.args[position]
            if isinstance(template, ast.Constant):
                calls.append((str(template.value), {keyword.arg or "" for keyword in node.keywords}))
    return calls


def test_every_template_is_used_and_exists() -> None:
    assert {name for name, _ in template_calls()} == set(CONCLUSION_TEXTS)


@pytest.mark.parametrize(("name", "values"), template_calls())
def test_every_placeholder_is_filled_and_every_value_is_shown(name: str, values: set[str]) -> None:
    placeholders = {field for _, field, _, _ in Formatter().parse(CONCLUSION_TEXTS[name]) if field is not None}
    assert placeholders == values


@pytest.mark.parametrize("name", CONCLUSION_TEXTS)
def test_sentences_have_at_most_two_numbers(name: str) -> None:
    for sentence in CONCLUSION_TEXTS[name].split(". "):
        formats = [spec for _, _, spec, _ in Formatter().parse(sentence) if spec]
        assert len(formats) <= 2, sentence


@pytest.mark.parametrize("name", CONCLUSION_TEXTS)
def test_templates_are_complete_sentences(name: str) -> None:
    text = CONCLUSION_TEXTS[name]
    if not name.startswith(("item_", "space_")):
        assert text[0].isupper() and text.endswith(".")


def test_missing_value_is_an_error() -> None:
    with pytest.raises(KeyError):
        fill_template("no_progress")


def faithfulness_conclusions(progress: float, shuffled: float, mean: float) -> list[tuple[str, str]]:
    metrics = make_metrics(
        generator={"target_progress_pooled": progress},
        shuffled_target={"target_progress_pooled": shuffled},
        training_mean={"target_progress_pooled": mean},
    )
    return conclusion_texts(EvaluationResults({"faithfulness": metrics}), "faithfulness")


def test_progress_is_compared_with_its_baselines() -> None:
    assert faithfulness_conclusions(0.1, 0.0, 0.5) == [
        ("limits", "The edits hardly reach the targets: target progress is 0.10.")
    ]
    assert faithfulness_conclusions(0.35, 0.34, 0.5) == [
        (
            "limits",
            "The edits depend little on the target: target progress is 0.35, versus 0.34 for edits toward a shuffled "
            "target.",
        )
    ]
    assert faithfulness_conclusions(0.48, 0.3, 0.5)[0][1].startswith(
        "The edits are not clearly closer to the targets than the mean of the training features"
    )
    kind, text = faithfulness_conclusions(0.8, 0.3, 0.5)[0]
    assert kind == "supports" and "target progress is 0.80, versus 0.30" in text


def test_decisions_of_copies_are_a_limitation() -> None:
    metrics = make_metrics(generator={"label_agreement": 0.3}, copy_source={"label_agreement": 0.3})
    assert conclusion_texts(EvaluationResults({"faithfulness": metrics}), "faithfulness") == [
        (
            "limits",
            "The classifier does not predict the target class clearly more often for edited images than for unchanged "
            "sources.",
        )
    ]


def test_missing_evaluation_classifier_is_stated() -> None:
    (conclusion,) = conclusion_texts(EvaluationResults({"preservation": {}}), "faithfulness")
    assert conclusion[0] == "unknown" and "--classifier" in conclusion[1]


def test_retrieval_at_chance_level_is_a_limitation() -> None:
    metrics = {"retrieval_top1": Estimate(0.002, 0.0, 0.005, 500), "retrieval_gallery_size": interval_around(1000, 0)}
    results = EvaluationResults({"faithfulness": {"generator": metrics}})
    assert conclusion_texts(results, "faithfulness") == [
        (
            "limits",
            "Retrieval is at chance level: for 0.2 % of the pairs, the target is the nearest of 1000 images. By this "
            "metric, the edits are not specific to their targets.",
        )
    ]
    metrics["retrieval_top1"] = Estimate(0.02, 0.01, 0.03, 500)
    assert conclusion_texts(results, "faithfulness") == []


def make_subgroup(name: str, count: int = 100, group: str = "class", **columns: dict[str, float]) -> SubgroupMetrics:
    metrics_by_column = {
        column: {metric: interval_around(value, 0.1, count) for metric, value in values.items()}
        for column, values in columns.items()
    }
    return SubgroupMetrics(group, name, count, metrics_by_column)


def test_similar_classes_share_a_sentence_and_unreachable_classes_are_left_out() -> None:
    subgroups = [
        make_subgroup("happy", generator={"validity": 0.9}, nearest_real={"validity": 0.9}),
        make_subgroup("sad", generator={"validity": 0.2}, nearest_real={"validity": 0.9}),
        make_subgroup("fear", generator={"validity": 0.3}, nearest_real={"validity": 0.8}),
        make_subgroup("anger", generator={"validity": 0.1}, nearest_real={"validity": 0.2}),
        make_subgroup("contempt", 7, generator={"validity": 0.0}, nearest_real={"validity": 0.9}),
    ]
    assert conclusion_texts(EvaluationResults({"faithfulness": {}}, subgroups=subgroups), "faithfulness") == [
        ("unknown", "Too few pairs have these target classes for a conclusion: contempt (7 pairs)."),
        (
            "limits",
            "Fewer than half of the edits change the prediction to these target classes: sad (20 %), fear (30 %).",
        ),
    ]


def test_weak_octants_and_extremes_are_limitations() -> None:
    subgroups = [
        make_subgroup("3", group="octant", generator={"target_progress_pooled": 0.1}),
        make_subgroup("above 90 %", group="component 2", generator={"component_progress": 0.15}),
        make_subgroup("below 10 %", group="component 3", generator={"component_progress": 0.12}),
        make_subgroup("10 to 50 %", group="component 2", generator={"component_progress": 0.1}),
    ]
    assert conclusion_texts(EvaluationResults({"faithfulness": {}}, subgroups=subgroups), "faithfulness") == [
        (
            "limits",
            "The edits make little progress toward targets in these octants of valence and arousal: "
            "octant 3 (target progress 0.10). Octant 1 has the angles from 0° at valence 1 to 45°, toward arousal 1.",
        ),
        (
            "limits",
            "The edits make little progress toward extreme values of these components: "
            "component 2, above its 90 % quantile (component progress 0.15); "
            "component 3, below its 10 % quantile (component progress 0.12).",
        ),
    ]


def test_color_shift_of_real_images_is_not_attributed_to_the_classifier() -> None:
    subgroups = [
        make_subgroup("disgust", generator={"color_shift": 1.4}, nearest_real={"color_shift": 0.2}),
        make_subgroup("sad", generator={"color_shift": 1.0}, nearest_real={"color_shift": 1.1}),
        make_subgroup("fear", generator={"color_shift": 0.3}, nearest_real={"color_shift": 0.0}),
        make_subgroup("anger", generator={"color_shift": 0.8}),
    ]
    assert conclusion_texts(EvaluationResults({"faithfulness": {}}, subgroups=subgroups), "preservation") == [
        (
            "limits",
            "The color shift of edits toward these classes is larger than that of real images: "
            "disgust (1.4 SD, real images 0.2 SD). "
            "The classifier may respond to color, or the generator shifts the color without need.",
        ),
        (
            "limits",
            "Edits toward these classes shift the color, and the color shift of real images is not known: "
            "anger (0.8 SD). The classifier may respond to color, or the generator shifts the color without need.",
        ),
    ]


@pytest.mark.parametrize(
    ("second", "source", "real", "kind", "start"),
    [
        (
            0.89,
            0.07,
            0.9,
            "supports",
            "The second classifier also responds to the edits: it predicts the target class for 89 % of",
        ),
        (0.5, 0.07, 0.9, "limits", "The second classifier responds less to the edits"),
        (0.08, 0.07, 0.9, "limits", "The second classifier does not clearly respond to the edits"),
        (0.3, 0.07, 0.3, "unknown", "The second classifier cannot confirm the edits"),
    ],
)
def test_second_classifier_confirms_the_edits_or_not(
    second: float, source: float, real: float, kind: str, start: str
) -> None:
    metrics = make_metrics(
        generator={
            "second_classifier_agreement": second,
            "classifier_agreement": 0.92,
            "agreement_gap": 0.92 - second,
        },
        target_real={"second_classifier_agreement": real},
        copy_source={"second_classifier_agreement": source},
    )
    conclusions = conclusion_texts(EvaluationResults({"second_classifier": metrics}), "second_classifier")
    assert [(conclusion_kind, text[: len(start)]) for conclusion_kind, text in conclusions] == [(kind, start)]


def test_missing_second_classifier_is_stated() -> None:
    assert conclusion_texts(EvaluationResults({"traversal": {}}), "second_classifier")[0][0] == "unknown"
    assert conclusion_texts(EvaluationResults({"second_classifier": {}}), "second_classifier")[0][0] == "unknown"


def test_components_are_grouped_by_visibility() -> None:
    generator = {
        "component_01_slope": 0.6, "component_01_monotonicity": 0.98, "component_02_slope": 0.02,
        "component_02_monotonicity": 0.5, "component_03_slope": 0.4, "component_03_monotonicity": 0.95,
        "diagonal_dominance": 0.4,
    }  # fmt: skip
    real = {"component_02_slope": 0.05, "diagonal_dominance": 0.7}
    results = EvaluationResults(
        {"traversal": make_metrics(generator=generator, nearest_real=real)},
        crosstalk=[[0.6, 0, 0], [0, 0, 0], [0, 0, 0.4]],
    )
    assert conclusion_texts(results, "traversal") == [
        (
            "limits",
            "Sweeping component 2 (slope 0.02) has hardly any effect that the classifier detects in the images.",
        ),
        (
            "unknown",
            "These components do not vary independently in real images either, so the data cannot show their effect: "
            "2 (slope 0.05).",
        ),
        ("supports", "Components 1, 3 follow their target values with slopes from 0.40 to 0.60."),
        (
            "limits",
            "Sweeping one component also changes others: 40 % of the change is in the swept component, versus 70 % in "
            "real images.",
        ),
    ]


def test_single_component_that_follows_and_several_that_are_invisible() -> None:
    generator = {
        "component_01_slope": 0.6, "component_01_monotonicity": 0.98, "component_02_slope": 0.02,
        "component_03_slope": 0.04, "diagonal_dominance": 0.4,
    }  # fmt: skip
    results = EvaluationResults(
        {"traversal": make_metrics(generator=generator)}, crosstalk=[[0.6, 0, 0], [0, 0, 0], [0, 0, 0]]
    )
    assert conclusion_texts(results, "traversal") == [
        (
            "limits",
            "Sweeping components 2 (slope 0.02), 3 (slope 0.04) has hardly any effect that the classifier detects in "
            "the images.",
        ),
        ("supports", "Component 1 follows its target values with a slope of 0.60."),
        ("limits", "Sweeping one component also changes others: 40 % of the change is in the swept component."),
    ]


def test_fine_and_faint_edits_are_not_called_visible() -> None:
    def first_sentence(size: float, low_frequency: float) -> list[str]:
        generator = {"edit_l1": size, "edit_low_frequency_share_when_changed": low_frequency}
        metrics = make_metrics(generator=generator, source_jpeg={"edit_l1": 0.02})
        conclusions = conclusion_texts(EvaluationResults({"preservation": metrics}), "preservation")
        return [text.split(":")[0] for _, text in conclusions]

    assert first_sentence(0.2, 0.8) == ["The edits are coarse enough to be seen"]
    assert first_sentence(0.2, 0.2) == ["Much of the edit is fine texture that people may not see"]
    assert first_sentence(0.01, 0.8) == ["The edits are not clearly larger than the change by JPEG at quality 75"]


def test_uniform_color_shift_does_not_count_as_coarse() -> None:
    generator = {"edit_l1": 0.2, "edit_low_frequency_share_when_changed": 0.9, "edit_uniform_share_when_changed": 0.7}
    metrics = make_metrics(generator=generator, source_jpeg={"edit_l1": 0.02})
    assert conclusion_texts(EvaluationResults({"preservation": metrics}), "preservation") == [
        ("limits", "Most of the edit is a uniform color shift: 70 % of its energy is equal in all pixels.")
    ]


@pytest.mark.parametrize(
    ("error", "kind", "start"),
    [
        (
            0.03,
            "supports",
            "Reconstruction preserves the source: the mean change of a pixel is 0.030 (black to white is 2)",
        ),
        (
            0.08,
            "limits",
            "Reconstruction alone changes the image: the mean change of a pixel is 0.080 (black to white is 2)",
        ),
        (
            0.30,
            "limits",
            "The generator does not preserve its source: in reconstructions, the mean change of a pixel is 0.300",
        ),
    ],
)
def test_reconstruction_error_is_compared_with_jpeg(error: float, kind: str, start: str) -> None:
    metrics = make_metrics(generator={"reconstruction_l1": error}, source_jpeg={"edit_l1": 0.025})
    (conclusion,) = conclusion_texts(EvaluationResults({"preservation": metrics}), "preservation")
    assert conclusion[0] == kind and conclusion[1].startswith(start)


@pytest.mark.parametrize(
    ("ratio", "width", "kind"), [(0.1, 0.02, "supports"), (0.2, 0.02, "limits"), (0.15, 0.1, "unknown")]
)
def test_nuisance_ratio_is_assessed_by_its_interval(ratio: float, width: float, kind: str) -> None:
    metrics = {"generator": {"factor_nuisance_ratio": interval_around(ratio, width)}}
    (conclusion,) = conclusion_texts(EvaluationResults({"factors": metrics}), "factors")
    assert conclusion[0] == kind


def realism_metrics(names: tuple[str, str], frechet: Estimate, kid: Estimate) -> dict[str, Estimate]:
    """Return the metrics of one space; the distances of real images are 1 and 0."""
    frechet_name, kid_name = names
    return {
        frechet_name: frechet,
        f"{frechet_name}_real": interval_around(1.0),
        kid_name: kid,
        f"{kid_name}_real": interval_around(0.0),
    }


INCEPTION_SPACE = ("fid", "inception_kid")
SECOND_SPACE = ("second_classifier_frechet_distance", "second_classifier_kid")
CLASSIFIER_SPACE = ("frechet_distance", "kid")


def realism_conclusion(**families: MetricsByColumn) -> tuple[str, str]:
    (conclusion,) = conclusion_texts(EvaluationResults(dict(families)), "realism")
    return conclusion


def test_realism_is_concluded_from_a_space_that_was_not_used_in_training() -> None:
    def conclude(**spaces: tuple[float, float]) -> tuple[str, str]:
        names = {"first": CLASSIFIER_SPACE, "second": SECOND_SPACE, "inception": INCEPTION_SPACE}
        metrics: dict[str, Estimate] = {}
        for space, (frechet, kid) in spaces.items():
            metrics |= realism_metrics(names[space], interval_around(frechet), interval_around(kid))
        return realism_conclusion(realism={"generator": metrics}, traversal={})

    assert conclude(first=(1.2, 0.0), second=(9.0, 0.8))[0] == "limits"
    assert conclude(first=(9.0, 0.8), second=(1.2, 0.0))[0] == "supports"
    kind, text = conclude(first=(9.0, 0.8), second=(9.0, 0.8), inception=(1.2, 0.0))
    assert kind == "supports" and "in the feature space of Inception" in text
    assert conclude(second=(2.4, 0.0))[0] == "limits", "farther than real images from each other, beyond the intervals"
    kind, text = conclude(first=(1.2, 0.0))
    assert kind == "unknown" and "in the feature space of the training classifier, but no other" in text


def test_evaluation_classifier_of_a_label_conditioned_model_was_not_used_in_training() -> None:
    metrics = realism_metrics(CLASSIFIER_SPACE, interval_around(1.2), interval_around(0.0))
    kind, text = realism_conclusion(realism={"generator": metrics})
    assert kind == "unknown" and "in the feature space of the evaluation classifier, but no other" in text


def test_wide_interval_of_many_images_supports_nothing() -> None:
    first, second = SECOND_SPACE
    metrics = {
        first: interval_around(0.8, 1.8), f"{first}_real": interval_around(0.5, 1.4),
        second: interval_around(0.0, 0.2), f"{second}_real": interval_around(0.0, 0.2),
    }  # fmt: skip
    many = {name: replace(estimate, count=628) for name, estimate in metrics.items()}
    kind, text = realism_conclusion(realism={"generator": many})
    assert kind == "unknown" and "is too wide" in text


def test_distance_that_may_be_chance_supports_nothing() -> None:
    first, second = SECOND_SPACE
    metrics = {
        first: interval_around(6.0, 5.0), f"{first}_real": interval_around(1.8, 2.0),
        second: interval_around(0.1, 0.2), f"{second}_real": interval_around(0.0, 0.2),
    }  # fmt: skip
    kind, text = realism_conclusion(realism={"generator": metrics})
    assert kind == "unknown" and "because the intervals of the two distances overlap" in text
    few = {name: replace(estimate, count=100) for name, estimate in metrics.items()}
    kind, text = realism_conclusion(realism={"generator": few})
    assert kind == "unknown" and "because 100 images in each set are too few" in text


def test_lost_diversity_is_a_limitation() -> None:
    def conclude(ratio: float) -> list[tuple[str, str]]:
        metrics = make_metrics(generator={"diversity_ratio": ratio})
        return conclusion_texts(EvaluationResults({"diversity": metrics}), "diversity")

    assert conclude(0.1) == [
        (
            "limits",
            "Edits of different sources to the same target become similar: their distance is 10 % of the distance "
            "between the sources.",
        )
    ]
    assert conclude(0.9) == []
