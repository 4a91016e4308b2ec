"""The rules that draw conclusions from metrics. Their sentences are in `featgan.evaluation.conclusion_texts`.

A conclusion supports the edits as explanations of the classifier, limits them, or states what is unknown.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeGuard

from featgan.config.metric_specs import Family
from featgan.evaluation.conclusion_texts import fill_template
from featgan.evaluation.results import EvaluationResults
from featgan.evaluation.subgroups import SubgroupMetrics
from featgan.metrics.bootstrap import Estimate
from featgan.metrics.subgroups import COMPONENT_RANGES
from featgan.run.evaluation_document import Conclusion, ConclusionKind

MIN_PROGRESS = 0.2
"""Target progress below which the edits do not reach their targets."""

MIN_REAL_AGREEMENT = 0.5
"""Agreement on real target images below which the second classifier cannot confirm an edit."""

MAX_AGREEMENT_GAP = 0.1
"""Agreement gap up to which both classifiers respond equally."""

MIN_VISIBLE_SLOPE = 0.1
"""Slope below which a component has no visible effect."""

MIN_MONOTONICITY = 0.9
"""Rank correlation from which a component follows its target values."""

MIN_DIAGONAL_DOMINANCE = 0.6
"""Diagonal dominance from which a sweep hardly changes other components."""

MIN_PAIRS = 20
"""Number of pairs below which a subgroup allows no conclusion."""

MIN_IMAGES = 200
"""Number of images in each set below which distances of distributions allow no conclusion."""

MIN_VALIDITY = 0.5
MIN_SUBGROUP_PROGRESS = 0.3
"""Validity and progress below which the targets of a subgroup are not reached."""

MAX_RECONSTRUCTION_L1 = 0.2
"""Reconstruction error above which the source is not preserved, whatever the change by JPEG is."""

MAX_RECONSTRUCTION_RATIO = 2.0
"""Reconstruction error, relative to the change by JPEG at quality 75, up to which the source is preserved."""

MIN_LOW_FREQUENCY_SHARE = 0.5
"""Share of an edit's energy at low frequencies from which people can see it."""

MAX_UNIFORM_SHARE = 0.5
"""Share of an edit's energy that is equal in all pixels up to which the edit is more than a color shift."""

MAX_FRECHET_RATIO = 2.0
"""Frechet distance, relative to that between real images, up to which edited images are close to real images."""

MAX_FRECHET_WIDTH = 2.0
"""Maximum width of the interval of the Frechet distance, relative to the distance between real images."""

MIN_DIVERSITY_RATIO = 0.5
"""Diversity ratio from which edits of different sources stay different."""

MAX_NUISANCE_RATIO = 0.15
"""Nuisance ratio up to which nuisance factors stay unchanged."""

MIN_COLOR_SHIFT = 0.5
"""Color shift from which it is mentioned, in standard deviations of real images' colors."""


EXTREME_RANGES = (COMPONENT_RANGES[0], COMPONENT_RANGES[-1])
"""Ranges of a component's target value that are extreme."""


class ConclusionDraft(NamedTuple):
    """What a rule yields: the template of a sentence with its values."""

    family: Family
    kind: ConclusionKind
    template: str
    values: dict[str, object]


def draft_support(family: Family, template: str, **values: object) -> ConclusionDraft:
    return ConclusionDraft(family, "supports", template, values)


def draft_limitation(family: Family, template: str, **values: object) -> ConclusionDraft:
    return ConclusionDraft(family, "limits", template, values)


def draft_unknown(family: Family, template: str, **values: object) -> ConclusionDraft:
    return ConclusionDraft(family, "unknown", template, values)


