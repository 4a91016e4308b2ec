"""The report: one HTML page that needs nothing else, filled from a template with style, script and pictures inside."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from featgan.report.analysis.class_edits import Tiles, build_tiles
from featgan.report.analysis.class_reliability import Evidence, gather_evidence
from featgan.report.analysis.component_ranking import Ranking
from featgan.report.analysis.predictions import Answer
from featgan.report.analysis.subgroup_tables import region_tables
from featgan.report.analysis.visibility import typical_source
from featgan.report.edits.rendering import Rendering, Seen
from featgan.report.edits.sources import Sources
from featgan.report.figures.charts import MARKS, Cell, beside_controls, name_measure, shade
from featgan.report.figures.curves import draw_curve
from featgan.report.figures.data_uris import thumbnail
from featgan.report.figures.thread_map import in_threads
from featgan.report.html import summary_text
from featgan.report.html.cards import FilmCard, build_film, build_mosaic
from featgan.report.html.component_rows import Row, build_rows
from featgan.report.run_files import Evaluation, Series, is_number

OPEN_CURVES = 6
"""Curves shown at once; the others fold away."""
MAX_TABLE_ROWS = 500
FEWEST_FOLDED = 2
"""Rows of the ranking that fold away; a single one stays."""

GROUP_TITLES = {
    "quantiles": ("The components, one by one", "What the classifier's numbers vary in, one component at a time."),
    "class": ("Towards each class", "By the mean of the classifier's numbers over training pictures of each class."),
    "head": (
        "Along the classifier's own weights",
        "Straight towards each of its answers. Often no picture lies there, and the edit falls short: where it is "
        "unlike the edit towards the class, believe that one.",
    ),
    "interpolation": ("Between two images", "All of the classifier's numbers at once."),
    "expression": ("Expressions", "Each class asked of the same face."),
    "valence_arousal": ("Valence and arousal", "How pleasant, and how stirred."),
    "attributes": ("Attributes", "One flipped at a time."),
}

ORDER = ("class", "head", *(name for name in GROUP_TITLES if name not in ("class", "head")))
"""Groups as they follow each other: answers have names, components must find theirs."""


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    run: str
    kind: str  # of the condition
    step: int
    facts: Sequence[tuple[str, str]]  # what it is: term and description
    sources: Sources
    renderings: Sequence[Rendering]
    scale: float  # of the difference maps, as a share of the range
    ranking: Ranking = field(default_factory=lambda: Ranking([], False))
    answer: Answer | None = None
    source_seen: Seen | None = None  # what the box sees in the sources, as one frame each
    num_features: int | None = None
    num_components: int | None = None
    evaluation: Evaluation | None = None
    metrics: Series = field(default_factory=dict)
    config: str = ""
    commands: Sequence[str] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def tiles(self) -> Tiles | None:
        """What each answer looks like, where the box has answers."""
        return build_tiles(self.renderings, self.answer, self.source_seen, self.sources.images)

    @cached_property
    def evidence(self) -> Evidence | None:
        """How far to believe the tiles, answer by answer."""
        if self.tiles is None or self.answer is None:
            return None
        current = self.evaluation if self.evaluation is not None and self.evaluation.step == self.step else None
        return gather_evidence(self.tiles.sweep.headings, self.answer, current)

    @cached_property
    def start(self) -> int:
        """The source that is shown first: a well-kept one whose pictures change as those of the median one."""
        if not self.ranking.components:
            return 0
        kept = next((each.reconstruction for each in self.renderings if each.reconstruction is not None), None)
        lost = None if kept is None else (kept.float() - self.sources.images.float()).abs().mean((1, 2, 3))
        reached = None if self.tiles is None else self.tiles.reached()
        return typical_source([each.change for each in self.ranking.components], lost, reached)


def show_number(value: object, digits: int = 3) -> str:
    """A cell's text: `digits` decimals (fewer when large, 3 when small), true minus signs, a dash for nothing."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")
    if not is_number(value):
        return "\N{EN DASH}" if isinstance(value, float) else str(value)
    size = abs(value)
    digits = max(digits, 3) if 0 < size < 0.1 else digits
    text = f"{value:.{digits}f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"
    return text.replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def environment() -> Environment:
    """Everything that is put into the page is escaped, and a name that is missing is an error."""
    built = Environment(
        loader=FileSystemLoader([Path(__file__).parent / "templates", Path(__file__).parent / "static"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    built.filters["number"] = show_number
    built.filters["percent"] = summary_text.percent
    built.filters["measure"] = name_measure
    return built


def group_films(films: Sequence[FilmCard], ranking: Ranking) -> list[dict[str, Any]]:
    """The film cards under their titles, in order; components in the order of the ranking."""
    places = {component.index: place for place, component in enumerate(ranking.components)}
    groups = []
    for name, members in groupby(sorted(films, key=lambda card: ORDER.index(card.group)), key=lambda card: card.group):
        title, summary = GROUP_TITLES[name]
        cards = sorted(members, key=lambda card: places.get(card.component, 0) if card.component is not None else 0)
        groups.append({"id": name.replace("_", "-"), "title": title, "summary": summary, "cards": cards})
    return groups


def fold(rows: Sequence[Row]) -> set[int]:
    """The components whose rows the first screen leaves out at first, where that makes room enough."""
    minor = {row.component.index for row in rows if row.is_minor}
    return minor if len(minor) >= FEWEST_FOLDED else set()


def draw_curves(metrics: Series) -> list[dict[str, str | Markup]]:
    """Each series with two points or more as a small chart; losses come first."""
    named = sorted(metrics.items(), key=lambda entry: "loss" not in entry[0].lower())
    return [{"name": name, "svg": draw_curve(points, name)} for name, points in named if len(points) > 1]


def show_tables(evaluation: Evaluation | None) -> list[dict[str, Any]]:
    """The evaluation's tables with bounded numbers of rows."""
    if evaluation is None:
        return []
    return [
        {
            "title": str(table.get("title") or ""),
            "columns": [MARKS[name][1] if name in MARKS else name for name in map(str, table["columns"])],
            "rows": table["rows"][:MAX_TABLE_ROWS],
        }
        for table in evaluation.tables
    ]


def classes_of(answer: Answer | None) -> tuple[str, ...]:
    """The classes that the box tells apart."""
    return answer.names if answer is not None and answer.kind == "expression" else ()


def show_crosstalk(report: Report) -> list[list[Cell]]:
    """The matrix of the components shown, in their own order, of the evaluation or else of the page's pictures."""
    shown = sorted(component.index for component in report.ranking.components)
    if report.ranking.measured_on is not None and report.evaluation is not None:
        cells = shade(report.evaluation.crosstalk, shown)
        if cells:
            return cells
    return [] if report.ranking.crosstalk is None else shade(report.ranking.crosstalk, shown)


def page_data(
    report: Report, films: Sequence[FilmCard], pictures: Sequence[str], tiles: Tiles | None
) -> dict[str, Any]:
    """What the script needs. Films of the first source stand in the page itself and are left out here."""
    answers = None
    if report.answer is not None and report.source_seen is not None:
        answers = report.answer.shown(report.source_seen.outputs)[:, 0].round(3).tolist()
    return {
        "start": report.start,
        "names": list(report.answer.names) if report.answer else [],
        "isShare": report.answer is not None and report.answer.is_share,
        "tiles": None
        if tiles is None
        else {"own": tiles.own, "rows": [[tile and asdict(tile) for tile in row] for row in tiles.tiles]},
        "sources": [
            {"name": name, "picture": picture, "answer": answers[index] if answers else []}
            for index, (name, picture) in enumerate(zip(report.sources.names, pictures, strict=True))
        ],
        "films": {
            card.id: {
                "title": card.title,
                "labels": card.labels,
                "films": [None if index == report.start else film for index, film in enumerate(card.films)],
                "maps": card.maps,
                "bars": card.bars,
                "answers": card.answers,
            }
            for card in films
        },
    }


def build_page(report: Report) -> str:
    """The page as HTML."""
    filmed = [rendering for rendering in report.renderings if rendering.sweep.film]
    films = in_threads(lambda rendering: build_film(rendering, report.scale, report.answer), filmed)
    # The films of the components say what a mosaic of them would.
    flat = [rendering for rendering in report.renderings if rendering.sweep.component is None]
    mosaics = in_threads(lambda rendering: build_mosaic(report.sources, rendering), flat)
    pictures = [thumbnail(image) for image in report.sources.images]
    curves = draw_curves(report.metrics)
    evaluation = report.evaluation
    tiles, start = report.tiles, report.start
    rows = build_rows(report.ranking, report.sources, {card.id: card.films[start] for card in films})
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            introduction=summary_text.introduce(
                report.answer, report.num_features, report.num_components, tiles is not None
            ),
            conclusions=[
                *summary_text.reach(tiles, report.evidence),
                *summary_text.conclude(report.ranking),
                *summary_text.confirm(evaluation),
            ],
            doubts=[
                *summary_text.miss(tiles, report.answer),
                *summary_text.unconfirmed(report.evidence),
                *summary_text.doubt(report.ranking, evaluation),
                *summary_text.question(evaluation, report.ranking, len(report.sources)),
            ],
            tiles=tiles,
            evidence=report.evidence,
            folded=fold(rows),
            rows=rows,
            row_of={row.component.rendering.sweep.name: row for row in rows},
            start=start,
            card_of={card.id: card for card in films},
            pictures=pictures,
            groups=group_films(films, report.ranking),
            mosaics=mosaics,
            evaluation=evaluation,
            lines=beside_controls(evaluation.measures, evaluation.controls) if evaluation else [],
            matrix=show_crosstalk(report),
            shown=sorted(report.ranking.components, key=lambda component: component.index),
            regions=region_tables(evaluation.regions, classes_of(report.answer)) if evaluation else [],
            tables=show_tables(evaluation),
            curves=curves[:OPEN_CURVES],
            more_curves=curves[OPEN_CURVES:],
            data=page_data(report, films, pictures, tiles),
        )
    )
