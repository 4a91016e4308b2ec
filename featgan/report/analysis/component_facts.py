"""What is known about the components besides the images: their effect on the outputs, and their evaluated metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from featgan.features.space import FeatureSpace
from featgan.metrics.bootstrap import Floats, to_float64
from featgan.run.evaluation_document import ComponentRecord


@dataclass(frozen=True)
class ComponentFacts:
    """The feature space, the classifier's linear head if it has one, and the components' evaluated metrics."""

    space: FeatureSpace | None = None
    head_weight: Tensor | None = None  # [O, F]
    output_names: tuple[str, ...] = ()
    evaluated_metrics: Mapping[int, ComponentRecord] = field(default_factory=dict)  # of an evaluation, by index
    num_evaluated_images: int | None = None
    names: Mapping[int, str] = field(default_factory=dict)  # given by the user, by index

    def output_effects(self) -> Floats:
        """Return the change of each output per standard deviation of each component [K, O], by the linear head."""
        assert self.space is not None and self.head_weight is not None
        steps = self.space.scales[:, None] * self.space.components * self.space.std
        return to_float64(steps @ self.head_weight.T)

    def component_metrics(self, component: int) -> dict[str, float]:
        """Return the evaluated metrics of a component that are present: slope, cross-talk and others."""
        entry = self.evaluated_metrics.get(component)
        if entry is None:
            return {}
        cross_talk = None if entry.dominance is None else 1 - entry.dominance
        metrics = {
            "slope": entry.slope,
            "monotonicity": entry.monotonicity,
            "linearity": entry.linearity,
            "cross-talk": cross_talk,
        }
        return {name: value for name, value in metrics.items() if value is not None}
