"""The objective: the one scalar of each player in a step, put together from the terms in losses.py.

A batch may be taken in parts, for less memory. All terms are means over images, so their gradients add up; only
concordance is a statistic of the whole batch. Its slopes with respect to every image's estimate are then computed
first, from a pass without gradients, and each part is pulled along them: exact, for one more pass through D.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from featgan.data.loader import Batch
from featgan.distributed.trainable import Loss
from featgan.networks.discriminator import Discriminator, Judgement
from featgan.system.images import to_float
from featgan.training import losses
from featgan.training.condition_loss import condition_losses
from featgan.training.state import Game


@dataclass
class Part:
    """The images of one forward and backward pass, with what is asked of them."""

    batch: Batch
    images: Tensor  # [n, 3, H, W] in [-1, 1]
    source: Tensor  # the images' own condition [n, C]
    target: Tensor  # and the one asked for
    fake: Tensor | None = None  # G(x, c_target) with its graph, where one pass serves both players


def split(game: Game, batch: Batch) -> list[Part]:
    """This process's rows of a batch in `distribution.accumulation` parts."""
    parts = []
    for rows in batch.split(game.config.distribution.accumulation):
        source = game.layout.embed(rows.condition, batch.dataset)
        target = game.layout.embed(rows.condition_target, batch.dataset)
        parts.append(Part(rows, to_float(rows.images), source, target))
    return parts


def edit(game: Game, part: Part) -> Tensor:
    """G(x, c_target) with its graph."""
    with game.engine.autocast():
        fake: Tensor = game.generator.network(part.images, game.ask(part.target, part.source))
    return fake


@torch.no_grad()
def edit_alone(game: Game, part: Part) -> Tensor:
    """G(x, c_target) without a graph."""
    if part.fake is not None:
        return part.fake.detach()
    with game.engine.autocast():
        fake: Tensor = game.generator.bare(part.images, game.ask(part.target, part.source))
    return fake


def reading_losses(game: Game, parts: Sequence[Part]) -> list[Loss]:
    """The discriminator's scalar before G starts, part by part; a list of what `Player.step` takes."""
    return [partial(reading_loss, game, *pair) for pair in zip(parts, source_slopes(game, parts), strict=True)]


def discriminator_losses(game: Game, step: int, parts: Sequence[Part]) -> list[Loss]:
    """The discriminator's scalar, part by part."""
    slopes = source_slopes(game, parts)
    return [partial(discriminator_loss, game, step, *pair) for pair in zip(parts, slopes, strict=True)]


def source_slopes(game: Game, parts: Sequence[Part]) -> "Sequence[Slopes | None]":
    """Of the real images' condition."""
    return condition_slopes(game, parts, lambda part: judge(game, part.images, part.source))


def generator_losses(game: Game, parts: Sequence[Part]) -> list[Loss]:
    """The generator's scalar, part by part; the discriminator must be frozen while it is computed."""
    slopes = condition_slopes(
        game, parts, lambda part: judge(game, edit_alone(game, part), part.target), of_target=True
    )
    return [partial(generator_loss, game, *pair) for pair in zip(parts, slopes, strict=True)]


def reading_loss(game: Game, part: Part, slopes: "Slopes | None" = None) -> tuple[Tensor, dict[str, Tensor]]:
    """How far the condition read off real images is from theirs."""
    with game.engine.autocast():
        real = game.discriminator.network(part.images, part.source)
    condition, terms = condition_loss(game, real, part.batch, slopes)
    # Of no weight; but every gradient is waited for where processes exchange them.
    return condition + 0 * real.logits.sum(), terms


