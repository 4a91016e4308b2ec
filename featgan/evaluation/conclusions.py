"""The rules that draw conclusions from metrics. Their sentences are in `featgan.evaluation.conclusion_texts`.

A conclusion supports the edits as explanations of the classifier, limits them, or states what is unknown.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeGuard

from featgan.config.metric_specs import Family
from featgan.evaluation.conclusion_texts import fill_template
from featgan.evaluation.document import Conclusion, ConclusionKind
from featgan.evaluation.results import EvaluationResults
from featgan.evaluation.subgroups import SubgroupMetrics
from featgan.metrics.bootstrap import Estimate

MIN_VISIBLE_SLOPE = 0.1
"""Slope below which a component has no visible effect."""

MIN_MONOTONICITY = 0.9
"""Rank correlation from which a component follows its target values."""

MIN_PAIRS = 20
"""Number of pairs below which a subgroup allows no conclusion."""

MIN_IMAGES = 200
"""Number of images per side below which distances of distributions allow no conclusion."""

MIN_VALIDITY = 0.5
MIN_SUBGROUP_PROGRESS = 0.3
"""Validity and progress below which the targets of a subgroup are not reached."""

MAX_RECONSTRUCTION_RATIO = 2.0
"""Reconstruction error, relative to the change by JPEG at quality 75, up to which the source is preserved."""

MAX_NUISANCE_RATIO = 0.15
"""Nuisance ratio up to which nuisance factors stay unchanged."""

MIN_COLOR_SHIFT = 0.5
"""Color shift from which it is mentioned, in standard deviations of real images' colors."""


class Finding(NamedTuple):
    """What a rule yields: the template of a sentence with its values."""

    family: Family
    kind: ConclusionKind
    template: str
    values: dict[str, object]


def draw_conclusions(results: EvaluationResults) -> list[Conclusion]:
    """Return the conclusions of all rules, family by family."""
    findings = [finding for rule in CONCLUSION_RULES for finding in rule(results)]
    return [
        Conclusion(family=finding.family, kind=finding.kind, text=fill_template(finding.template, **finding.values))
        for finding in findings
    ]


def supporting_finding(family: Family, template: str, **values: object) -> Finding:
    return Finding(family, "supports", template, values)


def limiting_finding(family: Family, template: str, **values: object) -> Finding:
    return Finding(family, "limits", template, values)


def unknown_finding(family: Family, template: str, **values: object) -> Finding:
    return Finding(family, "unknown", template, values)


def find_faithfulness(results: EvaluationResults) -> Iterator[Finding]:
    """Compare target progress with edits toward a shuffled target and with the training mean."""
    if "faithfulness" not in results.families:
        yield unknown_finding("faithfulness", "no_evaluation_classifier")
    yield from find_decisions(results)
    progress = results.generator_metrics.get("target_progress_pooled")
    if not has_value(progress):
        return
    shuffled, mean = (
        results.baseline_metrics(name).get("target_progress_pooled") for name in ("shuffled_target", "training_mean")
    )
    if progress.value < 0.2:
        yield limiting_finding("faithfulness", "no_progress", progress=progress.value)
    elif has_value(shuffled) and progress.low <= shuffled.high:
        yield limiting_finding("faithfulness", "target_ignored", progress=progress.value, shuffled=shuffled.value)
    elif has_value(mean) and progress.low <= mean.high:
        yield limiting_finding("faithfulness", "no_better_than_mean", progress=progress.value, mean=mean.value)
    elif has_value(shuffled):
        yield supporting_finding("faithfulness", "target_followed", progress=progress.value, shuffled=shuffled.value)


def find_decisions(results: EvaluationResults) -> Iterator[Finding]:
    """Find predictions no better than for copies, and retrieval at chance level."""
    copy_agreement = results.baseline_metrics("copy_source").get("label_agreement")
    agreement = results.generator_metrics.get("label_agreement")
    if has_value(copy_agreement) and has_value(agreement) and agreement.low <= copy_agreement.high:
        yield limiting_finding("faithfulness", "decisions_unchanged")
    top1 = results.generator_metrics.get("retrieval_top1")
    gallery = results.generator_metrics.get("retrieval_gallery_size")
    if has_value(top1) and has_value(gallery) and top1.low <= 1 / gallery.value:
        yield limiting_finding("faithfulness", "retrieval_at_chance", top1=top1.value, gallery=gallery.value)


