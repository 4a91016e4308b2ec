"""The objective: the one scalar of each player in a step, put together from the terms in losses.py."""

import torch
from torch import Tensor

from featgan import losses
from featgan.data.loader import Batch
from featgan.game import Game
from featgan.networks.discriminator import Judgement


def discriminator_loss(
    game: Game, step: int, images: Tensor, fake: Tensor, batch: Batch, source: Tensor, target: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The discriminator's one scalar of a step and its parts."""
    weights, critic = game.config.losses, game.discriminator
    # D has no statistics over the batch, so real and edited images go through it together.
    with game.engine.autocast():
        both = critic.network(torch.cat([images, fake]), torch.cat([source, target]))
    count = len(images)
    real = type(both)(*(None if part is None else part[:count] for part in both))
    wgan = weights.adversarial == "wgan_gp"
    adversarial = losses.wasserstein_discriminator if wgan else losses.logistic_discriminator
    scalars = {"adversarial": adversarial(real.logits, both.logits[count:])}
    condition, parts = condition_loss(game, real, batch, batch.condition, batch.outputs)
    terms = [scalars["adversarial"], condition]
    if wgan:
        penalty = losses.gradient_penalty(lambda x: critic.bare(x, target).logits, images, fake, batch.alpha)
        terms.append(weights.penalty_weight * penalty)
        scalars["penalty"] = penalty
    elif step % weights.r1_every == 0:
        penalty = losses.r1_penalty(lambda x: critic.bare(x, source).logits, images)
        terms.append(weights.r1_every * weights.penalty_weight * penalty)
        scalars["penalty"] = penalty
    return torch.stack(terms).sum(), scalars | parts


def generator_loss(
    game: Game, images: Tensor, fake: Tensor, batch: Batch, source: Tensor, target: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The generator's one scalar of a step and its parts; `fake` is G(x, c_target) with its graph."""
    weights, network = game.config.losses, game.generator.network
    with game.engine.autocast():
        judgement = game.discriminator.bare(fake, target)
        reconstruction = network(fake, source)
    wgan = weights.adversarial == "wgan_gp"
    adversarial = losses.wasserstein_generator if wgan else losses.logistic_generator
    condition, parts = condition_loss(game, judgement, batch, batch.condition_target, batch.outputs_target)
    scalars = {"adversarial": adversarial(judgement.logits), "cycle": losses.cycle_loss(images, reconstruction)}
    terms = [scalars["adversarial"], condition, weights.cycle_weight * scalars["cycle"]]
    if weights.identity_weight:
        with game.engine.autocast():
            same = network(images, source)
        scalars["identity"] = losses.cycle_loss(images, same)
        terms.append(weights.identity_weight * scalars["identity"])
    return torch.stack(terms).sum(), scalars | parts


def condition_loss(
    game: Game, judgement: Judgement, batch: Batch, target: Tensor, outputs: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """L, weighted, on the part of D's estimate that belongs to the batch's data set; the parts as they are."""
    weights = game.config.losses
    part = judgement._replace(condition=judgement.condition[:, game.layout.part(batch.dataset)])
    parts = game.conditions[batch.dataset].losses(part, target, outputs)
    factors = {"condition": weights.condition_weight, "prediction": weights.prediction_weight}
    return torch.stack([factors[name] * value for name, value in parts.items()]).sum(), parts
