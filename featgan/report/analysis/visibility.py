"""What a sweep changes in the picture: how much, how coarsely, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.metrics.preservation import coarse_share
from featgan.report.edits.rendering import Rendering

PATCHES = 8
"""A patch is this share of the picture's width: small enough for an eye or a mouth, too large for texture."""
CLEAR, FAINT = 0.15, 0.05
"""Changes of a patch, as shares of the range, from which a person sees it at once, or when looking for it; judged by
eye on drawn faces, both ends side by side."""
MOST_WEIGHED = 4
"""Sources whose changes are taken apart into frequencies."""
MAINLY = 0.5
"""The part of the whole change that the places named hold together."""
MOST_PLACES = 3
TINT = 0.03
"""Change of the whole picture's brightness, as a share of the range, that is worth a remark."""

ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
WHOLE_COLUMNS = ("left third", "middle from top to bottom", "right third")


@dataclass(frozen=True)
class Change:
    """The change from the first to the last frame of N sources, as shares of the whole range."""

    signed: Tensor  # [N, 3, S, S]

    @classmethod
    def of(cls, rendering: Rendering) -> "Change":
        first, last = rendering.ends
        return cls((last.short() - first.short()).float() / 255)

    @cached_property
    def patches(self) -> Tensor:
        """The largest change of a patch's colour in each source [N]: what a texture cannot feign, since it cancels."""
        size = max(1, self.signed.shape[-1] // PATCHES)
        means = F.avg_pool2d(self.signed, size, max(1, size // 2))
        return means.abs().mean(1).flatten(1).amax(1)

    @cached_property
    def visible(self) -> float:
        """The median over sources of the largest change of a patch."""
        return float(np.median(self.patches.numpy()))

    @property
    def grade(self) -> str:
        """`clear`, `faint` or `none`."""
        return "clear" if self.visible >= CLEAR else "faint" if self.visible >= FAINT else "none"

    @cached_property
    def coarse(self) -> float:
        """Share of the change's energy below a quarter of the Nyquist frequency; 0 where nothing changes."""
        shares = coarse_share(self.signed[:MOST_WEIGHED])
        return float(shares[shares.isfinite()].mean()) if bool(shares.isfinite().any()) else 0.0

    @cached_property
    def where(self) -> Tensor:
        """Mean size of the change of each pixel over sources and colours [S, S]."""
        return self.signed.abs().mean((0, 1))

    @cached_property
    def tint(self) -> float:
        """Mean change of brightness of the whole picture."""
        return float(self.signed.mean())

    @property
    def place(self) -> str:
        """Where the change lies, in words; by its energy, so that a little everywhere does not hide its peak."""
        shares = F.adaptive_avg_pool2d(self.where.square()[None], 3)[0].flatten()
        order = shares.argsort(descending=True)
        total = float(shares.sum()) or 1.0
        held = torch.cumsum(shares[order], 0) / total
        count = int((held < MAINLY).sum()) + 1
        if count > MOST_PLACES:
            return "all over"
        return "mostly in the " + name_places([divmod(int(index), 3) for index in order[:count]])


def name_places(places: Sequence[tuple[int, int]]) -> str:
    """Cells of a 3 x 3 grid (row, column) in words, whole rows and columns as such."""
    rows, columns = ({place[axis] for place in places} for axis in (0, 1))
    if len(places) == 3 and len(rows) == 1:
        return f"{ROWS[rows.pop()]} third"
    if len(places) == 3 and len(columns) == 1:
        return WHOLE_COLUMNS[columns.pop()]
    names = [name_place(*place) for place in sorted(places)]
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def name_place(row: int, column: int) -> str:
    """One cell: `centre`, `lower centre`, `middle left`."""
    return "centre" if (row, column) == (1, 1) else f"{ROWS[row]} {COLUMNS[column]}"


def typical_source(changes: Sequence[Change], lost: Tensor | None = None, reached: Sequence[int] | None = None) -> int:
    """The source whose pictures change as much as the median one's, of those that are kept and that obey.

    Over all components alike. Those that get fewer of the answers asked for than the median source are left out
    (`reached` [N]), then the half that repainting alone takes farther from themselves (`lost` [N]), where either is
    known.
    """
    sizes = torch.stack([change.patches / max(change.visible, 1e-6) for change in changes]).mean(0)
    kept = torch.arange(len(sizes))
    if reached is not None:
        counts = torch.tensor(reached)
        kept = kept[counts >= counts.median()]
    if lost is not None:
        kept = kept[lost[kept].argsort()[: (len(kept) + 1) // 2]]
    return int(kept[sizes[kept].argsort()[(len(kept) - 1) // 2]])
