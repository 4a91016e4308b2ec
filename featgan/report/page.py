"""The report: one HTML page that needs nothing else, filled from a template with style, script and pictures inside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from featgan.report.cards import ComponentFacts, Figure, FilmCard, build_cards
from featgan.report.curves import draw_curve
from featgan.report.inline import thumbnail
from featgan.report.records import Evaluation, Series, is_number
from featgan.report.rendering import Rendering
from featgan.report.sources import Sources

OPEN_CURVES = 6
"""Curves shown at once; the others fold away."""
MAX_TABLE_ROWS = 500

GROUP_TITLES = {
    "quantiles": ("Components", "What the features vary in, most of it first, one component at a time."),
    "class": ("Class directions", "From the mean features of the classes in the training set."),
    "head": ("The box's own weights", "Along what its last layer multiplies the features by."),
    "interpolation": ("Between two images", "All features at once."),
    "expression": ("Expressions", "Each class asked of the same face."),
    "valence_arousal": ("Valence and arousal", "How pleasant, and how stirred."),
    "attributes": ("Attributes", "One flipped at a time."),
}


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
    component_facts: ComponentFacts = field(default_factory=ComponentFacts)
    evaluation: Evaluation | None = None
    metrics: Series = field(default_factory=dict)
    config: str = ""
    commands: Sequence[str] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)


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
    assert isinstance(value, float)
    size = abs(value)
    digits = max(digits, 3) if 0 < size < 0.1 else digits
    text = f"{value:.{digits}f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"
    return text.replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def environment() -> Environment:
    """Everything that is put into the page is escaped, and a name that is missing is an error."""
    built = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    built.filters["number"] = show_number
    return built


@dataclass(frozen=True)
class Glance:
    """The table of all components: a row for each, a column for every figure that any of them has."""

    cards: list[FilmCard]

    @property
    def measures(self) -> list[Figure]:
        """One figure of each name, in the order of their first appearance."""
        found: dict[str, Figure] = {}
        for figure in (figure for card in self.cards for figure in card.figures):
            found.setdefault(figure.name, figure)
        return list(found.values())

    def row(self, card: FilmCard) -> list[Figure | None]:
        """The card's figures in the columns' order; None where it has none."""
        own = {figure.name: figure for figure in card.figures}
        return [own.get(measure.name) for measure in self.measures]


def group_films(films: Sequence[FilmCard]) -> list[dict[str, Any]]:
    """The film cards under their titles, in order."""
    groups = []
    for name, members in groupby(films, key=lambda card: card.group):
        title, summary = GROUP_TITLES[name]
        groups.append({"id": name.replace("_", "-"), "title": title, "summary": summary, "cards": list(members)})
    return groups


def draw_curves(metrics: Series) -> list[dict[str, str | Markup]]:
    """Each series with two points or more as a small chart; losses come first."""
    named = sorted(metrics.items(), key=lambda entry: "loss" not in entry[0].lower())
    return [{"name": name, "svg": draw_curve(points, name)} for name, points in named if len(points) > 1]


def show_tables(evaluation: Evaluation | None) -> list[dict[str, Any]]:
    """The evaluation's tables with bounded numbers of rows."""
    if evaluation is None:
        return []
    return [
        {"title": str(table.get("title") or ""), "columns": table["columns"], "rows": table["rows"][:MAX_TABLE_ROWS]}
        for table in evaluation.tables
    ]


def build_page(report: Report) -> str:
    """The page as HTML."""
    films, mosaics = build_cards(report.sources, report.renderings, report.scale, report.component_facts)
    curves = draw_curves(report.metrics)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            sources=[
                {"name": name, "picture": thumbnail(image)}
                for name, image in zip(report.sources.names, report.sources.images, strict=True)
            ],
            groups=group_films(films),
            glance=Glance([card for card in films if card.component is not None]),
            mosaics=mosaics,
            evaluation=report.evaluation,
            tables=show_tables(report.evaluation),
            curves=curves[:OPEN_CURVES],
            more_curves=curves[OPEN_CURVES:],
        )
    )
