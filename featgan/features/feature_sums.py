"""Sums over feature vectors, which give the covariance of any number of rows in one pass and bounded memory."""

import torch
from torch import Tensor

BLOCK_ROWS = 4096
"""Rows that are converted to float64 at once."""


class FeatureSums:
    """The count, sum and products of rows [n, F] in float64, with the minimum and maximum of each feature.

    `shift` is subtracted from each row first, so that a large mean does not cancel digits of the covariance. If it is
    one of the rows, the sums of a constant feature are exactly 0.
    """

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift.double()
        num_features = len(self.shift)
        self.count = 0
        self.sum = self.shift.new_zeros(num_features)  # [F]
        self.products = self.shift.new_zeros(num_features, num_features)  # [F, F]
        self.minimum = torch.full_like(self.shift, torch.inf)
        self.maximum = torch.full_like(self.shift, -torch.inf)

    def add(self, rows: Tensor) -> None:
        """Add rows [n, F]. Raises ValueError if a value is not finite."""
        for block in rows.split(BLOCK_ROWS):
            if not len(block):
                continue
            if not block.isfinite().all():
                raise ValueError("features that are not finite")
            smallest, largest = block.aminmax(dim=0)
            self.minimum = torch.minimum(self.minimum, smallest.double())
            self.maximum = torch.maximum(self.maximum, largest.double())
            centered = block.double() - self.shift
            self.count += len(block)
            self.sum += centered.sum(0)
            self.products.addmm_(centered.T, centered)

    def merge(self, other: "FeatureSums") -> None:
        """Add the rows of `other`, which may have another shift."""
        offset = other.shift - self.shift
        self.products += other.products
        if offset.any():
            self.products.addr_(other.sum, offset).addr_(offset, other.sum).addr_(offset, offset, alpha=other.count)
        self.sum += other.sum + other.count * offset
        self.count += other.count
        self.minimum = torch.minimum(self.minimum, other.minimum)
        self.maximum = torch.maximum(self.maximum, other.maximum)

    @property
    def mean(self) -> Tensor:
        """The mean of the rows [F]."""
        return self.shift + self.sum / self.count

    @property
    def is_constant(self) -> bool:
        """Whether all rows are equal."""
        return bool((self.minimum == self.maximum).all())

    def covariance(self) -> Tensor:
        """Return the covariance [F, F] of the rows, divided by their number."""
        mean = self.sum / self.count
        return (self.products / self.count).addr_(mean, mean, alpha=-1)
