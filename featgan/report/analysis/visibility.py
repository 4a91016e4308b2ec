"""Measure what a sweep changes in the images: the size, the frequencies and the location of the change."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.metrics.preservation import low_frequency_share
from featgan.report.edits.rendering import RenderedSweep
from featgan.report.sentences import GRID_CELLS, GRID_COLUMNS, GRID_ROWS, LOCATIONS

PATCHES_PER_SIDE = 8
"""Number of patches per side: a patch is small enough for an eye or a mouth, and too large for texture."""
CLEAR_CHANGE, FAINT_CHANGE = 0.15, 0.05
"""Changes of a patch, as shares of the range, that are clearly or faintly visible; determined by eye on synthetic
faces, with both ends of the sweep side by side."""
MAX_FREQUENCY_SOURCES = 4
"""Number of sources whose changes are split into frequencies."""
MAIN_ENERGY_SHARE = 0.5
"""Share of the energy of the change that the named locations must cover."""
MAX_LOCATIONS = 3
"""Maximum number of grid cells that are named; LOCATIONS has a template for each number."""
MIN_BRIGHTNESS_CHANGE = 0.03
"""Change of the mean brightness, as a share of the range, that the report mentions."""


@dataclass(frozen=True)
class PixelChange:
    """The change from the first to the last frame of N sources, as shares of the range."""

    signed_difference: Tensor  # [N, 3, S, S]

    @classmethod
    def from_rendering(cls, rendering: RenderedSweep) -> "PixelChange":
        first, last = rendering.end_frames
        return cls((last.short() - first.short()).float() / 255)

    @cached_property
    def patch_changes(self) -> Tensor:
        """The largest change of a patch's mean color in each source [N]; texture averages out within a patch."""
        size = max(1, self.signed_difference.shape[-1] // PATCHES_PER_SIDE)
        means = F.avg_pool2d(self.signed_difference, size, max(1, size // 2))
        return means.abs().mean(1).flatten(1).amax(1)

    @cached_property
    def visibility(self) -> float:
        """The median of `patch_changes` over the sources."""
        return float(np.median(self.patch_changes.numpy()))

    @property
    def visibility_grade(self) -> str:
        """`clear`, `faint` or `none`."""
        return "clear" if self.visibility >= CLEAR_CHANGE else "faint" if self.visibility >= FAINT_CHANGE else "none"

    @cached_property
    def low_frequency_share(self) -> float:
        """Share of the change's energy below a quarter of the Nyquist frequency; 0 if nothing changes."""
        shares = low_frequency_share(self.signed_difference[:MAX_FREQUENCY_SOURCES])
        return float(shares[shares.isfinite()].mean()) if bool(shares.isfinite().any()) else 0.0

    @cached_property
    def location_map(self) -> Tensor:
        """Mean absolute change of each pixel over sources and color channels [S, S]."""
        return self.signed_difference.abs().mean((0, 1))

    @cached_property
    def brightness_change(self) -> float:
        """Change of the mean brightness of the image."""
        return float(self.signed_difference.mean())

    @property
    def location(self) -> str:
        """The location of the change in words: the fewest grid cells with MAIN_ENERGY_SHARE of its energy."""
        shares = F.adaptive_avg_pool2d(self.location_map.square()[None], 3)[0].flatten()
        order = shares.argsort(descending=True)
        total = float(shares.sum()) or 1.0
        cumulative_shares = torch.cumsum(shares[order], 0) / total
        count = int((cumulative_shares < MAIN_ENERGY_SHARE).sum()) + 1
        if count > MAX_LOCATIONS:
            return LOCATIONS[0]
        return describe_grid_cells([divmod(int(index), 3) for index in order[:count]])


def describe_grid_cells(cells: Sequence[tuple[int, int]]) -> str:
    """Describe 1 to MAX_LOCATIONS cells (row, column) of a 3 x 3 grid; complete rows and columns have one name."""
    rows, columns = ({cell[axis] for cell in cells} for axis in (0, 1))
    names = [GRID_CELLS[row][column] for row, column in sorted(cells)]
    if len(cells) == 3 and len(rows) == 1:
        names = [GRID_ROWS[rows.pop()]]
    elif len(cells) == 3 and len(columns) == 1:
        names = [GRID_COLUMNS[columns.pop()]]
    return LOCATIONS[len(names)].format(*names)


def choose_typical_source(
    changes: Sequence[PixelChange],
    reconstruction_errors: Tensor | None = None,
    reached_counts: Sequence[int] | None = None,
) -> int:
    """Return the index of the source with the median change over all components, among well edited sources.

    Sources whose edits reach fewer classes than the median (`reached_counts` [N]) are excluded, then the half with the
    larger reconstruction error (`reconstruction_errors` [N]), if these are known.
    """
    sizes = torch.stack([change.patch_changes / max(change.visibility, 1e-6) for change in changes]).mean(0)
    candidates = torch.arange(len(sizes))
    if reached_counts is not None:
        counts = torch.tensor(reached_counts)
        candidates = candidates[counts >= counts.median()]
    if reconstruction_errors is not None:
        candidates = candidates[reconstruction_errors[candidates].argsort()[: (len(candidates) + 1) // 2]]
    return int(candidates[sizes[candidates].argsort()[(len(candidates) - 1) // 2]])
