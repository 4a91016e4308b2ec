"""Every faster path against the plain step: scalars and every gradient, over conditions, conditionings and outputs."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featgan.config.schema import Config
from featgan.data.loader import Batch, BatchStream
from featgan.networks import winograd
from featgan.networks.conditioning import concat_convolution, concat_planes
from featgan.networks.discriminator import Discriminator
from featgan.networks.generator import Generator, NearestConv
from featgan.system.images import single, to_float
from featgan.training import objective, reference_step
from featgan.training.objective import discriminator_losses, edit, generator_losses, reading_losses, split
from featgan.training.state import Game, build_game
from featgan.training.train import train
from tests.conftest import CHOSEN, World

FEATURES = {"features": "stand-in"}
CONDITIONS = {
    "expression": {"condition": {"kind": "expression"}},
    "valence_arousal": {"condition": {"kind": "valence_arousal", "regression": "mse"}},
    "raw": FEATURES,
    "both": FEATURES | {"condition": {"objective": "both"}},
    "components": {"features": "stand-in-3", "condition": {"encoding": "components", "reduction": "mean"}},
    "attributes": {"condition": {"kind": "attributes", "attributes": list(CHOSEN)}},
}
WGAN = {"adversarial": "wgan_gp"}
LOGISTIC = {"adversarial": "logistic", "identity_weight": 1.0, "identity_margin": 0.05}


def build(world: World, run: Path, dataset: dict[str, Any], **sections: dict[str, object]) -> Game:
    """A game whose weights have left their initial values, where scales are 1 and modulations 0."""
    game = build_game(world.config(run, dataset={"shards": str(world.shards.path)} | dataset, **sections))
    generator = torch.Generator().manual_seed(11)
    for player in (game.generator, game.discriminator):
        for parameter in player.bare.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return game


@pytest.fixture
def dataset(kind: str, celeba: Path) -> dict[str, Any]:
    """A condition of the kind; attributes are labels of shards of their own."""
    return CONDITIONS[kind] | ({"shards": str(celeba)} if kind == "attributes" else {})


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images come in double precision, where only a difference of mathematics can be seen."""
    for module in (objective, reference_step):
        monkeypatch.setattr(module, "to_float", lambda images: to_float(images).double())


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks as narrow as a test's convolve by tiles too."""
    monkeypatch.setattr(winograd, "FEWEST_TILES", 1)
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)


def fresh() -> int:
    """A seed that no run before had; a failure shows it."""
    seed = torch.seed() % 2**31
    print(f"seed of the batch: {seed}")
    return seed


def in_double(game: Game, batch: Batch) -> Batch:
    """The game's weights and the batch's numbers in double precision."""
    for player in (game.generator, game.discriminator):
        player.bare.double()
    numbers = {name: value.double() for name, value in batch.tensors().items() if value.is_floating_point()}
    return replace(batch, **numbers)


def gradients(network: nn.Module, loss: Tensor) -> list[Tensor]:
    """The loss's gradient in every weight."""
    network.zero_grad()
    loss.backward()
    found = [torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in network.parameters()]
    network.zero_grad()
    return found


def fast_and_plain(game: Game, batch: Batch) -> list[tuple[Tensor, Tensor, list[Tensor], list[Tensor]]]:
    """For D, then G: the scalar and the gradients of the step, and of the plain one."""
    (part,) = parts = split(game, batch)
    part.fake = edit(game, part)
    loss, _ = discriminator_losses(game, 0, parts)[0]()
    expected, _ = reference_step.discriminator_loss(game, 0, batch)
    critic, network = game.discriminator.bare, game.generator.bare
    found = [(loss.detach(), expected.detach(), gradients(critic, loss), gradients(critic, expected))]
    with game.discriminator.frozen():
        loss, _ = generator_losses(game, parts)[0]()
        own = gradients(network, loss)
    expected, _ = reference_step.generator_loss(game, batch)
    return [*found, (loss.detach(), expected.detach(), own, gradients(network, expected))]


def distances(own: list[Tensor], expected: list[Tensor]) -> list[float]:
    """How far each gradient lies from the plain one, relative to its size, or to a thousandth of all."""
    whole = float(torch.stack([each.norm() for each in expected]).norm())
    pairs = zip(own, expected, strict=True)
    return [float((one - other).norm()) / max(float(other.norm()), whole / 1000) for one, other in pairs]