def find_subgroups(results: EvaluationResults) -> Iterator[Finding]:
    """Find classes, octants and extremes of components that the edits do not reach, and classes with too few pairs."""
    subgroups = results.subgroups_by_kind
    classes, octants = subgroups.get("class", ()), subgroups.get("octant", ())
    few = [
        fill_template("item_few_pairs", name=subgroup.name, pairs=subgroup.count)
        for subgroup in classes
        if subgroup.count < MIN_PAIRS
    ]
    if few:
        yield unknown_finding("faithfulness", "few_pairs", classes=join_items(few))
    weak = [
        fill_template("item_weak_class", name=subgroup.name, value=value)
        for subgroup, value in weak_subgroups(classes, "validity", MIN_VALIDITY)
    ]
    if weak:
        yield limiting_finding("faithfulness", "weak_classes", classes=join_items(weak))
    weak = [
        fill_template("item_weak_octant", name=subgroup.name, value=value)
        for subgroup, value in weak_subgroups(octants, "target_progress_pooled", MIN_SUBGROUP_PROGRESS)
    ]
    if weak:
        yield limiting_finding("faithfulness", "weak_octants", octants=join_items(weak))
    extremes = [subgroup for subgroup in subgroups.get("component", ()) if subgroup.name.startswith(("below", "above"))]
    weak = [
        fill_template("item_weak_extreme", component=subgroup.group, name=subgroup.name, value=value)
        for subgroup, value in weak_subgroups(extremes, "component_progress", MIN_SUBGROUP_PROGRESS)
    ]
    if weak:
        yield limiting_finding("faithfulness", "weak_extremes", extremes=join_items(weak))


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


def find_second_classifier(results: EvaluationResults) -> Iterator[Finding]:
    """Compare the second classifier's agreement with its agreement before the edit and on real images."""
    if "second_classifier" not in results.families:
        if "traversal" in results.families:
            yield unknown_finding("second_classifier", "no_second_classifier")
        return
    second, first, gap = (
        results.generator_metrics.get(name)
        for name in ("second_classifier_agreement", "classifier_agreement", "agreement_gap")
    )
    real, source = (
        results.baseline_metrics(name).get("second_classifier_agreement") for name in ("target_real", "copy_source")
    )
    if not (has_value(second) and has_value(first) and has_value(gap) and has_value(real) and has_value(source)):
        yield unknown_finding("second_classifier", "second_not_comparable")
    elif real.value < 0.5:
        yield unknown_finding("second_classifier", "second_unreliable", real=real.value)
    elif second.low <= source.high:
        yield limiting_finding("second_classifier", "second_unresponsive", second=second.value, source=source.value)
    elif gap.low > 0.1:
        yield limiting_finding("second_classifier", "second_responds_less", second=second.value, first=first.value)
    else:
        yield supporting_finding(
            "second_classifier",
            "second_responds",
            second=second.value,
            source=source.value,
            real=real.value,
            first=first.value,
        )


def find_traversal(results: EvaluationResults) -> Iterator[Finding]:
    """Find components without visible effect, components that follow their target values, and entanglement."""
    slopes = {component.index + 1: component.slope for component in results.components if component.slope is not None}
    invisible = {number: slope for number, slope in slopes.items() if slope < MIN_VISIBLE_SLOPE}
    if len(invisible) == 1:
        yield limiting_finding("traversal", "invisible_component", components=join_slopes(invisible))
    elif invisible:
        yield limiting_finding("traversal", "invisible_components", components=join_slopes(invisible))
    real_metrics = results.baseline_metrics("nearest_real")
    real_slopes = {number: real_metrics.get(f"component_{number:02d}_slope") for number in invisible}
    fixed = {
        number: slope.value
        for number, slope in real_slopes.items()
        if has_value(slope) and slope.value < MIN_VISIBLE_SLOPE
    }
    if fixed:
        yield unknown_finding("traversal", "fixed_by_data", components=join_slopes(fixed))
    following = {
        component.index + 1: component.slope
        for component in results.components
        if component.slope is not None
        and component.slope >= MIN_VISIBLE_SLOPE
        and (component.monotonicity or 0.0) >= MIN_MONOTONICITY
    }
    yield from find_following(following)
    yield from find_entanglement(results)


