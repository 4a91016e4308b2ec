"""The results of one evaluation: metrics by family and column, subgroups, and the response of each component."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from featgan.config.metric_specs import COMPONENT_METRICS, METRIC_FAMILIES, Family, component_metric_name
from featgan.evaluation.evaluator import MetricsByColumn, MetricTable, prefix_names
from featgan.evaluation.subgroups import SubgroupMetrics
from featgan.run.evaluation_document import ComponentRecord


@dataclass
class EvaluationResults:
    """Everything that one evaluation measures."""

    families: dict[str, MetricsByColumn] = field(default_factory=dict)
    subgroups: list[SubgroupMetrics] = field(default_factory=list)
    crosstalk: list[list[float]] = field(default_factory=list)
    factor_names: list[str] = field(default_factory=list)
    factor_response: list[list[float]] = field(default_factory=list)
    num_pairs: int = 0
    """Number of pairs; those of the first data set if there are two."""
    num_swept_images: int | None = None
    """Number of images whose components were swept; None for label-conditioned models."""

    def add_metrics(self, family: Family, metrics_by_column: MetricsByColumn, prefix: str = "") -> None:
        """Add metrics to a family; the prefix is put before the name of each metric."""
        for column, metrics in prefix_names(metrics_by_column, prefix).items():
            self.families.setdefault(family, {}).setdefault(column, {}).update(metrics)

    @property
    def generator_metrics(self) -> MetricTable:
        """The metrics of the generator over all families, without the subgroups."""
        tables = [self.families[name].get("generator", {}) for name in METRIC_FAMILIES if name in self.families]
        return {name: estimate for table in tables for name, estimate in table.items()}

    def baseline_metrics(self, column: str) -> MetricTable:
        """Return the metrics of a baseline over all families."""
        return {
            name: estimate for family in self.families.values() for name, estimate in family.get(column, {}).items()
        }

    @property
    def baselines(self) -> list[str]:
        """Names of the baselines, in the order of their first appearance."""
        columns = (column for name in METRIC_FAMILIES for column in self.families.get(name, {}))
        return list(dict.fromkeys(column for column in columns if column != "generator"))

    @property
    def subgroups_by_kind(self) -> Mapping[str, list[SubgroupMetrics]]:
        """Subgroups by kind: `class`, `octant`, `component`."""
        grouped: dict[str, list[SubgroupMetrics]] = {}
        for subgroup in self.subgroups:
            grouped.setdefault(subgroup.group.split()[0], []).append(subgroup)
        return grouped

    @property
    def components(self) -> list[ComponentRecord]:
        """The metrics of each component, and the share of the measured change that is in the component itself."""
        table, components = self.generator_metrics, []
        for index, row in enumerate(self.crosstalk):
            total = sum(map(abs, row))
            dominance = abs(row[index]) / total if total else 0.0
            values = {name: finite_value(table, component_metric_name(index + 1, name)) for name in COMPONENT_METRICS}
            components.append(ComponentRecord(index=index, dominance=dominance, **values))
        return components


def finite_value(table: MetricTable, name: str) -> float | None:
    """Return the value of a metric; None if it is missing or not finite."""
    estimate = table.get(name)
    return estimate.value if estimate is not None and math.isfinite(estimate.value) else None
