"""The training step written out plainly: what every faster path must equal, and the yardstick of `featgan bench step`.

The equations of docs/method.md one by one, in fp32: planes made, pixels repeated, three passes of D, the penalty by
differentiating twice, and nothing kept from one player's step for the other's.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featgan.data.loader import Batch
from featgan.networks.conditioning import Norm, concat_planes, tile_plane
from featgan.networks.discriminator import SLOPE, Discriminator, Judgement
from featgan.networks.generator import Generator, NearestConv, ResidualBlock
from featgan.system.images import to_float
from featgan.training import losses
from featgan.training.objective import condition_loss, is_penalised
from featgan.training.state import Game

Terms = dict[str, Tensor]


def reading_loss(game: Game, batch: Batch) -> tuple[Tensor, Terms]:
    """The discriminator's scalar before G starts, and its terms: the condition read off real images alone."""
    return condition_loss(game, judge(networks(game)[1], to_float(batch.images), conditions(game, batch)[0]), batch)


def discriminator_loss(game: Game, step: int, batch: Batch) -> tuple[Tensor, Terms]:
    """The discriminator's scalar of a step, and its terms."""
    weights, (network, critic) = game.config.losses, networks(game)
    images, source, target = to_float(batch.images), *conditions(game, batch)
    fake = edit(network, images, game.ask(target, source)).detach()
    real, judged = judge(critic, images, source), judge(critic, fake, target)
    condition, terms = condition_loss(game, real, batch)
    if weights.adversarial == "wgan_gp":
        terms["adversarial"] = losses.wasserstein_discriminator(real.logits, judged.logits)
        points = losses.between(images, fake, batch.alpha)
        terms["penalty"] = losses.gradient_penalty(input_gradient(critic, points, target))
        penalty = weights.penalty_weight * terms["penalty"]
    else:
        terms["adversarial"] = losses.logistic_discriminator(real.logits, judged.logits)
        penalty = torch.zeros(())
        if is_penalised(game, step):
            terms["penalty"] = losses.r1_penalty(input_gradient(critic, images, source))
            penalty = weights.r1_every * weights.penalty_weight * terms["penalty"]
    return terms["adversarial"] + condition + penalty, terms


def generator_loss(game: Game, batch: Batch) -> tuple[Tensor, Terms]:
    """The generator's scalar of a step, and its terms."""
    weights, (network, critic) = game.config.losses, networks(game)
    images, source, target = to_float(batch.images), *conditions(game, batch)
    fake = edit(network, images, game.ask(target, source))
    judged = judge(critic, fake, target)
    condition, terms = condition_loss(game, judged, batch, of_target=True)
    wgan = weights.adversarial == "wgan_gp"
    terms["adversarial"] = (losses.wasserstein_generator if wgan else losses.logistic_generator)(judged.logits)
    terms["cycle"] = losses.cycle_loss(images, edit(network, fake, game.ask(source, target)))
    total = terms["adversarial"] + condition + weights.cycle_weight * terms["cycle"]
    if weights.identity_weight:
        same = edit(network, images, game.ask(source, source))
        terms["identity"] = losses.identity_loss(images, same, weights.identity_margin)
        total = total + weights.identity_weight * terms["identity"]
    return total, terms


def networks(game: Game) -> tuple[Generator, Discriminator]:
    """G and D without what several processes wrap around them."""
    return cast(Generator, game.generator.bare), cast(Discriminator, game.discriminator.bare)


def conditions(game: Game, batch: Batch) -> tuple[Tensor, Tensor]:
    """The images' own condition and the one asked for."""
    return game.layout.embed(batch.condition, batch.dataset), game.layout.embed(batch.condition_target, batch.dataset)


def judge(critic: Discriminator, images: Tensor, condition: Tensor) -> Judgement:
    """D(x), layer by layer."""
    activations = images
    for layer in critic.trunk:
        if isinstance(layer, nn.Conv2d):
            activations = F.conv2d(activations, layer.weight, layer.bias, stride=2, padding=1)
        else:
            activations = F.leaky_relu(activations, SLOPE)
    return critic.judge(activations, condition)


def input_gradient(critic: Discriminator, points: Tensor, condition: Tensor) -> Tensor:
    """d sum D(x) / dx, with the graph of its own derivative."""
    points = points.detach().requires_grad_()
    (gradients,) = torch.autograd.grad(judge(critic, points, condition).logits.sum(), points, create_graph=True)
    return gradients


def edit(network: Generator, images: Tensor, condition: Tensor) -> Tensor:
    """G(x, c), layer by layer."""
    style = network.mapping(condition) if network.mapping is not None else None
    activations = images
    if network.conditioning == "concat":
        activations = concat_planes(images, condition)
    elif network.conditioning == "tile":
        activations = tile_plane(images, condition, network.get_buffer("layout"))
    for convolution, norm in zip(network.encoder, norms(network.encoder_norms), strict=True):
        activations = F.relu(normalize(norm, convolution(activations), None))
    for block in cast(Iterable[ResidualBlock], network.blocks):
        activations = activations + residual(block, activations, style)
    for upsampler, norm in zip(network.decoder, norms(network.decoder_norms), strict=True):
        activations = F.relu(normalize(norm, enlarge(upsampler, activations), style))
    return network.paint(images, network.to_pixels(activations))


def norms(modules: nn.Module) -> Iterable[Norm]:
    """A list of layers as what they are."""
    return cast(Iterable[Norm], modules)


def residual(block: ResidualBlock, activations: Tensor, style: Tensor | None) -> Tensor:
    """What a residual block adds."""
    hidden = F.relu(normalize(block.norm1, F.conv2d(activations, block.conv1.weight, padding=1), style))
    return normalize(block.norm2, F.conv2d(hidden, block.conv2.weight, padding=1), style)


def normalize(norm: Norm, activations: Tensor, style: Tensor | None) -> Tensor:
    """Instance norm, then the modulation by the style."""
    normalized = F.instance_norm(activations, weight=norm.weight, bias=norm.bias)
    if norm.modulation is None:
        return normalized
    gamma, beta = norm.modulation(style)[:, :, None, None].chunk(2, 1)
    return normalized * (1 + gamma) + beta


def enlarge(upsampler: nn.Module, activations: Tensor) -> Tensor:
    """Twice the resolution."""
    if isinstance(upsampler, NearestConv):
        return F.conv2d(F.interpolate(activations, scale_factor=2), upsampler.weight, padding=1)
    enlarged: Tensor = upsampler(activations)
    return enlarged
