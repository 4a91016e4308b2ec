"""Answer by answer, how far to believe its pictures: what the evaluation counted, and how well the box knows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featgan.report.analysis.predictions import Answer
from featgan.report.analysis.subgroup_tables import REAL
from featgan.report.run_files import Evaluation, Region, is_number, mapping

AGREES = 0.5
"""Share of the edits in which a second classifier must see an answer for it to count as confirmed."""


@dataclass(frozen=True)
class Cell:
    """A share and how many pictures it is of; `is_low` where it speaks against the pictures."""

    share: float | None = None
    count: int | None = None
    is_low: bool = False

    @property
    def text(self) -> str:
        return "\N{EN DASH}" if self.share is None else f"{100 * self.share:.0f}\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Line:
    """One question, answered for every answer of the box."""

    question: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Evidence:
    """The questions, and the answers that a second classifier does not confirm."""

    lines: tuple[Line, ...]
    unconfirmed: tuple[str, ...] = ()  # though it sees them in real pictures
    unjudged: tuple[str, ...] = ()  # nor sees it them in real pictures


def gather_evidence(names: Sequence[str], answer: Answer, evaluation: Evaluation | None) -> Evidence:
    """A line for each question that anything is known about; `names` are the answers asked for."""
    regions = {region.name: region for region in evaluation.regions if region.by == "class"} if evaluation else {}
    found = [regions.get(name) for name in names]
    confirmed = [score(region, "witness_agreement") for region in found]
    real = [score(region, "witness_agreement", REAL) for region in found]
    lines = [
        Line("edits that it sees as such", tuple(score(region, "flip_success") for region in found)),
        Line("a second classifier", tuple(confirmed)),
        Line("the same of real pictures", tuple(real)),
        Line("real ones that it tells rightly", tuple(known(answer, name) for name in names)),
    ]
    return Evidence(
        tuple(line for line in lines if any(cell.share is not None for cell in line.cells)),
        tuple(
            name for name, edit, other in zip(names, confirmed, real, strict=True) if edit.is_low and not other.is_low
        ),
        tuple(name for name, edit, other in zip(names, confirmed, real, strict=True) if edit.is_low and other.is_low),
    )


def score(region: Region | None, name: str, controls: Sequence[str] = ()) -> Cell:
    """A measure of the generator, or of the first of the controls that has it."""
    if region is None:
        return Cell()
    tables: list[dict[str, Any]] = [region.controls.get(each, {}) for each in controls] or [region.measures]
    measure = next((mapping(table[name]) for table in tables if name in table), {})
    value, count = measure.get("value"), measure.get("count")
    if not is_number(value):
        return Cell()
    return Cell(value, count if isinstance(count, int) else None, value < AGREES)


def known(answer: Answer, name: str) -> Cell:
    """Of the labelled validation pictures of a class, those that get their label."""
    recall = answer.recalls.get(name)
    return Cell() if recall is None else Cell(recall[0], recall[1], recall[0] < AGREES)
