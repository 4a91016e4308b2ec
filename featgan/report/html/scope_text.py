"""The sentences that state which images and which checkpoint the metrics of the report are from."""

from markupsafe import Markup

from featgan.report.analysis.component_ranking import ComponentRanking
from featgan.report.edits.sources import SourceImages
from featgan.report.html.number_format import format_number
from featgan.report.sentences import fill_sentence
from featgan.run.evaluation_document import EvaluationDocument


def ranking_scope(
    ranking: ComponentRanking,
    sources: SourceImages,
    evaluation: EvaluationDocument | None,
    num_components: int | None,
) -> Markup:
    """Return what the metrics of the ranking are measured on, and which source and components are shown."""
    num_evaluated_images = ranking.num_evaluated_images
    page_images = {"num_images": len(sources), "origin": sources.origin}
    names = []
    if num_evaluated_images is not None:
        names.append("evaluated_metrics_of_suite" if evaluation and evaluation.suite else "evaluated_metrics")
    is_measured_on_page = num_evaluated_images is None and ranking.crosstalk is not None
    names.append("page_metrics" if is_measured_on_page else "visibility_images")
    if any(component.importance is not None for component in ranking.components):
        names.append("importance_measured" if ranking.is_importance_measured else "importance_computed")
    names.append("first_source")
    if num_components and num_components > len(ranking.components):
        names.append("component_limit")
    values = {
        **page_images,
        "num_evaluated_images": format_number(num_evaluated_images),
        "suite": evaluation.suite if evaluation else "",
        "num_shown": len(ranking.components),
        "num_components": num_components,
    }
    return Markup(" ").join(fill_sentence(name, **values) for name in names)


def evaluation_scope(evaluation: EvaluationDocument, is_user_provided: bool, step: int) -> Markup:
    """Return which checkpoint and images the evaluation used.

    `is_user_provided` and `step` are those of the images of the page.
    """
    name = "evaluated_images" if evaluation.step is None else "evaluated_checkpoint"
    if is_user_provided:
        name = "evaluated_other_images" if evaluation.step is None else "evaluated_checkpoint_and_other_images"
    sentences = [fill_sentence(name, step=format_number(evaluation.step))]
    if evaluation.suite:
        sentences.append(fill_sentence("evaluation_suite", suite=evaluation.suite))
    if evaluation.step != step:
        sentences.append(fill_sentence("other_step", step=format_number(step)))
    return Markup(" ").join(sentences)