def faithfulness_conclusions(results: EvaluationResults) -> Iterator[ConclusionDraft]:
    """Compare target progress with edits toward a shuffled target and with the training mean."""
    if "faithfulness" not in results.families:
        yield draft_unknown("faithfulness", "no_evaluation_classifier")
    yield from decision_conclusions(results)
    progress = results.generator_metrics.get("target_progress_pooled")
    if not has_value(progress):
        return
    shuffled, mean = (
        results.baseline_metrics(name).get("target_progress_pooled") for name in ("shuffled_target", "training_mean")
    )
    if progress.value < MIN_PROGRESS:
        yield draft_limitation("faithfulness", "no_progress", progress=progress.value)
    elif has_value(shuffled) and progress.low <= shuffled.high:
        yield draft_limitation("faithfulness", "target_ignored", progress=progress.value, shuffled=shuffled.value)
    elif has_value(mean) and progress.low <= mean.high:
        yield draft_limitation("faithfulness", "no_better_than_mean", progress=progress.value, mean=mean.value)
    elif has_value(shuffled):
        yield draft_support("faithfulness", "target_followed", progress=progress.value, shuffled=shuffled.value)


def decision_conclusions(results: EvaluationResults) -> Iterator[ConclusionDraft]:
    """Find predictions no better than for copies, and retrieval at chance level."""
    copy_agreement = results.baseline_metrics("copy_source").get("label_agreement")
    agreement = results.generator_metrics.get("label_agreement")
    if has_value(copy_agreement) and has_value(agreement) and agreement.low <= copy_agreement.high:
        yield draft_limitation("faithfulness", "decisions_unchanged")
    top1 = results.generator_metrics.get("retrieval_top1")
    gallery = results.generator_metrics.get("retrieval_gallery_size")
    if has_value(top1) and has_value(gallery) and top1.low <= 1 / gallery.value:
        yield draft_limitation("faithfulness", "retrieval_at_chance", top1=top1.value, gallery=gallery.value)


def subgroup_conclusions(results: EvaluationResults) -> Iterator[ConclusionDraft]:
    """Find classes, octants and extremes of components that the edits do not reach, and classes with too few pairs."""
    subgroups = results.subgroups_by_kind
    classes, octants = subgroups.get("class", ()), subgroups.get("octant", ())
    few = [
        fill_template("item_few_pairs", name=subgroup.name, pairs=subgroup.count)
        for subgroup in classes
        if subgroup.count < MIN_PAIRS
    ]
    if few:
        yield draft_unknown("faithfulness", "few_pairs", classes=join_items(few))
    weak = [
        fill_template("item_weak_class", name=subgroup.name, value=value)
        for subgroup, value in weak_subgroups(classes, "validity", MIN_VALIDITY)
    ]
    if weak:
        yield draft_limitation("faithfulness", "weak_classes", classes=join_items(weak))
    weak = [
        fill_template("item_weak_octant", name=subgroup.name, value=value)
        for subgroup, value in weak_subgroups(octants, "target_progress_pooled", MIN_SUBGROUP_PROGRESS)
    ]
    if weak:
        yield draft_limitation("faithfulness", "weak_octants", octants=join_items(weak))
    extremes = [subgroup for subgroup in subgroups.get("component", ()) if subgroup.name in EXTREME_RANGES]
    weak = [
        describe_weak_extreme(subgroup, value)
        for subgroup, value in weak_subgroups(extremes, "component_progress", MIN_SUBGROUP_PROGRESS)
    ]
    if weak:
        yield draft_limitation("faithfulness", "weak_extremes", extremes="; ".join(weak))


def describe_weak_extreme(subgroup: SubgroupMetrics, progress: float) -> str:
    """Return `component 2, below its 10 % quantile` with the progress."""
    direction, level = subgroup.name.split(maxsplit=1)
    return fill_template(
        "item_weak_extreme", component=subgroup.group, direction=direction, level=level, value=progress
    )


def weak_subgroups(
    subgroups: Iterable[SubgroupMetrics], name: str, threshold: float
) -> Iterator[tuple[SubgroupMetrics, float]]:
    """Yield subgroups whose metric is below the threshold, unless that of the nearest real images is so, too."""
    for subgroup in subgroups:
        generator, nearest_real = (
            subgroup.metrics_by_column.get(column, {}).get(name) for column in ("generator", "nearest_real")
        )
        is_unreachable = has_value(nearest_real) and nearest_real.high < threshold
        if has_value(generator) and generator.count >= MIN_PAIRS and generator.high < threshold and not is_unreachable:
            yield subgroup, generator.value


