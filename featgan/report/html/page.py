"""The report: one self-contained HTML page with its styles, scripts and images inside."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from featgan.config.metric_specs import BASELINES, metric_label
from featgan.report.analysis.class_edits import ClassEdits, build_class_edits
from featgan.report.analysis.class_reliability import ReliabilityTable, build_reliability_table
from featgan.report.analysis.component_ranking import ComponentRanking
from featgan.report.analysis.predictions import OutputSpec
from featgan.report.analysis.subgroup_tables import build_subgroup_tables
from featgan.report.analysis.visibility import choose_typical_source
from featgan.report.edits.rendering import FramePredictions, RenderedSweep
from featgan.report.edits.sources import SourceImages
from featgan.report.figures.charts import MARK_LABELS, MatrixCell, build_baseline_chart, shade_matrix
from featgan.report.figures.curves import draw_curve
from featgan.report.figures.data_uris import encode_thumbnail
from featgan.report.figures.thread_map import map_in_threads
from featgan.report.html import summary_text
from featgan.report.html.cards import FilmCard, build_film_card, build_mosaic_card
from featgan.report.html.component_rows import ComponentRow, build_component_rows
from featgan.report.html.number_format import format_number
from featgan.report.html.scope_text import evaluation_scope, ranking_scope
from featgan.report.run_files import MetricSeries
from featgan.report.sentences import SECTION_TEXTS
from featgan.run.evaluation_document import EvaluationDocument

NUM_OPEN_CURVES = 6
"""Number of training curves that are open; the others are folded away."""
MAX_TABLE_ROWS = 500
MIN_FOLDED_ROWS = 2
"""Minimum number of rows of the ranking that are folded away; a single row stays."""

GROUP_ORDER = tuple(SECTION_TEXTS)


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    run: str
    kind: str  # kind of the condition
    step: int
    facts: Sequence[tuple[str, str]]  # term and description
    sources: SourceImages
    renderings: Sequence[RenderedSweep]
    scale: float  # brightest change of the difference maps, as a share of the range
    ranking: ComponentRanking = field(default_factory=lambda: ComponentRanking([], False))
    output_spec: OutputSpec | None = None
    source_predictions: FramePredictions | None = None  # one frame for each source
    num_features: int | None = None
    num_components: int | None = None
    evaluation: EvaluationDocument | None = None
    metrics: MetricSeries = field(default_factory=dict)
    config: str = ""
    commands: Sequence[str] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def class_edits(self) -> ClassEdits | None:
        """The edits toward each class; None if the classifier has no named outputs."""
        return build_class_edits(self.renderings, self.output_spec, self.source_predictions, self.sources.images)

    @cached_property
    def reliability(self) -> ReliabilityTable | None:
        """How reliable the edits toward each class are; an evaluation of another step does not count."""
        if self.class_edits is None or self.output_spec is None:
            return None
        current_evaluation = (
            self.evaluation if self.evaluation is not None and self.evaluation.step == self.step else None
        )
        return build_reliability_table(self.class_edits.sweep.headings, self.output_spec, current_evaluation)

    @cached_property
    def start(self) -> int:
        """Index of the source that is shown first: a well reconstructed one with typical changes."""
        if not self.ranking.components:
            return 0
        reconstruction = next(
            (rendering.reconstruction for rendering in self.renderings if rendering.reconstruction is not None), None
        )
        reconstruction_errors = (
            None
            if reconstruction is None
            else (reconstruction.float() - self.sources.images.float()).abs().mean((1, 2, 3))
        )
        reached_counts = None if self.class_edits is None else self.class_edits.count_reached()
        return choose_typical_source(
            [component.change for component in self.ranking.components], reconstruction_errors, reached_counts
        )


def build_environment() -> Environment:
    """Return a template environment that escapes every value and raises an error for an undefined name."""
    jinja_environment = Environment(
        # Jobs import featgan from a zip archive, which this loader supports.
        loader=ChoiceLoader([PackageLoader(__package__, folder) for folder in ("templates", "static")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja_environment.filters["number"] = format_number
    jinja_environment.filters["metric_label"] = metric_label
    return jinja_environment


def group_film_cards(films: Sequence[FilmCard], ranking: ComponentRanking) -> list[dict[str, Any]]:
    """Return the film cards grouped into sections; components are in the order of the ranking."""
    ranks = {component.index: rank for rank, component in enumerate(ranking.components)}
    groups = []
    for name, members in groupby(
        sorted(films, key=lambda card: GROUP_ORDER.index(card.group)), key=lambda card: card.group
    ):
        title, summary = SECTION_TEXTS[name]
        cards = sorted(members, key=lambda card: ranks.get(card.component, 0) if card.component is not None else 0)
        groups.append({"id": name.replace("_", "-"), "title": title, "summary": summary, "cards": cards})
    return groups


def find_folded_components(rows: Sequence[ComponentRow]) -> set[int]:
    """Return the components whose rows are folded away at first; empty for fewer than MIN_FOLDED_ROWS."""
    minor = {row.component.index for row in rows if row.is_minor}
    return minor if len(minor) >= MIN_FOLDED_ROWS else set()


def draw_curves(metrics: MetricSeries) -> list[dict[str, str | Markup]]:
    """Return a chart for each series with at least two points; losses come first."""
    ordered_series = sorted(metrics.items(), key=lambda entry: "loss" not in entry[0].lower())
    return [{"name": name, "svg": draw_curve(points, name)} for name, points in ordered_series if len(points) > 1]


def format_tables(evaluation: EvaluationDocument | None) -> list[dict[str, Any]]:
    """Return the tables of the evaluation, with at most MAX_TABLE_ROWS rows each."""
    if evaluation is None:
        return []
    return [
        {
            "title": table.title,
            "columns": [BASELINES[name].label if name in BASELINES else name for name in table.columns],
            "rows": table.rows[:MAX_TABLE_ROWS],
        }
        for table in evaluation.tables
    ]


def classifier_classes(output_spec: OutputSpec | None) -> tuple[str, ...]:
    """Return the classes that the classifier distinguishes; empty for other outputs."""
    return output_spec.names if output_spec is not None and output_spec.kind == "expression" else ()


def build_crosstalk_matrix(report: Report) -> list[list[MatrixCell]]:
    """Return the cross-talk of the components shown, by index; from the evaluation, else from the page's images."""
    component_indices = sorted(component.index for component in report.ranking.components)
    if report.ranking.num_evaluated_images is not None and report.evaluation is not None:
        cells = shade_matrix(report.evaluation.crosstalk, component_indices)
        if cells:
            return cells
    return [] if report.ranking.crosstalk is None else shade_matrix(report.ranking.crosstalk, component_indices)


