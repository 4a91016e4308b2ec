"""Which checkpoints of a run are to be evaluated or kept; imports no torch, so that the launcher starts fast."""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from featgan.config.loading import parse_config, read_yaml
from featgan.config.metric_specs import higher_is_better
from featgan.config.schema import EvaluationConfig
from featgan.run.paths import SUITES, committed_steps, evaluated_steps, evaluation_path, list_result_steps

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Number of failed evaluations after which a checkpoint is not evaluated again."""

MAX_RESULT_BYTES = 16 << 20


def scheduled_steps(steps: Iterable[int], config: EvaluationConfig) -> list[int]:
    """Return the steps to evaluate, ascending: the multiples of `config.every`, and the newest step."""
    ordered = sorted(steps)
    return [step for step in ordered if step == ordered[-1] or (config.every and step % config.every == 0)]


def due_steps(run: Path, config: EvaluationConfig) -> list[int]:
    """Return the scheduled steps that have a checkpoint but no result yet, ascending."""
    done = set(evaluated_steps(run, config.suite))
    return [step for step in scheduled_steps(committed_steps(run), config) if step not in done]


def due_evaluations(run: Path, config: EvaluationConfig) -> list[tuple[int, str]]:
    """Return the (step, suite) pairs to evaluate, in order: the newest steps first, then the best step so far."""
    due: list[tuple[int, str]] = [(step, config.suite) for step in reversed(due_steps(run, config))]
    best, suite = best_step(run, config), config.best_suite
    if suite is None or best not in committed_steps(run) or best in evaluated_steps(run, suite):
        return due
    return [*due, (best, suite)]


def with_default_evaluators(run: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return evaluation options; classifiers that are not given are taken from the configuration of the run."""
    path = run / "config.yaml"
    defaults = parse_config(read_yaml(path), str(path)).evaluation if path.is_file() else EvaluationConfig()
    specified = {name: value for name, value in options.items() if value}
    return {
        **options,
        "classifiers": defaults.classifiers,
        "factor_probe": defaults.factor_probe,
        "second_classifier": defaults.second_classifier,
        **specified,
    }


def best_step(run: Path, config: EvaluationConfig) -> int | None:
    """Return the evaluated step with the best value of `config.selection_metric`, the newest if tied, or None."""
    name = config.selection_metric
    sign = 1 if higher_is_better(name) else -1
    scores = {
        step: read_metric(evaluation_path(run, step, config.suite), name) for step in evaluated_steps(run, config.suite)
    }
    finite = {step: sign * score for step, score in scores.items() if score is not None and math.isfinite(score)}
    return max(finite, key=lambda step: (finite[step], step)) if finite else None


def read_metric(path: Path, name: str) -> float | None:
    """Return the value of a metric in an evaluation file; None if it is missing or cannot be read."""
    try:
        if path.stat().st_size > MAX_RESULT_BYTES:
            return None
        document: Any = json.loads(path.read_text())
        return float(document["metrics"][name]["value"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def count_failures(run: Path, step: int, suite: str) -> int:
    """Return the number of failed evaluations of a step."""
    try:
        document: Any = json.loads(evaluation_path(run, step, suite).with_suffix(".failed").read_text())
        return len(document["failures"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def protected_steps(run: Path, config: EvaluationConfig) -> set[int]:
    """Return the steps whose checkpoints must be kept: the best, those being evaluated, and the pending ones."""
    committed = committed_steps(run)
    claimed = {step for suite in SUITES for step in list_result_steps(run, suite, "claim")}
    protected = {best_step(run, config)} | claimed | set(pending_steps(run, config)[-config.max_pending :])
    return {step for step in committed if step in protected}


def pending_steps(run: Path, config: EvaluationConfig) -> list[int]:
    """Return the multiples of `config.every` that still have to be evaluated, ascending."""
    pending = [step for step in due_steps(run, config) if config.every and step % config.every == 0]
    return [step for step in pending if count_failures(run, step, config.suite) < MAX_ATTEMPTS]


def warn_dropped_checkpoints(run: Path, config: EvaluationConfig, protected: set[int]) -> None:
    """Log a warning that lists the checkpoints that will be removed before they are evaluated."""
    dropped_steps = [step for step in pending_steps(run, config)[: -config.max_pending] if step not in protected]
    if dropped_steps:
        logger.warning(
            f"{run}: more than {config.max_pending} checkpoints wait for evaluation (evaluation.max_pending); removing "
            f"the oldest (steps {', '.join(map(str, dropped_steps))}). Check that `python -m launch watch` is running."
        )
