"""The networks: parameter counts, any image size and condition width, and the effect of the condition."""

import pytest
import torch
from torch import nn

from featgan.distributed.deepspeed import AutocastModule
from featgan.networks.conditioning import tile_layout
from featgan.networks.discriminator import Discriminator
from featgan.networks.generator import Generator


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("dim", "generator", "discriminator"), [(64, 8.6, 44.9), (128, 34.0, 179.1)])
def test_parameter_counts_match_the_original_implementation(dim: int, generator: float, discriminator: float) -> None:
    with torch.device("meta"):
        assert round(count_parameters(Generator(112, 64, dim)) / 1e6, 1) == generator
        assert round(count_parameters(Discriminator(112, 64, dim)) / 1e6, 1) == discriminator


@pytest.mark.parametrize("conditioning", ["concat", "tile", "adain"])
@pytest.mark.parametrize(("size", "width"), [(16, 1), (20, 3), (36, 64), (24, 100)])
def test_any_image_size_and_condition_width(conditioning: str, size: int, width: int) -> None:
    torch.manual_seed(0)
    edited = Generator(size, width, 4, 1, conditioning)(torch.randn(2, 3, size, size), torch.randn(2, width))
    assert edited.shape == (2, 3, size, size) and edited.abs().max() <= 1


@pytest.mark.parametrize("output", ["image", "masked_blend"])
@pytest.mark.parametrize("conditioning", ["concat", "tile", "adain"])
def test_condition_changes_the_image_after_one_step(conditioning: str, output: str) -> None:
    torch.manual_seed(0)
    network = Generator(16, 5, 4, 1, conditioning, output)
    images, condition = torch.randn(4, 3, 16, 16), torch.randn(4, 5)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    # The modulation layer is initialized to zero; one step of a loss that depends on the condition changes it.
    (network(images, condition) * condition[:, :1, None, None]).mean().backward()
    optimizer.step()
    change = network(images, condition) - network(images, condition.roll(1, 0))
    assert change.abs().mean() > 1e-6


def test_masked_blend_starts_near_the_source() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    change = Generator(32, 5, 8, 2, "adain", "masked_blend")(images, torch.randn(2, 5)) - images
    assert 0 < change.abs().mean() < 0.25


def test_tile_layout_matches_the_original_for_64_and_2_values() -> None:
    layout = tile_layout(64, 112)
    assert layout[:8, :8].flatten().tolist() == list(range(64))
    assert torch.equal(layout[8:16, 16:24], layout[:8, :8])
    halves = tile_layout(2, 112)
    assert (halves[:, :56] == 0).all() and (halves[:, 56:] == 1).all()


@pytest.mark.parametrize("width", [1, 3, 7, 17, 50, 65])
def test_tile_layout_contains_every_value(width: int) -> None:
    shown = set(tile_layout(width, 32).unique().tolist())
    assert set(range(width)) <= shown <= set(range(width + 1))


def test_unsupported_image_sizes_are_rejected_with_a_remedy() -> None:
    with pytest.raises(
        ValueError, match=r"image size 48: 6 downsampling layers need at least 64 pixels.*num_layers up to 5"
    ):
        Discriminator(48, 2)
    with pytest.raises(ValueError, match="multiple of 4"):
        Generator(50, 2)


def test_discriminator_heads_have_their_shapes() -> None:
    network = Discriminator(24, 5, 4, 3, max_dim=8, output_dim=2, projection_dim=7)
    output = network(torch.randn(2, 3, 24, 24), torch.randn(2, 7))
    assert output.logits.shape == (2, 1, 3, 3) and output.condition_estimate.shape == (2, 5)
    assert output.output_estimate is not None and output.output_estimate.shape == (2, 2)
    images = torch.zeros(1, 3, 24, 24)
    difference = network(images, torch.ones(1, 7)).logits - network(images, torch.zeros(1, 7)).logits
    assert difference.abs().max() > 0
    assert torch.allclose(difference, difference[0, 0, 0, 0].expand_as(difference), atol=1e-6)


def test_autocast_module_overrides_an_outer_context() -> None:
    """DeepSpeed disables the autocast context that its engine is called in."""
    network = AutocastModule(torch.nn.Linear(2, 3), lambda: torch.autocast("cpu", torch.bfloat16))
    with torch.autocast("cpu", enabled=False):
        assert network(torch.randn(4, 2)).dtype is torch.bfloat16
