"""Tables of the metrics by subgroup: averages hide failures on rare classes and at the ends of a component."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from featgan.config.metric_specs import SUBGROUP_TITLES
from featgan.run.evaluation_document import EstimateRecord, SubgroupRecord, metric_value

REAL_BASELINES = ("nearest_real", "target_real")
"""Baselines that are real images: the nearest to the target, else those of the target class."""


@dataclass(frozen=True)
class SubgroupEntry:
    """A metric of a subgroup with its interval; `share` is set if the whole column is in [0, 1], to draw a bar."""

    value: float | None
    low: float | None = None
    high: float | None = None
    share: float | None = None
    real: float | None = None  # the metric of real images


@dataclass(frozen=True)
class SubgroupTable:
    """Subgroups of one kind as rows, their metrics as columns."""

    title: str
    metrics: list[str]
    rows: list[tuple[str, int | None, list[SubgroupEntry]]]  # subgroup, number of pairs, one entry per metric
    missing_classes: tuple[str, ...] = ()  # classes that are not the target of any pair


def build_subgroup_tables(subgroups: Sequence[SubgroupRecord], classes: Sequence[str] = ()) -> list[SubgroupTable]:
    """Return a table for each kind of subgroup, in order of first appearance.

    The table of classes lists those of `classes` that are missing.
    """
    tables = []
    for kind in dict.fromkeys(subgroup_kind(subgroup) for subgroup in subgroups):
        members = [subgroup for subgroup in subgroups if subgroup_kind(subgroup) == kind]
        present_names = {subgroup.name for subgroup in members}
        missing_classes = tuple(name for name in classes if name not in present_names) if kind == "class" else ()
        tables.append(replace(tabulate_subgroups(kind, members), missing_classes=missing_classes))
    return tables


def subgroup_kind(subgroup: SubgroupRecord) -> str:
    return subgroup.group.split()[0] if subgroup.group else ""


def tabulate_subgroups(kind: str, subgroups: Sequence[SubgroupRecord]) -> SubgroupTable:
    """Return the table of one kind with all metrics that any subgroup has."""
    metrics = list(dict.fromkeys(name for subgroup in subgroups for name in subgroup.metrics))
    bounded = {name for name in metrics if all(is_in_unit_interval(subgroup, name) for subgroup in subgroups)}
    rows = [
        (
            subgroup_name(subgroup),
            subgroup.pairs,
            [build_subgroup_entry(subgroup, name, name in bounded) for name in metrics],
        )
        for subgroup in subgroups
    ]
    return SubgroupTable(SUBGROUP_TITLES.get(kind, f"By {kind}"), metrics, rows)


def subgroup_name(subgroup: SubgroupRecord) -> str:
    """Return `happy`, `octant 3` or `component 2: below 10 %`."""
    if subgroup.group == "class":
        return subgroup.name
    return f"{subgroup.group} {subgroup.name}" if subgroup.group == "octant" else f"{subgroup.group}: {subgroup.name}"


def is_in_unit_interval(subgroup: SubgroupRecord, name: str) -> bool:
    """Return whether a metric is missing or between 0 and 1."""
    value = metric_value(subgroup.metrics, name)
    return value is None or 0 <= value <= 1


def build_subgroup_entry(subgroup: SubgroupRecord, name: str, is_bounded: bool) -> SubgroupEntry:
    metric = subgroup.metrics.get(name, EstimateRecord())
    real_values = [metric_value(subgroup.baselines.get(baseline, {}), name) for baseline in REAL_BASELINES]
    real = next((value for value in real_values if value is not None), None)
    return SubgroupEntry(metric.value, metric.low, metric.high, metric.value if is_bounded else None, real)
