"""What lies in a run's folder and which of its checkpoints must be evaluated or kept; light, for launchers too."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from featgan.config.loading import read_yaml, validate
from featgan.config.schema import EvaluationConfig
from featgan.run.paths import SUITES, committed_steps, evaluated_steps, evaluation_path, steps_with
from featgan.system.progress import console

MOST_ATTEMPTS = 3
"""Evaluations of a checkpoint that may break before it is given up."""

MOST_BYTES = 16 << 20


def scheduled_steps(steps: Iterable[int], config: EvaluationConfig) -> list[int]:
    """Of committed steps, those to evaluate: every multiple of `every`, and the newest."""
    ordered = sorted(steps)
    return [step for step in ordered if step == ordered[-1] or (config.every and step % config.every == 0)]


def due_steps(run: Path, config: EvaluationConfig) -> list[int]:
    """Committed steps that the schedule names and that have no result yet, ascending."""
    done = set(evaluated_steps(run, config.suite))
    return [step for step in scheduled_steps(committed_steps(run), config) if step not in done]


def due_evaluations(run: Path, config: EvaluationConfig) -> list[tuple[int, str]]:
    """Steps and suites that are due, in the order of their worth: the newest first, then the best so far."""
    due: list[tuple[int, str]] = [(step, config.suite) for step in reversed(due_steps(run, config))]
    best, suite = best_step(run, config), config.best_suite
    if suite is None or best not in committed_steps(run) or best in evaluated_steps(run, suite):
        return due
    return [*due, (best, suite)]


def with_judges(run: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an evaluation; judges and probe, where none is named, are those of the run's configuration."""
    path = run / "config.yaml"
    own = validate(read_yaml(path), str(path)).evaluation if path.is_file() else EvaluationConfig()
    named = {name: value for name, value in options.items() if value}
    return {**options, "blackboxes": own.blackboxes, "probe": own.probe, "witness": own.witness, **named}


def best_step(run: Path, config: EvaluationConfig) -> int | None:
    """The evaluated step whose `best` measure is largest (smallest where it is written with a minus), if any."""
    name, sign = config.best.removeprefix("-"), -1 if config.best.startswith("-") else 1
    scores = {
        step: measured(evaluation_path(run, step, config.suite), name) for step in evaluated_steps(run, config.suite)
    }
    finite = {step: sign * score for step, score in scores.items() if score is not None and math.isfinite(score)}
    return max(finite, key=lambda step: (finite[step], step)) if finite else None


def measured(path: Path, name: str) -> float | None:
    """One measure of an evaluation; None where it has none, or cannot be read."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        document: Any = json.loads(path.read_text())
        return float(document["measures"][name]["value"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def failures(run: Path, step: int, suite: str) -> int:
    """Evaluations of a step that broke."""
    try:
        found: Any = json.loads(evaluation_path(run, step, suite).with_suffix(".failed").read_text())
        return len(found["failures"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def protected_steps(run: Path, config: EvaluationConfig) -> set[int]:
    """Checkpoints that retention must leave: the best, those being evaluated, those that still wait for it."""
    committed = committed_steps(run)
    claimed = {step for suite in SUITES for step in steps_with(run, suite, "claim")}
    kept = {best_step(run, config)} | claimed | set(waiting_steps(run, config)[-config.most_waiting :])
    return {step for step in committed if step in kept}


def waiting_steps(run: Path, config: EvaluationConfig) -> list[int]:
    """Steps at multiples of `every` that wait for their evaluation, ascending."""
    waiting = [step for step in due_steps(run, config) if config.every and step % config.every == 0]
    return [step for step in waiting if failures(run, step, config.suite) < MOST_ATTEMPTS]


def warn_of_given_up(run: Path, config: EvaluationConfig, protected: set[int]) -> None:
    """Say which checkpoints will go although nobody has evaluated them."""
    given_up = [step for step in waiting_steps(run, config)[: -config.most_waiting] if step not in protected]
    if given_up:
        console.print(
            f"{run}: more than {config.most_waiting} checkpoints wait for their evaluation, so the oldest are given up "
            f"(steps {', '.join(map(str, given_up))}); is `python -m launch watch` running? (evaluation.most_waiting)",
            style="yellow",
            markup=False,
        )
