"""Values that several packages choose from. This module imports nothing else, so that `featgan --help` starts fast."""

from typing import Literal, get_args

FittedTask = Literal["expression", "valence_arousal", "attributes", "factors"]
"""What a classifier of `featgan blackbox fit` predicts; `factors` is available for synthetic faces only."""

Task = Literal[FittedTask, "other"]
"""What a classifier predicts: a class, two numbers, attributes, the factors of synthetic faces, or anything else."""

Suite = Literal["quick", "standard", "full"]
"""How many images an evaluation uses."""

FITTED_TASKS: tuple[str, ...] = get_args(FittedTask)
TASKS: tuple[str, ...] = get_args(Task)
EXTERNAL_TASKS = tuple(task for task in TASKS if task != "factors")
"""Tasks that the user can give for an external classifier."""

SUITES: tuple[str, ...] = get_args(Suite)