def discriminator_loss(
    game: Game, step: int, part: Part, slopes: "Slopes | None" = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The discriminator's one scalar of a part of a step, and its terms."""
    weights, critic = game.config.losses, game.discriminator
    images, fake = part.images, edit_alone(game, part)
    # D has no statistics over the batch, so real and edited images go through it together.
    with game.engine.autocast():
        both = critic.network(torch.cat([images, fake]), torch.cat([part.source, part.target]))
    count = len(images)
    real = type(both)(*(None if each is None else each[:count] for each in both))
    wgan = weights.adversarial == "wgan_gp"
    adversarial = losses.wasserstein_discriminator if wgan else losses.logistic_discriminator
    scalars = {"adversarial": adversarial(real.logits, both.logits[count:])}
    condition, terms = condition_loss(game, real, part.batch, slopes)
    total = scalars["adversarial"] + condition
    if wgan:
        points = losses.between(images, fake, part.batch.alpha)
        scalars["penalty"] = losses.gradient_penalty(slope_at(game, points, part.target))
        total = total + weights.penalty_weight * scalars["penalty"]
    elif is_penalised(game, step):
        scalars["penalty"] = losses.r1_penalty(slope_at(game, images, part.source))
        total = total + weights.r1_every * weights.penalty_weight * scalars["penalty"]
    return total, scalars | terms


def is_penalised(game: Game, step: int) -> bool:
    """Whether R1 is taken in a step: in every so many turns of each data set."""
    return step // len(game.conditions) % game.config.losses.r1_every == 0


def slope_at(game: Game, points: Tensor, condition: Tensor) -> Tensor:
    """D's input gradient; of the bare network, since wrappers know one forward pass only."""
    bare = cast(Discriminator, game.discriminator.bare)
    with game.engine.autocast():
        return bare.input_gradient(points, condition)


def generator_loss(game: Game, part: Part, slopes: "Slopes | None" = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The generator's one scalar of a part of a step, and its terms."""
    weights, network = game.config.losses, game.generator.network
    fake = part.fake if part.fake is not None else edit(game, part)
    with game.engine.autocast():
        judgement = game.discriminator.bare(fake, part.target)
        reconstruction = network(fake, game.ask(part.source, part.target))
    wgan = weights.adversarial == "wgan_gp"
    adversarial = losses.wasserstein_generator if wgan else losses.logistic_generator
    condition, terms = condition_loss(game, judgement, part.batch, slopes, of_target=True)
    scalars = {"adversarial": adversarial(judgement.logits), "cycle": losses.cycle_loss(part.images, reconstruction)}
    total = scalars["adversarial"] + condition + weights.cycle_weight * scalars["cycle"]
    if weights.identity_weight:
        with game.engine.autocast():
            same = network(part.images, game.ask(part.source, part.source))
        scalars["identity"] = losses.identity_loss(part.images, same, weights.identity_margin)
        total = total + weights.identity_weight * scalars["identity"]
    return total, scalars | terms


@dataclass(frozen=True)
class Slopes:
    """The condition's weighted loss over the whole batch: its terms, and what a part's estimates are pulled along."""

    loss: Tensor
    terms: dict[str, Tensor]
    condition: Tensor  # [n, C], times the number of parts, since the parts' scalars are averaged
    outputs: Tensor | None  # [n, O]


def condition_loss(
    game: Game, judgement: Judgement, batch: Batch, slopes: Slopes | None = None, of_target: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """L, weighted, on the part of D's estimate that belongs to the batch's data set; the terms as they are."""
    weights = game.config.losses
    own = judgement._replace(condition=judgement.condition[:, game.layout.part(batch.dataset)])
    if slopes is not None:
        pulled = (own.condition * slopes.condition).sum()
        if own.outputs is not None and slopes.outputs is not None:
            pulled = pulled + (own.outputs * slopes.outputs).sum()
        return slopes.loss + pulled - pulled.detach(), slopes.terms
    target = batch.condition_target if of_target else batch.condition
    condition, outputs = game.conditions[batch.dataset], batch.outputs_target if of_target else batch.outputs
    terms = condition_losses(condition, own, target, outputs)
    factors = {"condition": weights.condition_weight, "prediction": weights.prediction_weight}
    return torch.stack([factors[name] * value for name, value in terms.items()]).sum(), terms


def condition_slopes(
    game: Game, parts: Sequence[Part], judged: Callable[[Part], Judgement], of_target: bool = False
) -> Sequence[Slopes | None]:
    """Slopes for every part, from judgements without gradients; None where each part's own loss is as good."""
    batches = [part.batch for part in parts]
    if len(parts) == 1 or not game.conditions[batches[0].dataset].is_batch_statistic:
        return [None] * len(parts)
    columns = game.layout.part(batches[0].dataset)
    found = [judged(part) for part in parts]
    estimate = torch.cat([each.condition for each in found]).requires_grad_()
    read = [each.outputs for each in found if each.outputs is not None]
    outputs = torch.cat(read).requires_grad_() if read else None
    joined = Judgement(found[0].logits, estimate, outputs)
    loss, terms = condition_loss(game, joined, Batch.join(batches), of_target=of_target)
    inputs = [estimate] if outputs is None else [estimate, outputs]
    pulls = torch.autograd.grad(loss, inputs, allow_unused=True)
    scaled = [None if pull is None else (pull * len(parts)).chunk(len(parts)) for pull in pulls]
    detached = {name: value.detach() for name, value in terms.items()}
    zeros = torch.zeros_like(estimate).chunk(len(parts))
    along = scaled[0] or zeros
    read_off = scaled[1] if len(scaled) > 1 and scaled[1] is not None else [None] * len(parts)
    return [
        Slopes(loss.detach(), detached, pull[:, columns], output) for pull, output in zip(along, read_off, strict=True)
    ]


@torch.no_grad()
def judge(game: Game, images: Tensor, condition: Tensor) -> Judgement:
    """What D says, without a graph."""
    with game.engine.autocast():
        judgement: Judgement = game.discriminator.bare(images, condition)
    return judgement
