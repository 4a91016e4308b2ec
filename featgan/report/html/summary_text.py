"""The first sentences of the report: what the classifier predicts, and what the edited images do and do not show.

Each function chooses sentences of `sentences.SENTENCES` and the values that fill them.
"""

from collections.abc import Sequence

from markupsafe import Markup

from featgan.report.analysis.class_edits import ClassEdits
from featgan.report.analysis.class_reliability import ReliabilityTable
from featgan.report.analysis.component_ranking import ComponentRanking, RankedComponent
from featgan.report.analysis.predictions import OutputSpec
from featgan.report.analysis.visibility import MIN_BRIGHTNESS_CHANGE
from featgan.report.edits.sweeps import MAX_CLASSES
from featgan.report.sentences import fill_sentence
from featgan.run.evaluation_document import EvaluationDocument, metric_value

MAX_CONCLUSIONS = 2
MAX_NAMED_COMPONENTS = 2
MAX_NAMED_CLASSES = 8
MIN_REACHED_SHARE = 0.5
"""Share of the images from which a class counts as reached."""
MAX_CROSSTALK = 0.5
"""Cross-talk above which a component counts as entangled with others."""
MIN_EXPLAINED_SHARE = 0.95

SUMMARY_FAMILIES = ("faithfulness", "preservation", "realism")
"""Metric families whose first limitation is repeated in the summary."""

AGREEMENT_METRICS = ("second_classifier_agreement", "classifier_agreement")
"""How often the second classifier, and the classifier itself, predict the target class."""


def format_percent(share: float) -> str:
    """Return `38 %`; `under 1 %` for a positive share that would be rounded to 0 %."""
    return "under 1\N{NO-BREAK SPACE}%" if 0 < share < 0.005 else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def join_names(names: Sequence[str]) -> str:
    """Return `a`, `a and b` or `a, b and c`; Markup stays Markup."""
    if len(names) < 2:
        return names[0] if names else ""
    comma = Markup(", ") if isinstance(names[0], Markup) else ", "
    return comma.join(names[:-1]) + " and " + names[-1]


def emphasized_names(names: Sequence[str]) -> str:
    """Return the names in italics, joined by commas and `and`."""
    return join_names([Markup("<em>{}</em>").format(name) for name in names])


def join_sentences(sentences: Sequence[Markup]) -> Markup:
    return Markup(" ").join(sentences)


def introduction(
    output_spec: OutputSpec | None, num_features: int | None, num_components: int | None, include_names: bool
) -> Markup:
    """Return what the classifier predicts and what a component is, for a reader who knows neither."""
    sentences = [] if output_spec is None or not output_spec.names else output_sentences(output_spec, include_names)
    sentences.append(
        fill_sentence("features", num_features=num_features) if num_features else fill_sentence("features_uncounted")
    )
    sentences.append(
        fill_sentence("components", num_components=num_components)
        if num_components
        else fill_sentence("components_uncounted")
    )
    return join_sentences(sentences)


def output_sentences(output_spec: OutputSpec, include_names: bool) -> list[Markup]:
    """Return what the outputs of the classifier are, and its accuracy if known."""
    count = len(output_spec.names)
    ellipsis = ", \N{HORIZONTAL ELLIPSIS}" if count > MAX_NAMED_CLASSES else ""
    names = ", ".join(output_spec.names[:MAX_NAMED_CLASSES]) + ellipsis
    key = {"expression": "classes", "attributes": "attributes"}.get(output_spec.kind)
    if key is not None:
        suffix = "_with_names" if include_names else ""
        sentences = [fill_sentence(key + suffix, count=count, names=names)]
    else:
        name = "valence_arousal" if output_spec.kind == "valence_arousal" else "other_outputs"
        sentences = [fill_sentence(name, count=count)]
    if output_spec.kind == "expression" and output_spec.accuracy is not None:
        counts = [number for _, number in output_spec.recalls.values()]
        majority = max(counts) / sum(counts)
        values = {"accuracy": format_percent(output_spec.accuracy), "majority": format_percent(majority)}
        sentences.append(fill_sentence("accuracy", **values))
    return sentences


def component_conclusions(ranking: ComponentRanking) -> list[Markup]:
    """Return a conclusion for each of the most important components that are visible and detected."""
    conclusive = [component for component in ranking.components if component.is_important and component.is_conclusive]
    if not conclusive:
        return [fill_sentence("no_conclusive_component")]
    return [component_conclusion(component, ranking) for component in conclusive[:MAX_CONCLUSIONS]]