def second_classifier_conclusions(results: EvaluationResults) -> Iterator[ConclusionDraft]:
    """Compare the second classifier's agreement with its agreement before the edit and on real images."""
    if "second_classifier" not in results.families:
        if "traversal" in results.families:
            yield draft_unknown("second_classifier", "no_second_classifier")
        return
    second, first, gap = (
        results.generator_metrics.get(name)
        for name in ("second_classifier_agreement", "classifier_agreement", "agreement_gap")
    )
    real, source = (
        results.baseline_metrics(name).get("second_classifier_agreement") for name in ("target_real", "copy_source")
    )
    if not (has_value(second) and has_value(first) and has_value(gap) and has_value(real) and has_value(source)):
        yield draft_unknown("second_classifier", "second_not_comparable")
    elif real.value < MIN_REAL_AGREEMENT:
        yield draft_unknown("second_classifier", "second_unreliable", real=real.value)
    elif second.low <= source.high:
        yield draft_limitation("second_classifier", "second_unresponsive", second=second.value, source=source.value)
    elif gap.low > MAX_AGREEMENT_GAP:
        yield draft_limitation("second_classifier", "second_responds_less", second=second.value, first=first.value)
    else:
        yield draft_support(
            "second_classifier",
            "second_responds",
            second=second.value,
            source=source.value,
            real=real.value,
            first=first.value,
        )


def traversal_conclusions(results: EvaluationResults) -> Iterator[ConclusionDraft]:
    """Find components without visible effect, components that follow their target values, and entanglement."""
    slopes = {component.index + 1: component.slope for component in results.components if component.slope is not None}
    invisible = {number: slope for number, slope in slopes.items() if slope < MIN_VISIBLE_SLOPE}
    if len(invisible) == 1:
        yield draft_limitation("traversal", "invisible_component", components=join_slopes(invisible))
    elif invisible:
        yield draft_limitation("traversal", "invisible_components", components=join_slopes(invisible))
    real_metrics = results.baseline_metrics("nearest_real")
    real_slopes = {number: real_metrics.get(f"component_{number:02d}_slope") for number in invisible}
    fixed = {
        number: slope.value
        for number, slope in real_slopes.items()
        if has_value(slope) and slope.value < MIN_VISIBLE_SLOPE
    }
    if fixed:
        yield draft_unknown("traversal", "fixed_by_data", components=join_slopes(fixed))
    following = {
        component.index + 1: component.slope
        for component in results.components
        if component.slope is not None
        and component.slope >= MIN_VISIBLE_SLOPE
        and (component.monotonicity or 0.0) >= MIN_MONOTONICITY
    }
    yield from slope_conclusions(following)
    yield from entanglement_conclusions(results)


def slope_conclusions(slopes: Mapping[int, float]) -> Iterator[ConclusionDraft]:
    """State the components that follow their target values; `slopes` by number of the component."""
    components = join_items([str(number) for number in slopes])
    if len(slopes) == 1:
        yield draft_support("traversal", "component_follows", components=components, slope=next(iter(slopes.values())))
    elif slopes:
        lowest, highest = min(slopes.values()), max(slopes.values())
        yield draft_support("traversal", "components_follow", components=components, lowest=lowest, highest=highest)


def entanglement_conclusions(results: EvaluationResults) -> Iterator[ConclusionDraft]:
    """Find sweeps that change other components more than real images do."""
    share = results.generator_metrics.get("diagonal_dominance")
    real = results.baseline_metrics("nearest_real").get("diagonal_dominance")
    if not has_value(share) or share.high >= MIN_DIAGONAL_DOMINANCE:
        return
    if not has_value(real):
        yield draft_limitation("traversal", "entangled", share=share.value)
    elif real.value > share.high:
        yield draft_limitation("traversal", "entangled_unlike_real", share=share.value, real=real.value)


