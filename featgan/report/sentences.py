"""Every sentence that Python code puts into the report, as a complete template with named placeholders.

Proofread the report here and in html/templates/*.j2. A placeholder is filled with a name, a number or a list of names.
Words of which a phrase is chosen (locations, colors) are listed as complete phrases.
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
    "features": "This classifier reduces an image to {num_features} features and predicts from these features only.",
    "features_uncounted": "This classifier reduces an image to features and predicts from these features only.",
    "components": (
        "Over many images, the features vary mainly along {num_components} uncorrelated directions, called components."
    ),
    "components_uncounted": (
        "Over many images, the features vary mainly along uncorrelated directions, called components."
    ),
    # What can be concluded: the classes.
    "reached_classes": (
        "Edits toward {classes} change the prediction to the target class for at least half of the images of this page."
    ),
    "color_change": "Edits toward {classes} make the whole image {change}.",
    "color_explanation": "The classifier may distinguish these classes by color and brightness rather than by shape.",
    # What can be concluded: the components.
    "no_conclusive_component": (
        "No important component causes a change that is visible in these images and detected by the classifier."
    ),
    "share_of_total": "{component} explains {share} of the output variance.",
    "share_of_shown": "{component} causes {share} of the output change that these components cause.",
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
        "Edits toward {classes} do not change the prediction to the target class for any image of this page. "
        "These edits do not show what images of the target class look like."
    ),
    "unpredicted_classes": (
        "The report has no edits toward {classes}, because almost no training image has that prediction."
    ),
    "many_unpredicted_classes": (
        "The report has no edits toward {num_missing} of the {count} classes, "
        "because almost no training image has that prediction."
    ),
    "class_limit": (
        "The report has edits toward {num_shown} of the {count} classes. "
        "It shows at most {max_classes} classes; what the other classes look like is not known."
    ),
    "unconfirmed_classes": (
        "The second classifier confirms fewer than half of the edits toward {classes}. "
        "These edits may change only the prediction of the first classifier."
    ),
    "unverifiable_classes": (
        "The second classifier cannot verify edits toward {classes}: "
        "it predicts the target class for fewer than half of the real images, too."
    ),
    # What cannot be concluded: the components.
    "invisible": "{components}: the classifier responds to the edits, but the change is too faint to see.",
    "unresponsive": "{components}: the image changes, but the classifier's features hardly move toward the target.",
    "invisible_and_unresponsive": "{components}: the generator hardly changes the image.",
    "unknown_appearance": "What this component looks like is not known.",
    "unknown_appearances": "What these components look like is not known.",
    "component_with_share": "{component} ({share})",
    "unexplained_share": "{share} of the output variance is not explained by these components.",
    "entangled_component": (
        "{components} does not change alone: "
        "more than {max_crosstalk} of the measured change is in other components (cross-talk). "
        "Other components may cause part of the visible change."
    ),
    "entangled_components": (
        "{components} do not change alone: "
        "more than {max_crosstalk} of the measured change is in other components (cross-talk). "
        "Other components may cause part of the visible change."
    ),
    "numbered_components": "Components {numbers}",
    "real_crosstalk": "For the nearest real images, the mean cross-talk is {real_crosstalk}.",
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
    # Below the ranking: what the metrics are measured on.
    "importance_computed": "Importance is computed from the training images and the last layer of the classifier.",
    "importance_measured": "Importance is measured on the {num_images} images of this page ({origin}).",
    "visibility_images": "Visibility is measured on the {num_images} images of this page ({origin}).",
    "page_metrics": "Visibility, slope and cross-talk are measured on the {num_images} images of this page ({origin}).",
    "evaluated_metrics": "Slope and cross-talk are measured on {num_evaluated_images} validation images.",
    "evaluated_metrics_of_suite": (
        "Slope and cross-talk are measured on {num_evaluated_images} validation images (suite {suite})."
    ),
    "first_source": "The source image that is shown first has changes of median size.",
    "component_limit": "This page shows the first {num_shown} of {num_components} components.",
    # Above the metrics: what the evaluation used.
    "evaluated_images": "This evaluation used the validation images.",
    "evaluated_checkpoint": "This evaluation used the checkpoint of step {step} and the validation images.",
    "evaluated_other_images": "This evaluation used the validation images, not the images of this page.",
    "evaluated_checkpoint_and_other_images": (
        "This evaluation used the checkpoint of step {step} and the validation images, not the images of this page."
    ),
    "evaluation_suite": "Its suite is <em>{suite}</em>.",
    "other_step": "<strong>The edits of this page use the checkpoint of step {step}.</strong>",
    # The descriptions of metrics.
    "ideal_value": "{description} The ideal value is {ideal}.",
}
"""Name => sentence, in the order in which the report may show them."""

SECTION_TEXTS = {
    "class": (
        "Edits toward each class",
        "These edits are computed from the mean features of each class.",
    ),
    "head": (
        "Edits along the weights of the last layer",
        "Each edit moves the features along the weights of one output of the classifier. "
        "Often no real image has such features, and the edit does not reach the target. "
        "If the two kinds of edits differ, trust the edits toward the class.",
    ),
    "quantiles": (
        "Edits of each component",
        "Each card changes one component of the features.",
    ),
    "interpolation": ("Edits toward another image", "Each edit changes all features at once."),
    "expression": ("Expressions", "Each face is edited toward every class."),
    "valence_arousal": (
        "Valence and arousal",
        "The sliders change valence (unpleasant to pleasant) or arousal (calm to excited) and set the other to 0; "
        "the grid combines both.",
    ),
    "attributes": ("Attributes", "Each edit flips one attribute; setting a hair color clears the others."),
}
"""Group of sweeps => title and summary of its section, in the order of the page.

