"""Reference implementation of the training step: tests and `featgan bench step` compare the fast step with it.

It follows the equations of docs/method.md one by one, in fp32. It builds the condition planes, repeats the pixels,
runs D three times, differentiates twice for the penalty, and shares nothing between the updates of D and G.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featgan.data.loader import Batch
from featgan.networks.conditioning import AdaptiveInstanceNorm, concat_planes, tile_plane
from featgan.networks.discriminator import LEAKY_RELU_SLOPE, Discriminator, DiscriminatorOutput
from featgan.networks.generator import Generator, ResidualBlock, UpsampleConv
from featgan.system.images import to_float
from featgan.training import losses
from featgan.training.objective import compute_condition_loss, is_r1_step
from featgan.training.state import TrainState

LossTerms = dict[str, Tensor]


def reference_d_warmup_loss(state: TrainState, batch: Batch) -> tuple[Tensor, LossTerms]:
    """Return D's warm-up loss and its terms: the condition loss of the real images."""
    _, discriminator = unwrapped_networks(state)
    source, _ = source_and_target(state, batch)
    return compute_condition_loss(state, reference_discriminate(discriminator, to_float(batch.images), source), batch)


def reference_d_loss(state: TrainState, step: int, batch: Batch) -> tuple[Tensor, LossTerms]:
    """Return D's loss of a step and its unweighted terms."""
    loss_config, (generator, discriminator) = state.config.losses, unwrapped_networks(state)
    x_real, source, target = to_float(batch.images), *source_and_target(state, batch)
    x_fake = reference_generate(generator, x_real, state.condition_input(target, source)).detach()
    real_output = reference_discriminate(discriminator, x_real, source)
    fake_output = reference_discriminate(discriminator, x_fake, target)
    condition_loss, terms = compute_condition_loss(state, real_output, batch)
    if loss_config.adversarial == "wgan_gp":
        terms["adversarial"] = losses.wgan_d_loss(real_output.logits, fake_output.logits)
        x_hat = losses.interpolate_for_gp(x_real, x_fake, batch.alpha)
        terms["gradient_penalty"] = losses.gradient_penalty(reference_input_gradient(discriminator, x_hat, target))
        penalty = loss_config.gp_weight * terms["gradient_penalty"]
    else:
        terms["adversarial"] = losses.nonsaturating_d_loss(real_output.logits, fake_output.logits)
        penalty = torch.zeros(())
        if is_r1_step(state, step):
            terms["r1_penalty"] = losses.r1_penalty(reference_input_gradient(discriminator, x_real, source))
            penalty = loss_config.r1_interval * (loss_config.r1_gamma / 2) * terms["r1_penalty"]
    return terms["adversarial"] + condition_loss + penalty, terms


def reference_g_loss(state: TrainState, batch: Batch) -> tuple[Tensor, LossTerms]:
    """Return G's loss of a step and its unweighted terms."""
    loss_config, (generator, discriminator) = state.config.losses, unwrapped_networks(state)
    x_real, source, target = to_float(batch.images), *source_and_target(state, batch)
    x_fake = reference_generate(generator, x_real, state.condition_input(target, source))
    fake_output = reference_discriminate(discriminator, x_fake, target)
    condition_loss, terms = compute_condition_loss(state, fake_output, batch, uses_target=True)
    is_wgan = loss_config.adversarial == "wgan_gp"
    terms["adversarial"] = (losses.wgan_g_loss if is_wgan else losses.nonsaturating_g_loss)(fake_output.logits)
    x_cycled = reference_generate(generator, x_fake, state.condition_input(source, target))
    terms["cycle"] = losses.cycle_loss(x_real, x_cycled)
    g_loss = terms["adversarial"] + condition_loss + loss_config.cycle_weight * terms["cycle"]
    if loss_config.identity_weight:
        x_identity = reference_generate(generator, x_real, state.condition_input(source, source))
        terms["identity"] = losses.identity_loss(x_real, x_identity, loss_config.identity_margin)
        g_loss = g_loss + loss_config.identity_weight * terms["identity"]
    return g_loss, terms