def assert_same_step(game: Game, batch: Batch, tolerance: float) -> None:
    """Both scalars and every gradient."""
    for loss, expected, own, plainly in fast_and_plain(game, batch):
        assert float(loss) == pytest.approx(float(expected), rel=tolerance, abs=tolerance)
        assert max(distances(own, plainly)) < tolerance


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("conditioning", ["concat", "tile", "modulation"])
@pytest.mark.parametrize("adversarial", [WGAN, LOGISTIC], ids=["wgan_gp", "logistic"])
def test_the_step_is_the_plain_step(
    double: None,
    world: World,
    tmp_path: Path,
    dataset: dict[str, Any],
    conditioning: str,
    adversarial: dict[str, object],
) -> None:
    game = build(world, tmp_path, dataset, losses=adversarial, generator={"conditioning": conditioning})
    batch = BatchStream(game.sources, 4, 1, fresh())[3]
    assert_same_step(game, in_double(game, batch), 1e-9)


@pytest.mark.parametrize("conditioning", ["concat", "tile", "modulation"])
@pytest.mark.parametrize("adversarial", [WGAN, LOGISTIC], ids=["wgan_gp", "logistic"])
def test_so_is_that_by_tiles(
    double: None, tiles: None, world: World, tmp_path: Path, conditioning: str, adversarial: dict[str, object]
) -> None:
    game = build(world, tmp_path, FEATURES, losses=adversarial, generator={"conditioning": conditioning})
    batch = in_double(game, BatchStream(game.sources, 4, 1, fresh())[3])
    block = game.generator.bare.blocks[0]
    assert block.conv1.saves(torch.zeros(4, block.conv1.in_channels, 4, 4).double())
    assert_same_step(game, batch, 1e-9)


@pytest.mark.parametrize("kind", CONDITIONS)
def test_so_is_that_of_the_head_start(double: None, world: World, tmp_path: Path, dataset: dict[str, Any]) -> None:
    game = build(world, tmp_path, dataset, losses=LOGISTIC)
    batch = in_double(game, BatchStream(game.sources, 4, 1, fresh())[3])
    (loss,), critic = reading_losses(game, split(game, batch)), game.discriminator.bare
    found, expected = loss()[0], reference_step.reading_loss(game, batch)[0]
    assert float(found) == pytest.approx(float(expected), rel=1e-9)
    assert max(distances(gradients(critic, found), gradients(critic, expected))) < 1e-9


@pytest.mark.parametrize("output", ["image", "blend"])
@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
@pytest.mark.parametrize("projection", [False, True])
def test_so_is_that_of_every_output_and_discriminator(
    double: None, world: World, tmp_path: Path, output: str, upsampling: str, projection: bool
) -> None:
    game = build(
        world, tmp_path, FEATURES, losses=WGAN, discriminator={"projection": projection},
        generator={"conditioning": "modulation", "output": output, "upsampling": upsampling},
    )  # fmt: skip
    batch = BatchStream(game.sources, 4, 1, fresh())[3]
    assert_same_step(game, in_double(game, batch), 1e-9)


@pytest.mark.parametrize("conditioning", ["concat", "tile", "modulation"])
def test_so_is_that_of_changes(double: None, world: World, tmp_path: Path, conditioning: str) -> None:
    game = build(
        world, tmp_path, CONDITIONS["components"], losses=LOGISTIC, discriminator={"projection": True},
        generator={"conditioning": conditioning, "request": "change"},
    )  # fmt: skip
    batch = BatchStream(game.sources, 4, 1, fresh())[3]
    assert_same_step(game, in_double(game, batch), 1e-9)