def find_following(slopes: Mapping[int, float]) -> Iterator[Finding]:
    """State the components that follow their target values; `slopes` by number of the component."""
    components = join_items([str(number) for number in slopes])
    if len(slopes) == 1:
        yield supporting_finding(
            "traversal", "component_follows", components=components, slope=next(iter(slopes.values()))
        )
    elif slopes:
        lowest, highest = min(slopes.values()), max(slopes.values())
        yield supporting_finding(
            "traversal", "components_follow", components=components, lowest=lowest, highest=highest
        )


def find_entanglement(results: EvaluationResults) -> Iterator[Finding]:
    """Find sweeps that change other components more than real images do."""
    share = results.generator_metrics.get("diagonal_dominance")
    real = results.baseline_metrics("nearest_real").get("diagonal_dominance")
    if not has_value(share) or share.high >= 0.6:
        return
    if not has_value(real):
        yield limiting_finding("traversal", "entangled", share=share.value)
    elif real.value > share.high:
        yield limiting_finding("traversal", "entangled_unlike_real", share=share.value, real=real.value)


def find_preservation(results: EvaluationResults) -> Iterator[Finding]:
    """Find whether the source is preserved, and whether people can see the edit."""
    metrics = results.generator_metrics
    size, jpeg = metrics.get("edit_l1"), results.baseline_metrics("source_jpeg").get("edit_l1")
    yield from find_reconstruction(metrics.get("reconstruction_l1"), jpeg)
    is_faint = has_value(size) and has_value(jpeg) and size.low <= jpeg.high
    if has_value(size) and has_value(jpeg) and is_faint:
        yield limiting_finding("preservation", "edit_faint", size=size.value, jpeg=jpeg.value)
    low_frequency = metrics.get("edit_low_frequency_share_when_changed")
    uniform = metrics.get("edit_uniform_share_when_changed")
    if not has_value(low_frequency):
        return
    if has_value(uniform) and uniform.low > 0.5:
        yield limiting_finding("preservation", "edit_uniform", share=uniform.value)
    elif low_frequency.high < 0.5:
        yield limiting_finding("preservation", "edit_fine", share=low_frequency.value)
    elif low_frequency.low > 0.5 and not is_faint:
        yield supporting_finding("preservation", "edit_coarse", share=low_frequency.value)


def find_reconstruction(reconstruction: Estimate | None, jpeg: Estimate | None) -> Iterator[Finding]:
    """Compare the reconstruction error with the change by JPEG."""
    if not has_value(reconstruction):
        return
    if reconstruction.value > 0.2:
        yield limiting_finding("preservation", "source_not_preserved", l1=reconstruction.value)
    elif not has_value(jpeg):
        return
    elif reconstruction.low > MAX_RECONSTRUCTION_RATIO * jpeg.value:
        yield limiting_finding("preservation", "reconstruction_changes", l1=reconstruction.value, jpeg=jpeg.value)
    elif reconstruction.high <= MAX_RECONSTRUCTION_RATIO * jpeg.value:
        yield supporting_finding("preservation", "source_preserved", l1=reconstruction.value, jpeg=jpeg.value)


