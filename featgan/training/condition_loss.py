"""The condition loss: compares the discriminator's estimate of the condition with its target, by condition kind."""

from torch import Tensor
from torch.nn.functional import one_hot

from featgan.data.conditions import Condition
from featgan.networks.discriminator import DiscriminatorOutput
from featgan.training import losses


def compute_condition_terms(
    condition: Condition, discriminator_output: DiscriminatorOutput, target: Tensor, outputs: Tensor
) -> dict[str, Tensor]:
    """Return the unweighted terms of the condition loss.

    `condition` compares D's estimate [N, C] with `target` [N, C]. `output` compares the classifier outputs that D
    computes from its estimate, [N, O], with `outputs` [N, O].
    """
    config = condition.config
    if config.kind == "expression":
        return {"condition": losses.class_loss(discriminator_output.condition_estimate, target)}
    if config.kind == "attributes":
        return {"condition": losses.attribute_loss(discriminator_output.condition_estimate, target)}
    terms = {}
    if config.kind == "valence_arousal" or config.loss_on in ("features", "both"):
        terms["condition"] = losses.regression_loss(
            discriminator_output.condition_estimate, target, config.regression_loss, config.ccc_reduction
        )
    if config.kind == "features" and config.loss_on in ("outputs", "both"):
        assert discriminator_output.output_estimate is not None
        terms["output"] = output_loss(condition, discriminator_output.output_estimate, outputs)
    return terms


def output_loss(condition: Condition, estimate: Tensor, outputs: Tensor) -> Tensor:
    """Compare estimated classifier outputs [N, O] with the classifier's own outputs [N, O].

    The loss is the cross-entropy with the predicted class or attributes, or the regression loss of real values.
    """
    if condition.task == "expression":
        return losses.class_loss(estimate, one_hot(outputs.argmax(1), outputs.shape[1]).float())
    if condition.task == "attributes":
        return losses.attribute_loss(estimate, (outputs > 0).float())
    return losses.regression_loss(estimate, outputs, condition.config.regression_loss, condition.config.ccc_reduction)