@pytest.mark.parametrize("conditioning", ["concat", "tile", "modulation"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_made_again_change_nothing(world: World, tmp_path: Path, conditioning: str, precision: str) -> None:
    game = build(
        world, tmp_path, FEATURES, losses=LOGISTIC, generator={"conditioning": conditioning},
        training={"precision": precision},
    )  # fmt: skip
    (part,) = split(game, BatchStream(game.sources, 4, 1, 0)[3])

    def results() -> list[Tensor]:
        part.fake = edit(game, part)
        with game.discriminator.frozen():
            loss, _ = generator_losses(game, [part])[0]()
            return [loss.detach(), *gradients(game.generator.bare, loss)]

    kept = results()
    game.generator.bare.recomputes = True
    for again, before in zip(results(), kept, strict=True):
        torch.testing.assert_close(again, before, rtol=0.05 if precision == "bf16" else 1e-6, atol=1e-6)


def test_so_is_that_of_two_data_sets(double: None, world: World, tmp_path: Path) -> None:
    game = build(
        world, tmp_path, CONDITIONS["expression"], losses=WGAN,
        second_dataset={"shards": str(world.shards.path), "condition": {"kind": "valence_arousal"}},
    )  # fmt: skip
    stream = BatchStream(game.sources, 4, 1, 0)
    for step in (0, 1):
        assert_same_step(game, in_double(game, stream[step]), 1e-9)


@pytest.mark.parametrize("conditioning", ["concat", "tile", "modulation"])
@pytest.mark.parametrize("adversarial", [WGAN, LOGISTIC], ids=["wgan_gp", "logistic"])
@pytest.mark.parametrize("by_tiles", [False, True])
@pytest.mark.parametrize("kind", CONDITIONS)
def test_in_single_precision_every_gradient_is_as_exact(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    conditioning: str,
    adversarial: dict[str, object],
    by_tiles: bool,
    dataset: dict[str, Any],
) -> None:
    if by_tiles:
        request.getfixturevalue("tiles")
    game = build(world, tmp_path, dataset, losses=adversarial, generator={"conditioning": conditioning})
    # Not a fresh batch: in one of a hundred, rounding moves a unit over its kink, and that is no error of a path.
    batch = BatchStream(game.sources, 4, 1, 0)[3]
    found = fast_and_plain(game, batch)
    monkeypatch.setattr(reference_step, "to_float", lambda images: to_float(images).double())
    exact = exact_gradients(game, in_double(game, batch))
    for (_, _, own, plainly), truth in zip(found, exact, strict=True):
        # Instance norm takes constant planes away but for rounding: there the plain step is off by more than 1e-5.
        mine, its = np.array(distances(own, truth)), np.array(distances(plainly, truth))
        if by_tiles:  # their points have values up to ten times the result's: a digit is lost, which one is chance
            assert mine.max() < max(5e-5, 15 * its.max())
        else:
            assert (mine < np.maximum(3 * its, max(1e-5, its.max()))).all(), (mine, its)


def exact_gradients(game: Game, batch: Batch) -> list[list[Tensor]]:
    """The plain step's gradients of D and of G, in double precision."""
    losses = (reference_step.discriminator_loss(game, 0, batch)[0], reference_step.generator_loss(game, batch)[0])
    networks = (game.discriminator.bare, game.generator.bare)
    return [gradients(network, loss) for network, loss in zip(networks, losses, strict=True)]


@pytest.mark.parametrize("conditioning", ["concat", "tile", "modulation"])
@pytest.mark.parametrize("adversarial", [WGAN, LOGISTIC], ids=["wgan_gp", "logistic"])
@pytest.mark.parametrize("kind", CONDITIONS)
def test_in_half_precision_each_term_is_as_exact_as_the_plain_one(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    conditioning: str,
    adversarial: dict[str, object],
    dataset: dict[str, Any],
) -> None:
    game = build(
        world, tmp_path, dataset, losses=adversarial, generator={"conditioning": conditioning},
        training={"precision": "bf16"},
    )  # fmt: skip
    batch = BatchStream(game.sources, 4, 1, 0)[3]
    own = term_gradients(game, *fast_losses(game, batch))
    monkeypatch.setattr(reference_step, "edit", lambda *given, edit=reference_step.edit: single(edit(*given)))
    with game.engine.autocast():
        plainly = term_gradients(game, *plain_losses(game, batch))
    monkeypatch.setattr(reference_step, "to_float", lambda images: to_float(images).double())
    exact = term_gradients(game, *plain_losses(game, in_double(game, batch)))
    for player, terms in enumerate(own):
        assert terms.keys() == exact[player].keys()
        for name, found in terms.items():
            off, its = (distance(each, exact[player][name]) for each in (found, plainly[player][name]))
            print(f"{'DG'[player]}'s {name}: off by {off:.4f}, the plain one in bf16 by {its:.4f}")
            # bf16 keeps 8 bits, and rounding moves units over their kinks: the plain step itself is off by percents.
            assert off < 0.05 + 2 * its, (player, name)
        added = sum(term_weights(game)[name] * found for name, found in terms.items() if name != "whole")
        assert distance(torch.as_tensor(added), terms["whole"]) < 0.02


Losses = list[Callable[[], tuple[Tensor, dict[str, Tensor]]]]


def fast_losses(game: Game, batch: Batch) -> tuple[Losses, nn.Module]:
    """What the two players minimise."""
    (part,) = parts = split(game, batch)
    part.fake = edit(game, part)
    return [*discriminator_losses(game, 0, parts), *generator_losses(game, parts)], game.discriminator.bare


def plain_losses(game: Game, batch: Batch) -> tuple[Losses, nn.Module]:
    """The same, written out."""
    players = (
        partial(reference_step.discriminator_loss, game, 0, batch),
        partial(reference_step.generator_loss, game, batch),
    )
    return list(players), game.discriminator.bare


def term_gradients(game: Game, losses: Losses, critic: nn.Module) -> list[dict[str, Tensor]]:
    """The gradient of every term by itself, and of the whole scalar, in all weights of D, and then of G."""
    found = []
    for network, loss in zip((critic, game.generator.bare), losses, strict=True):
        total, terms = loss()
        weights = list(network.parameters())
        found.append({
            name: flat(torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True), weights)
            for name, term in {**terms, "whole": total}.items()
        })  # fmt: skip
    return found


def term_weights(game: Game) -> dict[str, float]:
    """By which each term enters its player's scalar."""
    weights = game.config.losses
    often = weights.r1_every if weights.adversarial == "logistic" else 1
    return {
        "adversarial": 1, "condition": weights.condition_weight, "prediction": weights.prediction_weight,
        "penalty": weights.penalty_weight * often, "cycle": weights.cycle_weight, "identity": weights.identity_weight,
    }  # fmt: skip


def flat(slopes: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor:
    """One vector; zero where a weight plays no part."""
    pairs = zip(slopes, weights, strict=True)
    return torch.cat([(torch.zeros_like(weight) if slope is None else slope).flatten() for slope, weight in pairs])


def distance(own: Tensor, truth: Tensor) -> float:
    """Relative to the truth's size."""
    return float((own.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (28, 28)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_tiles_make_the_convolution_and_its_derivatives(
    tiles: None, size: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    layer = winograd.Conv3x3(32, 48).to(dtype)
    images, slopes = torch.randn(3, 32, *size, dtype=dtype), torch.randn(3, 48, *size, dtype=dtype)
    assert layer.saves(images)

    def results(convolve: Callable[[Tensor], Tensor], given: Tensor) -> list[Tensor]:
        given = given.clone().requires_grad_()
        made = convolve(given)
        return [made.detach(), *torch.autograd.grad(made, [given, layer.weight], slopes.to(made.dtype))]

    found = results(layer, images)
    layer.double()
    expected = results(lambda given: F.conv2d(given, layer.weight, padding=1), images.double())
    assert max(distances([each.double() for each in found], expected)) < tolerance


def test_so_they_do_at_the_width_from_which_they_are_used() -> None:
    layer = winograd.Conv3x3(winograd.FEWEST_CHANNELS, winograd.FEWEST_CHANNELS)
    images = torch.randn(2, winograd.FEWEST_CHANNELS, 28, 28)
    assert layer.saves(images)
    made, exact = layer(images), F.conv2d(images.double(), layer.weight.double(), padding=1)
    assert max(distances([made.double()], [exact])) < 1e-5


def test_tiles_are_for_wide_networks_in_single_precision_alone() -> None:
    layer, images = winograd.Conv3x3(256, 256), torch.empty(16, 256, 28, 28)
    assert layer.saves(images)
    assert not layer.saves(images[:, :, :26]) and not layer.saves(images[:1])
    assert not winograd.Conv3x3(64, 64).saves(images[:, :64])
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer.saves(images)


@pytest.mark.parametrize("size", [(7, 7), (8, 12), (20, 20), (5, 9)])
def test_planes_are_convolved_without_being_made(size: tuple[int, int]) -> None:
    images, condition, weight = torch.randn(2, 3, *size), torch.randn(2, 5), torch.randn(4, 8, 7, 7)
    expected = F.conv2d(concat_planes(images, condition), weight, padding=3)
    expected = expected - torch.einsum("nc,dchw->nd", condition, weight[:, 3:])[:, :, None, None]
    torch.testing.assert_close(concat_convolution(images, condition, weight), expected, rtol=1e-5, atol=1e-4)


def test_repeated_pixels_are_convolved_without_being_made() -> None:
    layer, activations = NearestConv(5, 4), torch.randn(2, 5, 6, 9)
    expected = F.conv2d(F.interpolate(activations, scale_factor=2), layer.weight, padding=1)
    torch.testing.assert_close(layer(activations), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [16, 20, 23, 31])
def test_the_input_gradient_is_autograds(size: int) -> None:
    network = Discriminator(size, 3, 4, 4, projection_dim=2)
    images, condition = torch.randn(2, 3, size, size), torch.randn(2, 2)
    expected = reference_step.input_gradient(network, images, condition)
    torch.testing.assert_close(network.input_gradient(images, condition), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("conditioning", ["concat", "tile", "modulation"])
def test_an_edit_is_the_plain_edit(conditioning: str) -> None:
    network = Generator(32, 5, 8, 2, conditioning, "blend", "nearest")
    images, condition = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 5)
    torch.testing.assert_close(
        network(images, condition), reference_step.edit(network, images, condition), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fp32", "fp32 by tiles", "bf16"])
def test_a_training_follows_the_plain_one(
    world: World, tmp_path: Path, request: pytest.FixtureRequest, way: str
) -> None:
    """The losses of 200 steps of both on the same data lie on each other."""
    if "tiles" in way:
        request.getfixturevalue("tiles")
    steps, precision = 200, way.split()[0]
    training = {"steps": steps, "critic_steps": 5, "save_every": steps, "report_every": 1}
    config = world.config(tmp_path / "fast", losses=WGAN, training=training | {"precision": precision})
    train(config)
    lines = [json.loads(line) for line in (config.run / "metrics.jsonl").read_text().splitlines()]
    for player, curve in plain_curves(world.config(tmp_path / "plain", losses=WGAN, training=training)).items():
        fast = np.array([line[f"{player}/loss"] for line in lines if f"{player}/loss" in line])
        early = 20 * len(curve) // steps
        np.testing.assert_allclose(fast[:early], curve[:early], rtol=BF16_EARLY if precision == "bf16" else 1e-4)
        # Rounding grows from step to step, but stays small beside what the losses do.
        off = np.abs(fast - curve).mean() / curve.std()
        print(f"{way}: {player} off by {off:.4f} of the curve's deviation")
        assert off < (0.2 if precision == "bf16" else 0.1), player


BF16_EARLY = 0.05
"""bf16 keeps 8 bits: a tenth of a percent an operation, some dozens of them one after the other."""


def plain_curves(config: Config) -> dict[str, np.ndarray]:
    """Losses of a training by the plain scalars in fp32, with Adam weight by weight."""
    game = build_game(config)
    stream = BatchStream(game.sources, 4, 5, 0)
    adams = {
        player.bare: torch.optim.Adam(player.bare.parameters(), 1e-4, (0.5, 0.999), foreach=False, fused=False)
        for player in (game.discriminator, game.generator)
    }

    def follow(network: nn.Module, loss: Tensor) -> float:
        loss.backward()
        adams[network].step()
        for each in adams:
            each.zero_grad()
        return float(loss)

    curves: dict[str, list[float]] = {"discriminator": [], "generator": []}
    for step in range(config.training.steps):
        loss, _ = reference_step.discriminator_loss(game, step, stream[step])
        curves["discriminator"].append(follow(game.discriminator.bare, loss))
        if (step + 1) % 5 == 0:
            curves["generator"].append(
                follow(game.generator.bare, reference_step.generator_loss(game, stream[step])[0])
            )
    return {player: np.array(curve) for player, curve in curves.items()}
