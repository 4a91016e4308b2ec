"""The files of a run that a report reads: metrics.jsonl and config.yaml. Reading is tolerant."""

import math
from pathlib import Path
from typing import TypeGuard

from featgan.system.files import read_side_text
from featgan.system.json_files import read_json_lines
from featgan.system.limits import MAX_YAML_BYTES

MAX_SERIES = 200

MetricSeries = dict[str, list[tuple[int, float]]]
"""Name => (step, value), by step."""


def read_metric_series(run_dir: Path) -> MetricSeries:
    """Return the scalars of metrics.jsonl by name, without corrupted lines and values that are not finite.

    A resumed run may have written a step twice; the last value counts.
    """
    latest: dict[str, dict[int, float]] = {}
    for entry in read_json_lines(run_dir / "metrics.jsonl"):
        step = entry.get("step")
        if not isinstance(step, int):
            continue
        for name, value in entry.items():
            is_kept = name in latest or len(latest) < MAX_SERIES
            if name != "step" and is_kept and is_number(value):
                latest.setdefault(name, {})[step] = float(value)
    return {name: sorted(points.items()) for name, points in latest.items()}


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_config_text(run_dir: Path) -> str:
    """Return the resolved configuration as it was written, or an empty string if it cannot be read."""
    return read_side_text(run_dir / "config.yaml", MAX_YAML_BYTES)