Classes come first because they have names; components must be given theirs.
"""

SWEEP_SUMMARIES = {
    "predicted_class": (
        "Each edit adds the difference between the mean features of the target class and those of the predicted class, "
        "times {min_amount} to {max_amount}."
    ),
    "labeled_class": (
        "Each edit adds the difference between the mean features of the target class and the mean over all classes, "
        "times {min_amount} to {max_amount}."
    ),
    "head": "Each edit moves the features along the classifier's weights for the target output.",
}
"""Kind of edits toward each class => how the edits are made, in one sentence."""

SWEEP_NOTES = {
    "untrained": "There are no edits toward {classes}, because no training image has this class.",
    "quantiles": "The component takes quantiles of its training values. All other components stay as in the source.",
    "projections": "The first components of the source are kept; the others are set to their training mean.",
    "interpolation": "The features move on a straight line from the source to the next source image.",
    "transfer": "The source (row) is edited toward the features of the image above the column.",
    "predicted_class": (
        "The target is the source's features, minus the mean features of the training images with the same prediction, "
        "plus the mean features of those predicted as the target class."
    ),
    "labeled_class": (
        "The target is the source's features, minus the mean of all class means of the training images, "
        "plus the mean features of the target class."
    ),
    "class_factor": (
        "The shift is multiplied by the smallest factor from {min_amount} to {max_amount} for which the last layer of "
        "the classifier gives the target class a probability of at least {probability}."
    ),
    "head_fixed": (
        "The source's features move {min_amount} SD along the weights of an output in the classifier's last layer."
    ),
    "head_confident": (
        "The source's features move {min_amount} to {max_amount} SD along the weights of the target class in the "
        "classifier's last layer. The move ends when that layer gives the class a probability of at least "
        "{probability}."
    ),
    "expression": "The source is edited toward each class.",
    "valence_arousal": "Valence (unpleasant to pleasant) increases to the right, arousal (calm to excited) to the top.",
    "valence": "Valence varies over its range; arousal is set to 0.",
    "arousal": "Arousal varies over its range; valence is set to 0.",
    "attributes": "One attribute of the source is flipped; the others stay. Setting a hair color clears the others.",
}
"""Direction => the note on its cards and grids."""

METRIC_DESCRIPTIONS = {
    "importance": "Share of the output variance.",
    "importance here": "Share of the output change that these components cause.",
    "visibility": "Largest change of a patch; black to white is 100 %.",
    "cross-talk": "Share of the measured change in other components.",
    "mean change": "Mean change of a pixel between the two ends, as a share of the range.",
}
"""Metric of the report that the evaluation does not have => its description; the others are in the metric registry."""

RELIABILITY_LABELS = {
    "validity": "edits that this classifier predicts as the target class",
    "second_classifier": "edits that the second classifier predicts as the target class",
    "real_images": "real images that the second classifier predicts as the target class",
    "accuracy": "labeled images that this classifier predicts correctly",
}
"""Row of the reliability table => its label."""

SHORT_LIMITATIONS = {
    "invisible": "too faint to see",
    "unresponsive": "not detected by the classifier",
    "invisible_and_unresponsive": "hardly any change",
}
"""Limitation of a component => its note in the ranking."""

VISIBILITY_LABELS = {"clear": "clear", "faint": "faint", "none": "none"}

COLOR_CHANGES = {
    ("red", "brighter"): "redder and brighter",
    ("red", "darker"): "redder and darker",
    ("red", ""): "redder",
    ("green", "brighter"): "greener and brighter",
    ("green", "darker"): "greener and darker",
    ("green", ""): "greener",
    ("blue", "brighter"): "bluer and brighter",
    ("blue", "darker"): "bluer and darker",
    ("blue", ""): "bluer",
    ("red green", "brighter"): "yellower and brighter",
    ("red green", "darker"): "yellower and darker",
    ("red green", ""): "yellower",
    ("", "brighter"): "brighter",
    ("", "darker"): "darker",
    ("", ""): "a different color",
}
"""Color channels that increase relative to the others, and change of the brightness => how the image changes."""

LOCATIONS = {
    0: "everywhere",
    1: "mostly in the {0}",
    2: "mostly in the {0} and {1}",
    3: "mostly in the {0}, {1} and {2}",
}
"""Number of named grid cells => location of a change; 0 if there are too many to name."""

GRID_CELLS = (
    ("upper left", "upper center", "upper right"),
    ("middle left", "center", "middle right"),
    ("lower left", "lower center", "lower right"),
)
GRID_ROWS = ("upper third", "middle third", "lower third")
GRID_COLUMNS = ("left third", "middle from top to bottom", "right third")
"""Names of the cells, rows and columns of a 3 x 3 grid over the image."""


def fill_sentence(name: str, **values: object) -> Markup:
    """Return the sentence with its placeholders filled; values are escaped unless they are Markup."""
    return Markup(SENTENCES[name]).format(**values)
