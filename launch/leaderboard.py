"""leaderboard.csv and leaderboard.html: the evaluations of all runs in one table, with a curve for each run."""

import csv
import io
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from featgan.config.choices import SUITES
from featgan.config.metric_specs import LEADERBOARD_METRICS, METRICS, metric_label
from featgan.config.schema import Config
from featgan.run.evaluation_document import read_metrics
from featgan.run.evaluation_schedule import best_step, given_up_steps, read_metric
from featgan.run.paths import checkpoint_steps, evaluated_steps, evaluation_path
from featgan.system.files import atomic_write
from featgan.system.os_errors import user_error_message
from featgan.system.plain_text import format_one_line

logger = logging.getLogger(__name__)

CURVE_WIDTH, CURVE_HEIGHT = 160, 36


@dataclass(frozen=True)
class LeaderboardRow:
    """One evaluation of a run, or one that failed."""

    run: str
    step: int
    suite: str
    state: str  # done, best or failed
    values: dict[str, float | None]


def collect_rows(runs: Sequence[tuple[Path, Config]]) -> list[LeaderboardRow]:
    """Return all evaluations by run and step; a run that cannot be read is left out."""
    rows = []
    for run, config in runs:
        try:
            rows += run_rows(run, config)
        except Exception as error:  # an error of one run must not hide the others
            logger.warning(f"{run}: not in the leaderboard: {describe_failure(error)}")
    return rows


def describe_failure(error: Exception) -> str:
    """Return an error of one run as one line."""
    return user_error_message(error) or f"{type(error).__name__}: {format_one_line(str(error))}"


def run_rows(run_dir: Path, config: Config) -> list[LeaderboardRow]:
    """Return the evaluations of a run by suite and step, followed by the failures of each suite."""
    rows, best_evaluation = [], (best_step(run_dir, config.evaluation), config.evaluation.suite)
    for suite in SUITES:
        for step in evaluated_steps(run_dir, suite):
            metrics = read_metrics(evaluation_path(run_dir, step, suite))
            values = {name: metrics.get(name) for name in LEADERBOARD_METRICS}
            state = "best" if (step, suite) == best_evaluation else "done"
            rows.append(LeaderboardRow(run_dir.name, step, suite, state, values))
        given_up = set(given_up_steps(run_dir, suite))
        if given_up:
            failed_steps = given_up.intersection(checkpoint_steps(run_dir))
            rows += [LeaderboardRow(run_dir.name, step, suite, "failed", {}) for step in sorted(failed_steps)]
    return rows


def write_leaderboard(folder: Path, runs: Sequence[tuple[Path, Config]]) -> None:
    """Write both files, each atomically; the curve of a run shows the metric that selects its best checkpoint."""
    rows = collect_rows(runs)
    columns = [name for name in LEADERBOARD_METRICS if any(row.values.get(name) is not None for row in rows)]
    atomic_write(folder / "leaderboard.csv", format_csv(rows, columns).encode(errors="backslashreplace"))
    curves = {}
    for run, config in runs:
        with suppress(Exception):  # `collect_rows` has reported it
            curves[run.name] = metric_curve(run, config)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("launch", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    specs = [METRICS[name] for name in columns]
    html = environment.get_template("leaderboard.html.j2").render(rows=rows, specs=specs, curves=curves)
    atomic_write(folder / "leaderboard.html", html.encode(errors="backslashreplace"))


def format_csv(rows: Sequence[LeaderboardRow], columns: Sequence[str]) -> str:
    """Return the rows as CSV, one line per evaluation."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", "step", "suite", "state", *columns])
    for row in rows:
        values = [row.values.get(name) for name in columns]
        writer.writerow(
            [row.run, row.step, row.suite, row.state, *("" if value is None else value for value in values)]
        )
    return buffer.getvalue()


def metric_curve(run_dir: Path, config: Config) -> dict[str, Any]:
    """Return the selection metric over the steps as the points of a polyline, in pixels.

    The values are from the suite of the schedule, or from another suite if that one has no evaluation.
    """
    name = config.evaluation.selection_metric
    suites = sorted(SUITES, key=lambda suite: suite != config.evaluation.suite)
    suite = next((suite for suite in suites if evaluated_steps(run_dir, suite)), suites[0])
    measured_values = [
        (step, read_metric(evaluation_path(run_dir, step, suite), name)) for step in evaluated_steps(run_dir, suite)
    ]
    points = [(step, value) for step, value in measured_values if value is not None]
    curve_data = {"label": metric_label(name), "points": "", "last": None, "width": CURVE_WIDTH, "height": CURVE_HEIGHT}
    if not points:
        return curve_data
    steps, values = zip(*points, strict=True)
    step_range, value_range = max(steps) - min(steps) or 1, max(values) - min(values) or 1
    pixels = [
        (
            2 + (CURVE_WIDTH - 4) * (step - min(steps)) / step_range,
            CURVE_HEIGHT - 2 - (CURVE_HEIGHT - 4) * (value - min(values)) / value_range,
        )
        for step, value in points
    ]
    polyline = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    return curve_data | {"points": polyline, "end": pixels[-1], "last": values[-1]}
