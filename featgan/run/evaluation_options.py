"""Options of an evaluation. This module imports no torch, so that the launcher starts fast."""

from dataclasses import dataclass
from pathlib import Path

from featgan.config.trusted_callables import NO_CALLABLES, TrustedCallables


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation, apart from the checkpoint and the suite."""

    classifiers: tuple[str, ...] = ()
    """SPECs of the classifier or of the evaluation classifiers; empty uses those of the run."""
    factor_probe: str | None = None
    second_classifier: str | None = None
    inception: Path | None = None
    lpips: Path | None = None
    max_pairs: int | None = None
    num_components: int = 10
    trusted: TrustedCallables = NO_CALLABLES
    """The callables that may be imported as classifiers."""
