"""Every sentence that an evaluation can conclude, in one table for proofreading.

`{name}` is a value that the rule in `featgan.evaluation.conclusions` supplies, `{name:.2f}` a value with two decimals,
and `{name:.0%}` a share in percent. Templates that start with `item_` are the items of a list. Templates that start
with `space_` are the names of feature spaces.
"""

from string import Formatter
from typing import Any

CONCLUSION_TEXTS = {
    # Faithfulness: all targets.
    "no_evaluation_classifier": (
        "Faithfulness is not measured, because no evaluation classifier was given (--classifier)."
    ),
    "no_progress": "The edits hardly reach the targets: target progress is {progress:.2f}.",
    "target_ignored": (
        "The edits depend little on the target: target progress is {progress:.2f}, versus {shuffled:.2f} for edits "
        "toward a shuffled target."
    ),
    "no_better_than_mean": (
        "The edits are not clearly closer to the targets than the mean of the training features: target progress is "
        "{progress:.2f}, versus {mean:.2f}."
    ),
    "target_followed": (
        "The edits follow the target: target progress is {progress:.2f}, versus {shuffled:.2f} for edits toward a "
        "shuffled target."
    ),
    "decisions_unchanged": (
        "The classifier does not predict the target class clearly more often for edited images than for unchanged "
        "sources."
    ),
    "retrieval_at_chance": (
        "Retrieval is at chance level: for {top1:.1%} of the pairs, the target is the nearest of {gallery:.0f} images. "
        "By this metric, the edits are not specific to their targets."
    ),
    # Faithfulness: subgroups of targets.
    "few_pairs": "Too few pairs have these target classes for a conclusion: {classes}.",
    "item_few_pairs": "{name} ({pairs} pairs)",
    "weak_classes": "Fewer than half of the edits change the prediction to these target classes: {classes}.",
    "item_weak_class": "{name} ({value:.0%})",
    "weak_octants": (
        "The edits make little progress toward targets in these octants of valence and arousal: {octants}. Octant 1 "
        "has the angles from 0° at valence 1 to 45°, toward arousal 1."
    ),
    "item_weak_octant": "octant {name} (target progress {value:.2f})",
    "weak_extremes": "The edits make little progress toward extreme values of these components: {extremes}.",
    "item_weak_extreme": "{component}, {direction} its {level} quantile (component progress {value:.2f})",
    # Second classifier.
    "no_second_classifier": (
        "No second classifier was given (--second-classifier). It is unknown whether a classifier that was not used in "
        "training responds to the edits."
    ),
    "second_not_comparable": (
        "The outputs of the two classifiers cannot be compared, so the second classifier provides distances and "
        "similarities only."
    ),
    "second_unreliable": (
        "The second classifier cannot confirm the edits, because it predicts the target class for only {real:.0%} of "
        "the real target images."
    ),
    "second_unresponsive": (
        "The second classifier does not clearly respond to the edits: it predicts the target class for {second:.0%} of "
        "the pairs, versus {source:.0%} before the edit."
    ),
    "second_responds_less": (
        "The second classifier responds less to the edits, so part of the change affects the first classifier only. "
        "The second one predicts the target class for {second:.0%} of the pairs, the first one for {first:.0%}."
    ),
    "second_responds": (
        "The second classifier also responds to the edits: it predicts the target class for {second:.0%} of the pairs, "
        "versus {source:.0%} before the edit. It predicts this class for {real:.0%} of the real target images. The "
        "first classifier predicts the target class for {first:.0%} of the pairs."
    ),
    # Traversal.
    "invisible_component": (
        "Sweeping component {components} has hardly any effect that the classifier detects in the images."
    ),
    "invisible_components": (
        "Sweeping components {components} has hardly any effect that the classifier detects in the images."
    ),
    "fixed_by_data": (
        "These components do not vary independently in real images either, so the data cannot show their effect: "
        "{components}."
    ),
    "item_component_slope": "{number} (slope {slope:.2f})",
    "component_follows": "Component {components} follows its target values with a slope of {slope:.2f}.",
    "components_follow": (
        "Components {components} follow their target values with slopes from {lowest:.2f} to {highest:.2f}."
    ),
    "entangled": "Sweeping one component also changes others: {share:.0%} of the change is in the swept component.",
    "entangled_unlike_real": (
        "Sweeping one component also changes others: {share:.0%} of the change is in the swept component, versus "
        "{real:.0%} in real images."
    ),
    # Preservation.
    "source_not_preserved": (
        "The generator does not preserve its source: in reconstructions, the mean change of a pixel is {l1:.3f} (black "
        "to white is 2). Without preservation, an edit shows what changes the prediction, but not which part of the "
        "source the classifier uses."
    ),
    "reconstruction_changes": (
        "Reconstruction alone changes the image: the mean change of a pixel is {l1:.3f} (black to white is 2), versus "
        "{jpeg:.3f} for JPEG at quality 75. Compare edits with the reconstruction, not with the source."
    ),
    "source_preserved": (
        "Reconstruction preserves the source: the mean change of a pixel is {l1:.3f} (black to white is 2), versus "
        "{jpeg:.3f} for JPEG at quality 75."
    ),
    "edit_faint": (
        "The edits are not clearly larger than the change by JPEG at quality 75: the mean change of a pixel is "
        "{size:.3f} (black to white is 2), versus {jpeg:.3f}."
    ),
    "edit_uniform": "Most of the edit is a uniform color shift: {share:.0%} of its energy is equal in all pixels.",
    "edit_fine": (
        "Much of the edit is fine texture that people may not see: for pairs with a different target, only {share:.0%} "
        "of its energy is at low frequencies."
    ),
    "edit_coarse": (
        "The edits are coarse enough to be seen: for pairs with a different target, {share:.0%} of their energy is at "
        "low frequencies."
    ),
    "color_shift": (
        "The color shift of edits toward these classes is larger than that of real images: {classes}. The classifier "
        "may respond to color, or the generator shifts the color without need."
    ),
    "item_color_shift": "{name} ({shift:.1f} SD, real images {real:.1f} SD)",
    "color_shift_without_real": (
        "Edits toward these classes shift the color, and the color shift of real images is not known: {classes}. The "
        "classifier may respond to color, or the generator shifts the color without need."
    ),
    "item_color_shift_without_real": "{name} ({shift:.1f} SD)",
    # Realism. `{space}` is one of the spaces.
    "space_inception": "the feature space of Inception",
    "space_second_classifier": "the feature space of the second classifier",
    "space_training_classifier": "the feature space of the training classifier",
    "space_evaluation_classifier": "the feature space of the evaluation classifier",
    "far_from_real": (
        "Edited images are far from real images in {space}: the Frechet distance is {distance:.2f}, versus {real:.2f} "
        "between real images."
    ),
    "close_to_real": (
        "Edited images are close to real images in {space}: the Frechet distance is {distance:.2f}, versus {real:.2f} "
        "between real images."
    ),
    "close_in_one_space": (
        "Edited images are close to real images in {space}, but no other feature space was measured. The Frechet "
        "distance is {distance:.2f}, versus {real:.2f} between real images."
    ),
    "too_few_images": (
        "It is unknown whether edited images are close to real images in {space}, because {count} images in each set "
        "are too few. The Frechet distance is {distance:.2f}, versus {real:.2f} between real images."
    ),
    "intervals_overlap": (
        "It is unknown whether edited images are far from real images in {space}, because the intervals of the two "
        "distances overlap. The Frechet distance is {distance:.2f}, versus {real:.2f} between real images."
    ),
    "interval_too_wide": (
        "It is unknown whether edited images are close to real images in {space}, because the interval of the Frechet "
        "distance is too wide: {low:.2f} to {high:.2f}. The distance between real images is {real:.2f}."
    ),
    # Diversity.
    "diversity_lost": (
        "Edits of different sources to the same target become similar: their distance is {ratio:.0%} of the distance "
        "between the sources."
    ),
    # True factors.
    "nuisance_unchanged": (
        "Nuisance factors stay nearly unchanged: they change {ratio:.0%} as much as the expression factors."
    ),
    "nuisance_changes": ("Nuisance factors change as well: they change {ratio:.0%} as much as the expression factors."),
    "nuisance_unknown": (
        "It is unknown whether nuisance factors stay unchanged: they change between {low:.0%} and {high:.0%} as much "
        "as the expression factors."
    ),
}
"""Template name => sentence."""


class PercentFormatter(Formatter):
    """Formats as `str.format`, with a space before the percent sign."""

    def format_field(self, value: Any, format_spec: str) -> str:
        text = str(super().format_field(value, format_spec))
        return f"{text[:-1]} %" if format_spec.endswith("%") else text


def fill_template(template: str, /, **values: object) -> str:
    """Return a sentence with its values. Raises KeyError if the template or a value is missing."""
    return PercentFormatter().format(CONCLUSION_TEXTS[template], **values)
