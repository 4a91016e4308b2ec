"""The learning rate as a function of the step."""


def learning_rate(base: float, step: int, steps: int, decay_steps: int) -> float:
    """Constant, then linear to zero over the last `decay_steps`: the rate used in step `step` (from 0)."""
    if not decay_steps:
        return base
    return base * min(1.0, (steps - step) / decay_steps)
