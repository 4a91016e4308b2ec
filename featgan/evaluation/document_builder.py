"""Build the evaluation document from the results: headline, tables with baselines, conclusions and all metrics."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from featgan.config.metric_specs import METRIC_FAMILIES, METRICS, SUBGROUP_TITLES, is_component_metric
from featgan.evaluation.conclusions import draw_conclusions
from featgan.evaluation.evaluator import MetricTable
from featgan.evaluation.results import EvaluationResults
from featgan.evaluation.subgroups import SubgroupMetrics
from featgan.metrics.bootstrap import Estimate
from featgan.run.evaluation_document import (
    EstimateRecord,
    EvaluationDocument,
    HeadlineEntry,
    SubgroupRecord,
    TableRecord,
)


def build_document(
    results: EvaluationResults,
    *,
    step: int,
    suite: str,
    blackbox: Mapping[str, str] | None,
    second_classifier: Mapping[str, str | None] | None,
    weights: Mapping[str, Mapping[str, str | None]],
    arguments: Sequence[str],
    path: Path,
) -> EvaluationDocument:
    """Return the document that the report, the leaderboard and other programs read."""
    return EvaluationDocument(
        step=step,
        suite=suite,
        blackbox=None if blackbox is None else dict(blackbox),
        pairs=results.num_pairs,
        swept_images=results.num_swept_images,
        second_classifier=None if second_classifier is None else dict(second_classifier),
        weights={name: dict(weight_file) for name, weight_file in weights.items()},
        arguments=tuple(arguments),
        headline=tuple(headline_entries(results.generator_metrics)),
        conclusions=tuple(draw_conclusions(results)),
        tables=(*family_tables(results), *subgroup_tables(results), *factor_tables(results)),
        components=tuple(results.components),
        crosstalk=tuple(tuple(row) for row in results.crosstalk),
        metrics=estimate_records(results.generator_metrics),
        baselines={column: estimate_records(results.baseline_metrics(column)) for column in results.baselines},
        subgroups=tuple(subgroup_record(subgroup) for subgroup in results.subgroups),
        path=path,
    )


def headline_entries(metrics: MetricTable) -> list[HeadlineEntry]:
    """Return the headline metrics that were measured, with the texts of the registry."""
    return [
        HeadlineEntry(name=name, label=spec.label, note=spec.description, **asdict(metrics[name]))
        for name, spec in METRICS.items()
        if spec.headline and name in metrics
    ]


def estimate_records(metrics: MetricTable) -> dict[str, EstimateRecord]:
    return {name: EstimateRecord(**asdict(estimate)) for name, estimate in metrics.items()}


def subgroup_record(subgroup: SubgroupMetrics) -> SubgroupRecord:
    columns = subgroup.metrics_by_column
    return SubgroupRecord(
        group=subgroup.group,
        name=subgroup.name,
        pairs=subgroup.count,
        metrics=estimate_records(columns["generator"]),
        baselines={
            column: estimate_records(metrics)
            for column, metrics in columns.items()
            if column != "generator" and metrics
        },
    )


def family_tables(results: EvaluationResults) -> list[TableRecord]:
    """Return a table for each family: metric, value, interval, number of images, and the value of each baseline.

    Metrics of single components are left out.
    """
    tables = []
    for name, title in METRIC_FAMILIES.items():
        family = results.families.get(name, {})
        baselines = [column for column in family if column != "generator"]
        metric_names = [metric for metric in family.get("generator", {}) if not is_component_metric(metric)]
        rows = [(metric, *row_with_baselines(family, metric, baselines)) for metric in metric_names]
        if rows:
            columns = ("metric", "generator", "95 %", "images", *baselines)
            tables.append(TableRecord(family=name, title=title, columns=columns, rows=tuple(rows)))
    return tables


def subgroup_tables(results: EvaluationResults) -> list[TableRecord]:
    """Return a table for each kind of subgroup: subgroup and metric, then as in the tables of families."""
    tables = []
    for kind, subgroups in results.subgroups_by_kind.items():
        baselines = [
            name
            for name in subgroups[0].metrics_by_column
            if name != "generator" and any(subgroup.metrics_by_column[name] for subgroup in subgroups)
        ]
        rows = [
            (subgroup_label(subgroup), metric, *row_with_baselines(subgroup.metrics_by_column, metric, baselines))
            for subgroup in subgroups
            for metric in subgroup.metrics_by_column["generator"]
        ]
        columns = ("subgroup", "metric", "generator", "95 %", "pairs", *baselines)
        title = SUBGROUP_TITLES[kind]
        tables.append(TableRecord(family=f"subgroups_{kind}", title=title, columns=columns, rows=tuple(rows)))
    return tables


def subgroup_label(subgroup: SubgroupMetrics) -> str:
    return subgroup.name if subgroup.group == "class" else f"{subgroup.group} {subgroup.name}"


def row_with_baselines(family: Mapping[str, MetricTable], metric: str, baselines: Sequence[str]) -> list[str | int]:
    """Return value, interval and number of images of the generator's metric, and the value of each baseline."""
    estimate = family["generator"][metric]
    return [
        format_estimate(estimate),
        format_interval(estimate.low, estimate.high),
        estimate.count,
        *(format_estimate(family[column].get(metric)) for column in baselines),
    ]


def factor_tables(results: EvaluationResults) -> list[TableRecord]:
    """Return a table of the change of each true factor by each component, if there is a factor probe."""
    if not results.factor_names:
        return []
    rows = tuple(
        (name, *(f"{response[index]:+.2f}" for response in results.factor_response))
        for index, name in enumerate(results.factor_names)
    )
    columns = ("factor", *(f"component {index + 1}" for index in range(len(results.factor_response))))
    title = "True factors: change in SD per SD of a component's target change"
    return [TableRecord(family="factor_response", title=title, columns=columns, rows=rows)]


def format_estimate(estimate: Estimate | None) -> str:
    """Format with three decimals, or a dash if there is no value."""
    return "-" if estimate is None or not math.isfinite(estimate.value) else f"{estimate.value:.3f}"


def format_interval(low: float | None, high: float | None) -> str:
    """Format both bounds, or a dash if there is no interval."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return "-"
    return f"{low:.3f} to {high:.3f}"
