"""The objective: one scalar loss for the discriminator and one for the generator, composed from losses.py.

Gradient accumulation splits a batch into microbatches. All terms are means over images, so the mean of the microbatch
losses is the batch loss. The only exception is the concordance loss, which is a statistic of the complete batch. It
uses gradient caching (GradCache, Gao et al. 2021). A forward pass without a graph gives D's estimates of the complete
batch, and the gradient of the batch loss with respect to these estimates is cached. Each microbatch then minimizes a
surrogate loss, the inner product of its estimates with their cached gradients. The result is exact and costs one more
forward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from featgan.data.loader import Batch
from featgan.distributed.trainable import LossClosure
from featgan.networks.discriminator import Discriminator, DiscriminatorOutput
from featgan.system.images import to_float
from featgan.training import losses
from featgan.training.condition_loss import compute_condition_terms
from featgan.training.state import TrainState


@dataclass(frozen=True)
class Microbatch:
    """The images of one forward and backward pass, with their embedded source and target conditions."""

    batch: Batch
    x_real: Tensor  # [n, 3, H, W] in [-1, 1]
    source: Tensor  # [n, E], the condition of x_real, embedded by `ConditionLayout.embed`
    target: Tensor  # [n, E], the condition that the edit should reach, embedded in the same way


def split_microbatches(state: TrainState, batch: Batch) -> list[Microbatch]:
    """Split this process's rows of a batch into `distributed.gradient_accumulation_steps` microbatches."""
    microbatches = []
    for rows in batch.split_equally(state.config.distributed.gradient_accumulation_steps):
        source = state.condition_layout.embed(rows.condition, batch.dataset)
        target = state.condition_layout.embed(rows.condition_target, batch.dataset)
        microbatches.append(Microbatch(rows, to_float(rows.images), source, target))
    return microbatches


def generate_fake(state: TrainState, microbatch: Microbatch) -> Tensor:
    """Return G(x, c_target), [n, 3, H, W], with its graph."""
    with state.context.autocast():
        x_fake: Tensor = state.generator.wrapped(
            microbatch.x_real, state.condition_input(microbatch.target, microbatch.source)
        )
    return x_fake


@torch.no_grad()
def generate_fake_no_grad(state: TrainState, microbatch: Microbatch) -> Tensor:
    """Return G(x, c_target), [n, 3, H, W], without a graph."""
    with state.context.autocast():
        x_fake: Tensor = state.generator.module(
            microbatch.x_real, state.condition_input(microbatch.target, microbatch.source)
        )
    return x_fake


def d_warmup_loss_closures(state: TrainState, microbatches: Sequence[Microbatch]) -> list[LossClosure]:
    """Return one function per microbatch; `TrainableNetwork.step` calls it to compute D's warm-up loss."""
    return [
        partial(compute_d_warmup_loss, state, *pair)
        for pair in zip(microbatches, cache_real_gradients(state, microbatches), strict=True)
    ]


def d_loss_closures(
    state: TrainState, step: int, microbatches: Sequence[Microbatch], x_fake: Tensor | None = None
) -> list[LossClosure]:
    """Return one function per microbatch; `TrainableNetwork.step` calls it to compute D's loss.

    `x_fake` is the output of `generate_fake` for the only microbatch. Without it, the images are generated here.
    """
    cached_gradients = cache_real_gradients(state, microbatches)
    return [
        partial(compute_d_loss, state, step, *pair, x_fake) for pair in zip(microbatches, cached_gradients, strict=True)
    ]


def cache_real_gradients(
    state: TrainState, microbatches: Sequence[Microbatch]
) -> "Sequence[CachedConditionGradients | None]":
    """Return the cached gradients of the condition loss of the real images, one for each microbatch."""
    return cache_condition_gradients(
        state, microbatches, lambda microbatch: discriminate_no_grad(state, microbatch.x_real, microbatch.source)
    )


def g_loss_closures(
    state: TrainState, microbatches: Sequence[Microbatch], x_fake: Tensor | None = None
) -> list[LossClosure]:
    """Return one function per microbatch; `TrainableNetwork.step` calls it to compute G's loss.

    D must be frozen during that step.

    `x_fake` is the output of `generate_fake` for the only microbatch. Without it, the images are generated here.
    """
    cached_gradients = cache_condition_gradients(
        state,
        microbatches,
        lambda microbatch: discriminate_no_grad(state, generate_fake_no_grad(state, microbatch), microbatch.target),
        uses_target=True,
    )
    return [partial(compute_g_loss, state, *pair, x_fake) for pair in zip(microbatches, cached_gradients, strict=True)]


