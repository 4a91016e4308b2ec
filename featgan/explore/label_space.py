"""The label space of a label-conditioned run: classes, valence and arousal, or attributes of each data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from featgan.data.conditions import ConditionLayout
from featgan.errors import UserError
from featgan.inference.model import EditingModel
from featgan.inference.training_data import label_layout
from featgan.run.paths import load_run_config

DEFAULT_EXPRESSION = "neutral"
"""Default class of an image with an unknown expression, if the data set has a class with this name."""


@dataclass(frozen=True)
class LabelSpace:
    """The C labels of one data set."""

    kind: str
    names: tuple[str, ...]
    dataset: int
    layout: ConditionLayout

    def default_values(self) -> Tensor:
        """Return the labels [1, C] of an image with unknown labels: neutral or the first class, otherwise zeros."""
        values = torch.zeros(1, len(self.names))
        if self.kind == "expression":
            values[0, self.names.index(DEFAULT_EXPRESSION) if DEFAULT_EXPRESSION in self.names else 0] = 1
        return values

    def validate_labels(self, labels: Sequence[float]) -> Tensor:
        """Return the labels as a tensor [1, C].

        Raises UserError if their number differs from C.
        """
        if len(labels) != len(self.names):
            raise UserError(f"labels: expected {len(self.names)} values, got {len(labels)}")
        return torch.tensor([list(labels)])

    def embed(self, values: Tensor) -> Tensor:
        """Return the generator's condition input for labels [N, C]."""
        return self.layout.embed(values, self.dataset)


def load_label_spaces(run_dir: Path, model: EditingModel) -> tuple[LabelSpace, ...]:
    """Return the label space of each data set of a run; config.yaml names the kind of the second one."""
    layout = label_layout(model)
    first_dim = layout.dims[0]
    spaces = [LabelSpace(model.metadata.condition_kind, model.metadata.names[:first_dim], 0, layout)]
    if len(layout.dims) > 1:
        second_dataset = load_run_config(run_dir).second_dataset
        if second_dataset is not None:
            spaces.append(LabelSpace(second_dataset.condition.kind, model.metadata.names[first_dim:], 1, layout))
    return tuple(spaces)
