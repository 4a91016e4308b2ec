"""The learning rate schedule."""


def lr_at_step(base_lr: float, step: int, total_steps: int, lr_decay_steps: int) -> float:
    """Return the learning rate of `step` (from 0): constant, then linear decay to zero over the last steps."""
    if not lr_decay_steps:
        return base_lr
    return base_lr * min(1.0, (total_steps - step) / lr_decay_steps)