def compute_d_warmup_loss(
    state: TrainState, microbatch: Microbatch, cached_gradients: "CachedConditionGradients | None" = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return D's loss during its warm-up, the condition loss of the real images, and its unweighted terms."""
    with state.context.autocast():
        real_output = state.discriminator.wrapped(microbatch.x_real, microbatch.source)
    condition_loss, terms = compute_condition_loss(state, real_output, microbatch.batch, cached_gradients)
    # Zero-weighted, so that every parameter gets a gradient, as DDP requires.
    return condition_loss + 0 * real_output.logits.sum(), terms


def compute_d_loss(
    state: TrainState,
    step: int,
    microbatch: Microbatch,
    cached_gradients: "CachedConditionGradients | None" = None,
    x_fake: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return D's loss of a microbatch (adversarial, condition and gradient penalty) and its unweighted terms."""
    loss_config, discriminator = state.config.losses, state.discriminator
    x_real = microbatch.x_real
    x_fake = generate_fake_no_grad(state, microbatch) if x_fake is None else x_fake.detach()
    # D uses no batch statistics, so one forward pass takes the real and the generated images together.
    with state.context.autocast():
        joint_output = discriminator.wrapped(
            torch.cat([x_real, x_fake]), torch.cat([microbatch.source, microbatch.target])
        )
    num_real = len(x_real)
    real_output = type(joint_output)(*(None if values is None else values[:num_real] for values in joint_output))
    is_wgan = loss_config.adversarial == "wgan_gp"
    adversarial_loss = losses.wgan_d_loss if is_wgan else losses.nonsaturating_d_loss
    terms = {"adversarial": adversarial_loss(real_output.logits, joint_output.logits[num_real:])}
    condition_loss, condition_terms = compute_condition_loss(state, real_output, microbatch.batch, cached_gradients)
    d_loss = terms["adversarial"] + condition_loss
    if is_wgan:
        x_hat = losses.interpolate_for_gp(x_real, x_fake, microbatch.batch.alpha)
        x_hat_gradient = discriminator_input_gradient(state, x_hat, microbatch.target)
        terms["gradient_penalty"] = losses.gradient_penalty(x_hat_gradient)
        d_loss = d_loss + loss_config.gp_weight * terms["gradient_penalty"]
    elif is_r1_step(state, step):
        terms["r1_penalty"] = losses.r1_penalty(discriminator_input_gradient(state, x_real, microbatch.source))
        d_loss = d_loss + loss_config.r1_interval * (loss_config.r1_gamma / 2) * terms["r1_penalty"]
    return d_loss, terms | condition_terms


def is_r1_step(state: TrainState, step: int) -> bool:
    """Return whether D's loss includes R1 in this step: once in `r1_interval` steps of each data set."""
    return step // len(state.conditions) % state.config.losses.r1_interval == 0


def discriminator_input_gradient(state: TrainState, images: Tensor, condition: Tensor) -> Tensor:
    """Return D's input gradient [n, 3, H, W].

    Uses the unwrapped module, because this is not a call of `forward`. DDP reduces these gradients too, since its hooks
    are on the parameters.
    """
    discriminator = cast(Discriminator, state.discriminator.module)
    with state.context.autocast():
        return discriminator.input_gradient(images, condition)


def compute_g_loss(
    state: TrainState,
    microbatch: Microbatch,
    cached_gradients: "CachedConditionGradients | None" = None,
    x_fake: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return G's loss of a microbatch (adversarial, condition, cycle and identity) and its unweighted terms."""
    loss_config, generator = state.config.losses, state.generator.wrapped
    if x_fake is None:
        x_fake = generate_fake(state, microbatch)
    with state.context.autocast():
        fake_output = state.discriminator.module(x_fake, microbatch.target)
        x_cycled = generator(x_fake, state.condition_input(microbatch.source, microbatch.target))
    is_wgan = loss_config.adversarial == "wgan_gp"
    adversarial_loss = losses.wgan_g_loss if is_wgan else losses.nonsaturating_g_loss
    condition_loss, condition_terms = compute_condition_loss(
        state, fake_output, microbatch.batch, cached_gradients, uses_target=True
    )
    terms = {
        "adversarial": adversarial_loss(fake_output.logits),
        "cycle": losses.cycle_loss(microbatch.x_real, x_cycled),
    }
    g_loss = terms["adversarial"] + condition_loss + loss_config.cycle_weight * terms["cycle"]
    if loss_config.identity_weight:
        with state.context.autocast():
            x_identity = generator(microbatch.x_real, state.condition_input(microbatch.source, microbatch.source))
        terms["identity"] = losses.identity_loss(microbatch.x_real, x_identity, loss_config.identity_margin)
        g_loss = g_loss + loss_config.identity_weight * terms["identity"]
    return g_loss, terms | condition_terms


@dataclass(frozen=True)
class CachedConditionGradients:
    """The weighted condition loss of the complete batch, its terms, and its gradients for one microbatch.

    The gradients are multiplied by the number of microbatches, since the losses of the microbatches are averaged.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    condition_gradient: Tensor  # [n, C], with respect to D's estimate of the condition
    output_gradient: Tensor | None  # [n, O], with respect to D's estimate of the classifier outputs


def compute_condition_loss(
    state: TrainState,
    discriminator_output: DiscriminatorOutput,
    batch: Batch,
    cached_gradients: CachedConditionGradients | None = None,
    uses_target: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted condition loss of the batch's data set and its unweighted terms.

    With `cached_gradients`, the value is the loss of the complete batch and the gradient is that of the surrogate loss.
    `uses_target` compares D's estimate with the target condition instead of the source condition.
    """
    loss_config = state.config.losses
    columns = state.condition_layout.estimate_columns(batch.dataset)
    dataset_output = discriminator_output._replace(
        condition_estimate=discriminator_output.condition_estimate[:, columns]
    )
    if cached_gradients is not None:
        surrogate = (dataset_output.condition_estimate * cached_gradients.condition_gradient).sum()
        if dataset_output.output_estimate is not None and cached_gradients.output_gradient is not None:
            surrogate = surrogate + (dataset_output.output_estimate * cached_gradients.output_gradient).sum()
        return cached_gradients.loss + surrogate - surrogate.detach(), cached_gradients.terms
    target = batch.condition_target if uses_target else batch.condition
    condition, outputs = state.conditions[batch.dataset], batch.outputs_target if uses_target else batch.outputs
    terms = compute_condition_terms(condition, dataset_output, target, outputs)
    term_weights = {"condition": loss_config.condition_weight, "output": loss_config.output_weight}
    return torch.stack([term_weights[name] * value for name, value in terms.items()]).sum(), terms


def cache_condition_gradients(
    state: TrainState,
    microbatches: Sequence[Microbatch],
    discriminate: Callable[[Microbatch], DiscriminatorOutput],
    uses_target: bool = False,
) -> Sequence[CachedConditionGradients | None]:
    """Return the cached gradients for each microbatch; `discriminate` runs D without a graph.

    The values are None if there is one microbatch only, or if the condition loss is a mean over images.
    """
    batches = [microbatch.batch for microbatch in microbatches]
    if len(microbatches) == 1 or not state.conditions[batches[0].dataset].is_batch_statistic:
        return [None] * len(microbatches)
    columns = state.condition_layout.estimate_columns(batches[0].dataset)
    microbatch_outputs = [discriminate(microbatch) for microbatch in microbatches]
    estimate = torch.cat(
        [microbatch_output.condition_estimate for microbatch_output in microbatch_outputs]
    ).requires_grad_()
    output_estimates = [output.output_estimate for output in microbatch_outputs if output.output_estimate is not None]
    outputs = torch.cat(output_estimates).requires_grad_() if output_estimates else None
    batch_output = DiscriminatorOutput(microbatch_outputs[0].logits, estimate, outputs)
    loss, terms = compute_condition_loss(state, batch_output, Batch.concatenate(batches), uses_target=uses_target)
    inputs = [estimate] if outputs is None else [estimate, outputs]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    scaled_gradients = [
        None if gradient is None else (gradient * len(microbatches)).chunk(len(microbatches)) for gradient in gradients
    ]
    detached_terms = {name: value.detach() for name, value in terms.items()}
    zeros = torch.zeros_like(estimate).chunk(len(microbatches))
    condition_gradients = scaled_gradients[0] or zeros
    output_gradients = (
        scaled_gradients[1]
        if len(scaled_gradients) > 1 and scaled_gradients[1] is not None
        else [None] * len(microbatches)
    )
    return [
        CachedConditionGradients(loss.detach(), detached_terms, condition_gradient[:, columns], output_gradient)
        for condition_gradient, output_gradient in zip(condition_gradients, output_gradients, strict=True)
    ]


@torch.no_grad()
def discriminate_no_grad(state: TrainState, images: Tensor, condition: Tensor) -> DiscriminatorOutput:
    """Return D's output for [n, 3, H, W] images, without a graph."""
    with state.context.autocast():
        discriminator_output: DiscriminatorOutput = state.discriminator.module(images, condition)
    return discriminator_output
