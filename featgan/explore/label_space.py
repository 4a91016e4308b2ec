"""What can be asked of a run on labels: classes, valence and arousal, attributes, for one data set or two."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from featgan.config.loading import read_yaml, validate
from featgan.data.conditions import ConditionLayout
from featgan.errors import UserError
from featgan.inference.model import Model
from featgan.inference.training_data import label_layout

PLAIN = "neutral"
"""The class that a picture of unknown expression starts from, where there is one of this name."""


@dataclass(frozen=True)
class LabelSpace:
    """The labels of one data set, C of them."""

    kind: str
    names: tuple[str, ...]
    dataset: int
    layout: ConditionLayout

    def plain(self) -> Tensor:
        """Where a picture starts whose own labels are unknown [1, C]: neutral or the first class, else zeros."""
        values = torch.zeros(1, len(self.names))
        if self.kind == "expression":
            values[0, self.names.index(PLAIN) if PLAIN in self.names else 0] = 1
        return values

    def check(self, labels: Sequence[float]) -> Tensor:
        """The labels as values [1, C]; UserError when they are not as many as the run has."""
        if len(labels) != len(self.names):
            raise UserError(f"labels: {len(labels)} numbers where the run has {len(self.names)}")
        return torch.tensor([list(labels)])

    def embed(self, values: Tensor) -> Tensor:
        """[N, C] => what G takes."""
        return self.layout.embed(values, self.dataset)


def label_spaces(run: Path, model: Model) -> tuple[LabelSpace, ...]:
    """The spaces of a run's data sets, the second one's kind as its configuration tells."""
    layout = label_layout(model)
    first = layout.dims[0]
    spaces = [LabelSpace(model.condition_kind, model.card.names[:first], 0, layout)]
    if len(layout.dims) > 1:
        path = run / "config.yaml"
        second = validate(read_yaml(path), str(path)).second_dataset
        if second is not None:
            spaces.append(LabelSpace(second.condition.kind, model.card.names[first:], 1, layout))
    return tuple(spaces)
