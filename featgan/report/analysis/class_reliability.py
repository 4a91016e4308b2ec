"""The reliability of the edits toward each class: what the evaluation measured, and how accurate the classifier is."""

from collections.abc import Sequence
from dataclasses import dataclass

from featgan.report.analysis.predictions import OutputSpec
from featgan.report.analysis.subgroup_tables import REAL_BASELINES
from featgan.report.sentences import RELIABILITY_LABELS
from featgan.run.evaluation_document import EstimateRecord, EvaluationDocument, SubgroupRecord

MIN_AGREEMENT = 0.5
"""Share of the edits that must be predicted as the target class for it to count as confirmed."""


@dataclass(frozen=True)
class ReliabilityCell:
    """A share and the number of images behind it; `is_low` if it makes the edits unreliable."""

    share: float | None = None
    count: int | None = None
    is_low: bool = False

    @property
    def text(self) -> str:
        return "\N{EN DASH}" if self.share is None else f"{100 * self.share:.0f}\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class ReliabilityRow:
    """One metric with a value for every class."""

    label: str
    cells: tuple[ReliabilityCell, ...]


@dataclass(frozen=True)
class ReliabilityTable:
    """The metrics of every class, and the classes that the second classifier does not confirm."""

    rows: tuple[ReliabilityRow, ...]
    unconfirmed_classes: tuple[str, ...] = ()  # it predicts them for real images, but not for the edits
    unverifiable_classes: tuple[str, ...] = ()  # it does not predict them for real images either


def build_reliability_table(
    names: Sequence[str], output_spec: OutputSpec, evaluation: EvaluationDocument | None
) -> ReliabilityTable:
    """Return a row for each metric that has a value; `names` are the target classes."""
    subgroups = (
        {subgroup.name: subgroup for subgroup in evaluation.subgroups if subgroup.group == "class"}
        if evaluation
        else {}
    )
    class_subgroups = [subgroups.get(name) for name in names]
    edited_cells = [metric_cell(subgroup, "second_classifier_agreement") for subgroup in class_subgroups]
    real_cells = [metric_cell(subgroup, "second_classifier_agreement", REAL_BASELINES) for subgroup in class_subgroups]
    cells_by_metric = {
        "validity": [metric_cell(subgroup, "validity") for subgroup in class_subgroups],
        "second_classifier": edited_cells,
        "real_images": real_cells,
        "accuracy": [recall_cell(output_spec, name) for name in names],
    }
    rows = [ReliabilityRow(RELIABILITY_LABELS[metric], tuple(cells)) for metric, cells in cells_by_metric.items()]
    return ReliabilityTable(
        tuple(row for row in rows if any(cell.share is not None for cell in row.cells)),
        tuple(
            name
            for name, edited_cell, real_cell in zip(names, edited_cells, real_cells, strict=True)
            if edited_cell.is_low and not real_cell.is_low
        ),
        tuple(
            name
            for name, edited_cell, real_cell in zip(names, edited_cells, real_cells, strict=True)
            if edited_cell.is_low and real_cell.is_low
        ),
    )


def metric_cell(subgroup: SubgroupRecord | None, name: str, baselines: Sequence[str] = ()) -> ReliabilityCell:
    """Return a metric of the generator, or of the first of the baselines that has it."""
    if subgroup is None:
        return ReliabilityCell()
    tables = [subgroup.baselines.get(baseline, {}) for baseline in baselines] or [subgroup.metrics]
    metric = next((table[name] for table in tables if name in table), EstimateRecord())
    if metric.value is None:
        return ReliabilityCell()
    return ReliabilityCell(metric.value, metric.count, metric.value < MIN_AGREEMENT)


def recall_cell(output_spec: OutputSpec, name: str) -> ReliabilityCell:
    """Return the share of the labeled validation images of a class that are classified correctly."""
    recall = output_spec.recalls.get(name)
    return ReliabilityCell() if recall is None else ReliabilityCell(recall[0], recall[1], recall[0] < MIN_AGREEMENT)
