"""Which checkpoints of a run are to be evaluated or kept; imports no torch, so that the launcher starts fast."""

import logging
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from featgan.config.choices import SUITES
from featgan.config.metric_specs import higher_is_better
from featgan.config.schema import EvaluationConfig
from featgan.config.trusted_callables import check_stored_spec
from featgan.run.evaluation_document import read_metrics
from featgan.run.evaluation_options import EvaluationOptions
from featgan.run.paths import checkpoint_steps, evaluated_steps, evaluation_path, list_result_steps, load_run_config
from featgan.system.file_cache import cache_by_version
from featgan.system.json_files import read_side_file

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Number of failed evaluations after which a checkpoint is not evaluated again."""


STORED_CLASSIFIERS = {
    "classifiers": "--blackbox",
    "factor_probe": "--factor-probe",
    "second_classifier": "--second-classifier",
}
"""Fields of the section `evaluation` that contain SPECs => the option that gives the SPEC on the command line."""


def list_specs(config: EvaluationConfig, name: str) -> tuple[str, ...]:
    """Return the SPECs in a field of the section `evaluation`."""
    value = getattr(config, name)
    return (value,) if isinstance(value, str) else tuple(value or ())


def scheduled_steps(steps: Iterable[int], config: EvaluationConfig) -> list[int]:
    """Return the steps to evaluate, ascending: the multiples of `config.every`, and the newest step."""
    ordered = sorted(steps)
    return [step for step in ordered if step == ordered[-1] or (config.every and step % config.every == 0)]


def due_steps(run_dir: Path, config: EvaluationConfig) -> list[int]:
    """Return the scheduled steps that have a checkpoint but no result yet, ascending."""
    done = set(evaluated_steps(run_dir, config.suite))
    return [step for step in scheduled_steps(checkpoint_steps(run_dir), config) if step not in done]


def due_evaluations(run_dir: Path, config: EvaluationConfig) -> list[tuple[int, str]]:
    """Return the (step, suite) pairs to evaluate, in order: the newest steps first, then the best step so far."""
    due: list[tuple[int, str]] = [(step, config.suite) for step in reversed(due_steps(run_dir, config))]
    best, suite = best_step(run_dir, config), config.best_suite
    if suite is None or best not in checkpoint_steps(run_dir) or best in evaluated_steps(run_dir, suite):
        return due
    return [*due, (best, suite)]


def with_default_classifiers(run_dir: Path, options: EvaluationOptions) -> EvaluationOptions:
    """Return the options; classifiers that are not given are taken from the configuration of the run.

    Raises UntrustedCallableError if the configuration names Python code that is not among `options.trusted`.
    """
    has_config = (run_dir / "config.yaml").is_file()
    defaults = load_run_config(run_dir).evaluation if has_config else EvaluationConfig()
    for name, option in STORED_CLASSIFIERS.items():
        if not getattr(options, name):
            for spec in list_specs(defaults, name):
                source = f"{run_dir / 'config.yaml'}: evaluation.{name}"
                check_stored_spec(spec, options.trusted, source, option)
    return replace(
        options,
        classifiers=options.classifiers or defaults.classifiers,
        factor_probe=options.factor_probe or defaults.factor_probe,
        second_classifier=options.second_classifier or defaults.second_classifier,
    )


def best_step(run_dir: Path, config: EvaluationConfig) -> int | None:
    """Return the evaluated step with the best value of `config.selection_metric`, the newest if tied, or None."""
    name = config.selection_metric
    sign = 1 if higher_is_better(name) else -1
    scores = {
        step: read_metric(evaluation_path(run_dir, step, config.suite), name)
        for step in evaluated_steps(run_dir, config.suite)
    }
    finite = {step: sign * score for step, score in scores.items() if score is not None}
    return max(finite, key=lambda step: (finite[step], step)) if finite else None


def read_metric(path: Path, name: str) -> float | None:
    """Return the finite value of a metric in an evaluation file; None if it is missing or cannot be read."""
    return read_metrics(path).get(name)


def count_failures(run_dir: Path, step: int, suite: str) -> int:
    """Return the number of failed evaluations of a step."""
    return len(read_failures(evaluation_path(run_dir, step, suite).with_suffix(".failed")))


@cache_by_version
def read_failures(path: Path) -> list[Any]:
    """Return the failures that a `.failed` file lists; none if it is missing or damaged."""
    failures = (read_side_file(path) or {}).get("failures")
    return failures if isinstance(failures, list) else []


def given_up_steps(run_dir: Path, suite: str) -> list[int]:
    """Return the steps whose evaluation failed MAX_ATTEMPTS times and has no result, ascending."""
    done, failed = evaluated_steps(run_dir, suite), list_result_steps(run_dir, suite, "failed")
    return [step for step in failed if step not in done and count_failures(run_dir, step, suite) >= MAX_ATTEMPTS]


def describe_given_up(run_dir: Path, step: int, suite: str) -> str:
    """Return why an evaluation that failed MAX_ATTEMPTS times is not repeated, and the command that repeats it."""
    reasons = evaluation_path(run_dir, step, suite).with_suffix(".failed")
    return (
        f"the {suite} evaluation of step {step} failed {MAX_ATTEMPTS} times and is not repeated; fix the cause"
        f" (see {reasons}), then run `python -m launch evaluate {shlex.quote(str(run_dir))} --step {step}"
        f" --suite {suite}`, or `featgan evaluate` with the same arguments"
    )


def protected_steps(run_dir: Path, config: EvaluationConfig) -> set[int]:
    """Return the steps whose checkpoints must be kept: the best, those being evaluated, and the pending ones."""
    committed = checkpoint_steps(run_dir)
    claimed = {step for suite in SUITES for step in list_result_steps(run_dir, suite, "claim")}
    protected = {best_step(run_dir, config)} | claimed | set(pending_steps(run_dir, config)[-config.max_pending :])
    return {step for step in committed if step in protected}


def pending_steps(run_dir: Path, config: EvaluationConfig) -> list[int]:
    """Return the multiples of `config.every` that still have to be evaluated, ascending."""
    pending = [step for step in due_steps(run_dir, config) if config.every and step % config.every == 0]
    return [step for step in pending if count_failures(run_dir, step, config.suite) < MAX_ATTEMPTS]


def warn_dropped_checkpoints(run_dir: Path, config: EvaluationConfig, protected: set[int]) -> None:
    """Log a warning that lists the checkpoints that will be removed before they are evaluated."""
    dropped_steps = [step for step in pending_steps(run_dir, config)[: -config.max_pending] if step not in protected]
    if dropped_steps:
        logger.warning(
            f"{run_dir}: more than {config.max_pending} checkpoints wait for evaluation (evaluation.max_pending); "
            f"removing the oldest (steps {', '.join(map(str, dropped_steps))}). "
            "Check that `python -m launch watch` is running."
        )
