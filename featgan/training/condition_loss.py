"""The condition loss L: the discriminator's estimate of the condition against its target, for each condition kind."""

from torch import Tensor
from torch.nn.functional import one_hot

from featgan.data.conditions import Condition
from featgan.networks.discriminator import Judgement
from featgan.training import losses


def condition_losses(condition: Condition, judgement: Judgement, target: Tensor, outputs: Tensor) -> dict[str, Tensor]:
    """L by part: `condition`, D's estimate [N, C] against the target; `prediction`, the outputs read off it."""
    config = condition.config
    if config.kind == "expression":
        return {"condition": losses.class_loss(judgement.condition, target)}
    if config.kind == "attributes":
        return {"condition": losses.attribute_loss(judgement.condition, target)}
    parts = {}
    if config.kind == "valence_arousal" or config.objective in ("actv", "both"):
        parts["condition"] = losses.regression_loss(judgement.condition, target, config.regression, config.reduction)
    if config.kind == "features" and config.objective in ("pred", "both"):
        assert judgement.outputs is not None
        parts["prediction"] = output_loss(condition, judgement.outputs, outputs)
    return parts


def output_loss(condition: Condition, estimate: Tensor, outputs: Tensor) -> Tensor:
    """Loss of the classifier's outputs [N, K]: cross-entropy to the class or attributes it predicts, or regression."""
    if condition.output_kind == "expression":
        return losses.class_loss(estimate, one_hot(outputs.argmax(1), outputs.shape[1]).float())
    if condition.output_kind == "attributes":
        return losses.attribute_loss(estimate, (outputs > 0).float())
    return losses.regression_loss(estimate, outputs, condition.config.regression, condition.config.reduction)
