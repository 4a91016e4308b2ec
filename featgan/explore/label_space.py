"""The label space of a label-conditioned run: classes, valence and arousal, or attributes of each data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from featgan.data.conditions import ConditionLayout
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.inference.model import EditingModel
from featgan.inference.training_data import find_untrained_in, label_layout, untrained_classes
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
    untrained: tuple[str, ...] = ()
    """Classes without training images; no edit leads toward them."""

    def default_values(self) -> Tensor:
        """Return the labels [1, C] of an image with unknown labels: neutral or the first class, otherwise zeros."""
        values = torch.zeros(1, len(self.names))
        if self.kind == "expression":
            usable = [name for name in self.names if name not in self.untrained] or list(self.names)
            values[0, self.names.index(DEFAULT_EXPRESSION if DEFAULT_EXPRESSION in usable else usable[0])] = 1
        return values

    def validate_labels(self, labels: Sequence[float]) -> Tensor:
        """Return the labels as a tensor [1, C].

        Raises UserError if their number differs from C, or if the class has no training images.
        """
        if len(labels) != len(self.names):
            raise UserError(f"labels: expected {len(self.names)} values, got {len(labels)}")
        for name, value in zip(self.names, labels, strict=True):
            if value > 0 and name in self.untrained:
                raise UserError(f"labels: no edits toward {name}, because no training image has this class")
        return torch.tensor([list(labels)])

    def embed(self, values: Tensor) -> Tensor:
        """Return the generator's condition input for labels [N, C]."""
        return self.layout.embed(values, self.dataset)


def load_label_spaces(run_dir: Path, model: EditingModel, shards: ShardSet | None = None) -> tuple[LabelSpace, ...]:
    """Return the label space of each data set of a run; config.yaml names the kind of the second one."""
    layout = label_layout(model)
    first_dim = layout.dims[0]
    kind = model.metadata.condition_kind
    untrained = untrained_classes(shards) if shards is not None and kind == "expression" else ()
    spaces = [LabelSpace(kind, model.metadata.names[:first_dim], 0, layout, untrained)]
    if len(layout.dims) > 1:
        second_dataset = load_run_config(run_dir).second_dataset
        if second_dataset is not None:
            kind = second_dataset.condition.kind
            untrained = find_untrained_in(second_dataset) if kind == "expression" else ()
            spaces.append(LabelSpace(kind, model.metadata.names[first_dim:], 1, layout, untrained))
    return tuple(spaces)
