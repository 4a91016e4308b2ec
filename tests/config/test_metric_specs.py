"""The metric registry is complete, and docs/metrics.md is generated from it."""

import subprocess
import sys
from pathlib import Path
from string import Formatter
from typing import get_args

import numpy as np
import pytest

from featgan.config.metric_docs import INTRODUCTIONS, LIMITATIONS, build_metric_reference
from featgan.config.metric_specs import (
    BASELINES,
    COMPONENT_METRICS,
    DEFAULT_SELECTION_METRICS,
    HPARAM_METRICS,
    LEADERBOARD_METRICS,
    METRIC_FAMILIES,
    METRIC_PATTERNS,
    METRICS,
    PLACEHOLDERS,
    SELECTION_METRICS,
    TERMINAL_TABLES,
    Family,
    MetricSpec,
    TerminalTable,
    component_metric_name,
    find_metric,
    higher_is_better,
    is_component_metric,
    metric_label,
)
from featgan.config.schema import ConditionConfig
from featgan.metrics.decisions import attribute_metrics, label_metrics, regression_metrics, valence_arousal_metrics
from featgan.metrics.factors import FactorNames, factor_metrics
from featgan.run.evaluation_document import ComponentRecord

ALL_SPECS = (*METRICS.values(), *METRIC_PATTERNS)
MAX_HEADING_LENGTH = 8
MAX_SHORT_LABEL_LENGTH = 16


@pytest.mark.parametrize("spec", ALL_SPECS, ids=[spec.name for spec in ALL_SPECS])
def test_every_metric_has_its_texts_and_a_direction(spec: MetricSpec) -> None:
    assert spec.label and spec.value_range and spec.family in METRIC_FAMILIES
    assert spec.description[0].isupper() and spec.description.endswith(".")
    assert spec.description.count(". ") == 0, "one sentence"
    assert not spec.description.startswith("The same"), "each description is shown alone"
    assert spec.higher_is_better in (True, False, None)
    assert len(spec.heading) <= MAX_HEADING_LENGTH
    assert bool(spec.heading) or spec.terminal_table is None


@pytest.mark.parametrize("name", {*SELECTION_METRICS, *LEADERBOARD_METRICS, *HPARAM_METRICS})
def test_metrics_that_rank_runs_have_a_direction(name: str) -> None:
    assert higher_is_better(name) == METRICS[name].higher_is_better
    assert higher_is_better(f"second_dataset_{name}") == METRICS[name].higher_is_better


def test_metric_without_a_direction_ranks_nothing() -> None:
    for name in ("edit_l1", "unknown"):
        with pytest.raises(KeyError):
            higher_is_better(name)


def test_names_and_labels_are_unique() -> None:
    for attribute in ("name", "label"):
        values = [getattr(spec, attribute) for spec in ALL_SPECS]
        assert len(values) == len(set(values)), attribute
    for table in TERMINAL_TABLES:
        headings = [spec.heading for spec in METRICS.values() if spec.terminal_table == table]
        assert headings and len(headings) == len(set(headings)), table


def test_baselines_have_short_labels_for_the_terminal() -> None:
    short_labels = [spec.short_label for spec in BASELINES.values()]
    assert all(0 < len(label) <= MAX_SHORT_LABEL_LENGTH for label in short_labels)
    assert len(short_labels) == len(set(short_labels))


def test_metrics_of_single_components_are_the_fields_of_a_component() -> None:
    assert set(COMPONENT_METRICS) == set(ComponentRecord.model_fields) - {"index", "dominance"}
    assert component_metric_name(3, "slope") == "component_03_slope"
    assert all(is_component_metric(component_metric_name(12, name)) for name in COMPONENT_METRICS)
    assert not any(is_component_metric(name) for name in METRICS)


def test_tables_have_every_family_terminal_table_and_condition_kind() -> None:
    families = set(get_args(Family))
    assert families == set(METRIC_FAMILIES) == set(INTRODUCTIONS) == set(LIMITATIONS)
    assert families == {spec.family for spec in ALL_SPECS}
    assert set(get_args(TerminalTable)) == set(TERMINAL_TABLES)
    assert set(DEFAULT_SELECTION_METRICS) == set(get_args(ConditionConfig.model_fields["kind"].annotation))


@pytest.mark.parametrize(
    ("name", "label", "family"),
    [
        ("component_03_slope", "component 03: slope", "traversal"),
        ("component_03_ccc", "component 03: CCC", "faithfulness"),
        ("label_agreement_happy", "label agreement: happy", "faithfulness"),
        ("second_dataset_kid", "KID (second data set)", "realism"),
        ("second_dataset_label_agreement_no smile", "label agreement: no smile (second data set)", "faithfulness"),
        ("second_classifier_valence_ccc", "valence: CCC (second classifier)", "faithfulness"),
        ("second_classifier_kid", "KID (second classifier)", "second_classifier"),
        ("projection_04_ccc", "04 components: CCC", "traversal"),
        ("mouth_opening_ccc", "mouth_opening: CCC", "faithfulness"),
        ("valence_arousal_rmse_octant_3", "valence and arousal: RMSE, octant 3", "faithfulness"),
    ],
)
def test_names_with_prefixes_and_variable_parts_are_found(name: str, label: str, family: str) -> None:
    spec = find_metric(name)
    assert spec is not None and (spec.name, spec.label, spec.family) == (name, label, family)
    assert metric_label(name) == label
    assert "{" not in spec.description


def test_unknown_name_is_its_own_label() -> None:
    assert find_metric("unknown_metric") is None and metric_label("unknown_metric") == "unknown metric"
    assert metric_label(None) == "None"


def test_every_placeholder_of_a_pattern_is_known() -> None:
    placeholders = {field for spec in METRIC_PATTERNS for _, field, _, _ in Formatter().parse(spec.name) if field}
    assert placeholders == set(PLACEHOLDERS)


def test_metrics_of_all_kinds_of_outputs_are_in_the_registry() -> None:
    generator = np.random.default_rng(0)
    labels, values = generator.integers(0, 3, (3, 30)), generator.normal(size=(2, 30, 4))
    names = FactorNames(("mouth_opening", "brow_height"), ("skin_tone", "pose_x"))
    requested, swept = np.array([-1.0, 1.0]), generator.normal(size=(30, 2, 2, 4))
    tables = [
        label_metrics(labels[0], labels[1], labels[2], ("happy", "sad", "very sad")),
        valence_arousal_metrics(values[0, :, :2], values[1, :, :2]),
        regression_metrics(names.all_names, values[0], values[1]),
        attribute_metrics(values[0] > 0, values[1] > 0, values[0] > 1, ("Smiling", "Black_Hair", "Male", "Young")),
        factor_metrics(names, values[0], values[1], values[1], requested, swept, np.ones(4)),
    ]
    assert not {name for table in tables for name in table if find_metric(name) is None}


def test_metric_page_is_generated() -> None:
    path = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert path.read_text() == build_metric_reference() + "\n", (
        "run `python -m featgan.config.metric_docs > docs/metrics.md`"
    )
    names = [*(spec.name for spec in ALL_SPECS), *BASELINES]
    assert not [name for name in names if f"`{name}`" not in path.read_text()]


def test_registry_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, featgan.config.metric_specs; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