def preservation_conclusions(results: EvaluationResults) -> Iterator[ConclusionDraft]:
    """Find whether the source is preserved, and whether people can see the edit."""
    metrics = results.generator_metrics
    size, jpeg = metrics.get("edit_l1"), results.baseline_metrics("source_jpeg").get("edit_l1")
    yield from reconstruction_conclusions(metrics.get("reconstruction_l1"), jpeg)
    is_faint = has_value(size) and has_value(jpeg) and size.low <= jpeg.high
    if has_value(size) and has_value(jpeg) and is_faint:
        yield draft_limitation("preservation", "edit_faint", size=size.value, jpeg=jpeg.value)
    low_frequency = metrics.get("edit_low_frequency_share_when_changed")
    uniform = metrics.get("edit_uniform_share_when_changed")
    if not has_value(low_frequency):
        return
    if has_value(uniform) and uniform.low > MAX_UNIFORM_SHARE:
        yield draft_limitation("preservation", "edit_uniform", share=uniform.value)
    elif low_frequency.high < MIN_LOW_FREQUENCY_SHARE:
        yield draft_limitation("preservation", "edit_fine", share=low_frequency.value)
    elif low_frequency.low > MIN_LOW_FREQUENCY_SHARE and not is_faint:
        yield draft_support("preservation", "edit_coarse", share=low_frequency.value)


def reconstruction_conclusions(reconstruction: Estimate | None, jpeg: Estimate | None) -> Iterator[ConclusionDraft]:
    """Compare the reconstruction error with the change by JPEG."""
    if not has_value(reconstruction):
        return
    if reconstruction.value > MAX_RECONSTRUCTION_L1:
        yield draft_limitation("preservation", "source_not_preserved", l1=reconstruction.value)
    elif not has_value(jpeg):
        return
    elif reconstruction.low > MAX_RECONSTRUCTION_RATIO * jpeg.value:
        yield draft_limitation("preservation", "reconstruction_changes", l1=reconstruction.value, jpeg=jpeg.value)
    elif reconstruction.high <= MAX_RECONSTRUCTION_RATIO * jpeg.value:
        yield draft_support("preservation", "source_preserved", l1=reconstruction.value, jpeg=jpeg.value)


def color_shift_conclusions(results: EvaluationResults) -> Iterator[ConclusionDraft]:
    """Find classes whose edits shift the color more than real images of the class do."""
    compared, not_compared = [], []
    for subgroup in results.subgroups_by_kind.get("class", ()):
        shift, real = subgroup.metrics_by_column["generator"].get("color_shift"), real_color_shift(subgroup)
        threshold = max(real.high if has_value(real) else 0.0, MIN_COLOR_SHIFT)
        if not has_value(shift) or shift.count < MIN_PAIRS or shift.low <= threshold:
            continue
        if has_value(real):
            compared.append(fill_template("item_color_shift", name=subgroup.name, shift=shift.value, real=real.value))
        else:
            not_compared.append(fill_template("item_color_shift_without_real", name=subgroup.name, shift=shift.value))
    if compared:
        yield draft_limitation("preservation", "color_shift", classes=join_items(compared))
    if not_compared:
        yield draft_limitation("preservation", "color_shift_without_real", classes=join_items(not_compared))


def real_color_shift(subgroup: SubgroupMetrics) -> Estimate | None:
    """Return the color shift of real images with the target's features or label."""
    tables = [subgroup.metrics_by_column.get(column, {}) for column in ("nearest_real", "target_real")]
    return next((table["color_shift"] for table in tables if "color_shift" in table), None)


def realism_conclusions(results: EvaluationResults) -> Iterator[ConclusionDraft]:
    """Compare the Frechet distances of edited and of real images, in the first space in which they were measured."""
    metrics = results.generator_metrics
    spaces = (
        (fill_template("space_inception"), "fid", "inception_kid"),
        (
            fill_template("space_second_classifier"),
            "second_classifier_frechet_distance",
            "second_classifier_kid",
        ),
        (classifier_space(results), "frechet_distance", "kid"),
    )
    for space, frechet_name, kid_name in spaces:
        distance, real = metrics.get(frechet_name), metrics.get(f"{frechet_name}_real")
        kid, real_kid = metrics.get(kid_name), metrics.get(f"{kid_name}_real")
        if has_value(distance) and has_value(real) and has_value(kid) and has_value(real_kid):
            is_separated = kid.low > real_kid.high or distance.low > real.high
            yield compare_realism(space, distance, real, is_separated, is_only_space=frechet_name == "frechet_distance")
            return


