"""The files of a run that a report reads: metrics.jsonl and config.yaml. Reading is tolerant."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

MAX_METRICS_BYTES = 256 << 20
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


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a .jsonl file, one per line; nothing if the file is missing or too large."""
    if not path.is_file() or path.stat().st_size > MAX_METRICS_BYTES:
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                content = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(content, dict):
                yield content


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_config_text(run_dir: Path) -> str:
    """Return the resolved configuration as it was written, or an empty string."""
    path = run_dir / "config.yaml"
    if not path.is_file() or path.stat().st_size > 1 << 20:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")