def unwrapped_networks(state: TrainState) -> tuple[Generator, Discriminator]:
    """Return G and D without their distributed wrappers."""
    return cast(Generator, state.generator.module), cast(Discriminator, state.discriminator.module)


def source_and_target(state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the embedded source and target conditions of the images, [n, E] each."""
    embed = state.condition_layout.embed
    return embed(batch.condition, batch.dataset), embed(batch.condition_target, batch.dataset)


def reference_discriminate(discriminator: Discriminator, images: Tensor, condition: Tensor) -> DiscriminatorOutput:
    """Compute D(x), layer by layer."""
    activations = images
    for layer in discriminator.trunk:
        if isinstance(layer, nn.Conv2d):
            activations = F.conv2d(activations, layer.weight, layer.bias, stride=2, padding=1)
        else:
            activations = F.leaky_relu(activations, LEAKY_RELU_SLOPE)
    return discriminator.apply_heads(activations, condition)


def reference_input_gradient(discriminator: Discriminator, points: Tensor, condition: Tensor) -> Tensor:
    """Compute d sum D(x) / dx, [N, 3, H, W], with a graph for its second derivative."""
    points = points.detach().requires_grad_()
    (gradients,) = torch.autograd.grad(
        reference_discriminate(discriminator, points, condition).logits.sum(), points, create_graph=True
    )
    return gradients


def reference_generate(generator: Generator, images: Tensor, condition: Tensor) -> Tensor:
    """Compute G(x, c), layer by layer."""
    style = generator.mapping(condition) if generator.mapping is not None else None
    activations = images
    if generator.conditioning == "concat":
        activations = concat_planes(images, condition)
    elif generator.conditioning == "tile":
        activations = tile_plane(images, condition, generator.get_buffer("layout"))
    for convolution, norm in zip(generator.encoder, cast_norms(generator.encoder_norms), strict=True):
        activations = F.relu(apply_adain(norm, convolution(activations), None))
    for block in cast(Iterable[ResidualBlock], generator.blocks):
        activations = activations + residual_branch(block, activations, style)
    for upsampler, norm in zip(generator.decoder, cast_norms(generator.decoder_norms), strict=True):
        activations = F.relu(apply_adain(norm, upsample_activations(upsampler, activations), style))
    return generator.to_image(images, generator.to_pixels(activations))


def cast_norms(modules: nn.Module) -> Iterable[AdaptiveInstanceNorm]:
    """Cast a list of layers to its type."""
    return cast(Iterable[AdaptiveInstanceNorm], modules)


def residual_branch(block: ResidualBlock, activations: Tensor, style: Tensor | None) -> Tensor:
    """Compute the branch that a residual block adds to its input."""
    hidden = F.relu(apply_adain(block.norm1, F.conv2d(activations, block.conv1.weight, padding=1), style))
    return apply_adain(block.norm2, F.conv2d(hidden, block.conv2.weight, padding=1), style)


def apply_adain(norm: AdaptiveInstanceNorm, activations: Tensor, style: Tensor | None) -> Tensor:
    """Apply instance norm, then the scale and shift computed from the style."""
    normalized = F.instance_norm(activations, weight=norm.weight, bias=norm.bias)
    if norm.modulation is None:
        return normalized
    gamma, beta = norm.modulation(style)[:, :, None, None].chunk(2, 1)
    return normalized * (1 + gamma) + beta


def upsample_activations(upsampler: nn.Module, activations: Tensor) -> Tensor:
    """Apply an upsampling layer: [N, C, H, W] => [N, D, 2 H, 2 W]."""
    if isinstance(upsampler, UpsampleConv):
        return F.conv2d(F.interpolate(activations, scale_factor=2), upsampler.weight, padding=1)
    upsampled: Tensor = upsampler(activations)
    return upsampled
