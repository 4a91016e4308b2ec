"""leaderboard.csv and leaderboard.html: every run's evaluations side by side, with a curve for each."""

import csv
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from featgan.config.schema import Config
from featgan.run.paths import SUITES, committed_steps, evaluated_steps, evaluation_path
from featgan.run.schedule import MOST_ATTEMPTS, best_step, failures, measured

COLUMNS = ("shift_aggregate", "ccc", "label_agreement", "flip_success", "valence_ccc", "attribute_agreement",
           "retrieval_top1", "monotonicity", "diagonal_dominance", "frechet_edited", "self_l1")  # fmt: skip
"""Measures shown, where a run has them."""

CURVE_WIDTH, CURVE_HEIGHT = 160, 36


@dataclass(frozen=True)
class Row:
    """One evaluation of a run, or one that failed."""

    run: str
    step: int
    suite: str
    state: str  # done, best or failed
    values: dict[str, float | None]


def collect(runs: Sequence[tuple[Path, Config]]) -> list[Row]:
    """Every evaluation, run by run, step by step; a run that cannot be read is left out."""
    rows = []
    for run, config in runs:
        with suppress(OSError):
            rows += rows_of(run, config)
    return rows


def rows_of(run: Path, config: Config) -> list[Row]:
    """A run's evaluations by suite and step, each suite's failures after them."""
    rows, best = [], (best_step(run, config.evaluation), config.evaluation.suite)
    for suite in SUITES:
        for step in evaluated_steps(run, suite):
            path = evaluation_path(run, step, suite)
            values = {name: measured(path, name) for name in COLUMNS}
            rows.append(Row(run.name, step, suite, "best" if (step, suite) == best else "done", values))
        for step in committed_steps(run):
            if failures(run, step, suite) >= MOST_ATTEMPTS and step not in evaluated_steps(run, suite):
                rows.append(Row(run.name, step, suite, "failed", {}))
    return rows


def write_leaderboard(folder: Path, runs: Sequence[tuple[Path, Config]]) -> None:
    """Both files, each whole or as it was; a run's curve is of the measure that marks its best checkpoint."""
    rows = collect(runs)
    shown = [name for name in COLUMNS if any(row.values.get(name) is not None for row in rows)]
    replace(folder / "leaderboard.csv", as_csv(rows, shown))
    curves = {}
    for run, config in runs:
        with suppress(OSError):
            curves[run.name] = curve(run, config)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("leaderboard.html.j2").render(rows=rows, columns=shown, curves=curves)
    replace(folder / "leaderboard.html", page)


def as_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A line an evaluation."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "step", "suite", "state", *columns])
    for row in rows:
        values = [row.values.get(name) for name in columns]
        writer.writerow(
            [row.run, row.step, row.suite, row.state, *("" if value is None else value for value in values)]
        )
    return out.getvalue()


def curve(run: Path, config: Config) -> dict[str, Any]:
    """A small line's points over the steps, in pixels, with what it shows; of the schedule's suite, or the other."""
    name = config.evaluation.best.removeprefix("-")
    suites = sorted(SUITES, key=lambda suite: suite != config.evaluation.suite)
    suite = next((suite for suite in suites if evaluated_steps(run, suite)), suites[0])
    found = [(step, measured(evaluation_path(run, step, suite), name)) for step in evaluated_steps(run, suite)]
    points = [(step, value) for step, value in found if value is not None]
    shown = {"name": name, "points": "", "last": None, "width": CURVE_WIDTH, "height": CURVE_HEIGHT}
    if not points:
        return shown
    steps, values = zip(*points, strict=True)
    wide, high = max(steps) - min(steps) or 1, max(values) - min(values) or 1
    placed = [
        (
            2 + (CURVE_WIDTH - 4) * (step - min(steps)) / wide,
            CURVE_HEIGHT - 2 - (CURVE_HEIGHT - 4) * (value - min(values)) / high,
        )
        for step, value in points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    return shown | {"points": line, "end": placed[-1], "last": values[-1]}


def replace(path: Path, text: str) -> None:
    """Another watch may write at the same time: each writes a file of its own first."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