def component_conclusion(component: RankedComponent, ranking: ComponentRanking) -> Markup:
    """Return the importance of a component, its effect on the outputs, and how the image changes."""
    link = Markup('<a href="#{}">{}</a>').format(component.rendering.sweep.name, component.title)
    if component.importance is None:
        sentences = [fill_sentence("share_unknown", component=link)]
    else:
        name = "share_of_total" if ranking.uses_total_variation else "share_of_shown"
        sentences = [fill_sentence(name, component=link, share=format_percent(component.importance))]
        sentences += output_change_sentences(component, emphasized=True)
    visibility = "clear_change" if component.change.visibility_grade == "clear" else "faint_change"
    sentences.append(fill_sentence(visibility, location=component.change.location))
    brightness_change = component.change.brightness_change
    if abs(brightness_change) >= MIN_BRIGHTNESS_CHANGE:
        sentences.append(fill_sentence("brighter" if brightness_change > 0 else "darker"))
    return join_sentences(sentences)


def output_change_sentences(component: RankedComponent, emphasized: bool = False) -> list[Markup]:
    """Return which outputs the component raises and lowers, in one sentence; empty if that is not known."""
    raised, lowered = component.affected_outputs
    if not raised and not lowered:
        return []
    join = emphasized_names if emphasized else join_names
    name = "output_change" if raised and lowered else "output_increase" if raised else "output_decrease"
    return [fill_sentence(name, raised=join(raised), lowered=join(lowered))]


def reached_class_conclusions(
    class_edits: ClassEdits | None, reliability: ReliabilityTable | None = None
) -> list[Markup]:
    """Return which classes at least half of the edits reach, and which edits change the color of the whole image."""
    if class_edits is None:
        return []
    excluded = {*reliability.unconfirmed_classes, *reliability.unverifiable_classes} if reliability else set()
    shares = class_edits.reached_shares()
    reached = [name for name, share in shares.items() if share >= MIN_REACHED_SHARE and name not in excluded]
    conclusions = [fill_sentence("reached_classes", classes=emphasized_names(reached))] if reached else []
    color_changes = class_edits.describe_color_changes()
    if color_changes:
        classes_by_change = {
            change: [name for name in color_changes if color_changes[name] == change]
            for change in color_changes.values()
        }
        sentences = [
            fill_sentence("color_change", classes=emphasized_names(names), change=change)
            for change, names in classes_by_change.items()
        ]
        conclusions.append(join_sentences([*sentences, fill_sentence("color_explanation")]))
    return conclusions


def unreached_class_limitations(class_edits: ClassEdits | None, output_spec: OutputSpec | None) -> list[Markup]:
    """Return which classes no edit reaches, and which classes have no edits."""
    if class_edits is None or output_spec is None:
        return []
    limitations, headings = [], class_edits.sweep.headings
    unreached = [name for name, share in class_edits.reached_shares().items() if share == 0]
    if unreached:
        limitations.append(fill_sentence("unreached_classes", classes=emphasized_names(unreached)))
    missing = [name for name in output_spec.names if name not in headings]
    if missing and output_spec.kind == "expression":
        limitations.append(missing_class_limitation(missing, len(headings), len(output_spec.names)))
    return limitations


def missing_class_limitation(missing: Sequence[str], num_shown: int, count: int) -> Markup:
    """Return which of the `count` classes have no edits, and why; many classes are counted instead of named."""
    if num_shown == MAX_CLASSES:
        return fill_sentence("class_limit", num_shown=num_shown, count=count, max_classes=MAX_CLASSES)
    if len(missing) > MAX_NAMED_CLASSES:
        return fill_sentence("many_unpredicted_classes", num_missing=len(missing), count=count)
    return fill_sentence("unpredicted_classes", classes=emphasized_names(missing))


def unconfirmed_class_limitations(reliability: ReliabilityTable | None) -> list[Markup]:
    """Return which classes the second classifier does not confirm, and which classes it cannot verify."""
    if reliability is None:
        return []
    classes_by_sentence = {
        "unconfirmed_classes": reliability.unconfirmed_classes,
        "unverifiable_classes": reliability.unverifiable_classes,
    }
    return [
        fill_sentence(name, classes=emphasized_names(classes))
        for name, classes in classes_by_sentence.items()
        if classes
    ]


def component_limitations(ranking: ComponentRanking, evaluation: EvaluationDocument | None = None) -> list[Markup]:
    """Return what cannot be concluded about the components, and why."""
    sentences = [
        inconclusive_components_limitation(ranking.components, limitation)
        for limitation in dict.fromkeys(component.limitation for component in ranking.components)
    ]
    explained_share = ranking.explained_share
    if explained_share is not None and explained_share < MIN_EXPLAINED_SHARE:
        sentences.append(fill_sentence("unexplained_share", share=format_percent(1 - explained_share)))
    nearest = (
        evaluation.baselines.get("nearest_real", {}) if evaluation and ranking.num_evaluated_images is not None else {}
    )
    real_dominance = metric_value(nearest, "diagonal_dominance")
    sentences.append(
        entanglement_limitation(ranking.components, None if real_dominance is None else 1 - real_dominance)
    )
    return [text for text in sentences if text]