def build_page_data(
    report: Report, films: Sequence[FilmCard], thumbnails: Sequence[str], class_edits: ClassEdits | None
) -> dict[str, Any]:
    """Return what the script needs; it reads the films of the first source from the page itself."""
    source_outputs = None
    if report.output_spec is not None and report.source_predictions is not None:
        source_outputs = report.output_spec.display_values(report.source_predictions.outputs)[:, 0].round(3).tolist()
    return {
        "start": report.start,
        "names": list(report.output_spec.names) if report.output_spec else [],
        "isProbability": report.output_spec is not None and report.output_spec.is_probability,
        "classEdits": None
        if class_edits is None
        else {
            "sourceClasses": class_edits.source_classes,
            "rows": [[class_edit and asdict(class_edit) for class_edit in row] for row in class_edits.edits],
        },
        "sources": [
            {"name": name, "image": thumbnail_uri, "outputs": source_outputs[index] if source_outputs else []}
            for index, (name, thumbnail_uri) in enumerate(zip(report.sources.names, thumbnails, strict=True))
        ],
        "films": {
            card.id: {
                "title": card.title,
                "labels": card.labels,
                "films": [None if index == report.start else film for index, film in enumerate(card.films)],
                "maps": card.maps,
                "bars": card.bars,
                "outputs": card.outputs,
            }
            for card in films
        },
    }


