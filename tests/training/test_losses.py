"""Compare each loss term with values computed by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from featgan.networks.discriminator import Discriminator
from featgan.system.statistics import concordance_correlation
from featgan.training import losses


def test_wasserstein_terms_are_differences_of_means() -> None:
    real, fake = torch.tensor([[1.0, 3.0]]), torch.tensor([[-2.0, 6.0]])
    assert losses.wgan_d_loss(real, fake) == pytest.approx(0.0)
    assert losses.wgan_d_loss(real, fake + 1) == pytest.approx(1.0)
    assert losses.wgan_g_loss(fake) == pytest.approx(-2.0)


def test_nonsaturating_terms_are_softplus() -> None:
    zero = torch.zeros(3)
    assert losses.nonsaturating_d_loss(zero, zero) == pytest.approx(2 * math.log(2))
    assert losses.nonsaturating_d_loss(torch.tensor([2.0]), torch.tensor([-1.0])) == pytest.approx(
        math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))
    )
    assert losses.nonsaturating_g_loss(torch.tensor([3.0])) == pytest.approx(math.log(1 + math.exp(-3)))


def input_gradients(discriminator: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the input gradients of the discriminator at `points`."""
    gradients: Tensor = torch.func.grad(lambda images: discriminator(images).sum())(points)
    return gradients


def test_gradient_penalty_of_a_linear_discriminator_is_known() -> None:
    # D(x) = sum(w * x) has the gradient w everywhere: 12 pixels of 0.5 have norm sqrt(3).
    def discriminator(images: Tensor) -> Tensor:
        return (0.5 * images).sum((1, 2, 3))

    real, fake = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    gradients = input_gradients(discriminator, losses.interpolate_for_gp(real, fake, torch.rand(2)))
    assert losses.gradient_penalty(gradients) == pytest.approx((math.sqrt(3) - 1) ** 2, rel=1e-6)
    assert losses.r1_penalty(input_gradients(discriminator, real)) == pytest.approx(3.0, rel=1e-6)


def test_gradient_penalty_is_taken_between_real_and_fake() -> None:
    # D(x) = x^2 / 2 has the gradient x: one pixel, so the norm is |a x + (1 - a) y|.
    real, fake, alpha = torch.full((1, 1, 1, 1), 4.0), torch.full((1, 1, 1, 1), 2.0), torch.tensor([0.25])
    gradients = input_gradients(lambda x: x.square() / 2, losses.interpolate_for_gp(real, fake, alpha))
    assert losses.gradient_penalty(gradients) == pytest.approx((2.5 - 1) ** 2)


def test_gradient_penalty_has_the_weight_gradients_of_autograd() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(16, 5, 4, 3).double()
    real, fake, alpha = torch.randn(3, 3, 16, 16).double(), torch.randn(3, 3, 16, 16).double(), torch.rand(3).double()
    losses.gradient_penalty(discriminator.input_gradient(losses.interpolate_for_gp(real, fake, alpha))).backward()
    # The penalty does not depend on the biases, so only the weights have gradients.
    weights = [discriminator.trunk.get_parameter(f"{index}.weight") for index in range(0, len(discriminator.trunk), 2)]
    actual = [weight.grad.clone() for weight in weights if weight.grad is not None]
    discriminator.zero_grad()
    points = torch.lerp(fake, real, alpha[:, None, None, None]).requires_grad_()
    (gradients,) = torch.autograd.grad(discriminator(points).logits.sum(), points, create_graph=True)
    ((gradients.flatten(1).norm(dim=1) - 1) ** 2).mean().backward()
    expected = [weight.grad for weight in weights]
    assert len(actual) == len(expected) == 3
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_concordance_of_known_values() -> None:
    # x = 1, 2, 3 and y = 2, 4, 6: variances 2/3 and 8/3, covariance 4/3, means 2 and 4 => (8/3) / (10/3 + 4) = 4/11.
    x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [6.0]])
    assert concordance_correlation(x, y).item() == pytest.approx(4 / 11)
    assert losses.ccc_loss(x, y).item() == pytest.approx(7 / 11)


def test_concordance_loss_sums_over_dimensions() -> None:
    x = torch.randn(9, 4)
    assert losses.ccc_loss(x, x).item() == pytest.approx(0, abs=1e-5)
    assert losses.ccc_loss(x, -x + 2 * x.mean(0)).item() == pytest.approx(8, abs=1e-4)
    assert losses.ccc_loss(x, -x + 2 * x.mean(0), "mean").item() == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_concordance_of_constant_dimensions_is_finite_with_gradient(rows: int) -> None:
    estimate = torch.ones(rows, 2, requires_grad=True)
    loss = losses.ccc_loss(estimate, torch.ones(rows, 2))
    loss.backward()
    assert torch.isfinite(loss) and estimate.grad is not None and torch.isfinite(estimate.grad).all()


def test_attribute_loss_sums_over_attributes_and_averages_over_the_batch() -> None:
    logits, target = torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert losses.attribute_loss(logits, target).item() == pytest.approx(3 * math.log(2))


def test_class_loss_is_cross_entropy() -> None:
    logits, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert losses.class_loss(logits, target).item() == pytest.approx(math.log(1 + math.e))


def test_identity_loss_is_zero_within_the_margin() -> None:
    images = torch.zeros(3, 3, 2, 2)
    identity = torch.stack([torch.full((3, 2, 2), 0.02), torch.full((3, 2, 2), -0.5), torch.zeros(3, 2, 2)])
    identity[2, 0] = 0.3  # a mean of 0.1 over the complete image
    identity.requires_grad_()
    loss = losses.identity_loss(images, identity, 0.05)
    assert loss.item() == pytest.approx((0 + 0.45 + 0.05) / 3)
    loss.backward()
    assert identity.grad is not None and [bool(grad.any()) for grad in identity.grad] == [False, True, True]
    assert losses.identity_loss(images, identity).item() == pytest.approx(losses.cycle_loss(images, identity).item())


def test_cycle_loss_is_mean_absolute_difference() -> None:
    assert losses.cycle_loss(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), -0.5)).item() == pytest.approx(0.5)