def inconclusive_components_limitation(components: Sequence[RankedComponent], limitation: str) -> Markup:
    """Return the important components that have this limitation; empty if none has."""
    names = [
        Markup.escape(component.title)
        if component.importance is None
        else fill_sentence(
            "component_with_share", component=component.title, share=format_percent(component.importance)
        )
        for component in components
        if limitation and component.limitation == limitation and component.is_important
    ]
    if not names:
        return Markup("")
    sentences = [fill_sentence(limitation, components=join_names(names))]
    if limitation != "unresponsive":
        sentences.append(fill_sentence("unknown_appearance" if len(names) == 1 else "unknown_appearances"))
    return join_sentences(sentences)


def entanglement_limitation(components: Sequence[RankedComponent], real_crosstalk: float | None) -> Markup:
    """Return which components change together with others; `real_crosstalk` is that of the nearest real images."""
    entangled = [
        component
        for component in components
        if component.is_conclusive and component.crosstalk is not None and component.crosstalk > MAX_CROSSTALK
    ]
    if not entangled:
        return Markup("")
    numbers = join_names([str(index + 1) for index in sorted(component.index for component in entangled)])
    named_components = (
        fill_sentence("numbered_components", numbers=numbers)
        if len(entangled) > MAX_NAMED_COMPONENTS
        else join_names([component.title for component in entangled])
    )
    name = "entangled_component" if len(entangled) == 1 else "entangled_components"
    sentences = [fill_sentence(name, components=named_components, max_crosstalk=format_percent(MAX_CROSSTALK))]
    if real_crosstalk is not None:
        sentences.append(fill_sentence("real_crosstalk", real_crosstalk=format_percent(real_crosstalk)))
    return join_sentences(sentences)


def second_classifier_summary(evaluation: EvaluationDocument | None) -> list[Markup]:
    """Return that the second classifier confirms the edits, if it does."""
    if evaluation is None or second_classifier_status(evaluation) != "supports":
        return []
    return [second_classifier_sentence("second_classifier_agrees", evaluation)]


def evaluation_limitations(
    evaluation: EvaluationDocument | None, ranking: ComponentRanking, num_images: int
) -> list[Markup]:
    """Return what the evaluation has not measured or does not confirm."""
    if evaluation is None:
        return [fill_sentence("not_evaluated", num_images=num_images)]
    status = second_classifier_status(evaluation)
    limitations = []
    if ranking.num_evaluated_images is None:
        limitations.append(fill_sentence("page_images_only", num_images=num_images))
    if status == "limits":
        limitations.append(second_classifier_sentence("second_classifier_disagrees", evaluation))
    limitations += [Markup.escape(text) for text in reported_limitations(evaluation)]
    if status == "unknown":
        limitations.append(fill_sentence("second_classifier_unknown"))
    return limitations


def reported_limitations(evaluation: EvaluationDocument) -> list[str]:
    """Return the first limitation of each family in SUMMARY_FAMILIES, as the evaluation states it.

    For realism, an unknown result counts as a limitation, too. Limitations of components and of the second classifier
    have other sentences in the summary.
    """
    conclusions = [
        conclusion
        for conclusion in evaluation.conclusions
        if (conclusion.family, conclusion.kind) == ("realism", "unknown")
    ]
    conclusions += reversed([conclusion for conclusion in evaluation.conclusions if conclusion.kind == "limits"])
    text_by_family = {conclusion.family: conclusion.text for conclusion in conclusions}
    return [text_by_family[family] for family in SUMMARY_FAMILIES if family in text_by_family]


def second_classifier_status(evaluation: EvaluationDocument) -> str:
    """Return `supports`, `limits` or `unknown`: what the evaluation concludes from the second classifier."""
    statuses = [conclusion.kind for conclusion in evaluation.conclusions if conclusion.family == "second_classifier"]
    has_metrics = all(metric_value(evaluation.metrics, name) is not None for name in AGREEMENT_METRICS)
    return statuses[0] if statuses and has_metrics else "unknown"


def second_classifier_sentence(name: str, evaluation: EvaluationDocument) -> Markup:
    """Return the sentence with how often each classifier predicts the target class."""
    second_agreement, first_agreement = (
        format_percent(metric_value(evaluation.metrics, metric) or 0.0) for metric in AGREEMENT_METRICS
    )
    return fill_sentence(name, second_agreement=second_agreement, first_agreement=first_agreement)
