"""Every sentence that Python code puts into the report, as a complete template with named placeholders.

Proofread the report here and in templates/*.j2. A placeholder is filled with a name, a number or a list of names, never
with a part of a sentence.
"""

from markupsafe import Markup

SENTENCES = {
    # The introduction: what the classifier predicts, and what a component is.
    "classes_with_names": "This classifier distinguishes {count} classes ({names}).",
    "classes": "This classifier distinguishes {count} classes.",
    "accuracy": (
        "It predicts the labeled class for {accuracy} of the validation images; "
        "the most frequent class makes up {majority} of them."
    ),
    "valence_arousal": "This classifier predicts valence (unpleasant to pleasant) and arousal (calm to excited).",
    "attributes_with_names": "This classifier predicts {count} binary attributes ({names}).",
    "attributes": "This classifier predicts {count} binary attributes.",
    "other_outputs": "This classifier has {count} outputs.",
    "features": "It reduces an image to {num_features} features and predicts from those only.",
    "features_uncounted": "It reduces an image to features and predicts from those only.",
    "components": "Across many images these vary along {num_components} uncorrelated directions, called components.",
    "components_uncounted": "Across many images these vary along uncorrelated directions, called components.",
    # What can be concluded: the classes.
    "reached_classes": "Edits toward {classes} change the classifier's prediction to the target class for most images.",
    "color_change": "Edits toward {classes} make the whole image {change}.",
    "color_explanation": ("The classifier may distinguish these classes by color and brightness rather than by shape."),
    # What can be concluded: the components.
    "no_conclusive_component": (
        "No important component is both visible in these images and detected by the classifier."
    ),
    "share_of_total": "{component} explains {share} of the output variance.",
    "share_of_shown": "{component} accounts for {share} of the output change caused by these components.",
    "share_unknown": "The effect of {component} on the output is not known.",
    "output_change": "Increasing it raises the output for {raised} and lowers the output for {lowered}.",
    "output_increase": "Increasing it raises the output for {raised}.",
    "output_decrease": "Increasing it lowers the output for {lowered}.",
    "clear_change": "The change is clearly visible ({location}).",
    "faint_change": "The change is faint ({location}).",
    "brighter": "The whole image becomes brighter.",
    "darker": "The whole image becomes darker.",
    # What can be concluded: the second classifier.
    "second_classifier_agrees": (
        "A second classifier, which was not used in training, confirms the edits toward another class: "
        "it predicts the target class for {second_agreement} of them, this classifier for {first_agreement}."
    ),
    # What cannot be concluded: the classes.
    "unreached_classes": (
        "Edits toward {classes} never change the classifier's prediction to the target class. "
        "They do not show what such images look like."
    ),
    "unpredicted_classes": (
        "The report has no edits toward {classes}, because almost no training image has that prediction."
    ),
    "unconfirmed_classes": (
        "The second classifier rarely confirms edits toward {classes}. These edits may fool only this classifier."
    ),
    "unverifiable_classes": (
        "The second classifier cannot verify edits toward {classes}: "
        "it rarely predicts the target class for real images either."
    ),
    # What cannot be concluded: the components.
    "invisible": (
        "{components}: the classifier responds to the edits, but the change is too faint to see. "
        "Its appearance is not known."
    ),
    "unresponsive": ("{components}: the image changes, but the classifier's features hardly move toward the target."),
    "invisible_and_unresponsive": (
        "{components}: the generator hardly changes the image. The appearance is not known."
    ),
    "component_with_share": "{component} ({share})",
    "unexplained_share": "{share} of the output variance is not explained by these components.",
    "entangled_component": (
        "{components} does not change alone (cross-talk above {max_crosstalk}). "
        "Part of the visible change may belong to other components."
    ),
    "entangled_components": (
        "{components} do not change alone (cross-talk above {max_crosstalk}). "
        "Part of the visible change may belong to other components."
    ),
    "numbered_components": "Components {numbers}",
    "real_crosstalk": "Between real images, the mean cross-talk is {real_crosstalk}.",
    # What cannot be concluded: the evaluation.
    "not_evaluated": (
        "Nothing was measured beyond the {num_images} images of this page. "
        "Run <code>featgan evaluate</code> to measure more images."
    ),
    "page_images_only": "Slope and cross-talk are measured on the {num_images} images of this page only.",
    "second_classifier_disagrees": (
        "A second classifier, which was not used in training, does not confirm the edits toward another class: "
        "it predicts the target class for {second_agreement} of them, this classifier for {first_agreement}."
    ),
    "second_classifier_unknown": (
        "It is not known whether another classifier would respond to the same changes: "
        "no second classifier was evaluated, or its result was inconclusive."
    ),
}
"""Name => sentence, in the order in which the report may show them."""

SECTION_TEXTS = {
    "class": (
        "Edits toward each class",
        "Each edit changes the features by the difference between the mean features of two classes.",
    ),
    "head": (
        "Edits along the weights of the last layer",
        "Each edit moves the features straight toward one output of the classifier. Often no image has such features, "
        "and the edit falls short. Where these edits differ from those toward the class, trust the latter.",
    ),
    "quantiles": (
        "Components, one at a time",
        "Each card changes one component of the features.",
    ),
    "interpolation": ("Edits toward another image", "Each edit changes all features at once."),
    "expression": ("Expressions", "Each face is edited toward every class."),
    "valence_arousal": (
        "Valence and arousal",
        "Each edit changes valence (unpleasant to pleasant) or arousal (calm to excited).",
    ),
    "attributes": ("Attributes", "Each edit flips one attribute."),
}
"""Group of sweeps => title and summary of its section, in the order of the page.

Classes come first because they have names; components must be given theirs.
"""

METRIC_DESCRIPTIONS = {
    "importance": "share of the output variance",
    "importance here": "share of the output change by these components",
    "visibility": "largest change of a patch; black to white is 100 %",
    "slope": "measured change per target change; 1 is ideal",
    "cross-talk": "share of the change in other components; 0 is ideal",
    "monotonicity": "rank correlation of target and measured value; 1 is ideal",
    "linearity": "R\N{SUPERSCRIPT TWO} of a straight line through target and measured value; 1 is ideal",
    "mean change": "mean change of a pixel between the two ends, as a share of the range",
    "low-frequency share": "share of the change's energy at low frequencies, which is not fine texture",
}
"""Metric of a component => its description in the legend and in tooltips."""

SHORT_LIMITATIONS = {
    "invisible": "too faint to see",
    "unresponsive": "not detected by the classifier",
    "invisible_and_unresponsive": "hardly any change",
}
"""Limitation of a component => its note in the ranking."""

VISIBILITY_LABELS = {"clear": "clear", "faint": "faint", "none": "none"}


def fill_sentence(name: str, **values: object) -> Markup:
    """Return the sentence with its placeholders filled; values are escaped unless they are Markup."""
    return Markup(SENTENCES[name]).format(**values)