def find_color_shift(results: EvaluationResults) -> Iterator[Finding]:
    """Find classes whose edits shift the color more than real images of the class do."""
    shifted = []
    for subgroup in results.subgroups_by_kind.get("class", ()):
        shift, real = subgroup.metrics_by_column["generator"].get("color_shift"), real_color_shift(subgroup)
        threshold = max(real.high if has_value(real) else 0.0, MIN_COLOR_SHIFT)
        if not has_value(shift) or shift.count < MIN_PAIRS or shift.low <= threshold:
            continue
        if has_value(real):
            shifted.append(
                fill_template("item_color_shift_unlike_real", name=subgroup.name, shift=shift.value, real=real.value)
            )
        else:
            shifted.append(fill_template("item_color_shift", name=subgroup.name, shift=shift.value))
    if shifted:
        yield limiting_finding("preservation", "color_shift", classes=join_items(shifted))


def real_color_shift(subgroup: SubgroupMetrics) -> Estimate | None:
    """Return the color shift of real images with the target's features or label."""
    tables = [subgroup.metrics_by_column.get(column, {}) for column in ("nearest_real", "target_real")]
    return next((table["color_shift"] for table in tables if "color_shift" in table), None)


def find_realism(results: EvaluationResults) -> Iterator[Finding]:
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
    """Describe the classifier's features: only feature-conditioned models, which have sweeps, are trained with it."""
    if "traversal" in results.families:
        return fill_template("space_training_classifier")
    return fill_template("space_evaluation_classifier")


def compare_realism(space: str, distance: Estimate, real: Estimate, is_separated: bool, is_only_space: bool) -> Finding:
    """Return the finding in one space.

    `is_separated`: the intervals of edited and real images do not overlap. `is_only_space`: the space is that of the
    classifier, and neither Inception nor a second classifier was given.
    """
    is_far = distance.value > 2 * real.value
    if is_far and is_separated:
        return limiting_finding("realism", "far_from_real", space=space, distance=distance.value, real=real.value)
    if is_far or distance.count < MIN_IMAGES:
        return unknown_finding(
            "realism",
            "too_few_images",
            space=space,
            count=distance.count,
            distance=distance.value,
            real=real.value,
        )
    if distance.high - distance.low > 2 * real.value:
        return unknown_finding(
            "realism", "interval_too_wide", space=space, low=distance.low, high=distance.high, real=real.value
        )
    if is_only_space:
        return unknown_finding("realism", "close_in_one_space", space=space, distance=distance.value, real=real.value)
    return supporting_finding("realism", "close_to_real", space=space, distance=distance.value, real=real.value)


def find_diversity(results: EvaluationResults) -> Iterator[Finding]:
    """Find edits to the same target that lose the differences of their sources."""
    ratio = results.generator_metrics.get("diversity_ratio")
    if has_value(ratio) and ratio.high < 0.5:
        yield limiting_finding("diversity", "diversity_lost", ratio=ratio.value)


def find_factors(results: EvaluationResults) -> Iterator[Finding]:
    """Find whether nuisance factors of synthetic faces stay unchanged."""
    ratio = results.generator_metrics.get("factor_nuisance_ratio")
    if not has_value(ratio):
        return
    if ratio.high <= MAX_NUISANCE_RATIO:
        yield supporting_finding("factors", "nuisance_unchanged", ratio=ratio.value)
    elif ratio.low > MAX_NUISANCE_RATIO:
        yield limiting_finding("factors", "nuisance_changes", ratio=ratio.value)
    else:
        yield unknown_finding("factors", "nuisance_unknown", low=ratio.low, high=ratio.high)


CONCLUSION_RULES: tuple[Callable[[EvaluationResults], Iterator[Finding]], ...] = (
    find_faithfulness,
    find_subgroups,
    find_second_classifier,
    find_traversal,
    find_preservation,
    find_color_shift,
    find_realism,
    find_diversity,
    find_factors,
)
"""The rules, in the order of their conclusions."""


def has_value(estimate: Estimate | None) -> TypeGuard[Estimate]:
    """Whether a metric was measured."""
    return estimate is not None and math.isfinite(estimate.value)


def join_items(items: Sequence[str]) -> str:
    return ", ".join(items)


def join_slopes(slopes: Mapping[int, float]) -> str:
    """List the numbers of components with their slopes."""
    return join_items(
        [fill_template("item_component_slope", number=number, slope=slope) for number, slope in slopes.items()]
    )
