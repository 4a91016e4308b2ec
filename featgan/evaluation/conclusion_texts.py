"""Every sentence that an evaluation can conclude, in one table for proofreading.

`{name}` is a value that the rule in `featgan.evaluation.conclusions` supplies, and `{name:.2f}` a value with two
decimals. Templates that start with `item_` are the items of a list, which commas join.
"""

CONCLUSION_TEXTS = {
    # Faithfulness: all targets.
    "no_evaluation_classifier": (
        "Only preservation and diversity are measured, because there is no evaluation classifier (--classifier)."
    ),
    "no_progress": "The edits hardly reach the targets: target progress is {progress:.2f}.",
    "target_ignored": (
        "The model largely ignores the target: target progress is {progress:.2f}, versus {shuffled:.2f} for edits "
        "toward a shuffled target."
    ),
    "no_better_than_mean": (
        "The edits are no closer to the targets than the mean of the training features: target progress is "
        "{progress:.2f}, versus {mean:.2f}."
    ),
    "target_followed": (
        "The edits follow the target: target progress is {progress:.2f}, versus {shuffled:.2f} for edits toward a "
        "shuffled target."
    ),
    "decisions_unchanged": (
        "The classifier predicts the target class for edited images no more often than for unchanged sources."
    ),
    "retrieval_at_chance": (
        "Retrieval is at chance level: the top-1 share is {top1:.3f} in a gallery of {gallery:.0f} images. The "
        "edits contain nothing specific to their targets."
    ),
    # Faithfulness: subgroups of targets.
    "few_pairs": "Too few pairs have these target classes for a conclusion: {classes}.",
    "item_few_pairs": "{name} ({pairs} pairs)",
    "weak_classes": "The edits rarely change the prediction to these target classes: {classes}.",
    "item_weak_class": "{name} (validity {value:.2f})",
    "weak_octants": (
        "The edits make little progress toward targets in these octants of valence and arousal: {octants}."
    ),
    "item_weak_octant": "{name} (target progress {value:.2f})",
    "weak_extremes": "The edits make little progress toward extreme values of these components: {extremes}.",
    "item_weak_extreme": "{component} {name} (component progress {value:.2f})",
    # Second classifier.
    "no_second_classifier": (
        "No second classifier was given (--second-classifier). It is unknown whether a classifier that was not used"
        " in training responds to the edits."
    ),
    "second_not_comparable": (
        "The outputs of the two classifiers cannot be compared, so the second classifier provides distances and "
        "similarities only."
    ),
    "second_unreliable": (
        "The second classifier cannot confirm the edits, because it rarely agrees with the first one on real "
        "images: it predicts the target class for {real:.2f} of the pairs."
    ),
    "second_unresponsive": (
        "The second classifier does not respond to the edits: it predicts the target class for {second:.2f} of the "
        "pairs, versus {source:.2f} before the edit."
    ),
    "second_responds_less": (
        "The second classifier responds less to the edits, so part of the change affects the first classifier only."
        " The second one predicts the target class for {second:.2f} of the pairs, the first one for {first:.2f}."
    ),
    "second_responds": (
        "The second classifier also responds to the edits. It predicts the target class for {second:.2f} of the "
        "pairs, versus {source:.2f} before the edit and {real:.2f} for real images. The first classifier does so "
        "for {first:.2f} of the pairs."
    ),
    # Traversal.
    "invisible_component": (
        "Sweeping component {components} has hardly any effect that the classifier detects in the images."
    ),
    "invisible_components": (
        "Sweeping components {components} has hardly any effect that the classifier detects in the images."
    ),
    "fixed_by_data": (
        "Real images do not change these components alone either, so the data cannot show their effect: {components}."
    ),
    "item_component_slope": "{number} (slope {slope:.2f})",
    "component_follows": "Component {components} follows its target values with a slope of {slope:.2f}.",
    "components_follow": (
        "Components {components} follow their target values with slopes from {lowest:.2f} to {highest:.2f}."
    ),
    "entangled": "Sweeping one component also changes others: {share:.2f} of the change is in the swept component.",
    "entangled_unlike_real": (
        "Sweeping one component also changes others: {share:.2f} of the change is in the swept component, versus "
        "{real:.2f} in real images."
    ),
    # Preservation.
    "source_not_preserved": (
        "The generator does not preserve its source: the reconstruction error is {l1:.2f}. Without preservation, an"
        " edit shows what changes the prediction, but not which part of the source the classifier uses."
    ),
    "reconstruction_changes": (
        "Reconstruction alone changes the image, so compare edits with the reconstruction: the mean change is "
        "{l1:.3f}, versus {jpeg:.3f} for JPEG at quality 75."
    ),
    "source_preserved": (
        "Reconstruction preserves the source: the mean change is {l1:.3f}, versus {jpeg:.3f} for JPEG at quality 75."
    ),
    "edit_faint": (
        "The edits are hardly larger than the change by JPEG at quality 75: the mean change is {size:.3f}, versus "
        "{jpeg:.3f}."
    ),
    "edit_uniform": "Most of the edit is a uniform color shift: {share:.2f} of its energy is equal in all pixels.",
    "edit_fine": (
        "Much of the edit is fine texture that people may not see: {share:.2f} of its energy is at low frequencies "
        "for pairs with a different target."
    ),
    "edit_coarse": (
        "The edits are coarse enough to be seen: {share:.2f} of their energy is at low frequencies for pairs with a"
        " different target."
    ),
    "color_shift": (
        "The color shift of edits toward {classes} is larger than that of real images, so the classifier may "
        "respond to color."
    ),
    "item_color_shift": "{name} ({shift:.1f} SD)",
    "item_color_shift_unlike_real": "{name} ({shift:.1f} SD, real images {real:.1f} SD)",
    # Realism. `{space}` is one of the spaces.
    "space_inception": "Inception features",
    "space_second_classifier": "the second classifier's features",
    "space_training_classifier": "the features of the classifier that was used in training",
    "space_evaluation_classifier": "the evaluation classifier's features",
    "far_from_real": (
        "Edited images are far from real images in {space}: the Frechet distance is {distance:.2f}, versus "
        "{real:.2f} between real images."
    ),
    "close_to_real": (
        "Edited images are close to real images in {space}: the Frechet distance is {distance:.2f}, versus "
        "{real:.2f} between real images."
    ),
    "close_in_one_space": (
        "Edited images seem close to real images, but only in {space}: the Frechet distance is {distance:.2f}, "
        "versus {real:.2f} between real images."
    ),
    "too_few_images": (
        "It is unknown whether edited images are close to real images in {space}, because {count} images per side "
        "are too few. The Frechet distance is {distance:.2f}, versus {real:.2f} between real images."
    ),
    "interval_too_wide": (
        "It is unknown whether edited images are close to real images in {space}, because the interval of the "
        "Frechet distance is too wide: {low:.2f} to {high:.2f}, versus {real:.2f} between real images."
    ),
    # Diversity.
    "diversity_lost": (
        "Edits of different sources to the same target become nearly one image: their distance is {ratio:.2f} of "
        "the distance between the sources."
    ),
    # True factors.
    "nuisance_unchanged": (
        "Nuisance factors stay nearly unchanged: they change by {ratio:.2f} of the change of the expression factors."
    ),
    "nuisance_changes": (
        "Nuisance factors change as well: they change by {ratio:.2f} of the change of the expression factors."
    ),
    "nuisance_unknown": (
        "It is unknown whether nuisance factors stay unchanged: the interval of the nuisance ratio is {low:.2f} to "
        "{high:.2f}."
    ),
}
"""Template name => sentence."""


def fill_template(template: str, /, **values: object) -> str:
    """Return a sentence with its values. Raises KeyError if the template or a value is missing."""
    return CONCLUSION_TEXTS[template].format(**values)