def classifier_space(results: EvaluationResults) -> str:
    """Name the feature space: only feature-conditioned models, which have sweeps, are trained with the classifier."""
    if "traversal" in results.families:
        return fill_template("space_training_classifier")
    return fill_template("space_evaluation_classifier")


def compare_realism(
    space: str, distance: Estimate, real: Estimate, is_separated: bool, is_only_space: bool
) -> ConclusionDraft:
    """Return the conclusion from one space.

    `is_separated`: the intervals of edited and real images do not overlap. `is_only_space`: the space is that of the
    classifier, and neither Inception nor a second classifier was given.
    """
    is_far = distance.value > MAX_FRECHET_RATIO * real.value
    if is_far and is_separated:
        return draft_limitation("realism", "far_from_real", space=space, distance=distance.value, real=real.value)
    if distance.count < MIN_IMAGES:
        return draft_unknown(
            "realism",
            "too_few_images",
            space=space,
            count=distance.count,
            distance=distance.value,
            real=real.value,
        )
    if is_far:
        return draft_unknown("realism", "intervals_overlap", space=space, distance=distance.value, real=real.value)
    if distance.high - distance.low > MAX_FRECHET_WIDTH * real.value:
        return draft_unknown(
            "realism", "interval_too_wide", space=space, low=distance.low, high=distance.high, real=real.value
        )
    if is_only_space:
        return draft_unknown("realism", "close_in_one_space", space=space, distance=distance.value, real=real.value)
    return draft_support("realism", "close_to_real", space=space, distance=distance.value, real=real.value)


def diversity_conclusions(results: EvaluationResults) -> Iterator[ConclusionDraft]:
    """Find edits to the same target that lose the differences of their sources."""
    ratio = results.generator_metrics.get("diversity_ratio")
    if has_value(ratio) and ratio.high < MIN_DIVERSITY_RATIO:
        yield draft_limitation("diversity", "diversity_lost", ratio=ratio.value)


def factor_conclusions(results: EvaluationResults) -> Iterator[ConclusionDraft]:
    """Find whether nuisance factors of synthetic faces stay unchanged."""
    ratio = results.generator_metrics.get("factor_nuisance_ratio")
    if not has_value(ratio):
        return
    if ratio.high <= MAX_NUISANCE_RATIO:
        yield draft_support("factors", "nuisance_unchanged", ratio=ratio.value)
    elif ratio.low > MAX_NUISANCE_RATIO:
        yield draft_limitation("factors", "nuisance_changes", ratio=ratio.value)
    else:
        yield draft_unknown("factors", "nuisance_unknown", low=ratio.low, high=ratio.high)


CONCLUSION_RULES: tuple[Callable[[EvaluationResults], Iterator[ConclusionDraft]], ...] = (
    faithfulness_conclusions,
    subgroup_conclusions,
    second_classifier_conclusions,
    traversal_conclusions,
    preservation_conclusions,
    color_shift_conclusions,
    realism_conclusions,
    diversity_conclusions,
    factor_conclusions,
)
"""The rules, in the order of their conclusions."""


def draw_conclusions(results: EvaluationResults) -> list[Conclusion]:
    """Return the conclusions of all rules, family by family."""
    drafts = [draft for rule in CONCLUSION_RULES for draft in rule(results)]
    return [
        Conclusion(family=draft.family, kind=draft.kind, text=fill_template(draft.template, **draft.values))
        for draft in drafts
    ]


def has_value(estimate: Estimate | None) -> TypeGuard[Estimate]:
    """Return whether a metric was measured."""
    return estimate is not None and math.isfinite(estimate.value)


def join_items(items: Sequence[str]) -> str:
    return ", ".join(items)


def join_slopes(slopes: Mapping[int, float]) -> str:
    """List the numbers of components with their slopes."""
    return join_items(
        [fill_template("item_component_slope", number=number, slope=slope) for number, slope in slopes.items()]
    )