def list_conclusions(report: Report) -> list[Markup]:
    """Return what can be concluded from the edits."""
    return [
        *summary_text.reached_class_conclusions(report.class_edits, report.reliability),
        *summary_text.component_conclusions(report.ranking),
        *summary_text.second_classifier_summary(report.evaluation),
    ]


def list_limitations(report: Report) -> list[Markup]:
    """Return what cannot be concluded from the edits."""
    return [
        *summary_text.unreached_class_limitations(report.class_edits, report.output_spec),
        *summary_text.unconfirmed_class_limitations(report.reliability),
        *summary_text.component_limitations(report.ranking, report.evaluation),
        *summary_text.evaluation_limitations(report.evaluation, report.ranking, len(report.sources)),
    ]


def build_evaluation_context(report: Report) -> dict[str, Any]:
    """Return what the sections on the evaluation show, by the names that the template uses."""
    evaluation = report.evaluation
    classes = classifier_classes(report.output_spec)
    return {
        "evaluation": evaluation,
        "evaluation_scope": evaluation_scope(evaluation, report.sources.is_user_provided, report.step)
        if evaluation
        else "",
        "baseline_chart": build_baseline_chart(evaluation.metrics, evaluation.baselines) if evaluation else [],
        "mark_labels": MARK_LABELS,
        "crosstalk": build_crosstalk_matrix(report),
        "shown_components": sorted(report.ranking.components, key=lambda component: component.index),
        "subgroup_tables": build_subgroup_tables(evaluation.subgroups, classes) if evaluation else [],
        "tables": format_tables(evaluation),
    }


def build_report_page(report: Report) -> str:
    """Return the page as HTML."""
    film_renderings = [rendering for rendering in report.renderings if rendering.sweep.has_film]
    film_cards = map_in_threads(
        lambda rendering: build_film_card(rendering, report.scale, report.output_spec), film_renderings
    )
    # A mosaic of components would repeat their films.
    mosaic_renderings = [rendering for rendering in report.renderings if rendering.sweep.component is None]
    mosaic_cards = map_in_threads(lambda rendering: build_mosaic_card(report.sources, rendering), mosaic_renderings)
    thumbnails = [encode_thumbnail(image) for image in report.sources.images]
    curves = draw_curves(report.metrics)
    class_edits, start = report.class_edits, report.start
    component_rows = build_component_rows(
        report.ranking, report.sources, {card.id: card.films[start] for card in film_cards}
    )
    introduction = summary_text.introduction(
        report.output_spec, report.num_features, report.num_components, class_edits is None
    )
    context = {
        "report": report,
        "introduction": introduction,
        "conclusions": list_conclusions(report),
        "limitations": list_limitations(report),
        "class_edits": class_edits,
        "reliability": report.reliability,
        "folded": find_folded_components(component_rows),
        "component_rows": component_rows,
        "ranking_scope": ranking_scope(report.ranking, report.sources, report.evaluation, report.num_components),
        "row_by_sweep": {row.component.rendering.sweep.name: row for row in component_rows},
        "start": start,
        "card_by_id": {card.id: card for card in film_cards},
        "thumbnails": thumbnails,
        "groups": group_film_cards(film_cards, report.ranking),
        "mosaic_cards": mosaic_cards,
        "curves": curves[:NUM_OPEN_CURVES],
        "more_curves": curves[NUM_OPEN_CURVES:],
        "data": build_page_data(report, film_cards, thumbnails, class_edits),
        **build_evaluation_context(report),
    }
    return build_environment().get_template("report.html.j2").render(context)
